"""A day of faulty answers, written down: when, what the broker sends, and exactly what stands in the stream after it.

How to read the tables. A line is one poll, a minute after the one before; lines without a time go on with what is
expected, and `#` opens a remark.

* The broker sends `key=value` for every row, the value being its price or level: `001..040=100` are forty rows.
  `/` ends a page. `005→101` gives a row another value, `-005` takes it away, `+element` and `-element` do so in every
  row; `same` stands for the answer before. In brackets is what is no page: `(500)`, `(cut)`, `(page 1 again)`.
* `restart` is a process that dies and another that follows, which knows what is stored and nothing else.
* Expected are the entries, in order and complete, then what is not an entry: `hold stocks 20` (twenty rows are missed
  and nothing is said), `not whole: …` and `later: …` (the answer is refused, for a reason that holds these words),
  `quarantined` (it was put aside for a person), `not compared`.

After every line the stream is folded, and has to be the snapshot.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from poller.catalogue import described
from poller.clock import Clock
from poller.contract import Entry, decode, dumps, fold
from poller.errors import NotWhole, TryLater
from poller.grid import Job, Timing
from poller.poll import Desk, Watched
from poller.quarantine import Quarantine
from poller.session import KST, Calendar
from poller.store import Store
from poller.trs.base import Append, Document, Table, Target
from tests.builders import MONDAY, target
from tests.conftest import HandClock, broker_for

EVERY_S = 60.0
DAYS = {name: MONDAY + timedelta(days=number) for number, name in enumerate(("Mon", "Tue", "Wed"))}
TOKEN = {"return_code": 0, "token": "t", "expires_dt": "20991231000000"}

STOCKS = """
Mon 19:34    | 001..020=100 / 021..040=100                       | reset first; baseline stocks/001..040 100
Mon 19:35    | same                                              | nothing
Mon 19:36    | same 005→101                                      | changed stocks/005 price 100→101

# pages vanish: whatever became of the others, nothing is compared
Mon 19:37    | 001..020=100 / (500)                              | later: HTTP 500
Mon 19:38    | 001..020=100 / (cut)                              | later: without JSON
Mon 19:39    | 001..020=100 / (page 1 again)                     | not whole: brings no row that is new; quarantined
Mon 19:40    | 001..040=100 005→101                              | gap broker 3
Mon 19:41    | 001..020=100 005→101 / (no list)                  | not whole: page 2 has no list inds_stkpc; quarantined

# a page vanishes without a word, and comes back: no row was ever gone
Mon 19:42    | 001..020=100 005→101                              | hold stocks 20
Mon 19:43    | 001..040=100 005→101                              | nothing

# a row slides over the border of two pages: it is one row, as it stood on the first
Mon 19:44    | 001..021=100 005→101 / 021=999 022..040=100       | nothing

# a code comes twice on one page: these are two rows, in whatever order
Mon 19:45    | 001..040=100 005→101 007=90                       | added stocks/007#2 90
Mon 19:46    | 007=90 001..040=100 005→101                       | nothing
Mon 19:47    | 001..040=100 005→101                              | removed stocks/007#2

# elements appear and vanish
Mon 19:48    | same +zz_new                                      | shape stocks +zz_new
Mon 19:49    | same 006→102                                      | changed stocks/006 price 100→102
Mon 19:50    | same -zz_new -sel_bid                             | shape stocks -sel_bid -zz_new
Mon 19:51    | same +sel_bid                                     | shape stocks +sel_bid

# one row of forty is unreadable and keeps its value; three are too many
Mon 19:52    | same 006→abc 008→103                              | changed stocks/008 price 100→103; quarantined
Mon 19:53    | same 009→104                                      | changed stocks/009 price 100→104
Mon 19:54    | same 010→abc 011→abc                              | not whole: 3 of 40 rows cannot be read; quarantined
Mon 19:55    | same 006→102 010→100 011→100                      | nothing

