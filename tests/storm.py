"""A seed goes in; a leader and a standby, consumers and an archiver live through whatever befell them and their server.

    storm = Storm(seed=1)
    storm.live()
    storm.check()

Pollers, consumers, rules and archiver are the product's own; the server (`witness`), the archive's disk (`model_delta`)
and the broker (`light_broker`) are made up, and so is the time. The server looks at each step as it happens; what can
only be told in the end is told by `check`: that everybody has been given everything, and the archive holds it once.

The surprises: whoever is killed says nothing more to anybody, not even goodbye; and a failover leaves some on the old
server for a while, which goes on taking their writes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from consumers.alert.decide import AlertRole
from consumers.alert.rules import Rule, RuleSettings, compile_rules, steps
from consumers.archive.fork import FORK
from consumers.archive.settings import ArchiveSettings
from consumers.archive.writer import ArchiveRole
from consumers.group import Batch, Membership
from poller.catalogue import described, tr_named
from poller.contract import Keys, decode
from poller.session import KST
from poller.upkeep import Upkeep
from tests.light_broker import LightBroker, line
from tests.model_delta import Disk, on_disk
from tests.model_store import ModelRedis, no_trouble, one_turn
from tests.witness import Kept, Witness
from tests.world import PREFIX, Process, World

DAY = datetime(2026, 11, 23, tzinfo=KST)
WATCHERS, ARCHIVE, ALERT = "watchers", "archive", "alert"
KNOWN = described()
TARGETS: Sequence[tuple[str, Sequence[Mapping[str, str]]]] = [
    ("ka20003", [{"inds_cd": "001"}, {"inds_cd": "101"}]),
    ("ka20009", [{"mrkt_tp": "0", "inds_cd": f"{code:03}"} for code in (5, 6)]),
    ("ka20002", [{"mrkt_tp": "0", "inds_cd": "013", "stex_tp": "1"}]),
    ("ka10051", [{"mrkt_tp": market, "amt_qty_tp": "0", "stex_tp": "1"} for market in "01"]),
]
LASTS_S = 60.0
CALMS_DOWN_S = 40.0
SAVED_EVERY_S = 1.0
"""What a server may lose is what it was not told to write down: with `everysec` a second, a replica somewhat more."""


class RestlessBroker(LightBroker):
    """Values move between any two polls, so that there is always something to lose."""

    moves_every_s = 3


class Died(BaseException):
    """A process ends here, whatever it was doing."""


@dataclass
class Life:
    """One life of a process, from its start to its end."""

    redis: ModelRedis
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False
    task: asyncio.Task[None] | None = None


class Role:
    """A consumer's process. `cut` is what goes wrong on its way to the server, told each moment; it may raise."""

    def __init__(self, storm: Storm, name: str, work: Callable[[Redis, str, asyncio.Event], Awaitable[None]]) -> None:
        self._storm, self.name, self._work = storm, name, work
        self.trouble: Callable[[str], None] = no_trouble
        self.life: Life | None = None

    @property
    def redis(self) -> ModelRedis | None:
        """Its way to the server."""
        return self.life.redis if self.life else None

    def start(self) -> None:
        """Begin a life; nothing is remembered of the one before."""
        life = Life(ModelRedis(self._storm.server))

        def on_the_way(moment: str) -> None:
            if life.over:
                raise RedisConnectionError("killed")
            self.trouble(moment)

        life.redis.trouble = on_the_way
        self.life, life.task = life, asyncio.create_task(self._live(life))

    async def _live(self, life: Life) -> None:
        WHO.set((self, life))
        try:
            await self._work(cast("Redis", life.redis), self.name, life.stop)
        except* Died:
            life.over = True
            self._storm.happened["died in a write"] += 1

    async def stop(self) -> None:
        """End as on a SIGTERM. Raises what ended it otherwise."""
        if self.life and self.life.task:
            self.life.stop.set()
            await self.life.task

    async def kill(self) -> None:
        """End it wherever it is: from now on it says nothing to anybody."""
        if self.life and self.life.task:
            self.life.over = True
            self.life.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.life.task


WHO: ContextVar[tuple[Role, Life]] = ContextVar("who writes to the disk")


