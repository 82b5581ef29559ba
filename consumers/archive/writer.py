"""Streams go in; one Delta table per table of rows comes out, every entry in it once, whoever dies when.

The surprises: the position in the stream is part of each commit and is checked on the handle that writes, so a rival
that has written meanwhile makes our commit fail instead of doubling rows; Delta itself never calls fsync, so we do,
before anything is acknowledged; and the pause between two commits comes after the write and before the
acknowledgement, so what is new is archived at once and what follows is gathered. Our position is not the server's: at
the start, after each lost connection and before each write the two are compared, and a stream that has lost entries is
read again from its start (`fork.py`). A commit that a power cut tore before it was on the disk was not acknowledged: it
is set aside when its table is opened (`torn.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import structlog
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    PostCommitHookProperties,
    QueryBuilder,
    Schema,
    Transaction,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.schema import PrimitiveType
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from consumers.archive import fork, torn
from consumers.archive.disk import TIDYING, alone, in_thread, sync
from consumers.archive.fork import GROUP, quoted
from consumers.archive.settings import ArchiveSettings
from consumers.archive.tables import NOTICES, UNREADABLE, Column, Line, arrow, declared, packed, placed
from consumers.clock import utc_now
from consumers.group import BATCH, Batch, LeaseLost, Membership
from poller.contract import Catalogue, Keys, TrInfo

TIDY_AFTER = 100
"""Commits cost more with every file there is: 25 ms at 100 files, 125 at 500, and one to three tenths to merge them."""

KEPT = "interval 1 days"
"""How long files that were merged, and old log entries, stay for readers that have them open."""

NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
"""Checkpoints are made by `tidy` alone, which sees to it that they are on the disk."""


class ArchiveTable:
    """One Delta table as one stream's archiver holds it: what is there, how far it is, and how to add to it."""

    def __init__(self, root: Path, name: str, stream: str, columns: Sequence[Column]) -> None:
        self._path, self._stream = root / name, stream
        self._identity = "concat(tr, ' ', stream_id, ' ', fields)" if name == UNREADABLE else "event_id"
        self.delta = self._delta = _opened(self._path, columns)
        self._history = stream
        stored = stored_columns(self._delta)
        known = {column.name for column in stored}
        added = [column for column in columns if column.name not in known]
        self.columns = [*stored, *added]
        self._grows = bool(added)
        self._synced = max(-1, self._delta.version() - torn.NEWEST)  # what a killed process may have left to the kernel
        self._make_durable()
        self._small_files = len(self._delta.file_uris()) - len(self._delta.partitions())
        self._newest_day = max((int(day["trading_day"].replace("-", "")) for day in self._days()), default=0)

    @property
    def position(self) -> int:
        """How far in the stream this table is, as far as our handle knows; 0 before the first commit."""
        return self._delta.transaction_version(self._stream) or 0

    def follow(self, history: str) -> None:
        """Keep how far we are in the present history under its name, beside the position that never goes back."""
        self._history = history

    def write(self, lines: Sequence[Line]) -> int:
        """Add the lines that are not there yet, durably, and say how many they were.

        Raises CommitFailedError where a rival has written since this handle was opened.
        """
        new = self._not_there(lines)
        if not new:
            return 0
        newest = max(line.position for line in new)
        here = self._delta.transaction_version(self._history) or 0
        self._add(new, {self._stream: max(self.position, newest), self._history: max(here, newest)})
        return len(new)

    def mark(self, notice: Line, history: str) -> None:
        """Add a notice that is in no stream, durably; with it begins another history of the stream, at its position.

        Raises CommitFailedError where a rival has marked it.
        """
        self._add([notice], {history: notice.position})

    def _add(self, lines: Sequence[Line], positions: Mapping[str, int]) -> None:
        marks = [Transaction(name, position) for name, position in positions.items()]
        write_deltalake(
            self._delta,
            arrow(self.columns, lines),
            mode="append",
            schema_mode="merge" if self._grows else None,
            commit_properties=CommitProperties(app_transactions=marks),
            post_commithook_properties=NO_HOOKS,
        )
        self._grows = False
        self._make_durable()
        self._small_files += 1

    def tidy_if_due(self) -> None:
        """Merge small files every hundred commits and when a trading day begins.

        Rows that are archived stay so whatever happens here: files are merged in a commit of their own, by one process
        at a time, and from what is there now.
        """
        newest = max((int(day["trading_day"].replace("-", "")) for day in self._days()), default=0)
        new_day, self._newest_day = newest > self._newest_day > 0, newest
        if not new_day and self._small_files < TIDY_AFTER:
            return
        self._small_files = 0
        with alone(self._path / TIDYING) as nobody_else:
            if nobody_else:
                self._delta.update_incremental()
                self._tidy(full=new_day)

    def _tidy(self, *, full: bool) -> None:
        self._delta.optimize.compact(max_concurrent_tasks=1, post_commithook_properties=NO_HOOKS)
        self._make_durable()
        self._delta.create_checkpoint()
        sync(self._log_dir.glob("*checkpoint*"), self._log_dir)
        self._delta.vacuum(dry_run=False, full=full, post_commithook_properties=NO_HOOKS)
        self._delta.cleanup_metadata()
        self._make_durable()

    @property
    def _log_dir(self) -> Path:
        return self._path / "_delta_log"

    def _days(self) -> list[dict[str, str]]:
        return [day for day in self._delta.partitions() if day.get("trading_day")]

    def _not_there(self, lines: Sequence[Line]) -> list[Line]:
        """The lines to add. What stands at or before our position is there, if the stream is still the one we read.

        It is another where the server lost its newest entries and its clock went back, so ids alone prove nothing.
        """
        position = self.position
        doubtful = [line for line in lines if line.position <= position]
        there = self._present(doubtful) if doubtful else set()
        if len(there) < len(doubtful) and self._history == self._stream:  # a fork that is marked has been told
            structlog.get_logger("archive").warning("stream.forked", table=str(self._path), entries=len(doubtful))
        return [line for line in lines if line.position > position or line.identity not in there]

    def _present(self, lines: Sequence[Line]) -> set[str]:
        days = ", ".join({f"arrow_cast({line.cells['trading_day']}, 'Date32')" for line in lines})
        wanted = ", ".join(quoted(line.identity) for line in lines)
        sql = f"SELECT {self._identity} AS id FROM t WHERE trading_day IN ({days}) AND {self._identity} IN ({wanted})"  # noqa: S608 -- quoted above
        return set(QueryBuilder().register("t", self._delta).execute(sql).read_all().column("id").to_pylist())

    def _make_durable(self) -> None:
        """See that all log entries up to our version, and the files they add, are on the disk."""
        version = self._delta.version()
        for number in range(self._synced + 1, version + 1):
            log = self._log_dir / f"{number:020}.json"
            with suppress(FileNotFoundError):  # cleaned up, or merged away: then what replaced it is durable
                actions = map(json.loads, log.read_text("utf-8").splitlines())
                added = [self._path / unquote(action["add"]["path"]) for action in actions if "add" in action]
                sync(added, self._path, *{path.parent for path in added})
                sync([log], self._log_dir)
        self._synced = version