# the table shrinks and stays shrunk; a second answer counts after a full interval, also in another process
Mon 19:56:00 | 001..020=100 005→101 006→102 008→103 009→104      | hold stocks 20
Mon 19:56:30 | restart same                                      | hold stocks 20
Mon 19:57:00 | same                                              | removed stocks/021..040
Mon 19:58    | same -020                                         | removed stocks/020
Mon 19:59    | same 021=50                                       | added stocks/021 50

# before the opening everything is zero; then a day begins
Tue 00:01    | 001..019=0 021=0                                  | not compared
Tue 08:59    | same                                              | not compared
Tue 09:00    | 001..019=110 022..023=7                           | reset new_day joined=022,023 left=021
             |                                                   | baseline stocks/001..019 110
             |                                                   | baseline stocks/022..023 7
Tue 09:01    | same 022→8                                        | changed stocks/022 price 7→8
"""

INDICES = """
Mon 15:25    | 001..030=2400                                     | reset first; baseline indices/001..030 2400
Mon 15:26    | same 013→+2401.50                                 | changed indices/013 level 2400→2401.5
Mon 15:27    | same 013→-2,401.5                                 | nothing

# the table is empty, once; then it is not there at all
Mon 15:28    | (empty)                                           | hold indices 30
Mon 15:29    | 001..030=2400 013→2401.5                          | nothing
Mon 15:30    | (no list)                                         | not whole: has no list all_inds_idex; quarantined
Mon 15:31    | same                                              | nothing

# it shrinks, and shrinks again: the second answer has to miss the same rows
Mon 15:32    | 001..015=2400 013→2401.5                          | hold indices 15
Mon 15:33    | 001..014=2400 013→2401.5                          | hold indices 16
Mon 15:34    | restart same                                      | removed indices/015..030
Mon 15:35    | 001..030=2400 013→2401.5                          | added indices/015..030 2400

Mon 15:36    | same 002→abc 003→2402                             | changed indices/003 level 2400→2402; quarantined
Mon 15:37    | same 002→2403 -wght                               | shape indices -wght
             |                                                   | changed indices/002 level 2400→2403
Mon 15:39    | same +wght                                        | shape indices +wght
Mon 15:40    | restart same                                      | nothing

# half of the sectors are gone overnight: not believed before a second answer, whoever asks
Tue 03:00    | 001..030=0                                        | not compared
Tue 09:00    | 001..015=2500                                     | hold indices 15
Tue 09:01    | restart same                                      | reset new_day joined=- left=016..030
             |                                                   | baseline indices/001..015 2500
Tue 09:02    | 001..030=2500                                     | added indices/016..030 2500

# nobody looks for the rest of the day; the next one begins with an empty table, which says nothing but that
Wed 09:00    | (empty)                                           | gap stopped 397; hold indices *
Wed 09:01    | 001..025=2600                                     | reset new_day joined=- left=026..030
             |                                                   | baseline indices/001..025 2600
"""

TICKS = """
Mon 15:30    | quote=2400 152700..153000=10                      | reset first; baseline quote/- 2400
             |                                                   | baseline ticks/152700..153000 10
Mon 15:31    | quote=2400 152800..153100=10                      | appended ticks/153010..153100 10
Mon 15:32    | same quote→2401 153040→11                         | changed quote/- level 2400→2401
             |                                                   | changed ticks/153040 level 10→11

# successes that hold nothing
Mon 15:33    | quote=2401                                        | not whole: came back empty; quarantined
Mon 15:34    | quote=0 152800..153100=10 153040→11               | not whole: quote has no level; quarantined

# the window has lost the row seen last, on both pages; what it skipped comes late
Mon 15:35    | quote=2401 153200..153230=10 / 153130..153150=10  | gap broker 2; gap window ticks
             |                                                   | appended ticks/153130..153230 10
Mon 15:36    | quote=2401 152900..153230=10 153040→11            | appended ticks/153110..153120 10

