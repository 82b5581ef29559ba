"""Requests wait here for their turn: the one with the earliest deadline goes first, as the window allows."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from poller.budget import Limit, Window
from poller.clock import Clock


class Gate:
    """One limit, and those who wait for it."""

    def __init__(self, limit: Limit, clock: Clock) -> None:
        self._window = Window(limit, now_s=clock.monotonic_s())
        self._clock = clock
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def slot(self, deadline_s: float) -> AsyncIterator[None]:
        """Wait for a turn; inside, one request may be sent, and leaving means that it was answered or is lost."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (deadline_s, next(self._arrivals), turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._window.answered(self._clock.monotonic_s())
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            turn = self._waiting[0][2]
            if not turn.done():
                wait_s = self._window.take(self._clock.monotonic_s())
                if wait_s > 0:
                    self._serve_in(wait_s)
                    return
                turn.set_result(None)
            heapq.heappop(self._waiting)

    def _serve_in(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if wait_s < math.inf:  # else every slot is in flight, and the next answer serves
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._serve)


class Gates:
    """The gate of every TR, or one gate for all where the server counts them together."""

    def __init__(self, limits: Mapping[str, Limit], clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._gates: dict[str, Gate] = {}

    def of(self, api_id: str) -> Gate:
        """The gate that a call of this TR goes through."""
        name = "*" if "*" in self._limits else api_id
        if name not in self._gates:
            self._gates[name] = Gate(self._limits.get(name, Limit(1)), self._clock)
        return self._gates[name]
