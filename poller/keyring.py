"""A plan and the brokers of several app keys go in; each poll is asked under a key that works, or held back, comes out.

It stands where a single Broker would, and adds what one request cannot know: whose turn it is to ask, that a report or
the whole broker is in trouble, and that one probe is enough to see when that is over. The surprise: a refused key ends
nothing. Its targets go to the other keys, and without any everybody waits for the next try.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType

import structlog

from poller.broker import Answer, Broker, BrokerCounts, Enough, Heard, to_the_end
from poller.clock import Clock
from poller.commit import iso
from poller.contract import EVERYTHING, ONLY_KEY, dumps
from poller.errors import REMEDY, BrokerError, GiveUp, HeldBack, NotAsked, NotWhole, TryLater
from poller.gate import AT_ONCE, Deadline
from poller.grid import Job
from poller.trouble import HELD_PROBE_S, MAINTENANCE_PROBE_S, Breaker, Latch, Maintenance, Window, answered
from poller.trs.base import Target

USUAL_EVERY_S = 60.0
"""For a target that stands in no plan."""

LOOK_AT_THE_KEY = "look at this app key in Kiwoom's portal"


def spread(jobs: Iterable[Job], key_names: Sequence[str]) -> dict[Target, str]:
    """Which key asks for which target: within a TR the neediest first, each to whoever has least of that TR so far.

    The same plan is spread the same way, in whatever order it stands; of equals, the key with the smallest load over
    all TRs comes first, then the one named first.
    """
    needs = {job.target: job.target.pages_at(job.every_s) / job.every_s for job in jobs}
    load = {(code, name): 0.0 for code in {"", *(target.tr.code for target in needs)} for name in key_names}
    homes = {}
    for target, need in sorted(needs.items(), key=lambda item: (item[0].tr.code, -item[1], str(item[0]))):
        code = target.tr.code
        name = min(key_names, key=lambda one: (load[code, one], load["", one]))
        homes[target] = name
        load[code, name] += need
        load["", name] += need
    return homes


@dataclass(frozen=True)
class Leave:
    """Leave to ask: with which key, as it was read for the how manieth time, and as whose probe."""

    name: str
    pairs_read: int
    breaker: Breaker
    probes: tuple[Latch, ...]


class KeyRing:
    """One broker per app key, together a broker. Use as an async context manager.

    `windows` are the daily ones in which nothing is asked. Where it is not `patient` nothing else is held back: a
    person's question ends with the first error.
    """

    def __init__(
        self,
        brokers: Mapping[str, Broker],
        clock: Clock,
        *,
        windows: Sequence[Window] = (),
        patient: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        self._brokers, self._clock, self._windows, self._patient = dict(brokers), clock, tuple(windows), patient
        self._rng = rng or random.Random()  # noqa: S311 -- spreads probes, guards nothing
        self._held = {name: Latch() for name in brokers}
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._maintenance = Maintenance()
        self._window: Window | None = None
        self._window_told = ""
        self._well_since = dict.fromkeys([*brokers, EVERYTHING], clock.now())
        self._probe_over = asyncio.Event()
        self._log = structlog.get_logger("poller")
        self._stack = AsyncExitStack()
        self.on_reload: Callable[[], None] = lambda: None
        self.may_send: Callable[[], bool] = lambda: True
        self._first, *others = self._brokers.values()
        for broker in self._brokers.values():
            broker.may_send = self._may_send
            broker.check = self._check_window
            broker.hold_tokens = lambda: self._maintenance.latch.is_shut
        for broker in others:
            broker.walks = self._first.walks  # a walk's number never repeats
        self.plan(())

    def plan(self, jobs: Sequence[Job]) -> None:
        """Spread these jobs over the keys."""
        self._jobs = tuple(jobs)
        self._homes = spread(jobs, list(self._brokers))
        self._every_s: dict[str, float] = {}
        for job in jobs:
            code = job.target.tr.code
            self._every_s[code] = min(job.every_s, self._every_s.get(code, math.inf))
        for (_, code), breaker in self._breakers.items():
            breaker.every_s = self._every_s.get(code, breaker.every_s)
        self._route()

    def _route(self) -> None:
        live = [name for name, latch in self._held.items() if not latch.is_shut]
        self._routes = spread(self._jobs, live) if live else {}

    async def __aenter__(self) -> KeyRing:
        for broker in self._brokers.values():
            await self._stack.enter_async_context(broker)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # --- asking

    async def fetch(self, target: Target, enough: Enough = to_the_end, *, deadline: Deadline = AT_ONCE) -> Answer:
        """The whole answer of a target, as `Broker.fetch`, asked with whichever key is to ask for it.

        Raises TryLater, NotWhole, SkipTarget or GiveUp; HeldBack where trouble that has been noticed is waited for.
        """
        if not self._patient:
            return await self._first.fetch(target, enough, deadline=deadline)
        while True:
            leave = await self._leave(target)
            asked = False
            try:
                answer = await self._brokers[leave.name].fetch(target, enough, deadline=deadline)
                asked = True
                self._succeeded(leave, target)
            except BrokerError as error:
                asked = not isinstance(error, NotAsked)
                if asked and self._failed(leave, target, error):
                    continue
                raise
            finally:
                self._end(leave, asked=asked)
            return answer

    async def sign_in(self) -> None:
        """Get a token for each key, to see that all are right. Raises TryLater or GiveUp, naming the key."""
        for name, broker in self._brokers.items():
            try:
                await broker.sign_in()
            except BrokerError as error:
                if len(self._brokers) > 1:
                    error.args = (f"app key {name}: {error}",)
                raise

    def reload_keys(self) -> None:
        """Read the keys' files again; a key that is held is tried at the next opportunity."""
        for name, broker in self._brokers.items():
            if broker.read_keys():
                self._log.info("key.replaced", key=name)
            self._held[name].probe_at_s = min(self._held[name].probe_at_s, self._clock.monotonic_s())
        self.on_reload()

    @property
    def counts(self) -> BrokerCounts:
        """What was asked and refused since the start, with all keys."""
        each = [broker.counts for broker in self._brokers.values()]
        return BrokerCounts(
            sum(counts.requests for counts in each),
            sum(counts.refusals for counts in each),
            sum(counts.tokens for counts in each),
        )

    @property
    def record(self) -> Callable[[Heard], None] | None:
        """Who is told every response."""
        return self._first.record

    @record.setter
    def record(self, tell: Callable[[Heard], None] | None) -> None:
        for broker in self._brokers.values():
            broker.record = tell

    # --- who may ask

    def _may_send(self) -> bool:
        return self.may_send()

    async def _leave(self, target: Target) -> Leave:
        """Wait until a probe in flight has shown how things are. Raises HeldBack where they are not well."""
        while True:
            self._check_window()
            now_s = self._clock.monotonic_s()
            name = self._name_for(target, now_s)
            breaker = self._breaker(name, target.tr.code)
            latches = {
                "the broker is in maintenance": self._maintenance.latch,
                f"no app key works, {name} is refused": self._held[name],
                f"{target.tr.code} failed {name}'s last requests": breaker.latch,
            }
            shut = next(((told, latch) for told, latch in latches.items() if latch.wait_s(now_s) > 0), None)
            if shut is None:
                return self._enter(name, breaker, latches.values())
            told, latch = shut
            wait_s = latch.wait_s(now_s)
            if wait_s < math.inf:
                everywhere = latch is not breaker.latch
                raise HeldBack(f"{target}: {told}: {latch.why}", wait_s=wait_s, everywhere=everywhere)
            await self._probe_over.wait()

    def _enter(self, name: str, breaker: Breaker, latches: Iterable[Latch]) -> Leave:
        probes = tuple(latch for latch in latches if latch.enter())
        broker = self._brokers[name]
        if self._held[name] in probes and broker.read_keys():
            self._log.info("key.replaced", key=name)
        return Leave(name, broker.pairs_read, breaker, probes)

    def _name_for(self, target: Target, now_s: float) -> str:
        """The key that asks: the target's own if it works or is to be tried again, else one that works."""
        home = self._homes.get(target) or next(iter(self._brokers))
        if self._held[home].wait_s(now_s) > 0:
            home = self._routes.get(target, home)
        if self._held[home].wait_s(now_s) > 0:
            return min(self._held, key=lambda name: self._held[name].wait_s(now_s))
        return home

    def _breaker(self, name: str, code: str) -> Breaker:
        if (name, code) not in self._breakers:
            self._breakers[name, code] = Breaker(self._every_s.get(code, USUAL_EVERY_S), self._rng)
        return self._breakers[name, code]

    def _check_window(self) -> None:
        now = self._clock.now()
        window = next((window for window in self._windows if window.left_s(now) > 0), None)
        if self._patient and window != self._window:
            if self._window is not None:
                self._well_since[EVERYTHING] = now
                self._log.info("maintenance.ended", window=str(self._window))
            if window is not None:
                why, until = f"the daily window {window} (Korean time)", now + timedelta(seconds=window.left_s(now))
                told = {"state": "maintenance", "since": iso(now), "why": why, "until": iso(until)}
                self._window_told = dumps(told)
                self._log.info("maintenance.began", why=why)
            self._window = window
        if window is not None:
            text = f"nothing is asked during the maintenance of {window} (Korean time, [kiwoom] maintenance)"
            raise HeldBack(text, wait_s=window.left_s(now), everywhere=True)

    # --- what came of it

    def _succeeded(self, leave: Leave, target: Target) -> None:
        self._maintenance_over()
        self._close(leave, target)
        if self._held[leave.name] in leave.probes and self._held[leave.name].open():
            self._well_since[leave.name] = self._clock.now()
            self._log.info("key.back", key=leave.name)
            self._route()

    def _failed(self, leave: Leave, target: Target, error: BrokerError) -> bool:
        """Learn from a failure. Whether to ask again, with another key."""
        if answered(error):
            self._maintenance_over()
        if isinstance(error, GiveUp) and error.scope == "key":
            self._hold(leave, error)
            return True
        if not isinstance(error, TryLater):
            self._close(leave, target)  # a refusal of this target or TR, by a broker that is well
        elif not error.refused and not isinstance(error, NotWhole):
            self._count(leave, target, error)
        return False

    def _hold(self, leave: Leave, error: GiveUp) -> None:
        """A key was refused: leave it alone, unless it was replaced while it was being refused."""
        if leave.pairs_read != self._brokers[leave.name].pairs_read:
            return
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        if self._held[leave.name].shut(now, str(error), now_s + HELD_PROBE_S):
            remedy = REMEDY.get(error.code or 0, LOOK_AT_THE_KEY)
            self._log.error("key.held", key=leave.name, error=str(error), remedy=remedy, tried_again_s=HELD_PROBE_S)
            self._route()

    def _count(self, leave: Leave, target: Target, error: TryLater) -> None:
        now, now_s, code, why = self._clock.now(), self._clock.monotonic_s(), target.tr.code, str(error)
        if error.maintenance and self._maintenance.suspected(code, self._every_s, now, now_s, why):
            self._log.warning("maintenance.began", why=why)
        if self._maintenance.latch.is_shut:
            return  # no report's own trouble
        probe = leave.breaker.latch in leave.probes
        if leave.breaker.failed(now, now_s, why, hint_s=error.wait_s, probe=probe):
            self._log.warning("breaker.opened", tr=code, key=leave.name, why=why)

    def _close(self, leave: Leave, target: Target) -> None:
        if leave.breaker.succeeded():
            self._log.info("breaker.closed", tr=target.tr.code, key=leave.name)

    def _maintenance_over(self) -> None:
        if self._maintenance.answered():
            self._well_since[EVERYTHING] = self._clock.now()
            self._log.info("maintenance.ended")
            for breaker in self._breakers.values():
                breaker.try_now(self._clock.monotonic_s())

    def _end(self, leave: Leave, *, asked: bool) -> None:
        """A request is over: a probe without success is not repeated soon, but one that never left is."""
        now_s = self._clock.monotonic_s()
        for latch in leave.probes:
            latch.over()
            if asked and latch.is_shut and latch is not leave.breaker.latch:
                held = latch is self._held[leave.name]
                latch.probe_at_s = now_s + (HELD_PROBE_S if held else MAINTENANCE_PROBE_S)
        if leave.probes:
            self._probe_over.set()
            self._probe_over = asyncio.Event()

    # --- for `status`

    def states(self) -> dict[str, str]:
        """How each key is, and the broker as a whole under `*`: a name of `P:keys` -> its JSON. Never a key itself."""
        found = {}
        for name, latch in self._held.items():
            found[name] = self._told(name, "held" if latch.is_shut else "live", latch)
        found[EVERYTHING] = self._told(EVERYTHING, "live", self._maintenance.latch)
        if self._maintenance.latch.is_shut:
            found[EVERYTHING] = self._told(EVERYTHING, "maintenance", self._maintenance.latch)
        elif self._window is not None:
            found[EVERYTHING] = self._window_told
        return found

    def _told(self, name: str, state: str, latch: Latch) -> str:
        since: datetime = latch.since or self._well_since[name]
        return dumps({"state": state, "since": iso(since), "why": latch.why})

    def breakers(self, code: str) -> str:
        """The open breakers of a TR as JSON, empty where there is none."""
        opened = [
            {"key": name, "since": iso(breaker.latch.since), "why": breaker.latch.why}
            for (name, tr), breaker in self._breakers.items()
            if tr == code and breaker.latch.since is not None
        ]
        return dumps(opened) if opened else ""


def ring_around(broker: Broker | KeyRing, clock: Clock, rng: random.Random) -> KeyRing:
    """A broker as a ring of one key, where it is none yet."""
    return broker if isinstance(broker, KeyRing) else KeyRing({ONLY_KEY: broker}, clock, rng=rng)
