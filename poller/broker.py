"""A target goes in; its whole answer, all pages, or an error that says what to do, comes out.

The only module that speaks HTTP to the broker, through one client for the life of the process: a kept-alive connection
answers in 50 ms, a new one takes a second. The surprise: a page walk that breaks anywhere is worth nothing, because
half a table compared with a whole one looks like removals.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

import httpx
import orjson
from pydantic import SecretStr
from redis.asyncio import Redis

from poller.auth import Token, Tokens, token_of
from poller.clock import Clock
from poller.errors import GiveUp, NotAsked, NotLeading, NotWhole, SignInAgain, SkipTarget, TryLater, raise_for_answer
from poller.gate import AT_ONCE, Deadline, Gates
from poller.rows import Page
from poller.trs.base import Append, Target

TIMEOUT_S = 5.0
TOKEN_API_ID = "au10001"  # noqa: S105 -- the id of the token call, not a token

SHORTEST_SECRET = 8
"""Shorter ones, which only tests have, could not be told from ordinary text."""

NO_TOKEN = SecretStr("none")
"""Sent in maintenance where there is no token: any refusal of it shows that the broker is back."""

Enough = Callable[[Sequence[Page]], bool]
Pair = tuple[SecretStr, SecretStr]
Result = TypeVar("Result")


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


@dataclass(frozen=True)
class Heard:
    """One response of a page walk, or in `error` why there was none; `walk` rises and never repeats.

    `asked_at` is when the walk began. Only what the broker says is in it: no header that was sent, no token call.
    """

    target: Target
    walk: int
    asked_at: datetime
    page: int
    asked_key: str
    status: int | None = None
    cont_yn: str = ""
    next_key: str = ""
    content_type: str = ""
    body: bytes = b""
    error: str = ""


def to_the_end(pages: Sequence[Page]) -> bool:  # noqa: ARG001 -- one of several ways to tell
    """Walk until the broker says that there is no more."""
    return False


@dataclass
class BrokerCounts:
    """What was asked and refused since the start."""

    requests: int = 0
    refusals: int = 0
    tokens: int = 0


class _OtherKey(NotAsked):
    """The files hold another app key than the one a token was wanted for: begin anew with that."""


class Broker:
    """The broker's API under one app key. Use as an async context manager.

    `reread` gives the key pair as its files hold it now; `check` raises HeldBack where nothing may be asked, and while
    `hold_tokens` no token is issued. `walks` numbers the page walks.
    """

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
        self._tokens_of: Callable[[SecretStr], Tokens] = lambda key: Tokens(redis, prefix, key, self._issue, clock)
        self._tokens = self._tokens_of(app_key)
        self.counts = BrokerCounts()
        self.pairs_read = 0
        self.reread: Callable[[], Pair] = lambda: (app_key, secret_key)
        self.may_send: Callable[[], bool] = lambda: True
        self.check: Callable[[], None] = lambda: None
        self.hold_tokens: Callable[[], bool] = lambda: False
        self.record: Callable[[Heard], None] | None = None
        self.walks = itertools.count(int(clock.now().timestamp() * 1000))  # a later process goes on above this one

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    def read_keys(self) -> bool:
        """Take the key pair as its files hold it now. Whether it is another one."""
        app_key, secret_key = self.reread()
        if (app_key, secret_key) == (self._app_key, self._secret_key):
            return False
        if app_key != self._app_key:
            self._tokens = self._tokens_of(app_key)
        self._app_key, self._secret_key = app_key, secret_key
        self.pairs_read += 1
        return True

    async def fetch(self, target: Target, enough: Enough = to_the_end, *, deadline: Deadline = AT_ONCE) -> Answer:
        """The whole answer of a target: pages until the broker's last, or until they are `enough`.

        `deadline` orders those who wait for the same limit. A dead token is renewed once, and the walk begins anew.
        Raises TryLater, NotWhole, SkipTarget or GiveUp.
        """
        try:
            return await self._with_key(lambda tokens: self._fetch(tokens, target, enough, deadline))
        except TryLater as error:
            if error.refused:
                self.counts.refusals += 1
                self._gates.of(target.tr.code).refused(str(error))
            raise

    async def _with_key(self, ask: Callable[[Tokens], Awaitable[Result]]) -> Result:
        """Ask with the tokens of this key, and once more if its file turns out to hold another key by now."""
        try:
            return await ask(self._tokens)
        except _OtherKey:
            return await ask(self._tokens)

    async def _fetch(self, tokens: Tokens, target: Target, enough: Enough, deadline: Deadline) -> Answer:
        if self.hold_tokens():
            return await self._fetch_without_issuing(tokens, target, enough, deadline)
        token = await tokens.current()
        try:
            return await self._walk(target, enough, token, deadline)
        except SignInAgain as dead:
            token = await tokens.renew(token)
            try:
                return await self._walk(target, enough, token, deadline)
            except SignInAgain as error:
                if dead.fatal_twice and error.fatal_twice:
                    raise GiveUp(str(error), code=error.code, scope="key") from error
                raise TryLater(f"{error}: a fresh token was refused as well", code=error.code) from error

    async def _fetch_without_issuing(
        self, tokens: Tokens, target: Target, enough: Enough, deadline: Deadline
    ) -> Answer:
        """In maintenance the token call answers with HTML as well, and may have ended the old token all the same."""
        token = await tokens.without_issuing() or NO_TOKEN
        try:
            return await self._walk(target, enough, token, deadline)
        except SignInAgain as error:
            raise TryLater(f"{error}: the broker is back, and a token is issued next", code=error.code) from error

    async def sign_in(self) -> None:
        """Get a token, to see that the keys are right. Raises TryLater or GiveUp."""
        await self._with_key(lambda tokens: tokens.current())

    async def _walk(self, target: Target, enough: Enough, token: SecretStr, deadline: Deadline) -> Answer:
        bodies: list[bytes] = []
        try:
            return await self._walk_on(target, enough, token, deadline, bodies)
        except NotWhole as error:
            error.bodies = tuple(bodies)
            raise

    async def _walk_on(
        self, target: Target, enough: Enough, token: SecretStr, deadline: Deadline, bodies: list[bytes]
    ) -> Answer:
        pages: list[Page] = []
        next_key, followed = "", list[str]()
        walk, asked_at = next(self.walks), self._clock.now()
        while True:
            headers = {"api-id": target.tr.code, "authorization": f"Bearer {token.get_secret_value()}"}
            if next_key:
                headers |= {"cont-yn": "Y", "next-key": next_key}
            asked = Heard(target, walk, asked_at, len(pages) + 1, next_key)
            try:
                response = await self._post(target.tr.path, target.tr.code, target.request, headers, deadline)
            except TryLater as error:
                if isinstance(error.__cause__, httpx.RequestError):
                    self._tell(replace(asked, error=str(error)))
                raise
            content = self._without_secrets(response.content, token)
            self._tell(_heard(asked, response, content))
            body = json_object(content)
            raise_for_answer(response.status_code, body, asked=str(target), html=_is_html(response))
            pages.append(body or {})
            bodies.append(content)
            following = following_key(target, pages, followed, response.headers, enough)
            if following is None:
                return Answer(target, tuple(pages), tuple(bodies))
            next_key = following
            followed.append(following)

    def _tell(self, heard: Heard) -> None:
        if self.record is not None:
            self.record(heard)

    def _without_secrets(self, content: bytes, token: SecretStr) -> bytes:
        """An answer as it may be kept: should an error page ever repeat what was sent, a key or a token is starred."""
        for secret in (token, self._app_key, self._secret_key):
            text = secret.get_secret_value().encode()
            if len(text) >= SHORTEST_SECRET:
                content = content.replace(text, b"***")
        return content

    async def _post(
        self, path: str, api_id: str, body: Mapping[str, str], headers: Mapping[str, str], deadline: Deadline
    ) -> httpx.Response:
        """One request in its turn."""
        async with self._gates.of(api_id).slot(deadline):
            self.check()
            if not self.may_send():
                raise NotLeading("another poller may lead by now: nothing is asked")
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
        return response

    async def _issue(self) -> Token:
        app_key = self._app_key
        self.read_keys()
        if self._app_key != app_key:
            raise _OtherKey("the app key was replaced")
        credentials = {
            "grant_type": "client_credentials",
            "appkey": self._app_key.get_secret_value(),
            "secretkey": self._secret_key.get_secret_value(),
        }
        headers = {"api-id": TOKEN_API_ID}
        response = await self._post("/oauth2/token", TOKEN_API_ID, credentials, headers, AT_ONCE)
        body = json_object(self._without_secrets(response.content, NO_TOKEN))  # its message may end up in a log
        try:
            raise_for_answer(response.status_code, body, asked="the token call", html=_is_html(response))
        except (SignInAgain, SkipTarget, GiveUp) as error:  # whatever it is, it stands in the way of every TR
            raise GiveUp(str(error), code=error.code, scope="key") from error
        self.counts.tokens += 1
        return token_of(json_object(response.content) or {}, self._clock.now())


def _is_loopback(url: str) -> bool:
    """Whether a server is on this machine.

    >>> _is_loopback("http://127.0.0.1:9100"), _is_loopback("https://api.kiwoom.com")
    (True, False)
    """
    return httpx.URL(url).host in {"localhost", "127.0.0.1", "::1"}


def _is_html(response: httpx.Response) -> bool:
    """Whether an answer is a page for people, as the broker sends in maintenance."""
    return "html" in response.headers.get("content-type", "") or response.content.lstrip()[:1] == b"<"


def json_object(content: bytes) -> dict[str, Any] | None:
    """A body that is a JSON object, else None."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _heard(asked: Heard, response: httpx.Response, content: bytes) -> Heard:
    headers = response.headers
    return replace(
        asked,
        status=response.status_code,
        cont_yn=headers.get("cont-yn", "").strip(),
        next_key=headers.get("next-key", "").strip(),
        content_type=headers.get("content-type", ""),
        body=content,
    )