class Storm:
    """What a seed stands for."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(f"storm {seed}")
        rng = self.rng
        self.code, requests = rng.choice(TARGETS)
        pages = tr_named(self.code).target(requests[0]).pages
        plan = [(self.code, request, pages * rng.uniform(2, 6 if pages == 1 else 3)) for request in requests]
        retention_s = rng.choice([30.0, 3_600.0])
        self.faults = rng.choice([0.0, 0.0, 0.1])
        self.world = World(
            seed=seed,
            start=DAY + timedelta(hours=10),
            plan=plan,
            pollers=2,
            sessions="always",
            faults=self.faults,
            kind=RestlessBroker,
            server=Witness,
            upkeep=Upkeep(retention_s, 10**9),
        )
        self.server = cast("Witness", self.world.server)
        self.server.now_ms = self._server_ms
        self.server.done = self._is_done
        self.clock_off_ms = 0
        self.rules = rules(self.code, self.world.clock.now())
        self.disk = Disk()
        self.disk_trouble: Callable[[str], None] = no_trouble
        self.effects: Counter[str] = Counter()
        """How often the watchers did what they do with an entry, by its id."""
        self.poison = ""
        self.happened: Counter[str] = Counter()
        self.kept: list[Kept] = []
        self.polled_until = self.world.clock.start
        self.watchers = [Role(self, f"watcher-{number}", self._watch) for number in (1, 2, 3)]
        self.archivers = [Role(self, f"archiver-{number}", self._archive) for number in (1, 2)]
        self.deciders = [Role(self, f"alert-{number}", self._alert) for number in (1, 2)]
        self.roles = [*self.watchers, *self.archivers, *self.deciders]

    def _server_ms(self) -> int:
        return int(self.world.clock.now().timestamp() * 1000) + self.clock_off_ms

    # --- what the processes do

    async def _watch(self, redis: Redis, name: str, stop: asyncio.Event) -> None:
        async def handle(batch: Batch) -> None:
            for delivery in batch:
                await asyncio.sleep(self.rng.choice([0, 0, 0.01, 0.3]))
                entry_id = delivery.fields["id"]
                if entry_id == self.poison:
                    raise ValueError("nobody can do this one")
                life = WHO.get()[1]
                if not life.over:
                    self.effects[entry_id] += 1

        await Membership(redis, PREFIX, self.code, WATCHERS, name, alone=False).consume(handle, stop)

    async def _archive(self, redis: Redis, name: str, stop: asyncio.Event) -> None:
        settings = ArchiveSettings(path=Path("/archive"), flush=2.0)
        await ArchiveRole(redis, PREFIX, {self.code: KNOWN[self.code]}, settings, name).run(stop)

    async def _alert(self, redis: Redis, name: str, stop: asyncio.Event) -> None:
        await AlertRole(redis, PREFIX, KNOWN, self.rules, name, now=self.world.clock.now).run(stop)

    def _is_done(self, server: Witness, group: str, fields: dict[str, str]) -> bool:
        """Whether a group has done with an entry what it is there for."""
        entry_id = fields["id"]
        if group == WATCHERS:
            parked = server.entries(Keys(PREFIX).of(self.code, "parked", WATCHERS))
            return bool(self.effects[entry_id]) or any(one["id"] == entry_id for one in parked)
        if group == ARCHIVE:
            return entry_id in self.disk.durable
        return True  # alerts write what they decide and how far they are in one script

    # --- what befalls them

    @property
    def actors(self) -> list[Role | Process]:
        """Everybody who talks to the server."""
        return [*self.world.processes, *self.roles]

    async def _pass(self, seconds: float) -> None:
        await self.world.until(self.world.clock.now() + timedelta(seconds=seconds))

    async def lossy(self) -> None:
        """Requests, and replies after what was asked has been done, get lost; of one or of all."""
        share = self.rng.choice([0.05, 0.3])

        def lost(moment: str) -> None:
            if self.rng.random() < share / 2:
                raise RedisConnectionError(f"lost {moment}")

        await self._disturb(lost, self.rng.uniform(2, 10))

    async def severed(self) -> None:
        """Some cannot reach the server, often for longer than a lease lasts."""

        def lost(moment: str) -> None:
            raise RedisConnectionError(f"severed {moment}")

        await self._disturb(lost, self.rng.uniform(1, 20))

    async def _disturb(self, trouble: Callable[[str], None], seconds: float) -> None:
        actors = self.rng.choice([[self.rng.choice(self.actors)], self.actors])
        for actor in actors:
            actor.trouble = trouble
        await self._pass(seconds)
        for actor in actors:
            actor.trouble = no_trouble

    async def paused(self) -> None:
        """What one has to say reaches the server much later, often after its lease has ended."""
        redis, woken = self.rng.choice(self.actors).redis, asyncio.Event()
        if redis is not None:
            redis.wait = woken.wait
            await self._pass(self.rng.uniform(1, 25))
            redis.wait = one_turn
            woken.set()

    async def killed(self) -> None:
        """Some die, their leases and what they had in hand stay behind."""
        actors = self.rng.sample(self.actors, self.rng.choice([1, 1, 3]))
        for actor in actors:
            await actor.kill()
        await self._pass(self.rng.choice([0, self.rng.uniform(0, 15)]))
        for actor in actors:
            actor.start()

    async def stopped(self) -> None:
        """One is stopped and started again."""
        actor = self.rng.choice(self.actors)
        await actor.stop()
        await self._pass(self.rng.choice([0, self.rng.uniform(0, 15)]))
        actor.start()

    async def restarted(self) -> None:
        """The server is started again, with all it had or without what came last, loading for a while."""
        kept = self.rng.choice([self.server.keep(), *self.kept])
        self.server.go_back(kept)
        self.server.refuses = BusyLoadingError("Redis is loading the dataset in memory")
        await self._pass(self.rng.choice([0, self.rng.uniform(0, 3)]))
        self.server.refuses = None

    async def failed_over(self) -> None:
        """A replica that is behind takes over; some talk to the old server for a while yet."""
        kept, old = self.rng.choice([self.server.keep(), *self.kept]), self.server
        self.server = self.world.server = old.replica(kept)
        self.kept = [kept]
        for actor in self.rng.sample(self.actors, len(self.actors)):
            await self._pass(self.rng.choice([0, 0, self.rng.uniform(0, 1)]))
            if actor.redis is not None:
                actor.redis.server = self.server
        old.cut()
        old.lose_after(kept)

    async def scripts_flushed(self) -> None:
        """The server forgets its scripts."""
        self.server.scripts_flushed()

    async def full(self) -> None:
        """The server has no memory left."""
        await self._refusing(OutOfMemoryError("command not allowed when used memory > 'maxmemory'."))

    async def read_only(self) -> None:
        """The server is a replica for a while."""
        await self._refusing(ReadOnlyError("You can't write against a read only replica."))

    async def _refusing(self, error: RedisError) -> None:
        server = self.server
        server.refuses = error
        await self._pass(self.rng.uniform(1, 8))
        server.refuses = None

    async def group_lost(self) -> None:
        """Somebody removes a group."""
        stream = Keys(PREFIX).of(self.code, "changes")
        groups = sorted(self.server.stream(stream).groups)
        if groups:
            self.server.perform(lambda: self.server.xgroup_destroy(stream, self.rng.choice(groups)))

    async def clocks_stepped(self) -> None:
        """The clocks of the server and of a poller are set."""
        self.clock_off_ms += self.rng.randint(-5_000, 5_000)
        process = self.rng.choice(self.world.processes)
        process.clock.start += timedelta(seconds=self.rng.uniform(-5, 5))

    async def disk_full(self) -> None:
        """Nothing can be archived."""

        def full(moment: str) -> None:
            if moment == "write":
                raise OSError(28, "No space left on device")

        self.disk_trouble = full
        await self._pass(self.rng.uniform(3, 10))
        self.disk_trouble = no_trouble

    async def died_in_a_write(self) -> None:
        """The archiver dies while it writes, with or without its machine."""
        at, power = self.rng.choice(["write", "written", "sync"]), self.rng.choice([True, False])

        def fatal(moment: str) -> None:
            if moment == at:
                self.disk_trouble = no_trouble
                WHO.get()[1].over = True
                if power:
                    self.disk.lose_power()
                raise Died

        self.disk_trouble = fatal
        await self._pass(self.rng.uniform(3, 10))
        self.disk_trouble = no_trouble
        for archiver in self.archivers:
            if archiver.life and archiver.life.over:
                archiver.start()

    async def poisoned(self) -> None:
        """An entry comes that no watcher can handle."""
        entries = self.server.entries(Keys(PREFIX).of(self.code, "changes"))
        if entries and not self.poison:
            self.poison = self._next_id(entries[-1]["id"])

    @staticmethod
    def _next_id(entry_id: str) -> str:
        """The id of the first entry of a target's next version."""
        head, _, _ = entry_id.rpartition(".")
        epoch, _, version = head.rpartition(".")
        return f"{epoch}.{int(version) + 1}.1"

    # --- the whole of it

    def live(self) -> None:
        """From beginning to end."""
        with on_disk(self.disk, self._on_disk):
            self.world.run(self._scenario)

    def _on_disk(self, moment: str) -> None:
        if WHO.get()[1].over:
            raise Died
        self.disk_trouble(moment)

    async def _scenario(self, world: World) -> None:
        for actor in self.actors:
            actor.start()
        saving = asyncio.create_task(self._save())
        ends = world.clock.now() + timedelta(seconds=LASTS_S)
        while world.clock.now() < ends:
            await self._pass(self.rng.uniform(0, 8))
            trouble = self.rng.choice(TROUBLES)
            self.happened[trouble.__name__] += 1
            await trouble(self)
        saving.cancel()
        await self._pass(CALMS_DOWN_S)
        self.polled_until = world.clock.now()
        for process in world.processes:
            await process.stop()
        await self._pass(10)
        for role in self.roles:
            await role.stop()

    async def _save(self) -> None:
        while True:
            self.kept = [*self.kept[-3:], self.server.keep()]
            await asyncio.sleep(SAVED_EVERY_S)

    def check(self) -> None:
        """What can only be told in the end. Raises AssertionError with the first promise that was not kept."""
        assert not self.server.past.broken, self.server.past.broken[0]
        crashed = [log for log in self.world.logs if log["event"] in {"poll.crashed", "entries.lost"}]
        assert not crashed, crashed[0]
        for target in [] if self.faults else self.world.targets:  # else a breaker may rest for a minute
            last = self.world.state(target).get("last_good")
            idle_s = (self.polled_until - datetime.fromisoformat(last)).total_seconds() if last else CALMS_DOWN_S
            assert idle_s < CALMS_DOWN_S - 5, f"{target} was not polled any more after {last}"
        entries = self.server.entries(Keys(PREFIX).of(self.code, "changes"))
        ids = [one["id"] for one in entries]
        unseen = [one for one in ids if not self._is_done(self.server, WATCHERS, {"id": one})]
        assert not unseen, f"{len(unseen)} of {len(ids)} entries were given to no watcher, such as {unseen[0]}"
        lines = [one for one in self.disk.lines() if one.cells["op"] != FORK]
        archived = Counter(str(one.cells["event_id"]) for one in lines)
        twice = [one for one, times in archived.items() if times > 1]
        assert not twice, f"{len(twice)} entries are in the archive twice, such as {twice[0]}"
        missing = [one for one in ids if one not in archived]
        assert not missing, f"{len(missing)} of {len(ids)} entries are not in the archive, such as {missing[0]}"
        unknown = archived.keys() - self.server.past.ids.keys()
        assert not unknown, f"the archive made up {unknown}"
        self._check_forks(archived)
        self._check_decisions(entries)

    def _check_forks(self, archived: Mapping[str, int]) -> None:
        forks = [one for one in self.disk.lines() if one.cells["op"] == FORK]
        lost = self.server.past.lost & archived.keys()
        assert forks or not lost, f"the archive has {len(lost)} entries that were lost, and tells of no fork"

    def _check_decisions(self, entries: Sequence[dict[str, str]]) -> None:
        alerts = self.server.entries(Keys(PREFIX).of(self.code, "alerts"))
        written = [one["id"] for one in alerts]
        assert len(written) == len(set(written)), f"a rule decided twice: {written}"
        if entries and entries[0]["seq"] == "1":  # else what was decided first cannot be worked out
            _, decided = steps(self.rules, {}, [decode(one) for one in entries], self.world.clock.now())
            trimmed = int(alerts[0]["seq"]) - 1 if alerts else 0
            wanted = [one.id for one in decided[trimmed:]]
            assert written == wanted, f"decided were {written}, and should have been {wanted}"


