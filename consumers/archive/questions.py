"""Questions asked of the archive: how far it is, any SQL, a file of a table, and whether all of it is true.

Readers never hold the writer up, nor it them: each sees the tables as they stood when it opened them. The surprise:
`verify` asks the group first how far the archive is durable, so it is right on a system that is at work as well.
"""

# ruff: noqa: S608 -- the queries here are made of names of our own tables and fields; what a user gives is quoted

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from rich.table import Table

from consumers.archive import torn
from consumers.archive.fork import (
    GROUP,
    Fork,
    Parts,
    forked,
    known_forks,
    moment,
    names,
    parted,
    present,
    quoted,
    reached,
)
from consumers.archive.tables import KST, NOTICES, UNREADABLE, field_names, packed, unpacked
from poller.contract import NOTICE_TYPE, Catalogue, Entry, Keys, TableInfo, TrInfo, entry_in, loads, newest, plain

SHOWN = 5
"""Findings of one kind that are told one by one; the rest are counted."""

PAGE, ON_ITS_WAY = 2_000, 50_000
TRIES = 5
RESET = NOTICE_TYPE + "reset"
READING = re.compile(r"\s*(select|with|describe|show|explain|values)\b", re.IGNORECASE)


class QuestionError(ValueError):
    """The question cannot be answered; the message is one line with the remedy."""


@dataclass(frozen=True)
class TableStatus:
    """One table as it stands: `positions` per TR, `lag` in entries its stream holds that are not archived yet.

    `forks` counts how often the server was found to have lost entries that the archive has.
    """

    table: str
    rows: int
    files: int
    bytes: int
    newest: datetime | None
    positions: dict[str, str] = field(default_factory=dict)
    lag: int | None = None
    forks: int = 0


