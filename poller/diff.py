"""Two snapshots of a table go in; the changes between them come out.

Pure: no clock, no Redis, no HTTP. The surprises: a keyed table may repeat a key, so rows are first settled on keys of
their own (`005930`, `005930#2`) in a way that never depends on their order; and an append table is a window, so what is
no longer in it has not been removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from poller.contract import Row, RowKind, dumps, newest
from poller.trs.base import Append, Keyed, Table

Rows = Mapping[str, Row]
Lines = Sequence[tuple[str, Row]]

HOLD_ROWS = 10
HOLD_PERCENT = 20


@dataclass(frozen=True)
class Change:
    """One row's difference: `before` holds the changed fields only, or the whole row when it was removed."""

    kind: RowKind
    table: str
    key: str
    before: Row | None
    after: Row | None

    @property
    def changed(self) -> list[str]:
        """The fields that differ, in the order of the row."""
        return list(self.before) if self.kind == "changed" and self.before else []

    @property
    def name(self) -> str:
        """Where the row is in the snapshot: `indices/002`."""
        return f"{self.table}/{self.key}"


def settle(table: Table, before: Rows, lines: Lines, unread_keys: Iterable[str] = ()) -> dict[str, Row]:
    """The table as it stands after this answer: every row on a key of its own.

    A row equal to a stored one is the stored one, so elements we do not know never make news. A row that could not be
    read (`unread_keys`) keeps its old value. Of an append table the stored rows stay, and the newest window is kept.
    """
    settled: dict[str, Row] = {}
    groups: dict[str, list[Row]] = defaultdict(list)
    stored: dict[str, list[str]] = defaultdict(list)
    for key, row in lines:
        groups[key].append(row)
    for key in before:
        stored[key.partition("#")[0]].append(key)
    for key, group in groups.items():
        settled |= _settle_group(key, group, {full: before[full] for full in stored[key]})
    for key in unread_keys:
        old = next((full for full in sorted(stored[key], key=_ordinal) if full not in settled), None)
        if old is not None:
            settled[old] = before[old]
    if not isinstance(table, Append):
        return settled
    oldest = min(before, default="")
    merged = {**before, **{key: row for key, row in settled.items() if key >= oldest}}
    return {key: merged[key] for key in newest(merged, table.window or len(merged))}


def _settle_group(key: str, rows: list[Row], stored: Rows) -> dict[str, Row]:
    """Rows that share a key: those equal to a stored one keep its place, the rest fill the free places in order."""
    if len(rows) == 1 and stored.keys() <= {key}:  # mutants: `<` goes the long way to the same row
        row = rows[0]
        return {key: stored[key] if key in stored and _same(stored[key], row) else row}
    settled: dict[str, Row] = {}
    rest = sorted(rows, key=lambda row: (dumps(_known(row)), dumps(row.get("extra"))))
    for full in sorted(stored, key=_ordinal):
        twin = next((row for row in rest if _same(stored[full], row)), None)
        if twin is not None:
            settled[full] = stored[full]
            rest.remove(twin)
    ordinal = 1
    for row in rest:
        while _full_key(key, ordinal) in settled:
            ordinal += 1
        settled[_full_key(key, ordinal)] = row
    return settled


def _full_key(key: str, ordinal: int) -> str:
    return key if ordinal == 1 else f"{key}#{ordinal}"


def _ordinal(full_key: str) -> int:
    return int(full_key.partition("#")[2] or 1)


def _known(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "extra"}


def _same(one: Row, other: Row) -> bool:
    return _known(one) == _known(other)


def baseline(table: Table, settled: Rows) -> list[Change]:
    """The rows of a table at a reset: facts, in the order of their keys."""
    return [Change("baseline", table.name, key, None, settled[key]) for key in sorted(settled)]


def diff(table: Table, before: Rows, settled: Rows) -> list[Change]:
    """What happened between two settled snapshots, in the order of the keys.

    Raises nothing; `apply(table, before, diff(table, before, settled)) == settled`.
    """
    new: RowKind = "appended" if isinstance(table, Append) else "added"
    changes: list[Change] = []
    for key in sorted(before.keys() | settled.keys()):
        old, row = before.get(key), settled.get(key)
        if old is None:
            changes.append(Change(new, table.name, key, None, row))
        elif row is None:
            if isinstance(table, Keyed):
                changes.append(Change("removed", table.name, key, old, None))
        elif not _same(old, row):
            differing = {name: old.get(name) for name in _known(row) if old.get(name) != row.get(name)}
            changes.append(Change("changed", table.name, key, differing, row))
    return changes


def apply(table: Table, before: Rows, changes: Iterable[Change]) -> dict[str, Row]:
    """The snapshot after the changes; what a reader does with the stream."""
    rows = dict(before)
    for change in changes:
        if change.after is None:
            del rows[change.key]
        else:
            rows[change.key] = change.after
    return {key: rows[key] for key in newest(rows, table.window)} if table.window else rows


def missing_rows(table: Table, before: Rows, settled: Rows) -> list[str]:
    """The keys whose loss is too large to believe at once; empty when there is nothing to doubt.

    More than 10 rows and 20 % of a keyed table, or all of it, are far more often a broken answer than news.
    """
    if not isinstance(table, Keyed):
        return []
    missing = sorted(before.keys() - settled.keys())
    allowed = max(HOLD_ROWS, len(before) * HOLD_PERCENT // 100)  # mutants: a whole count compares alike with `/`
    return missing if missing and (len(missing) > allowed or not settled) else []


def window_was_lost(table: Table, before: Rows, lines: Lines, unread_keys: Iterable[str] = ()) -> bool:
    """Whether rows may have come and gone unseen: the newest row we had is no longer among those sent."""
    if not isinstance(table, Append) or not before:
        return False
    return max(before).partition("#")[0] not in {key for key, _ in lines} | set(unread_keys)
