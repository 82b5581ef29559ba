"""One trading day goes in, the closes it must end at included; the market at each five seconds of it comes out.

Pure: no clock, `advance(step)` is told how far to go. Prices are bridges from the previous close to today's, trades
are random but always drawn in the same order, so where the walk stands depends on the step alone and not on how often
it was asked on the way. The surprise: it cannot go back; whoever wants an earlier moment starts a new walk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from itertools import accumulate
from math import exp, log, sqrt
from typing import NamedTuple

from poller.simulator.chance import chance
from poller.simulator.history import History
from poller.simulator.listing import IN_SECTORS, MEMBERS, STOCKS, SUMMED, Stock
from poller.simulator.prices import limits, step_krw, to_step

STEP_S = 5
ROW_STEPS = 2
"""The time rows of ka20001 stand 10 s apart."""
KNOT_STEPS = 12
AFTER_CLOSE_PERMILLE = 15
"""That much of a day's volume is traded after the close, at the closing price."""


class StockQuote(NamedTuple):
    """One stock at one moment. `volume_shares` 0 means that it has not been traded today; then open is 0 too."""

    base: int
    price: int
    open: int
    high: int
    low: int
    volume_shares: int
    value_krw: int


class Sums(NamedTuple):
    """Sums over the stocks of each sector, in the order of `listing.SUMMED`."""

    caps: tuple[int, ...]
    opens: tuple[int, ...]
    highs: tuple[int, ...]
    lows: tuple[int, ...]
    volumes: tuple[int, ...]
    values: tuple[int, ...]


class Row(NamedTuple):
    """What is kept of every tenth second."""

    caps: tuple[int, ...]
    volumes: tuple[int, ...]


class Bump(NamedTuple):
    """A stock that runs to its price limit for a while, and comes back."""

    first: int
    last: int
    height: float

    def at(self, step: int) -> float:
        """How much it adds to the price's logarithm: it rises, stays a while, falls."""
        if not self.first < step < self.last:
            return 0.0
        ramp = (self.last - self.first) / 4
        return self.height * min(1.0, (step - self.first) / ramp, (self.last - step) / ramp)


class Trading:
    """One stock's day as it goes on."""

    __slots__ = (
        "base",
        "bump",
        "close",
        "eagerness",
        "first_step",
        "high",
        "highest",
        "last_step",
        "logarithm",
        "low",
        "lowest",
        "open",
        "place",
        "price",
        "sectors",
        "shares",
        "sigma",
        "stock",
        "target",
        "value",
        "volume",
        "volume_due",
    )

    def __init__(self, place: int, base: int, close: int, volume_due: int) -> None:
        self.place, self.stock, self.sectors = place, STOCKS[place], IN_SECTORS[place]
        self.shares = self.stock.shares
        self.base = self.price = base
        self.lowest, self.highest = limits(base)
        self.open = self.high = self.low = self.volume = self.value = 0
        self.close, self.volume_due = close, volume_due
        self.target = log(close)
        self.logarithm = log(base)
        self.first_step = self.last_step = 0
        self.eagerness = _eagerness(self.stock)
        self.sigma = 0.0
        self.bump: Bump | None = None

    def quote(self) -> StockQuote:
        """As it stands now."""
        return StockQuote(self.base, self.price, self.open, self.high, self.low, self.volume, self.value)


def _eagerness(stock: Stock) -> float:
    """The probability that a stock is traded within a step: from one in thirty to two in five."""
    return min(0.4, max(0.03, sqrt(stock.price_krw * stock.volume_shares / 3e11)))


