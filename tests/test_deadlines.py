"""A plan that `budget` accepts is kept: every tick of every target is answered before the next, up to a load of one.

Random plans, stretched until their load is just below one, are lived in virtual time by the real poller. Whether a tick
was answered is worked out from the commits and a second reading of the grid, and compared with the poller's own count.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from poller.budget import MOCK_PERIOD_S, Limit, shares
from poller.catalogue import tr_named
from poller.session import KST
from poller.trs.base import Target
from tests.light_broker import LightBroker
from tests.test_fault_seeds import TRS, most_within
from tests.world import World

TEN = datetime(2026, 11, 23, 10, 0, tzinfo=KST)
COMPOSITES = [
    {"mrkt_tp": "0", "inds_cd": "001", "stex_tp": "1"},  # 25 pages
    {"mrkt_tp": "1", "inds_cd": "101", "stex_tp": "1"},  # 19
]
ALL = {**TRS, "ka20002": [*COMPOSITES, *TRS["ka20002"][:2]]}
SETTLES_S = 3.0
"""A start waits for a token and a full window; ticks within it may be late."""


class SlowTicks(LightBroker):
    """A minute between two rows, so that an answer has the one page that is declared, however long the interval."""

    tick_s = 60


@dataclass(frozen=True)
class Plan:
    """Limits, and targets with intervals that just fit them."""

    limits: Mapping[str, Limit]
    targets: tuple[tuple[Target, float], ...]

    @property
    def load(self) -> float:
        """How much of the tightest limit it takes."""
        return max(share.load for share in shares(self.targets, self.limits))

    @property
    def longest_s(self) -> float:
        """The longest interval."""
        return max(every_s for _, every_s in self.targets)

    @property
    def length_s(self) -> float:
        """Three of the longest intervals, and at least a minute."""
        return max(60.0, 3.2 * self.longest_s)

    @property
    def requests(self) -> float:
        """How many requests that takes."""
        return self.length_s * sum(share.needed_per_s for share in shares(self.targets, self.limits))

    @property
    def mock(self) -> bool:
        """Whether one limit holds for everything."""
        return "*" in self.limits


def random_plan(rng: random.Random) -> Plan:
    """Targets of one to three TRs, those of each limit stretched together until they just fit."""
    mock = rng.random() < 0.3
    requests = rng.randint(1, 4)
    codes = rng.sample(sorted(ALL), rng.randint(1, 3))
    limits = {"*": Limit(1, MOCK_PERIOD_S)} if mock else dict.fromkeys(codes, Limit(requests))
    chosen = [
        (tr_named(code).target(request), rng.uniform(2, rng.choice([10, 60, 300])))
        for code in codes
        for request in rng.sample(ALL[code], rng.randint(1, min(8, len(ALL[code]))))
    ]
    groups = [chosen] if mock else [[pair for pair in chosen if pair[0].tr.code == code] for code in codes]
    return Plan(limits, tuple(pair for group in groups for pair in stretched(group, limits)))


def stretched(group: list[tuple[Target, float]], limits: Mapping[str, Limit]) -> list[tuple[Target, float]]:
    """The intervals of a group, times the smallest factor at which they fit."""

    def times(factor: float) -> list[tuple[Target, float]]:
        return [(target, round(max(2.0, every_s * factor), 3)) for target, every_s in group]

    def fits(factor: float) -> bool:
        return all(share.fits for share in shares(times(factor), limits))

    low, high = 0.001, 1.0
    while not fits(high):
        low, high = high, 2 * high
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return times(high)


def lived(seed: int, plan: Plan, seconds: float, faults: float = 0.0) -> World:
    """So long a life of a plan."""
    requests = max(limit.requests for limit in plan.limits.values())
    world = World(
        seed=seed,
        start=TEN,
        plan=[(target.tr.code, target.request, every_s) for target, every_s in plan.targets],
        sessions="always",
        faults=faults,
        limits=plan.limits,
        limit_per_s=requests + 1,
        mock=plan.mock,
        kind=SlowTicks,
    )
    world.run_until(TEN + timedelta(seconds=seconds))
    return world


def ticks_between(target: Target, every_s: float, since: datetime, until: datetime) -> list[float]:
    """The ticks of a target, as seconds since 1970: its grid is shifted by a stable hash of its name."""
    share = zlib.crc32(str(target).encode()) / 2**32
    first, last = (math.ceil(moment.timestamp() / every_s - share) for moment in (since, until))
    return [(number + share) * every_s for number in range(first, last)]


def ticks_until_settled(target: Target, every_s: float) -> int:
    """How many ticks of a target fall into the start."""
    return len(ticks_between(target, every_s, TEN, TEN + timedelta(seconds=SETTLES_S)))


def unanswered(world: World, target: Target, every_s: float, ends: datetime) -> list[datetime]:
    """Ticks of a target that no commit followed before the next one, if that was before a world's end."""
    polls = sorted(
        datetime.fromisoformat(commit.last_good).timestamp()
        for commit in world.server.commits
        if commit.source == f"/kiwoom/{target}"
    )
    settled, last = TEN + timedelta(seconds=SETTLES_S), ends - timedelta(seconds=every_s)
    return [
        datetime.fromtimestamp(tick, KST)
        for tick in ticks_between(target, every_s, settled, last)
        if bisect_left(polls, tick - 0.001) == bisect_left(polls, tick + every_s + 0.001)
    ]


