"""A job and a moment go in; when to ask next comes out.

Pure: time and chance are arguments. The surprise: the grid is laid from 1970 on with a phase of the target's own, so
neither a slow answer nor a restart moves it, and many targets spread out by themselves.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from poller.session import KST, Calendar, Timetable, before_opening_s, next_evening, polling_s, windows
from poller.trs.base import Target

MICROSECOND = timedelta(microseconds=1)
BACKOFF_CAP_S = 300.0
EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MINUTE_S = 60.0
"""At the opening every target is asked within a minute, however long its interval."""


@dataclass(frozen=True)
class Job:
    """One target of the plan: how often it is asked, and how soon it gives way when memory is full.

    `off_hours_s` is the interval while its report does not move; None leaves it alone then.
    """

    target: Target
    every_s: float
    priority: int = 1
    off_hours_s: float | None = None

    @property
    def phase_s(self) -> float:
        """Where on its grid the target stands."""
        return self.share * self.every_s

    def tick_of(self, due: datetime) -> datetime:
        """The tick that a poll is for: its own if it is on the grid, else the next."""
        return next_tick(self.every_s, self.phase_s, due - 2 * MICROSECOND)

    @property
    def share(self) -> float:
        """The part of an interval by which the target's grid is shifted: a stable hash."""
        return zlib.crc32(str(self.target).encode()) / 2**32


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

    def before_opening(self, job: Job, moment: datetime) -> bool:
        """Whether answers are not worth comparing at `moment`: on a trading day, before its market opens."""
        return self.calendar is not None and self.calendar.before_opening(moment, job.target.moves.market)

    def due(self, job: Job, after: datetime) -> datetime:
        """When to ask next.

        On the grid in the report's hours, once at their end, once in the evening where it settles late, and at the
        next opening; in between at the off-hours interval, if there is one, but for the hours before an opening.
        """
        tick = next_tick(job.every_s, job.phase_s, after)
        if self.calendar is None:
            return tick
        opens, closes = next(windows(job.target.moves, self.calendar, after))
        due = [opens + timedelta(seconds=min(job.phase_s, FIRST_MINUTE_S)) if tick < opens else min(tick, closes)]
        evening = next_evening(job.target.moves, self.calendar, after)
        if evening is not None:
            due.append(evening)
        if job.off_hours_s is not None and after < opens:
            off_hours = next_tick(job.off_hours_s, job.share * job.off_hours_s, after)
            if not self.before_opening(job, off_hours):
                due.append(off_hours)
        return min(due)

    def rest(self, job: Job, now: datetime, due: datetime) -> date | None:
        """The day on which a job is asked again that rests now, None for one that is merely waiting for its tick."""
        if self.calendar is None or due <= now + timedelta(seconds=job.every_s):
            return None
        opens, _ = next(windows(job.target.moves, self.calendar, now))
        return due.astimezone(KST).date() if now < opens else None

    def missed_ticks(self, job: Job, due: datetime, now: datetime) -> int:
        """How many further polls came due while the one of `due` was waited for; they are skipped, not replayed.

        A poll off the grid stands for the tick to come, so only those after that can be missed.
        """
        following = self.due(job, job.tick_of(due))
        return 0 if following > now else 1 + int(self.scheduled_polls(job, following, now))

    def scheduled_polls(self, job: Job, since: datetime, until: datetime) -> float:
        """How many intervals of polling a stretch of time was meant to have; closed hours count by `off_hours_s`.

        The first polls at an opening and in the evening are extra: one that fails is no gap.
        """
        total_s = max(0.0, (until - since).total_seconds())
        if total_s == 0:  # a clock that was set back
            return 0.0
        if self.calendar is None:
            return total_s / job.every_s
        moves = job.target.moves
        in_hours_s = polling_s(moves, self.calendar, since, until)
        if job.off_hours_s is None:
            return in_hours_s / job.every_s
        off_s = total_s - in_hours_s - before_opening_s(moves.market, self.calendar, since, until)
        return in_hours_s / job.every_s + off_s / job.off_hours_s
