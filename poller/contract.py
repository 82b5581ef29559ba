"""What crosses the stream: the names of keys, the entries and their data, how they are written and read back.

Pure, and of interest to readers in any language: it imports nothing but pydantic and the standard library. The
surprise: numbers are JSON numbers in canonical form (`90.3`, never `90.30` or `9.03E+1`), with at most 15 digits, so a
double holds them; read here they are Decimal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Row = dict[str, object]
RowKind = Literal["baseline", "added", "changed", "removed", "appended"]
ResetReason = Literal["first", "new_day", "rollback", "declaration"]
GapReason = Literal["stopped", "broker", "store", "window"]
Mode = Literal["document", "keyed", "append"]

ROW_TYPE = "sectorwire.row."
NOTICE_TYPE = "sectorwire."
DOCUMENT_KEY = "-"
ONLY_KEY, EVERYTHING = "default", "*"
"""The name of an app key that has none, and what stands for the broker as a whole beside the names of keys."""

RESERVED = frozenset({
    "tr", "target", "table", "key", "op", "changed", "before", "after", "observed_from", "observed_at", "published_at",
    "trading_day", "session", "epoch", "version", "seq", "event_id", "stream_id", "suspect", "extra", "label",
})  # fmt: skip
"""Names no field of a row may have: they are columns beside it in the archive."""

STREAMS = {"changes": "meta", "alerts": "alerting"}
"""A TR's streams, which groups read: what changed, what the rules decided; beside each the hash with its `seq`."""


class Keys:
    """The name of every key. The braces are a cluster's hash tag: all keys of a TR share a slot, so a script may too.

    >>> Keys("sectorwire").of("ka20003", "changes")
    'sectorwire:{ka20003}:changes'
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def of(self, tr: str, part: str, *more: str) -> str:
        """The key that holds one part of a TR: `changes`, `meta`, `snapshot` TARGET, `state` TARGET."""
        return ":".join((self.prefix, f"{{{tr}}}", part, *more))

    @property
    def leader(self) -> str:
        """Which poller leads now."""
        return f"{self.prefix}:leader"

    @property
    def app_keys(self) -> str:
        """How each app key is, by its name in the configuration; the broker as a whole under `*`."""
        return f"{self.prefix}:keys"

    def slot(self, limit: str) -> str:
        """The request slot that processes share: a TR's for people's questions, `*` on the mock server."""
        return f"{self.prefix}:slot:{limit}"

    def token(self, hashed_key: str) -> str:
        """The broker token of one app key, which is named by a hash that hides it."""
        return f"{self.prefix}:token:{hashed_key}"


def plain(number: Decimal) -> str:
    """A number in canonical form.

    >>> plain(Decimal("90.30")), plain(Decimal("-0")), plain(Decimal("1E+3"))
    ('90.3', '0', '1000')
    """
    text = format(number.normalize(), "f")
    return "0" if text == "-0" else text


def dumps(value: object) -> str:
    """Canonical JSON: compact, keys in the order given, Korean as it is, decimals plain.

    >>> dumps({"label": "전기/전자", "change_pct": Decimal("-0.10"), "open": None})
    '{"label":"전기/전자","change_pct":-0.1,"open":null}'
    """
    match value:
        case None:
            return "null"
        case str():
            return encode_basestring(value)
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Decimal():
            return plain(value)
        case Mapping():
            return "{" + ",".join(f"{encode_basestring(str(k))}:{dumps(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(dumps, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no place in an entry")


def loads(text: str | bytes) -> Any:
    """Read canonical JSON back; fractions become Decimal, so nothing is rounded."""
    return json.loads(text, parse_float=Decimal)


class Data(BaseModel):
    """What every entry's `data` holds."""

    model_config = ConfigDict(extra="allow", frozen=True)

    tr: str = Field(description="the report's code, e.g. ka20003")
    target: dict[str, str] = Field(description="the request body whose answer this is about")
    label: str = Field(description="what a person calls the row, or the target: a sector's or a stock's name")
    trading_day: date = Field(description="the trading day the answer belongs to")
    session: str = Field(description="the regular market's session: pre, regular, closing, after or closed")
    observed_from: datetime | None = Field(description="the last good poll before this one, null at first sight")
    observed_at: datetime = Field(description="when the answer was complete; the change happened in between")
    epoch: int = Field(description="the reign of the poller that wrote it; no (epoch, seq) ever repeats")
    version: int = Field(description="the snapshot that this commit made, rising by one per commit of a target")


class RowData(Data):
    """One row's difference between two snapshots."""

    table: str
    key: str = Field(description="what identifies the row within its table; `-` for a document")
    changed: list[str] = Field(description="the fields that differ; empty unless the type is changed")
    before: dict[str, Any] | None = Field(description="the changed fields as they were; the whole row when removed")
    after: dict[str, Any] | None = Field(description="the whole row as it is; null when removed")
    suspect: list[str] = Field(
        default_factory=list,
        description="guards that this row fails, such as breadth; absent if none, `sectorwire catalogue` explains them",
    )


class ResetData(Data):
    """The target starts afresh: empty its tables, baselines follow in the same commit."""

    reason: ResetReason
    joined: dict[str, list[str]] = Field(default_factory=dict, description="new_day: keys that came, per keyed table")
    left: dict[str, list[str]] = Field(default_factory=dict, description="new_day: keys that went, per keyed table")


