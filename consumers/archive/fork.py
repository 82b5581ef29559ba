"""How far the archive has read goes in; whether the server still tells the same story comes out, and what it lost.

A server that lost its tail, a replica that was behind and then promoted, an older copy that was restored: after each of
them the stream ends before the archive does, and goes on from there with other entries. Where that happened is a fork:
one row of `notices`. The surprises: the new entries may stand under ids we have archived others under, since the server
counts on from its own last id even when its clock is behind; so after a fork every id is looked up before it is
written, and how far we have read is counted anew, beside the position that never goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deltalake import DeltaTable, QueryBuilder
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from consumers.archive.disk import in_thread
from consumers.archive.tables import (
    DAY_ZERO,
    EPOCH,
    KST,
    MAX_NUMBER,
    NOTICES,
    UNREADABLE,
    Cells,
    Line,
    packed,
    unpacked,
)
from consumers.place import may_be_trimmed, untouched
from poller.contract import Keys, dumps, loads, printable

GROUP = "archive"
FORK = "fork"
PAGE = 2_000


@dataclass(frozen=True)
class Stream:
    """What a stream says of itself, positions packed. `whole` if nothing was ever trimmed from it."""

    last: int
    whole: bool
    empty: bool


@dataclass(frozen=True)
class Fork:
    """Where two histories part.

    `since` is the last entry both have, `position` how far we were, `last` the stream's last id when it was noticed,
    `skipped` how many entries of the stream were in the archive, `lost` how many of the archive are not in the stream.
    `ranges` names the lost ones: epoch, first and last `seq`.
    """

    tr: str
    number: int
    since: str
    position: str
    last: str
    skipped: int
    lost: int
    ranges: tuple[tuple[int | None, int, int], ...]

    @property
    def told(self) -> str:
        """One line for a person."""
        gone = f"{self.lost:,} entries after {self.since} were written before the fork, lost by the server"
        return f"fork {self.number}: the stream ended at {self.last}, the archive at {self.position}; {gone}"

    def mark(self, now: datetime) -> str:
        """What stands under `forks` for `status`, in the fields that every role uses."""
        at, ranges = now.astimezone(KST).isoformat(timespec="milliseconds"), [list(one) for one in self.ranges]
        return dumps({"at": at, "had": self.position, "has": self.last, "lost": self.lost, "ranges": ranges})

    def line(self, now: datetime) -> Line:
        """The row of `notices` that marks it."""
        name = f"{self.tr}#fork.{self.number}"
        at_us = round((now - EPOCH).total_seconds() * 1_000_000)
        facts = {
            "position": self.position,
            "last_id": self.last,
            "since": self.since,
            "skipped": self.skipped,
            "lost": self.lost,
            "ranges": [list(one) for one in self.ranges],
        }
        cells: Cells = {
            "event_id": name,
            "stream_id": self.since,
            "op": FORK,
            "tr": self.tr,
            "reason": "the server lost entries",
            "observed_at": at_us,
            "published_at": at_us,
            "trading_day": (now.astimezone(KST).date() - DAY_ZERO).days,
            "data": dumps(facts),
        }
        return Line(self.since, name, cells)


def history(notices: DeltaTable, stream: str, number: int | None = None) -> str:
    """The name under which tables keep how far they have read since the last fork, or since the one of that number."""
    number = forked(notices, stream) if number is None else number
    return f"{stream}~{number}" if number else stream


def forked(notices: DeltaTable, stream: str) -> int:
    """How many forks of a stream are marked."""
    number = 0
    while notices.transaction_version(history(notices, stream, number + 1)) is not None:
        number += 1
    return number


def reached(tables: Mapping[str, DeltaTable], stream: str) -> int:
    """How far in the present history of the stream the archive is; 0 where there is none yet."""
    if NOTICES not in tables:
        return 0
    name = history(tables[NOTICES], stream)
    return max(delta.transaction_version(name) or 0 for delta in tables.values())


async def parted(
    redis: Redis,
    stream: str,
    position: int,
    parts: Parts | None = None,
    *,
    entry_id: str = "",
    seq: int | None = None,
) -> Stream | None:
    """What the stream says of itself if it is not the one that was read to this position; None if it is.

    It is another if it ends before the position, or if the entry at the position is gone that nobody can have trimmed,
    or if another entry stands there: than the one of `entry_id`, or, which costs a query, than any in `parts`. And
    where it may have been trimmed, if what follows has no higher `seq`: then what was trimmed was older.
    """
    client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
    if not position:
        return None
    # in this order, else a trim between the two looks like a loss; no MULTI, which a full Redis refuses even to look
    asking = client.pipeline(transaction=False)
    asking.xrange(stream, unpacked(position), unpacked(position))
    asking.xrange(stream, f"({unpacked(position)}", "+", count=1)
    asking.xinfo_stream(stream)
    there, after, facts = await asking.execute(raise_on_error=False)
    if isinstance(facts, ResponseError):
        if "no such key" not in str(facts):
            raise facts
        return Stream(0, whole=True, empty=True)
    last = packed(facts["last-generated-id"])
    exact = position & MAX_NUMBER < MAX_NUMBER
    gone = not there and not may_be_trimmed(unpacked(position), facts)
    if there and entry_id:
        gone = there[0][1].get("id") != entry_id
    elif there and parts is not None:
        known = await in_thread(parts.between, there[0][0], there[0][0])
        gone = not known & names(*there[0])
    elif after and not gone:
        if seq is None and parts is not None:
            seq = await in_thread(parts.seq_at, position)
        follows = seq_of(after[0][1])
        gone = seq is not None and follows is not None and follows <= seq
    if position > last or (exact and gone):
        return Stream(last, whole=untouched(facts), empty=not facts["first-entry"])
    return None


def seq_of(fields: Mapping[str, str]) -> int | None:
    """The `seq` of an entry; None where it is none of ours."""
    text = fields.get("seq", "")
    return int(text) if text.isdecimal() else None


async def seen(
    redis: Redis, stream: str, tables: Mapping[str, DeltaTable], tr: str, position: int, found: Stream
) -> Fork:
    """The fork, with what the two histories share and what only the archive has: one walk through the stream."""
    client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
    parts = Parts(tables, tr)
    known = await in_thread(lambda: present(known_forks(parts.ask, tr)))
    skipped, since, after = 0, 0, "-"
    if found.empty:
        since = 0 if found.whole else found.last
    while page := await client.xrange(stream, after, "+", count=PAGE):
        if after == "-" and not found.whole:
            since = packed(page[0][0]) - 1
            if (first := seq_of(page[0][1])) is not None:  # of what was trimmed, that is where the lost ones begin
                since = min(since, await in_thread(parts.before, first, known))
        there = await in_thread(parts.between, page[0][0], page[-1][0])
        ours = [one[0] for one in page if names(*one) & there]
        skipped += len(ours)
        since = max([since, *map(packed, ours)])
        after = f"({page[-1][0]}"
    number, last = forked(tables[NOTICES], stream) + 1, unpacked(found.last)
    lost, ranges = await in_thread(parts.lost, since, known)
    return Fork(tr, number, unpacked(since), unpacked(position), last, skipped, lost, ranges)


async def read_from_the_start(redis: Redis, keys: Keys, fork: Fork, now: datetime) -> None:
    """Let the archive's group be handed everything again; what it was given before is among it.

    That there is a fork is written down with it, where `status` looks; the notices keep it for ever.
    """
    client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
    together = client.pipeline(transaction=True)
    _begin_again(together, keys.of(fork.tr, "changes"))
    together.hset(keys.of(fork.tr, "forks"), GROUP, fork.mark(now))
    await together.execute()


async def read_again_if_done(redis: Redis, stream: str, position: int) -> bool:
    """Whether a stream was acknowledged to this position; if so, let the group be handed everything again."""
    client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
    done: str | None = await client.get(_position_key(stream))
    if done is None or packed(done) < position:
        return False
    together = client.pipeline(transaction=True)
    _begin_again(together, stream)
    await together.execute()
    return True


def _begin_again(together: Any, stream: str) -> None:
    together.xgroup_destroy(stream, GROUP)
    together.xgroup_create(stream, GROUP, "0", mkstream=True)
    together.delete(_position_key(stream))


def _position_key(stream: str) -> str:
    """Up to where the group has done everything: beside the stream, whose name is what the archive has of it."""
    return f"{stream.removesuffix('changes')}position:{GROUP}"


class Parts:
    """All entries of one TR in the archive, whatever table they are in, to be asked about."""

    def __init__(self, tables: Mapping[str, DeltaTable], tr: str) -> None:
        self._engine = QueryBuilder()
        parts = []
        for name, delta in tables.items():
            table = name.replace("/", "_")
            self._engine = self._engine.register(table, delta)
            own = "NULL AS epoch, fields" if name == UNREADABLE else "epoch, NULL AS fields"
            mine = f"WHERE tr = {quoted(tr)}" if name in (NOTICES, UNREADABLE) else ""
            parts.append(f"SELECT event_id, stream_id, seq, published_at, {own} FROM {table} {mine}")  # noqa: S608 -- quoted above
        self.entries = f"({' UNION ALL '.join(parts)})"

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """The rows of an answer. Raises what the layers of the engine raise."""
        found = self._engine.execute(sql).read_all()
        columns = [column.to_pylist() for column in found.columns]
        return [dict(zip(found.column_names, row, strict=True)) for row in zip(*columns, strict=True)]

    def between(self, first: str, last: str) -> set[str]:
        """The ids of the entries between two stream ids."""
        sql = f"""SELECT DISTINCT coalesce(event_id, stream_id) AS id FROM {self.entries}
                  WHERE published_at BETWEEN {moment(first)} AND {moment(last)}"""  # noqa: S608 -- numbers
        return {one["id"] for one in self.ask(sql)}

    def seq_at(self, position: int) -> int | None:
        """The highest `seq` that was archived from a place of the stream; None where nothing of ours was."""
        sql = f"SELECT max(seq) AS seq FROM {self.entries} WHERE stream_id = {quoted(unpacked(position))}"  # noqa: S608 -- quoted
        found: int | None = self.ask(sql)[0]["seq"]
        return found

    def before(self, seq: int, known: str) -> int:
        """The position of the last entry with a lower `seq` that is in no fork that is known; 0 where there is none."""
        sql = f"""SELECT stream_id FROM {self.entries} WHERE seq < {seq} AND {known}
                  ORDER BY published_at DESC, seq DESC LIMIT 1"""  # noqa: S608 -- numbers
        found = self.ask(sql)
        return packed(found[0]["stream_id"]) if found else 0

    def lost(self, since: int, known: str) -> tuple[int, tuple[tuple[int | None, int, int], ...]]:
        """How many entries stand after a position and are in no fork that is known, and their ranges by epoch."""
        then, number = moment(unpacked(since)), since & MAX_NUMBER
        behind = "CAST(split_part(stream_id, '-', 2) AS BIGINT)"
        sql = f"""SELECT epoch, min(seq) AS first, max(seq) AS last, count(*) AS entries FROM {self.entries}
                  WHERE seq IS NOT NULL AND {known}
                    AND (published_at > {then} OR (published_at = {then} AND {behind} > {number}))
                  GROUP BY epoch ORDER BY epoch"""  # noqa: S608 -- numbers
        found = self.ask(sql)
        return sum(one["entries"] for one in found), tuple((one["epoch"], one["first"], one["last"]) for one in found)


def known_forks(ask: Any, tr: str) -> list[Fork]:
    """The forks that are marked in the notices, oldest first."""
    sql = f"SELECT data FROM {NOTICES} WHERE op = '{FORK}' AND tr = {quoted(tr)} ORDER BY published_at, event_id"  # noqa: S608 -- quoted
    forks = []
    for number, one in enumerate(ask(sql), start=1):
        told = loads(one["data"])
        ranges = tuple((epoch, first, last) for epoch, first, last in told["ranges"])
        counted = (told["skipped"], told["lost"])
        forks.append(Fork(tr, number, told["since"], told["position"], told["last_id"], *counted, ranges))
    return forks


def present(forks: Iterable[Fork]) -> str:
    """As a condition in SQL: the entry is of the present history, not one that the server lost."""
    lost = [
        f"({'epoch IS NULL' if epoch is None else f'epoch = {epoch}'} AND seq BETWEEN {first} AND {last})"
        for fork in forks
        for epoch, first, last in fork.ranges
    ]
    return f"NOT coalesce({' OR '.join(lost)}, false)" if lost else "true"


def names(stream_id: str, fields: Mapping[str, str]) -> set[str]:
    """What an entry may be called in the archive: by its own id, as it is stored, or where it has none by its place."""
    return {stream_id, printable(fields["id"])} if "id" in fields else {stream_id}


def moment(stream_id: str) -> str:
    """The time in a stream id as SQL compares it with `published_at`."""
    return f"arrow_cast({int(stream_id.partition('-')[0]) * 1000}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
