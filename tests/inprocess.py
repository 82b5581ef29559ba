"""A simulator goes in; an httpx transport that reaches it without a socket comes out, latency included.

So a client can be run in virtual time. The surprise: a connection that a fault drops must look as it does on a socket,
so it is raised here as httpx raises it there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import orjson

from poller.simulator.checks import Asked
from poller.simulator.ledger import Ledger
from poller.simulator.replies import Reply, response
from poller.simulator.server import Simulator

LATENCY_S = (0.04, 0.06)
"""Measured on a kept-alive connection to the real server."""


CLIENT_TIMEOUT_S = 5.0
"""What the broker's client waits for an answer; httpx leaves it to its transport to look at the clock."""


@dataclass
class Sent:
    """One request of a sender, the token call included. Moments are market time; None where one never came."""

    sender: str
    api_id: str
    at: datetime
    lease_left_s: float
    arrived: datetime | None = None
    answered: datetime | None = None


class InProcess(httpx.AsyncBaseTransport):
    """The way to a simulator in the same loop. Half of the latency passes on the way there, half on the way back.

    `away` says whether the broker cannot be reached just now, `silent` whether this answer gets lost on its way.
    """

    def __init__(
        self,
        simulator: Simulator,
        rng: random.Random,
        *,
        latency_s: tuple[float, float] = LATENCY_S,
        away: Callable[[], bool] = lambda: False,
    ) -> None:
        self._simulator, self._rng, self._away = simulator, rng, away
        self.latency_s = latency_s
        self.silent: Callable[[], bool] = lambda: False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Ask the simulator. Raises ConnectError while it is away, and what a dropped connection raises."""
        latency_s = self._rng.uniform(*self.latency_s)
        if self._away():
            raise httpx.ConnectError("All connection attempts failed", request=request)
        await asyncio.sleep(latency_s / 2)
        if sent := request.extensions.get("sent"):
            sent.arrived = self._simulator.market_now()
        reply = await self._simulator.call(request.url.path, request.headers, request.content)
        if self.silent():
            await asyncio.sleep(CLIENT_TIMEOUT_S - latency_s / 2)
            raise httpx.ReadTimeout("", request=request)
        await asyncio.sleep(latency_s / 2)
        if sent:
            sent.answered = self._simulator.market_now()
        return _received(reply, request)


class Sender(httpx.AsyncBaseTransport):
    """The same way for one sender; what he sends is told to `note` before it leaves."""

    def __init__(self, way: InProcess, note: Callable[[str], Sent]) -> None:
        self._way, self._note = way, note

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Ask the simulator, noting when."""
        request.extensions["sent"] = self._note(request.headers["api-id"])
        return await self._way.handle_async_request(request)


def _received(reply: Reply, request: httpx.Request) -> httpx.Response:
    if reply.fault == "drop":
        raise httpx.ReadError("", request=request)
    if reply.fault == "drop_in_body":
        sent = len(reply.cut_body)
        told = f"peer closed connection without sending complete message body (received {sent}, expected {2 * sent})"
        raise httpx.RemoteProtocolError(told, request=request)
    sent_back = response(reply)
    return httpx.Response(sent_back.status_code, headers=sent_back.raw_headers, content=bytes(sent_back.body))


@dataclass(frozen=True)
class Served:
    """One answer, as the simulator noted it before it left."""

    at_real: datetime
    at_market: datetime
    api_id: str
    request: dict[str, Any] | None
    cont_yn_in: str
    cont_yn: str
    status: int | None
    fault: str | None
    body: bytes

    @property
    def answer(self) -> dict[str, Any] | None:
        """The JSON that was sent; None where it was none."""
        body: dict[str, Any] | None = orjson.loads(self.body)
        return body


class MemoryLedger(Ledger):
    """A ledger that keeps everything here; answers as bytes, which need a tenth of the memory."""

    def __init__(self) -> None:
        super().__init__(None)
        self.served: list[Served] = []

    def note(self, asked: Asked, reply: Reply, *, at_real: datetime, at_market: datetime) -> None:
        """Keep one answer."""
        headers = asked.headers.get("cont-yn", ""), reply.headers.get("cont-yn", "")
        body = orjson.dumps(reply.answer)
        self.served.append(
            Served(at_real, at_market, asked.api_id, asked.body, *headers, reply.status, reply.fault, body)
        )
