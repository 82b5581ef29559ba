"""A plan near its limit goes in; how much of the limit is used and how late polls are comes out, beside first come,
first served; and what a poll costs the scheduler itself with a hundred, a thousand and ten thousand targets.

    python -m bench.schedule --seconds 120
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import cast

import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from poller import schedule
from poller.broker import Broker
from poller.budget import Limit, Share
from poller.catalogue import CATALOGUE, tr_named
from poller.clock import Clock
from poller.commit import Commit, Known, unchanged
from poller.gate import AT_ONCE, Deadline, Gates
from poller.grid import Job, Timing
from poller.poll import Desk, Watched
from poller.quarantine import Quarantine
from poller.schedule import Poller
from poller.session import KST, Calendar
from poller.simulator.server import Simulator, SimulatorSettings, serving
from poller.store import Store, connect
from poller.upkeep import Upkeep
from tests.model_store import ModelRedis, ModelServer, ModelStore, no_trouble
from tests.servers import RealServer
from tests.virtual import VirtualClock, VirtualLoop, run

KEEP_ALL = Upkeep(86_400, 10**12)
LIMITS = {tr.code: Limit(4) for tr in CATALOGUE}
STRICT_PER_S = 5
CALENDAR = Calendar()

SECTORS = [f"{number:03}" for number in (*range(1, 22), 24, 25, 26, 27, 28, 29, 30, 603, 604, 605)]
PLAN = [
    *(("ka20001", {"inds_cd": code}, 5.0) for code in SECTORS[:10]),
    *(("ka20001", {"inds_cd": code}, 20.0) for code in SECTORS[10:31]),
    ("ka20002", {"inds_cd": "001", "stex_tp": "1"}, 6.0),
    ("ka20002", {"inds_cd": "101", "stex_tp": "1"}, 6.0),
    ("ka20002", {"inds_cd": "201", "stex_tp": "1"}, 5.0),
    *(("ka20002", {"inds_cd": code, "stex_tp": "1"}, 6.0) for code in SECTORS[4:13]),
]
PAGES = {"001": 3, "101": 3, "201": 2}
"""Of the made-up market's lists of stocks, which are shorter than the real ones; every other answer is one page."""
JOBS = [Job(tr_named(tr).target(values), every_s) for tr, values, every_s in PLAN]


def _pages(job: Job) -> int:
    return PAGES.get(job.target.request["inds_cd"], 1) if job.target.tr.code == "ka20002" else 1


@dataclass
class Run:
    """One poller on its own strict broker and its own prefix, and what was seen of it."""

    name: str
    faults: float = 0.0
    in_order_of_deadlines: bool = True
    late_s: list[float] = field(default_factory=list)
    simulator: Simulator | None = None
    poller: Poller | None = None
    requests_before: int = 0
    requests: int = 0

    def begin(self) -> None:
        """Count from now on."""
        self.late_s.clear()
        self.requests_before = self.simulator.requests if self.simulator else 0

    def end(self) -> None:
        """Count no further."""
        self.requests = (self.simulator.requests if self.simulator else 0) - self.requests_before

    @property
    def seen(self) -> int:
        """How many targets have been asked at least once."""
        return sum(watched.known is not None for watched in self.poller.watched) if self.poller else 0

    @property
    def missed_ticks(self) -> int:
        """How many ticks were skipped because a poll took too long."""
        return sum(watched.missed_ticks for watched in self.poller.watched) if self.poller else 0


class _Timed(Watched):
    """A target whose polls are timed from the tick they are for."""

    run: Run

    async def poll(self, due: datetime) -> tuple[Commit, int]:
        done = await super().poll(due)
        if (
            abs((due - self.job.tick_of(due)).total_seconds()) < 0.001
        ):  # a poll off the grid, as all are at the start, has no tick to be late for
            self.run.late_s.append((self._desk.clock.now() - due).total_seconds())
        return done

    def _deadline(self, due: datetime) -> Deadline:
        return super()._deadline(due) if self.run.in_order_of_deadlines else AT_ONCE


async def _live(run_of: Run, url: str, stop: asyncio.Event) -> None:
    """Poll until `stop` in real time, against a broker that refuses what is over its limit in any second."""
    clock = Clock()
    settings = SimulatorSettings(seed=1, faults=run_of.faults, limit_per_s=STRICT_PER_S)
    async with AsyncExitStack() as stack:
        simulator, base_url = await stack.enter_async_context(serving(settings))
        redis = connect(url)
        stack.push_async_callback(redis.aclose)
        gates = Gates(LIMITS, clock)
        key = SecretStr("bench-key"), SecretStr("bench-secret")
        broker = Broker(base_url, *key, gates=gates, redis=redis, prefix=run_of.name, clock=clock)
        await stack.enter_async_context(broker)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        timing = Timing(CALENDAR, None)
        desk = Desk(broker, Store(redis, run_of.name), timing, clock, Quarantine(Path(folder)))
        with _targets_of(type("Timed", (_Timed,), {"run": run_of})):
            poller = Poller(JOBS, desk, KEEP_ALL, random.Random(1))  # noqa: S311 -- spreads retries, guards nothing
        run_of.simulator, run_of.poller = simulator, poller
        await poller.run(stop)


