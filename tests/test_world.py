"""The world in virtual time: repeatable to the byte, honest about limits, and as fragile as the real one."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from poller.contract import Keys
from poller.session import KST
from tests import checker
from tests.world import PREFIX, Scenario, World

NINE = datetime(2026, 11, 23, 9, 0, tzinfo=KST)
PLAN = [
    ("ka20003", {"inds_cd": "001"}, 20.0),
    ("ka20001", {"mrkt_tp": "0", "inds_cd": "001"}, 20.0),
    ("ka20002", {"mrkt_tp": "0", "inds_cd": "013", "stex_tp": "1"}, 30.0),
]


def morning(seed: int = 1, minutes: float = 10, scenario: Scenario | None = None, **settings: object) -> World:
    """A world that ran from shortly before the opening until `minutes` after it, or as the scenario says."""
    chosen = {"plan": PLAN, "start": NINE - timedelta(minutes=1), **settings}
    world = World(seed=seed, **chosen)  # type: ignore[arg-type]  # as the test names them
    if scenario:
        world.run(scenario)
    else:
        world.run_until(NINE + timedelta(minutes=minutes))
    return world


def fingerprint(world: World) -> str:
    """Equal for worlds whose streams are equal to the byte."""
    return hashlib.sha256(repr([world.raw_entries(target.tr.code) for target in world.targets]).encode()).hexdigest()


def check(world: World) -> None:
    """What is promised of every world: `seq` without holes, and the stream folded is the snapshot."""
    assert not [log for log in world.logs if log["event"] == "poll.crashed"]
    for code in {target.tr.code for target in world.targets}:
        entries = [checker._entry(fields) for fields in world.raw_entries(code)]
        checker.check_order(entries, code)
        folded = checker.fold(entries)
        assert {name: rows for name, rows in folded.items() if rows} == {
            str(target): world.snapshot(target)
            for target in world.targets
            if target.tr.code == code and world.snapshot(target)
        }


def gaps(world: World, code: str) -> list[tuple[str, str]]:
    """Reason and table of every gap."""
    found = [entry.data for entry in world.entries(code) if entry.type == "sectorwire.gap"]
    return [(data["reason"], data.get("table", "")) for data in found]


def told(world: World) -> list[dict[str, object]]:
    """The log, but for the names of files, which lie in a folder of this run."""
    return [{name: value for name, value in log.items() if name != "file"} for log in world.logs]


def test_a_seed_is_a_world_to_the_byte():
    worlds = [morning(seed, faults=0.1, pollers=2) for seed in (1, 1, 2)]
    prints = [fingerprint(world) for world in worlds]

    assert prints[0] == prints[1] != prints[2]
    assert [served.at_real for served in worlds[0].ledger.served] == [
        served.at_real for served in worlds[1].ledger.served
    ]
    assert told(worlds[0]) == told(worlds[1])


def test_a_seed_is_the_same_world_in_every_process():
    """Sets and hashes have another order there."""
    program = "from tests.test_world import fingerprint, morning; print(fingerprint(morning(faults=0.1, minutes=5)))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]

    assert printed == [fingerprint(morning(faults=0.1, minutes=5))] * 2


def test_what_was_published_is_what_is_stored():
    world = morning(faults=0.2)
    check(world)

    assert len(world.simulator.faults_served) > 3
    assert len(world.entries("ka20003")) > 300


def test_a_strict_broker_never_counts_too_many_requests():
    """Twelve targets of one report a second each: the budget has to hold them back, not the broker."""
    plan = [("ka20001", {"mrkt_tp": "0", "inds_cd": f"{number:03}"}, 1.0) for number in range(5, 17)]
    world = morning(plan=plan, minutes=3)

    assert world.refusals == 0
    assert world.simulator.requests > 3 * 60 * 3


def test_a_standby_follows_a_leader_that_was_killed():
    async def scenario(world: World) -> None:
        world.start()
        await world.until(NINE + timedelta(minutes=3))
        await world.processes[0].kill()
        await world.until(NINE + timedelta(minutes=6))

    world = morning(scenario=scenario, pollers=2)
    check(world)
    entries = world.entries("ka20003")
    silence = max(later.time - earlier.time for earlier, later in pairwise(entries))

    assert [log["event"] for log in world.logs].count("lead.taken") == 2
    assert len({entry.data["epoch"] for entry in entries}) == 2
    assert silence <= timedelta(seconds=40)
    assert gaps(world, "ka20003") == []
    assert world.simulator.tokens_issued == 1


def test_a_broker_that_was_away_leaves_one_gap_per_target():
    async def scenario(world: World) -> None:
        world.start()
        await world.until(NINE + timedelta(minutes=2))
        world.away.broker = True
        await world.until(NINE + timedelta(minutes=5))
        world.away.broker = False
        await world.until(NINE + timedelta(minutes=12))

    world = morning(scenario=scenario)
    check(world)

    assert [gaps(world, code) for code in ("ka20003", "ka20001", "ka20002")] == [[("broker", "")]] * 3


@pytest.mark.parametrize("lost", ["before commit", "after commit"])
def test_requests_and_replies_that_are_lost_cost_nothing(lost: str):
    async def scenario(world: World) -> None:
        told = [0]

        def trouble(moment: str) -> None:
            told[0] += moment == lost
            if moment == lost and told[0] % 3 == 0:
                raise RedisConnectionError("lost")

        world.processes[0].trouble = trouble
        world.start()
        await world.until(NINE + timedelta(minutes=5))
        assert told[0] > 30

    world = morning(scenario=scenario)
    check(world)

    assert gaps(world, "ka20003") == []
    assert len(world.entries("ka20003")) > 200


def test_a_full_server_ends_no_poller_and_is_polled_for_again_when_it_has_room():
    """It is led all the same, since only a leader trims."""

    async def scenario(world: World) -> None:
        world.start()
        await world.until(NINE + timedelta(minutes=2))
        world.server.refuses = OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        await world.until(NINE + timedelta(minutes=3))
        world.server.refuses = None
        await world.until(NINE + timedelta(minutes=5))

    world = morning(scenario=scenario, pollers=2)

    check(world)
    assert ("store", "") in gaps(world, "ka20003")
    said = [log["event"] for log in world.logs if log["event"] in {"lead.taken", "store.lost", "store.recovered"}]
    assert said == ["lead.taken", "store.lost", "store.recovered"]
    assert world.state(world.targets[0])["last_good"] > (NINE + timedelta(minutes=4)).isoformat()


def test_a_poller_whose_lease_was_anothers_meanwhile_leads_again():
    """It took a lease that was free again for its own; the scripts know of a higher token."""

    async def scenario(world: World) -> None:
        world.start()
        await world.until(NINE + timedelta(minutes=2))
        for target in world.targets:
            world.server.hset(Keys(PREFIX).of(target.tr.code, "meta"), "fence", "99:another")
        world.server.delete(Keys(PREFIX).leader)
        await world.until(NINE + timedelta(minutes=5))

    world = morning(scenario=scenario)

    check(world)
    assert world.state(world.targets[0])["last_good"] > (NINE + timedelta(minutes=4)).isoformat()
    assert world.server.hash(Keys(PREFIX).of("ka20003", "meta"))["fence"].startswith("100:")


def test_in_a_new_epoch_no_target_goes_on_from_what_is_remembered_of_it():
    """A replica may have what the server it follows had lost: the same version, of another past."""
    both = [("ka20003", {"inds_cd": code}, 20.0) for code in ("001", "101")]

    async def scenario(world: World) -> None:
        world.start()
        await world.until(NINE + timedelta(minutes=2))
        target = world.targets[1]
        snapshot = Keys(PREFIX).of("ka20003", "snapshot", target.query)
        for name, text in world.snapshot(target).items():
            world.server.hset(snapshot, name, re.sub(r'"listed_stocks":\d+', '"listed_stocks":1', text))
        assert world.processes[0].poller
        await world.processes[0].poller._store.begin_epoch(target.tr, 0)
        await world.until(NINE + timedelta(minutes=3))

    world = morning(scenario=scenario, plan=both)
    befores = [one.data["before"] or {} for one in world.entries("ka20003") if one.type == "sectorwire.row.changed"]

    assert 1 in [before.get("listed_stocks") for before in befores]
