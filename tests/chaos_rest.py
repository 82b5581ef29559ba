"""A battered world comes in; it comes to rest, and everything in it is compared with everything else.

The comparing is the checker's, which shares no code with the product; the product's own proof, `archive verify`, is
asked as well, and has to come to the same end.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from tests import chaos_checker, checker
from tests.chaos_slots import ROOT, SECRET, until
from tests.chaos_world import RULES, Report, World
from tests.test_acceptance import APP_KEY, SECRET_KEY, clean_environment, seen

TARGETS = 14
SHOWN = 3
REST_S = 90.0
"""A sender that finds its receiver dead may leave it in peace for half a minute; the claim of a dead one lasts 17 s."""


async def come_to_rest(world: World) -> None:
    """No more trouble: everything is polled once more, and everybody comes to the end of it."""
    for slot in world.slots:
        slot.let_go()
        await slot.fill()
    since = datetime.now(UTC)
    await until(lambda: seen(world.direct, since) == TARGETS, f"another look at all {TARGETS} targets", 60)
    for slot in world.of("poller"):
        await slot.stop()
    assert world.simulator
    await world.simulator.stop("the simulator")
    await until(lambda: not _behind(world), lambda: f"the groups to catch up: {_behind(world)}", REST_S)
    await until(lambda: not _untold(world), lambda: f"webhooks: {chaos_checker.some(_untold(world))}", REST_S)
    await asyncio.gather(*(slot.stop() for slot in world.slots if slot.lane != "poller"))


def _behind(world: World) -> list[str]:
    """Groups that have not acknowledged all there is."""
    wanted = [("changes", tr, group) for tr in checker.catalogue() for group in ("archive", "plain")]
    wanted += [(part, "ka20003", group) for part, group in (("changes", "alert"), ("alerts", "send"))]
    late = []
    for part, tr, group in wanted:
        key = f"sectorwire:{{{tr}}}:{part}"
        groups = {one["name"]: one for one in world.direct.xinfo_groups(key)}
        last = world.direct.xinfo_stream(key)["last-generated-id"]
        if group not in groups or groups[group]["pending"] or groups[group]["last-delivered-id"] != last:
            late.append(f"{group} on {tr}: {groups.get(group)}, {last}")
    return late


def _untold(world: World) -> set[str]:
    decided = world.direct.xrange("sectorwire:{ka20003}:alerts")
    return {fields["id"] for _, fields in decided} - {one["id"] for one in chaos_checker.read_received(world.received)}


def look(world: World, report: Report) -> None:
    """Compare everything with everything."""
    problems, told = report.problems, report.told
    logs = [slot.log for slot in world.slots] + [world.market_log]
    left = chaos_checker.read(world.server.url, world.server.lost)
    ledger = chaos_checker.since_resets(left, world.ledger)
    try:
        secrets, files = [APP_KEY, SECRET_KEY, SECRET], [*logs, world.received]
        told.append(f"{checker.check(world.server.url, ledger, secrets=secrets, files=files)}")
    except AssertionError as error:
        problems.append(f"streams, snapshots and ledger: {error}")
    archive = chaos_checker.read_archive(world.archive)
    received = chaos_checker.read_received(world.received)
    effects = chaos_checker.read_effects(world.effects)
    problems += chaos_checker.check_histories(left)
    problems += chaos_checker.check_commits(left, refused=report.refused, done=report.done)
    problems += chaos_checker.check_archive(left, archive)
    problems += chaos_checker.check_decisions(left, RULES)
    problems += chaos_checker.check_webhooks(left, received)
    problems += chaos_checker.check_effects(left, effects)
    problems += _ask_the_product(world)
    for log in logs:
        problems += _said_in(log)
    requests = (world.market_log).read_text("utf-8").splitlines()[-1]
    if ", 0 refused," not in requests:
        problems.append(f"the broker's limits were not kept: {requests}")
    problems += [f"{slot.name} ended by itself: {slot.by_itself}" for slot in world.slots if {*slot.by_itself} - {1}]
    lost = sum(len(one.entries) for one in world.server.lost)
    rows = sum(map(len, archive.rows.values()))
    ids = {one["id"] for one in received}
    told += [
        f"{lost} entries were cut off with the end of the server's file",
        f"{rows:,} entries archived, {archive.forks.total()} forks; the full disk was met {report.full_disks} times",
        f"{sum(map(len, left.alerts.values()))} decisions; {len(ids)} webhooks, {len(received) - len(ids)} repeats",
        f"{len(set(effects)):,} entries handled by the plain group, {len(effects) - len(set(effects)):,} repeats",
        requests,
        f"{sum(len(slot.by_itself) for slot in world.slots)} times a role found no server at its start and gave up",
    ]


def _ask_the_product(world: World) -> Iterable[str]:
    """Its own proof has to come to the same end: all is well, but for forks where something was cut off."""
    done = subprocess.run(
        [sys.executable, "-m", "sectorwire", "archive", "verify", "--config", "sectorwire.toml"],
        cwd=world.folder,
        env={
            **clean_environment(),
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": world.server.url,
            "CHAOS_HOOK_SECRET": SECRET,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    answer = (done.stdout + done.stderr).strip().splitlines()
    return [f"archive verify: {line}" for line in answer if not re.search(r": fork \d+: |^well: ", line)]


def _said_in(log: Path) -> list[str]:
    """What no log should say, whatever happens."""
    lines = log.read_text("utf-8").splitlines()
    return [
        f"{log.name}: {line[:2000]}"
        for line in lines
        if re.search(r"Traceback|handler\.failed|poll\.crashed|entry\.parked|entries\.lost", line)
    ][:SHOWN]