class Walk:
    """The market from the opening (step 0) to the close (step `steps`)."""

    def __init__(self, history: History, day: date, length_s: int) -> None:
        self.day, self.steps = day, length_s // STEP_S
        self.at_step = -1
        self._source = chance(history.seed, day, "walk")
        self._share = [_share_traded(step / self.steps) for step in range(self.steps + 1)]
        self._market = self._bridge(self.steps, 0.007)
        industries = sorted({stock.industry for stock in STOCKS})
        self._industries = {industry: self._bridge(self.steps // KNOT_STEPS + 1, 0.005) for industry in industries}
        bases, closes, volumes = history.closes(history.previous(day)), history.closes(day), history.volumes(day)
        self.after_close_shares = tuple(volume * AFTER_CLOSE_PERMILLE // 1000 for volume in volumes)
        due = [volume - after for volume, after in zip(volumes, self.after_close_shares, strict=True)]
        self._stocks = [Trading(place, bases[place], closes[place], due[place]) for place in range(len(STOCKS))]
        self._starting: defaultdict[int, list[Trading]] = defaultdict(list)
        self._awake: list[Trading] = []
        self._plan_the_day(history.suspended(day))
        self._caps = [
            sum(self._stocks[place].price * STOCKS[place].shares for place in MEMBERS[code]) for code in SUMMED
        ]
        self._opens = self._highs = self._lows = list(self._caps)
        self._volumes, self._values = [0] * len(SUMMED), [0] * len(SUMMED)
        self.rows: list[Row] = []

    def advance(self, step: int) -> None:
        """Go on until `step`, or the close."""
        while self.at_step < min(step, self.steps):
            self.at_step += 1
            self._take_step(self.at_step)

    def quotes(self) -> tuple[StockQuote, ...]:
        """All stocks as they stand now."""
        return tuple(trading.quote() for trading in self._stocks)

    def sums(self) -> Sums:
        """All sectors as they stand now."""
        kept = (self._caps, self._opens, self._highs, self._lows, self._volumes, self._values)
        return Sums(*map(tuple, kept))

    def _bridge(self, steps: int, sigma: float) -> list[float]:
        """A random walk from 0 to 0, of `sigma` for a whole day."""
        walk = [0.0, *accumulate(self._source.gauss(0, sigma / sqrt(steps)) for _ in range(steps))]
        return [value - walk[-1] * at / steps for at, value in enumerate(walk)]

    def _plan_the_day(self, suspended: frozenset[int]) -> None:
        """Who starts when: most with the opening, some within minutes, a few hours later."""
        source = self._source
        for trading in self._stocks:
            if trading.place in suspended:
                continue
            trading.sigma = 0.012 / sqrt(self.steps)
            trading.logarithm += 0.4 * (trading.target - trading.logarithm) + source.gauss(0, 0.003)
            if trading.eagerness < 0.1 and source.random() < 0.4:
                trading.first_step = 1 + int(self.steps * 0.8 * source.random() ** 4)
            self._starting[trading.first_step].append(trading)
        willing = [trading for trading in self._stocks if trading.sigma]
        for trading, height in zip(source.sample(willing, 6), (0.4, 0.4, 0.4, 0.4, -0.5, -0.5), strict=True):
            first = int(self.steps * source.uniform(0, 0.5))
            trading.bump = Bump(first, first + self.steps // 3, height)

    def _take_step(self, step: int) -> None:
        if step == self.steps:
            self._close()
        else:
            for trading in self._who_trades(step):
                self._trade(trading, step)
        if step == 0:
            self._opens, self._highs, self._lows = list(self._caps), list(self._caps), list(self._caps)
        self._highs = list(map(max, self._highs, self._caps))
        self._lows = list(map(min, self._lows, self._caps))
        if step % ROW_STEPS == 0:
            self.rows.append(Row(tuple(self._caps), tuple(self._volumes)))

    def _who_trades(self, step: int) -> Iterator[Trading]:
        draw = self._source.random
        yield from [trading for trading in self._awake if draw() < trading.eagerness]
        starting = self._starting.pop(step, [])
        self._awake += starting
        yield from starting

    def _trade(self, trading: Trading, step: int) -> None:
        gap, left = step - trading.last_step, self.steps - trading.last_step
        trading.last_step = step
        wiggle = self._source.gauss(0, trading.sigma) * sqrt(gap * (left - gap) / left)
        trading.logarithm += (trading.target - trading.logarithm) * gap / left + wiggle
        logarithm = trading.logarithm + trading.stock.beta * self._market[step]
        logarithm += self._industries[trading.stock.industry][step // KNOT_STEPS]
        if trading.bump:
            logarithm += trading.bump.at(step)
        price = to_step(exp(logarithm))
        # Buyers pay the ask and sellers get the bid: the last price jumps between the two even when nothing happens.
        price += step_krw(price) * (self._source.getrandbits(2) % 3 - 1)
        due = int(trading.volume_due * self._share[step]) - trading.volume
        self._book(trading, to_step(price), max(1, int(due * self._source.uniform(0.3, 1))))

    def _close(self) -> None:
        """The closing auction: every stock that is traded today ends at its close."""
        for trading in self._awake:
            self._book(trading, trading.close, trading.volume_due - trading.volume)

    def _book(self, trading: Trading, price: int, shares: int) -> None:
        """One trade; a stock that has no shares left for today keeps its price until the close."""
        shares = min(shares, trading.volume_due - trading.volume)
        if shares <= 0 and self.at_step < self.steps:
            return
        price = min(max(price, trading.lowest), trading.highest)
        gained, value = (price - trading.price) * trading.shares, price * shares
        trading.price = price
        trading.open = trading.open or price
        trading.high = max(trading.high, price)
        trading.low = min(trading.low or price, price)
        trading.volume += shares
        trading.value += value
        caps, volumes, values = self._caps, self._volumes, self._values
        for sector in trading.sectors:
            caps[sector] += gained
            volumes[sector] += shares
            values[sector] += value


def _share_traded(passed: float) -> float:
    """How much of a day's volume is traded when so much of the day has passed: most of it early and late."""
    return 0.03 + 0.97 * (0.6 * passed + 0.2 * ((2 * passed - 1) ** 3 + 1))
