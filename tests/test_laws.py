"""Laws of the diff on generated answers of every TR of the catalogue; and what a cut or broken answer does.

`test_diff.py` has the laws on two made-up tables. Here the broker's own texts are drawn from the declarations, element
by element ("+1,164", "-0", "--5", "", repeated keys, several pages, elements nobody knows), and go the whole way:
pages -> `read_answer` -> `settle` -> `diff`. Cut and broken bodies go through the broker's client as well.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from poller.broker import Broker
from poller.catalogue import CATALOGUE, described
from poller.clock import Clock
from poller.commit import Known, Seen, Tables, decide
from poller.contract import Entry, Row, dumps, fold, loads
from poller.diff import Change, apply, diff, settle
from poller.errors import BrokerError, NotWhole
from poller.rows import reaches_back, read_answer
from poller.simulator.answers import answer as simulated_answer
from poller.simulator.market import Market
from poller.store import known_of
from poller.trs.base import Append, Document, Keyed, Table, Target
from poller.trs.fields import Code, Date, Direction, Field, Level, Text, Time, UnreadableValue, signed_number
from tests.builders import EPOCH, EVERY_S, MONDAY, NOON, TUESDAY, Answer, Recording, recording, target
from tests.conftest import broker_for

CODES = [tr.code for tr in CATALOGUE]
NARROW = 8
"""An append table keeps hundreds of rows; in every second example it keeps eight, so that rows slide out."""
FILLERS = 24
"""With so many good rows beside it, one bad row is under 5 % and the answer can be used."""

Pages = list[Answer]


# --- answers, made of the declarations


NUMBERS = ["+1,164", "-0", "0", "", "--5", "-2393.33", "12.50", " 7 ", "0012", "2147483647"]
BAD_NUMBERS = ["abc", "+-5", "1e5", "12345678901234567"]


def texts(field: Field) -> list[str]:
    """Forms in which the broker sends a field; the first is the usual one."""
    match field:
        case Direction():
            return ["2", "5", "3", "0", ""]
        case Date():
            return ["20241122", "20250102", ""]
        case Time():
            return ["143000", "888888", ""]
        case Code():
            return ["001", "005930_AL"]
        case Text():
            return ["종합(KOSPI)", "삼성전자", ""]
        case _:
            return NUMBERS


def bad_texts(field: Field) -> list[str]:
    match field:
        case Code() | Text():
            return []
        case Direction() | Date() | Time():
            return ["6x"]
        case _:
            return BAD_NUMBERS


def keys_of(table: Table) -> list[str]:
    key = next(field for field in table.row.fields if field.name == table.key)
    match key:
        case Time():
            return ["", "090000", "090010", "090020", "153220", "888888", "999999"]
        case Date():
            return ["20241119", "20241120", "20241121", "20241122", "20241125"]
        case _:
            return ["001", "002", "0126Z0", "005930", "005930_AL"]


def filler_key(table: Table, number: int) -> str:
    key = next(field for field in table.row.fields if field.name == table.key)
    match key:
        case Time():
            return f"1000{number:02}"
        case Date():
            return f"202410{number + 1:02}"
        case _:
            return f"9{number:05}"


def declared(table: Table) -> list[Field]:
    return [field for field in table.row.fields if field.element is not None]


def element_of_key(table: Table) -> str:
    return next((field.element or "" for field in table.row.fields if field.name == table.key), "")


Spots = list[tuple[str, str]]


def lines_of(table: Table) -> st.SearchStrategy[dict[str, str]]:
    """A line under a key, a few of its values unusual, perhaps one unreadable, perhaps with an unknown element."""
    usual = {field.element or "": texts(field)[0] for field in declared(table)}
    mine = [field for field in declared(table) if field.name != table.key]
    odd = [(field.element or "", text) for field in mine for text in texts(field)]
    bad = [(field.element or "", text) for field in mine for text in bad_texts(field)]
    nothing: Spots = [("", "")]

    def line(key: str, few: Spots, wrong: tuple[str, str], unknown: tuple[str, str]) -> dict[str, str]:
        keyed = {element_of_key(table): key} if table.key else {}
        spots = dict([*few, wrong, unknown])
        spots.pop("", None)
        return {**usual, **keyed, **spots}

    return st.builds(
        line,
        st.sampled_from(keys_of(table)) if table.key else st.just(""),
        st.lists(st.sampled_from(odd), max_size=4),
        st.sampled_from(nothing * 15 * len(bad) + bad),
        st.sampled_from([*nothing * 4, ("zz_new", "1"), ("zz_new", "2"), ("aa_odd", "x")]),
    )


def listed(asked: Target) -> list[Table]:
    return [table for table in asked.tr.tables if not isinstance(table, Document)]


def fillers(table: Table) -> list[dict[str, str]]:
    usual = {field.element or "": texts(field)[0] for field in declared(table)}
    return [{**usual, element_of_key(table): filler_key(table, number)} for number in range(FILLERS)]


def answers(asked: Target) -> st.SearchStrategy[Pages]:
    """Whole walks of one to three pages, each list on every page."""
    documents = [lines_of(table) for table in asked.tr.tables if isinstance(table, Document)]
    tables = listed(asked)
    page = st.tuples(*(st.lists(lines_of(table), max_size=5) for table in tables))

    def walk(
        quotes: tuple[dict[str, str], ...], pages: list[tuple[list[dict[str, str]], ...]], *, filled: bool
    ) -> Pages:
        first = {name: text for quote in quotes for name, text in quote.items()}
        made: Pages = [
            {**first, "return_code": 0}
            | {table.rows_at or "": list(rows) for table, rows in zip(tables, lists, strict=True)}
            for lists in pages
        ]
        for table in tables if filled else ():
            made[0][table.rows_at or ""] += fillers(table)
        return made

    most = 3 if tables else 1
    return st.builds(walk, st.tuples(*documents), st.lists(page, min_size=1, max_size=most), filled=st.booleans())


@cache
def targets(code: str) -> list[Target]:
    """The recorded target, the same with narrow windows, and ka10051's other unit."""
    asked = recording(code).target
    slim = tuple(replace(t, window=NARROW) if isinstance(t, Append) else t for t in asked.tr.tables)
    others = [target(code, **{**asked.request, "amt_qty_tp": "1"})] if "amt_qty_tp" in asked.request else []
    return [asked, Target(replace(asked.tr, tables=slim), asked.values), *others]


