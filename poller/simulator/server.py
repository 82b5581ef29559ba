"""Settings go in; a broker that answers like Kiwoom's comes out, on a socket of its own, its market included.

What is asked and what is said is worked out by the pure modules beside this one; time comes from the clock that is
handed over. The surprise: on a socket answers are worked out in a thread, one at a time, because the market may have
hours to catch up with and the event loop it shares with the client must not stand still for that. Who asks without a
socket gets them in the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from poller.clock import Clock
from poller.session import KST, Calendar
from poller.simulator.answers import SUCCESS, Page, answer, emptied
from poller.simulator.checks import (
    SECTORS_PATH,
    STOCK_INFO_PATH,
    Asked,
    Refusal,
    check_body,
    check_headers,
    dead_token,
    next_key,
    over_limit,
    position_in,
)
from poller.simulator.clock import MarketClock, default_start
from poller.simulator.faults import Fault, Faults
from poller.simulator.ledger import Ledger
from poller.simulator.limits import Limit
from poller.simulator.market import Market
from poller.simulator.replies import Reply, refused, response, spoiled
from poller.simulator.tokens import Tokens

TOKEN_PATH, REVOKE_PATH = "/oauth2/token", "/oauth2/revoke"
WITHOUT_ANSWER: frozenset[Fault] = frozenset({"http_500", "html", "drop"})


@dataclass(frozen=True)
class SimulatorSettings:
    """What one simulator differs in from another."""

    seed: int = 1
    clock: MarketClock | None = None  # None: the last trading day's time, or now while the market is open
    faults: float = 0.0
    limit_per_s: int = 5  # for each report and app key
    mock: bool = False  # one request a second over everything, KRX only
    keys: tuple[str, str] | None = None  # the only accepted pair; None accepts every pair
    ledger: Path | None = None


class Simulator:
    """The broker: what it knows, what it counts, and how it answers.

    `token_text` makes up the tokens. With `in_thread` answers are worked out beside the event loop.
    """

    def __init__(
        self,
        settings: SimulatorSettings,
        ledger: Ledger,
        time: Clock | None = None,
        *,
        token_text: Callable[[], str] = lambda: token_urlsafe(48),
        in_thread: bool = False,
    ) -> None:
        self._time = time or Clock()
        now, calendar = self._now(), Calendar()
        self.settings = settings
        self.clock = settings.clock or MarketClock(default_start(now, calendar), now, calendar=calendar)
        self.market = Market(settings.seed, self.clock.calendar)
        self.requests = 0
        self.refusals = 0
        self.faults_served: dict[str, int] = Counter()
        self._ledger = ledger
        self._tokens = Tokens(settings.keys, token_text)
        self._limit = Limit(1 if settings.mock else settings.limit_per_s)
        self._faults = Faults(settings.faults, settings.seed)
        self._in_thread, self._one_at_a_time = in_thread, asyncio.Lock()

    @property
    def tokens_issued(self) -> int:
        """How many tokens were handed out."""
        return self._tokens.issued

    def _now(self) -> datetime:
        return self._time.now().astimezone(KST)

    def market_now(self) -> datetime:
        """The time in the made-up market."""
        return self.clock.at(self._now())

    def catch_up(self) -> None:
        """Bring the market to its present."""
        self.market.at(self.market_now())

    async def call(self, path: str, headers: Mapping[str, str], content: bytes) -> Reply:
        """The reply to a POST; which report is asked for, the header `api-id` says."""
        body = _json_object(content)
        if path in (TOKEN_PATH, REVOKE_PATH):
            return self._token_call(body or {}, revoke=path == REVOKE_PATH)
        return await self._data(Asked(path, headers, body))

    def _token_call(self, body: Mapping[str, Any], *, revoke: bool) -> Reply:
        if self.settings.mock:
            self._limit.count(None, self._time.monotonic_s())
        if self._faults.spoils_token_call():
            self.faults_served["html"] += 1
            return Reply(None, fault="html")
        try:
            return Reply(self._tokens.revoke(body) if revoke else self._tokens.issue(body, self._now()))
        except Refusal as refusal:
            return refused(refusal, None)

    async def _data(self, asked: Asked) -> Reply:
        self.requests += 1
        arrived = self._now()
        fault: Fault | None = None
        at_market = self.clock.at(arrived)
        try:
            token = check_headers(asked)
            self._admit(asked, token, arrived)
            fault = self._faults.draw(self._time.monotonic_s())
            self._refuse_by(fault, token)
            reply = Reply(None, fault=fault)
            if fault not in WITHOUT_ANSWER:
                reply, at_market = await self._answer(asked, fault)
        except Refusal as refusal:
            # There is nothing to empty in a refusal, so that fault did not happen.
            fault = None if fault == "empty" else fault
            reply = refused(refusal, fault)
        reply = spoiled(reply)
        reply.headers = {"cont-yn": "N", "next-key": "", **reply.headers, "api-id": asked.api_id}
        if fault:
            self.faults_served[fault] += 1
        self._ledger.note(asked, reply, at_real=arrived, at_market=at_market)
        return reply

    def _admit(self, asked: Asked, token: str, now: datetime) -> None:
        """Let a request in if its token is alive and its second not yet full."""
        app_key = self._tokens.owner(token, now)
        if app_key is None:
            raise dead_token()
        kind = None if self.settings.mock else (app_key, asked.api_id)
        if not self._limit.admits(kind, self._time.monotonic_s()):
            self.refusals += 1
            raise over_limit(self._limit.per_s, asked.api_id)

    def _refuse_by(self, fault: Fault | None, token: str) -> None:
        if fault == "dead_token":
            self._tokens.kill(token)
            raise dead_token()
        if fault == "error_1999":
            raise Refusal("예기치 못한 에러가 발생하였습니다[1999:예기치 못한 에러가 발생하였습니다]", return_code=1)

    async def _answer(self, asked: Asked, fault: Fault | None) -> tuple[Reply, datetime]:
        """One page of the market as it is when its turn has come, and that moment."""
        body = check_body(asked)
        if self.settings.mock and "stex_tp" in body:
            body["stex_tp"] = "1"
        position = position_in(asked, body)
        async with self._one_at_a_time:
            # Read here and not at arrival: requests that overtake each other would send the market back in time.
            moment = self.market_now()
            ask = (asked.api_id, body, position, moment)
            page = await asyncio.to_thread(self._page, *ask) if self._in_thread else self._page(*ask)
        elements = emptied(page.elements) if fault == "empty" else page.elements
        headers = {}
        if page.next_position is not None and fault != "empty":
            headers = {"cont-yn": "Y", "next-key": next_key(asked.api_id, body, page.next_position)}
        return Reply({**elements, **SUCCESS}, 200, fault, headers), moment

    def _page(self, api_id: str, body: dict[str, str], position: str | None, moment: datetime) -> Page:
        return answer(api_id, self.market.at(moment), body, position)


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(content)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


class _Protocol(H11Protocol):
    """HTTP that lets a fault reach the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class _Server(uvicorn.Server):
    """Uvicorn as a guest in somebody else's loop: signals stay with the host, who also says when to stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for the end without waking up ten times a second, as there is no date header to keep."""
        await self.stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is ours, or OSError; uvicorn would end the process instead."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _web_server(simulator: Simulator) -> _Server:
    async def answered(request: Request) -> Response:
        return response(await simulator.call(request.url.path, request.headers, await request.body()))

    paths = (TOKEN_PATH, REVOKE_PATH, SECTORS_PATH, STOCK_INFO_PATH)
    config = uvicorn.Config(
        Starlette(routes=[Route(path, answered, methods=["POST"]) for path in paths]),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    return _Server(config)


@contextlib.asynccontextmanager
async def serving(
    settings: SimulatorSettings, *, host: str = "127.0.0.1", port: int = 0, kind: Callable[..., Simulator] = Simulator
) -> AsyncIterator[tuple[Simulator, str]]:
    """Serve in the running event loop; yields the simulator, which is of this `kind`, and its base URL."""
    with contextlib.closing(_listening(host, port)) as listener, Ledger(settings.ledger) as ledger:
        simulator = kind(settings, ledger, in_thread=True)
        await asyncio.to_thread(simulator.catch_up)
        address = f"[{host}]" if ":" in host else host
        base_url = f"http://{address}:{listener.getsockname()[1]}"
        server = _web_server(simulator)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield simulator, base_url
        finally:
            server.stop.set()
            await running
