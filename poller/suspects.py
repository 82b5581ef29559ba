"""The rows that an answer will publish go in; which of them fail which guard comes out, and when to say so.

Pure. Nothing is held back here: a suspect row is published like any other and carries the names. The surprise: of rows
that share a key nobody knows which is which, so they are never compared with what was stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from poller.contract import Row
from poller.diff import Change, Rows
from poller.rows import Reading
from poller.trs.base import Append, Table, Target
from poller.trs.guards import Sight

Tables = Mapping[str, Rows]
SuspectRows = Mapping[str, Sequence[str]]
"""Subject of a published row (`indices/002`) -> the guards it fails; rows that fail none are not in it."""


def suspect_rows(
    target: Target, changes: Sequence[Change], reading: Reading, before: Tables, after: Tables
) -> SuspectRows:
    """The rows among the changes that fail a guard of their table.

    `before` are the stored tables of the same trading day, empty where there is nothing to compare with; `after` are
    the tables as they will stand.
    """
    found: dict[str, list[str]] = {}
    for table, asked in target.tables():
        if not table.guards:
            continue
        fields = {plain.name: field for plain, field in zip(table.row.fields, asked, strict=True)}
        older, stored = _older_lines(table, reading), before.get(table.name, {})
        for change in changes:
            if change.table != table.name or change.after is None:
                continue
            was = stored.get(change.key) if _alone(change.key, stored, after[table.name]) else None
            sight = Sight(change.after, fields, was, _older(change.key, change.after, older))
            failed = [guard.name for guard in table.guards if guard.violated(sight)]
            if failed:
                found[change.name] = failed
    return found


def counted(rows: SuspectRows) -> Counter[str]:
    """How many rows fail each guard."""
    return Counter(guard for guards in rows.values() for guard in guards)


def _alone(key: str, *tables: Rows) -> bool:
    """Whether a key was never repeated."""
    return "#" not in key and not any(f"{key}#2" in rows for rows in tables)


def _older_lines(table: Table, reading: Reading) -> dict[str, list[tuple[Row, Row]]]:
    """The rows of a list in time by their bare key, each with the next older one.

    Newest first, as sent and page after page; the oldest has none, nor has one whose neighbour could not be read.
    """
    pairs: dict[str, list[tuple[Row, Row]]] = {}
    if isinstance(table, Append):
        unread = reading.unread_keys[table.name]
        for (key, row), (older_key, older) in pairwise(reading.rows[table.name]):
            if not any(older_key <= one <= key for one in unread):
                pairs.setdefault(key, []).append((row, older))
    return pairs


def _older(key: str, row: Row, pairs: Mapping[str, list[tuple[Row, Row]]]) -> Row | None:
    return next((older for one, older in pairs.get(key.partition("#")[0], ()) if one == row), None)


class Turn(NamedTuple):
    """A guard that is violated since this commit by these rows, or, without rows, holds again."""

    table: str
    guard: str
    rows: list[str]


class Standing:
    """The suspect rows of one target that stand, so that trouble is told once when it starts and once when it ends.

    A row of a list in time is seldom published twice, so there the rows published last decide.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], set[str]] = {}

    def turns(
        self, target: Target, published: Collection[str], suspects: SuspectRows, *, reset: bool
    ) -> Iterator[Turn]:
        """What a commit that published these subjects turned."""
        for table in target.tr.tables:
            mine = {subject for subject in published if subject.startswith(f"{table.name}/")}
            renewed = reset or (bool(mine) and isinstance(table, Append))
            for guard in table.guards:
                was = self._rows.get((table.name, guard.name), set())
                failed = {subject for subject in mine if guard.name in suspects.get(subject, ())}
                now = failed if renewed else (was - mine) | failed
                self._rows[table.name, guard.name] = now
                if bool(was) != bool(now):
                    yield Turn(table.name, guard.name, sorted(now))
