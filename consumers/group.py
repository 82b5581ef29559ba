"""Streams go in; deliveries come out, through one handler, acknowledged only when that is done.

Read `batches` as the whole story: what this consumer was given before, what the dead left behind, what a person hands
out again, then what is new. The surprises: an acknowledgement travels in the same pipeline as the next read, so it
costs no trip of its own; a handler may take as long as it wants, since what it has is kept from the others meanwhile;
and what was handed out too often by the server's own count is parked with the reason (`blame.py`), and never stops the
others.

No handler is ended for being slow, only named every minute: what makes ours wait is a disk or a server, and a limit
would count against the entry what is theirs. After a stop it has `FINISH_S`; then what is in hand is handed back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import DataError, OutOfMemoryError, ReadOnlyError, RedisError

from consumers.blame import Blame, original, suspects_turn
from consumers.clock import monotonic_s
from consumers.hand import Hand
from consumers.lease import Lease
from consumers.place import Place, order
from poller.contract import STREAMS, Entry, Keys, entry_in

BATCH = 500
BLOCK_MS = 2_000
MAX_HANDED_OUT = 8
"""An entry that was handed out so often and never acknowledged is the entry's fault, not the workers'."""

SUSPECT = 2
"""Handed out so often without an acknowledgement, an entry comes alone from then on."""

LEASE_S = 10.0
"""How long an active member that vanished keeps the others waiting; it is renewed at a third of this."""

MIN_IDLE_MS = 60_000
"""Where many members share a group, one that was silent for so long is taken for dead."""

FINISH_S = 4.0
"""How long a handler may go on after a stop: with what follows, less than the ten seconds a command has."""

HAND_BACK_S = 1.0
LOOK_AFTER_S = 0.02
RETRY_S = 0.5
SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Delivery:
    """One entry as handed to a consumer. `entry` is None where the fields are not an entry of ours.

    `redriven` entries were parked and are handed out again: later ones were handled before them.
    """

    tr: str
    stream_id: str
    fields: dict[str, str]
    entry: Entry | None
    redriven: bool = False


Batch = list[Delivery]
Handler = Callable[[Batch], Awaitable[None]]


class LeaseLost(Exception):
    """Another member of the group is active now: what is in hand is its to do."""


class NotTheEntry(Exception):
    """A handler failed, and no entry is to blame: waited out and handed out again, never counted."""


class Membership:
    """One consumer's part in a group on the stream of one TR.

    `name` is the consumer's and stays the same over restarts, so that it finds what it was given. With `alone`, the
    group has one active member at a time, by lease: what order matters to has to be done by one.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        tr: str,
        group: str,
        name: str,
        *,
        alone: bool = True,
        part: str = "changes",
        joined: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`part` is the stream to read: a TR's `changes`, or the `alerts` that were decided on it.

        `joined` is called at the start and after every lost connection, before anything is handed out.

        Raises ValueError where the name of the group is one for another part, see `part_of`.
        """
        if part != part_of(group):
            raise ValueError(
                f"a group called {group} reads {part_of(group)}, not {part}, since the name alone tells its keys from "
                f"those of other groups: call it {part}-{group}"
            )
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self.tr, self.group, self.name = tr, group, name
        keys = Keys(prefix)
        self._stream = keys.of(tr, part)
        self._place = Place(redis, keys, tr, self._stream, group, name)
        self._blame = Blame(redis, keys, tr, self._stream, group)
        self._lease = Lease(redis, keys.of(tr, "active", group), name)
        self._hand = Hand(redis, tr, self._stream, group, name)
        self._alone, self._joined = alone, joined
        self._asked = True
        """Whether somebody may have asked for parked entries."""
        self._suspect: tuple[str, int] | None = None
        """The entry that is in hand alone, and how often it had been handed out before."""
        self._redriving = ""
        """Where the entry is parked whose order we took off the list, until that is carried out or asked for again."""
        self._look_at_s = 0.0
        """When to look again for what the dead left."""
        self._trouble: Exception | None = None
        """What is waited out, since `_trouble_since_s`."""
        self._trouble_since_s = 0.0
        self._log = structlog.get_logger("group").bind(tr=tr, group=group)

    async def consume(self, handle: Handler, stop: asyncio.Event) -> None:
        """Hand every batch to the handler until `stop`. Trouble is waited out, and nothing is skipped by it.

        After `stop`, what is in hand is finished within `FINISH_S`, or handed back.
        """
        ending = asyncio.timeout(None)
        told = asyncio.create_task(_end_after(stop, ending))
        try:
            async with ending:
                await self._consume(handle, stop)
        except TimeoutError:
            if not ending.expired():
                raise
            self._log.warning(
                "entries.handed_back", why=f"what was in hand did not end within {FINISH_S:g} s of the stop"
            )
        finally:
            told.cancel()
            await self._let_go()

    async def _consume(self, handle: Handler, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                async with aclosing(self.batches(stop)) as batches:
                    async for batch in batches:
                        await self._hand_over(batch, handle)
                        self._well()
            except _HandlerFailed:  # handed out again, one by one, and parked when it keeps failing
                self._well()
            except (RedisError, OSError, LeaseLost, NotTheEntry) as error:
                await self._in_trouble(error)
            await _wait(stop, RETRY_S if self._trouble else 0.0)

    async def _in_trouble(self, error: Exception) -> None:
        """Say it when it begins. A server that is a replica by now may have a successor at the same address."""
        if self._trouble is None:
            self._log.warning("group.waiting", error=str(error))
            self._trouble, self._trouble_since_s = error, monotonic_s()
        if isinstance(error, ReadOnlyError):  # open connections would lead to the old one for ever
            with suppress(RedisError, OSError):
                await self._redis.connection_pool.disconnect(inuse_connections=False)

    def _well(self) -> None:
        """A batch is done, or what is new was read: whatever was waited out is over. Said where it was trouble."""
        if self._trouble is not None and not isinstance(self._trouble, LeaseLost):
            self._log.info("group.recovered", after_s=round(monotonic_s() - self._trouble_since_s, 1))
        self._trouble = None

    async def _hand_over(self, batch: Batch, handle: Handler) -> None:
        """Let the handler do it; where it fails, write down against whom that counts.

        Raises _HandlerFailed where the entries may be to blame, LeaseLost where another is active by now, and else what
        the handler raised.
        """
        ids = [one.stream_id for one in batch if not one.redriven]
        try:
            with self._hand.holding(ids):
                await handle(batch)
            await self._keep_lease()
        except Exception as error:
            blameless = isinstance(error, (RedisError, OSError, LeaseLost, NotTheEntry))
            if blameless and not isinstance(error, DataError):  # which is a bad value, not a bad server
                await self._take_back(batch)
                raise
            self._log.exception("handler.failed")
            await self._count(batch, error)
            raise _HandlerFailed from error
        except asyncio.CancelledError:
            await self._take_back(batch)
            raise

    async def _take_back(self, batch: Batch) -> None:
        """Count a hand-out against nobody; what was asked for again stays asked for."""
        with suppress(RedisError, OSError):  # a time-out is an OSError as well
            async with asyncio.timeout(HAND_BACK_S):
                if batch[0].redriven:
                    await self._ask_again()
                elif self._suspect is not None:
                    entry_id, before = self._suspect
                    await self._blame.nobody([entry_id], before)
                else:
                    await self._blame.nobody([one.stream_id for one in batch], SUSPECT - 1)

    async def _count(self, batch: Batch, error: Exception) -> None:
        if batch[0].redriven:
            await self._blame.again(self._redriving, batch[0].stream_id, error)
            self._redriving = ""
        elif len(batch) == 1:
            await self._blame.one(batch[0].stream_id, error)

    async def batches(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """Entries to handle, never empty. Asking for the next batch says that the last one is done."""
        await self._ask_again()
        await self._join(stop)
        if stop.is_set():
            return  # whatever is pending may be another's, who is at work
        async with self._holding_on():
            if self._joined is not None:
                await self._joined()
            async with aclosing(self._backlog(stop)) as backlog:
                async for batch in backlog:
                    yield batch
            async with aclosing(self._newer(stop)) as newer:
                async for batch in newer:
                    yield batch

    async def _newer(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """What is new; between that, what a person asked for again, and what others have left behind."""
        done: Batch = []
        while not stop.is_set():
            await self._keep_lease()
            if self._asked:
                await self._acknowledge(done)
                done = []
                async with aclosing(self._asked_for(stop)) as again:
                    async for parked in again:
                        yield parked
            batch, done = await self._next(done), []
            self._well()
            if stop.is_set():
                return  # what was read waits for the next start
            await self._keep_lease()  # the answer may have come late
            if batch:
                yield batch
                done = batch
            if not batch or monotonic_s() >= self._look_at_s:  # somebody may have died, in a busy hour as well
                await self._acknowledge(done)
                done = []
                async with aclosing(self._backlog(stop)) as backlog:
                    async for late in backlog:
                        yield late
        await self._acknowledge(done)

    async def _backlog(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """What this consumer was given and never acknowledged, the dead's included, in order.

        What was handed out once comes in batches, since the batch never reached a handler's end; what was handed out
        more often comes alone, so that only the entry that fails is counted up.
        """
        self._look_at_s = monotonic_s() + MIN_IDLE_MS / 1000
        await self._place.inherit(0 if self._alone else MIN_IDLE_MS, alone=self._alone)
        while not stop.is_set():
            await self._keep_lease()
            pending = await self._pending(BATCH)
            if not pending:
                return
            handed_out = pending[0]["times_delivered"]
            if handed_out >= MAX_HANDED_OUT:
                await self._blame.set_aside(pending[0]["message_id"], handed_out)
            elif handed_out >= SUSPECT:
                async with suspects_turn(), aclosing(self._alone_in_hand(stop)) as suspect:
                    async for batch in suspect:
                        yield batch
            else:
                some = next((n for n, one in enumerate(pending) if one["times_delivered"] >= SUSPECT), len(pending))
                batch, gone = await self._again(some)
                if batch:
                    yield batch
                await self._acknowledge(batch, gone)

    async def _alone_in_hand(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """The oldest entry of the backlog, if it is a suspect still: the turn may have been long in coming."""
        await self._keep_lease()
        pending = await self._pending(1)
        if stop.is_set() or not pending or not SUSPECT <= pending[0]["times_delivered"] < MAX_HANDED_OUT:
            return
        batch, gone = await self._again(1)
        if batch:
            self._suspect = batch[0].stream_id, pending[0]["times_delivered"]
            try:
                yield batch
            finally:
                self._suspect = None
        await self._acknowledge(batch, gone)

    async def _pending(self, count: int) -> list[dict[str, Any]]:
        """What this consumer was given and has not acknowledged, oldest first."""
        found: list[dict[str, Any]] = await self._redis.xpending_range(
            self._stream, self.group, "-", "+", count, self.name
        )
        return found

    async def _again(self, count: int) -> tuple[Batch, list[str]]:
        """Entries of the backlog, oldest first, and the ids of the trimmed ones; the server counts each."""
        read = await self._redis.xreadgroup(self.group, self.name, {self._stream: "0"}, count=count)
        return self._deliveries(read), [entry_id for entry_id, fields in _entries(read) if not fields]

    async def _asked_for(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """Parked entries that a person wants handed out again, as they were, one by one.

        Each is taken off the list first, so that one which kills the process does so once: it is still parked. Where
        the server goes away meanwhile, it is put back: at worst it is handled twice.
        """
        redrive, parked = self._blame.redrive, self._blame.parked
        await self._ask_again()
        while not stop.is_set():
            await self._keep_lease()
            parked_at = await self._redis.lindex(redrive, 0)
            if parked_at is None:
                self._asked = False
                return
            found = await self._redis.xrange(parked, parked_at, parked_at)
            entry_id = found[0][1].get("parked_id") if found else None
            if entry_id is None:  # somebody dropped it, or put there what is not ours
                await self._redis.lrem(redrive, 1, parked_at)
                continue
            async with suspects_turn():
                if stop.is_set():
                    return
                self._redriving, own = parked_at, original(found[0][1])  # before: the answer may be lost
                if not await self._redis.lrem(redrive, 1, parked_at):  # another member was faster
                    self._redriving = ""
                    continue
                yield [Delivery(self.tr, entry_id, own, entry_in(own), redriven=True)]
            await self._redis.xdel(parked, parked_at)
            self._redriving = ""
            self._log.info("entry.redriven", entry=entry_id)

    async def _ask_again(self) -> None:
        """Put an order back that was taken off the list and not carried out; a full server is asked later again."""
        if self._redriving:
            with suppress(OutOfMemoryError):
                if self._redriving not in await self._redis.lrange(self._blame.redrive, 0, -1):
                    await self._redis.lpush(self._blame.redrive, self._redriving)
                self._redriving = ""

    async def _next(self, done: Batch) -> Batch:
        """Acknowledge what is done and read what is new, in one trip.

        Nothing comes back where something older is still in somebody's hands: the read of a member that was replaced
        may reach the server late and take entries. Then the backlog has both, and gives them out in order.
        """
        pipeline = self._redis.pipeline(transaction=False)
        if done:
            pipeline.eval(*self._place.moving_on(_ids(done)))
        pipeline.xreadgroup(self.group, self.name, {self._stream: ">"}, count=BATCH, block=BLOCK_MS)
        pipeline.xpending_range(self._stream, self.group, "-", "+", 1)
        pipeline.exists(self._blame.redrive)
        *_, read, oldest, asked = await pipeline.execute()
        self._asked = bool(asked or self._redriving)
        batch = self._deliveries(read)
        older = self._alone and batch and oldest and order(oldest[0]["message_id"]) < order(batch[0].stream_id)
        return [] if older else batch

    async def _acknowledge(self, done: Batch, gone: list[str] | None = None) -> None:
        self._place.lost(gone or [])
        await self._place.move_on(_ids(done) | dict.fromkeys(gone or [], ""))

    async def _join(self, stop: asyncio.Event) -> None:
        """Wait for the lease where there is one, and see that the group exists where it left off."""
        while self._alone and not await self._take_lease():
            left_s = await self._lease.left_s()  # it may end sooner than the next look would come
            self._well()
            await _wait(stop, min(LEASE_S / 3, left_s + LOOK_AFTER_S))
            if stop.is_set():
                return
        await self._place.make()

    async def _take_lease(self) -> bool:
        return await self._lease.take(LEASE_S)

    async def _keep_lease(self) -> None:
        """See that the lease is ours still. Raises LeaseLost."""
        if self._alone and (self._lease.lost or (not self._lease.sure() and not await self._take_lease())):
            raise LeaseLost(f"another member of {self.group} is active on {self.tr}")

    @asynccontextmanager
    async def _holding_on(self) -> AsyncIterator[None]:
        """Keep the lease and what is in hand, however long a handler takes, or another's suspect its turn."""
        over = asyncio.Event()
        keeping = asyncio.create_task(self._keep_all(over))
        try:
            yield
        finally:
            over.set()
            await asyncio.wait({keeping}, timeout=HAND_BACK_S)
            keeping.cancel()

    async def _keep_all(self, over: asyncio.Event) -> None:
        while not await _wait(over, LEASE_S / 3):
            self._hand.name_if_slow()
            with suppress(RedisError, OSError):  # the loop beside this one says so; no handler is ended for it
                if not self._alone:
                    await self._hand.keep()
                elif not await self._take_lease():
                    return  # the handler ends, and is not acknowledged

    async def _let_go(self) -> None:
        """Let others follow at once, who would else wait for the lease, or for a minute of silence."""
        with suppress(RedisError, OSError):
            async with asyncio.timeout(HAND_BACK_S):
                await (self._lease.let_go() if self._alone else self._hand.give_back(MIN_IDLE_MS))

    def _deliveries(self, read: Any) -> Batch:
        return [Delivery(self.tr, entry_id, fields, entry_in(fields)) for entry_id, fields in _entries(read) if fields]


def part_of(group: str) -> str:
    """The stream of a TR that a group of this name reads.

    A group's keys (lease, position, what failed, what is parked) are named by the group alone; were there one of the
    same name on each of two streams, they would share them, and lose entries.

    >>> part_of("archive"), part_of("send"), part_of("alerts-desk")
    ('changes', 'alerts', 'alerts')
    """
    if group == "send":
        return "alerts"
    return next((part for part in STREAMS if group.startswith(f"{part}-")), "changes")


class _HandlerFailed(Exception):
    """The handler failed with these entries in hand, and that has been written down."""


def _ids(batch: Batch) -> dict[str, str]:
    """The entries by their ids in the stream, with the ids they have of themselves."""
    return {delivery.stream_id: delivery.fields.get("id", "") for delivery in batch}


def _entries(read: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries in the answer to a read of one stream, whichever protocol shaped it."""
    streams = read.items() if isinstance(read, dict) else read or []
    return [entry for _, entries in streams for entry in entries]


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, for so long at most; whether it came."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


async def _end_after(stop: asyncio.Event, ending: asyncio.Timeout) -> None:
    await stop.wait()
    ending.reschedule(asyncio.get_running_loop().time() + FINISH_S)