MOVING = {"level", "change", "percent", "amount", "quantity", "count"}


def rules(code: str, now: datetime) -> list[Rule]:
    """A rule on a value that moves, which fires or ends within a minute."""
    tr = tr_named(code)
    table, moving = next(
        (table, one)
        for table in tr.tables
        for place, one in enumerate(table.row.fields)
        if place % 3 == 0 and one.kind in MOVING
    )
    soon = int(now.timestamp()) // RestlessBroker.moves_every_s + 5
    value = moving.read(line(table, "-", soon)[moving.element or ""])
    when = {"kind": "compare", "field": moving.name, "op": ">", "value": value}
    one = {"name": "moves", "tr": code, "when": when, "notify": ["desk"]}
    one |= {"table": table.name} if len(tr.tables) > 1 else {}
    return compile_rules([RuleSettings.model_validate(one)], KNOWN, ["desk"])


TROUBLES: Sequence[Callable[[Storm], Awaitable[None]]] = (
    Storm.lossy,
    Storm.severed,
    Storm.paused,
    Storm.killed,
    Storm.stopped,
    Storm.restarted,
    Storm.failed_over,
    Storm.scripts_flushed,
    Storm.full,
    Storm.read_only,
    Storm.group_lost,
    Storm.clocks_stepped,
    Storm.disk_full,
    Storm.died_in_a_write,
    Storm.poisoned,
)
