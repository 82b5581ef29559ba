"""A row about to be published goes in; whether it breaks a law that the data itself allows to check comes out.

Pure. A row that breaks one is marked and published all the same: it is what the broker said. The surprise: whether the
state is one of the institutions is disputed (one public program adds `natn` to `orgn` to close the sum), so the sums
over investors are accepted under either reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from poller.trs.fields import Field, Row

Number = int | Decimal


@dataclass(frozen=True)
class Sight:
    """One row, and what it is compared with.

    `fields` are the fields that the request brings, under their declared names, so that guards need not know whether
    won or shares were asked for. `was` is the stored row of the same key and the same trading day, `older` the next
    line of the answer where the lines are a list in time.
    """

    row: Row
    fields: Mapping[str, Field]
    was: Row | None = None
    older: Row | None = None

    def number(self, name: str, row: Row | None = None) -> Number | None:
        """The number under a declared name, of this row or of another one; None if there is none."""
        value = (self.row if row is None else row).get(self.fields[name].name)
        return value if isinstance(value, int | Decimal) else None

    def numbers(self, *names: str) -> list[Number]:
        """The numbers under these names that are there, in this order."""
        return [number for number in map(self.number, names) if number is not None]

    def step(self, name: str) -> Number:
        """What one unit of the broker's text is in base units: the finest step the field can take."""
        return self.fields[name].scale or 1


@dataclass(frozen=True)
class Guard:
    """One check of a row. `meaning` tells people what holds, `fields` are the declared names it looks at.

    A missing value is compared with nothing, so it violates nothing.
    """

    name: str
    meaning: str
    fields: tuple[str, ...]
    violated: Callable[[Sight], bool]


def _breadth_violated(sight: Sight, whole: str, *, exact: bool) -> bool:
    moved, total = sight.numbers("advancers", "unchanged", "decliners"), sight.number(whole)
    if len(moved) == 3 and total is not None and (sum(moved) != total if exact else sum(moved) > total):
        return True
    limits = ("limit_up_stocks", "advancers"), ("limit_down_stocks", "decliners")
    return any(not _ascending(sight.numbers(*pair)) for pair in limits)


def _ascending(numbers: list[Number]) -> bool:
    """Whether no number is below the one before it; of fewer than two, always."""
    return all(one <= other for one, other in pairwise(numbers))


_BREADTH_FIELDS = ("advancers", "unchanged", "decliners", "limit_up_stocks", "limit_down_stocks")

# Exact in each of four samples: the document's two, mock 2026-07-09 (125+22+765 = 912), real 2026-10-02 (1,741).
BREADTH = Guard(
    "breadth",
    "advancers + unchanged + decliners = traded_stocks, limit moves being among them",
    (*_BREADTH_FIELDS, "traded_stocks"),
    lambda sight: _breadth_violated(sight, "traded_stocks", exact=True),
)
BREADTH_OF_LISTED = Guard(
    "breadth",
    "advancers + unchanged + decliners ≤ listed_stocks, limit moves being among them",
    (*_BREADTH_FIELDS, "listed_stocks"),
    lambda sight: _breadth_violated(sight, "listed_stocks", exact=False),
)


def price_range(now: str) -> Guard:
    """The guard of a row that has `low`, `high` and `open` beside the value named."""

    def violated(sight: Sight) -> bool:
        return any(not _ascending(sight.numbers("low", inner, "high")) for inner in (now, "open"))

    return Guard("range", f"low ≤ {now} ≤ high and low ≤ open ≤ high", ("low", now, "open", "high"), violated)


def _sums_up(sight: Sight, parts: tuple[str, ...], total: str | None) -> bool:
    """Whether the parts make the total (0 without one), with or without the state among them.

    Each printed number may be off by one unit of the broker's text, rounded or cut off (which is not known): so the
    sum may be by the units of its terms, the total's included. That is 5 × 100 million won, or 5 × 1,000 shares, of the
    five groups.
    """
    terms = parts if total is None else (*parts, total)
    numbers, state = sight.numbers(*terms), sight.number(STATE)
    if len(numbers) < len(terms):
        return True
    off = sum(numbers) if total is None else sum(numbers[:-1]) - numbers[-1]
    tolerance = sum(map(sight.step, terms))
    if -tolerance <= off <= tolerance:
        return True
    tolerance += sight.step(STATE)
    return state is not None and -tolerance <= off + state <= tolerance


STATE = "state_net_krw"
GROUPS = tuple(
    f"{group}_net_krw"
    for group in ("individual", "foreigner", "resident_foreigner", "institution", "other_corporation")
)
PARTS = tuple(
    f"{part}_net_krw"
    for part in (
        "securities",
        "insurance",
        "investment_trust",
        "bank",
        "other_finance",
        "pension_fund",
        "private_fund",
    )
)
TOTAL = "institution_net_krw"

INVESTORS = Guard(
    "investors",
    "individual + foreigner + resident_foreigner + institution + other_corporation = 0 within rounding, "
    "as it is or with state added",
    (*GROUPS, STATE),
    lambda sight: not _sums_up(sight, GROUPS, None),
)
INSTITUTION_PARTS = Guard(
    "institution_parts",
    "securities + insurance + investment_trust + bank + other_finance + pension_fund + private_fund = institution "
    "within rounding, as it is or with state added",
    (*PARTS, TOTAL, STATE),
    lambda sight: not _sums_up(sight, PARTS, TOTAL),
)


def _chain_violated(sight: Sight) -> bool:
    now, step = sight.number("volume_shares"), sight.number("step_volume_shares")
    before = None if sight.older is None else sight.number("volume_shares", sight.older)
    return now is not None and step is not None and before is not None and now != before + step


# The marker rows of the close obey it too: recorded 2026-07-09, 495737 + 14 + 5320 = 501071 thousand shares.
VOLUME_CHAIN = Guard(
    "volume_chain",
    "volume_shares = the next older row's volume_shares + step_volume_shares; otherwise a row is missing between them",
    ("volume_shares", "step_volume_shares"),
    _chain_violated,
)


def never_falls(name: str, field: str) -> Guard:
    """The guard of a sum that runs since the open."""

    def violated(sight: Sight) -> bool:
        before = None if sight.was is None else sight.number(field, sight.was)
        return before is not None and not _ascending([before, *sight.numbers(field)])

    return Guard(name, f"{field} never falls within a trading day", (field,), violated)


VOLUME_FELL = never_falls("volume_fell", "volume_shares")
VALUE_FELL = never_falls("value_fell", "trading_value_krw")