class GapData(Data):
    """A stretch of scheduled time in which the target was not seen, or rows of a window that nobody saw."""

    from_: Annotated[datetime, Field(alias="from")]
    to: datetime
    polls_missed: int
    reason: GapReason
    table: str | None = Field(default=None, description="window: the table that lost rows between two polls")


class ShapeData(Data):
    """The broker's elements changed; or, with the subject `sectors`, its list of a market's sectors did.

    Of that list the changes are told once per report that is asked sector by sector, in the stream of one target of
    that market. `observed_at` is that target's last good poll, shortly after the list was read.
    """

    appeared: dict[str, list[str]] = Field(
        description="elements never seen before, per table; under `sectors` those newly listed, as `031 name`"
    )
    vanished: dict[str, list[str]] = Field(
        description="elements no longer sent, per table; under `sectors` those no longer listed, under an old name too"
    )


class Entry(BaseModel):
    """One entry of a stream: a CloudEvents 1.0 event, its attributes as fields and the payload as JSON in `data`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(description="unique for ever and stable across retries: target#epoch.version.number")
    source: str = Field(description="/kiwoom/ and the target")
    type: str = Field(description="sectorwire.row.* or sectorwire.reset, .gap, .shape")
    subject: str = Field(description="table/key; `-` where no single row is meant")
    time: datetime = Field(description="when the answer was complete")
    seq: int = Field(description="rising by one within the TR's stream")
    datacontenttype: Literal["application/json"] = "application/json"
    data: dict[str, Any]

    @property
    def row_kind(self) -> str | None:
        """baseline, added, changed, removed or appended; None for a notice."""
        return self.type.removeprefix(ROW_TYPE) if self.type.startswith(ROW_TYPE) else None


def decode(fields: Mapping[Any, Any]) -> Entry:
    """The entry in a stream entry's fields, bytes or text, as a Redis client hands them over.

    Raises pydantic.ValidationError where they are not an entry of ours.
    """
    texts = {_text(name): _text(value) for name, value in fields.items()}
    return Entry.model_validate({**texts, "data": loads(texts["data"])})


def entry_in(fields: Mapping[Any, Any]) -> Entry | None:
    """The entry in a stream entry's fields; None where they are not an entry of ours."""
    try:
        return decode(fields)
    except (ValidationError, ValueError, KeyError):
        return None


def printable(text: str) -> str:
    """The text with `?` for what no file and no terminal takes: lone surrogates, so bytes that were not UTF-8."""
    return text.encode(errors="replace").decode()


def _text(value: str | bytes) -> str:
    """Raises ValueError for what is not UTF-8; a client that reads such bytes at all makes lone surrogates of them."""
    if isinstance(value, bytes):
        return value.decode()
    value.encode()
    return value


class FieldInfo(BaseModel):
    """One field of a table, for people and for readers of the stream."""

    field: str
    element: str | None
    korean: str
    kind: str
    unit: str | None
    scale: int | float | None
    variants: list[dict[str, Any]]
    derived: str | None = Field(default=None, description="what a field without an element is made of")


class TableInfo(BaseModel):
    """One table: how its rows live and what identifies them."""

    table: str
    mode: Mode
    key: list[str]
    window: int | None
    element: str | None
    fields: list[FieldInfo]
    headline: list[str] = Field(default_factory=list, exclude=True)
    guards: dict[str, str] = Field(default_factory=dict, exclude=True)

    def info(self, name: str) -> FieldInfo | None:
        """The field of that name, a variant's name included."""
        for info in self.fields:
            if name == info.field or any(name == variant["field"] for variant in info.variants):
                return info
        return None


class RequestInfo(BaseModel):
    """One element of a request: its allowed values with their meaning, or their form in words."""

    element: str
    korean: str
    required: bool
    values: dict[str, str] | str


class TrInfo(BaseModel):
    """What a reader needs to know of a TR."""

    tr: str
    name: str
    path: str
    request: list[RequestInfo]
    tables: list[TableInfo]

    def table(self, name: str) -> TableInfo:
        """The table of that name. Raises KeyError."""
        return {table.table: table for table in self.tables}[name]


Catalogue = dict[str, TrInfo]
"""The TRs by code, as plain data: all that consumers ever learn of them."""


def newest(keys: Iterable[str], window: int) -> set[str]:
    """The keys an append table keeps: the newest by their text, which is a date or a time."""
    return set(sorted(keys)[-window:])


def fold(entries: Iterable[Entry], catalogue: Catalogue) -> dict[str, dict[str, Row]]:
    """Replay entries: target -> `table/key` -> row, which is what the snapshot hashes hold.

    A reset empties its target's tables; an append table keeps its newest window.
    """
    targets: dict[str, dict[str, Row]] = {}
    for entry in entries:
        rows = targets.setdefault(entry.source.removeprefix("/kiwoom/"), {})
        if entry.type == NOTICE_TYPE + "reset":
            rows.clear()
        elif entry.row_kind == "removed":
            del rows[entry.subject]
        elif entry.row_kind:
            rows[entry.subject] = entry.data["after"]
            _forget(rows, entry, catalogue)
    return targets


def _forget(rows: dict[str, Row], entry: Entry, catalogue: Catalogue) -> None:
    """Drop what slid out of an append table's window."""
    table = catalogue[entry.data["tr"]].table(entry.data["table"])
    if table.window is None:
        return
    mine = [name for name in rows if name.startswith(f"{table.table}/")]
    for name in set(mine) - newest(mine, table.window):
        del rows[name]
