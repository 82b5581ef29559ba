"""A seed goes in; a line of real processes is killed, stopped, cut off and starved; what was lost or doubled comes out.

    python -m tests.chaos --kills 200 --seed 7

Two worlds, one after the other: on a server with `appendfsync always`, which may lose nothing, and on one with
`everysec`, of whose file half of the server's kills cut the end off, within its last second, as a power cut would. In
each, two pollers, two alerts, two archives, three members of a plain group and a receiver work on a simulated market.
Half of the kills land between an effect and its acknowledgement, on a proxy that holds the request or the reply.

The surprises: every role has a lane of its own, so troubles overlap, and the seed fixes what happens in which order in
each lane, not when; a full disk is a limit on the size of files, set on the running process, which fails a write in its
middle as a full disk does and needs no file system of its own, and is why logs go through a pipe; and the lease of a
process that was killed is often ended early, the lease of a living one never.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos_blows import LONG_RUN, Blows, say
from tests.chaos_plan import Fsync
from tests.chaos_rest import come_to_rest, look
from tests.chaos_world import Report, World


async def live(folder: Path, fsync: Fsync, kills: int, seed: int) -> Report:
    """Build a world up, let everything go wrong, let it come to rest, and look at what is left."""
    world, report = World(folder, fsync), Report()
    try:
        async with world.living():
            await Blows(world, fsync, kills, seed, report).deal()
            try:
                await come_to_rest(world)
            finally:
                await asyncio.to_thread(look, world, report)
    except AssertionError as error:
        report.problems.append(f"{error}")
    except (Exception, BaseExceptionGroup, pytest.fail.Exception):  # noqa: BLE001 -- the logs are kept, whatever it is
        report.problems.append(f"the run itself failed: {traceback.format_exc()}")
    return report


def told(report: Report, fsync: str) -> None:
    """Print what happened."""
    say(f"\nappendfsync {fsync}: {report.kills} kills were")
    for (lane, words), count in sorted(report.counts.items()):
        say(f"  {count:4}  {lane:<9} {words}")
    for line in report.told:
        say(f"  {line}")
    for problem in report.problems:
        say(f"  WRONG: {problem}")


def judged(reports: Sequence[Report], kills: int) -> list[str]:
    """What is wrong with all of it: what was found, and blows that missed."""
    problems = [problem for report in reports for problem in report.problems]
    held = sum((report.held for report in reports), Counter[tuple[str, str]]())
    sides = {side: sum(n for (_, of), n in held.items() if of == side) for side in ("request", "reply")}
    commits = {side: held["poller", side] for side in ("request", "reply")}
    say(f"\nin mid-commit: {held.total()} of {kills} kills; {sides}; of pollers {commits}")
    if not problems and held.total() < kills // 2 - 1:
        problems.append("fewer than half of the kills were in mid-commit")
    if not problems and kills >= LONG_RUN and min(*sides.values(), *commits.values()) < 5:
        problems.append("a side of the commit was hit less than five times")
    return problems


def main() -> int:
    """Run both worlds. Returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="everything goes wrong, from a seed")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=("always", "everysec"), help="one of the two worlds")
    parser.add_argument("--keep", action="store_true", help="keep logs and data, whatever comes out")
    asked = parser.parse_args()
    if asked.kills < 1:
        parser.error(f"--kills {asked.kills}: at least one")
    if sys.platform != "linux":
        parser.error("this needs Linux, where the size of files can be limited for a process that runs")
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    say(f"seed {seed}, {asked.kills} kills")
    folder = Path(tempfile.mkdtemp(prefix="sectorwire-chaos-"))
    worlds: list[Fsync] = [asked.only] if asked.only else ["always", "everysec"]
    reports = []
    for number, fsync in enumerate(worlds):
        kills = asked.kills * (number + 1) // len(worlds) - asked.kills * number // len(worlds)
        say(f"\nappendfsync {fsync}: {kills} kills")
        reports.append(asyncio.run(live(folder / fsync, fsync, kills, seed)))
        told(reports[-1], fsync)
    if problems := judged(reports, asked.kills):
        say(f"\n{len(problems)} problems, seed {seed}; logs and data are in {folder}")
        return 1
    if asked.keep:
        say(f"logs and data are in {folder}")
    else:
        shutil.rmtree(folder)
    say("nothing lost, nothing twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