@contextmanager
def _targets_of(kind: type[Watched]) -> Iterator[None]:
    """Have pollers that are made now watch their targets in this way: the one seam there is."""
    plain = vars(schedule)["Watched"]
    vars(schedule)["Watched"] = kind
    try:
        yield
    finally:
        vars(schedule)["Watched"] = plain


def side_by_side(seconds: float) -> list[Run]:
    """Three runs of one plan at the same time: with and without faults, and first come, first served."""
    runs = [
        Run("by-deadline"),
        Run("by-deadline-with-faults", faults=0.1),
        Run("first-come", in_order_of_deadlines=False),
    ]

    async def all_of_them(url: str) -> None:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(_live(one, url, stop)) for one in runs]
        with Progress(transient=True) as progress:
            begun = progress.add_task("everybody once", total=len(runs) * len(JOBS))
            while (done := sum(one.seen for one in runs)) < len(runs) * len(JOBS):
                progress.update(begun, completed=done)
                await asyncio.sleep(0.2)
            for one in runs:
                one.begin()
            shown = progress.add_task("polling", total=seconds)
            for _ in range(int(seconds)):
                await asyncio.sleep(1)
                progress.advance(shown)
        for one in runs:
            one.end()
        stop.set()
        await asyncio.gather(*tasks)

    with tempfile.TemporaryDirectory() as folder, RealServer(Path(folder)) as server:
        asyncio.run(all_of_them(server.url))
    return runs


def runs_table(runs: list[Run], seconds: float) -> Table:
    """The runs for a person's eyes."""
    grid = Table(
        box=None, title=f"{len(JOBS)} targets, {seconds:.0f} s, 4 requests/s against a strict {STRICT_PER_S}/s"
    )
    for name in ("run", "polls", "refused", "share of allowed", "late p50", "late p99", "missed ticks"):
        grid.add_column(name, justify="left" if name == "run" else "right")
    allowed = 2 * Limit(4).sustained_per_s * seconds
    for one in runs:
        cuts = statistics.quantiles(one.late_s, n=100)
        used = f"{100 * one.requests / allowed:.0f} %"
        grid.add_row(
            one.name,
            str(len(one.late_s)),
            str(one.simulator.refusals if one.simulator else 0),
            used,
            f"{cuts[49]:.2f} s",
            f"{cuts[98]:.2f} s",
            str(one.missed_ticks),
        )
    return grid


class _Idle(Watched):
    """A target whose polls cost nothing: what is left is the scheduler's own work."""

    polls = 0

    async def poll(self, due: datetime) -> tuple[Commit, int]:  # noqa: ARG002 -- as the real one
        type(self).polls += 1
        self.known = self.known or Known(revision=1)
        return unchanged(self.target, self.known, self._desk.clock.now(), 0), 0


def cost_per_poll_us(targets: int, polls: int = 20_000) -> float:
    """Microseconds of processor time that the scheduler takes for one poll."""
    tr = tr_named("ka10010")
    jobs = [Job(tr.target({"stk_cd": f"{number:06}"}), targets / 100) for number in range(targets)]
    loop = VirtualLoop()
    clock = VirtualClock(datetime(2026, 11, 23, 9, 0, tzinfo=KST), loop)
    server = ModelServer(lambda: int(clock.now().timestamp() * 1000))
    redis = ModelRedis(server, no_trouble)
    took_s = 0.0

    async def play() -> None:
        nonlocal took_s
        gates, key = Gates(LIMITS, clock), SecretStr("bench-key")
        broker = Broker("http://nobody", key, key, gates=gates, redis=cast("Redis", redis), prefix="b", clock=clock)
        desk = Desk(broker, ModelStore(redis, "b", "one"), Timing(CALENDAR, None), clock, Quarantine(Path()))
        rng, stop = random.Random(1), asyncio.Event()  # noqa: S311 -- spreads retries, guards nothing
        poller = Poller(jobs, desk, KEEP_ALL, rng)
        running = asyncio.create_task(poller.run(stop))
        await asyncio.sleep(2 * targets / 100)  # the start is over, everybody is on the grid
        began_s, done = time.process_time(), _Idle.polls
        await asyncio.sleep(polls / 100)
        took_s = (time.process_time() - began_s) / (_Idle.polls - done)
        stop.set()
        await running

    with _targets_of(_Idle):
        run(play(), loop)
    return took_s * 1e6


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--cost-only", action="store_true")
    args = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    console = Console(width=120)
    if not args.cost_only:
        for code in ("ka20001", "ka20002"):
            jobs = [job for job in JOBS if job.target.tr.code == code]
            share = Share(code, LIMITS[code], tuple((_pages(job), job.every_s) for job in jobs))
            console.print(f"{code}: {share.used_pct:.0f} % of what is allowed")
        console.print(runs_table(side_by_side(args.seconds), args.seconds))
    first = None
    for targets in (100, 1_000, 10_000):
        cost_us = cost_per_poll_us(targets)
        first = first or cost_us
        console.print(
            f"{targets:>6} targets: {cost_us:.0f} us of the scheduler's own per poll, {cost_us / first:.2f} times"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
