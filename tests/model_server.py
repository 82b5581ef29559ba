"""Commands go in, by the names and with the answers redis-py gives them; the keys of one made-up server are changed.

The surprises: expiry, ids and idle times go by the clock that is handed over, so they may be virtual, and may go back;
a blocked reader is served at the end of the command that added what it waits for, before any other command; and
`refuses` is what the server says instead of taking writes, as a full one, a replica, or one that is loading does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, ResponseError

from tests.model_groups import FIRST, LAST, Fields, Group, Id, Stream, bounds, parsed, shown
from tests.model_keys import Held, ModelKeys, Value, text_of
from tests.model_scripts import BY_TEXT, Script

Found = list[tuple[str, Fields]]

NO_KEY = (
    "The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM option to "
    "create an empty stream automatically."
)


class Committed(NamedTuple):
    """What one commit said of a target: its versions before and after, and its last good poll."""

    source: str
    before: int
    after: int
    last_good: str


class Saved(NamedTuple):
    """What a server held, as it would be on its disk."""

    keys: dict[str, Held]
    ends_ms: dict[str, int]


@dataclass(eq=False)
class Blocked:
    """A client that waits: the read to try again when one of the streams has changed, and where its answer goes."""

    read: Callable[[], list[Any]]
    streams: AbstractSet[str]
    answer: asyncio.Future[list[Any]]


class ModelServer(ModelKeys):
    """What one server holds. Any number of clients may share it."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        super().__init__(now_ms)
        self.run_id = "1"
        """Another one after every restart, and on every replica; "" where nobody may ask for it."""
        self.commits: list[Committed] = []
        """What commit.lua wrote, for whoever checks it; no restart forgets it."""
        self.scripts: dict[str, Script] = dict(BY_TEXT)
        self.cuts = 0
        """How often all connections were lost."""
        self.unloaded: set[str] = set()
        """Scripts that the server has forgotten."""
        self._blocked: list[Blocked] = []

    # --- life

    def perform(self, call: Callable[[], Value]) -> Value:
        """One command, script or transaction, and then whoever waited for what it did. Raises what the call raises."""
        if isinstance(self.refuses, RedisConnectionError):
            self.refuse()
        self._written = False
        try:
            return call()
        finally:
            self._serve()

    async def block(self, read: Callable[[], list[Any]], streams: AbstractSet[str], block_ms: int) -> list[Any]:
        """Wait until the read finds something, which is nothing once the time is over; 0 waits for ever."""
        loop = asyncio.get_running_loop()
        waiting = Blocked(read, streams, loop.create_future())
        self._blocked.append(waiting)
        timer = loop.call_later(block_ms / 1000, _answer, waiting, []) if block_ms else None
        try:
            return await waiting.answer
        finally:
            self._blocked.remove(waiting)
            if timer is not None:
                timer.cancel()
            if waiting.answer.done() and not waiting.answer.cancelled():
                waiting.answer.exception()  # was seen, even where the waiting task was cancelled meanwhile

    def _serve(self) -> None:
        """Answer who waited, in the order in which they came."""
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        for waiting in self._blocked:
            if waiting.streams & changed and not waiting.answer.done():
                try:
                    found = waiting.read()
                except ResponseError as error:
                    waiting.answer.set_exception(error)
                else:
                    if found:
                        waiting.answer.set_result(found)

    def copy(self) -> Saved:
        """What the server holds now. Texts, hashes, lists and entries never change in place, so they are shared."""
        keys = {key: held.copy() if isinstance(held, Stream) else held for key, held in self.keys.items()}
        return Saved(keys, dict(self._ends_ms))

    def restore(self, saved: Saved) -> None:
        """Start again on what was saved: every connection is lost, and the scripts are."""
        self.keys = {key: held.copy() if isinstance(held, Stream) else held for key, held in saved.keys.items()}
        self._ends_ms = dict(saved.ends_ms)
        self.run_id += "+"
        self._changed.clear()
        self.scripts_flushed()
        self.cut()

    def cut(self) -> None:
        """Lose every connection: blocked readers learn it now, pipelines at their next command."""
        self.cuts += 1
        for waiting in self._blocked:
            if not waiting.answer.done():
                waiting.answer.set_exception(RedisConnectionError("Connection closed by server."))

    def scripts_flushed(self) -> None:
        """Forget every script, so that each is sent once more."""
        self.unloaded = set(self.scripts)

    def committed(self, source: str, before: int, after: int, last_good: str) -> None:
        """Write down what commit.lua wrote."""
        self.commits.append(Committed(source, before, after, last_good))

    # --- streams

    def stream(self, key: str) -> Stream:
        """The server's own stream, an empty one where none is."""
        return self.value(key, Stream) or Stream()

    def entries(self, key: str) -> list[Fields]:
        """XRANGE - +, without the ids; the server's own list, so nobody may change it."""
        return self.stream(key).entries

    def add(self, key: str, fields: Fields, entry_id: Id | None = None) -> str:
        """XADD of fields that are the server's from now on."""
        self.may("xadd")
        stream = self.keys[key] = self.stream(key)
        self._changed.add(key)
        return shown(stream.add(self.now_ms(), fields, entry_id))

    def xadd(self, key: str, fields: Mapping[str, object], id: str = "*") -> str:  # noqa: A002 -- redis-py's name
        """XADD. Raises ResponseError for an id that is not greater than all before."""
        if not fields:
            raise DataError("XADD fields must be a non-empty dict")
        entry_id = None if id == "*" else parsed(id)
        if entry_id is not None and entry_id <= self.stream(key).last:
            raise ResponseError("The ID specified in XADD is equal or smaller than the target stream top item")
        return self.add(key, {name: text_of(value) for name, value in fields.items()}, entry_id)

    def xrange(self, key: str, min: str = "-", max: str = "+", count: int | None = None) -> Found:  # noqa: A002
        """XRANGE."""
        return _shown(self.stream(key).between(*bounds(min, max), count))

    def xrevrange(self, key: str, max: str = "+", min: str = "-", count: int | None = None) -> Found:  # noqa: A002
        """XREVRANGE."""
        return _shown(self.stream(key).between(*bounds(min, max), count, last=True)[::-1])

    def xlen(self, key: str) -> int:
        """XLEN."""
        return len(self.stream(key).ids)

    def xdel(self, key: str, *ids: str) -> int:
        """XDEL."""
        self.may("xdel")
        return self.stream(key).delete(map(parsed, ids))

    def xtrim(self, key: str, maxlen: int | None = None, *, approximate: bool = True, minid: str | None = None) -> int:
        """XTRIM."""
        assert not approximate, "what ~ leaves depends on how the server packs entries: that is not modelled"
        return self.trim_to(key, maxlen) if maxlen is not None else self.trim_below(key, parsed(minid or "0"))

    def trim_to(self, key: str, length: int) -> int:
        """XTRIM MAXLEN."""
        self.may("xtrim")
        return self.stream(key).trim_to(length)

    def trim_below(self, key: str, keep_from: Id) -> int:
        """XTRIM MINID."""
        self.may("xtrim")
        return self.stream(key).trim_below(keep_from)

    # --- groups

    def _group(self, key: str, name: str, told: str = "No such key '{key}' or consumer group '{name}'") -> Group:
        group = self.stream(key).groups.get(name)
        if group is None:
            raise ResponseError(f"NOGROUP {told.format(key=key, name=name)}")
        return group

    def _there(self, key: str, told: str) -> Stream:
        if (stream := self.value(key, Stream)) is None:
            raise ResponseError(told)
        return stream

    def xgroup_create(self, key: str, name: str, id: str = "$", *, mkstream: bool = False) -> bool:  # noqa: A002
        """XGROUP CREATE."""
        self.may("xgroup_create")
        if mkstream and self.value(key, object) is None:
            self.keys[key] = Stream()
        stream = self._there(key, NO_KEY)
        if name in stream.groups:
            raise ResponseError("BUSYGROUP Consumer Group name already exists")
        stream.groups[name] = Group(stream.last if id == "$" else parsed(id))
        return True

    def xgroup_destroy(self, key: str, name: str) -> int:
        """XGROUP DESTROY."""
        self.may("xgroup_destroy")
        self._changed.add(key)
        return int(self._there(key, NO_KEY).groups.pop(name, None) is not None)

    def xgroup_delconsumer(self, key: str, name: str, consumer: str) -> int:
        """XGROUP DELCONSUMER."""
        self.may("xgroup_delconsumer")
        self._there(key, NO_KEY)
        return self._group(key, name, "No such consumer group '{name}' for key name '{key}'").dismiss(consumer)

    def xreadgroup(self, name: str, consumer: str, streams: Mapping[str, str], count: int | None = None) -> list[Any]:
        """XREADGROUP, without its waiting."""
        self.may("xreadgroup")
        told = "No such key '{key}' or consumer group '{name}' in XREADGROUP with GROUP option"
        groups = {key: self._group(key, name, told) for key in streams}
        read: list[Any] = []
        for key, after in streams.items():
            stream, group, now_ms = self.stream(key), groups[key], self.now_ms()
            if after != ">":
                read.append([key, _shown(stream.read_again(group, consumer, parsed(after), now_ms, count))])
            elif new := stream.read_new(group, consumer, now_ms, count):
                read.append([key, _shown(new)])
        return read

    def xack(self, key: str, name: str, *ids: str) -> int:
        """XACK."""
        self.may("xack")
        group = self.stream(key).groups.get(name)
        return group.acknowledge(map(parsed, ids)) if group else 0

    def xpending(self, key: str, name: str) -> dict[str, Any]:
        """XPENDING, the summary."""
        pending = self._group(key, name).pending
        owners = [one.consumer for one in pending.values()]
        return {
            "pending": len(pending),
            "min": shown(next(iter(pending))) if pending else None,
            "max": shown(next(reversed(pending))) if pending else None,
            "consumers": [{"name": owner, "pending": owners.count(owner)} for owner in sorted(set(owners))],
        }

    def xpending_range(
        self,
        key: str,
        name: str,
        min: str,  # noqa: A002
        max: str,  # noqa: A002
        count: int,
        consumername: str | None = None,
        idle: int | None = None,
    ) -> list[dict[str, Any]]:
        """XPENDING with a range."""
        (low, high), now_ms = bounds(min, max), self.now_ms()
        owned = self._group(key, name).owned_by(consumername)
        return [
            {
                "message_id": shown(entry_id),
                "consumer": one.consumer,
                "time_since_delivered": _since(one.handed_out_ms, now_ms),
                "times_delivered": one.times,
            }
            for entry_id, one in owned
            if low <= entry_id <= high and one.idle_for(idle or 0, now_ms)
        ][:count]

    def xclaim(
        self,
        key: str,
        name: str,
        consumer: str,
        min_idle_time: int,
        message_ids: Sequence[str],
        *,
        idle: int | None = None,
        retrycount: int | None = None,
        justid: bool = False,
    ) -> list[Any]:
        """XCLAIM."""
        self.may("xclaim")
        group = self._group(key, name)
        claimed = self.stream(key).claim(
            group,
            consumer,
            [parsed(one) for one in message_ids],
            now_ms=self.now_ms(),
            min_idle_ms=min_idle_time,
            idle_ms=idle or 0,
            times=retrycount,
            justid=justid,
        )
        return [shown(entry_id) for entry_id, _ in claimed] if justid else _shown(claimed)

    def xinfo_stream(self, key: str) -> dict[str, Any]:
        """XINFO STREAM, without how the server packs the entries."""
        stream = self._there(key, "no such key")
        ends = _shown([*stream.between(FIRST, LAST, 1), *stream.between(FIRST, LAST, 1, last=True)])
        return {
            "length": len(stream.ids),
            "last-generated-id": shown(stream.last),
            "max-deleted-entry-id": shown(stream.max_deleted),
            "entries-added": stream.added,
            "recorded-first-entry-id": ends[0][0] if ends else "0-0",
            "groups": len(stream.groups),
            "first-entry": ends[0] if ends else None,
            "last-entry": ends[-1] if ends else None,
        }

    def xinfo_groups(self, key: str) -> list[dict[str, Any]]:
        """XINFO GROUPS, without `entries-read` and `lag`, in which servers differ and which nobody here asks for."""
        return [
            {
                "name": name,
                "consumers": len(group.consumers),
                "pending": len(group.pending),
                "last-delivered-id": shown(group.last_delivered),
            }
            for name, group in sorted(self._there(key, "no such key").groups.items())
        ]

    def xinfo_consumers(self, key: str, name: str) -> list[dict[str, Any]]:
        """XINFO CONSUMERS, without `inactive`, which older servers do not know."""
        self._there(key, "no such key")
        group = self._group(key, name, "No such consumer group '{name}' for key name '{key}'")
        return [
            {"name": consumer, "pending": len(group.owned_by(consumer)), "idle": _since(seen_ms, self.now_ms())}
            for consumer, seen_ms in sorted(group.consumers.items())
        ]


def _answer(waiting: Blocked, found: list[Any]) -> None:
    if not waiting.answer.done():
        waiting.answer.set_result(found)


def _since(then_ms: int, now_ms: int) -> int:
    """Idle milliseconds, which are none where the clock went back."""
    return max(0, now_ms - then_ms)


def _shown(found: Sequence[tuple[Id, Fields | None]]) -> Found:
    """Entries as a client reads them, its own; what is gone has no fields."""
    return [(shown(entry_id), dict(fields or {})) for entry_id, fields in found]
