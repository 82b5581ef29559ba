"""What the stream commands are told goes in; what a stream and its consumer groups then hold and answer comes out.

Written after Redis 7.2, 8 and Valkey, and held to them by `test_model_store`. The surprises, all of them theirs: a
history read counts as handing out, but not for entries that are gone, which come without fields; XCLAIM with JUSTID
counts nothing and still starts the idle time anew; and claiming an entry that is gone takes it off the pending list.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Id = tuple[int, int]
Fields = dict[str, str]
MAX_NUMBER = 2**64 - 1
FIRST, LAST = (0, 0), (MAX_NUMBER, MAX_NUMBER)


def shown(entry_id: Id) -> str:
    """An id as a client reads it."""
    return f"{entry_id[0]}-{entry_id[1]}"


def parsed(text: str, number: int = 0) -> Id:
    """An id as a client writes it. `number` is what a bare millisecond stands for."""
    ms, dash, rest = text.partition("-")
    return int(ms), int(rest) if dash else number


def bounds(first: str, last: str) -> tuple[Id, Id]:
    """The first and the last id of a range, both included: `-`, `+`, an id, or `(` and the id beside it."""
    low = FIRST if first == "-" else parsed(first.removeprefix("("))
    high = LAST if last == "+" else parsed(last.removeprefix("("), MAX_NUMBER)
    if first.startswith("("):
        low = low[0], low[1] + 1
    if last.startswith("("):
        high = (high[0], high[1] - 1) if high[1] else (high[0] - 1, MAX_NUMBER)
    return low, high


def size_of(fields: Mapping[str, str]) -> int:
    """Roughly the bytes that an entry takes."""
    return sum(map(len, fields.values()))


class Pending(NamedTuple):
    """One entry that was handed out and not acknowledged: to whom, when last, and how often."""

    consumer: str
    handed_out_ms: int
    times: int

    def idle_for(self, least_ms: int, now_ms: int) -> bool:
        """Whether it was last handed out so long ago. 0 asks for nothing, even where the clock went back."""
        return not least_ms or now_ms - self.handed_out_ms >= least_ms


@dataclass
class Group:
    """A consumer group: the last entry it was given, and what of that it has not acknowledged.

    `pending` is in the order of ids by itself, since only what is newer than everything there is ever added.
    `consumers` says when each has last asked for something.
    """

    last_delivered: Id = (0, 0)
    pending: dict[Id, Pending] = field(default_factory=dict)
    consumers: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Group:
        """The same, to be changed by itself."""
        return Group(self.last_delivered, dict(self.pending), dict(self.consumers))

    def acknowledge(self, ids: Iterable[Id]) -> int:
        """XACK."""
        return sum(self.pending.pop(entry_id, None) is not None for entry_id in ids)

    def owned_by(self, consumer: str | None) -> list[tuple[Id, Pending]]:
        """What is pending, in order, of one consumer or of all."""
        return [(entry_id, one) for entry_id, one in self.pending.items() if consumer in {None, one.consumer}]

    def dismiss(self, consumer: str) -> int:
        """XGROUP DELCONSUMER: what it owned is lost with it, and counted."""
        owned = [entry_id for entry_id, _ in self.owned_by(consumer)]
        self.consumers.pop(consumer, None)
        return self.acknowledge(owned)


@dataclass
class Stream:
    """Entries in the order of their ids. `added` counts all there ever were, `max_deleted` knows XDEL, not trimming."""

    ids: list[Id] = field(default_factory=list)
    entries: list[Fields] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    last: Id = (0, 0)
    size: int = 0
    added: int = 0
    max_deleted: Id = (0, 0)

    def copy(self) -> Stream:
        """The same, to be changed by itself; entries never change."""
        groups = {name: group.copy() for name, group in self.groups.items()}
        return Stream([*self.ids], [*self.entries], groups, self.last, self.size, self.added, self.max_deleted)

    # --- entries

    def add(self, now_ms: int, fields: Fields, entry_id: Id | None = None) -> Id:
        """XADD, by default with the id `*`: ids grow even where the clock does not."""
        if entry_id is None:
            entry_id = (now_ms, 0) if now_ms > self.last[0] else (self.last[0], self.last[1] + 1)
        self.last = entry_id
        self.ids.append(entry_id)
        self.entries.append(fields)
        self.size += size_of(fields)
        self.added += 1
        return entry_id

    def between(self, low: Id, high: Id, count: int | None = None, *, last: bool = False) -> list[tuple[Id, Fields]]:
        """XRANGE: a range in order, the first `count` of it, or the `last`."""
        first, end = bisect.bisect_left(self.ids, low), bisect.bisect_right(self.ids, high)
        if count is not None and last:
            first = max(first, end - count)
        elif count is not None:
            end = min(end, first + count)
        return list(zip(self.ids[first:end], self.entries[first:end], strict=True))

    def find(self, entry_id: Id) -> Fields | None:
        """The fields of one entry."""
        found = self.between(entry_id, entry_id)
        return found[0][1] if found else None

    def trim_below(self, keep_from: Id) -> int:
        """XTRIM MINID; how many entries went."""
        return self._drop_first(bisect.bisect_left(self.ids, keep_from))

    def trim_to(self, length: int) -> int:
        """XTRIM MAXLEN; how many entries went."""
        return self._drop_first(max(0, len(self.ids) - length))

    def _drop_first(self, gone: int) -> int:
        self.size -= sum(map(size_of, self.entries[:gone]))
        del self.ids[:gone], self.entries[:gone]
        return gone

    def delete(self, ids: Iterable[Id]) -> int:
        """XDEL; how many entries went."""
        deleted = 0
        for entry_id in ids:
            place = bisect.bisect_left(self.ids, entry_id)
            if self.ids[place : place + 1] == [entry_id]:
                self.size -= size_of(self.entries[place])
                del self.ids[place], self.entries[place]
                self.max_deleted = max(self.max_deleted, entry_id)
                deleted += 1
        return deleted

    # --- groups

    def read_new(self, group: Group, consumer: str, now_ms: int, count: int | None) -> list[tuple[Id, Fields]]:
        """XREADGROUP >: what the group was not given yet."""
        group.consumers[consumer] = now_ms
        if self.last <= group.last_delivered:
            return []
        ms, number = group.last_delivered
        found = self.between((ms, number + 1), self.last, count)
        for entry_id, _ in found:
            group.pending[entry_id] = Pending(consumer, now_ms, 1)
            group.last_delivered = entry_id
        return found

    def read_again(
        self, group: Group, consumer: str, after: Id, now_ms: int, count: int | None
    ) -> list[tuple[Id, Fields | None]]:
        """XREADGROUP with an id: what the consumer owns after it, once more; None for what is gone."""
        group.consumers[consumer] = now_ms
        owned = [(entry_id, one) for entry_id, one in group.owned_by(consumer) if entry_id > after][:count]
        found = [(entry_id, self.find(entry_id), one) for entry_id, one in owned]
        for entry_id, fields, one in found:
            if fields is not None:
                group.pending[entry_id] = Pending(consumer, now_ms, one.times + 1)
        return [(entry_id, fields) for entry_id, fields, _ in found]

    def claim(
        self,
        group: Group,
        consumer: str,
        ids: Sequence[Id],
        *,
        now_ms: int,
        min_idle_ms: int,
        idle_ms: int = 0,
        times: int | None = None,
        justid: bool = False,
    ) -> list[tuple[Id, Fields]]:
        """XCLAIM: what was pending for so long is the consumer's now. `times` and `idle_ms` are what it is said to be.

        Without `times`, a claim counts as handing out, unless it is `justid`.
        """
        group.consumers[consumer] = now_ms
        claimed = []
        for entry_id in ids:
            one, fields = group.pending.get(entry_id), self.find(entry_id)
            if fields is None:
                group.pending.pop(entry_id, None)
            elif one is not None and one.idle_for(min_idle_ms, now_ms):
                counted = one.times + (not justid) if times is None else times
                group.pending[entry_id] = Pending(consumer, now_ms - idle_ms, counted)
                claimed.append((entry_id, fields))
        return claimed
