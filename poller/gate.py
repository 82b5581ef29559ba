"""Requests wait here for their turn: the one with the earliest deadline goes first, as the window allows.

The surprise: a poll off the grid (at a start, at an opening, after a failure) has no deadline until its next tick. It
goes when nobody on the grid waits, so it cannot make a plan late that was proved to be kept.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import structlog

from poller.budget import Learned, Limit, Window, named_limit
from poller.clock import Clock
from poller.turnstile import Turnstile

Place = tuple[float, int, "asyncio.Future[None]"]


@dataclass(frozen=True)
class Deadline:
    """When an answer has to be there, in monotonic seconds; before `counts_from_s` it gives way to all others."""

    at_s: float = 0.0
    counts_from_s: float = -math.inf


AT_ONCE = Deadline()


class Gate:
    """One limit, and those who wait for it."""

    def __init__(self, name: str, limit: Limit, clock: Clock, turnstile: Turnstile | None = None) -> None:
        self._learned = Learned.nothing(limit)
        self._window = Window(limit, now_s=clock.monotonic_s())
        self._clock, self._turnstile = clock, turnstile
        self._waiting: list[Place] = []
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._log = structlog.get_logger("poller").bind(limit=name)

    @asynccontextmanager
    async def slot(self, deadline: Deadline = AT_ONCE) -> AsyncIterator[None]:
        """Wait for a turn; inside, one request may be sent, and leaving means that it was answered or is lost."""
        turn = asyncio.get_running_loop().create_future()
        self._queue(turn, deadline)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise
        try:
            async with self._turnstile.slot() if self._turnstile else nullcontext():
                yield
        finally:
            self._leave()

    def refused(self, told: str) -> None:
        """The broker counted too many: learn its limit from the refusal, and start with a full window."""
        now_s, before = self._clock.monotonic_s(), self._learned.now
        named = named_limit(told)
        changed = self._learned.refused(named, now_s)
        self._window.set(self._learned.now, now_s)
        if changed:
            self._log.warning("limit.learned", named=named, before=_told(before), now=_told(self._learned.now))

    def _queue(self, turn: asyncio.Future[None], deadline: Deadline) -> None:
        """Line up; whoever has no deadline yet lines up again when it begins to count."""
        number, early_s = next(self._arrivals), deadline.counts_from_s - self._clock.monotonic_s()
        heapq.heappush(self._waiting, (deadline.at_s if early_s <= 0 else math.inf, number, turn))
        if early_s > 0:
            asyncio.get_running_loop().call_later(early_s, self._hurry, turn, deadline.at_s)

    def _hurry(self, turn: asyncio.Future[None], deadline_s: float) -> None:
        if not turn.done():
            heapq.heappush(self._waiting, (deadline_s, next(self._arrivals), turn))

    def _leave(self) -> None:
        now_s = self._clock.monotonic_s()
        self._window.answered(now_s)
        if self._learned.recovered(now_s):
            self._window.set(self._learned.now, now_s)
            self._log.info("limit.raised", now=_told(self._learned.now), configured=_told(self._learned.configured))
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


def _told(limit: Limit) -> str:
    return f"{limit.requests} in {limit.per_s:g}s"


class Gates:
    """The gate of every TR, or one gate for all where the server counts them together.

    `turnstile` makes the slot that a limit's requests share with other processes.
    """

    def __init__(
        self, limits: Mapping[str, Limit], clock: Clock, turnstile: Callable[[str], Turnstile] | None = None
    ) -> None:
        self._limits, self._clock, self._turnstile = limits, clock, turnstile
        self._gates: dict[str, Gate] = {}

    def of(self, api_id: str) -> Gate:
        """The gate that a call of this TR goes through."""
        name = "*" if "*" in self._limits else api_id
        if name not in self._gates:
            shared = self._turnstile(name) if self._turnstile else None
            self._gates[name] = Gate(name, self._limits.get(name, Limit(1)), self._clock, shared)
        return self._gates[name]
