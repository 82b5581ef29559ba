"""The one place that reads a clock or sleeps, so that everything else can be given another."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime

COUNTS_ON = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On Linux the usual clock stands still while the machine sleeps (clock_gettime(2)), and a lease does not."""


async def pause(seconds: float) -> None:
    """Sleep, where there is nothing to wait for but time."""
    await asyncio.sleep(seconds)


class Clock:
    """Wall time for what people read, monotonic seconds for what must not jump."""

    def now(self) -> datetime:
        """The present moment, with its zone."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Seconds that never go back, those in which the machine slept included."""
        return time.clock_gettime(COUNTS_ON)

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        """Wait for an event, at most that long; whether it happened."""
        if timeout_s > 0 and not event.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
        return event.is_set()
