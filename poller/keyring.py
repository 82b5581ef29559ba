"""A plan and the brokers of several app keys go in; each poll is asked under a key that works, or held back, comes out.

It stands where a single Broker would, and adds what one request cannot know: whose turn it is to ask, that a report or
the whole broker is in trouble, and that one probe is enough to see when that is over. The surprise: a refused key ends
nothing. Its targets go to the other keys, and without any everybody waits for the next try.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType

import structlog

from poller.broker import Answer, Broker, BrokerCounts, Enough, Heard, to_the_end
from poller.clock import Clock
from poller.contract import ONLY_KEY
from poller.errors import BrokerError, GiveUp, NotAsked, NotWhole, TryLater
from poller.gate import AT_ONCE, Deadline
from poller.grid import Job
from poller.outages import Leave, Outages
from poller.routes import Routes
from poller.trouble import Window, answered
from poller.trs.base import Target


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
        self._brokers, self._clock, self._patient = dict(brokers), clock, patient
        rng = rng or random.Random()  # noqa: S311 -- spreads probes, guards nothing
        self._outages = Outages(brokers, clock, windows, rng, patient=patient)
        self._routes = Routes(brokers)
        self._probe_over = asyncio.Event()
        self._log = structlog.get_logger("poller")
        self._stack = AsyncExitStack()
        self.on_reload: Callable[[], None] = lambda: None
        self.may_send: Callable[[], bool] = lambda: True
        self._first, *others = self._brokers.values()
        for broker in self._brokers.values():
            broker.may_send = self._may_send
            broker.check = self._outages.check_window
            broker.hold_tokens = lambda: self._outages.in_maintenance
        for broker in others:
            broker.walks = self._first.walks  # a walk's number never repeats

    def plan(self, jobs: Sequence[Job]) -> None:
        """Spread these jobs over the keys."""
        self._outages.plan(jobs)
        self._routes.plan(jobs, self._outages.working)

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
            broker, asked = self._brokers[leave.name], False
            pairs_read = broker.pairs_read
            try:
                answer = await broker.fetch(target, enough, deadline=deadline)
                asked = True
                self._succeeded(leave)
            except BrokerError as error:
                asked = not isinstance(error, NotAsked)
                if asked and self._failed(leave, error, replaced=pairs_read != broker.pairs_read):
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
            self._outages.try_soon(name)
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
            self._outages.check_window()
            now_s = self._clock.monotonic_s()
            name = self._name_for(target, now_s)
            leave = self._outages.leave(name, target, now_s)
            if leave is not None:
                if self._outages.tries_key(leave) and self._brokers[name].read_keys():
                    self._log.info("key.replaced", key=name)
                return leave
            await self._probe_over.wait()

    def _name_for(self, target: Target, now_s: float) -> str:
        return self._routes.name_for(target, lambda name: self._outages.key_wait_s(name, now_s))

    def _end(self, leave: Leave, *, asked: bool) -> None:
        self._outages.over(leave, asked=asked)
        if leave.probes:
            self._probe_over.set()
            self._probe_over = asyncio.Event()

    # --- what came of it

    def _succeeded(self, leave: Leave) -> None:
        if self._outages.succeeded(leave):
            self._routes.stand_in(self._outages.working)

    def _failed(self, leave: Leave, error: BrokerError, *, replaced: bool) -> bool:
        """Learn from a failure. Whether to ask again, with another key.

        A key that was `replaced` while it was being refused is not held for what its predecessor did.
        """
        if answered(error):
            self._outages.broker_spoke()
        if isinstance(error, GiveUp) and error.scope == "key":
            if not replaced and self._outages.key_refused(leave, error):
                self._routes.stand_in(self._outages.working)
            return True
        if not isinstance(error, TryLater):
            self._outages.report_is_well(leave)  # a refusal of this target or TR, by a broker that is well
        elif not error.refused and not isinstance(error, NotWhole):
            self._outages.failed(leave, error)
        return False

    # --- for `status`

    def states(self) -> dict[str, str]:
        """How each key is, and the broker as a whole under `*`: a name of `P:keys` -> its JSON. Never a key itself."""
        return self._outages.states()

    def breakers(self, code: str) -> str:
        """The open breakers of a TR as JSON, empty where there is none."""
        return self._outages.breakers(code)


def ring_around(broker: Broker | KeyRing, clock: Clock, rng: random.Random) -> KeyRing:
    """A broker as a ring of one key, where it is none yet."""
    return broker if isinstance(broker, KeyRing) else KeyRing({ONLY_KEY: broker}, clock, rng=rng)
