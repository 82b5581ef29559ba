"""A target goes in; its whole answer, all pages, or an error that says what to do, comes out.

The only module that speaks HTTP to the broker, through one client for the life of the process: a kept-alive connection
answers in 50 ms, a new one takes a second. The surprise: a page walk that breaks anywhere is worth nothing, because
half a table compared with a whole one looks like removals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import orjson
from pydantic import SecretStr
from redis.asyncio import Redis

from poller.auth import Token, Tokens, token_of
from poller.clock import Clock
from poller.errors import GiveUp, NotWhole, SignInAgain, SkipTarget, TryLater, raise_for_answer
from poller.gate import Gates
from poller.rows import Page
from poller.trs.base import Append, Target

TIMEOUT_S = 5.0
TOKEN_API_ID = "au10001"  # noqa: S105 -- the id of the token call, not a token

Enough = Callable[[Sequence[Page]], bool]


@dataclass(frozen=True)
class Answer:
    """A whole answer: its pages as sent and as parsed, and what tells it from another."""

    target: Target
    pages: tuple[Page, ...]
    bodies: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """Equal for equal answers."""
        digest = hashlib.sha256()
        for body in self.bodies:
            digest.update(body)
        return digest.hexdigest()


def to_the_end(pages: Sequence[Page]) -> bool:  # noqa: ARG001 -- one of several ways to tell
    """Walk until the broker says that there is no more."""
    return False


@dataclass
class BrokerCounts:
    """What was asked and refused since the start."""

    requests: int = 0
    refusals: int = 0
    tokens: int = 0


class Broker:
    """The broker's API. Use as an async context manager."""

    def __init__(
        self,
        base_url: str,
        app_key: SecretStr,
        secret_key: SecretStr,
        *,
        gates: Gates,
        redis: Redis,
        prefix: str,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=not _is_loopback(base_url),  # a company's proxy does not reach the simulator beside us
        )
        self._app_key, self._secret_key = app_key, secret_key
        self._gates, self._clock = gates, clock
        self._tokens = Tokens(redis, prefix, app_key, self._issue, clock)
        self.counts = BrokerCounts()
        self.may_send: Callable[[], bool] = lambda: True

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def fetch(self, target: Target, enough: Enough = to_the_end, *, deadline_s: float = 0.0) -> Answer:
        """The whole answer of a target: pages until the broker's last, or until they are `enough`.

        `deadline_s` orders those who wait for the same limit. A dead token is renewed once, and the walk begins anew.
        Raises TryLater, NotWhole, SkipTarget or GiveUp.
        """
        try:
            return await self._fetch(target, enough, deadline_s)
        except TryLater as error:
            self.counts.refusals += error.refused
            raise

    async def _fetch(self, target: Target, enough: Enough, deadline_s: float) -> Answer:
        token = await self._tokens.current()
        try:
            return await self._walk(target, enough, token, deadline_s)
        except SignInAgain as dead:
            token = await self._tokens.renew(token)
            try:
                return await self._walk(target, enough, token, deadline_s)
            except SignInAgain as error:
                if dead.fatal_twice and error.fatal_twice:
                    raise GiveUp(str(error), code=error.code, scope="key") from error
                raise TryLater(f"{error}: a fresh token was refused as well", code=error.code) from error

    async def sign_in(self) -> None:
        """Get a token, to see that the keys are right. Raises TryLater or GiveUp."""
        await self._tokens.current()

    async def _walk(self, target: Target, enough: Enough, token: SecretStr, deadline_s: float) -> Answer:
        bodies: list[bytes] = []
        try:
            return await self._walk_on(target, enough, token, deadline_s, bodies)
        except NotWhole as error:
            error.bodies = tuple(bodies)
            raise

    async def _walk_on(
        self, target: Target, enough: Enough, token: SecretStr, deadline_s: float, bodies: list[bytes]
    ) -> Answer:
        pages: list[Page] = []
        next_key = ""
        while True:
            headers = {"api-id": target.tr.code, "authorization": f"Bearer {token.get_secret_value()}"}
            if next_key:
                headers |= {"cont-yn": "Y", "next-key": next_key}
            response, body = await self._post(target.tr.path, target.tr.code, target.request, headers, deadline_s)
            raise_for_answer(response.status_code, body, asked=str(target))
            pages.append(body or {})
            bodies.append(response.content)
            if response.headers.get("cont-yn", "").strip().upper() != "Y" or enough(pages):
                return Answer(target, tuple(pages), tuple(bodies))
            following = response.headers.get("next-key", "").strip()
            if len(pages) >= target.tr.max_pages and any(isinstance(table, Append) for table in target.tr.tables):
                return Answer(target, tuple(pages), tuple(bodies))  # what is missing is declared as a gap
            _check_chain(target, pages, next_key, following)
            next_key = following

    async def _post(
        self, path: str, api_id: str, body: Mapping[str, str], headers: Mapping[str, str], deadline_s: float
    ) -> tuple[httpx.Response, dict[str, Any] | None]:
        """One request in its turn: the response, and its body where that is a JSON object."""
        async with self._gates.of(api_id).slot(deadline_s):
            if not self.may_send():
                raise TryLater("another poller may lead by now: nothing is asked")
            self.counts.requests += 1
            try:
                response = await self._http.post(
                    path,
                    content=orjson.dumps(body),
                    headers={"content-type": "application/json;charset=UTF-8", **headers},
                )
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                told = f"{self._http.base_url} cannot be reached: check the network and [kiwoom] in the configuration"
                raise TryLater(f"{told} ({error})", everywhere=True) from error
            except httpx.RequestError as error:
                raise TryLater(f"{api_id}: {type(error).__name__} {error}".rstrip()) from error
        return response, _json_object(response.content)

    async def _issue(self) -> Token:
        credentials = {
            "grant_type": "client_credentials",
            "appkey": self._app_key.get_secret_value(),
            "secretkey": self._secret_key.get_secret_value(),
        }
        headers = {"api-id": TOKEN_API_ID}
        response, body = await self._post("/oauth2/token", TOKEN_API_ID, credentials, headers, 0.0)
        try:
            raise_for_answer(response.status_code, body, asked="the token call")
        except (SignInAgain, SkipTarget, GiveUp) as error:  # whatever it is, it stands in the way of every TR
            raise GiveUp(str(error), code=error.code, scope="key") from error
        self.counts.tokens += 1
        return token_of(body or {}, self._clock.now())


def _is_loopback(url: str) -> bool:
    """Whether a server is on this machine.

    >>> _is_loopback("http://127.0.0.1:9100"), _is_loopback("https://api.kiwoom.com")
    (True, False)
    """
    return httpx.URL(url).host in {"localhost", "127.0.0.1", "::1"}


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _check_chain(target: Target, pages: Sequence[Page], key: str, following: str) -> None:
    """The broker says that more follows: it has to be reachable, else the answer is truncated."""
    if not following:
        raise NotWhole(f"{target}: page {len(pages)} says that more follows, without a next-key")
    if following == key:
        raise NotWhole(f"{target}: page {len(pages)} repeats its next-key: the walk goes in a circle")
    if not any(pages[-1].get(table.rows_at) for table in target.tr.tables if table.rows_at):
        raise NotWhole(f"{target}: page {len(pages)} is empty, yet says that more follows")
    if len(pages) >= target.tr.max_pages:
        raise NotWhole(f"{target}: more than {target.tr.max_pages} pages")
