"""The one place where consumers read a clock, draw by lot or sleep, so that all of it can be given another."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The present moment, with its zone."""
    return datetime.now(UTC)


def now_s() -> float:
    """The present in seconds since 1970."""
    return time.time()


def monotonic_s() -> float:
    """Seconds that never go back, on the running loop's own clock."""
    return asyncio.get_running_loop().time()


def lot() -> float:
    """A number between 0 and 1, to spread what would otherwise happen at once; guards nothing."""
    return random.random()  # noqa: S311


async def pause(seconds: float) -> None:
    """Sleep, where there is nothing to wait for but time."""
    await asyncio.sleep(seconds)