@dataclass(frozen=True)
class Answer:
    """What a query gave: decimals as Decimal, exact."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def rich(self) -> Table:
        """The answer as a terminal shows it."""
        return _rich(self.columns, self.rows)


def opened(path: Path, folder: str = "") -> dict[str, DeltaTable]:
    """Every table of the archive by its name, as it stands now; with a folder, of tables of rows those in it.

    Raises QuestionError where there is none to open, or where one is torn: it would tell of rows that are not there.
    """
    tables = {}
    for log in _logs(path):
        name = log.parent.relative_to(path).as_posix()
        if "/" in name and not name.startswith(folder):
            continue
        if found := torn.find(log.parent):
            raise QuestionError(f"{name}: {found.told}; start `sectorwire archive` or `run`, which sets it aside")
        try:
            tables[name] = DeltaTable(str(log.parent))
        except TableNotFoundError:  # one that is being made just now
            continue
        except DeltaError as error:
            raise QuestionError(f"{name} cannot be opened: {_one_line(error)}") from error
    return tables


def _logs(path: Path) -> list[Path]:
    logs = sorted([*path.glob("*/_delta_log"), *path.glob("*/*/_delta_log")])
    if not logs:
        raise QuestionError(f"no archive at {path}; `sectorwire archive` or `run` makes one")
    return logs


async def archive_status(path: Path, prefix: str = "sectorwire", redis: Redis | None = None) -> list[TableStatus]:
    """How far every table is; with a client, also how many entries its stream holds that are not archived yet."""
    tables = opened(path)
    trs = sorted({name.partition("/")[0] for name in tables if "/" in name})
    lags = {tr: await _lag(redis, prefix, tr) for tr in trs} if redis is not None else {}
    forks = {tr: forked(tables[NOTICES], Keys(prefix).of(tr, "changes")) for tr in trs if NOTICES in tables}
    return [_status(name, delta, trs, prefix, lags, forks) for name, delta in tables.items()]


def status_table(statuses: Iterable[TableStatus]) -> Table:
    """The status as a terminal shows it."""
    rows = []
    for one in statuses:
        position = max(one.positions.values(), key=packed, default="")
        seen = one.newest.astimezone(KST).isoformat(" ", "seconds") if one.newest else ""
        rows.append((one.table, f"{one.rows:,}", one.files, f"{one.bytes:,}", position, seen, one.lag, one.forks))
    return _rich(["table", "rows", "files", "bytes", "position", "newest", "lag", "forks"], rows)


def run_sql(path: Path, sql: str) -> Answer:
    """The answer to a query over tables named `ka20003_indices`, `notices` and so on.

    Raises QuestionError where the query is wrong, or is none: the archive is only read here.
    """
    if not READING.match(sql):
        raise QuestionError("only queries are answered: SELECT, WITH, DESCRIBE, SHOW, EXPLAIN")
    tables = opened(path)
    try:
        found = _over(tables).execute(sql).read_all()
    except Exception as error:  # the engine raises what its layers raise
        _check_files(tables)
        known = ", ".join(map(_sql_name, tables))
        raise QuestionError(f"{_one_line(error)} (tables: {known})") from error
    columns = [column.to_pylist() for column in found.columns]
    return Answer(list(found.column_names), list(zip(*columns, strict=True)))


def export(path: Path, table: str, fmt: Literal["parquet", "csv"], out: Path) -> int:
    """Write a table, in the order of its stream, to one file; say how many rows it has. The file is whole or not there.

    Raises QuestionError where there is no such table, where it cannot be read and where the file cannot be written.
    """
    tables = {_sql_name(name): delta for name, delta in opened(path).items()}
    name = _sql_name(table)
    if name not in tables:
        raise QuestionError(f"no table {table!r} in the archive; there are {', '.join(tables)}")
    part = out.with_name(f".{out.name}.part.{fmt}")
    how = "CSV OPTIONS ('format.has_header' 'true')" if fmt == "csv" else "PARQUET"
    sql = f"COPY (SELECT * FROM {name} ORDER BY published_at, seq) TO {quoted(str(part.resolve()))} STORED AS {how}"
    try:
        rows = _over(tables).execute(sql).read_all().column("count").to_pylist()[0]
        part.replace(out)
    except Exception as error:  # the engine raises what its layers raise
        _check_files({name: tables[name]})
        raise QuestionError(f"{name} cannot be written to {out}: {_one_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return int(rows)


def _check_files(tables: Mapping[str, DeltaTable]) -> None:
    """Raise QuestionError where a file of these tables is not there, or is none: the engine does not say which."""
    for name, delta in tables.items():
        for uri in delta.file_uris():
            if not torn.is_whole(Path(uri)):
                raise QuestionError(
                    f"{name} cannot be read: {uri} is missing or damaged; put it back from a copy, or see with "
                    "`sectorwire archive verify` what is lost"
                )


async def verify(redis: Redis, prefix: str, path: Path, catalogue: Catalogue) -> list[str]:
    """What is wrong with the archive, one line each; nothing when archive, streams and snapshots agree.

    A fork that is marked is nothing wrong, as long as the archive has what the server lost there: `known_losses` tells
    it. Raises QuestionError where there is no archive.
    """
    findings: list[str] = []
    _logs(path)
    for tr in catalogue.values():
        client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        durable: str | None = await client.get(Keys(prefix).of(tr.tr, "position", GROUP))
        try:
            archive = await asyncio.to_thread(_TrArchive, path, prefix, tr)
            findings += _shown(tr, await asyncio.to_thread(archive.unaccounted))
            findings += _shown(tr, await asyncio.to_thread(archive.doubled))
            if await parted(redis, archive.stream, archive.reached, archive.parts):
                findings.append(f"{tr.tr}: the server has lost entries: start the archive, which marks where")
                continue
            findings += _shown(tr, await asyncio.to_thread(archive.holes, durable))
            findings += _shown(tr, await _missing(redis, prefix, archive, durable))
            if durable:
                findings += _shown(tr, await _differing(redis, prefix, archive, durable))
        except (QuestionError, DeltaError) as error:
            findings.append(f"{tr.tr}: the archive cannot be read: {_one_line(error)}")
    return findings


def known_losses(path: Path, prefix: str, catalogue: Catalogue) -> list[str]:
    """What servers have lost and the archive has, one line for each fork that is marked; an archive that cannot be
    read has none to tell, `verify` says why.
    """
    told: list[str] = []
    for tr in catalogue.values():
        with suppress(QuestionError, DeltaError):
            told += [f"{tr.tr}: {fork.told}" for fork in _TrArchive(path, prefix, tr).forks]
    return told


class _TrArchive:
    """The tables of one TR, all opened at one moment, and what can be asked of them alone."""

    def __init__(self, path: Path, prefix: str, tr: TrInfo) -> None:
        self.tr = tr
        self.stream = stream = Keys(prefix).of(tr.tr, "changes")
        tables = opened(path, f"{tr.tr}/")
        self.positions = {name: delta.transaction_version(stream) or 0 for name, delta in tables.items()}
        self.reached = reached(tables, stream)
        self.parts = Parts(tables, tr.tr)
        self._entries = self.parts.entries
        self.forks: list[Fork] = known_forks(self.ask, tr.tr) if NOTICES in tables else []
        self._present = present(self.forks)

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """The rows of an answer. Raises QuestionError where a file cannot be read."""
        try:
            return self.parts.ask(sql)
        except Exception as error:  # the engine raises what its layers raise
            raise QuestionError(_one_line(error)) from error

    def unaccounted(self) -> list[str]:
        """Forks of which the archive has not what it had when they were marked, and what only the archive has."""
        found = []
        for fork in self.forks:
            sql = f"SELECT count(*) AS entries FROM {self._entries} WHERE seq IS NOT NULL AND NOT {present([fork])}"
            here = self.ask(sql)[0]["entries"] if fork.ranges else 0
            if here != fork.lost:
                found.append(
                    f"the archive has {here:,} of {fork.lost:,} entries that the server lost at its fork {fork.number}"
                )
        return found

    def doubled(self) -> list[str]:
        """Entries that are there more than once. After a fork two that have no id may have had one stream id."""
        sql = f"""SELECT coalesce(event_id, stream_id) AS id, count(*) AS times FROM {self._entries}
                  GROUP BY 1, CASE WHEN event_id IS NULL THEN fields END HAVING count(*) > 1 ORDER BY 1"""
        return [f"{one['id']} is in the archive {one['times']} times" for one in self.ask(sql)]

    def holes(self, durable: str | None) -> list[str]:
        """Where `seq` does not rise by one, leaving out what the server lost at a fork.

        It goes back only where a server lost entries: a new epoch says so.
        """
        until = ""
        if durable:
            here = f"(SELECT max(seq) FROM {self._entries} WHERE stream_id = {quoted(durable)} AND {self._present})"
            then = moment(durable)
            until = f"AND (published_at < {then} OR (published_at = {then} AND seq <= {here}))"
        sql = f"""SELECT * FROM (
                    SELECT seq, epoch, lag(seq) OVER w AS seq_before, lag(epoch) OVER w AS epoch_before
                    FROM {self._entries} WHERE seq IS NOT NULL AND {self._present} {until}
                    WINDOW w AS (ORDER BY published_at, seq))
                  WHERE seq > seq_before + 1 OR (seq < seq_before AND epoch <= epoch_before) ORDER BY seq"""
        return [f"seq goes from {one['seq_before']} to {one['seq']}" for one in self.ask(sql)]

    def between(self, first: str, last: str) -> set[str]:
        """The ids of the entries between two stream ids. Raises QuestionError where a file cannot be read."""
        try:
            return self.parts.between(first, last)
        except Exception as error:  # the engine raises what its layers raise
            raise QuestionError(_one_line(error)) from error

    def done(self, table: str, durable: str | None) -> int:
        """Up to where a table has to have everything. After a fork its own position is of another history."""
        return max(packed(durable or "0-0"), 0 if self.forks else self.positions.get(table, 0))

    def folded(self, target: str) -> dict[str, dict[str, object]] | None:
        """The rows of a target as the archive has them, by `table/key`; None where no reset of it is archived."""
        mine = f"starts_with(event_id, {quoted(target + '#')}) AND {self._present}"
        resets = self.ask(
            f"SELECT epoch, seq FROM {NOTICES} WHERE op = 'reset' AND {mine} ORDER BY epoch DESC, seq DESC LIMIT 1"
        )
        if not resets:
            return None
        since = f"(epoch > {resets[0]['epoch']} OR (epoch = {resets[0]['epoch']} AND seq > {resets[0]['seq']}))"
        rows: dict[str, dict[str, object]] = {}
        for table in self.tr.tables:
            if f"{self.tr.tr}/{table.table}" not in self.positions:
                continue
            names = ", ".join(f'"{name}"' for name in field_names(table))
            found = self.ask(
                f"""SELECT key, op, extra, {names} FROM (
                      SELECT *, row_number() OVER (PARTITION BY key ORDER BY epoch DESC, seq DESC) AS age
                      FROM {_sql_name(f"{self.tr.tr}/{table.table}")} WHERE {mine} AND {since})
                    WHERE age = 1 AND op <> 'removed'"""
            )
            rows |= _window(table, {one["key"]: _row(table, one) for one in found})
        return rows


async def _missing(redis: Redis, prefix: str, archive: _TrArchive, durable: str | None) -> list[str]:
    """Entries of the stream that should be in the archive, and are not."""
    client: Any = redis
    stream, after = Keys(prefix).of(archive.tr.tr, "changes"), "-"
    missing: list[str] = []
    while page := await client.xrange(stream, after, "+", count=PAGE):
        there = await asyncio.to_thread(archive.between, page[0][0], page[-1][0])
        for stream_id, fields in page:
            done = archive.done(_table_of(archive.tr, fields), durable)
            if packed(stream_id) <= done and not there & names(stream_id, fields):
                missing.append(f"{fields.get('id', '')} ({stream_id}) is in the stream and not in the archive")
        after = f"({page[-1][0]}"
    return missing


async def _differing(redis: Redis, prefix: str, archive: _TrArchive, durable: str) -> list[str]:
    """Rows of the snapshots that are not what the archive has, with what is on its way to it."""
    client: Any = redis
    tr, keys = archive.tr, Keys(prefix)
    start = keys.of(tr.tr, "snapshot", "")
    names = sorted([key async for key in client.scan_iter(match=f"{start}*", count=500)])
    for _ in range(TRIES):
        asking = client.pipeline(transaction=False)  # a full Redis refuses whatever is queued for a transaction
        for key in names:
            asking.hgetall(key)
        asking.xrange(keys.of(tr.tr, "changes"), f"({durable}", "+", count=ON_ITS_WAY)
        for key in names:
            asking.hgetall(key)
        answers = await asking.execute()
        snapshots, on_its_way = answers[: len(names)], answers[len(names)]
        if len(on_its_way) == ON_ITS_WAY:
            return [f"{ON_ITS_WAY:,} entries and more are on their way: ask for the snapshots when fewer are"]
        if snapshots == answers[len(names) + 1 :]:
            break
    else:
        return ["the snapshots change faster than they can be read: ask again"]
    coming = [entry for _, fields in on_its_way if (entry := entry_in(fields))]
    differing: list[str] = []
    for key, snapshot in zip(names, snapshots, strict=True):
        target = f"{tr.tr}?{key.removeprefix(start)}"
        mine = [entry for entry in coming if entry.source == f"/kiwoom/{target}"]
        rows = await asyncio.to_thread(archive.folded, target)
        if rows is None and not any(entry.type == RESET for entry in mine):
            why = "no reset of it is archived yet, the next trading day begins with one"
            differing.append(f"{target}: its snapshot cannot be compared: {why}")
            continue
        carried_on = _carried_on(tr, rows or {}, mine)
        expected = {name: _flat(loads(text)) for name, text in snapshot.items()}
        differing += [
            f"{target} {name} is not as the snapshot has it: {_difference(carried_on, expected, name)}"
            for name in sorted(carried_on.keys() | expected.keys())
            if carried_on.get(name) != expected.get(name)
        ]
    return differing


def _carried_on(
    tr: TrInfo, rows: Mapping[str, dict[str, object]], entries: Iterable[Entry]
) -> dict[str, dict[str, object]]:
    """The rows after these entries, some of which they may have in them: a table may be ahead of what is durable."""
    after = dict(rows)
    for entry in entries:
        if entry.type == RESET:
            after.clear()
        elif entry.row_kind == "removed":
            after.pop(entry.subject, None)
        elif entry.row_kind:
            after[entry.subject] = _flat(entry.data["after"])
    for table in tr.tables:
        mine = {name.partition("/")[2]: row for name, row in after.items() if name.startswith(f"{table.table}/")}
        after = {name: row for name, row in after.items() if name.partition("/")[0] != table.table}
        after |= _window(table, mine)
    return after


def _difference(archived: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> str:
    if name not in archived or name not in expected:
        return "only in the archive" if name in archived else "not in the archive"
    ours, theirs = archived[name], expected[name]
    fields = sorted(field for field in ours.keys() | theirs.keys() if ours.get(field) != theirs.get(field))
    return ", ".join(f"{one} {ours.get(one)} instead of {theirs.get(one)}" for one in fields[:3])


def _table_of(tr: TrInfo, fields: Mapping[str, str]) -> str:
    is_row = ".row." in fields.get("type", "")
    return f"{tr.tr}/{fields.get('subject', '').partition('/')[0]}" if is_row else NOTICES


def _row(table: TableInfo, found: Mapping[str, Any]) -> dict[str, object]:
    row = {name: found[name] for name in field_names(table)}
    return _flat({**row, "extra": loads(found["extra"]) if found["extra"] else {}})


def _flat(row: dict[str, Any]) -> dict[str, object]:
    """A row without what is null, unknown elements beside known ones, numbers in canonical text."""
    flat = {**row, **(row.get("extra") or {})}
    flat.pop("extra", None)
    return {name: _told(value) for name, value in flat.items() if value is not None}


def _told(value: object) -> object:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return plain(Decimal(value))
    return value.isoformat() if isinstance(value, date) else value


def _window(table: TableInfo, rows: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    kept = newest(rows, table.window) if table.window else rows.keys()
    return {f"{table.table}/{key}": rows[key] for key in kept}


def _shown(tr: TrInfo, found: Sequence[str]) -> list[str]:
    more = [f"{tr.tr}: … and {len(found) - SHOWN} more of this kind"] if len(found) > SHOWN else []
    return [f"{tr.tr}: {one}" for one in found[:SHOWN]] + more


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _sql_name(name: str) -> str:
    return name.replace("/", "_")


def _over(tables: Mapping[str, DeltaTable]) -> QueryBuilder:
    engine = QueryBuilder()
    for name, delta in tables.items():
        engine = engine.register(_sql_name(name), delta)
    return engine


def _status(
    name: str,
    delta: DeltaTable,
    trs: Sequence[str],
    prefix: str,
    lags: Mapping[str, int | None],
    forks: Mapping[str, int],
) -> TableStatus:
    actions: Any = delta.get_add_actions(flatten=True)

    def figures(column: str) -> Iterator[Any]:
        if column in actions.column_names:
            yield from (one for one in actions.column(column).to_pylist() if one is not None)

    mine = [name.partition("/")[0]] if "/" in name else trs
    at = {tr: delta.transaction_version(Keys(prefix).of(tr, "changes")) for tr in mine}
    when = "published_at" if name == UNREADABLE else "observed_at"
    return TableStatus(
        table=name,
        rows=sum(figures("num_records")),
        files=actions.num_rows,
        bytes=sum(figures("size_bytes")),
        newest=max(figures(f"max.{when}"), default=None),
        positions={tr: unpacked(position) for tr, position in at.items() if position},
        lag=lags.get(mine[0]) if "/" in name else None,
        forks=sum(forks.get(tr, 0) for tr in mine),
    )


async def _lag(redis: Redis, prefix: str, tr: str) -> int | None:
    """Entries the group was not given yet, or has not acknowledged; None where the server cannot tell."""
    client: Any = redis
    try:
        groups = await client.xinfo_groups(Keys(prefix).of(tr, "changes"))
    except ResponseError:  # no stream yet
        return 0
    mine = next((one for one in groups if one["name"] == GROUP), None)
    if mine is None or mine.get("lag") is None:
        return None
    return int(mine["lag"]) + int(mine["pending"])


def _rich(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if one is None else str(one) for one in row))
    return table
