"""One target is asked once: what is known of it, the broker's answer, the decision, the commit.

Read `Watched.poll` as a sentence. The surprise: what we know of a target stays in memory between polls, and is loaded
again whenever a commit may or may not have happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import structlog
from redis.exceptions import RedisError, ResponseError

from poller.broker import Answer, Broker
from poller.clock import Clock
from poller.commit import SHORT_MISS, Commit, Known, Seen, decide, gap_since, is_unchanged, iso, unchanged
from poller.contract import GapReason, dumps, loads
from poller.errors import NotWhole
from poller.findings import day_contradiction
from poller.gate import Deadline
from poller.grid import Job, Timing
from poller.keyring import KeyRing
from poller.quarantine import Quarantine, told
from poller.rows import Unreadable, reaches_back, read_answer
from poller.store import Store, StoreDown
from poller.suspects import Standing
from poller.trs.base import Append


@dataclass(frozen=True)
class Desk:
    """What every poll works with."""

    broker: Broker | KeyRing
    store: Store
    timing: Timing
    clock: Clock
    quarantine: Quarantine

    def now_ms(self) -> int:
        """The present in milliseconds since 1970."""
        return int(self.clock.now().timestamp() * 1000)


class Watched:
    """One target and where it stands in this process."""

    def __init__(self, job: Job, desk: Desk) -> None:
        self.job, self.target, self._desk = job, job.target, desk
        self.market = job.target.moves.market
        self.known: Known | None = None
        self.epoch = 0
        """The epoch in which `known` was stored: in a later one the server may have another past."""
        self.failures = 0
        self.trouble: str | None = None
        self.gap_reason: GapReason = "stopped"
        self.finding, self.findings = "", 0
        self.missed_ticks = 0
        self._committed_version = 0
        self._rolled_back = False
        self._standing = Standing()
        self._log = structlog.get_logger("poller").bind(tr=job.target.tr.code, target=str(job.target))

    async def poll(self, due: datetime) -> tuple[Commit, int]:
        """Ask, decide, commit: what was written, and the TR's `seq` after it.

        Raises TryLater, NotWhole, SkipTarget, GiveUp and the errors of the store; nothing is written then, but for
        StoreDown, where only the next load can tell.
        """
        known = self.known
        if known is None or self.epoch != self._desk.store.epochs[self.target.tr.code]:
            known = await self.load()
        asked_at = self._desk.clock.now()
        answer = await self.ask(known, due)
        now = self._desk.clock.now()
        commit = self.decide(known, answer, (asked_at, now), self.epoch)
        following = iso(self._desk.timing.due(self.job, now))
        also = {"last_attempt": iso(now), "last_error": "", "gap": "", "next_due": following}
        self.missed_ticks += self._desk.timing.missed_ticks(self.job, due, now)
        also |= {"missed_ticks": str(self.missed_ticks), **self._contradiction(commit.known, now)}
        seq = await self._desk.store.commit(commit, also)
        self.known, self._rolled_back = commit.known, commit.known.rolled_back
        self._committed_version = commit.version
        self._tell(commit, known, seq)
        return commit, seq

    async def publish(self, commit: Commit) -> None:
        """Write what was decided between two polls. Raises the errors of the store."""
        await self._desk.store.commit(commit, {})
        self.known, self._committed_version = commit.known, commit.version

    async def load(self) -> Known:
        """What was last committed; if that is older than what we saw committed, an epoch begins and a reset follows."""
        # before the load: what is older is loaded once more. Who only looks leads nothing, in no epoch
        self.epoch = self._desk.store.epochs.get(self.target.tr.code, 0)
        known = await self._desk.store.load(self.target)
        if known.version < self._committed_version and not self._rolled_back:
            self._log.warning("store.rolled_back", had=self._committed_version, has=known.version)
            self.epoch = await self._desk.store.begin_epoch(self.target.tr, self._desk.now_ms())
            await self._mark_fork(f"version {self._committed_version}", f"version {known.version} of {self.target}")
            self._rolled_back = True
        self._committed_version = known.version
        self.known = replace(known, rolled_back=self._rolled_back)
        return self.known

    async def _mark_fork(self, had: str, has: str) -> None:
        """Write down for `status` that the server lost entries, once for all targets of a TR. Raises StoreDown.

        It is a note: a server that refuses it, for want of memory say, stops no poll.
        """
        store, tr = self._desk.store, self.target.tr.code
        forks, now = store.keys.of(tr, "forks"), iso(self._desk.clock.now())
        try:
            server = await store.redis.hget(store.keys.of(tr, "meta"), "server")
            marked = await store.redis.hget(forks, "poller")
            is_new = marked is None or loads(marked)["server"] != server
            if is_new or not server:  # which does not say who it is
                mark = dumps({"at": now, "server": server or "", "had": had, "has": has})
                await store.redis.hset(forks, "poller", mark)
        except (ResponseError, ValueError, KeyError) as error:
            self._log.warning("note.failed", error=str(error))
        except RedisError as error:
            raise StoreDown(f"the server does not answer: {error}") from error

    async def ask(self, known: Known, due: datetime) -> Answer:
        """The broker's whole answer; of a sliding window, the pages back to the newest row that we have of this day."""
        clock, newest = self._desk.clock, dict[str, str]()
        same_day = known.trading_day == self._desk.timing.timetable.trading_day_at(clock.now(), self.market)
        if same_day and known.revision == self.target.tr.revision and not known.rolled_back:
            for table in self.target.tr.tables:
                if isinstance(table, Append) and known.rows.get(table.name):
                    newest[table.name] = max(known.rows[table.name])
        enough = partial(reaches_back, self.target, newest)
        return await self._desk.broker.fetch(self.target, enough, deadline=self._deadline(due))

    def _deadline(self, due: datetime) -> Deadline:
        """The next tick after the one a poll is for. A poll off the grid is for the tick to come, and can wait."""
        tick = self.job.tick_of(due)
        tick_s = self._desk.clock.monotonic_s() + (tick - self._desk.clock.now()).total_seconds()
        return Deadline(tick_s + self.job.every_s, counts_from_s=tick_s)

    def decide(self, known: Known, answer: Answer, asked: tuple[datetime, datetime], epoch: int) -> Commit:
        """What an answer, asked for and complete at these moments, means for what we know.

        Raises NotWhole or SkipTarget.
        """
        timing, (asked_at, now) = self._desk.timing, asked
        session = timing.timetable.session_at(now, self.market)
        trading_day = timing.timetable.trading_day_at(now, self.market)
        day_turned = timing.timetable.trading_day_at(asked_at, self.market) != trading_day
        if day_turned or timing.before_opening(self.job, now):
            # yesterday's rows, or the new day's zeros: not compared, so the last good poll stays where it was
            return unchanged(self.target, known, known.last_good, epoch)
        gap = None
        if known.last_good is not None and known.revision:
            scheduled_polls = timing.scheduled_polls(self.job, known.last_good, now)
            gap = gap_since(known.last_good, now, scheduled_polls, self.gap_reason)
        if gap is None and is_unchanged(self.target, known, answer.digest, trading_day):
            return unchanged(self.target, known, now, epoch)
        try:
            reading = read_answer(self.target, answer.pages)
            for bad in reading.unreadable:
                self.put_aside(told(bad), answer.bodies, bad)
            if reading.saturated:
                self._log.warning("value.saturated", values=reading.saturated)
            seen = Seen(reading, answer.digest, now, trading_day, session, epoch, self.job.every_s, gap)
            return decide(self.target, known, seen)
        except NotWhole as error:
            error.bodies = answer.bodies
            raise

    def _contradiction(self, known: Known, now: datetime) -> dict[str, str]:
        """Where the broker's dates contradict the calendar: said once, counted, and kept for `status`."""
        finding = day_contradiction(self.target, known, self._desk.timing.timetable, now)
        if finding and not self.finding:
            self.findings += 1
            self._log.warning("calendar.contradicted", finding=finding)
        elif self.finding and not finding:
            self._log.info("calendar.confirmed")
        self.finding = finding
        return {"finding": finding, "findings": str(self.findings)}

    def put_aside(self, reason: str, bodies: Sequence[bytes], row: Unreadable | None = None) -> None:
        """Keep an answer for a person, and say so once per fault."""
        try:
            path = self._desk.quarantine.keep(self.target, self._desk.clock.now(), reason, bodies, row)
        except OSError as error:
            self._log.warning("quarantine.failed", error=str(error))
            return
        if path is not None:
            self._log.warning("answer.quarantined", reason=reason, file=str(path))

    def overdue_since(self, now: datetime) -> datetime | None:
        """The last good poll, if a gap would be declared now."""
        if self.known is None or self.known.last_good is None:
            return None
        scheduled_polls = self._desk.timing.scheduled_polls(self.job, self.known.last_good, now)
        return self.known.last_good if scheduled_polls > SHORT_MISS else None

    def _tell(self, commit: Commit, known: Known, seq: int) -> None:
        hold = commit.known.hold
        if hold is not None and known.hold != hold:
            self._log.warning("table.held", missing={table: len(keys) for table, keys in hold.missing.items()})
        if commit.drafts:
            self._log.info("change.published", label=self.target.label, entries=len(commit.drafts), seq=seq)
        published = [draft.subject for draft in commit.drafts]
        for turn in self._standing.turns(self.target, published, commit.suspect_rows, reset=commit.clear):
            where = {"table": turn.table, "guard": turn.guard}
            if turn.rows:
                self._log.warning("guard.violated", **where, rows=len(turn.rows), example=turn.rows[0])
            else:
                self._log.info("guard.held", **where)
