"""The catalogue goes in, the columns of every table come out; deliveries go in, their exact cells come out.

Pure. The surprises: Delta and Arrow cast without a word (1.5 becomes 1, and what does not fit becomes null), so every
cell is checked here before they see it, and a value that its column cannot hold exactly goes to `extra` under its name.
What is no entry of ours, or of a table we do not know, becomes a row of `unreadable`, so nothing is ever left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

from arro3.core import Array, DataType, Table

from consumers.group import Delivery
from poller.contract import Catalogue, Data, Entry, RowData, TableInfo, TrInfo, dumps, printable

Cell = None | str | int
Cells = dict[str, Cell]

NOTICES, UNREADABLE = "notices", "unreadable"
TEXT, WHOLE, EXACT, DAY, MOMENT = "string", "long", "decimal(18,4)", "date", "timestamp"
"""Types by Delta's names for them."""

KIND_TYPES = {
    **dict.fromkeys(("level", "change", "percent"), EXACT),
    **dict.fromkeys(("amount", "quantity", "count"), WHOLE),
    "date": DAY,
}
"""Other kinds (code, text, direction, time) are text. Amounts, quantities and counts are whole in base units."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_ZERO = EPOCH.date()
KST = timezone(timedelta(hours=9))
SEQ_BITS = 20
MAX_MS = (1 << 43) - 1
MAX_NUMBER = (1 << SEQ_BITS) - 1


@dataclass(frozen=True)
class Column:
    """One column, its type by Delta's name."""

    name: str
    type: str


@dataclass(frozen=True)
class Line:
    """One row to archive. `identity` is the cell that no other row of its table shares."""

    stream_id: str
    identity: str
    cells: Cells

    @property
    def position(self) -> int:
        """Where its entry is in the stream."""
        return packed(self.stream_id)


def _columns(kind: str, names: Iterable[str]) -> tuple[Column, ...]:
    return tuple(Column(name, kind) for name in names)


_WHO = (*_columns(TEXT, ("event_id", "stream_id")), Column("seq", WHOLE), Column("op", TEXT))
_WHEN = (
    *_columns(MOMENT, ("observed_from", "observed_at", "published_at")),
    Column("trading_day", DAY),
    Column("session", TEXT),
    *_columns(WHOLE, ("epoch", "version")),
)
NOTICE_COLUMNS = (
    *_WHO,
    *_columns(TEXT, ("tr", "target", "label", "reason", "table")),
    *_WHEN,
    Column("data", TEXT),
)
UNREADABLE_COLUMNS = (
    *_columns(TEXT, ("stream_id", "tr", "event_id")),
    Column("seq", WHOLE),
    Column("published_at", MOMENT),
    Column("trading_day", DAY),
    *_columns(TEXT, ("reason", "fields")),
)
"""`trading_day` is here the day in Korea on which the entry was published: it has no other that we could read."""


def row_columns(tr: TrInfo, table: TableInfo) -> tuple[Column, ...]:
    """The columns of a table of rows: who and when, what was asked, every field and variant, and `extra`."""
    envelope = (*_WHO, *_columns(TEXT, ("target", "key", "label")), *_WHEN)
    fields: dict[str, str] = {}
    for field in table.fields:
        fields[field.field] = KIND_TYPES.get(field.kind, TEXT)
        fields |= {variant["field"]: KIND_TYPES.get(variant["kind"], TEXT) for variant in field.variants}
    taken = {column.name for column in envelope} | fields.keys()
    asked = _columns(TEXT, (element.element for element in tr.request if element.element not in taken))
    typed = tuple(Column(name, kind) for name, kind in fields.items())
    return (*envelope, *asked, *_columns(TEXT, ("changed", "before", "suspect")), *typed, Column("extra", TEXT))


def field_names(table: TableInfo) -> list[str]:
    """The columns that hold a row's own fields, variants included."""
    return [name for field in table.fields for name in (field.field, *(one["field"] for one in field.variants))]


