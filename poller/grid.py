"""A job and a moment go in; when to ask next comes out.

Pure: time and chance are arguments. The surprise: the grid is laid from 1970 on with a phase of the target's own, so
neither a slow answer nor a restart moves it, and many targets spread out by themselves.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from poller.session import Calendar, Moves, Timetable, polling_s, windows
from poller.trs.base import Target

BACKOFF_CAP_S = 300.0
EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MINUTE_S = 60.0
"""At the opening every target is asked within a minute, however long its interval."""


@dataclass(frozen=True)
class Job:
    """One target of the plan: how often it is asked, and how soon it gives way when memory is full."""

    target: Target
    every_s: float
    priority: int = 1

    @property
    def phase_s(self) -> float:
        """Where on its grid the target stands: a stable hash."""
        return zlib.crc32(str(self.target).encode()) / 2**32 * self.every_s


def next_tick(every_s: float, phase_s: float, after: datetime) -> datetime:
    """The first point of a grid after a moment; points that were overrun are skipped, never replayed.

    >>> next_tick(10, 3, datetime(2026, 11, 23, 0, 0, 25, tzinfo=UTC)).second
    33
    """
    seconds = (after - EPOCH_START).total_seconds()
    ticks = (seconds - phase_s) // every_s + 1
    tick = EPOCH_START + timedelta(seconds=ticks * every_s + phase_s)
    return tick if tick > after else tick + timedelta(seconds=every_s)  # rounded to a microsecond it may not be after


def backoff_s(failures: int, every_s: float, rng: random.Random) -> float:
    """How long to leave the broker alone after so many failures in a row: full jitter, doubling, capped."""
    ceiling = min(10 * every_s, BACKOFF_CAP_S, 0.5 * 2.0 ** min(failures, 20))
    return rng.uniform(0, ceiling)


@dataclass(frozen=True)
class Timing:
    """Which day it is, and when polls make sense: in the hours of `calendar`, or around the clock if that is None."""

    timetable: Timetable
    calendar: Calendar | None

    def moves(self, job: Job) -> Moves | None:
        """The hours in which the job is polled, None for all of them."""
        return None if self.calendar is None else job.target.tr.moves

    def due(self, job: Job, after: datetime) -> datetime:
        """When to ask next: on the grid in the report's hours, once at their end, then at the next opening."""
        tick = next_tick(job.every_s, job.phase_s, after)
        if self.calendar is None:
            return tick
        opens, closes = next(windows(job.target.tr.moves, self.calendar, after))
        if tick < opens:
            return opens + timedelta(seconds=min(job.phase_s, FIRST_MINUTE_S))
        return min(tick, closes)

    def scheduled_s(self, job: Job, since: datetime, until: datetime) -> float:
        """How much of a stretch of time was meant to be polled."""
        return polling_s(self.moves(job), self.calendar or Calendar(), since, until)
