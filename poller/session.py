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
Market = Literal["KRX", "NXT"]

PRE_OPEN = timedelta(hours=1)
"""How long before the opening the broker may already show the new day's zeros."""
CLOSING = timedelta(minutes=10)
"""The last index rows end about 15:32:20, so the close has settled ten minutes after it."""

EVENING_ENDS = time(20, 0)
AFTER_MARKET_SINCE = date(2026, 9, 14)
"""Since then KRX trades on until 20:00; before, its off-hours auctions ended at 18:00."""
OLD_EVENING_ENDS = time(18, 0)

NXT_PRE_OPENS = time(8, 0)
NXT_OPENS = time(9, 0, 30)
NXT_AFTER_OPENS = time(15, 40)
NXT_CLOSES_EARLY = timedelta(minutes=10)
"""NXT's main market ends ten minutes before KRX's closing auction does, on exam days too."""

WARN_BEFORE = timedelta(days=60)


class Hours(NamedTuple):
    """When KRX's regular session of one day opens and closes, in Korean time."""

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
"""Days on which the market opens late, as announced; the table ends with its last year."""


@lru_cache(maxsize=64)
def _closed_days(year: int) -> frozenset[date]:
    return frozenset(holidays.financial_holidays("XKRX", years=year))


class Timetable(Protocol):
    """What the poller asks of a calendar; the demo answers from its simulated market instead."""

    def trading_day_at(self, moment: datetime, market: Market = "KRX") -> date:  # mutants: never run
        """The trading day the broker's answers belong to at `moment`."""

    def session_at(self, moment: datetime, market: Market = "KRX") -> Session:  # mutants: never run
        """The session of a market at `moment`."""


@dataclass(frozen=True)
class Calendar:
    """The trading days and hours of KRX and NXT, which share their days.

    `closures` are days that are closed though no public list says so, `open_days` the reverse. NXT's hours on a late
    day are known for the exam only; on the first trading day they are taken to follow KRX's in the same way.
    """

    closures: frozenset[date] = frozenset()
    late_opens: dict[date, Hours] = field(default_factory=lambda: dict(LATE_OPENS))
    open_days: frozenset[date] = frozenset()

    def is_trading_day(self, day: date) -> bool:
        """Whether the exchanges trade on `day`.

        >>> Calendar().is_trading_day(date(2026, 7, 17)), Calendar().is_trading_day(date(2026, 11, 23))
        (False, True)
        """
        if day in self.open_days:
            return True
        return day.weekday() < 5 and day not in _closed_days(day.year) and day not in self.closures

    def hours(self, day: date) -> Hours:
        """KRX's regular hours on a trading day."""
        return self.late_opens.get(day, USUAL)

    def opens_at(self, day: date, market: Market = "KRX") -> datetime:
        """When a trading day begins: KRX's regular opening, on NXT the pre-market's, which a late day does not have."""
        late = day in self.late_opens
        opens = NXT_PRE_OPENS if market == "NXT" and not late else self.hours(day).opens
        return datetime.combine(day, opens, KST)

    def closes_at(self, day: date, market: Market = "KRX") -> datetime:
        """The close of a trading day's regular session."""
        closes = datetime.combine(day, self.hours(day).closes, KST)
        return closes - NXT_CLOSES_EARLY if market == "NXT" else closes

    def evening_ends_at(self, day: date, market: Market = "KRX") -> datetime:
        """When the last trading of a day ends."""
        old = market == "KRX" and day < AFTER_MARKET_SINCE
        return datetime.combine(day, OLD_EVENING_ENDS if old else EVENING_ENDS, KST)

    def before_opening(self, moment: datetime, market: Market = "KRX") -> bool:
        """Whether `moment` is on a trading day that has not opened: answers are yesterday's rows, or zeros.

        >>> [Calendar().before_opening(datetime(2026, 11, day, 3, tzinfo=KST)) for day in (21, 23)]
        [False, True]
        """
        day = moment.astimezone(KST).date()
        return self.is_trading_day(day) and moment < self.opens_at(day, market)

    def trading_day_at(self, moment: datetime, market: Market = "KRX") -> date:
        """The last day whose opening has passed.

        >>> Calendar().trading_day_at(datetime(2026, 11, 23, 8, 59, tzinfo=KST))
        datetime.date(2026, 11, 20)
        """
        day = moment.astimezone(KST).date()
        while not (self.is_trading_day(day) and self.opens_at(day, market) <= moment):
            day -= timedelta(days=1)
        return day

    def next_trading_day(self, after: date) -> date:
        """The first trading day after `after`."""
        day = after + timedelta(days=1)
        while not self.is_trading_day(day):
            day += timedelta(days=1)
        return day

    def session_at(self, moment: datetime, market: Market = "KRX") -> Session:
        """The session at `moment`; every moment is in exactly one. NXT's breaks belong to `pre` and `closing`.

        >>> Calendar().session_at(datetime(2026, 11, 23, 15, 35, tzinfo=KST))
        'closing'
        """
        day = moment.astimezone(KST).date()
        if not self.is_trading_day(day):
            return "closed"
        borders = self._krx_borders(day) if market == "KRX" else self._nxt_borders(day)
        return next((session for border, session in borders if moment < border), "closed")

    def _krx_borders(self, day: date) -> tuple[tuple[datetime, Session], ...]:
        """Each session with the moment at which it ends, in order."""
        opens, closes = self.opens_at(day), self.closes_at(day)
        return (
            (opens - PRE_OPEN, "closed"),
            (opens, "pre"),
            (closes, "regular"),
            (closes + CLOSING, "closing"),
            (self.evening_ends_at(day), "after"),
        )

    def _nxt_borders(self, day: date) -> tuple[tuple[datetime, Session], ...]:
        main = max(self.opens_at(day), datetime.combine(day, NXT_OPENS, KST))
        after = max(self.closes_at(day), datetime.combine(day, NXT_AFTER_OPENS, KST))
        return (
            (self.opens_at(day, "NXT"), "closed"),
            (main, "pre"),
            (self.closes_at(day, "NXT"), "regular"),
            (after, "closing"),
            (self.evening_ends_at(day, "NXT"), "after"),
        )

    def late_opens_end(self, today: date) -> str | None:
        """What to tell a person when the table of late openings is about to end, or has ended.

        >>> Calendar().late_opens_end(date(2027, 10, 1)) is None
        True
        """
        last = date(max(self.late_opens).year, 12, 31)
        if today < last - WARN_BEFORE:
            return None
        following = last.year + 1
        return (
            f"late openings are known until {last}: add those of {following} to [schedule], such as "
            f'late_opens = {{ "{following}-01-03" = "10:00-15:30" }} with the first trading day and the exam day'
        )