@dataclass(frozen=True)
class Case:
    """A target, and three answers that came one after the other."""

    asked: Target
    answers: tuple[Pages, Pages, Pages]


@cache
def cases(code: str) -> st.SearchStrategy[Case]:
    def of(asked: Target) -> st.SearchStrategy[Case]:
        one = answers(asked)
        return st.builds(Case, st.just(asked), st.tuples(one, one, one))

    return st.one_of([of(asked) for asked in targets(code)])


def settled(asked: Target, before: Tables, pages: Pages) -> Tables:
    """What stands after this answer; one that is not whole changes nothing."""
    try:
        reading = read_answer(asked, pages)
    except NotWhole:
        return before
    return {
        table.name: settle(table, before.get(table.name, {}), reading.rows[table.name], reading.unread_keys[table.name])
        for table in asked.tr.tables
    }


def each_table(case: Case) -> Iterator[tuple[Table, dict[str, Row], dict[str, Row], dict[str, Row]]]:
    """Every table as it stood after each of the three answers."""
    states = list[Tables]()
    for pages in case.answers:
        states.append(settled(case.asked, states[-1] if states else {}, pages))
    for table in case.asked.tr.tables:
        first, second, third = (state.get(table.name, {}) for state in states)
        yield table, first, second, third


def compared(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Rows without the elements that are never compared."""
    return {key: {name: value for name, value in row.items() if name != "extra"} for key, row in rows.items()}


every_tr = pytest.mark.parametrize("code", CODES)
every_listing = pytest.mark.parametrize("code", [code for code in CODES if listed(recording(code).target)])
seeds = st.integers(0, 2**32 - 1)
a_few = settings(max_examples=40)
Draw = Any  # hypothesis' data object draws whatever a strategy makes


# --- the laws


@every_tr
@a_few
@given(data=st.data())
def test_before_and_its_diff_are_after(code: str, data: Draw):
    for table, before, after, _ in each_table(data.draw(cases(code))):
        assert apply(table, before, diff(table, before, after)) == after


@every_tr
@a_few
@given(data=st.data())
def test_a_table_does_not_differ_from_itself(code: str, data: Draw):
    """Nor does the same answer, read again, differ from what it made."""
    case = data.draw(cases(code))
    once = settled(case.asked, settled(case.asked, {}, case.answers[0]), case.answers[1])
    again = settled(case.asked, once, case.answers[1])
    for table in case.asked.tr.tables:
        rows = once.get(table.name, {})
        assert diff(table, rows, rows) == []
        assert diff(table, rows, again.get(table.name, {})) == []


@every_tr
@a_few
@given(data=st.data())
def test_two_diffs_in_a_row_lead_where_the_answers_led(code: str, data: Draw):
    for table, start, middle, end in each_table(data.draw(cases(code))):
        assert apply(table, start, [*diff(table, start, middle), *diff(table, middle, end)]) == end


@every_tr
@a_few
@given(data=st.data(), seed=seeds)
def test_the_order_of_rows_on_a_page_never_matters(code: str, data: Draw, seed: int):
    case, shuffler = data.draw(cases(code)), random.Random(seed)
    shuffled = [[shuffled_page(case.asked, page, shuffler) for page in pages] for pages in case.answers]

    before, mixed = settled(case.asked, {}, case.answers[0]), settled(case.asked, {}, shuffled[0])

    assert mixed == before
    assert settled(case.asked, before, shuffled[1]) == settled(case.asked, before, case.answers[1])


def shuffled_page(asked: Target, page: Answer, shuffler: random.Random) -> Answer:
    lists = {table.rows_at or "": list(page[table.rows_at or ""]) for table in listed(asked)}
    for rows in lists.values():
        shuffler.shuffle(rows)
    return page | lists


@every_listing
@a_few
@given(data=st.data())
def test_where_one_page_ends_and_the_next_begins_never_matters(code: str, data: Draw):
    """As long as no key stands on both: such a row slid over the border, and is one row."""
    case = data.draw(cases(code))
    (page,) = case.answers[0][:1]
    border = data.draw(st.integers(0, 6))
    two = [dict(page), dict(page)]
    for table in listed(case.asked):
        rows = page[table.rows_at or ""]
        two[0][table.rows_at or ""], two[1][table.rows_at or ""] = rows[:border], rows[border:]
        assume(not keys_in(table, rows[:border]) & keys_in(table, rows[border:]))

    assert settled(case.asked, {}, two) == settled(case.asked, {}, [page])


def keys_in(table: Table, rows: Sequence[Mapping[str, str]]) -> set[str]:
    return {row[element_of_key(table)].removesuffix("_AL") for row in rows}


@every_tr
@a_few
@given(data=st.data())
def test_changes_told_backwards_lead_back(code: str, data: Draw):
    """An entry holds all that is needed to undo it; only what slid out of a window is forgotten."""
    for table, before, after, _ in each_table(data.draw(cases(code))):
        undone = undo(after, diff(table, before, after))
        kept = before if isinstance(table, Keyed) else {key: row for key, row in before.items() if key in after}

        assert compared(undone) == compared(kept)


def undo(after: Mapping[str, Row], changes: Sequence[Change]) -> dict[str, Row]:
    """The rows before these changes. What they were like but for the fields that are compared, nobody is told."""
    rows = dict(after)
    for change in reversed(changes):
        if change.before is None:
            del rows[change.key]
        else:
            rows[change.key] = {**(change.after or {}), **change.before}
    return rows


@every_tr
@a_few
@given(data=st.data(), seed=seeds)
def test_numbers_spelled_differently_are_no_news(code: str, data: Draw, seed: int):
    """`+0`, `-0`, `0` and `0.00`; `+1,164`, `01164.0` and ` 1164`; nothing at all and blanks."""
    case, chance = data.draw(cases(code)), random.Random(seed)
    first, second, _ = case.answers
    before = settled(case.asked, {}, first)

    assert settled(case.asked, before, respelled(case.asked, first, chance)) == settled(case.asked, before, first)
    plain, odd = (settled(case.asked, before, pages) for pages in (second, respelled(case.asked, second, chance)))
    for table in case.asked.tr.tables:
        was = before.get(table.name, {})
        assert told(diff(table, was, odd.get(table.name, {}))) == told(diff(table, was, plain.get(table.name, {})))


def told(changes: Sequence[Change]) -> list[str]:
    """Changes as they would stand in the stream, byte for byte."""
    return [dumps([change.kind, change.name, change.before, change.after]) for change in changes]


def respelled(asked: Target, pages: Pages, chance: random.Random) -> Pages:
    """The same answer as another clerk would have typed it."""
    spelled = list[Answer]()
    for page in pages:
        other = dict(page)
        for table in asked.tr.tables:
            if isinstance(table, Document):
                other |= respelled_line(table, page, chance)
            else:
                rows = page[table.rows_at or ""]
                other[table.rows_at or ""] = [{**row, **respelled_line(table, row, chance)} for row in rows]
        spelled.append(other)
    return spelled


def respelled_line(table: Table, line: Mapping[str, Any], chance: random.Random) -> dict[str, object]:
    return {
        field.element or "": spelling(field, line[field.element or ""], chance)
        for field in declared(table)
        if field.element in line
    }


def spelling(field: Field, text: str, chance: random.Random) -> object:
    """Another text of the same meaning."""
    if field.kind in {"code", "text", "date", "time", "direction"}:
        return f" {text} " if chance.random() < 0.5 else text
    if not text.strip():
        return chance.choice(["", "  ", None])
    try:
        number = signed_number(text)
    except UnreadableValue:
        return text
    if number == int(number) and chance.random() < 0.2:
        return int(number)
    digits = f"{abs(number):,f}" if chance.random() < 0.5 else f"{abs(number):f}"
    digits = chance.choice(["", "0", "00"]) + digits
    digits += chance.choice(["", "0", "00"]) if "." in digits else chance.choice(["", ".0", ".00"])
    marks = ["", "+", "-", "--"] if isinstance(field, Level) or not number else ["-", "--"] if number < 0 else ["", "+"]
    return chance.choice(["", " "]) + chance.choice(marks) + chance.choice(["", " "]) + digits


@every_tr
@a_few
@given(data=st.data(), name=st.sampled_from(["zz_new", "aa_odd"]), text=st.sampled_from(["", "1", "+1,164"]))
def test_elements_nobody_knows_are_no_news(code: str, data: Draw, name: str, text: str):
    case = data.draw(cases(code))
    before = settled(case.asked, {}, case.answers[0])
    painted = copy.deepcopy(case.answers[0])
    for page in painted:
        page[name] = text
        for table in listed(case.asked):
            for row in page[table.rows_at or ""]:
                row[name] = text

    assert settled(case.asked, before, painted) == settled(case.asked, before, case.answers[0])


@every_listing
@a_few
@given(data=st.data())
def test_a_row_that_cannot_be_read_is_no_news(code: str, data: Draw):
    """One of so many that the answer can still be used; whatever stood under its key goes on standing."""
    asked = targets(code)[0]
    table = listed(asked)[-1]
    usual = data.draw(answers(asked))[:1]
    usual[0][table.rows_at or ""] = fillers(table)
    before = settled(asked, {}, usual)
    assume(before)
    assume(not read_answer(asked, usual).unreadable)
    spoiled = copy.deepcopy(usual)
    element = data.draw(st.sampled_from([field.element or "" for field in declared(table) if texts(field) is NUMBERS]))
    data.draw(st.sampled_from(spoiled[0][table.rows_at or ""]))[element] = data.draw(st.sampled_from(BAD_NUMBERS))

    assert len(read_answer(asked, spoiled).unreadable) == 1
    assert settled(asked, before, spoiled) == before


@every_tr
@a_few
@given(data=st.data())
def test_whatever_answers_come_the_folded_entries_are_the_snapshot(code: str, data: Draw):
    """The same law one step on: what `decide` writes as entries and what it writes as rows never part.

    Answers come by day and on the next day, the service forgets everything in between and loads it again.
    """
    case = data.draw(cases(code))
    asked, entries, snapshot, known = targets(code)[0], list[Entry](), dict[str, str](), Known()
    at = NOON
    for pages in [*case.answers, case.answers[-1], *case.answers[:2]]:
        at += timedelta(seconds=EVERY_S)
        day = MONDAY if len(entries) < data.draw(st.integers(0, 60)) else TUESDAY
        try:
            seen = Seen(read_answer(asked, pages), dumps(pages), at, day, "regular", EPOCH, EVERY_S)
            commit = decide(asked, known, seen)
        except NotWhole:
            continue
        snapshot = {} if commit.clear else snapshot
        snapshot = {name: text for name, text in (snapshot | commit.set_rows).items() if name not in commit.delete_rows}
        entries += [
            Entry(id="-", source=f"/kiwoom/{asked}", type=d.type, subject=d.subject, time=at, seq=0, data=loads(d.data))
            for d in commit.drafts
        ]
        known = known_of(asked, commit.state, snapshot)
        assert known.rows == commit.known.rows
        folded = fold(entries, described()).get(str(asked), {})
        assert {name: dumps(row) for name, row in folded.items()} == snapshot


# --- whole or nothing


@dataclass(frozen=True)
class Walk:
    """What was known of a target, and the bodies that come now."""

    asked: Target
    known: Known
    bodies: tuple[bytes, ...]


def known_after(asked: Target, pages: Pages) -> Known:
    seen = Seen(read_answer(asked, pages), "", NOON, MONDAY, "regular", EPOCH, EVERY_S)
    return decide(asked, Known(), seen).known


def recorded_walk(code: str) -> Walk:
    """The recorded answer with commas in its numbers and a text full of brackets, after one whose numbers differ."""
    played = recording(code)
    later = edited(played, lambda text: f"{text[:-3]},{text[-3:]}" if len(text) > 3 else text)
    for table in listed(played.target):
        for row in later[table.rows_at or ""]:
            row["zz_note"] = 'new: "a", [b], {"c": 1}'
    sent = json.dumps(later, ensure_ascii=False, separators=(",", ":")).encode()
    assert sent.count(b",") > json.dumps(played.answer).count(",")
    return Walk(played.target, known_after(played.target, [edited(played, lambda text: f"1{text}")]), (sent,))


def edited(played: Recording, edit: Callable[[str], str]) -> Answer:
    """The recorded answer with the digits of every whole number edited."""
    answer: Answer = copy.deepcopy(played.answer)
    for table in played.target.tr.tables:
        for line in [answer] if isinstance(table, Document) else answer[table.rows_at or ""]:
            for field in declared(table):
                match = re.fullmatch("([+-]?)([0-9]+)", line.get(field.element or "", ""))
                if match and texts(field) is NUMBERS:
                    line[field.element or ""] = match[1] + edit(match[2])
    return answer


MOVING = {
    "ka10051": {"mrkt_tp": "0", "amt_qty_tp": "0", "stex_tp": "3"},  # the recorded one is of a day that is over
    "ka20002": {"inds_cd": "001", "stex_tp": "1"},
    "ka20001": {"inds_cd": "001"},
    "ka20009": {"inds_cd": "001"},
}
MORNING = datetime.combine(MONDAY, NOON.timetz()) - timedelta(hours=2)


def simulated_walk(code: str) -> Walk:
    """The simulated broker a quarter of an hour later: three pages of ka20002, five of ka20001, two of ka20009."""
    asked = target(code, **MOVING[code]) if code in MOVING else recording(code).target
    market = Market(seed=7)
    known = known_after(asked, pages_of(asked, market, MORNING))
    if code == "ka20009":  # so that the walk back has days to look for
        days = sorted(known.rows["days"])
        known = replace(known, rows=known.rows | {"days": {day: known.rows["days"][day] for day in days[:-25]}})
    later = pages_of(asked, market, MORNING + timedelta(minutes=15))
    return Walk(asked, known, tuple(json.dumps(page, ensure_ascii=False).encode() for page in later))


def pages_of(asked: Target, market: Market, at: datetime) -> Pages:
    state, pages, position = market.at(at), Pages(), None
    while True:
        page = simulated_answer(asked.tr.code, state, asked.request, position)
        pages.append({**page.elements, "return_code": 0, "return_msg": "정상적으로 처리되었습니다"})
        position = page.next_position
        if position is None:
            return pages


class Playing:
    """Plays the pages of a walk, one after the other."""

    def __init__(self) -> None:
        self.bodies: Sequence[bytes] = ()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json={"return_code": 0, "token": "t", "expires_dt": "20991231000000"})
        number = int(request.headers.get("next-key", "0"))
        more = {"cont-yn": "Y", "next-key": str(number + 1)} if number + 1 < len(self.bodies) else {"cont-yn": "N"}
        return httpx.Response(200, content=self.bodies[number], headers=more)


async def news_of(client: Broker, walk: Walk) -> list[tuple[str, str, str]]:
    """The entries that the answer leads to, all the way from the client. Raises BrokerError."""
    newest = {
        table.name: max(walk.known.rows[table.name])
        for table in walk.asked.tr.tables
        if isinstance(table, Append) and walk.known.rows.get(table.name)
    }
    answer = await client.fetch(walk.asked, partial(reaches_back, walk.asked, newest))
    reading = read_answer(walk.asked, answer.pages)
    at = NOON + timedelta(seconds=EVERY_S)
    commit = decide(walk.asked, walk.known, Seen(reading, answer.digest, at, MONDAY, "regular", EPOCH, EVERY_S))
    return [(draft.type, draft.subject, draft.data) for draft in commit.drafts]


STRUCTURE = b'{}[]",:'
Damage = Callable[[bytes, random.Random], tuple[bytes, int]]


def cut(body: bytes, chance: random.Random) -> tuple[bytes, int]:
    place = chance.randrange(len(body))
    return body[:place], place


def dropped(body: bytes, chance: random.Random) -> tuple[bytes, int]:
    place = structural(body, chance)
    return body[:place] + body[place + 1 :], place


def doubled(body: bytes, chance: random.Random) -> tuple[bytes, int]:
    place = structural(body, chance)
    return body[: place + 1] + body[place:], place


def replaced(body: bytes, chance: random.Random) -> tuple[bytes, int]:
    place = structural(body, chance)
    other = chance.choice([sign for sign in STRUCTURE if sign != body[place]])
    return body[:place] + bytes([other]) + body[place + 1 :], place


def structural(body: bytes, chance: random.Random) -> int:
    return chance.choice([place for place, sign in enumerate(body) if sign in STRUCTURE])


_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')


def inside_a_text(body: bytes, place: int) -> bool:
    """Whether a character is part of a text's content: neither JSON's structure nor a quote that opens or ends it."""
    return any(match.start() < place < match.end() - 1 for match in _STRINGS.finditer(body))


def parsed(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


async def damage_every_way(redis: Redis, code: str, times: int) -> Counter[str]:
    """The truncation law, so many times: an error or the same news, and never other news.

    What is still valid JSON but says something else is data and not breakage: a comma in a number's text that is
    dropped, like a digit that flipped, no reader can know from what the broker meant. Such damage is left out here, in
    the open: it is only ever inside a text, which is asserted, so no single character of JSON's own structure can
    be dropped, doubled or replaced without an error.
    """
    chance, playing, counts = random.Random(code), Playing(), Counter[str]()
    async with broker_for(redis, playing, Clock()) as client:
        walks = [recorded_walk(code), simulated_walk(code)]
        right = []
        for walk in walks:
            playing.bodies = walk.bodies
            right.append(await news_of(client, walk))
            assert right[-1], "an answer without news would prove nothing"
        while counts.total() < times:
            number = chance.randrange(len(walks))
            walk, page = walks[number], chance.randrange(len(walks[number].bodies))
            whole = walk.bodies[page]
            how: Damage = chance.choice([cut, cut, dropped, doubled, replaced])
            body, place = how(whole, chance)
            valid = parsed(body)
            if valid is not None and valid != parsed(whole):
                assert how is not cut
                assert inside_a_text(whole, place), (how.__name__, place, body)
                continue
            playing.bodies = (*walk.bodies[:page], body, *walk.bodies[page + 1 :])
            try:
                news = await news_of(client, walk)
            except BrokerError:
                counts["refused"] += 1
                continue
            assert news == right[number], (how.__name__, page, place, body)
            counts["the same"] += 1
    return counts


@pytest.mark.parametrize(
    "times", [334, pytest.param(16_667, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])], ids=str
)
@every_tr
async def test_a_cut_or_broken_answer_is_an_error_or_the_same_news(fake_redis: Redis, code: str, times: int):
    """Two thousand times over the six TRs, a hundred thousand in the soak test."""
    counts = await damage_every_way(fake_redis, code, times)

    print(f"\n{code}: {counts.total():,} cuts and breakages: {dict(counts)}")  # noqa: T201 -- the soak's result
    assert counts["refused"] > times // 2
