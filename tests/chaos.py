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
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis

from tests import chaos_checker, checker
from tests.chaos_checker import Rule
from tests.chaos_plan import COMMITTED, CUT_OFF, Blow, Fsync, Moment, plan
from tests.chaos_server import DoomedServer
from tests.chaos_slots import ROOT, SECRET, InVain, Process, Slot, until
from tests.holding_proxy import HoldingProxy
from tests.servers import free_port
from tests.test_acceptance import APP_KEY, PLAN, SECRET_KEY, clean_environment, seen

TARGETS = 14
SHOWN = 3
SECONDS_PER_KILL = 2.4
"""How the blows of a long run are spread; a short one is in a hurry."""

BLOW_S = 4.0
"""How long dealing one takes; pauses are what is left."""

CATCH_S = 60.0
LATE_S = 6.0
REST_S = 90.0
"""A sender that finds its receiver dead may leave it in peace for half a minute; the claim of a dead one lasts 17 s."""

LEASE_S = 10.0
LONG_RUN = 50
"""From so many kills on, each side of a commit has to be hit five times."""

RULES = [
    *(Rule(f"below {n}", "ka20003", "indices", "change_pct", "<", n) for n in ("-1", "-0.5", "0", "0.5", "1")),
    *(Rule(f"above {n}", "ka20003", "indices", "change_pct", ">=", n) for n in ("-0.75", "-0.25", "0.25", "0.75")),
]
SECTIONS = """
[archive]
path = "archive"
flush = "0.5s"

[[endpoint]]
name = "hook"
url = "http://127.0.0.1:{port}/hook"
secret_env = "CHAOS_HOOK_SECRET"
allow_http = true
allow_networks = ["127.0.0.0/8"]
rate = 100
"""
RULE = """
[[rule]]
name = "{name}"
tr = "{tr}"
table = "{table}"
when = {{ kind = "compare", field = "{field}", op = "{op}", value = {value} }}
notify = ["hook"]
"""


# --- the world -----------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What happened, for people, and what is wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Kills in mid-commit, by lane and by side."""
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


