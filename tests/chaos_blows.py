"""A plan of blows comes in; every lane of a living world is dealt its own, and what came of each is in the report.

Half of the kills land in mid-commit: a proxy holds the request or its reply, the process dies, and what was held is
dropped or arrives late. The surprise: lanes overlap, but only one blow at a time may hold the line, and the server
does not die meanwhile; otherwise nobody could say whether a commit that was held came to something.
"""

from __future__ import annotations

import asyncio
import random
import re
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

import polars as pl
import redis

from tests import chaos_checker, checker
from tests.chaos_plan import COMMITTED, CUT_OFF, Blow, Fsync, Moment, plan
from tests.chaos_slots import InVain, Slot, until
from tests.chaos_world import Report, World
from tests.holding_proxy import HoldingProxy

SECONDS_PER_KILL = 2.4
"""How the blows of a long run are spread; a short one is in a hurry."""

BLOW_S = 4.0
"""How long dealing one takes; pauses are what is left."""

CATCH_S = 60.0
LATE_S = 6.0
LEASE_S = 10.0
LONG_RUN = 50
"""From so many kills on, each side of a commit has to be hit five times."""


class Blows:
    """All that goes wrong in one world. The seed fixes what happens in which order in each lane, not when."""

    def __init__(self, world: World, fsync: Fsync, kills: int, seed: int, report: Report) -> None:
        self.world, self.fsync, self.kills, self.seed, self.report = world, fsync, kills, seed, report
        self._one_at_a_time = asyncio.Lock()
        self._began = time.monotonic()

    async def deal(self) -> None:
        """Deal every lane its blows. Raises InVain for one that nothing could be hit with."""
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
        slots, chosen = self.world.of(lane), rng.choice(self.world.of(lane))
        if lane == "poller" and rng.random() < 0.7:
            with suppress(redis.RedisError):
                leader = str(self.world.direct.get("sectorwire:leader") or "")
                return next((slot for slot in slots if f".{slot.living.pid}." in leader), chosen)
        return chosen

    async def _follow(self, slot: Slot, rng: random.Random, *, at_once: bool = False) -> None:
        """After a death: its leases end early, as a rule, and another process starts in its place."""
        if at_once or rng.random() < (1.0 if self.kills < LONG_RUN else 0.7):
            with suppress(redis.RedisError):
                slot.end_leases(self.world.direct)
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
        slots = [self._somebody("member", rng)] if blow.lane == "member" else self.world.of(blow.lane)
        async with self._caught(moment, slots) as (slot, command):
            held = slot.proxy
            slot.kill()
            slot.watched = None
            await asyncio.to_thread(self._check_effect, blow, command)
            self.report.done |= commits(one for one, reply in held.done if reply.startswith(COMMITTED))
            if blow.late:
                await self._deliver_late(slot, held, rng)
            else:
                self.report.refused |= commits(one for _, one in slot.caught) if moment.side == "request" else set()
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
            self.report.refused |= late
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
            "alert": lambda: self.world.direct.hget(f"{tr}:alerting", "version"),
            "archive": lambda: self.world.direct.get(f"{tr}:position:archive"),
            "member": lambda: self.world.direct.get(f"{tr}:position:plain"),
        }
        before = looks[lane]()
        return lambda: looks[lane]() != before

    def _fences(self) -> list[str | None]:
        return [self.world.direct.hget(f"sectorwire:{{{tr}}}:meta", "fence") for tr in checker.catalogue()]

    def _check_effect(self, blow: Blow, command: bytes) -> None:
        """What is being acknowledged has been done."""
        found = re.search(rb"\{(ka\d{5})\}", command)
        ids = {one.decode() for one in re.findall(rb"\r\n(\d+-\d+)\r\n", command)}
        done: set[str] = set()
        if "acknowledgement" not in blow.words or found is None:
            return
        tr = found[1].decode()
        if blow.lane == "archive":
            logs = [*(self.world.archive / tr).glob("*/_delta_log"), self.world.archive / "notices" / "_delta_log"]
            done = {one for log in logs for one in pl.read_delta(str(log.parent))["stream_id"]}
        else:
            effects = chaos_checker.read_effects(self.world.effects)
            done = {stream_id for of, stream_id, _ in effects if of == tr}
        if early := ids - done:
            said = chaos_checker.some(sorted(early))
            self.report.problems.append(f"{blow.lane}, {tr}: acknowledged before it was done: {said}")

    async def _stop(self, blow: Blow, rng: random.Random) -> str:
        """Freeze a process in the middle of its work until others have taken over, and let it go on."""
        assert blow.moment
        async with self._caught(blow.moment, self.world.of(blow.lane)) as (slot, _):
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
        async with self._caught(blow.moment, self.world.of(blow.lane)) as (slot, _):
            slot.proxy.drop()
            slot.watched = None
        return slot.name

    async def _fill_disk(self, rng: random.Random) -> str:
        """For some seconds, and until it is met, no file of the archive may grow beyond a few bytes."""
        limit = rng.choice((0, 500, 4_000, 12_000))
        before = self._refusals()
        limited = [slot.living.pid for slot in self.world.of("archive")]
        for pid in limited:
            _limit_files(pid, limit)
        with suppress(InVain):  # nothing is archived just now
            await until(lambda: self._refusals() > before, "the full disk to be met", 10)
            self.report.full_disks += 1
        await asyncio.sleep(rng.uniform(0.5, 2))
        for pid in limited:
            _limit_files(pid, resource.RLIM_INFINITY)
        return f"{limit} bytes"

    def _refusals(self) -> int:
        return sum(slot.log.read_text("utf-8").count("cannot write to") for slot in self.world.of("archive"))

    async def _kill_server(self, blow: Blow, rng: random.Random) -> str:
        if blow.words == CUT_OFF:  # rather when there is something to lose; a commit that is held waits for us, though
            with suppress(InVain, redis.RedisError):
                before = self._entries()
                await until(lambda: self._entries() > before, "an entry", LATE_S)
        async with self._one_at_a_time:
            lost = await self.world.server.die(rng, cut=blow.words == CUT_OFF)
        return f"server -{lost}" if lost else "server"

    def _entries(self) -> int:
        return sum(self.world.direct.xlen(f"sectorwire:{{{tr}}}:changes") for tr in checker.catalogue())


def commits(commands: Iterable[bytes]) -> set[str]:
    """What the ids of the entries begin with that these commands publish, if any."""
    found = (re.search(rb"\r\n(ka\d{5}\?[^\r\n]+#\d+\.\d+\.)\r\n", command) for command in commands)
    return {one[1].decode() for one in found if one}


def _limit_files(pid: int, most: int) -> None:
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 -- ten minutes are long without a word
