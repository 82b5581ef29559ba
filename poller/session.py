"""A moment goes in; the trading day, the session and the polling hours come out.

Pure: no clock is read, the moment is an argument. The surprises: the trading day turns at the *opening*, not at
midnight, because what the broker serves before the opening are yesterday's rows or zeros; and the market opens an
hour late twice a year (college entrance exam, first trading day), which no calendar package knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import holidays

KST = timezone(timedelta(hours=9), "KST")
"""Korean time. A fixed offset: Korea has had no summer time since 1988."""

Session = Literal["pre", "regular", "closing", "after", "closed"]

PRE_OPEN = timedelta(hours=1)
"""How long before the opening the broker may already show the new day's zeros."""
CLOSING = timedelta(minutes=10)
"""The last index rows end about 15:32:20, so the close has settled ten minutes after it."""
AFTER_MARKET_ENDS = time(20, 0)


class Hours(NamedTuple):
    """When the regular session of one day opens and closes, in Korean time."""

    opens: time
    closes: time


USUAL = Hours(time(9, 0), time(15, 30))
EXAM_DAY = Hours(time(10, 0), time(16, 30))
FIRST_DAY = Hours(time(10, 0), time(15, 30))

LATE_OPENS: dict[date, Hours] = {
    date(2025, 1, 2): FIRST_DAY,
    date(2025, 11, 13): EXAM_DAY,
    date(2026, 1, 2): FIRST_DAY,
    date(2026, 11, 19): EXAM_DAY,
    date(2027, 1, 4): FIRST_DAY,
    date(2027, 11, 18): EXAM_DAY,
}
"""Days on which KRX opens late, as announced; the table ends with its last year."""


@lru_cache(maxsize=64)
def _closed_days(year: int) -> frozenset[date]:
    return frozenset(holidays.financial_holidays("XKRX", years=year))


class Timetable(Protocol):
    """What the poller asks of a calendar; the demo answers from its simulated market instead."""

    def trading_day_at(self, moment: datetime) -> date:
        """The trading day the broker's answers belong to at `moment`."""

    def session_at(self, moment: datetime) -> Session:
        """The session of the regular market at `moment`."""


@dataclass(frozen=True)
class Calendar:
    """KRX's trading days and hours. `closures` adds days that no public list knows."""

    closures: frozenset[date] = frozenset()
    late_opens: dict[date, Hours] = field(default_factory=lambda: dict(LATE_OPENS))

    def is_trading_day(self, day: date) -> bool:
        """Whether KRX trades on `day`.

        >>> Calendar().is_trading_day(date(2026, 7, 17)), Calendar().is_trading_day(date(2026, 11, 23))
        (False, True)
        """
        return day.weekday() < 5 and day not in _closed_days(day.year) and day not in self.closures

    def hours(self, day: date) -> Hours:
        """The regular session's hours on a trading day."""
        return self.late_opens.get(day, USUAL)

    def opens_at(self, day: date) -> datetime:
        """The opening of a trading day."""
        return datetime.combine(day, self.hours(day).opens, KST)

    def closes_at(self, day: date) -> datetime:
        """The close of a trading day's regular session."""
        return datetime.combine(day, self.hours(day).closes, KST)

    def trading_day_at(self, moment: datetime) -> date:
        """The last day whose opening has passed.

        >>> Calendar().trading_day_at(datetime(2026, 11, 23, 8, 59, tzinfo=KST))
        datetime.date(2026, 11, 20)
        """
        day = moment.astimezone(KST).date()
        while not (self.is_trading_day(day) and self.opens_at(day) <= moment):
            day -= timedelta(days=1)
        return day

    def next_trading_day(self, after: date) -> date:
        """The first trading day after `after`."""
        day = after + timedelta(days=1)
        while not self.is_trading_day(day):
            day += timedelta(days=1)
        return day

    def session_at(self, moment: datetime) -> Session:
        """The session at `moment`; every moment is in exactly one.

        >>> Calendar().session_at(datetime(2026, 11, 23, 15, 35, tzinfo=KST))
        'closing'
        """
        day = moment.astimezone(KST).date()
        if not self.is_trading_day(day):
            return "closed"
        opens, closes = self.opens_at(day), self.closes_at(day)
        borders: tuple[tuple[datetime, Session], ...] = (
            (opens - PRE_OPEN, "closed"),
            (opens, "pre"),
            (closes, "regular"),
            (closes + CLOSING, "closing"),
            (datetime.combine(day, AFTER_MARKET_ENDS, KST), "after"),
        )
        return next((session for border, session in borders if moment < border), "closed")


@dataclass(frozen=True)
class Moves:
    """When a report moves: from the opening until `after_close` past the close, never past 20:00."""

    label: str
    after_close: timedelta

    def window(self, day: date, calendar: Calendar) -> tuple[datetime, datetime]:
        """The stretch of a trading day in which asking makes sense."""
        ends = min(calendar.closes_at(day) + self.after_close, datetime.combine(day, AFTER_MARKET_ENDS, KST))
        return calendar.opens_at(day), ends


# Index levels settle ten minutes after the close; flows are corrected until 18:10; stocks trade on until 20:00 since
# the after-market of 2026-09-14.
INDEX_HOURS = Moves("09:00-15:40", CLOSING)
FLOW_HOURS = Moves("09:00-18:10", timedelta(hours=2, minutes=40))
STOCK_HOURS = Moves("09:00-20:00", timedelta(hours=4, minutes=30))


def windows(moves: Moves, calendar: Calendar, start: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The polling windows that end after `start`, in order, without end."""
    day = start.astimezone(KST).date() - timedelta(days=1)
    while True:
        day = calendar.next_trading_day(day)
        window = moves.window(day, calendar)
        if window[1] > start:
            yield window


def polling_s(moves: Moves | None, calendar: Calendar, start: datetime, end: datetime) -> float:
    """How many seconds between `start` and `end` were polling hours; all of them if `moves` is None.

    >>> friday, monday = datetime(2026, 11, 20, 15, 30, tzinfo=KST), datetime(2026, 11, 23, 9, 1, tzinfo=KST)
    >>> polling_s(INDEX_HOURS, Calendar(), friday, monday)
    660.0
    """
    if moves is None:
        return max(0.0, (end - start).total_seconds())
    total_s = 0.0
    for opens, closes in windows(moves, calendar, start):
        if opens >= end:
            return total_s
        total_s += (min(end, closes) - max(start, opens)).total_seconds()
    return total_s
