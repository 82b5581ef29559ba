"""A condition and a row go in; whether it holds comes out, and what the condition has to remember.

Pure: no clock, no Redis. The surprises: a row with a null where a number was expected makes a condition neither true
nor false, so `not` of it does not fire either; a crossing goes on holding until the value is back across its level;
and `all` and `any` feed every child, since a child that is not fed would miss its value of before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_CHILDREN = 16
MAX_DEPTH = 4
DIRECTIONS = ("limit_up", "up", "flat", "down", "limit_down")
NUMERIC = frozenset({"level", "change", "percent", "amount", "quantity", "count"})

Op = Literal["<", "<=", ">", ">=", "==", "!="]
Test = tuple[str, Decimal | str]
Memory = dict[str, Any]
"""What leaves remember, by their path: `True` of a compare that holds as far as its `clear`; of a cross the last value
and the side it crossed to."""

OPS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
OPPOSITE: Mapping[str, str] = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


def _number(given: object) -> Decimal:
    """A TOML number, exactly as it was written."""
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal):
        raise ValueError(f"{given!r} is not a number; write it without quotes")  # noqa: TRY004 -- pydantic's protocol
    number = Decimal(str(given))
    if not number.is_finite():
        raise ValueError(f"{given!r} is not a number one can compare with")
    return number


def _value(given: object) -> Decimal | str:
    return given if isinstance(given, str) else _number(given)


Number = Annotated[Decimal, BeforeValidator(_number)]
Value = Annotated[Decimal | str, BeforeValidator(_value)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Compare(_Part):
    """A field stands so to a value. With `clear` it goes on holding until the value no longer stands so to that."""

    kind: Literal["compare"] = "compare"
    field: str
    op: Op
    value: Value
    clear: Number | None = None


class Cross(_Part):
    """A field went across a level: up means before < level <= now, down means before > level >= now."""

    kind: Literal["cross"] = "cross"
    field: str
    direction: Literal["up", "down", "either"]
    level: Number


class All(_Part):
    """Every child holds."""

    kind: Literal["all"] = "all"
    of: Annotated[list[Condition], Field(min_length=1, max_length=MAX_CHILDREN)]


class Any_(_Part):  # noqa: N801 -- `any` in a rule; `Any` is a type
    """At least one child holds."""

    kind: Literal["any"] = "any"
    of: Annotated[list[Condition], Field(min_length=1, max_length=MAX_CHILDREN)]


class Not(_Part):
    """The child does not hold."""

    kind: Literal["not"] = "not"
    of: Condition


Leaf = Compare | Cross
Condition = Annotated[Compare | Cross | All | Any_ | Not, Field(discriminator="kind")]
for _model in (All, Any_, Not):
    _model.model_rebuild()


@dataclass(frozen=True)
class Outcome:
    """What a condition says of a row.

    `holds` is None where a value is not there. `leaf` is the path of the leaf that tells people most about it. `again`
    says that what held has ended and begun anew: the value crossed back, and either direction counts.
    """

    holds: bool | None
    leaf: str
    again: bool = False


def children(condition: Condition) -> Sequence[Condition]:
    """The conditions that a condition is made of; none of a leaf."""
    match condition:
        case All() | Any_():
            return condition.of
        case Not():
            return [condition.of]
    return []


def leaves(condition: Condition, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Every leaf with its path: `.1.0` is the first child of the second."""
    if isinstance(condition, Compare | Cross):
        yield path, condition
    for number, child in enumerate(children(condition)):
        yield from leaves(child, f"{path}.{number}")


def depth(condition: Condition) -> int:
    """How many conditions stand inside each other; 1 for a leaf."""
    return 1 + max((depth(child) for child in children(condition)), default=0)


def feed(
    condition: Condition, row: Mapping[str, Any], memory: Memory, *, news: bool, path: str = ""
) -> tuple[Outcome, Memory]:
    """What a condition says of a whole row, and what it will remember.

    Without `news` (a baseline, an hour that the rule does not count) values are remembered, but nothing crosses and no
    second threshold comes into force.
    """
    match condition:
        case Compare():
            return _compare(condition, row.get(condition.field), memory, news=news, path=path)
        case Cross():
            return _cross(condition, row.get(condition.field), memory, news=news, path=path)
    fed = [
        feed(child, row, memory, news=news, path=f"{path}.{number}") for number, child in enumerate(children(condition))
    ]
    outcomes = [outcome for outcome, _ in fed]
    remembered: Memory = {}
    for _, kept in fed:
        remembered |= kept
    return _combine(condition, outcomes), remembered


def _combine(condition: Condition, outcomes: Sequence[Outcome]) -> Outcome:
    first, said = outcomes[0], [outcome.holds for outcome in outcomes]
    if isinstance(condition, Not):
        return Outcome(None if first.holds is None else not first.holds, first.leaf)
    if isinstance(condition, All):
        holds = False if False in said else None if None in said else True
        return replace(first, holds=holds, again=any(outcome.again for outcome in outcomes))
    holding = [outcome for outcome in outcomes if outcome.holds]
    holds = True if holding else None if None in said else False
    return replace((holding or outcomes)[0], holds=holds, again=any(outcome.again for outcome in holding))


