"""A trading day goes in; every stock's close and volume of that day come out, before the day has begun.

Pure, but for caches. The surprise: there is no beginning. Logarithms of prices are sums of factors (the market's, the
industry's, the stock's own), each a random walk that is tied to a stationary value every 64 days, so any day of any
year is worked out directly, and two who ask about different days first get the same answers.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import cache, lru_cache
from itertools import accumulate
from math import exp

from poller.session import Calendar
from poller.simulator.chance import chance
from poller.simulator.listing import MEMBERS, PLACES, STOCKS, leader_of, level
from poller.simulator.prices import to_step

STRETCH_DAYS = 64
STEP_WIDTH = 0.01 * 12**0.5
"""How far apart the ends of a uniform distribution are whose standard deviation is 1 %."""
SUSPENDED_STOCKS = 4
"""So many stocks are not traded at all on a given day; 005930 always is."""


class History:
    """The days of one made-up market."""

    def __init__(self, seed: int, calendar: Calendar) -> None:
        self.seed = seed
        self.calendar = calendar
        # Caches of this object, not of the class, so that they go when their market goes; 50,000 levels are a year's.
        self._stretch = cache(self._work_out_stretch)
        self._prices = cache(self._work_out_prices)
        self.closes = lru_cache(maxsize=1_000)(self._work_out_closes)
        self.volumes = lru_cache(maxsize=1_000)(self._work_out_volumes)
        self.suspended = lru_cache(maxsize=1_000)(self._draw_suspended)
        self.level = lru_cache(maxsize=50_000)(self._work_out_level)
        self.previous = lru_cache(maxsize=1_000)(self._find_previous)

    def length_s(self, day: date) -> int:
        """How long the market is open on a trading day."""
        return int((self.calendar.closes_at(day) - self.calendar.opens_at(day)).total_seconds())

    def cap_krw(self, sector_code: str, day: date) -> int:
        """What the stocks behind a sector's level were worth at that day's close."""
        return sum(self._close(place, day) * STOCKS[place].shares for place in MEMBERS[leader_of(sector_code)])

    def volume_shares(self, sector_code: str, day: date) -> int:
        """What was traded in a sector on a day that is over."""
        volumes = self.volumes(day)
        return sum(volumes[place] for place in MEMBERS.get(sector_code, ()))

    def days_before(self, day: date, count: int) -> list[date]:
        """The `count` trading days before `day`, newest first."""
        days = []
        for _ in range(count):
            day = self.previous(day)
            days.append(day)
        return days

    def _work_out_level(self, sector_code: str, day: date) -> int:
        """A sector's closing level, in hundredths of a point."""
        return level(sector_code, self.cap_krw(sector_code, day))

    def _find_previous(self, day: date) -> date:
        day -= timedelta(days=1)
        while not self.calendar.is_trading_day(day):
            day -= timedelta(days=1)
        return day

    def _draw_suspended(self, day: date) -> frozenset[int]:
        drawn = chance(self.seed, day, "suspended").sample(range(len(STOCKS)), SUSPENDED_STOCKS)
        return frozenset(drawn) - {PLACES["005930"]}

    def _work_out_closes(self, day: date) -> tuple[int, ...]:
        return tuple(self._close(place, day) for place in range(len(STOCKS)))

    def _close(self, place: int, day: date) -> int:
        """A stock's close: that of the last day on which it was traded."""
        while place in self.suspended(day):
            day = self.previous(day)
        number, at = divmod(day.toordinal(), STRETCH_DAYS)
        return self._prices(place, number)[at]

    def _work_out_prices(self, place: int, number: int) -> list[int]:
        """A stock's 64 closes of one stretch, those of closed days included: whole stretches are much cheaper."""
        stock = STOCKS[place]
        factors = ("market", stock.market, stock.industry, stock.code)
        moves = zip(*(self._stretch(factor, number) for factor in factors), strict=True)
        beta, typical = stock.beta, stock.price_krw
        return [
            to_step(typical * exp(beta * market + 0.5 * segment + 0.5 * industry + 1.4 * own))
            for market, segment, industry, own in moves
        ]

    def _work_out_stretch(self, factor: str, number: int) -> list[float]:
        """64 days of one factor: a walk of 1 % a day from this stretch's value to the next one's."""
        source = chance(self.seed, factor, number)
        start = source.gauss(0, 0.1)
        end = chance(self.seed, factor, number + 1).gauss(0, 0.1)
        # Uniform steps: after a few days nobody can tell them from Gaussian ones, and they cost a tenth.
        draw = source.random
        walk = [0.0, *accumulate([(draw() - 0.5) * STEP_WIDTH for _ in range(STRETCH_DAYS)])]
        slope = (end - start - walk[-1]) / STRETCH_DAYS
        return [start + walk[at] + slope * at for at in range(STRETCH_DAYS)]

    def _work_out_volumes(self, day: date) -> tuple[int, ...]:
        source, suspended = chance(self.seed, day, "volumes"), self.suspended(day)
        mood = source.lognormvariate(0, 0.15)
        drawn = [max(500, int(stock.volume_shares * mood * source.lognormvariate(0, 0.35))) for stock in STOCKS]
        return tuple(0 if place in suspended else volume for place, volume in enumerate(drawn))