# the marker rows of the close come, and move until the evening
Mon 15:37    | restart same 888888=14 999999=5                   | appended ticks/888888 14; appended ticks/999999 5
Mon 15:38    | same 999999→6 quote→abc                           | changed ticks/999999 level 5→6; quarantined
Mon 15:39    | same quote→2402 153230=10                         | changed quote/- level 2401→2402
             |                                                   | appended ticks/153230#2 10
Mon 15:40    | same                                              | nothing
Mon 18:10    | restart same 999999→7 888888→15                   | changed ticks/888888 level 14→15
             |                                                   | changed ticks/999999 level 6→7

# yesterday's close, then zeros, then a day
Tue 07:00    | same                                              | not compared
Tue 08:30    | quote=0                                           | not compared
Tue 09:00:20 | quote=2500 090000..090010=1                       | reset new_day joined=- left=-
             |                                                   | baseline quote/- 2500
             |                                                   | baseline ticks/090000..090010 1
Tue 09:01:20 | quote=2500 090000..090110=1                       | appended ticks/090020..090110 1
"""

DAYS_TABLE = """
Mon 15:29    | quote=2400 20261026..20261123=2390                | reset first; baseline quote/- 2400
             |                                                   | baseline days/20261026..20261123 2390
Mon 15:30    | same quote→2401 20261123→2401                     | changed quote/- level 2400→2401
             |                                                   | changed days/20261123 level 2390→2401

# a day is revised; one that is older than all that is kept does not come back
Mon 15:31    | same 20261120→2391 20261023=2380                  | changed days/20261120 level 2390→2391

# the first page holds the newest day we have, so the others are not asked for
Mon 15:32    | quote=2401 20261123=2401 / (500)                  | nothing

# today is missing from the list, and was not removed; the quote goes on
Mon 15:33    | quote=2402 20261119=2390 20261120=2391            | gap window days; changed quote/- level 2401→2402
Mon 15:34    | quote=2402 20261119=2390 20261120=2391 20261123=2402 | changed days/20261123 level 2401→2402

# a day is unreadable, and the declaration's elements are not all sent
Mon 15:35    | quote=2402 20261026..20261123=2390 20261120→2391 20261123→2402 20261119→1e5 | quarantined
Mon 15:36    | restart same 20261119→2390 -acc_trde_qty_n        | shape days -acc_trde_qty_n
Mon 15:37    | same +acc_trde_qty_n                              | shape days +acc_trde_qty_n
Mon 15:39    | quote=2402                                        | not whole: came back empty; quarantined
Mon 15:40    | restart quote=2402 20261120=2391 20261123=2402    | gap stopped 2

Tue 08:30    | same 20261124=0 quote→0                           | not compared
Tue 09:00    | quote=2500 20261120=2391 20261123=2403 20261124=2500 | reset new_day joined=- left=-
             |                                                   | baseline quote/- 2500; baseline days/20261120 2391
             |                                                   | baseline days/20261123 2403
             |                                                   | baseline days/20261124 2500
