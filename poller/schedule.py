"""A plan goes in; polls happen, each target on its own grid, while this poller leads.

The surprises: every target is asked once at the start, whatever the hour; a tick that was missed is skipped; and a
poller that no longer leads sends nothing, since its successor spends the same budget. The plan may be replaced while
it runs: a target that stays in it notices nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from poller.expiry import Expiry
from poller.grid import Job
from poller.keyring import ring_around
from poller.lead import Leadership
from poller.notes import Notes
from poller.poll import Desk, Watched
from poller.sector_list import SectorNews
from poller.sectors import SectorList
from poller.store import StoreDown, StoreError, StoreFull, UnfitStore
from poller.telling import Telling
from poller.trs.base import TR, Target
from poller.turn import Turns
from poller.upkeep import Trimmer, Upkeep

STOP_S = 4.0
"""What is in flight may finish within this after a stop; a commit cut off later is whole or not there."""

TRIM_EVERY_S, TRIM_FULL_EVERY_S = 60.0, 5.0
"""A server that is full is trimmed more often: nothing can be written until it has room."""


def trs_of(jobs: Iterable[Job], first: Iterable[TR] = ()) -> tuple[TR, ...]:
    """The TRs of a plan, each once, after those that come `first`."""
    return tuple({tr.code: tr for tr in (*first, *(job.target.tr for job in jobs))}.values())


class Poller:
    """Polls the plan while it leads, and stands by while another does."""

    def __init__(self, jobs: Sequence[Job], desk: Desk, upkeep: Upkeep, rng: random.Random | None = None) -> None:
        rng = rng or random.Random()  # noqa: S311 -- spreads retries, guards nothing
        self.ring = ring_around(desk.broker, desk.clock, rng)
        desk = replace(desk, broker=self.ring)
        self._desk, self._store, self._clock = desk, desk.store, desk.clock
        self._plan = {job.target: job for job in jobs}
        self._watched = {job.target: Watched(job, desk) for job in jobs}
        self._running: dict[Target, asyncio.Event] = {}  # the loops that run, and what wakes each of them
        self._start: Callable[[Target], None] | None = None  # starts one more of them; None while nobody polls
        self._telling = Telling(self._watched.values())
        self._lead = Leadership(desk, trs_of(jobs), self._telling)
        self._notes = Notes(self._store, self._clock, self.ring)
        self._news = SectorNews()
        self._turns = Turns(desk, self._lead, self._telling, self._notes, self._news, rng)
        self._trimmer = Trimmer(self._store, self._lead.trs, jobs, upkeep, Expiry(self._store))
        self._news.plan(self._plan)
        self.ring.plan(jobs)
        self._log = structlog.get_logger("poller")
        self.stats = self._turns.stats
        self._lead.on_end = self.ring.on_reload = self._wake_everybody
        self.ring.may_send = self._lead.may_send

    @property
    def watched(self) -> Sequence[Watched]:
        """The targets of the plan, for those who look at how they fare."""
        return tuple(self._watched.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until `stop`. Raises UnfitStore where the store is not ours."""
        while not stop.is_set() and self._lead.fatal is None:
            if await self._lead.take(stop):
                await self._reign(stop)
        await self._lead.give_up()
        if self._lead.fatal is not None:
            raise self._lead.fatal

    async def replan(self, jobs: Sequence[Job]) -> None:
        """Poll by another plan from now on: new targets are asked at once, removed ones end after what is in flight.

        A target that stays goes on with what is known of it; a changed job is its own from its next turn on. Reports
        that left the plan are led as before, until a restart. Raises StoreDown or UnfitStore where a
        report that is new cannot be led; the old plan goes on then.
        """
        trs = trs_of(jobs, self._lead.trs)
        retake = self._start is not None and not await self._lead.take_also(trs[len(self._lead.trs) :])
        before, self._plan, self._lead.trs = self._plan, {job.target: job for job in jobs}, trs
        self._trimmer.plan(trs, jobs)
        self._news.plan(self._plan)
        self.ring.plan(jobs)
        for target, job in self._plan.items():
            if target not in self._watched:
                self._watched[target] = Watched(job, self._desk)
                if self._start is not None:
                    self._start(target)
            elif before.get(target) != job:
                self._wake(target)
        for target in before.keys() - self._plan.keys():
            self._wake(target)
        if retake:
            self._log.info("lead.renewed", why="a report that is new in the plan was led with a higher token before")
            self._lead.end()

    def hear_sectors(self, sectors: SectorList) -> None:
        """The list of sectors was read: the streams are told what differs, each by the next good poll of one target."""
        self._news.hear(sectors)

    async def _reign(self, stop: asyncio.Event) -> None:
        """Poll while we lead; afterwards what is in flight may finish for a few seconds.

        The loops end because the reign is over, not by cancelling them: a cancellation that came in mid-commit
        was seen to be swallowed (redis-py 8.1, Python 3.11), and that loop went on.
        """
        self._notes.forget()
        for watched in self._watched.values():
            watched.known = None  # another may have led meanwhile: looks that found nothing new leave no higher version
            if watched.gap_reason == "broker" and not watched.failures:
                watched.gap_reason = "stopped"  # nobody of this process looked until now
        async with asyncio.TaskGroup() as tasks:
            loops: set[asyncio.Task[None]] = set()

            def start(target: Target) -> None:
                self._running[target] = asyncio.Event()
                task = tasks.create_task(self._watch(self._watched[target]))
                loops.add(task)
                task.add_done_callback(loops.discard)

            for target in self._plan:
                start(target)
            self._start = start
            trimming = tasks.create_task(self._keep_trimmed())
            stopping = tasks.create_task(self._end_with(stop))
            await self._lead.keep()
            self._start = None
            self._lead.end()
            _, late = await asyncio.wait({*loops, trimming}, timeout=STOP_S)
            for task in (*late, stopping):
                task.cancel()

    async def _end_with(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._lead.end()

    def _wake_everybody(self) -> None:
        for woken in self._running.values():
            woken.set()

    def _wake(self, target: Target) -> None:
        """Let a target's loop look at the plan again; one that does not run leaves with its target."""
        if target in self._running:
            self._running[target].set()
        elif target not in self._plan:
            self._watched.pop(target, None)

    async def _watch(self, watched: Watched) -> None:
        """Ask one target until the reign is over, the target has left the plan, or asking has become pointless."""
        watched.job = self._plan.get(watched.target, watched.job)
        try:
            await self._ask_on_its_grid(watched)
        finally:
            del self._running[watched.target]
            if watched.target not in self._plan:
                self._watched.pop(watched.target, None)

    async def _next_turn(self, watched: Watched, due: datetime) -> datetime | None:
        """Wait for a turn; None where there is none any more. A job that was changed may bring it forward."""
        woken = self._running[watched.target]
        while await self._clock.wait(woken, (due - self._clock.now()).total_seconds()):
            woken.clear()
            if self._lead.over.is_set() or watched.target not in self._plan:
                return None
            watched.job = self._plan[watched.target]
            due = min(due, self._turns.due(watched))
        return due

    async def _ask_on_its_grid(self, watched: Watched) -> None:
        due: datetime | None = self._clock.now()
        while due is not None and (due := await self._next_turn(watched, due)) is not None:
            if watched.target.tr.code in self._turns.stopped:
                return
            if self._telling.store_trouble:  # an answer could not be written down; when it can, everybody is late
                due = self._turns.soon()
                continue
            if self._trimmer.pauses(watched.job):
                watched.gap_reason = "store"
                due = self._turns.due(watched)
                continue
            try:
                due = await self._turns.take(watched, due)
                await self._notes.states(self._lead.trs, self._turns.stopped)
            except UnfitStore as error:
                self._lead.end_for_good(error)
                return
            except StoreError as error:  # lost while dealing with another error
                self._telling.store_is_gone(error)
                due = self._turns.soon()
            except Exception:  # noqa: BLE001 -- one target's surprise never stops the others
                self._log.exception("poll.crashed", target=str(watched.target))
                self.stats.failed += 1
                watched.known = None
                due = self._turns.due(watched)

    async def _keep_trimmed(self) -> None:
        due_s = self._clock.monotonic_s()
        while not await self._clock.wait(self._lead.over, TRIM_FULL_EVERY_S):
            if self._desk.store.is_full or self._clock.monotonic_s() >= due_s:
                due_s = self._clock.monotonic_s() + TRIM_EVERY_S
                try:
                    await self._trimmer.trim(self._desk.now_ms())
                except (StoreDown, StoreFull) as error:
                    self._log.debug("trim.failed", error=str(error))
