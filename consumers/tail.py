"""The streams go in; lines that a person enjoys reading come out: ▲ red, ▼ blue, as Korea reads them.

A plain reader without a group: it never holds anything back from trimming, and starts at the end unless asked. Its
position is its own, not the server's, so before every read the two are compared: a server that came back without its
newest entries goes on under ids that may lie before our position, and nothing of that shall be missed.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from decimal import Decimal
from itertools import groupby
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from rich.cells import set_cell_size
from rich.text import Text

from consumers.clock import pause
from consumers.place import may_be_trimmed, order
from poller.contract import Catalogue, Entry, FieldInfo, Keys, TableInfo, entry_in

UP, DOWN, QUIET = "bold red", "bold blue", "dim"
MARKS = {"limit_up": ("▲", UP), "up": ("▲", UP), "limit_down": ("▼", DOWN), "down": ("▼", DOWN)}
FLAT = ("─", QUIET)
HUNDRED_MILLION = Decimal(100_000_000)
BLOCK_MS = 1_000
BATCH = 500
REMEMBERED = 10_000
"""More than any server loses: at most a second of its newest entries, or what a replica was behind."""

START = "0-0"
GAPS = {"stopped": "수집 중단", "broker": "증권사 응답 없음", "store": "저장 서버 장애", "window": "조회 범위를 벗어남"}
"""Why a target was not seen, for people."""


class Reading:
    """How far one stream was read, and the last entries of it that were handed on.

    No more than REMEMBERED of them: where the server loses even more, what is older than those is handed on again.
    """

    def __init__(self, stream: str) -> None:
        self.stream, self.position = stream, START
        self._entry = ""
        """The id of the entry at our position."""
        self._known: deque[tuple[str, str]] = deque(maxlen=REMEMBERED)
        self._began = (0, 0)
        """Epoch and `seq` of the entry before the first one that we wanted."""

    async def begin_at_the_end(self, client: Any) -> None:
        """Want nothing of what is there already."""
        for stream_id, fields in await client.xrevrange(self.stream, count=1):
            self.position, self._entry, self._began = stream_id, fields.get("id", ""), _place(fields)
            self._known.append((stream_id, self._entry))

    def take(self, entries: Sequence[tuple[str, dict[str, str]]]) -> list[dict[str, str]]:
        """The fields of the entries that are to be handed on; we have read to the last of them."""
        wanted = [(stream_id, fields) for stream_id, fields in entries if _place(fields) > self._began]
        self._known.extend((stream_id, fields.get("id", "")) for stream_id, fields in wanted)
        self.position, self._entry = entries[-1][0], entries[-1][1].get("id", "")
        return [fields for _, fields in wanted]

    async def look_back(self, client: Any) -> None:
        """Where the stream is another than the one we have read, go on after the last entry that both have.

        It is another if it ends before our position, or if another entry stands there, or none that nobody can have
        trimmed.
        """
        if self.position == START:
            return
        # in this order, else a trim between looks like a loss; no MULTI, which a full Redis refuses even to look
        asking = client.pipeline(transaction=False)
        asking.xrange(self.stream, self.position, self.position)
        asking.xinfo_stream(self.stream)
        there, facts = await asking.execute(raise_on_error=False)
        if isinstance(facts, ResponseError):
            if "no such key" not in str(facts):
                raise facts
            facts, there = {"last-generated-id": START, "first-entry": None, "length": 0}, []
        last, trimmed = facts["last-generated-id"], may_be_trimmed(self.position, facts)
        another = there[0][1].get("id", "") != self._entry if there else not trimmed
        if order(last) >= order(self.position) and not another:
            return
        had, self.position = self.position, await self._common(client)
        structlog.get_logger("tail").warning(
            "tail.forked", stream=self.stream, had=had, last=last, goes_on_after=self.position
        )

    async def _common(self, client: Any) -> str:
        """The last entry that we know and the stream still has; the start where there is none."""
        while self._known:
            stream_id, entry_id = self._known[-1]
            there = await client.xrange(self.stream, stream_id, stream_id)
            if there and there[0][1].get("id", "") == entry_id:
                self._entry = entry_id
                return stream_id
            self._known.pop()
        return START


async def follow(
    redis: Redis, prefix: str, trs: Iterable[str], *, from_start: bool, over: Callable[[], bool]
) -> AsyncIterator[list[Entry]]:
    """Entries as they come, batch by batch and in the order of each stream, until `over` says so.

    A lost connection is waited for; nothing is skipped then, because the position is ours. Where the server has lost
    entries meanwhile, one line in the log says so, and those that came in their place are handed on.
    """
    places = {key: Reading(key) for key in (Keys(prefix).of(tr, "changes") for tr in trs)}
    client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
    started = from_start
    while not over():
        try:
            if not started:
                for place in places.values():
                    await place.begin_at_the_end(client)
                started = True
            for place in places.values():
                await place.look_back(client)
            positions = {key: place.position for key, place in places.items()}
            found = await client.xread(positions, count=BATCH, block=BLOCK_MS)
        except (RedisError, OSError):
            await pause(0.5)
            continue
        streams = found.items() if isinstance(found, dict) else found or []
        for key, entries in streams:
            if wanted := places[key].take(entries):
                yield readable(key, wanted)


def readable(stream: str, wanted: Iterable[dict[str, str]]) -> list[Entry]:
    """The entries that are ours; of others a line in the log says that they are there."""
    entries = [entry_in(fields) for fields in wanted]
    if None in entries:
        structlog.get_logger("tail").warning("entries.unreadable", stream=stream, entries=entries.count(None))
    return [entry for entry in entries if entry is not None]


def _place(fields: dict[str, str]) -> tuple[int, int]:
    """Epoch and `seq` of an entry, which grow whatever the server loses; of one that is not ours, the largest."""
    try:
        return int(fields["id"].rpartition("#")[2].partition(".")[0]), int(fields["seq"])
    except (KeyError, ValueError):
        return sys.maxsize, 0


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
            why = GAPS.get(data["reason"], data["reason"])
            return f" ⚠ {data['label']}  못 본 구간 {data['from'][11:19]}–{data['to'][11:19]} ({why})"
        case "shape":
            return f" ⚠ {data['label']}  응답 항목이 바뀜: +{data['appeared']} -{data['vanished']}"
    return f" {entry.type} {data['label']}"