def following_key(
    target: Target, pages: Sequence[Page], followed: Sequence[str], headers: Mapping[str, str], enough: Enough
) -> str | None:
    """The key of the page to ask for after these, whose keys were `followed`; None where the walk is over.

    `headers` are those of the last page. Raises NotWhole where the chain is broken.
    """
    _check_new_rows(target, pages)
    if headers.get("cont-yn", "").strip().upper() != "Y" or enough(pages):
        return None
    following = headers.get("next-key", "").strip()
    if len(pages) >= target.tr.max_pages and any(isinstance(table, Append) for table in target.tr.tables):
        return None  # what is missing is declared as a gap
    _check_chain(target, pages, followed, following)
    return following


def _check_chain(target: Target, pages: Sequence[Page], followed: Sequence[str], following: str) -> None:
    """The broker says that more follows: it has to be reachable, else the answer is truncated."""
    if not following:
        raise NotWhole(f"{target}: page {len(pages)} says that more follows, without a next-key")
    if following in followed:
        raise NotWhole(f"{target}: page {len(pages)} repeats its next-key: the walk goes in a circle")
    if not any(pages[-1].get(table.rows_at) for table in target.tr.tables if table.rows_at):
        raise NotWhole(f"{target}: page {len(pages)} is empty, yet says that more follows")
    if len(pages) >= target.tr.max_pages:
        raise NotWhole(f"{target}: more than {target.tr.max_pages} pages")


def _check_new_rows(target: Target, pages: Sequence[Page]) -> None:
    """A later page that brings only rows we have is a page served twice, and the one it stands for is missing.

    A page without any row is not meant: it may be how a walk ends.
    """
    if len(pages) == 1:
        return
    *earlier, last = ({*_row_names(target, page)} for page in pages)
    if last and last <= set[bytes]().union(*earlier):
        raise NotWhole(f"{target}: page {len(pages)} brings no row that is new: two pages were mixed up")


def _row_names(target: Target, page: Page) -> Iterator[bytes]:
    """What identifies each listed row: its key as sent, or all of it where that is empty."""
    for table in target.tr.tables:
        key = next((declared.element for declared in table.row.fields if declared.name == table.key), None)
        rows = page.get(table.rows_at or "")
        for row in rows if isinstance(rows, list) else ():
            named = isinstance(row, dict) and row.get(key)
            yield orjson.dumps([table.name, named or row])
