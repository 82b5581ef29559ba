"""A plan goes in; polls happen, each target on its own grid, while this poller leads.

The surprises: every target is asked once at the start, whatever the hour; a tick that was missed is skipped; and a
poller that no longer leads sends nothing, since its successor spends the same budget. The plan may be replaced while
it runs: a target that stays in it notices nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

import structlog

from poller.commit import iso
from poller.contract import EVERYTHING, dumps
from poller.errors import BrokerError, GiveUp, HeldBack, NotWhole, SkipTarget, TryLater
from poller.expiry import Expiry
from poller.grid import Job, backoff_s
from poller.keyring import ring_around
from poller.poll import Desk, Watched
from poller.sector_list import SectorNews, sector_commit
from poller.sectors import SectorList
from poller.store import LEASE_S, Fenced, Stale, StoreDown, StoreError, StoreFull, UnfitStore
from poller.trs.base import TR, Target
from poller.upkeep import Trimmer, Upkeep

STOP_S = 4.0
"""What is in flight may finish within this after a stop; a commit cut off later is whole or not there."""

GIVE_UP_LEAD_S = 2.0
"""A server that does not answer must not hold up a stop; the lease runs out by itself."""

TRIM_EVERY_S = 60.0
STORE_RETRY_S = 0.5
LEASE_MARGIN_S = 1.0
"""A request sent this shortly before the lease ends could arrive after it."""


@dataclass
class Stats:
    """What happened since the start, for summaries."""

    polls: int = 0
    failed: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    suspects: Counter[str] = field(default_factory=Counter)


def trs_of(jobs: Iterable[Job], first: Iterable[TR] = ()) -> tuple[TR, ...]:
    """The TRs of a plan, each once, after those that come `first`."""
    return tuple({tr.code: tr for tr in (*first, *(job.target.tr for job in jobs))}.values())


class Poller:
    """Polls the plan while it leads, and stands by while another does."""

    def __init__(self, jobs: Sequence[Job], desk: Desk, upkeep: Upkeep, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 -- spreads retries, guards nothing
        self.ring = ring_around(desk.broker, desk.clock, self._rng)
        desk = replace(desk, broker=self.ring)
        self._desk, self._store, self._clock = desk, desk.store, desk.clock
        self._plan = {job.target: job for job in jobs}
        self._watched = {job.target: Watched(job, desk) for job in jobs}
        self._running: dict[Target, asyncio.Event] = {}  # the loops that run, and what wakes each of them
        self._start: Callable[[Target], None] | None = None  # starts one more of them; None while nobody polls
        self._trs = trs_of(jobs)
        self._trimmer = Trimmer(desk.store, self._trs, jobs, upkeep, Expiry(desk.store))
        self._news = SectorNews()
        self._news.plan(self._plan)
        self.ring.plan(jobs)
        self._stopped: dict[str, str] = {}
        self._noted: dict[str, dict[str, str]] = {}
        self._resting: dict[tuple[str, str], date] = {}
        self._over = asyncio.Event()
        self._lead_until_s = 0.0
        self._fatal: UnfitStore | None = None
        self._store_trouble = False
        self._broker_trouble = False
        self._log = structlog.get_logger("poller")
        self.stats = Stats()
        self.ring.on_reload = self._wake_everybody
        self.ring.may_send = lambda: self._clock.monotonic_s() < self._lead_until_s - LEASE_MARGIN_S

    @property
    def watched(self) -> Sequence[Watched]:
        """The targets of the plan, for those who look at how they fare."""
        return tuple(self._watched.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until `stop`. Raises UnfitStore where the store is not ours."""
        while not stop.is_set() and self._fatal is None:
            if await self._take_lead(stop):
                await self._reign(stop)
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_LEAD_S):
                await self._store.give_up_lead()
        if self._fatal is not None:
            raise self._fatal

    async def replan(self, jobs: Sequence[Job]) -> None:
        """Poll by another plan from now on: new targets are asked at once, removed ones end after what is in flight.

        A target that stays goes on with what is known of it; a changed job is its own from its next turn on. Reports
        that left the plan are led and trimmed as before, until a restart. Raises StoreDown or UnfitStore where a
        report that is new cannot be led; the old plan goes on then.
        """
        trs = trs_of(jobs, self._trs)
        retake = self._start is not None and not await self._lead_also(trs[len(self._trs) :])
        before, self._plan, self._trs = self._plan, {job.target: job for job in jobs}, trs
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
            self._end_reign()

    async def _lead_also(self, trs: Sequence[TR]) -> bool:
        """Begin an epoch in reports that are new in the plan; whether our token is high enough for that."""
        for tr in trs:
            try:
                await self._store.begin_epoch(tr, self._desk.now_ms())
            except Fenced:
                return False
        return True

    def hear_sectors(self, sectors: SectorList) -> None:
        """The list of sectors was read: the streams are told what differs, each by the next good poll of one target."""
        self._news.hear(sectors)

    async def _take_lead(self, stop: asyncio.Event) -> bool:
        standby = False
        while not stop.is_set():
            asked_s, wait_s = self._clock.monotonic_s(), STORE_RETRY_S
            try:
                wait_s = await self._store.take_lead(self._trs, self._desk.now_ms())
                self._store_is_back()
            except (StoreDown, StoreFull, Fenced) as error:
                self._store_is_gone(error)
                await self._store.revive()
            if wait_s == 0:
                self._lead_until_s, self._noted = asked_s + LEASE_S, {}
                self._log.info("lead.taken", epochs=self._store.epochs)
                return True
            if not standby and not self._store_trouble:
                standby = True
                self._log.info("lead.awaited", why="another poller leads; this one follows when it stops")
            await self._clock.wait(stop, min(wait_s, LEASE_S / 3))
        return False

    async def _reign(self, stop: asyncio.Event) -> None:
        """Poll while we lead; afterwards what is in flight may finish for a few seconds.

        The loops end because the reign is over, not by cancelling them: a cancellation that came in mid-commit
        was seen to be swallowed (redis-py 8.1, Python 3.11), and that loop went on.
        """
        for watched in self._watched.values():
            watched.known = None  # another may have led meanwhile: looks that found nothing new leave no higher version
            if watched.gap_reason == "broker" and not watched.failures:
                watched.gap_reason = "stopped"  # nobody of this process looked until now
        self._over = asyncio.Event()
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
            await self._keep_lead()
            self._start = None
            self._end_reign()
            _, late = await asyncio.wait({*loops, trimming}, timeout=STOP_S)
            for task in (*late, stopping):
                task.cancel()

    async def _end_with(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end_reign()

    def _end_reign(self) -> None:
        self._over.set()
        self._wake_everybody()

    def _wake_everybody(self) -> None:
        for woken in self._running.values():
            woken.set()

    def _wake(self, target: Target) -> None:
        """Let a target's loop look at the plan again; one that does not run leaves with its target."""
        if target in self._running:
            self._running[target].set()
        elif target not in self._plan:
            self._watched.pop(target, None)

    async def _keep_lead(self) -> None:
        while not await self._clock.wait(self._over, STORE_RETRY_S if self._store_trouble else LEASE_S / 3):
            asked_s = self._clock.monotonic_s()
            try:
                if not await self._store.renew_lead():
                    self._log.warning("lead.lost", why="another poller leads now")
                    return
                self._lead_until_s = asked_s + LEASE_S
                self._store_is_back()
            except (StoreDown, StoreFull) as error:
                self._store_is_gone(error)
                await self._store.revive()
                if self._clock.monotonic_s() > self._lead_until_s:
                    return
            except UnfitStore as error:
                self._end(error)

    def _end(self, error: UnfitStore) -> None:
        """Nothing helps but a person: end the reign, and `run` with this error."""
        self._fatal = self._fatal or error
        self._end_reign()

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
            if self._over.is_set() or watched.target not in self._plan:
                return None
            watched.job = self._plan[watched.target]
            due = min(due, self._due(watched))
        return due

    async def _ask_on_its_grid(self, watched: Watched) -> None:
        due: datetime | None = self._clock.now()
        while due is not None and (due := await self._next_turn(watched, due)) is not None:
            if watched.target.tr.code in self._stopped:
                return
            if self._store_trouble:  # an answer could not be written down; when it can, everybody is late
                due = self._soon()
                continue
            if self._trimmer.pauses(watched.job):
                watched.gap_reason = "store"
                due = self._due(watched)
                continue
            self.stats.polls += 1
            try:
                due = await self._turn(watched, due)
                await self._note_states()
            except UnfitStore as error:
                self._end(error)
                return
            except StoreError as error:  # lost while dealing with another error
                self._store_is_gone(error)
                due = self._soon()
            except Exception:  # noqa: BLE001 -- one target's surprise never stops the others
                self._log.exception("poll.crashed", target=str(watched.target))
                self.stats.failed += 1
                watched.known = None
                due = self._due(watched)

    async def _turn(self, watched: Watched, due: datetime) -> datetime | None:
        """One poll and what follows from it: the next due time, or None to stop asking."""
        try:
            commit, _ = await watched.poll(due)
            await self._tell_sectors(watched)
        except TryLater as error:
            return await self._try_later(watched, error)
        except (SkipTarget, GiveUp) as error:
            await self._stop_asking(watched, error)
            return None
        except Stale as error:
            watched.known = None
            self._log.info("commit.stale", target=str(watched.target), expected=error.expected, stored=error.stored)
            return self._clock.now()
        except Fenced as error:
            watched.known = None
            return await self._fenced(watched, error)
        except (StoreDown, StoreFull) as error:
            watched.known, watched.gap_reason = None, "store"
            self.stats.failed += 1
            self._store_is_gone(error)
            return self._soon()
        self.stats.changes[watched.target.tr.code] += commit.changes
        self.stats.suspects.update(commit.suspects)
        self._recovered(watched)
        due = self._due(watched)
        self._tell_rest(watched, due)
        if commit.known.last_good and self._desk.timing.due(watched.job, commit.known.last_good) < due:
            watched.gap_reason = "store"  # the commit took past a tick: what was missed, the store is to blame for
        return due

    async def _tell_sectors(self, watched: Watched) -> None:
        """Publish what differs in the list of sectors, if this target has to and its answer was compared just now."""
        sectors, known, now = self._news.untold(watched.target), watched.known, self._clock.now()
        if sectors is None or known is None or self._desk.timing.before_opening(watched.job, now):
            return
        session = self._desk.timing.timetable.session_at(now, watched.market)
        commit = sector_commit(watched.target, known, sectors, session, watched.epoch)
        if commit is not None:
            await watched.publish(commit)
            self._log.info("sectors.told", target=str(watched.target), version=commit.version)
        self._news.told(watched.target)

    def _tell_rest(self, watched: Watched, due: datetime) -> None:
        """Say once per report when it is asked again and why, if that is not simply the next tick."""
        rests_until = self._desk.timing.rest(watched.job, self._clock.now(), due)
        code, moves = watched.target.tr.code, watched.target.moves
        if rests_until is None or self._resting.get((code, moves.label)) == rests_until:
            return
        self._resting[code, moves.label] = rests_until
        why = f"on trading days it moves {moves.label} (Korean time)"
        self._log.info("polling.rests", tr=code, next_due=iso(due), why=why)

    async def _try_later(self, watched: Watched, error: TryLater) -> datetime:
        """Note the trouble, put a bad answer aside, and come back after a pause or on the grid."""
        self.stats.failed += 1
        watched.gap_reason = "broker"
        if isinstance(error, HeldBack):  # told by whoever holds it back, and who knows until when
            pause_s = error.wait_s
        else:
            watched.failures += 1
            self._begin_trouble(watched, error)
            pause_s = max(error.wait_s, backoff_s(watched.failures, watched.job.every_s, self._rng))
        if isinstance(error, NotWhole):
            watched.put_aside(str(error), error.bodies)
        now = self._clock.now()
        again = now + timedelta(seconds=pause_s)
        due = again if again < self._due(watched) else self._desk.timing.due(watched.job, again)
        await self._note(watched, error, due)
        return due

    async def _stop_asking(self, watched: Watched, error: SkipTarget | GiveUp) -> None:
        whole_tr = isinstance(error, GiveUp) and error.scope == "tr"
        if whole_tr:
            self._stopped[watched.target.tr.code] = dumps({"since": iso(self._clock.now()), "why": str(error)})
        what = watched.target.tr.code if whole_tr else str(watched.target)
        self._log.error("poll.stopped", what=what, error=str(error))
        await self._note(watched, error, None)

    async def _note(self, watched: Watched, error: BrokerError, due: datetime | None) -> None:
        """Write a failed attempt into the state hash, where `status` reads it."""
        now = self._clock.now()
        since = watched.overdue_since(now)
        fields = {
            "last_attempt": iso(now),
            "last_error": str(error),
            "next_due": iso(due) if due else "",
            "gap": iso(since) if since else "",
        }
        try:
            await self._store.note(watched.target, fields)
        except (StoreDown, StoreFull, Fenced) as trouble:  # told by those who need the store, this is a note
            self._log.debug("note.failed", target=str(watched.target), error=str(trouble))

    async def _note_states(self) -> None:
        """Write down how keys and reports fare where that has changed, for `status` of other processes."""
        try:
            for tr in self._trs:
                states = {"breaker": self.ring.breakers(tr.code), "stopped": self._stopped.get(tr.code, "")}
                if self._noted.get(tr.code) != states:
                    self._noted[tr.code] = states
                    await self._store.note_tr(tr, states)
            keys = self.ring.states()
            if self._noted.get(EVERYTHING) != keys:
                self._noted[EVERYTHING] = keys
                await self._store.note_keys(keys)
        except (StoreDown, StoreFull, Fenced) as error:
            self._noted = {}
            self._log.debug("note.failed", error=str(error))

    async def _fenced(self, watched: Watched, error: Fenced) -> datetime | None:
        """The script refused us: another leads, the server is new or forgot us, or a task of ours was first."""
        if error.epoch in {0, self._store.epochs[watched.target.tr.code]}:
            if not await self._store.renew_lead():
                self._log.warning("lead.lost", why="another poller leads now")
                self._end_reign()
                return None
            try:
                await self._store.begin_epoch(watched.target.tr, self._desk.now_ms())
            except Fenced:
                # the lease was free again and is ours, but another has led meanwhile, with a higher token
                self._log.warning("lead.lost", why="another poller has led meanwhile")
                await self._store.give_up_lead()
                self._end_reign()
                return None
        return self._clock.now()

    def _begin_trouble(self, watched: Watched, error: TryLater) -> None:
        if error.everywhere and not self._broker_trouble:
            self._broker_trouble = True
            self._log.warning("broker.lost", error=str(error))
        elif not error.everywhere and watched.trouble is None:
            self._log.warning("poll.failed", target=str(watched.target), error=str(error))
        watched.trouble = None if error.everywhere else str(error)

    def _recovered(self, watched: Watched) -> None:
        watched.failures, watched.gap_reason = 0, "broker"  # from now on we are here: what is missed is slow answers
        if self._broker_trouble:
            self._broker_trouble = False
            self._log.info("broker.recovered")
        if watched.trouble is not None:
            watched.trouble = None
            self._log.info("poll.recovered", target=str(watched.target))

    def _store_is_gone(self, error: StoreError) -> None:
        if not self._store_trouble:
            self._store_trouble = True
            self._log.warning("store.lost", error=str(error))
        for watched in self._watched.values():
            watched.gap_reason = "store"

    def _store_is_back(self) -> None:
        if self._store_trouble:
            self._store_trouble = False
            self._log.info("store.recovered")

    async def _keep_trimmed(self) -> None:
        while not await self._clock.wait(self._over, TRIM_EVERY_S):
            try:
                await self._trimmer.trim(self._desk.now_ms())
            except (StoreDown, StoreFull) as error:
                self._log.debug("trim.failed", error=str(error))

    def _soon(self) -> datetime:
        return self._clock.now() + timedelta(seconds=STORE_RETRY_S)

    def _due(self, watched: Watched) -> datetime:
        return self._desk.timing.due(watched.job, self._clock.now())
