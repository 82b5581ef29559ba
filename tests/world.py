"""A seed, a moment and a plan go in; a whole world in virtual time comes out: market, broker, server, pollers.

    world = World(seed=1, start=MONDAY_8, plan=[("ka20003", {"inds_cd": "001"}, 60)])
    world.run_until(MONDAY_16)
    world.entries("ka20003"), world.snapshot("ka20003?inds_cd=001"), world.ledger.served

The poller, its store and its client are the product's own; the server is a model (`model_store`), and the broker is the
simulator, reached without a socket. The surprise: a world is the same for the same seed, to the byte, so what was seen
once can be looked at again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.processors import format_exc_info
from structlog.testing import capture_logs

from poller.broker import Broker
from poller.budget import Limit
from poller.catalogue import CATALOGUE, tr_named
from poller.clock import Clock
from poller.contract import Entry, Keys, decode
from poller.gate import Gates
from poller.grid import Job, Timing
from poller.poll import Desk
from poller.quarantine import Quarantine
from poller.schedule import Poller
from poller.session import Calendar
from poller.simulator.clock import MarketClock
from poller.simulator.server import Simulator, SimulatorSettings
from poller.trs.base import Target
from poller.upkeep import Upkeep
from tests.inprocess import LATENCY_S, InProcess, MemoryLedger, Sender, Sent
from tests.model_store import ModelRedis, ModelServer, ModelStore, no_trouble
from tests.virtual import VirtualClock, VirtualLoop, run

PREFIX = "world"
KEEP_ALL = Upkeep(10 * 365 * 86_400, 10**15)
PRODUCT_LIMITS = {tr.code: Limit(4) for tr in CATALOGUE}

Plan = Iterable[tuple[str, Mapping[str, str], float]]
Scenario = Callable[["World"], Awaitable[None]]


@dataclass
class Away:
    """Who cannot be reached just now."""

    broker: bool = False


@dataclass(frozen=True)
class Issued:
    """One token the broker issued, and the one that stood in the server then."""

    at: datetime
    text: str
    stored: str | None


class Process:
    """One poller process, which may be stopped, killed and started again.

    `trouble` is the way to its server, and `clock` its own, which may be set to another time.
    """

    def __init__(self, world: World, number: int) -> None:
        self._world, self._number, self._starts = world, number, 0
        self._stop, self._running = asyncio.Event(), cast("asyncio.Task[None] | None", None)
        self.trouble: Callable[[str], None] = no_trouble
        self.clock = VirtualClock(world.clock.start, world._loop)
        self.redis: ModelRedis | None = None
        self.poller: Poller | None = None

    def _on_the_way(self, moment: str) -> None:
        self.trouble(moment)

    def start(self) -> None:
        """Start afresh: nothing is remembered but what the server holds."""
        self._starts += 1
        self._stop = asyncio.Event()
        self._running = asyncio.create_task(self._run(f"poller-{self._number}.{self._starts}"))

    async def stop(self) -> None:
        """Stop as on a SIGTERM, and return when it has ended. Raises what ended it otherwise."""
        self._stop.set()
        if self._running is not None:
            await self._running
        self._running = None

    async def kill(self) -> None:
        """End it wherever it is; its lease stays behind."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._running = None

    async def _run(self, nonce: str) -> None:
        world = self._world
        self.redis = redis = ModelRedis(world.server, self._on_the_way)
        async with world.broker(nonce, redis, world.limits, self.clock) as broker:
            desk = Desk(broker, ModelStore(redis, PREFIX, nonce), world.timing, self.clock, world.quarantine)
            self.poller = Poller(world.jobs, desk, world.upkeep, random.Random(f"{world.seed} {nonce}"))
            await self.poller.run(self._stop)


