"""A real moment goes in; the moment in the made-up market comes out.

Pure: no clock is read. The surprise: with `skip_closed` there is no evening. The moment the market closes is the
moment the next trading day opens, so whoever looks always finds a market that moves.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from poller.session import KST, Calendar


@dataclass(frozen=True)
class MarketClock:
    """Market time runs from `start`, the market's time at the real moment `began`, `speed` times as fast."""

    start: datetime
    began: datetime
    speed: float = 1.0
    skip_closed: bool = False
    calendar: Calendar = field(default_factory=Calendar)
    # Of each trading day met so far: market seconds run until it began, and its first moment. Filled as time goes on,
    # so that a clock that is a year ahead does not count the days of that year at every look.
    _days: list[tuple[float, datetime]] = field(default_factory=list, init=False, repr=False, compare=False)

    def at(self, real: datetime) -> datetime:
        """Market time, Korean, at a real moment."""
        run_s = (real - self.began).total_seconds() * self.speed
        if not self.skip_closed:
            return self.start.astimezone(KST) + timedelta(seconds=run_s)
        return self._at_open_s(max(0.0, run_s))

    def _at_open_s(self, run_s: float) -> datetime:
        """The moment at which the market has been open for `run_s` since the start."""
        if not self._days:
            self._days.append((0.0, self._first_open_moment()))
        while True:
            begun_s, begins = self._days[-1]
            ends_s = begun_s + (self.calendar.closes_at(begins.date()) - begins).total_seconds()
            if run_s < ends_s:
                break
            following = self.calendar.next_trading_day(begins.date())
            self._days.append((ends_s, self.calendar.opens_at(following)))
        begun_s, begins = self._days[bisect_right(self._days, run_s, key=lambda day: day[0]) - 1]
        return begins + timedelta(seconds=run_s - begun_s)

    def _first_open_moment(self) -> datetime:
        """The start itself if the market is open then, else the next opening."""
        start = self.start.astimezone(KST)
        day = start.date()
        if self.calendar.is_trading_day(day) and start < self.calendar.closes_at(day):
            return max(start, self.calendar.opens_at(day))
        return self.calendar.opens_at(self.calendar.next_trading_day(day))


def default_start(now: datetime, calendar: Calendar) -> datetime:
    """`now` if KRX has been open for a minute, else an hour into the last trading day.

    >>> default_start(datetime(2026, 11, 22, 12, 0, tzinfo=KST), Calendar()).isoformat()
    '2026-11-20T10:00:00+09:00'
    """
    day = calendar.trading_day_at(now)
    opens, closes = calendar.opens_at(day), calendar.closes_at(day)
    if opens + timedelta(minutes=1) <= now < closes:
        return now.astimezone(KST)
    return opens + timedelta(hours=1)