"""

TABLES = {
    "ka20002": (target("ka20002", inds_cd="013", stex_tp="1"), STOCKS),
    "ka20003": (target("ka20003", inds_cd="001"), INDICES),
    "ka20001": (target("ka20001", inds_cd="001"), TICKS),
    "ka20009": (target("ka20009", inds_cd="001"), DAYS_TABLE),
}


# --- reading a table


@dataclass
class Step:
    """One line: when, what is sent, what is expected."""

    at: datetime
    sends: str
    expected: list[str]

    def __str__(self) -> str:
        return f"{self.at:%a %H:%M:%S} | {self.sends}"


def steps_of(text: str) -> Iterator[Step]:
    step: Step | None = None
    for line in filter(None, text.splitlines()):
        if line.startswith("#"):
            continue
        when, sends, expected = (part.strip() for part in line.split(" | "))
        told = [sentence for part in expected.split("; ") for sentence in spread(part) if sentence != "nothing"]
        if when:
            if step is not None:
                yield step
            day, clock = when.split()
            step = Step(datetime.combine(DAYS[day], time.fromisoformat(clock), KST), sends, told)
        else:
            assert step is not None
            step.expected += told
    assert step is not None
    yield step


_SPAN = re.compile(r"(?P<head>[a-z]+ [a-z]+/)(?P<first>\d+)\.\.(?P<last>\d+)(?P<tail>.*)")


def spread(sentence: str) -> list[str]:
    """A sentence about `001..040` as forty sentences."""
    match = _SPAN.fullmatch(sentence)
    if match is None:
        return [sentence]
    return [f"{match['head']}{key}{match['tail']}" for key in span(match["first"], match["last"])]


def span(first: str, last: str) -> list[str]:
    """The keys from one to another: codes by one, times by ten seconds, weekdays."""
    keys = [first]
    while keys[-1] < last:
        key = keys[-1]
        if len(key) == 3:
            keys.append(f"{int(key) + 1:03}")
        elif len(key) == 6:
            moment = datetime.strptime(key, "%H%M%S").replace(tzinfo=KST) + timedelta(seconds=10)
            keys.append(f"{moment:%H%M%S}")
        else:
            day = date(int(key[:4]), int(key[4:6]), int(key[6:]))
            keys.append(f"{day + timedelta(days=3 if day.weekday() == 4 else 1):%Y%m%d}")
    assert keys[-1] == last, f"{first}..{last} is no span"
    return keys


# --- the broker


Lines = list[tuple[str, str]]


@dataclass
class Listing:
    """What the broker would send: the quote's level, rows page by page, elements that rows have besides or lack."""

    quote: str = ""
    pages: list[Lines | str] = field(default_factory=list)
    appeared: frozenset[str] = frozenset()
    vanished: frozenset[str] = frozenset()

    @property
    def rows(self) -> list[Lines]:
        """The pages that are pages."""
        return [page for page in self.pages if not isinstance(page, str)]

    def begin_page(self, part: str, *, goes_on: bool) -> None:
        """Take what stands between two `/`."""
        if part.startswith("("):
            self.pages.append(part)
            return
        if not goes_on:
            self.pages.append([])
        for word in part.split():
            self.edit(word)

    def edit(self, word: str) -> None:
        """Take one word: `001..040=100`, `005→101`, `-005`, `+element`, `-element`, `quote=2400`, `quote→2401`."""
        name = word[1:]
        if word.startswith("+"):
            self.appeared, self.vanished = self.appeared | {name}, self.vanished - {name}
        elif word.startswith("-") and not name.isdigit():
            self.appeared, self.vanished = self.appeared - {name}, self.vanished | {name}
        elif word.startswith("-"):
            self._replace(name, [])
        elif word.startswith("quote"):
            self.quote = word[len("quote") + 1 :]
        elif "→" in word:
            key, value = word.split("→")
            self._replace(key, [(key, value)])
        else:
            keys, value = word.split("=")
            first, _, last = keys.partition("..")
            self.rows[-1].extend((key, value) for key in span(first, last or first))

    def _replace(self, key: str, by: Lines) -> None:
        (page,) = [page for page in self.rows for row in page if row[0] == key]
        (at,) = [number for number, row in enumerate(page) if row[0] == key]
        page[at : at + 1] = by


