"""A day, a sector or a stock, and how far the day has come go in; who bought and sold comes out.

Pure. The surprise: the five groups close to 0, and the parts to the institutions, *as printed*, because the individuals
and the institutions' total are what is left after the others have been rounded.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import NamedTuple

from poller.simulator.chance import chance
from poller.simulator.history import History
from poller.simulator.listing import MEMBERS, PLACES, STOCKS

SLOT_S = 90
"""Measured on the real server: the flows of a sector move about every 90 s."""
CORRECTED_S = 9_000
"""So long after the close the day's flows are corrected once more."""
PROGRAM_SLOT_S = 30

# Part of the institutions -> its share of a sector's trading.
PARTS = {
    "sc": 0.03,
    "insrnc": 0.006,
    "invtrt": 0.012,
    "bank": 0.002,
    "jnsinkm": 0.001,
    "endw": 0.02,
    "samo_fund": 0.012,
}
GROUPS = {"frgnr": 0.08, "native_trmt_frgnr": 0.002, "etc_corp": 0.01}
WALKERS = GROUPS | PARTS
NXT_SHARE = 0.3
"""How much is traded on the second exchange, against KRX."""


class Program(NamedTuple):
    """Programme trading of one stock since the opening, in shares."""

    arbitrage_sell: int
    arbitrage_buy: int
    other_sell: int
    other_buy: int


class Flows:
    """Investors and programmes, worked out day by day."""

    def __init__(self, history: History) -> None:
        self._history = history
        # A market of 60 sectors on two exchanges, amounts and shares from the same walk, today and a few days back.
        self._paths = lru_cache(maxsize=500)(self._work_out_paths)
        self._programs = lru_cache(maxsize=500)(self._work_out_programs)

    def net(
        self, sector_code: str, day: date, stex_tp: str, *, in_shares: bool, elapsed_s: int, length_s: int
    ) -> dict[str, int]:
        """Net buying by group, in hundred million won or thousand shares, `elapsed_s` after the opening."""
        if stex_tp == "3":
            both = [
                self.net(sector_code, day, one, in_shares=in_shares, elapsed_s=elapsed_s, length_s=length_s)
                for one in "12"
            ]
            return {group: sum(flows[group] for flows in both) for group in both[0]}
        slot = _slot(elapsed_s, length_s)
        value_krw, shares = self._traded(sector_code, day)
        unit = shares / 1_000 if in_shares else value_krw / 100_000_000
        size = unit * (NXT_SHARE if stex_tp == "2" else 1.0)
        moved = zip(WALKERS, self._paths(sector_code, day, stex_tp, length_s), strict=True)
        return _closed({group: round(path[slot] * size) for group, path in moved})

    def program(self, stock_code: str, day: date, *, elapsed_s: int, length_s: int) -> Program:
        """What programmes have traded in a stock."""
        slot = max(0, min(elapsed_s, length_s)) // PROGRAM_SLOT_S
        return self._programs(stock_code, day, length_s)[slot]

    def _traded(self, sector_code: str, day: date) -> tuple[int, int]:
        closes, volumes = self._history.closes(day), self._history.volumes(day)
        places = MEMBERS.get(sector_code, ())
        return sum(closes[place] * volumes[place] for place in places), sum(volumes[place] for place in places)

    def _work_out_paths(self, sector_code: str, day: date, stex_tp: str, length_s: int) -> list[list[float]]:
        """Of each group, a path from 0 over the day's slots to the correction in the evening."""
        source = chance(self._history.seed, day, "flows", sector_code, stex_tp)
        slots = length_s // SLOT_S + 1
        return [_path(source, slots, size) for size in WALKERS.values()]

    def _work_out_programs(self, stock_code: str, day: date, length_s: int) -> list[Program]:
        source = chance(self._history.seed, day, "program", stock_code)
        volume, slots = STOCKS[PLACES[stock_code]].volume_shares, length_s // PROGRAM_SLOT_S
        sides = [_grown(share * volume / slots, slots, source) for share in (0.004, 0.005, 0.12, 0.13)]
        return [Program(*amounts) for amounts in zip(*sides, strict=True)]


def _slot(elapsed_s: int, length_s: int) -> int:
    slot = max(0, min(elapsed_s, length_s)) // SLOT_S
    return slot + (elapsed_s >= length_s + CORRECTED_S)


def _path(source: Random, slots: int, size: float) -> list[float]:
    drift = source.gauss(0, size) / slots
    return [0.0, *accumulate(source.gauss(drift, size / slots**0.5) for _ in range(slots))]


def _grown(mean: float, slots: int, source: Random) -> list[int]:
    """A sum that grows by about `mean`, in half of its slots."""
    return [0, *accumulate(int(source.expovariate(0.5) * mean * source.getrandbits(1)) for _ in range(slots))]


def _closed(flows: dict[str, int]) -> dict[str, int]:
    """Add the institutions, who are the sum of their parts, and the individuals, who take the other side."""
    institutions = sum(flows[part] for part in PARTS)
    individuals = -(institutions + sum(flows[group] for group in GROUPS))
    # The state stays outside the institutions: programs that call the real server disagree, and with 0 both are right.
    return flows | {"orgn": institutions, "ind": individuals, "natn": 0}
