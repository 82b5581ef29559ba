"""The streams go in; lines that a person enjoys reading come out: ▲ red, ▼ blue, as Korea reads them.

A plain reader without a group: it never holds anything back from trimming, and starts at the end unless asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from decimal import Decimal
from itertools import groupby
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.cells import set_cell_size
from rich.text import Text

from consumers.clock import pause
from poller.contract import Catalogue, Entry, FieldInfo, Keys, TableInfo, decode

UP, DOWN, QUIET = "bold red", "bold blue", "dim"
MARKS = {"limit_up": ("▲", UP), "up": ("▲", UP), "limit_down": ("▼", DOWN), "down": ("▼", DOWN)}
FLAT = ("─", QUIET)
HUNDRED_MILLION = Decimal(100_000_000)
BLOCK_MS = 1_000
BATCH = 500


async def follow(
    redis: Redis, prefix: str, trs: Iterable[str], *, from_start: bool, over: Callable[[], bool]
) -> AsyncIterator[list[Entry]]:
    """Entries as they come, batch by batch and in the order of each stream, until `over` says so.

    A lost connection is waited for; nothing is skipped then, because the position is ours.
    """
    keys = {Keys(prefix).of(tr, "changes"): "0-0" for tr in trs}
    client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
    started = from_start
    while not over():
        try:
            if not started:
                for key in keys:
                    last = await client.xrevrange(key, count=1)
                    keys[key] = last[0][0] if last else "0-0"
                started = True
            found = await client.xread(dict(keys), count=BATCH, block=BLOCK_MS)
        except (RedisError, OSError):
            await pause(0.5)
            continue
        streams = found.items() if isinstance(found, dict) else found or []
        for key, entries in streams:
            keys[key] = entries[-1][0]
            yield [decode(fields) for _, fields in entries]


def lines(entries: Sequence[Entry], catalogue: Catalogue, top: int | None) -> list[Text]:
    """What to print for some entries of one stream: of each commit the `top` largest moves, and how many more."""
    printed: list[Text] = []
    for _, commit in groupby(entries, key=lambda entry: entry.id.rpartition(".")[0]):
        together = list(commit)
        shown = together if top is None else _largest(together, catalogue)[:top]
        printed += [line(entry, catalogue) for entry in shown]
        more = len(together) - len(shown)
        if more > 0:
            printed.append(Text(f"{'':9}{together[0].data['tr']}  … 외 {more}건", QUIET))
    return printed


def _largest(entries: Sequence[Entry], catalogue: Catalogue) -> list[Entry]:
    """The entries by how much a person wants to see them; of appended rows only the newest."""
    newest = {entry.data["table"]: entry for entry in entries if entry.row_kind == "appended"}
    worth = [entry for entry in entries if entry.row_kind != "appended" or newest[entry.data["table"]] is entry]
    return sorted(worth, key=lambda entry: _weight(entry, catalogue), reverse=True)


def line(entry: Entry, catalogue: Catalogue) -> Text:
    """One entry as one line: time, report, mark, name, the fields that matter."""
    data = entry.data
    tr = catalogue.get(data["tr"])
    text = Text(f"{data['observed_at'][11:19]} ", QUIET)
    text.append(f"{data['tr']} ", "cyan")
    text.append(set_cell_size(tr.name.removesuffix("요청") if tr else "", 18))
    if entry.row_kind is None or tr is None:
        return text.append(_notice(entry), "yellow")
    table = tr.table(data["table"])
    row = data["after"] or data["before"] or {}
    mark, style = MARKS.get(str(row.get("direction")), FLAT)
    text.append(f" {mark} ", style)
    text.append(set_cell_size(_name(data, row, table), 25), "bold")
    if data["after"] is None:
        return text.append(" 사라짐", QUIET)
    shown = _headline(row, table)
    bare = bool(shown) and shown[0][1].kind == "level"
    for name, info in shown:
        text.append("  ")
        text.append(_value(row[name], info, bare=bare), _colour(row[name], info, style))
    if entry.row_kind in {"baseline", "added"}:
        text.append("  처음" if entry.row_kind == "baseline" else "  새로", QUIET)
    if data.get("suspect"):
        text.append(f"  ⚠ {', '.join(data['suspect'])}", "yellow")
    return text


def _name(data: dict[str, Any], row: dict[str, Any], table: TableInfo) -> str:
    """What the row is called: with its code in a keyed table, with its time or date in a list of them."""
    if table.mode == "document":
        return str(data["label"])
    if table.mode == "append":
        return f"{data['label']} {row.get(table.key[0]) or data['key']}"
    return f"{data['key']} {data['label']}"


def _headline(row: dict[str, Any], table: TableInfo) -> list[tuple[str, FieldInfo]]:
    """The fields to show, under the names this row has (won or shares), without those that are empty."""
    found = []
    for info in filter(None, map(table.info, table.headline)):
        forms = [info, *(info.model_copy(update=variant) for variant in info.variants)]
        found += [(form.field, form) for form in forms if row.get(form.field) is not None]
    return found


def _value(value: object, info: FieldInfo, *, bare: bool) -> str:
    label = "" if bare else f"{info.korean} "
    if not isinstance(value, int | Decimal):
        return f"{label}{value}"
    signed = "+" if info.kind in {"change", "percent", "amount", "quantity"} else ""
    if info.kind == "percent":
        return f"{label}{value:{signed}.2f} %"
    if info.unit == "KRW" and info.kind == "amount":
        return f"{label}{value / HUNDRED_MILLION:{signed},.0f}억"
    number = f"{value:{signed},.{2 if info.unit == 'points' else 0}f}"
    return f"{number:>9}" if bare else f"{label}{number}"


def _colour(value: object, info: FieldInfo, style: str) -> str:
    """Signed figures by their own sign; levels as the row goes."""
    if info.kind in {"amount", "quantity"} and isinstance(value, int | Decimal):
        return UP if value > 0 else DOWN if value < 0 else QUIET
    return style


def _weight(entry: Entry, catalogue: Catalogue) -> tuple[int, Decimal]:
    """How much a person wants to see this entry: notices first, then what is new, then the largest relative moves."""
    if entry.row_kind is None:
        return 2, Decimal(0)
    before, after = entry.data["before"] or {}, entry.data["after"] or {}
    tr = catalogue.get(entry.data["tr"])
    names = _headline(after, tr.table(entry.data["table"])) if tr else []
    name = next((name for name, _ in names if name in before), None)
    if name is None:
        return (0 if entry.row_kind == "changed" else 1), Decimal(0)
    old, new = Decimal(before[name] or 0), Decimal(after[name] or 0)
    return 1, abs(new - old) / max(abs(old), Decimal(1))


def _notice(entry: Entry) -> str:
    data = entry.data
    match entry.type.removeprefix("sectorwire."):
        case "reset":
            why = {"first": "첫 조회", "new_day": "새 거래일", "rollback": "되감김", "declaration": "새 정의"}
            return f" ⟲ {data['label']}  기준을 새로 잡음: {why.get(data['reason'], data['reason'])}"
        case "gap":
            return f" ⚠ {data['label']}  못 본 구간 {data['from'][11:19]}–{data['to'][11:19]} ({data['reason']})"
        case "shape":
            return f" ⚠ {data['label']}  응답 항목이 바뀜: +{data['appeared']} -{data['vanished']}"
    return f" {entry.type} {data['label']}"
