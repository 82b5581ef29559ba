"""Which key asks for what: spread evenly over those there are, and over those that are left."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poller.catalogue import tr_named
from poller.grid import Job
from poller.routes import Routes, spread

INDICES = [Job(tr_named("ka20003").target({"inds_cd": code}), 10.0) for code in ("001", "101")]
QUOTES = [Job(tr_named("ka20001").target({"inds_cd": f"{code:03}"}), 10.0) for code in range(2, 8)]
PLAN = [*INDICES, *QUOTES]


def needs(homes: dict[Any, str], jobs: Sequence[Job]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for job in jobs:
        found[job.target.tr.code, homes[job.target]] += round(1000 * job.target.pages / job.every_s)
    return found


def test_each_report_is_spread_evenly_over_the_keys():
    homes = spread(PLAN, ["a", "b"])

    assert needs(homes, PLAN) == {
        ("ka20003", "a"): 100,
        ("ka20003", "b"): 100,
        ("ka20001", "a"): 300,
        ("ka20001", "b"): 300,
    }


@given(st.permutations(PLAN), st.lists(st.floats(1, 1000), min_size=len(PLAN), max_size=len(PLAN)), st.integers(1, 4))
def test_a_spread_is_the_same_in_any_order_and_no_key_bears_more_than_one_target_too_much(shuffled, intervals, count):
    names = [f"key-{number}" for number in range(count)]
    every_s = dict(zip((job.target for job in PLAN), intervals, strict=True))
    jobs = [Job(job.target, every_s[job.target]) for job in PLAN]
    homes = spread(jobs, names)

    assert homes == spread([Job(job.target, every_s[job.target]) for job in shuffled], names)
    for code in ("ka20003", "ka20001"):
        mine = [job for job in jobs if job.target.tr.code == code]
        need = {job.target: job.target.pages_at(job.every_s) / job.every_s for job in mine}
        loads = [sum(need[target] for target in need if homes[target] == name) for name in names]
        assert max(loads) - min(loads) <= max(need.values()) + 1e-9


def asked_by(routes: Routes, waits_s: dict[str, float]) -> Counter[str]:
    return Counter(routes.name_for(job.target, lambda name: waits_s.get(name, 0)) for job in PLAN)


def test_others_stand_in_for_a_key_that_waits_and_a_probe_in_flight_is_a_wait():
    """Each target goes where the plan would be spread without that key, or stays where it is at home."""
    routes = Routes(["a", "b", "c"])
    routes.plan(PLAN, ["a", "c"])

    assert asked_by(routes, {}).keys() == {"a", "b", "c"}
    assert asked_by(routes, {"b": 600.0}) == asked_by(routes, {"b": math.inf}) == {"a": 4, "c": 4}


def test_without_a_key_that_works_it_is_the_one_that_is_tried_again_first():
    routes = Routes(["a", "b"])
    routes.plan(PLAN, [])

    assert asked_by(routes, {"a": 500.0, "b": 20.0}) == {"b": len(PLAN)}


def test_a_key_that_is_to_be_tried_again_is_tried_by_its_own_targets():
    routes = Routes(["a", "b"])
    routes.plan(PLAN, ["b"])

    assert asked_by(routes, {"a": 0.0}) == {"a": 4, "b": 4}