@dataclass(frozen=True)
class Moves:
    """When a report moves: from its market's opening until `after_close` past KRX's close, or the evening's end.

    `evening` past the close it is asked once more, for what settles late. `label` tells a usual day's hours.
    """

    label: str
    after_close: timedelta | None = None
    market: Market = "KRX"
    evening: timedelta | None = None

    def window(self, day: date, calendar: Calendar) -> tuple[datetime, datetime]:
        """The stretch of a trading day in which asking makes sense."""
        ends = calendar.evening_ends_at(day, self.market)
        if self.after_close is not None:
            ends = min(calendar.closes_at(day) + self.after_close, datetime.combine(day, EVENING_ENDS, KST))
        return calendar.opens_at(day, self.market), ends

    def evening_at(self, day: date, calendar: Calendar) -> datetime | None:
        """The moment of the one late poll of a trading day, if the report has one."""
        return None if self.evening is None else calendar.closes_at(day) + self.evening


# Index levels settle ten minutes after the close, the marker rows of the trail by 18:00; flows are corrected until
# 18:10; stocks trade on into the evening. NXT trades until 20:00, so whatever includes it moves until then. What is
# unified (KRX and NXT together) begins with KRX: whether its answers turn to the new day at 08:00 nobody has recorded.
SETTLED = timedelta(hours=2, minutes=40)
INDEX_HOURS = Moves("09:00-15:40, 18:10", CLOSING, evening=SETTLED)
FLOW_HOURS = Moves("09:00-18:10", SETTLED)
STOCK_HOURS = Moves("09:00-20:00")
NXT_HOURS = Moves("08:00-20:00", market="NXT")
UNIFIED_HOURS = Moves("09:00-20:00", timedelta(hours=4, minutes=30))


def windows(moves: Moves, calendar: Calendar, start: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The polling windows that end after `start`, in order, without end."""
    for day in _trading_days(calendar, start):
        window = moves.window(day, calendar)
        if window[1] > start:
            yield window


def next_evening(moves: Moves, calendar: Calendar, after: datetime) -> datetime | None:
    """The next late poll after a moment, or None where the report has none."""
    evenings = (moves.evening_at(day, calendar) for day in _trading_days(calendar, after))
    return next(evening for evening in evenings if evening is None or evening > after)


def _trading_days(calendar: Calendar, start: datetime) -> Iterator[date]:
    """Trading days from that of `start` on, without end."""
    day = start.astimezone(KST).date() - timedelta(days=1)  # mutants: who asks skips days that are over
    while True:
        day = calendar.next_trading_day(day)
        yield day


def polling_s(moves: Moves, calendar: Calendar, start: datetime, end: datetime) -> float:
    """How many seconds between `start` and `end` were polling hours.

    >>> friday, monday = datetime(2026, 11, 20, 15, 30, tzinfo=KST), datetime(2026, 11, 23, 9, 1, tzinfo=KST)
    >>> polling_s(INDEX_HOURS, Calendar(), friday, monday)
    660.0
    """
    total_s = 0.0
    for opens, closes in windows(moves, calendar, start):
        if opens >= end:  # mutants: what begins at the end adds nothing
            break
        total_s += (min(end, closes) - max(start, opens)).total_seconds()
    return total_s


def before_opening_s(market: Market, calendar: Calendar, start: datetime, end: datetime) -> float:
    """How many seconds between `start` and `end` were between midnight and the opening of a trading day.

    >>> friday, monday = datetime(2026, 11, 20, 15, 30, tzinfo=KST), datetime(2026, 11, 23, 9, 1, tzinfo=KST)
    >>> before_opening_s("KRX", Calendar(), friday, monday) / 3600
    9.0
    """
    total_s = 0.0
    for day in _trading_days(calendar, start):
        midnight = datetime.combine(day, time(), KST)
        if midnight >= end:  # mutants: what begins at the end adds nothing
            break
        stretch = min(end, calendar.opens_at(day, market)) - max(start, midnight)
        total_s += max(0.0, stretch.total_seconds())
    return total_s
