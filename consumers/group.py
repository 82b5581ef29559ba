"""Streams go in; deliveries come out, through one handler, acknowledged only when that is done.

Read `batches` as the whole story: what this consumer was given before, what the dead left behind, then what is new.
The surprises: an acknowledgement travels in the same pipeline as the next read, so it costs no trip of its own; what
was handed out too often by the server's own count is parked with the reason, and never stops the others; and what was
handed out before is handed out again one by one, so that a bad entry does not count against its neighbours.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from consumers.clock import monotonic_s
from poller.contract import Entry, Keys, decode

BATCH = 500
BLOCK_MS = 2_000
MAX_HANDED_OUT = 8
"""An entry that was handed out so often and never acknowledged is the entry's fault, not the workers'."""

MIN_IDLE_MS = 60_000
"""Where many members share a group, one that was silent for so long is taken for dead."""

LEASE_S = 10.0
LOOK_AFTER_S = 0.02
RETRY_S = 0.5
SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Delivery:
    """One entry as handed to a consumer. `entry` is None where the fields are not an entry of ours."""

    tr: str
    stream_id: str
    fields: dict[str, str]
    entry: Entry | None


Batch = list[Delivery]
Handler = Callable[[Batch], Awaitable[None]]


class LeaseLost(Exception):
    """Another member of the group is active now: what is in hand is its to do."""


class Membership:
    """One consumer's part in a group on the stream of one TR.

    `name` is the consumer's and stays the same over restarts, so that it finds what it was given. With `alone`, the
    group has one active member at a time, by lease: what order matters to has to be done by one.
    """

    def __init__(
        self, redis: Redis, prefix: str, tr: str, group: str, name: str, *, alone: bool = True, part: str = "changes"
    ) -> None:
        """`part` is the stream to read: a TR's `changes`, or the `alerts` that were decided on it."""
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self.tr, self.group, self.name = tr, group, name
        keys = Keys(prefix)
        self._stream, self._parked = keys.of(tr, part), keys.of(tr, "parked", group)
        self._position, self._active = keys.of(tr, "position", group), keys.of(tr, "active", group)
        self._alone = alone
        self._holder = f"{name}.{secrets.token_hex(4)}"
        self._renew_at_s = 0.0
        self._hold = redis.register_script((SCRIPTS / "hold.lua").read_text("utf-8"))
        self._park = redis.register_script((SCRIPTS / "park.lua").read_text("utf-8"))
        self._log = structlog.get_logger("group").bind(tr=tr, group=group)

    async def consume(self, handle: Handler, stop: asyncio.Event) -> None:
        """Hand every batch to the handler until `stop`. Trouble is waited out, and nothing is skipped by it."""
        trouble = False
        while not stop.is_set():
            try:
                async with aclosing(self.batches(stop)) as batches:
                    async for batch in batches:
                        await handle(batch)
                        trouble = False
            except (RedisError, OSError, LeaseLost) as error:
                if not trouble:
                    self._log.warning("group.waiting", error=str(error))
                trouble = True
            except Exception:  # noqa: BLE001 -- handed out again, one by one, and parked when it keeps failing
                self._log.exception("handler.failed")
            await _wait(stop, RETRY_S if trouble else 0.0)
        await self._let_go()

    async def batches(self, stop: asyncio.Event) -> AsyncGenerator[Batch, None]:
        """Entries to handle, never empty. Asking for the next batch says that the last one is done."""
        await self._join(stop)
        async with aclosing(self._backlog(stop)) as backlog:
            async for batch in backlog:
                yield batch
        done: Batch = []
        while not stop.is_set():
            await self._keep_lease()
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
            if pending[0]["times_delivered"] >= MAX_HANDED_OUT:
                await self._set_aside(pending[0]["message_id"], pending[0]["times_delivered"])
                continue
            once = next((n for n, one in enumerate(pending) if one["times_delivered"] > 1), len(pending))
            read = await self._redis.xreadgroup(self.group, self.name, {self._stream: "0"}, count=max(1, once))
            batch = self._deliveries(read)
            if batch:
                yield batch
            await self._acknowledge(batch, gone=[entry_id for entry_id, fields in _entries(read) if not fields])

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
        *_, read, oldest = await pipeline.execute()
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

        Claiming does not count as handing out, so that a restart wears nothing down.
        """
        idle_ms, after = 0 if self._alone else MIN_IDLE_MS, "-"
        while True:
            pending = await self._redis.xpending_range(self._stream, self.group, after, "+", BATCH, idle=idle_ms)
            theirs = [one["message_id"] for one in pending if one["consumer"] != self.name]
            if theirs:
                await self._redis.xclaim(self._stream, self.group, self.name, idle_ms, theirs, justid=True)
                self._log.info("entries.claimed", entries=len(theirs))
            if len(pending) < BATCH:
                return
            after = f"({pending[-1]['message_id']}"

    async def _set_aside(self, entry_id: str, handed_out: int) -> None:
        """Park an entry that keeps failing, so that the others flow on."""
        reason = f"handed out {handed_out} times and never acknowledged"
        keys = [self._stream, self._parked]
        await self._park(keys=keys, args=[self.group, entry_id, reason])
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
