"""A whole answer goes in, page by page; its rows under our names come out, with what could not be read.

Pure. The surprises: one bad row must not cost the others, so it is reported and left out; and the pages of a live
market are not one instant, so a row seen on an earlier page is dropped when a later page repeats it, while repeats
within a page are real (ka20002's own example lists one code five times).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from poller.contract import DOCUMENT_KEY, Row
from poller.errors import NotWhole
from poller.trs.base import Append, Document, Keyed, Table, Target
from poller.trs.fields import Code, Field, UnreadableValue, Value, is_saturated

Page = Mapping[str, object]

UNREADABLE_LIMIT = 0.05
"""Above this share of bad rows we do not understand the answer, and a partial diff would be a guess."""

ENVELOPE = frozenset({"return_code", "return_msg"})


@dataclass(frozen=True)
class Unreadable:
    """One value that was none of the forms ever seen."""

    table: str
    key: str
    field: str
    element: str
    reason: str


@dataclass
class Reading:
    """What an answer says: rows per table under their bare keys, repeats included, and what stayed unread."""

    rows: dict[str, list[tuple[str, Row]]] = field(default_factory=dict)
    unread_keys: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    saturated: list[str] = field(default_factory=list)
    elements: dict[str, list[str]] = field(default_factory=dict)


def read_answer(target: Target, pages: Sequence[Page]) -> Reading:
    """Read every table of an answer.

    Raises NotWhole if a table, a required value or a key is missing, or more than 5 % of the rows cannot be read.
    """
    reading = Reading()
    for table, fields in target.tables():
        lines = _document(table, target, pages) if isinstance(table, Document) else _listed(table, target, pages)
        _read_table(target, table, fields, lines, reading)
    total = sum(map(len, reading.rows.values())) + len(reading.unreadable)
    if len(reading.unreadable) > UNREADABLE_LIMIT * total:
        first = reading.unreadable[0]
        raise NotWhole(
            f"{target}: {len(reading.unreadable)} of {total} rows cannot be read, "
            f"first {first.table}/{first.key} {first.field} ({first.element}): {first.reason}"
        )
    return reading


def reaches_back(target: Target, newest: Mapping[str, str], pages: Sequence[Page]) -> bool:
    """Whether these pages suffice for a sliding window: they hold the newest row we have of every append table.

    `newest` has that row's key per table; where we have none, the first page will do. A keyed table needs every page.
    """
    for table in target.tr.tables:
        if isinstance(table, Keyed):
            return False
        if isinstance(table, Append) and table.name in newest:
            keys = {key for key, _ in _listed(table, target, pages)}
            if newest[table.name].partition("#")[0] not in keys:
                return False
    return True


def _document(table: Table, target: Target, pages: Sequence[Page]) -> list[tuple[str, Page]]:
    lists = {other.rows_at for other in target.tr.tables}
    line = {
        name: value
        for name, value in pages[0].items()
        if name not in ENVELOPE and name not in lists and not isinstance(value, list | dict)
    }
    if not any(declared.element in line for declared in table.row.fields):
        raise NotWhole(f"{target}: a success without any element of {table.name}")
    return [(DOCUMENT_KEY, line)]


def _listed(table: Table, target: Target, pages: Sequence[Page]) -> list[tuple[str, Page]]:
    key_field = next(declared for declared in table.row.fields if declared.name == table.key)
    lines: list[tuple[str, Page]] = []
    for number, page in enumerate(pages, 1):
        rows = page.get(table.rows_at or "")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise NotWhole(f"{target}: page {number} has no list {table.rows_at}")
        earlier = {key for key, _ in lines}
        keyed = [(_key(key_field, row, target), row) for row in rows]
        lines += [(key, row) for key, row in keyed if key not in earlier]
    return lines


def _key(key_field: Field, line: Page, target: Target) -> str:
    """The key as the broker sent it, suffix cut; a time may be empty before the opening, a code may not."""
    raw = line.get(key_field.element or "")
    text = str(raw).strip() if isinstance(raw, str | int) else ""
    if not isinstance(key_field, Code):
        return text
    try:
        code = key_field.read(raw)
    except UnreadableValue as error:
        raise NotWhole(f"{target}: key {key_field.element}: {error}") from error
    if code is None:
        raise NotWhole(f"{target}: a row without its key {key_field.element}")
    return str(code)


def _read_table(
    target: Target, table: Table, fields: Sequence[Field], lines: list[tuple[str, Page]], reading: Reading
) -> None:
    reading.rows[table.name] = rows = []
    reading.unread_keys[table.name] = unread = []
    reading.elements[table.name] = sorted({name for _, line in lines for name in line})
    known = {declared.element for declared in fields}
    for key, line in lines:
        try:
            row = _read_row(table, fields, known, key, line, reading)
            rows.append((key, row))
        except _BadRow as bad:
            unread.append(key)
            reading.unreadable.append(bad.found)
            continue
        empty = next((name for name in table.required if row[name] is None), None)
        if empty is not None:
            raise NotWhole(f"{target}: {table.name} has no {empty}: an empty success")


class _BadRow(Exception):
    def __init__(self, found: Unreadable) -> None:
        super().__init__(found.reason)
        self.found = found


def _read_row(
    table: Table, fields: Sequence[Field], known: set[str | None], key: str, line: Page, reading: Reading
) -> Row:
    declared: dict[str, Value] = {}  # under the declared names, which is what derived fields look at
    row: Row = {}
    for plain, asked in zip(table.row.fields, fields, strict=True):
        raw = line.get(asked.element or "")
        try:
            value = asked.read(raw) if asked.derive is None else asked.derive(declared)
        except UnreadableValue as error:
            raise _BadRow(Unreadable(table.name, key, asked.name, asked.element or "", str(error))) from error
        if is_saturated(asked, raw):
            reading.saturated.append(f"{table.name}/{key} {asked.name}")
        declared[plain.name] = row[asked.name] = value
    extra = {name: str(value) for name, value in sorted(line.items()) if name not in known}
    return {**row, "extra": extra} if extra else row