def _opened(path: Path, columns: Sequence[Column]) -> DeltaTable:
    """The table at a path, made if there is none."""
    with suppress(TableNotFoundError):
        return DeltaTable(str(path))
    path.mkdir(parents=True, exist_ok=True)
    with suppress(DeltaError):  # another process may have been faster
        DeltaTable.create(
            str(path),
            Schema([Field(column.name, PrimitiveType(column.type)) for column in columns]),
            mode="ignore",
            partition_by=["trading_day"],
            configuration={"delta.deletedFileRetentionDuration": KEPT, "delta.logRetentionDuration": KEPT},
        )
    delta = DeltaTable(str(path))
    sync([], path.parent.parent, path.parent, path)
    return delta


def stored_columns(delta: DeltaTable) -> list[Column]:
    """The columns a table has, in its order."""
    return [Column(field.name, getattr(field.type, "type", "")) for field in delta.schema().fields]


class ArchiveRole:
    """Archives every TR of the catalogue until it is told to stop."""

    def __init__(self, redis: Redis, prefix: str, catalogue: Catalogue, settings: ArchiveSettings, name: str) -> None:
        self.rows: Counter[str] = Counter()
        """Rows archived by this process, per table."""
        self._trs = [_TrArchiver(redis, prefix, tr, settings, name, self.rows) for tr in catalogue.values()]

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; every TR by itself, so that trouble with one holds no other back."""
        async with asyncio.TaskGroup() as together:
            for tr in self._trs:
                together.create_task(tr.run(stop))


class _Last(NamedTuple):
    """The last entry that we have archived, as far as it has a name and a number."""

    stream_id: str = "0-0"
    entry_id: str = ""
    seq: int | None = None


class _TrArchiver:
    """The archive of one TR: its tables, and its part in the group."""

    def __init__(
        self, redis: Redis, prefix: str, tr: TrInfo, settings: ArchiveSettings, name: str, rows: Counter[str]
    ) -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self._tr, self._settings, self._rows = tr, settings, rows
        self._keys = Keys(prefix)
        self._stream = self._keys.of(tr.tr, "changes")
        self._member = Membership(redis, prefix, tr.tr, GROUP, name, alone=True, joined=self._come_back)
        self._tables: dict[str, ArchiveTable] = {}
        self._last = _Last()
        """The last entry that this process wrote: where it stands, and the id it has of itself."""
        self._log = structlog.get_logger("archive").bind(tr=tr.tr)
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        self._stop = stop
        with suppress(RedisError, OSError):  # the loop waits for the server, and asks again at its first batch
            await self._forgive()
        await self._member.consume(self._archive, stop)

    async def _come_back(self) -> None:
        """At the start and after a lost connection: see whether the server still has what we have read."""
        self._tables = {}
        if (self._settings.path / self._tr.tr).is_dir():
            async with self._told():
                await self._see_fork(closely=True)

    async def _archive(self, batch: Batch) -> None:
        """Write a batch; return when every table it touches is durable."""
        written: Counter[str] = Counter()
        try:
            async with self._told():
                if await self._see_fork():  # a server that came back while nobody was talking to it breaks nothing
                    raise LeaseLost("the server has lost entries: its stream is read again from the start")
                await in_thread(self._write, batch, written)
                last = batch[-1].fields
                self._last = _Last(batch[-1].stream_id, last.get("id", ""), fork.seq_of(last))
        finally:
            self._rows.update(written)
        await self._gather(batch)

    async def _see_fork(self, *, closely: bool = False) -> bool:
        """Mark a fork where the stream is not the one that we have read, and begin again at its start.

        The group first: were we to die before the mark, the fork would be seen once more.
        """
        await self._open()
        tables = {name: table.delta for name, table in self._tables.items()}
        position = fork.reached(tables, self._stream)
        parts = fork.Parts(tables, self._tr.tr) if closely else None
        last = self._last if packed(self._last.stream_id) == position else _Last()
        found = await fork.parted(self._redis, self._stream, position, parts, entry_id=last.entry_id, seq=last.seq)
        if found is None:
            return False
        seen = await fork.seen(self._redis, self._stream, tables, self._tr.tr, position, found)
        now = utc_now()
        await fork.read_from_the_start(self._redis, self._keys, seen, now)
        history = fork.history(tables[NOTICES], self._stream, seen.number)
        await in_thread(self._tables[NOTICES].mark, seen.line(now), history)
        self._follow(history)
        facts = {"position": seen.position, "last_id": seen.last, "since": seen.since}
        self._log.warning("archive.forked", fork=seen.number, skipped=seen.skipped, lost=seen.lost, **facts)
        return True

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        """Turn what goes wrong with the tables into what the loop waits out."""
        try:
            yield
        except (RedisError, LeaseLost):
            raise
        except CommitFailedError as error:
            await self._start_over()
            raise LeaseLost(f"another archiver has written meanwhile: {error}") from error
        except Exception as error:  # no entry is to blame for a full disk: waited out, never parked
            await self._start_over()
            raise OSError(f"cannot write to {self._settings.path}: {error}") from error

    async def _open(self) -> None:
        """Open the tables, mended where a power cut has torn them."""
        while found := await in_thread(self._open_or_find_torn):
            for one in found:
                await self._mend(one)

    def _open_or_find_torn(self) -> list[torn.Torn]:
        if self._tables:
            return []
        mine, root = declared({self._tr.tr: self._tr}), self._settings.path
        found = [one for name in mine if (one := torn.find(root / name))]
        if not found:
            self._tables = {name: ArchiveTable(root, name, self._stream, columns) for name, columns in mine.items()}
            self._follow(fork.history(self._tables[NOTICES].delta, self._stream))
        return found

    async def _mend(self, found: torn.Torn) -> None:
        """Set torn commits aside; the stream hands out again what was in them.

        Nobody has acknowledged it, unless a disk did not keep what it said to have kept. Then the stream is read again
        from its start, and this is arranged first: were we to die in between, it would be seen once more.
        """
        positions = found.positions.items()
        undone = [stream for stream, since in positions if await fork.read_again_if_done(self._redis, stream, since)]
        if undone:
            why = "the disk lost what it had confirmed; what the streams do not have any more, `archive verify` tells"
            self._log.error("archive.undone", table=str(found.table), streams=undone, why=why)
        if done := await in_thread(torn.set_aside, found.table):
            facts = {"versions": done.versions, "files": done.broken, "aside": str(done.table / torn.ASIDE)}
            why = "a power cut; the stream has its entries still, and `archive verify` proves that nothing is missing"
            self._log.warning("archive.torn", table=str(done.table), **facts, why=why)

    def _follow(self, history: str) -> None:
        for table in self._tables.values():
            table.follow(history)

    def _write(self, batch: Batch, written: Counter[str]) -> None:
        lines = placed(batch, self._tr, {name: table.columns for name, table in self._tables.items()})
        for name, some in lines.items():
            written[name] += self._tables[name].write(some)
        for name in lines:
            try:
                self._tables[name].tidy_if_due()
            except (DeltaError, OSError) as error:
                self._log.warning("archive.untidy", table=name, error=str(error))

    async def _start_over(self) -> None:
        self._tables = {}
        await self._forgive()

    async def _gather(self, batch: Batch) -> None:
        """Let more come together before the next commit, unless more is waiting already."""
        if (await self._redis.xpending(self._stream, GROUP))["pending"] > len(batch):
            await self._forgive()
        elif len(batch) < BATCH:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._settings.flush)

    async def _forgive(self) -> None:
        """Count what is handed out and not acknowledged as handed out once.

        A crash or a full disk is not the entry's fault: it shall not be parked, nor come alone in a commit of its own.
        """
        after = "-"
        while True:
            try:
                pending = await self._redis.xpending_range(self._stream, GROUP, after, "+", BATCH)
            except ResponseError:  # no group yet
                return
            pending_again = [one for one in pending if one["times_delivered"] > 1]
            for owner, theirs in groupby(pending_again, key=lambda one: one["consumer"]):
                ids = [one["message_id"] for one in theirs]
                await self._redis.xclaim(self._stream, GROUP, owner, 0, ids, retrycount=1, justid=True)
            if len(pending) < BATCH:
                return
            after = f"({pending[-1]['message_id']}"