def check_deadlines(seed: int, most_requests: int) -> None:
    """Live the plan of a seed for three of its longest intervals."""
    plan = affordable_plan(seed, most_requests)
    world = lived(seed, plan, plan.length_s)
    poller, ends = world.processes[0].poller, TEN + timedelta(seconds=plan.length_s)
    assert poller is not None
    late = {str(target): unanswered(world, target, every_s, ends) for target, every_s in plan.targets}
    missed = {
        str(watched.target): watched.missed_ticks - ticks_until_settled(watched.target, watched.job.every_s)
        for watched in poller.watched
    }
    told = f"to see it again: SEED={seed} .venv/bin/pytest tests/test_deadlines.py -k kept"
    assert {name: ticks for name, ticks in late.items() if ticks} == {}, told
    assert {name: ticks for name, ticks in missed.items() if ticks > 0} == {}, told
    assert not [log for log in world.logs if log["log_level"] in {"warning", "error"} and "guard" not in log], told
    assert world.refusals == 0, told


def affordable_plan(seed: int, most_requests: int) -> Plan:
    """The first plan of a seed that is about full, and takes no more requests than that."""
    rng = random.Random(f"plan {seed}")
    plans = (random_plan(rng) for _ in itertools.count())
    return next(plan for plan in plans if plan.load > 0.9 and plan.requests <= most_requests)


def seeds_of(first: int, count: int) -> list[int]:
    """So many seeds, or the one that the environment asks for."""
    return [int(os.environ["SEED"])] if "SEED" in os.environ else list(range(first, first + count))


@pytest.mark.parametrize("seed", seeds_of(0, 30))
def test_a_plan_that_fits_is_kept_to_every_deadline(seed: int):
    check_deadlines(seed, most_requests=600)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("hundred", range(1, 6))
def test_plans_of_any_length_are_kept_as_well(hundred: int):
    for seed in range(100 * hundred, 100 * hundred + 100):
        check_deadlines(seed, most_requests=6_000)


def test_plans_are_as_full_as_they_may_be():
    """Else keeping them would prove little."""
    plans = [affordable_plan(seed, 600) for seed in range(30)]

    assert sum(plan.load > 0.98 for plan in plans) > 20
    assert {next(iter(plan.limits.values())).requests for plan in plans} == {1, 2, 3, 4}
    assert 3 < sum(plan.mock for plan in plans) < 20
    assert max(target.pages for plan in plans for target, _ in plan.targets) > 10


def test_a_plan_that_does_not_fit_misses_ticks_and_counts_them():
    """The measure can fail."""
    plan = Plan({"ka20001": Limit(3)}, tuple((tr_named("ka20001").target(one), 2.0) for one in ALL["ka20001"][:6]))
    world = lived(3, plan, 60.0)
    poller, ends = world.processes[0].poller, TEN + timedelta(seconds=60)

    assert poller is not None
    assert plan.load > 1
    assert sum(watched.missed_ticks for watched in poller.watched) > 10
    assert any(unanswered(world, target, every_s, ends) for target, every_s in plan.targets)
    assert world.refusals == 0


# --- with faults


def hours(seed: int, hours: float, limits: Mapping[str, Limit]) -> None:
    """Live long page walks, whose requests follow each other as fast as they may, with one fault in ten requests.

    A token dies once a minute at most. No second sees more than the budget allows, and nothing is ever refused.
    """
    rng = random.Random(f"hours {seed}")
    walks = [(tr_named("ka20002").target(request), rng.uniform(300, 900)) for request in COMPOSITES]
    single = [(tr_named("ka20001").target(request), rng.uniform(60, 300)) for request in rng.sample(ALL["ka20001"], 3)]
    plan = Plan(limits, (*walks, *single))
    assert all(share.fits for share in shares(plan.targets, limits))
    world = lived(seed, plan, 3_600 * hours, faults=0.1)
    moments: dict[str, list[datetime]] = {}
    for sent in world.sent:
        if sent.arrived is not None:
            moments.setdefault("*" if plan.mock else sent.api_id, []).append(sent.arrived)

    assert world.refusals == 0
    assert world.simulator.tokens_issued > hours
    for name, at in moments.items():
        assert most_within(1.0, at) <= limits.get(name, Limit(1)).requests


LIMITS = [
    pytest.param(dict.fromkeys(["ka20001", "ka20002"], Limit(requests)), id=f"{requests} a second")
    for requests in (4, 2, 1)
]
MOCK = pytest.param({"*": Limit(1, MOCK_PERIOD_S)}, id="mock")


@pytest.mark.parametrize("limits", [*LIMITS, MOCK])
def test_ten_hours_with_faults_are_never_refused(limits: Mapping[str, Limit]):
    """Two and a half hours under each limit."""
    hours(1, 2.5, limits)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("limits", [*LIMITS, MOCK])
def test_a_thousand_hours_with_faults_are_never_refused(limits: Mapping[str, Limit]):
    for seed in range(2, 27):
        hours(seed, 10, limits)
        print(f"{10 * (seed - 1)} of 250 hours", flush=True)  # noqa: T201 -- it takes minutes
