"""A seed, a sector or a stock, and a moment go in; how things stand there comes out.

Pure: no clock and no I/O; the moment is an argument, and equal moments get equal answers whatever was asked before.
Index levels are integers, hundredths of a point. The surprises: an hour before the opening the new day shows as
zeros, before that it is still yesterday evening; and going back in time costs a new walk from the opening.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import NamedTuple

from poller.session import KST, PRE_OPEN, Calendar
from poller.simulator.flows import Flows
from poller.simulator.history import History
from poller.simulator.listing import FOLLOWERS, MEMBERS, STOCKS, SUMMED_AT, leader_of, level
from poller.simulator.prices import limits
from poller.simulator.walk import ROW_STEPS, STEP_S, Row, StockQuote, Sums, Walk

ROW_S = STEP_S * ROW_STEPS
TIMED_ROWS_AFTER_CLOSE = 14
"""The last time row of a recorded day was 15:32:20."""
FIRST_MARKER_S, SECOND_MARKER_S, EVENING_S = 180, 600, 9_000
"""When, after the close, the rows 888888 and 999999 appear, and when the second one stops growing (18:00)."""


class Breadth(NamedTuple):
    """How many stocks of a sector went where; `rising` includes `at_upper`, `falling` includes `at_lower`."""

    at_upper: int
    rising: int
    unchanged: int
    falling: int
    at_lower: int

    @property
    def traded(self) -> int:
        """How many were traded at all."""
        return self.rising + self.unchanged + self.falling


class SectorQuote(NamedTuple):
    """One sector at one moment: levels in hundredths, `open`, `high` and `low` 0 before the opening."""

    code: str
    base: int
    level: int
    open: int
    high: int
    low: int
    volume_shares: int
    value_krw: int
    listed: int
    breadth: Breadth


class Extremes(NamedTuple):
    """Highest and lowest level of 52 weeks: closes, and today's moves."""

    high: int
    high_day: date
    low: int
    low_day: date


class Tick(NamedTuple):
    """One time row. `label` is the time, a marker, or empty; volumes are thousands of shares."""

    label: str
    level: int
    step_thousands: int
    volume_thousands: int


class DayRow(NamedTuple):
    """One day of a sector's history; of today, as far as it has come."""

    day: date
    base: int
    level: int
    volume_thousands: int