def _compare(leaf: Compare, value: Any, memory: Memory, *, news: bool, path: str) -> tuple[Outcome, Memory]:
    if value is None:
        return Outcome(None, path), {}
    beyond = OPS[leaf.op](value, leaf.value)
    if leaf.clear is None:
        return Outcome(beyond, path), {}
    latched = bool(memory.get(path)) and OPS[leaf.op](value, leaf.clear)
    return Outcome(beyond or latched, path), {path: True} if latched or (beyond and news) else {}


def _cross(leaf: Cross, value: Any, memory: Memory, *, news: bool, path: str) -> tuple[Outcome, Memory]:
    previous, side = memory.get(path, (None, ""))
    if value is None:
        return Outcome(None, path), {} if previous is None else {path: [previous, ""]}
    crossed = ""
    if news and previous is not None:
        if leaf.direction != "down" and previous < leaf.level <= value:
            crossed = "up"
        elif leaf.direction != "up" and previous > leaf.level >= value:
            crossed = "down"
    stays = value >= leaf.level if side == "up" else side == "down" and value <= leaf.level
    now = crossed or (side if stays else "")
    return Outcome(bool(now), path, again=bool(crossed and side)), {path: [value, now]}


def unlinked(memory: Memory) -> Memory:
    """The memory without the values of before: what is next may not be compared with them, since nobody saw between."""
    return {path: [None, kept[1]] if isinstance(kept, list) else kept for path, kept in memory.items()}


def never(condition: Condition, kind_of: Callable[[str], str]) -> str | None:
    """Why a condition can never hold, as far as that is cheaply seen; None if it may."""
    match condition:
        case Compare():
            return _contradiction({condition.field: [(condition.op, condition.value)]}, kind_of)
        case Cross():
            return _never_crosses(condition, kind_of(condition.field))
        case Any_():
            reasons = [never(child, kind_of) for child in condition.of]
            return reasons[0] if all(reasons) else None
        case All():
            reason = next(filter(None, (never(child, kind_of) for child in condition.of)), None)
            return reason or _contradiction(_demands(condition), kind_of)
        case Not(of=Not() as inner):
            return never(inner.of, kind_of)
    return _contradiction(_demands(condition), kind_of)


def _never_crosses(leaf: Cross, kind: str) -> str | None:
    tests = {"up": ("<", ">="), "down": (">", "<=")}
    wanted = tests.values() if leaf.direction == "either" else [tests[leaf.direction]]
    for before, now in wanted:
        if _satisfiable(kind, [(before, leaf.level)]) and _satisfiable(kind, [(now, leaf.level)]):
            return None
    return f"a {kind} never crosses {leaf.level} {'' if leaf.direction == 'either' else leaf.direction}".strip()


def _demands(condition: Condition) -> dict[str, list[Test]]:
    """What has to be true of each field while the condition holds, where that is plain to see."""
    match condition:
        case Compare():
            bound = condition.value if condition.clear is None else condition.clear
            return {condition.field: [(condition.op, bound)]}
        case Cross() if condition.direction != "either":
            return {condition.field: [(">=" if condition.direction == "up" else "<=", condition.level)]}
        case Not(of=Compare(clear=None) as inner):
            return {inner.field: [(OPPOSITE[inner.op], inner.value)]}
        case All():
            found: dict[str, list[Test]] = {}
            for child in condition.of:
                for field, tests in _demands(child).items():
                    found.setdefault(field, []).extend(tests)
            return found
    return {}


def _contradiction(demands: Mapping[str, Sequence[Test]], kind_of: Callable[[str], str]) -> str | None:
    for field, tests in demands.items():
        if not _satisfiable(kind_of(field), tests):
            wanted = " and ".join(f"{op} {bound}" for op, bound in tests)
            return f"{field} is a {kind_of(field)} and can never be {wanted}"
    return None


def _satisfiable(kind: str, tests: Sequence[Test]) -> bool:
    return any(all(OPS[op](point, bound) for op, bound in tests) for point in _points(kind, [b for _, b in tests]))


def _points(kind: str, bounds: Sequence[Decimal | str]) -> list[Any]:
    """Values that stand for all others: between any two bounds, on them and beyond; only such as the kind can have."""
    if kind == "direction":
        return list(DIRECTIONS)
    if kind not in NUMERIC:
        return [*bounds, "\0"]
    marks = sorted({Decimal(0), *(bound for bound in bounds if isinstance(bound, Decimal))})
    points = [marks[0] - 1, *marks, *((one + other) / 2 for one, other in pairwise(marks)), marks[-1] + 1]
    if kind == "level":
        return [point for point in points if point > 0]
    if kind == "count":
        whole = {mark // 1 + step for mark in marks for step in (-1, 0, 1)}
        return [point for point in whole if point >= 0]
    return points