class FaultyBroker:
    """Answers as the lines of a table say."""

    def __init__(self, asked: Target) -> None:
        (self._table,) = [table for table in asked.tr.tables if not isinstance(table, Document)]
        self._quotes = [table for table in asked.tr.tables if isinstance(table, Document)]
        self._sends, self._before = Listing(), Listing()

    def send(self, sends: str) -> None:
        """Be ready for the poll of this line."""
        same, words = sends.startswith("same"), sends.removeprefix("same")
        self._sends = copy.deepcopy(self._before) if same else Listing()
        for number, part in enumerate(words.strip().split(" / ")):
            self._sends.begin_page(part, goes_on=same and number == 0)
        if len(self._sends.rows) == len(self._sends.pages):
            self._before = self._sends

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json=TOKEN)
        number = int(request.headers.get("next-key", "0"))
        last = number + 1 == len(self._sends.pages)
        headers = {"cont-yn": "N"} if last else {"cont-yn": "Y", "next-key": str(number + 1)}
        page = self._sends.pages[number]
        if page == "(500)":
            return httpx.Response(500)
        content = json.dumps(self._body(page)).encode()
        return httpx.Response(
            200, content=content[: len(content) // 2] if page == "(cut)" else content, headers=headers
        )

    def _body(self, page: Lines | str) -> dict[str, object]:
        if page == "(no list)":
            return {"return_code": 0}
        rows = {"(page 1 again)": self._sends.rows[:1], "(empty)": []}.get(str(page), [page])
        body: dict[str, object] = {"return_code": 0}
        for table in self._quotes:
            body |= dict.fromkeys(elements(table), "") | {element(table, "level"): self._sends.quote}
        return body | {
            self._table.rows_at or "": [self._line(*row) for listed in rows for row in self._ordered(listed)]
        }

    def _ordered(self, page: Lines | str) -> Lines:
        """A list in time is newest first."""
        lines = [] if isinstance(page, str) else page
        return sorted(lines, reverse=True) if isinstance(self._table, Append) else lines

    def _line(self, key: str, value: str) -> dict[str, str]:
        named = dict.fromkeys([*elements(self._table), *self._sends.appeared], "")
        named |= {
            element(self._table, self._table.key or ""): key,
            element(self._table, self._table.headline[0]): value,
        }
        return {name: text for name, text in named.items() if name not in self._sends.vanished}


def elements(table: Table) -> list[str]:
    return [declared.element for declared in table.row.fields if declared.element]


def element(table: Table, name: str) -> str:
    return next(declared.element or "" for declared in table.row.fields if declared.name == name)


# --- what came of it


def sentences(entry: Entry) -> list[str]:
    """An entry as the tables write it."""
    data = entry.data
    match entry.type.removeprefix("sectorwire.").removeprefix("row."):
        case "changed":
            told = [f"{name} {was_now(data, name)}" for name in data["changed"]]
            return [f"changed {entry.subject} {' '.join(told)}"]
        case "removed":
            return [f"removed {entry.subject}"]
        case "gap" if data["reason"] == "window":
            return [f"gap window {data['table']}"]
        case "gap":
            return [f"gap {data['reason']} {data['polls_missed']}"]
        case "reset" if data["reason"] == "new_day":
            return [f"reset new_day joined={keys_told(data['joined'])} left={keys_told(data['left'])}"]
        case "reset":
            return [f"reset {data['reason']}"]
        case "shape":
            came = {table: [f"+{name}" for name in names] for table, names in data["appeared"].items()}
            went = {table: [f"-{name}" for name in names] for table, names in data["vanished"].items()}
            return [
                f"shape {table} {' '.join([*came.get(table, []), *went.get(table, [])])}"
                for table in sorted(came.keys() | went)
            ]
        case kind:
            row = data["after"]
            return [f"{kind} {entry.subject} {dumps(row['price'] if 'price' in row else row['level'])}"]


def was_now(data: dict[str, Any], name: str) -> str:
    return f"{dumps(data['before'][name])}→{dumps(data['after'][name])}"


def keys_told(by_table: dict[str, list[str]]) -> str:
    keys = sorted(key for keys in by_table.values() for key in keys)
    if len(keys) > 2 and span(keys[0], keys[-1]) == keys:
        return f"{keys[0]}..{keys[-1]}"
    return ",".join(keys) or "-"


class Day:
    """Polls one target line by line and tells what stands in the stream and beside it."""

    def __init__(self, asked: Target, desk: Desk, clock: HandClock, broker: FaultyBroker) -> None:
        self._asked, self._desk, self._clock, self._broker = asked, desk, clock, broker
        self._watched = Watched(Job(asked, EVERY_S), desk)
        self._stream = f"test:{{{asked.tr.code}}}:changes"
        self._snapshot = f"test:{{{asked.tr.code}}}:snapshot:{asked.query}"
        self._told = 0

    async def play(self, step: Step) -> list[str]:
        """One line of the table: what came of it."""
        self._clock.moment = step.at
        sends = step.sends
        if sends.startswith("restart "):
            self._watched, sends = Watched(Job(self._asked, EVERY_S), self._desk), sends.removeprefix("restart ")
        self._broker.send(sends)
        files = self._files()
        remarks = await self._poll()
        entries = await self._entries()
        told = [sentence for entry in entries[self._told :] for sentence in sentences(entry)]
        self._told = len(entries)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        await self._check_fold(entries)
        return [*told, *remarks, *["quarantined"] * (self._files() > files)]

    async def _poll(self) -> list[str]:
        """Poll as the schedule does, down to the reason of a gap and the file for a person."""
        try:
            commit, _ = await self._watched.poll(self._clock.now())
        except TryLater as error:
            self._watched.gap_reason = "broker"
            if not isinstance(error, NotWhole):
                return [f"later: {error}"]
            self._watched.put_aside(str(error), error.bodies)
            return [f"not whole: {error}"]
        self._watched.gap_reason = "stopped"
        if commit.known.last_good != self._clock.now():
            return ["not compared"]
        hold = commit.known.hold.missing if commit.known.hold else {}
        return [f"hold {table} {'*' if keys == ['*'] else len(keys)}" for table, keys in hold.items()]

    def _files(self) -> int:
        return len(list(self._desk.quarantine.directory.rglob("*.json")))

    async def _entries(self) -> list[Entry]:
        found: Any = await self._desk.store.redis.xrange(self._stream)
        return [decode(fields) for _, fields in found]

    async def _check_fold(self, entries: list[Entry]) -> None:
        stored: Any = await self._desk.store.redis.hgetall(self._snapshot)
        folded = fold(entries, described()).get(str(self._asked), {})
        assert {name: dumps(row) for name, row in folded.items()} == stored


def as_expected(expected: list[str], told: list[str]) -> bool:
    """Whether a line came out as written; of a refusal the table holds some words of the reason."""
    return len(expected) == len(told) and all(
        found == wanted or (": " in wanted and all(part in found for part in wanted.split(": ", 1)))
        for wanted, found in zip(expected, told, strict=True)
    )


@pytest.mark.parametrize("code", TABLES)
async def test_a_day_of_faulty_answers_is_told_as_the_table_says(
    redis: Redis, clock: HandClock, tmp_path: Path, code: str
):
    asked, table = TABLES[code]
    broker, timing = FaultyBroker(asked), Timing(Calendar(), Calendar())
    async with broker_for(redis, broker, Clock()) as client:  # whose limits are none, but need time to pass
        desk = Desk(client, Store(redis, "test"), timing, clock, Quarantine(tmp_path))
        await desk.store.take_lead((asked.tr,), desk.now_ms())
        day = Day(asked, desk, clock, broker)
        for step in steps_of(table):
            told = await day.play(step)
            assert as_expected(step.expected, told), f"{step}\n  expected {step.expected}\n  but      {told}"


def test_the_tables_can_be_read():
    """The notation itself, so that a line that says nothing is not taken for one that holds."""
    listing = Listing()
    listing.begin_page("quote=5 001..003=1 002→2 -003 +new -old", goes_on=False)

    assert listing == Listing("5", [[("001", "1"), ("002", "2")]], frozenset({"new"}), frozenset({"old"}))
    assert spread("removed stocks/009..011") == ["removed stocks/009", "removed stocks/010", "removed stocks/011"]
    assert span("145950", "150010") == ["145950", "150000", "150010"]
    assert span("20261119", "20261124") == ["20261119", "20261120", "20261123", "20261124"]
    assert not as_expected(["hold stocks 2"], [])
    assert not as_expected([], ["hold stocks 2"])
    assert not as_expected(["later: HTTP 500"], ["later: HTTP 200"])