@dataclass(frozen=True)
class MarketState:
    """The whole market at one moment. It keeps its own copies, so it stays true while the market goes on."""

    day: date
    opens_at: datetime
    elapsed_s: int
    length_s: int
    history: History
    flows: Flows
    stocks: tuple[StockQuote, ...]
    sums: Sums | None
    rows: Sequence[Row]
    after_close_shares: tuple[int, ...]

    def sector(self, code: str) -> SectorQuote:
        """A sector as it stands."""
        base = self.history.level(code, self.history.previous(self.day))
        members = MEMBERS.get(code, ())
        return SectorQuote(
            code,
            base,
            *(self._levels(code) or (base, 0, 0, 0)),
            volume_shares=sum(self.stocks[place].volume_shares for place in members),
            value_krw=sum(self.stocks[place].value_krw for place in members),
            listed=len(members),
            breadth=breadth([self.stocks[place] for place in members]),
        )

    def _levels(self, code: str) -> tuple[int, int, int, int] | None:
        """Level, open, high, low; what is the leader's high is an inverse index's low."""
        if self.sums is None:
            return None
        at = SUMMED_AT[leader_of(code)]
        now, first = level(code, self.sums.caps[at]), level(code, self.sums.opens[at])
        ends = level(code, self.sums.highs[at]), level(code, self.sums.lows[at])
        return now, first, max(ends), min(ends)

    def extremes(self, code: str) -> Extremes:
        """The 52 weeks until this moment."""
        year_ago, day = self.day - timedelta(days=365), self.history.previous(self.day)
        levels: list[tuple[int, date]] = []
        while day > year_ago:
            levels.append((self.history.level(code, day), day))
            day = self.history.previous(day)
        (high, high_day), (low, low_day) = max(levels), min(levels)
        today = self.sector(code)
        if today.high > high:
            high, high_day = today.high, self.day
        if today.low and today.low < low:
            low, low_day = today.low, self.day
        return Extremes(high, high_day, low, low_day)

    def days(self, code: str, *, until: date, count: int) -> list[DayRow]:
        """Up to `count` days, newest first, `until` and older."""
        days = [day for day in [self.day] if day <= until]
        days += self.history.days_before(min(self.day, until + timedelta(days=1)), count - len(days))
        return [self._day_row(code, day) for day in days]

    def _day_row(self, code: str, day: date) -> DayRow:
        if day == self.day:
            now = self.sector(code)
            return DayRow(day, now.base, now.level, now.volume_shares // 1000)
        before = self.history.previous(day)
        volume = self.history.volume_shares(code, day)
        return DayRow(day, self.history.level(code, before), self.history.level(code, day), volume // 1000)

    def tick_count(self) -> int:
        """How many time rows there are today; one, without a time, before the opening."""
        if self.elapsed_s < 0:
            return 1
        timed = min(self.elapsed_s, self.length_s) // ROW_S + 1
        over_s = self.elapsed_s - self.length_s
        after = min(TIMED_ROWS_AFTER_CLOSE, max(0, over_s) // ROW_S)
        return timed + after + (over_s >= FIRST_MARKER_S) + (over_s >= SECOND_MARKER_S)

    def tick(self, code: str, position: int) -> Tick:
        """The time row at `position`, counted from the opening, so a row keeps its position all day."""
        if self.elapsed_s < 0:
            return Tick("", self.sector(code).base, 0, 0)
        before = self._volume_thousands(code, position - 1) if position else 0
        now = self._volume_thousands(code, position)
        row = self.rows[min(position, len(self.rows) - 1)]
        return Tick(self._label(position), level(code, row.caps[SUMMED_AT[leader_of(code)]]), now - before, now)

    def _label(self, position: int) -> str:
        after = position - self.length_s // ROW_S - TIMED_ROWS_AFTER_CLOSE
        if after > 0:
            return ("888888", "999999")[after - 1]
        return (self.opens_at + timedelta(seconds=position * ROW_S)).strftime("%H%M%S")

    def _volume_thousands(self, code: str, position: int) -> int:
        if code in FOLLOWERS:
            return 0
        after = position - self.length_s // ROW_S
        if after <= 0:
            return self.rows[position].volumes[SUMMED_AT[code]] // 1000
        now = _settled_permille(self.elapsed_s - self.length_s)
        then = min(now, 3 * min(after, TIMED_ROWS_AFTER_CLOSE + 1)) if after < TIMED_ROWS_AFTER_CLOSE + 2 else now
        closing = self.rows[-1].volumes[SUMMED_AT[code]]
        return (closing + sum(self.after_close_shares[place] * then // 1000 for place in MEMBERS[code])) // 1000


class Market:
    """A made-up market. Not to be asked by two threads at once."""

    def __init__(self, seed: int = 1, calendar: Calendar | None = None) -> None:
        self.calendar = calendar or Calendar()
        self.history = History(seed, self.calendar)
        self._flows = Flows(self.history)
        self._walk: Walk | None = None

    def at(self, moment: datetime) -> MarketState:
        """The market at a moment; moments that follow each other are cheap."""
        moment = moment.astimezone(KST)
        day = self._day_shown(moment)
        opens_at, length_s = self.calendar.opens_at(day), self.history.length_s(day)
        # Floor division, not int(): half a second before the opening is before it.
        elapsed_s = int((moment - opens_at).total_seconds() // 1)
        if elapsed_s < 0:
            return self._before_opening(day, opens_at, elapsed_s, length_s)
        walk = self._walk_to(day, elapsed_s // STEP_S, length_s)
        return MarketState(
            day,
            opens_at,
            elapsed_s,
            length_s,
            self.history,
            self._flows,
            _settled(walk, elapsed_s - length_s),
            walk.sums(),
            walk.rows,
            walk.after_close_shares,
        )

    def _day_shown(self, moment: datetime) -> date:
        today = moment.date()
        if self.calendar.is_trading_day(today) and moment >= self.calendar.opens_at(today) - PRE_OPEN:
            return today
        return self.calendar.trading_day_at(moment)

    def _walk_to(self, day: date, step: int, length_s: int) -> Walk:
        walk = self._walk
        if walk is None or walk.day != day or walk.at_step > min(step, walk.steps):
            walk = self._walk = Walk(self.history, day, length_s)
        walk.advance(step)
        return walk

    def _before_opening(self, day: date, opens_at: datetime, elapsed_s: int, length_s: int) -> MarketState:
        bases = self.history.closes(self.history.previous(day))
        stocks = tuple(StockQuote(base, base, 0, 0, 0, 0, 0) for base in bases)
        nothing = (0,) * len(STOCKS)
        return MarketState(day, opens_at, elapsed_s, length_s, self.history, self._flows, stocks, None, (), nothing)


def breadth(quotes: Sequence[StockQuote]) -> Breadth:
    """Count what the stocks did; those not traded are in none of the counts."""
    counts = Counter(direction(quote) for quote in quotes if quote.volume_shares)
    return Breadth(counts["1"], counts["1"] + counts["2"], counts["3"], counts["4"] + counts["5"], counts["4"])


def direction(quote: StockQuote) -> str:
    """The broker's code: 1 at the upper limit, 2 up, 3 flat, 4 at the lower limit, 5 down."""
    if quote.price == quote.base:
        return "3"
    lowest, highest = limits(quote.base)
    if quote.price > quote.base:
        return "1" if quote.price >= highest else "2"
    return "4" if quote.price <= lowest else "5"


def _settled_permille(over_s: int) -> int:
    """How much of what is traded after the close has been, `over_s` after it."""
    if over_s < FIRST_MARKER_S:
        return 3 * min(TIMED_ROWS_AFTER_CLOSE, over_s // ROW_S)
    started = 3 * (TIMED_ROWS_AFTER_CLOSE + 1)
    if over_s < SECOND_MARKER_S:
        return started
    passed = (min(over_s, EVENING_S) - SECOND_MARKER_S) // ROW_S * ROW_S
    return started + (1000 - started) * passed // (EVENING_S - SECOND_MARKER_S)


def _settled(walk: Walk, over_s: int) -> tuple[StockQuote, ...]:
    """The stocks, with what was traded after the close."""
    quotes = walk.quotes()
    if over_s < ROW_S:
        return quotes
    permille = _settled_permille(over_s)
    extra = [shares * permille // 1000 for shares in walk.after_close_shares]
    return tuple(
        quote._replace(volume_shares=quote.volume_shares + more, value_krw=quote.value_krw + more * quote.price)
        for quote, more in zip(quotes, extra, strict=True)
    )