def declared(catalogue: Catalogue) -> dict[str, tuple[Column, ...]]:
    """Every table of the archive by its name, which is its path: `ka20003/indices`, `notices`, `unreadable`."""
    rows = {f"{tr.tr}/{table.table}": row_columns(tr, table) for tr in catalogue.values() for table in tr.tables}
    return {**rows, NOTICES: NOTICE_COLUMNS, UNREADABLE: UNREADABLE_COLUMNS}


def packed(stream_id: str) -> int:
    """A stream id as one number that rises with it: 41 bits of milliseconds today, 20 of the number within.

    >>> packed("1795330635454-3") - packed("1795330635454-0"), unpacked(packed("1795330635454-3"))
    (3, '1795330635454-3')
    """
    ms, _, number = stream_id.partition("-")
    return min(int(ms), MAX_MS) << SEQ_BITS | min(int(number or 0), MAX_NUMBER)


def unpacked(position: int) -> str:
    """The stream id of a position."""
    return f"{position >> SEQ_BITS}-{position & MAX_NUMBER}"


def placed(batch: Iterable[Delivery], tr: TrInfo, columns: Mapping[str, Sequence[Column]]) -> dict[str, list[Line]]:
    """The lines of a batch by table. `columns` are those the tables have, which may be more than are declared."""
    lines: dict[str, list[Line]] = {}
    types = {name: {column.name: column.type for column in some} for name, some in columns.items()}
    for delivery in batch:
        try:
            name, line = _line(delivery, tr, types)
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with an entry, it is kept, and the rest go on
            name, line = UNREADABLE, _unreadable(delivery, error)
        lines.setdefault(name, []).append(line)
    return lines


def arrow(columns: Sequence[Column], lines: Sequence[Line]) -> Table:
    """The lines as an Arrow table of exactly these columns."""
    return Table.from_pydict(
        {one.name: _array(one.type, [line.cells.get(one.name) for line in lines]) for one in columns}
    )


def _array(kind: str, cells: list[Cell]) -> Array:
    """Cells have been checked, so none of the casts here rounds, cuts or drops anything."""
    if kind == WHOLE:
        return Array(cells, DataType.int64())
    if kind == MOMENT:
        return Array(cells, DataType.int64()).cast(DataType.timestamp("us", tz="UTC"))
    if kind == DAY:
        return Array(cells, DataType.int32()).cast(DataType.date32())
    text = Array(cells, DataType.utf8())
    return text.cast(DataType.decimal128(*_digits(kind))) if kind.startswith("decimal") else text


def cell(kind: str, value: object) -> Cell:
    """The value as a column of that type holds it: decimals as text, days and microseconds as numbers.

    Raises ValueError where the column cannot hold it exactly.

    >>> cell("decimal(18,4)", Decimal("2393.33")), cell("date", "1970-01-03"), cell("long", 12)
    ('2393.33', 2, 12)
    """
    if value is None:
        return None
    if kind == TEXT and isinstance(value, str):
        value.encode()  # half a surrogate pair has no place in a file
        return value
    if kind == DAY and isinstance(value, str) and len(value) == 10:
        return (date.fromisoformat(value) - DAY_ZERO).days
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        if kind == WHOLE:
            return value if type(value) is int and abs(value) < 10**18 else int(_exact(Decimal(value), 18, 0))
        if kind.startswith("decimal"):
            return _exact(Decimal(value), *_digits(kind))
    raise ValueError(f"{value!r} does not fit a column of type {kind}")


def _exact(number: Decimal, precision: int, scale: int) -> str:
    """The number in full, if that many digits hold it; looked at digit by digit, since arithmetic would round."""
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or -exponent > scale or number.adjusted() >= precision - scale:
        raise ValueError(f"{number} does not fit {precision} digits with {scale} after the point")
    return format(number, "f")


def _digits(kind: str) -> tuple[int, int]:
    precision, scale = kind.removeprefix("decimal(").removesuffix(")").split(",")
    return int(precision), int(scale)


def _line(delivery: Delivery, tr: TrInfo, types: Mapping[str, Mapping[str, str]]) -> tuple[str, Line]:
    entry = delivery.entry
    if entry is None:
        raise ValueError("not an entry of ours")
    if entry.data["tr"] != tr.tr:
        raise ValueError(f"an entry of {entry.data['tr']} in the stream of {tr.tr}")
    if entry.row_kind is None:
        return NOTICES, _notice(delivery, entry)
    data = RowData.model_validate(entry.data)
    name = f"{tr.tr}/{data.table}"
    if name not in types:
        raise ValueError(f"{tr.tr} has no table {data.table!r} here")
    return name, _row(delivery, entry, data, types[name])