class World:
    """A market, a server and all roles on it, with everything that happens to them."""

    def __init__(self, folder: Path, fsync: Fsync, kills: int, seed: int) -> None:
        self.folder, self.fsync, self.kills, self.seed = folder, fsync, kills, seed
        self.archive, self.received = folder / "archive", folder / "received.jsonl"
        self.server = DoomedServer(folder / "server", fsync)
        self.received.touch()
        self.report = Report()
        self.refused, self.done = set[str](), set[str]()
        """Commits that came to nothing, and those that were done, by the beginning of their entries' ids."""
        self._bites = 0
        self._one_at_a_time = asyncio.Lock()
        self._began = time.monotonic()
        config, here = str(folder / "sectorwire.toml"), "tests.chaos_roles"
        self._port = free_port()
        self.slots = [
            *(self._slot("poller", f"poller-{one}", _role("poll", config)) for one in "ab"),
            *(self._slot("alert", f"alert-{one}", _role("alert", config)) for one in "ab"),
            *(self._slot("archive", f"archive-{one}", _role("archive", config)) for one in "ab"),
            *(self._slot("member", one, _member(here, one, self.effects(one))) for one in ("member-a", "member-b")),
            self._slot("receiver", "receiver", lambda _: [here, "receiver", str(self._port), str(self.received)]),
        ]

    def _slot(self, lane: str, name: str, command: Callable[[str], Sequence[str]]) -> Slot:
        return Slot(self.folder, self.server, lane, name, command)

    @property
    def direct(self) -> Any:
        """A look into the server that takes no detour."""
        return self.server.direct

    def effects(self, member: str) -> Path:
        return self.folder / f"{member}.effects"

    def of(self, lane: str) -> list[Slot]:
        return [slot for slot in self.slots if slot.lane == lane]

    async def run(self) -> Report:
        """Build it up, let everything go wrong, let it come to rest, and look at what is left."""
        self.server.start()
        background = [asyncio.create_task(self.server.watch_file()), asyncio.create_task(self._supervise())]
        try:
            await self._open()
            await self._suffer()
            try:
                await self._come_to_rest()
            finally:
                await asyncio.to_thread(self._look)
        except AssertionError as error:
            self.report.problems.append(f"{error}")
        except (Exception, BaseExceptionGroup, pytest.fail.Exception):  # noqa: BLE001 -- the logs are kept, whatever it is
            self.report.problems.append(f"the run itself failed: {traceback.format_exc()}")
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            for slot in self.slots:
                if slot.process:
                    slot.kill()
                for proxy in slot.proxies:
                    await proxy.__aexit__(None, None, None)
            self._simulator.kill()
            self.server.end()
            self.direct.close()
        return self.report

    async def _open(self) -> None:
        """Start everything; return when something is published."""
        ledger = ["--ledger", str(self.folder / "ledger.jsonl")]
        market = ["--port", "0", "--speed", "10", "--start", "2026-11-20T10:00", *ledger]
        log = self.folder / "simulator.log"
        self._simulator = Process(self.folder, log, ["sectorwire", "simulate", *market], {})
        await until(lambda: re.search(r"serving (http://[^,]+),", log.read_text("utf-8")), "the simulator to serve")
        found = re.search(r"serving (http://[^,]+),", log.read_text("utf-8"))
        assert found
        today = datetime.now(UTC)
        closed_days = ", ".join(f"{today + timedelta(days=days):%Y-%m-%d}" for days in (-1, 0, 1, 2))
        text = PLAN.format(base_url=found[1], closed_days=closed_days) + SECTIONS.format(port=self._port)
        text += "".join(RULE.format(**vars(rule)) for rule in RULES)
        (self.folder / "sectorwire.toml").write_text(text, "utf-8")
        for slot in self.slots:
            await slot.fill()
        await until(partial(self.direct.hget, "sectorwire:{ka20003}:meta", "seq"), "the first entries")

    # --- trouble ---

    async def _suffer(self) -> None:
        """Deal every lane its blows."""
        lanes = plan(self.kills, self.fsync, random.Random(f"{self.seed} {self.fsync}"))
        try:
            async with asyncio.TaskGroup() as together:
                for lane, blows in lanes.items():
                    together.create_task(self._deal(lane, blows))
        except* AssertionError as errors:
            raise InVain("; ".join(f"{error}" for error in errors.exceptions)) from errors

    async def _deal(self, lane: str, blows: Sequence[Blow]) -> None:
        rng = random.Random(f"{self.seed} {self.fsync} {lane}")
        seconds = self.kills * SECONDS_PER_KILL / (1 if self.kills >= LONG_RUN else 2)
        pause_s = max(0.3, seconds / (len(blows) + 1) - BLOW_S)
        for blow in blows:
            await asyncio.sleep(pause_s * rng.uniform(0.3, 1.7))
            began = time.monotonic()
            where = await self._blow(blow, rng)
            self.report.counts[lane, blow.words] += 1
            self.report.kills += blow.is_kill
            if blow.is_kill and blow.moment:
                self.report.held[lane, blow.moment.side] += 1
            number = f"{self.report.kills}" if blow.is_kill else "-"
            now = time.monotonic()
            say(f"{number:>4} {now - self._began:6.1f} s  {where:<10} {blow.words} ({now - began:.1f} s)")

    async def _blow(self, blow: Blow, rng: random.Random) -> str:
        """Do it; returns to whom."""
        if blow.lane == "server":
            return await self._kill_server(blow, rng)
        if blow.how == "full":
            return await self._fill_disk(rng)
        if blow.how == "stop":
            return await self._stop(blow, rng)
        if blow.how == "cut":
            return await self._cut(blow, rng)
        if blow.moment:
            return await self._kill_held(blow, blow.moment, rng)
        slot = self._somebody(blow.lane, rng)
        slot.kill()
        await self._follow(slot, rng)
        return slot.name

    def _somebody(self, lane: str, rng: random.Random) -> Slot:
        """One of a lane; of the pollers rather the one that leads."""
        slots, chosen = self.of(lane), rng.choice(self.of(lane))
        if lane == "poller" and rng.random() < 0.7:
            with suppress(redis.RedisError):
                leader = str(self.direct.get("sectorwire:leader") or "")
                return next((slot for slot in slots if f".{slot.living.pid}." in leader), chosen)
        return chosen

    async def _follow(self, slot: Slot, rng: random.Random, *, at_once: bool = False) -> None:
        """After a death: its leases end early, as a rule, and another process starts in its place."""
        if at_once or rng.random() < (1.0 if self.kills < LONG_RUN else 0.7):
            with suppress(redis.RedisError):
                slot.end_leases(self.direct)
        await asyncio.sleep(0 if at_once else rng.uniform(0, 0.5))
        await slot.fill()

    @asynccontextmanager
    async def _caught(self, moment: Moment, slots: Sequence[Slot]) -> AsyncIterator[tuple[Slot, bytes]]:
        """One of these with a command or reply of this kind held, and nothing else happening to the line meanwhile."""
        while True:
            for slot in slots:
                slot.let_go()
            await asyncio.sleep(0.02)  # until what was held before is on its way

            def held(slots: Sequence[Slot] = slots) -> Slot | None:
                for slot in slots:
                    slot.watch(moment)
                return next((slot for slot in slots if slot.caught and slot.proxy.holding), None)

            await until(held, f"a {moment.words or 'command'} of {moment.lane}", CATCH_S)
            caught = held()
            for slot in slots:
                if slot is not caught:
                    slot.let_go()
            async with self._one_at_a_time:
                if caught and caught.proxy.holding and caught.is_fresh:
                    yield caught, caught.caught[0][1]
                    return

    async def _kill_held(self, blow: Blow, moment: Moment, rng: random.Random) -> str:
        slots = [self._somebody("member", rng)] if blow.lane == "member" else self.of(blow.lane)
        async with self._caught(moment, slots) as (slot, command):
            held = slot.proxy
            slot.kill()
            slot.watched = None
            await asyncio.to_thread(self._check_effect, blow, command)
            self.done |= commits(one for one, reply in held.done if reply.startswith(COMMITTED))
            if blow.late:
                await self._deliver_late(slot, held, rng)
            else:
                self.refused |= commits(one for _, one in slot.caught) if moment.side == "request" else set()
                held.drop()
        await self._follow(slot, rng)
        return slot.name

    async def _deliver_late(self, slot: Slot, held: HoldingProxy, rng: random.Random) -> None:
        """Let what a dead process had sent arrive when another has taken over."""
        command, late = slot.caught[0][1], commits(one for _, one in slot.caught)
        taken_over = self._taken_over(slot.lane, command)
        await self._follow(slot, rng, at_once=True)
        with suppress(InVain):  # it arrives late all the same
            await until(taken_over, "another", LATE_S)
            self.refused |= late
        held.release()
        await asyncio.sleep(0.1)

    def _taken_over(self, lane: str, command: bytes) -> Callable[[], bool]:
        """Whether another has taken over since, by what it writes; another poller in each report."""
        if lane == "poller":
            fences = self._fences()
            return lambda: all(now != then for now, then in zip(self._fences(), fences, strict=True))
        found = re.search(rb"\{(ka\d{5})\}", command)
        assert found, command[:300]
        tr = f"sectorwire:{{{found[1].decode()}}}"
        looks: dict[str, Callable[[], object]] = {
            "alert": lambda: self.direct.hget(f"{tr}:alerting", "version"),
            "archive": lambda: self.direct.get(f"{tr}:position:archive"),
            "member": lambda: self.direct.get(f"{tr}:position:plain"),
        }
        before = looks[lane]()
        return lambda: looks[lane]() != before

    def _fences(self) -> list[str | None]:
        return [self.direct.hget(f"sectorwire:{{{tr}}}:meta", "fence") for tr in checker.catalogue()]

    def _check_effect(self, blow: Blow, command: bytes) -> None:
        """What is being acknowledged has been done."""
        found = re.search(rb"\{(ka\d{5})\}", command)
        ids = {one.decode() for one in re.findall(rb"\r\n(\d+-\d+)\r\n", command)}
        done: set[str] = set()
        if "acknowledgement" not in blow.words or found is None:
            return
        tr = found[1].decode()
        if blow.lane == "archive":
            logs = [*(self.archive / tr).glob("*/_delta_log"), self.archive / "notices" / "_delta_log"]
            done = {one for log in logs for one in pl.read_delta(str(log.parent))["stream_id"]}
        else:
            effects = chaos_checker.read_effects(self._effects())
            done = {stream_id for of, stream_id, _ in effects if of == tr}
        if early := ids - done:
            said = chaos_checker.some(sorted(early))
            self.report.problems.append(f"{blow.lane}, {tr}: acknowledged before it was done: {said}")

    def _effects(self) -> list[Path]:
        return [path for slot in self.of("member") if (path := self.effects(slot.name)).exists()]

    async def _stop(self, blow: Blow, rng: random.Random) -> str:
        """Freeze a process in the middle of its work until others have taken over, and let it go on."""
        assert blow.moment
        async with self._caught(blow.moment, self.of(blow.lane)) as (slot, _):
            slot.living.send(signal.SIGSTOP)
            if rng.random() < 0.5:
                slot.let_go()
        await asyncio.sleep(LEASE_S + rng.uniform(0.5, 2))
        slot.living.send(signal.SIGCONT)
        slot.let_go()
        return slot.name

    async def _cut(self, blow: Blow, rng: random.Random) -> str:
        """Break the connections of a process that lives."""
        if blow.moment is None:
            slot = self._somebody(blow.lane, rng)
            slot.proxy.cut()
            return slot.name
        async with self._caught(blow.moment, self.of(blow.lane)) as (slot, _):
            slot.proxy.drop()
            slot.watched = None
        return slot.name

    async def _fill_disk(self, rng: random.Random) -> str:
        """For some seconds, and until it is met, no file of the archive may grow beyond a few bytes."""
        limit = rng.choice((0, 500, 4_000, 12_000))
        before = self._refusals()
        limited = [slot.living.pid for slot in self.of("archive")]
        for pid in limited:
            _limit_files(pid, limit)
        with suppress(InVain):  # nothing is archived just now
            await until(lambda: self._refusals() > before, "the full disk to be met", 10)
            self._bites += 1
        await asyncio.sleep(rng.uniform(0.5, 2))
        for pid in limited:
            _limit_files(pid, resource.RLIM_INFINITY)
        return f"{limit} bytes"

    def _refusals(self) -> int:
        return sum(slot.log.read_text("utf-8").count("cannot write to") for slot in self.of("archive"))

    async def _kill_server(self, blow: Blow, rng: random.Random) -> str:
        if blow.words == CUT_OFF:  # rather when there is something to lose; a commit that is held waits for us, though
            with suppress(InVain, redis.RedisError):
                before = self._entries()
                await until(lambda: self._entries() > before, "an entry", LATE_S)
        async with self._one_at_a_time:
            lost = await self.server.die(rng, cut=blow.words == CUT_OFF)
        return f"server -{lost}" if lost else "server"

    def _entries(self) -> int:
        return sum(self.direct.xlen(f"sectorwire:{{{tr}}}:changes") for tr in checker.catalogue())

    async def _supervise(self) -> None:
        """Start again what ended by itself, as a supervisor does: a role that finds no server at its start gives up."""
        while True:
            for slot in self.slots:
                if slot.wanted and slot.living.ended:
                    slot.by_itself.append(slot.living.status)
                    slot.wanted = False
                    await slot.fill()
            await asyncio.sleep(0.3)

    # --- the end ---

    async def _come_to_rest(self) -> None:
        """No more trouble: everything is polled once more, and everybody comes to the end of it."""
        for slot in self.slots:
            slot.let_go()
            await slot.fill()
        since = datetime.now(UTC)
        await until(lambda: seen(self.direct, since) == TARGETS, f"another look at all {TARGETS} targets", 60)
        for slot in self.of("poller"):
            await slot.stop()
        await self._simulator.stop("the simulator")
        await until(lambda: not self._behind(), lambda: f"the groups to catch up: {self._behind()}", REST_S)
        await until(lambda: not self._untold(), lambda: f"webhooks: {chaos_checker.some(self._untold())}", REST_S)
        await asyncio.gather(*(slot.stop() for slot in self.slots if slot.lane != "poller"))

    def _behind(self) -> list[str]:
        """Groups that have not acknowledged all there is."""
        wanted = [("changes", tr, group) for tr in checker.catalogue() for group in ("archive", "plain")]
        wanted += [(part, "ka20003", group) for part, group in (("changes", "alert"), ("alerts", "send"))]
        late = []
        for part, tr, group in wanted:
            key = f"sectorwire:{{{tr}}}:{part}"
            groups = {one["name"]: one for one in self.direct.xinfo_groups(key)}
            last = self.direct.xinfo_stream(key)["last-generated-id"]
            if group not in groups or groups[group]["pending"] or groups[group]["last-delivered-id"] != last:
                late.append(f"{group} on {tr}: {groups.get(group)}, {last}")
        return late

    def _untold(self) -> set[str]:
        decided = self.direct.xrange("sectorwire:{ka20003}:alerts")
        return {fields["id"] for _, fields in decided} - {
            one["id"] for one in chaos_checker.read_received(self.received)
        }

    def _look(self) -> None:
        """Compare everything with everything."""
        problems, told = self.report.problems, self.report.told
        logs = [slot.log for slot in self.slots] + [self.folder / "simulator.log"]
        left = chaos_checker.read(self.server.url, self.server.lost)
        ledger = chaos_checker.since_resets(left, self.folder / "ledger.jsonl")
        try:
            secrets, files = [APP_KEY, SECRET_KEY, SECRET], [*logs, self.received]
            told.append(f"{checker.check(self.server.url, ledger, secrets=secrets, files=files)}")
        except AssertionError as error:
            problems.append(f"streams, snapshots and ledger: {error}")
        archive = chaos_checker.read_archive(self.archive)
        received = chaos_checker.read_received(self.received)
        effects = chaos_checker.read_effects(self._effects())
        problems += chaos_checker.check_histories(left)
        problems += chaos_checker.check_commits(left, refused=self.refused, done=self.done)
        problems += chaos_checker.check_archive(left, archive)
        problems += chaos_checker.check_decisions(left, RULES)
        problems += chaos_checker.check_webhooks(left, received)
        problems += chaos_checker.check_effects(left, effects)
        problems += self._ask_the_product()
        for log in logs:
            problems += _said_in(log)
        requests = (self.folder / "simulator.log").read_text("utf-8").splitlines()[-1]
        if ", 0 refused," not in requests:
            problems.append(f"the broker's limits were not kept: {requests}")
        problems += [f"{slot.name} ended by itself: {slot.by_itself}" for slot in self.slots if {*slot.by_itself} - {1}]
        lost = sum(len(one.entries) for one in self.server.lost)
        rows = sum(map(len, archive.rows.values()))
        ids = {one["id"] for one in received}
        told += [
            f"{lost} entries were cut off with the end of the server's file",
            f"{rows:,} entries archived, {archive.forks.total()} forks; the full disk was met {self._bites} times",
            f"{sum(map(len, left.alerts.values()))} decisions; {len(ids)} webhooks, {len(received) - len(ids)} repeats",
            f"{len(set(effects)):,} entries handled by the plain group, {len(effects) - len(set(effects)):,} repeats",
            requests,
            f"{sum(len(slot.by_itself) for slot in self.slots)} times a role found no server at its start and gave up",
        ]

    def _ask_the_product(self) -> Iterable[str]:
        """Its own proof has to come to the same end: all is well, but for forks where something was cut off."""
        done = subprocess.run(
            [sys.executable, "-m", "sectorwire", "archive", "verify", "--config", "sectorwire.toml"],
            cwd=self.folder,
            env={
                **clean_environment(),
                "PYTHONPATH": str(ROOT),
                "REDIS_URL": self.server.url,
                "CHAOS_HOOK_SECRET": SECRET,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        answer = (done.stdout + done.stderr).strip().splitlines()
        return [f"archive verify: {line}" for line in answer if not re.search(r": fork \d+: |^well: ", line)]


def commits(commands: Iterable[bytes]) -> set[str]:
    """What the ids of the entries begin with that these commands publish, if any."""
    found = (re.search(rb"\r\n(ka\d{5}\?[^\r\n]+#\d+\.\d+\.)\r\n", command) for command in commands)
    return {one[1].decode() for one in found if one}


def _role(role: str, config: str) -> Callable[[str], Sequence[str]]:
    return lambda _: ["sectorwire", role, "--config", config]


def _member(here: str, name: str, effects: Path) -> Callable[[str], Sequence[str]]:
    return lambda url: [here, "member", url, name, str(effects)]


def _limit_files(pid: int, most: int) -> None:
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def _said_in(log: Path) -> list[str]:
    """What no log should say, whatever happens."""
    lines = log.read_text("utf-8").splitlines()
    return [
        f"{log.name}: {line[:2000]}"
        for line in lines
        if re.search(r"Traceback|handler\.failed|poll\.crashed|entry\.parked|entries\.lost", line)
    ][:SHOWN]


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 -- ten minutes are long without a word


# --- the command ---------------------------------------------------------------------------------------------------


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
        reports.append(asyncio.run(World(folder / fsync, fsync, kills, seed).run()))
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
