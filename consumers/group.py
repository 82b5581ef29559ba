"""Streams go in; deliveries come out, through one handler, acknowledged only when that is done.

Read `batches` as the whole story: what this consumer was given before, what the dead left behind, what a person hands
out again, then what is new. The surprises: an acknowledgement travels in the same pipeline as the next read, so it
costs no trip of its own; what was handed out too often by the server's own count is parked with the reason, and never
stops the others.

Whom a failure is counted against, so that a healthy entry is never parked:

* What was handed out twice is a suspect and comes alone, and only what is handed out is counted: a bad entry does not
  count against its neighbours, and a process that dies between two entries counts against none.
* One suspect at a time is in hand in the whole process, all TRs and groups taken together: when it kills the process,
  no other suspect was in a handler.
* Where the server or a disk fails, the lease is lost, the task is cancelled or the handler raises `NotTheEntry`, the
  hand-out is taken back. Without that, a server that refuses writes for four seconds would park what is healthy.

What remains: a process that is killed from outside while its handler has a suspect in hand counts against that entry,
since it looks like an entry that kills. A handler therefore loads what it needs before, not in, its first call.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import structlog
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import DataError, RedisError, ResponseError

from consumers.clock import monotonic_s
from poller.contract import Entry, Keys, decode

BATCH = 500
BLOCK_MS = 2_000
MAX_HANDED_OUT = 8
"""An entry that was handed out so often and never acknowledged is the entry's fault, not the workers'."""

SUSPECT = 2
"""Handed out so often without an acknowledgement, an entry comes alone from then on."""

STACK_BYTES = 4_096
"""How much of a traceback is kept with a parked entry: its end, which names the error."""

MIN_IDLE_MS = 60_000
"""Where many members share a group, one that was silent for so long is taken for dead."""

GONE_MS = 86_400_000
LEASE_S = 10.0
TAKE_BACK_S = 1.0
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


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def _suspects_turn() -> asyncio.Lock:
    """Held while a suspect is in a handler of this process."""
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())


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
        """
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self.tr, self.group, self.name = tr, group, name
        keys = Keys(prefix)
        self._stream, self._parked = keys.of(tr, part), keys.of(tr, "parked", group)
        self._position, self._active = keys.of(tr, "position", group), keys.of(tr, "active", group)
        self._failing, self._redrive = keys.of(tr, "failing", group), keys.of(tr, "redrive", group)
        self._asked = True
        """Whether somebody may have asked for parked entries."""
        self._suspect: tuple[str, int] | None = None
        """The entry that is in hand alone, and how often it had been handed out before."""
        self._redriving = ""
        """Where the entry is parked that is in hand again."""
        self._alone, self._joined = alone, joined
        self._holder = f"{name}.{secrets.token_hex(4)}"
        self._renew_at_s = 0.0
        self._hold = redis.register_script((SCRIPTS / "hold.lua").read_text("utf-8"))
        self._park, self._forgive, self._repark, self._dismiss = (
            redis.register_script((SCRIPTS / f"{name}.lua").read_text("utf-8"))
            for name in ("park", "forgive", "repark", "dismiss")
        )
        self._log = structlog.get_logger("group").bind(tr=tr, group=group)

    async def consume(self, handle: Handler, stop: asyncio.Event) -> None:
        """Hand every batch to the handler until `stop`. Trouble is waited out, and nothing is skipped by it."""
        trouble = False
        while not stop.is_set():
            try:
                async with aclosing(self.batches(stop)) as batches:
                    async for batch in batches:
                        await self._hand_over(batch, handle)
                        trouble = False
            except _HandlerFailed:  # handed out again, one by one, and parked when it keeps failing
                trouble = False
            except (RedisError, OSError, LeaseLost, NotTheEntry) as error:
                if not trouble:
                    self._log.warning("group.waiting", error=str(error))
                trouble = True
            await _wait(stop, RETRY_S if trouble else 0.0)
        await self._let_go()

    async def _hand_over(self, batch: Batch, handle: Handler) -> None:
        """Let the handler do it; where it fails, write down against whom that counts.

        Raises _HandlerFailed where the entries may be to blame, and else what the handler raised.
        """
        try:
            await handle(batch)
        except Exception as error:
            blameless = isinstance(error, (RedisError, OSError, LeaseLost, NotTheEntry))
            if blameless and not isinstance(error, DataError):  # which is a bad value, not a bad server
                await self._take_back(batch)
                raise
            self._log.exception("handler.failed")
            await self._blame(batch, error)
            raise _HandlerFailed from error
        except asyncio.CancelledError:
            await self._take_back(batch)
            raise

    async def _take_back(self, batch: Batch) -> None:
        """Count a hand-out as if it had not been; what was asked for again stays asked for."""
        with suppress(RedisError, OSError):  # a time-out is an OSError as well
            async with asyncio.timeout(TAKE_BACK_S):
                if batch[0].redriven:
                    await self._redis.lpush(self._redrive, self._redriving)
                elif self._suspect is not None:
                    entry_id, before = self._suspect
                    await self._forgive(keys=[self._stream], args=[self.group, entry_id, before + 1, before])

    async def _blame(self, batch: Batch, error: Exception) -> None:
        """Keep the stack of an entry that failed alone; what was handed out again goes back to where it was parked."""
        stack = stack_of(error)
        if batch[0].redriven:
            reason = f"handed out again and failed: {last_line(stack)}"
            await self._repark(keys=[self._parked], args=[self._redriving, reason, stack])
            self._log.error("entry.parked", entry=batch[0].stream_id, reason=reason, where=self._parked)
        elif len(batch) == 1:
            await self._redis.hset(self._failing, batch[0].stream_id, stack)

    async def batches(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """Entries to handle, never empty. Asking for the next batch says that the last one is done."""
        await self._join(stop)
        if self._joined is not None and not stop.is_set():
            await self._joined()
        async with aclosing(self._backlog(stop)) as backlog:
            async for batch in backlog:
                yield batch
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
            if batch:
                yield batch
                done = batch
            else:  # quiet: see whether somebody died meanwhile
                async with aclosing(self._backlog(stop)) as backlog:
                    async for late in backlog:
                        yield late
        await self._acknowledge(done)

    async def _backlog(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """What this consumer was given and never acknowledged, the dead's included, in order.

        What was handed out once comes in batches, since the batch never reached a handler's end; what was handed out
        more often comes alone, so that only the entry that fails is counted up.
        """
        await self._claim_from_the_dead()
        while not stop.is_set():
            await self._keep_lease()
            pending = await self._redis.xpending_range(self._stream, self.group, "-", "+", BATCH, self.name)
            if not pending:
                return
            handed_out = pending[0]["times_delivered"]
            if handed_out >= MAX_HANDED_OUT:
                await self._set_aside(pending[0]["message_id"], handed_out)
            elif handed_out >= SUSPECT:
                async with _suspects_turn(), aclosing(self._alone_in_hand(handed_out)) as suspect:
                    async for batch in suspect:
                        yield batch
            else:
                some = next((n for n, one in enumerate(pending) if one["times_delivered"] >= SUSPECT), len(pending))
                batch, gone = await self._again(some)
                if batch:
                    yield batch
                await self._acknowledge(batch, gone)

    async def _alone_in_hand(self, handed_out: int) -> AsyncGenerator[Batch, None]:
        """The oldest entry of the backlog, which was handed out so often before."""
        await self._keep_lease()  # the turn may have been long in coming
        batch, gone = await self._again(1)
        if batch:
            self._suspect = batch[0].stream_id, handed_out
            try:
                yield batch
            finally:
                self._suspect = None
        await self._acknowledge(batch, gone)
        await self._redis.hdel(self._failing, *(delivery.stream_id for delivery in batch), *gone)

    async def _again(self, count: int) -> tuple[Batch, list[str]]:
        """Entries of the backlog, oldest first, and the ids of the trimmed ones; the server counts each."""
        read = await self._redis.xreadgroup(self.group, self.name, {self._stream: "0"}, count=count)
        return self._deliveries(read), [entry_id for entry_id, fields in _entries(read) if not fields]

    async def _asked_for(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """Parked entries that a person wants handed out again, as they were, one by one.

        Each is taken off the list first, so that one which kills the process does so once: it is still parked.
        """
        while not stop.is_set():
            await self._keep_lease()
            parked_at = await self._redis.lpop(self._redrive)
            if parked_at is None:
                self._asked = False
                return
            for _, fields in await self._redis.xrange(self._parked, parked_at, parked_at):
                entry_id, own, self._redriving = fields["parked_id"], original(fields), parked_at
                async with _suspects_turn():
                    yield [Delivery(self.tr, entry_id, own, _entry(own), redriven=True)]
                await self._redis.xdel(self._parked, parked_at)
                self._log.info("entry.redriven", entry=entry_id)

    async def _next(self, done: Batch) -> Batch:
        """Acknowledge what is done and read what is new, in one trip.

        Nothing comes back where something older is still in somebody's hands: the read of a member that was replaced
        may reach the server late and take entries. Then the backlog has both, and gives them out in order.
        """
        pipeline = self._redis.pipeline(transaction=False)
        if done:
            ids = [delivery.stream_id for delivery in done]
            pipeline.xack(self._stream, self.group, *ids)
            pipeline.set(self._position, ids[-1])
        pipeline.xreadgroup(self.group, self.name, {self._stream: ">"}, count=BATCH, block=BLOCK_MS)
        pipeline.xpending_range(self._stream, self.group, "-", "+", 1)
        pipeline.exists(self._redrive)
        *_, read, oldest, asked = await pipeline.execute()
        self._asked = bool(asked)
        batch = self._deliveries(read)
        older = self._alone and batch and oldest and _order(oldest[0]["message_id"]) < _order(batch[0].stream_id)
        return [] if older else batch

    async def _acknowledge(self, done: Batch, gone: list[str] | None = None) -> None:
        if gone:
            self._log.error("entries.lost", ids=gone, why="trimmed before they were handled")
        ids = [*(delivery.stream_id for delivery in done), *(gone or [])]
        if ids:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.xack(self._stream, self.group, *ids)
            pipeline.set(self._position, ids[-1])
            await pipeline.execute()

    async def _join(self, stop: asyncio.Event) -> None:
        """Wait for the lease where there is one, and see that the group exists where it left off."""
        while self._alone and not stop.is_set() and not await self._take_lease():
            left_ms = await self._redis.pttl(self._active)  # the lease may end sooner than the next look would come
            await _wait(stop, min(LEASE_S / 3, max(left_ms, 0) / 1000 + LOOK_AFTER_S))
        position = await self._redis.get(self._position)
        try:
            await self._redis.xgroup_create(self._stream, self.group, position or "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        else:
            if position:
                self._log.warning("group.recreated", at=position, why="the server had lost it")

    async def _claim_from_the_dead(self) -> None:
        """Take over what others were given: at once where only one is active, else after a minute of silence.

        Claiming does not count as handing out, so that a restart wears nothing down. Members that own nothing and are
        gone for a day are taken off the list: a container has another name after every upgrade.
        """
        idle_ms, after = 0 if self._alone else MIN_IDLE_MS, "-"
        while True:
            pending = await self._redis.xpending_range(self._stream, self.group, after, "+", BATCH, idle=idle_ms)
            theirs = [one["message_id"] for one in pending if one["consumer"] != self.name]
            if theirs:
                await self._redis.xclaim(self._stream, self.group, self.name, idle_ms, theirs, justid=True)
                self._log.info("entries.claimed", entries=len(theirs))
            if len(pending) < BATCH:
                break
            after = f"({pending[-1]['message_id']}"
        await self._dismiss(keys=[self._stream], args=[self.group, self.name, GONE_MS])

    async def _set_aside(self, entry_id: str, handed_out: int) -> None:
        """Park an entry that keeps failing, so that the others flow on."""
        stack = await self._redis.hget(self._failing, entry_id) or ""
        cause = last_line(stack) or "no error was seen: the process died each time, or was killed"
        reason = f"handed out {handed_out} times and never acknowledged; {cause}"
        keys = [self._stream, self._parked, self._failing]
        await self._park(keys=keys, args=[self.group, entry_id, reason, stack])
        self._log.error("entry.parked", entry=entry_id, reason=reason, where=self._parked)

    async def _take_lease(self) -> bool:
        held = await self._hold(keys=[self._active], args=[self._holder, int(LEASE_S * 1000)])
        self._renew_at_s = monotonic_s() + LEASE_S / 3
        return bool(held == self._holder)

    async def _keep_lease(self) -> None:
        if self._alone and monotonic_s() >= self._renew_at_s and not await self._take_lease():
            raise LeaseLost(f"another member of {self.group} is active on {self.tr}")

    async def _let_go(self) -> None:
        """Let another member follow at once; the lease would run out anyway."""
        with suppress(RedisError, OSError):
            if self._alone and await self._redis.get(self._active) == self._holder:
                await self._redis.delete(self._active)

    def _deliveries(self, read: Any) -> Batch:
        return [Delivery(self.tr, entry_id, fields, _entry(fields)) for entry_id, fields in _entries(read) if fields]


class _HandlerFailed(Exception):
    """The handler failed with these entries in hand, and that has been written down."""


PARKED = "parked_"
"""What the loop adds to a parked entry begins so; the other fields are the entry's own."""


def original(fields: dict[str, str]) -> dict[str, str]:
    """The fields of a parked entry as they stood in its stream."""
    return {name: value for name, value in fields.items() if not name.startswith(PARKED)}


def stack_of(error: BaseException) -> str:
    """The end of a traceback, without what addresses and headers carry: tokens, passwords, keys of webhooks."""
    text = "".join(traceback.format_exception(error))
    text = re.sub(r"(\w+://)(?:[^\s/@'\"]*@)?([^\s/'\"?#]*)[^\s'\"]*", r"\1\2/…", text)
    text = re.sub(
        r"(?i)(whsec_|bearer |bot\d+:|(?:secret|password|token|key)\w*['\"]?[=:] ?['\"]?)[^\s'\",)]+", r"\1…", text
    )
    return text.encode()[-STACK_BYTES:].decode(errors="ignore")


def last_line(stack: str) -> str:
    """What a traceback comes down to: the error and its message."""
    return stack.strip().rpartition("\n")[2]


def _entries(read: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries in the answer to a read of one stream, whichever protocol shaped it."""
    streams = read.items() if isinstance(read, dict) else read or []
    return [entry for _, entries in streams for entry in entries]


def _order(stream_id: str) -> tuple[int, int]:
    ms, _, number = stream_id.partition("-")
    return int(ms), int(number)


def _entry(fields: dict[str, str]) -> Entry | None:
    try:
        return decode(fields)
    except (ValidationError, ValueError, KeyError):
        return None


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