def _row(delivery: Delivery, entry: Entry, data: RowData, types: Mapping[str, str]) -> Line:
    row = dict(data.after or {})
    extra: dict[str, object] = dict(row.pop("extra", None) or {})
    cells: Cells = {
        **data.target,
        **_envelope(delivery, entry, data),
        "key": data.key,
        "changed": dumps(data.changed),
        "before": None if data.before is None else dumps(data.before),
        "suspect": dumps(data.suspect),
    }
    for name, value in row.items():
        if name in types and name not in cells:
            with suppress(ValueError):
                cells[name] = cell(types[name], value)
                continue
        extra[name] = value
    cells["extra"] = dumps(extra) if extra else None
    return _checked(delivery, entry.id, cells)


def _notice(delivery: Delivery, entry: Entry) -> Line:
    data = Data.model_validate(entry.data)
    told = {name: value for name in ("reason", "table") if isinstance(value := entry.data.get(name), str)}
    cells: Cells = {**_envelope(delivery, entry, data), **told, "tr": data.tr, "data": dumps(entry.data)}
    return _checked(delivery, entry.id, cells)


def _envelope(delivery: Delivery, entry: Entry, data: Data) -> Cells:
    return {
        "event_id": entry.id,
        "stream_id": delivery.stream_id,
        "seq": entry.seq,
        "op": entry.row_kind or entry.type.rpartition(".")[2],
        "target": dumps(data.target),
        "label": data.label,
        "observed_from": _microseconds(data.observed_from) if data.observed_from else None,
        "observed_at": _microseconds(data.observed_at),
        "published_at": _published_ms(delivery) * 1000,
        "trading_day": (data.trading_day - DAY_ZERO).days,
        "session": data.session,
        "epoch": data.epoch,
        "version": data.version,
    }


def _unreadable(delivery: Delivery, error: Exception) -> Line:
    """What cannot be decoded, as it came; the reason in one line."""
    published_ms, seq = _published_ms(delivery), delivery.fields.get("seq", "")
    received = (EPOCH + timedelta(milliseconds=published_ms)).astimezone(KST).date()
    cells: Cells = {
        "stream_id": delivery.stream_id,
        "tr": delivery.tr,
        "event_id": delivery.fields.get("id"),
        "seq": int(seq) if seq.isascii() and seq.isdigit() and len(seq) < 19 else None,
        "published_at": published_ms * 1000,
        "trading_day": (received - DAY_ZERO).days,
        "reason": " ".join(str(error).split())[:300],
    }
    stored = {name: printable(value) if isinstance(value, str) else value for name, value in cells.items()}
    stored["fields"] = _escaped(dumps(delivery.fields))
    # the fields as well: after a fork the server may give another entry the same stream id
    identity = f"{delivery.tr} {delivery.stream_id} {stored['fields']}"
    return Line(delivery.stream_id, identity, stored)


def _escaped(text: str) -> str:
    r"""The JSON with escapes for what no file takes: bytes that were not UTF-8 are lone surrogates. None is lost.

    >>> _escaped('{"name":"' + b"\xff".decode("utf-8", "surrogateescape") + '"}')
    '{"name":"\\udcff"}'
    """
    return text.encode(errors="backslashreplace").decode()


def _checked(delivery: Delivery, identity: str, cells: Cells) -> Line:
    """Raises ValueError where a text or a number has no place in a file."""
    for value in cells.values():
        if isinstance(value, str):
            value.encode()
        elif value is not None and abs(value) >= 1 << 63:
            raise ValueError(f"{value} is no 64-bit number")
    return Line(delivery.stream_id, identity, cells)


def _published_ms(delivery: Delivery) -> int:
    return min(int(delivery.stream_id.partition("-")[0]), 1 << 47)  # a day that every reader can print


def _microseconds(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} names no time zone")
    return (moment - EPOCH) // timedelta(microseconds=1)