class World:
    """Everything there is. `limits` are those of the pollers' budget, `limit_per_s` is the broker's."""

    def __init__(
        self,
        *,
        start: datetime,
        plan: Plan,
        seed: int = 1,
        pollers: int = 1,
        sessions: Literal["market", "always"] = "market",
        calendar: Calendar | None = None,
        faults: float = 0.0,
        limits: Mapping[str, Limit] = PRODUCT_LIMITS,
        limit_per_s: int = 5,
        latency_s: tuple[float, float] = LATENCY_S,
        off_hours_s: float | None = None,
        upkeep: Upkeep = KEEP_ALL,
        mock: bool = False,
        kind: type[Simulator] = Simulator,
        server: type[ModelServer] = ModelServer,
    ) -> None:
        self.seed, self.limits, self.upkeep = seed, limits, upkeep
        self.jobs = [Job(tr_named(tr).target(values), every_s, 1, off_hours_s) for tr, values, every_s in plan]
        self.calendar = calendar or Calendar()
        self.timing = Timing(self.calendar, self.calendar if sessions == "market" else None)
        self._loop = VirtualLoop()
        self.clock = VirtualClock(start, self._loop)
        self.server = server(lambda: int(self.clock.now().timestamp() * 1000))
        self.ledger = MemoryLedger()
        self.quarantine = Quarantine(Path())
        self.away = Away()
        self._read: dict[str, list[Entry]] = {}
        self.logs: Sequence[MutableMapping[str, Any]] = []
        self.sent: list[Sent] = []
        self.issued: list[Issued] = []
        market_clock = MarketClock(start, start, calendar=self.calendar)
        tokens = random.Random(f"{seed} tokens")
        self.simulator = kind(
            SimulatorSettings(seed=seed, clock=market_clock, faults=faults, limit_per_s=limit_per_s, mock=mock),
            self.ledger,
            self.clock,
            token_text=lambda: self._token(f"{tokens.getrandbits(256):064x}"),
        )
        self.transport = InProcess(
            self.simulator,
            random.Random(f"{seed} latency"),
            latency_s=latency_s,
            away=lambda: self.away.broker,
        )
        self.processes = [Process(self, number) for number in range(1, pollers + 1)]

    # --- who asks

    def broker(self, sender: str, redis: ModelRedis, limits: Mapping[str, Limit], clock: Clock | None = None) -> Broker:
        """A way to the broker under the one app key, with a budget of its own; what it sends stands in `sent`."""
        return Broker(
            "http://broker",
            SecretStr("world-app-key"),
            SecretStr("world-secret-key"),
            gates=Gates(limits, clock or self.clock),
            redis=cast("Redis", redis),
            prefix=PREFIX,
            clock=clock or self.clock,
            transport=Sender(self.transport, lambda api_id: self._note(sender, api_id)),
        )

    def _note(self, sender: str, api_id: str) -> Sent:
        sent = Sent(sender, api_id, self.clock.now(), self.lease_left_s(sender))
        self.sent.append(sent)
        return sent

    def lease_left_s(self, nonce: str) -> float:
        """How long a poller still leads, in seconds; 0 if it does not."""
        holder, left_ms = self.server.lifetime(Keys(PREFIX).leader)
        return left_ms / 1000 if holder is not None and holder.partition(":")[2] == nonce else 0.0

    def _token(self, text: str) -> str:
        found = (value for key, value in self.server.keys.items() if key.startswith(f"{PREFIX}:token:"))
        stored = [value["token"] for value in found if isinstance(value, dict)]  # the other key there is the lock
        self.issued.append(Issued(self.clock.now(), text, stored[0] if stored else None))
        return text

    # --- running

    def run(self, scenario: Scenario) -> None:
        """Play a scenario to its end; a world has one. Pollers that still run then are stopped.

        Raises what the scenario or a poller raises.
        """
        state = random.getstate()
        random.seed(self.seed)  # the store spreads its retries by the common source
        try:
            with capture_logs([format_exc_info]) as self.logs, TemporaryDirectory() as folder:
                self.quarantine = Quarantine(Path(folder))
                run(self._play(scenario), self._loop)
        finally:
            random.setstate(state)

    def run_until(self, moment: datetime) -> None:
        """Start every poller, let them poll until a moment, stop them."""

        async def scenario(world: World) -> None:
            world.start()
            await world.until(moment)

        self.run(scenario)

    async def _play(self, scenario: Scenario) -> None:
        await scenario(self)
        await self.stop()

    def start(self) -> None:
        """Start every poller process."""
        for process in self.processes:
            process.start()

    async def stop(self) -> None:
        """Stop every poller process, one after the other."""
        for process in self.processes:
            await process.stop()

    async def until(self, moment: datetime) -> None:
        """Let time pass until a moment. Raises what ends a poller meanwhile."""
        await self.clock.until(moment)
        for process in self.processes:
            if process._running is not None and process._running.done():
                await process.stop()

    # --- looking

    @property
    def targets(self) -> list[Target]:
        """The targets of the plan."""
        return [job.target for job in self.jobs]

    def entries(self, tr: str) -> list[Entry]:
        """The whole stream of a TR, read once for as long as it does not grow."""
        raw = self.raw_entries(tr)
        if tr not in self._read or len(self._read[tr]) != len(raw):
            self._read[tr] = [decode(fields) for fields in raw]
        return self._read[tr]

    def raw_entries(self, tr: str) -> list[dict[str, str]]:
        """The same, as the texts that crossed the stream."""
        return self.server.entries(Keys(PREFIX).of(tr, "changes"))

    def snapshot(self, target: Target) -> dict[str, str]:
        """The snapshot hash of a target."""
        return dict(self.server.hash(Keys(PREFIX).of(target.tr.code, "snapshot", target.query)))

    def state(self, target: Target) -> dict[str, str]:
        """The state hash of a target."""
        return dict(self.server.hash(Keys(PREFIX).of(target.tr.code, "state", target.query)))

    @property
    def refusals(self) -> int:
        """How often the broker counted too many requests."""
        return self.simulator.refusals
