"""The checks that the data itself allows: what each of them marks, that a marked row is published like any other, that
trouble is told once, and that the simulated market breaks none of them.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from rich.console import Console
from structlog.testing import capture_logs

from consumers.archive.tables import declared, placed
from consumers.group import Delivery
from consumers.tail import line
from poller import commands, commit
from poller.broker import Answer as WholeAnswer
from poller.catalogue import CATALOGUE, described
from poller.commit import Commit, Known, Seen, decide
from poller.contract import Entry, Keys, Row, RowData, dumps, loads
from poller.grid import Job
from poller.once import explain
from poller.poll import Watched
from poller.rows import reaches_back, read_answer
from poller.schedule import Poller
from poller.session import KST, Calendar, Session
from poller.simulator.answers import answer as simulated
from poller.simulator.market import Market, MarketState
from poller.suspects import Standing, Turn
from poller.trs.base import Append, Target
from poller.trs.guards import Sight
from poller.upkeep import Upkeep
from tests.builders import EPOCH, EVERY_S, MONDAY, TUESDAY, Answer, after, data_of, recording, seen, target, told
from tests.conftest import FastClock, HandClock, desk_for

INDICES = target("ka20003", inds_cd="001")
QUOTE = target("ka20001", inds_cd="001")
DAYS = target("ka20009", inds_cd="001")
STOCKS = target("ka20002", inds_cd="001", stex_tp="1")
FLOWS = target("ka10051", mrkt_tp="0", amt_qty_tp="0", stex_tp="3")
FLOWS_IN_SHARES = target("ka10051", mrkt_tp="0", amt_qty_tp="1", stex_tp="3")
UNITS = {FLOWS: ("krw", 100_000_000), FLOWS_IN_SHARES: ("shares", 1_000)}


def failed(
    asked: Target, table_name: str, values: dict[str, Any], *, was: Row | None = None, older: Row | None = None
) -> list[str]:
    """The guards that a row of these values fails; what is not given is null."""
    table, asked_fields = next(found for found in asked.tables() if found[0].name == table_name)
    row = {field.name: None for field in asked_fields} | values
    assert len(row) == len(asked_fields), "a value has a name that the table does not know"
    fields = {plain.name: field for plain, field in zip(table.row.fields, asked_fields, strict=True)}
    return [guard.name for guard in table.guards if guard.violated(Sight(row, fields, was, older))]


# --- declarations


def test_every_guard_looks_at_fields_of_its_table():
    """A misspelt name would find no value, and so never a violation."""
    for tr in CATALOGUE:
        for table in tr.tables:
            known = {field.name for field in table.row.fields}
            assert all(set(guard.fields) <= known for guard in table.guards)
            assert len({guard.name for guard in table.guards}) == len(table.guards)


def test_each_report_has_the_guards_that_fit_it():
    declared = {
        f"{tr.code}.{table.name}": [guard.name for guard in table.guards] for tr in CATALOGUE for table in tr.tables
    }
    quote = ["breadth", "range", "volume_fell", "value_fell"]

    assert declared == {
        "ka10010.program": [],
        "ka10051.flows": ["investors", "institution_parts", "volume_fell"],
        "ka20001.quote": quote,
        "ka20001.ticks": ["volume_chain", "volume_fell"],
        "ka20002.stocks": ["range", "volume_fell"],
        "ka20003.indices": ["breadth", "volume_fell", "value_fell"],
        "ka20009.quote": quote,
        "ka20009.days": ["volume_fell"],
    }


# --- breadth


def breadth(up: int | None, flat: int | None, down: int | None, **more: int | None) -> dict[str, Any]:
    return {"advancers": up, "unchanged": flat, "decliners": down, **more}


@pytest.mark.parametrize(
    "row",
    [
        breadth(17, 183, 130, traded_stocks=330, limit_up_stocks=0, limit_down_stocks=3),
        breadth(18, 183, 132, traded_stocks=333, limit_up_stocks=0, limit_down_stocks=4),
        breadth(125, 22, 765, traded_stocks=912, limit_up_stocks=3),
        breadth(1109, 70, 562, traded_stocks=1741, limit_up_stocks=4),
    ],
)
def test_the_four_known_samples_of_breadth_hold(row: dict[str, Any]):
    assert failed(QUOTE, "quote", row) == []
    assert failed(DAYS, "quote", row) == []


@pytest.mark.parametrize("off", [-1, 1])
def test_the_breadth_of_a_quote_is_exact(off: int):
    assert failed(QUOTE, "quote", breadth(17, 183, 130, traded_stocks=330 + off)) == ["breadth"]


def test_the_breadth_of_an_index_leaves_out_the_untraded():
    assert failed(INDICES, "indices", breadth(17, 183, 130, listed_stocks=960)) == []
    assert failed(INDICES, "indices", breadth(17, 183, 130, listed_stocks=330)) == []
    assert failed(INDICES, "indices", breadth(17, 183, 130, listed_stocks=329)) == ["breadth"]


@pytest.mark.parametrize(("asked", "table"), [(QUOTE, "quote"), (INDICES, "indices")])
def test_limit_moves_are_among_those_that_moved(asked: Target, table: str):
    assert failed(asked, table, breadth(2, 0, 3, limit_up_stocks=2, limit_down_stocks=3)) == []
    assert failed(asked, table, breadth(2, 0, 3, limit_up_stocks=3)) == ["breadth"]
    assert failed(asked, table, breadth(2, 0, 3, limit_down_stocks=4)) == ["breadth"]


@pytest.mark.parametrize("missing", ["advancers", "unchanged", "decliners", "traded_stocks"])
def test_a_missing_count_is_no_verdict(missing: str):
    row = breadth(17, 183, 130, traded_stocks=999)

    assert failed(QUOTE, "quote", row) == ["breadth"]
    assert failed(QUOTE, "quote", row | {missing: None}) == []


# --- investors


GROUPS = ("individual", "foreigner", "resident_foreigner", "institution", "other_corporation")
PARTS = ("securities", "insurance", "investment_trust", "bank", "other_finance", "pension_fund", "private_fund")


def flows(asked: Target, **units: int | None) -> dict[str, Any]:
    """A row in which nobody bought but those named, in units of the broker's text."""
    suffix, scale = UNITS[asked]
    every = dict.fromkeys((*GROUPS, *PARTS, "state"), 0) | units
    return {f"{group}_net_{suffix}": None if n is None else n * scale for group, n in every.items()}


both_variants = pytest.mark.parametrize("asked", [FLOWS, FLOWS_IN_SHARES], ids=["won", "shares"])


@both_variants
def test_who_bought_was_sold_to(asked: Target):
    row = flows(asked, individual=-650, foreigner=500, resident_foreigner=10, institution=100, other_corporation=40)
    row |= {key: value for key, value in flows(asked, securities=60, pension_fund=40).items() if value}

    assert failed(asked, "flows", row) == []


@both_variants
@pytest.mark.parametrize(("off", "names"), [(5, []), (-5, []), (6, ["investors"]), (-6, ["investors"])])
def test_five_terms_may_be_off_by_a_unit_each(asked: Target, off: int, names: list[str]):
    """Without the state there is one reading: five terms."""
    assert failed(asked, "flows", flows(asked, individual=off, state=None)) == names


@both_variants
@pytest.mark.parametrize(
    ("state", "names"), [(-100, []), (-94, []), (-106, []), (-93, ["investors"]), (-107, ["investors"])]
)
def test_the_five_groups_may_need_the_state_to_close(asked: Target, state: int, names: list[str]):
    """Six terms, six units."""
    row = flows(asked, individual=100, state=state)

    assert [name for name in failed(asked, "flows", row) if name == "investors"] == names


@both_variants
def test_a_state_that_is_inside_the_institutions_does_no_harm_to_the_five_groups(asked: Target):
    row = flows(asked, individual=-300, institution=300, securities=100, state=200)

    assert failed(asked, "flows", row) == []


@both_variants
def test_a_state_that_is_outside_the_institutions_does_no_harm_to_their_parts(asked: Target):
    row = flows(asked, individual=-300, institution=100, securities=100, state=200)

    assert failed(asked, "flows", row) == []


@both_variants
@pytest.mark.parametrize(("off", "names"), [(8, []), (-8, []), (9, ["institution_parts"]), (-9, ["institution_parts"])])
def test_seven_parts_and_their_total_may_be_off_by_a_unit_each(asked: Target, off: int, names: list[str]):
    row = flows(asked, individual=-300, institution=300, insurance=300 + off, state=None)

    assert failed(asked, "flows", row) == names


@both_variants
def test_a_row_is_suspect_only_if_both_readings_fail(asked: Target):
    inside = flows(asked, individual=-300, institution=300, insurance=100, state=200)

    assert failed(asked, "flows", inside) == []
    assert failed(asked, "flows", inside | {key: 0 for key in inside if key.startswith("state")}) == [
        "institution_parts"
    ]


@both_variants
@pytest.mark.parametrize("missing", [*GROUPS, *PARTS])
def test_a_missing_group_is_no_verdict(asked: Target, missing: str):
    wrong = flows(asked, individual=1000, foreigner=1000, institution=1000)
    names = {name for name, parts in (("investors", GROUPS), ("institution_parts", PARTS)) if missing in parts}
    names |= {"institution_parts"} if missing == "institution" else set()

    assert failed(asked, "flows", wrong) == ["investors", "institution_parts"]
    suffix, _ = UNITS[asked]
    left = failed(asked, "flows", wrong | {f"{missing}_net_{suffix}": None})
    assert set(left) == {"investors", "institution_parts"} - names


def test_the_document_s_first_row_does_not_close_and_its_second_does():
    """-17 is more than rounding; that the parts do not make the total either is known of both."""
    rows = dict(recording("ka10051").rows["flows"])

    assert failed(FLOWS, "flows", rows["001"]) == ["investors", "institution_parts"]
    assert failed(FLOWS, "flows", rows["002"]) == ["institution_parts"]


# --- range


@pytest.mark.parametrize(("asked", "table", "now"), [(QUOTE, "quote", "level"), (STOCKS, "stocks", "price")])
def test_level_and_opening_are_between_low_and_high(asked: Target, table: str, now: str):
    row = {now: 110, "open": 100, "high": 120, "low": Decimal("99.5")}

    assert failed(asked, table, row) == []
    assert failed(asked, table, row | {now: Decimal("99.5"), "open": 120}) == []
    assert failed(asked, table, row | {now: 121}) == ["range"]
    assert failed(asked, table, row | {now: 99}) == ["range"]
    assert failed(asked, table, row | {"open": Decimal("120.01")}) == ["range"]
    assert failed(asked, table, row | {"open": 99}) == ["range"]


def test_a_stock_that_did_not_trade_has_no_range():
    assert failed(STOCKS, "stocks", {"price": 100, "open": None, "high": None, "low": None}) == []
    assert failed(STOCKS, "stocks", {"price": 100, "open": None, "high": None, "low": 101}) == ["range"]


# --- the chain of volumes


def tick(time: str, step: int | str, volume: int | str) -> dict[str, Any]:
    row = recording("ka20001").answer["inds_cur_prc_tm"][0]
    return {**row, "tm_n": time, "trde_qty_n": str(step), "acc_trde_qty_n": str(volume)}


def ticks(*rows: dict[str, Any]) -> Answer:
    return {**recording("ka20001").answer, "inds_cur_prc_tm": list(rows)}


def suspects(done: Commit, table: str = "ticks") -> dict[str, list[str]]:
    """The suspect rows of a table as readers see them: subject -> names."""
    read = {draft.subject: loads(draft.data) for draft in done.drafts}
    return {subject: data["suspect"] for subject, data in read.items() if "suspect" in data and data["table"] == table}


MARKERS = (tick("999999", 5320, 501071), tick("888888", 14, 495751), tick("153220", 7, 495737))


def test_the_recorded_marker_rows_are_links_of_the_chain():
    assert suspects(decide(QUOTE, Known(), seen(QUOTE, ticks(*MARKERS)))) == {}


def test_a_marker_row_that_is_missing_breaks_the_chain():
    commit = decide(QUOTE, Known(), seen(QUOTE, ticks(MARKERS[0], MARKERS[2])))

    assert suspects(commit) == {"ticks/999999": ["volume_chain"]}


def test_only_the_newer_row_of_a_broken_pair_is_suspect():
    answer = ticks(tick("090030", 1, 16), tick("090020", 5, 15), tick("090010", 4, 6), tick("090000", 2, 2))

    assert suspects(decide(QUOTE, Known(), seen(QUOTE, answer))) == {"ticks/090020": ["volume_chain"]}


def test_the_oldest_row_has_nothing_to_be_compared_with():
    assert suspects(decide(QUOTE, Known(), seen(QUOTE, ticks(tick("090030", 1, 16))))) == {}


@pytest.mark.parametrize(
    "answer",
    [
        ticks(tick("090010", "", 9), tick("090000", 2, 2)),
        ticks(tick("090010", 3, ""), tick("090000", 2, 2)),
        ticks(tick("090010", 3, 9), tick("090000", 2, "")),
    ],
)
def test_a_tick_without_its_volumes_is_no_verdict(answer: Answer):
    assert suspects(decide(QUOTE, Known(), seen(QUOTE, answer))) == {}


def on_pages(*pages: Answer) -> Seen:
    return replace(seen(QUOTE, pages[0]), reading=read_answer(QUOTE, pages))


def test_the_chain_goes_on_over_the_border_of_two_pages():
    first, second = ticks(tick("090030", 1, 16)), ticks(tick("090020", 5, 15), tick("090010", 4, 10))
    torn = ticks(tick("090010", 4, 10))

    assert suspects(decide(QUOTE, Known(), on_pages(first, second))) == {}
    assert suspects(decide(QUOTE, Known(), on_pages(first, torn))) == {"ticks/090030": ["volume_chain"]}


def test_a_row_that_the_second_page_repeats_is_one_link():
    """The market moved between the pages: what was on the first is on the second again."""
    first = ticks(tick("090030", 1, 16), tick("090020", 5, 15))
    second = ticks(tick("090020", 5, 15), tick("090010", 4, 10))

    assert suspects(decide(QUOTE, Known(), on_pages(first, second))) == {}


def test_a_row_that_cannot_be_read_is_no_missing_row():
    """What stands between its neighbours was sent; that we could not read it is told elsewhere."""
    sound = [tick(f"0901{n:02}", 1, 100 + n) for n in range(30, 0, -1)]
    sound[9] |= {"cur_prc_n": "abc"}
    reading = seen(QUOTE, ticks(*sound))

    assert len(reading.reading.unreadable) == 1
    assert suspects(decide(QUOTE, Known(), reading)) == {}


def test_only_rows_that_are_published_are_told_suspect():
    """The broken pair was told when it came; the next answer still holds it."""
    broken = (tick("090010", 5, 15), tick("090000", 2, 2))
    known = after(QUOTE, ticks(*broken))

    later = decide(QUOTE, known, seen(QUOTE, ticks(tick("090020", 1, 16), *broken), 10))

    assert told(later) == [("appended", "ticks/090020")]
    assert later.suspect_rows == {}


def test_repeated_times_are_matched_by_their_rows():
    answer = ticks(tick("", 3, 9), tick("", 4, 6), tick("", 2, 2))

    assert suspects(decide(QUOTE, Known(), seen(QUOTE, answer))) == {}


# --- what runs since the open


def quote(**elements: str) -> Answer:
    return {**recording("ka20001").answer, **elements}


QUOTED = quote(trde_qty="1000", trde_prica="500")


@pytest.mark.parametrize(
    ("later", "names"),
    [
        ({"trde_qty": "1001", "trde_prica": "501"}, []),
        ({"trde_qty": "1000", "trde_prica": "501"}, []),
        ({"trde_qty": "999", "trde_prica": "501"}, ["volume_fell"]),
        ({"trde_qty": "1001", "trde_prica": "499"}, ["value_fell"]),
        ({"trde_qty": "999", "trde_prica": "499"}, ["volume_fell", "value_fell"]),
        ({"trde_qty": "", "trde_prica": "0"}, ["value_fell"]),
    ],
)
def test_volume_and_value_never_fall_within_a_day(later: dict[str, str], names: list[str]):
    commit = decide(QUOTE, after(QUOTE, QUOTED), seen(QUOTE, quote(**later), 10))

    assert suspects(commit, "quote") == ({"quote/-": names} if names else {})


def test_from_nothing_volume_may_become_anything():
    commit = decide(QUOTE, after(QUOTE, quote(trde_qty="")), seen(QUOTE, quote(trde_qty="1"), 10))

    assert suspects(commit, "quote") == {}


def test_a_new_day_starts_from_nothing():
    commit = decide(QUOTE, after(QUOTE, QUOTED), seen(QUOTE, quote(trde_qty="1", trde_prica="1"), day=TUESDAY))

    assert ("baseline", "quote/-") in told(commit)
    assert commit.suspect_rows == {}


@pytest.mark.parametrize(("session", "names"), [("pre", []), ("closed", []), ("closing", ["volume_fell"])])
def test_the_zeros_before_an_opening_are_no_fall(session: Session, names: list[str]):
    """Asked around the clock, the broker shows the new day's zeros while the calendar still counts the last day."""
    zeros = replace(seen(QUOTE, quote(trde_qty="0", trde_prica="500"), 10), session=session)

    assert decide(QUOTE, after(QUOTE, QUOTED), zeros).suspects == dict.fromkeys(names, 1)


def test_a_day_is_compared_with_the_same_date():
    answer = recording("ka20009").answer
    known = after(DAYS, answer)
    lower = [
        {**row, "acc_trde_qty_n": str(int(row["acc_trde_qty_n"]) - 1)} for row in answer["inds_cur_prc_daly_rept"][:1]
    ]
    later = {**answer, "inds_cur_prc_daly_rept": [*lower, *answer["inds_cur_prc_daly_rept"][1:]]}

    (only,) = decide(DAYS, known, seen(DAYS, later, 10)).suspect_rows.items()

    assert only == (f"days/{max(known.rows['days'])}", ["volume_fell"])


def stocks(*volumes: int, code: str = "005930") -> Answer:
    row = recording("ka20002").answer["inds_stkpc"][0]
    return {
        "inds_stkpc": [{**row, "stk_cd": code, "now_trde_qty": str(volume)} for volume in volumes],
        "return_code": 0,
    }


@pytest.mark.parametrize(("earlier", "later"), [((9, 500), (10, 501)), ((2, 30), (9, 31))])
def test_rows_that_share_a_key_are_not_compared_with_each_other(earlier: tuple[int, int], later: tuple[int, int]):
    """Nobody knows which is which: here both grew, and the lower one now stands where the higher one stood."""
    known = after(STOCKS, stocks(*earlier))

    commit = decide(STOCKS, known, seen(STOCKS, stocks(*later), 10))

    assert {known.rows["stocks"][key]["volume_shares"] for key in ("005930", "005930#2")} == set(earlier)
    assert len(commit.drafts) == 2
    assert commit.suspect_rows == {}


def test_a_key_that_was_repeated_is_not_compared_either():
    commit = decide(STOCKS, after(STOCKS, stocks(9, 500)), seen(STOCKS, stocks(10), 10))

    assert ("removed", "stocks/005930#2") in told(commit)
    assert commit.suspect_rows == {}


# --- what readers see


def broken_index(volume: str = "1") -> Answer:
    """The recorded indices; the second counts more risers than stocks."""
    answer = recording("ka20003").answer
    rows = [{**row, "trde_qty": volume} for row in answer["all_inds_idex"]]
    rows[1] |= {"rising": "5000"}
    return {**answer, "all_inds_idex": rows}


def test_a_suspect_row_is_published_with_the_names_of_what_it_fails():
    commit = decide(INDICES, Known(), seen(INDICES, broken_index()))

    assert told(commit) == [("reset", "-"), *(("baseline", f"indices/{key}") for key in ("001", "002", "003"))]
    assert data_of(commit, 2)["suspect"] == ["breadth"]
    assert data_of(commit, 2)["after"]["advancers"] == 5000
    assert RowData.model_validate(data_of(commit, 2)).suspect == ["breadth"]
    assert "indices/002" in commit.set_rows


def test_a_row_that_fails_nothing_has_no_word_of_it():
    commit = decide(INDICES, Known(), seen(INDICES, broken_index()))

    assert ["suspect" in data_of(commit, number) for number in range(4)] == [False, False, True, False]


def test_a_commit_counts_its_suspect_rows_per_guard():
    commit = decide(INDICES, after(INDICES, broken_index("2")), seen(INDICES, broken_index("1"), 10))

    assert commit.suspects == {"breadth": 1, "volume_fell": 3}
    assert commit.suspect_rows["indices/002"] == ["breadth", "volume_fell"]
    assert loads(commit.state["suspect"]) == {"breadth": 1, "volume_fell": 3}


def test_the_state_tells_of_the_last_commit_that_had_news():
    known = after(INDICES, broken_index())
    nothing_new = decide(INDICES, known, seen(INDICES, broken_index(), 10))
    repaired = decide(INDICES, known, seen(INDICES, recording("ka20003").answer, 10))

    assert "suspect" not in nothing_new.state  # and so the hash keeps what it has
    assert repaired.state["suspect"] == ""


def test_a_row_that_went_is_not_judged():
    known = after(INDICES, broken_index())
    answer = broken_index()
    del answer["all_inds_idex"][1]

    commit = decide(INDICES, known, seen(INDICES, answer, 10))

    assert told(commit) == [("removed", "indices/002")]
    assert commit.suspect_rows == {}


PLAYED = [recording(tr.code) for tr in CATALOGUE]


@settings(max_examples=60)
@given(st.data())
def test_guards_change_nothing_but_the_word_suspect(data: st.DataObject):
    """The same answers, decided with and without guards: entries, rows and state are the same."""
    played = data.draw(st.sampled_from(PLAYED))
    answers = [spoilt(data, played.answer) for _ in range(3)]

    guarded = list(decided(played.target, answers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "suspect_rows", lambda *_: {})
        plain = list(decided(played.target, answers))

    for one, other in zip(guarded, plain, strict=True):
        assert [without_suspect(draft.data) for draft in one.drafts] == [loads(draft.data) for draft in other.drafts]
        assert told(one) == told(other)
        assert (one.set_rows, one.delete_rows, one.known) == (other.set_rows, other.delete_rows, other.known)
        assert one.state | {"suspect": ""} == other.state | {"suspect": ""}


def without_suspect(text: str) -> dict[str, Any]:
    return {name: value for name, value in loads(text).items() if name != "suspect"}


def decided(asked: Target, answers: Sequence[Answer]) -> Iterator[Commit]:
    known = Known()
    for number, answer in enumerate(answers):
        done = decide(asked, known, seen(asked, answer, number * EVERY_S))
        known = done.known
        yield done


def spoilt(data: st.DataObject, answer: Answer) -> Answer:
    """The answer with some of its numbers replaced, so that some guards fail."""

    def text(value: Any) -> Any:
        if not isinstance(value, str) or not value.lstrip("+-").isdigit() or len(value.lstrip("+-")) in {3, 6, 8}:
            return value
        return data.draw(st.sampled_from([value, value, "1", "700", "-41", ""]))

    def line(row: dict[str, Any]) -> dict[str, Any]:
        kept = {
            "cur_prc",
            "stk_cd",
            "inds_cd",
            "tm_n",
            "dt_n",
            "pre_smbol",
            "pre_sig",
            "pred_pre_sig",
            "pred_pre_sig_n",
        }
        return {name: value if name in kept else text(value) for name, value in row.items()}

    return {
        name: [line(row) for row in value] if isinstance(value, list) else value for name, value in line(answer).items()
    }


# --- when trouble is told


def turns(standing: Standing, *published: str, suspect: Sequence[str] = (), reset: bool = False) -> list[Turn]:
    rows = {subject: ["breadth"] for subject in suspect}
    return list(standing.turns(INDICES, published, rows, reset=reset))


def test_a_violation_is_told_once_and_so_is_its_end():
    standing = Standing()

    assert turns(standing, "indices/002", "indices/003", suspect=["indices/002"]) == [
        Turn("indices", "breadth", ["indices/002"])
    ]
    assert turns(standing, "indices/002", "indices/003", suspect=["indices/002", "indices/003"]) == []
    assert turns(standing, "indices/002") == []
    assert turns(standing, "indices/003") == [Turn("indices", "breadth", [])]
    assert turns(standing, "indices/003") == []


def test_a_suspect_row_that_stands_still_is_not_healed_by_the_others():
    """Otherwise a sector that is broken and quiet would be told with every second answer."""
    standing = Standing()
    turns(standing, "indices/002", suspect=["indices/002"])

    assert turns(standing, "indices/001", "indices/003") == []
    assert turns(standing) == []


def test_a_reset_forgets_what_was_suspect():
    standing = Standing()
    turns(standing, "indices/002", suspect=["indices/002"])

    assert turns(standing, "-", "indices/001", reset=True) == [Turn("indices", "breadth", [])]


def test_newer_rows_of_a_list_in_time_heal_it():
    """A tick that broke the chain is never published again."""
    standing = Standing()
    broken, sound = {"ticks/090010": ["volume_chain"]}, dict[str, list[str]]()

    assert list(standing.turns(QUOTE, ["ticks/090010"], broken, reset=False)) == [
        Turn("ticks", "volume_chain", ["ticks/090010"])
    ]
    assert list(standing.turns(QUOTE, ["quote/-"], sound, reset=False)) == []
    assert list(standing.turns(QUOTE, ["ticks/090020"], sound, reset=False)) == [Turn("ticks", "volume_chain", [])]


def broker_that_plays(answers: Iterator[Answer]) -> Callable[[httpx.Request], httpx.Response]:
    """A broker that grants a token and then gives these answers in turn."""

    def play(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json={"return_code": 0, "token": "t", "expires_dt": "20991231000000"})
        return httpx.Response(200, json=next(answers))

    return play


async def test_the_log_says_when_a_guard_is_violated_and_when_it_holds(redis: Redis, clock: HandClock, tmp_path: Path):
    answers = [broken_index("1"), broken_index("2"), recording("ka20003").answer]
    state = Keys("test").of("ka20003", "state", INDICES.query)

    async with desk_for(redis, broker_that_plays(iter(answers)), clock, tmp_path) as desk:
        await desk.store.take_lead((INDICES.tr,), desk.now_ms())
        watched = Watched(Job(INDICES, EVERY_S), desk)
        with capture_logs() as logs:
            for _ in range(2):
                await watched.poll(clock.now())
                clock.advance(EVERY_S)
            assert await redis.hget(state, "suspect") == '{"breadth":1}'
            await watched.poll(clock.now())

    assert await redis.hget(state, "suspect") == ""
    said = [entry for entry in logs if entry["event"].startswith("guard.")]
    assert [(entry["event"], entry["guard"]) for entry in said] == [
        ("guard.violated", "breadth"),
        ("guard.held", "breadth"),
    ]
    assert (said[0]["log_level"], said[0]["table"], said[0]["rows"], said[0]["example"]) == (
        "warning",
        "indices",
        1,
        "indices/002",
    )


async def test_the_poller_counts_suspect_rows_over_its_life(redis: Redis, tmp_path: Path):
    answers = (broken_index(str(volume)) for volume in count(1))
    stop = asyncio.Event()

    async with desk_for(redis, broker_that_plays(answers), FastClock(), tmp_path) as desk:
        poller = Poller([Job(INDICES, 1.0)], desk, Upkeep(86_400, 10**9))
        running = asyncio.create_task(poller.run(stop))
        async with asyncio.timeout(20):
            while poller.stats.suspects["breadth"] < 3:  # noqa: ASYNC110 -- a counter, not an event
                await asyncio.sleep(0.01)
        stop.set()
        await running

    assert poller.stats.suspects.keys() == {"breadth"}


# --- what people see


def entry_of(done: Commit, number: int) -> Entry:
    """An entry as a reader gets it."""
    draft = done.drafts[number]
    at = done.state["last_good"]
    attributes = {"id": f"{done.target}#{done.commit_id}.{number}", "source": f"/kiwoom/{done.target}", "time": at}
    return Entry.model_validate(
        {**attributes, "type": draft.type, "subject": draft.subject, "seq": number, "data": loads(draft.data)}
    )


def test_a_suspect_row_has_a_mark_in_tail():
    done = decide(INDICES, Known(), seen(INDICES, broken_index()))

    assert line(entry_of(done, 2), described()).plain.endswith("⚠ breadth")
    assert "⚠" not in line(entry_of(done, 1), described()).plain


def test_the_archive_keeps_the_names():
    known = described()
    done = decide(INDICES, Known(), seen(INDICES, broken_index()))
    batch = [Delivery("ka20003", f"{number}-0", {}, entry_of(done, number)) for number in (1, 2)]

    lines = placed(batch, known["ka20003"], declared(known))["ka20003/indices"]

    assert [one.cells["suspect"] for one in lines] == ["[]", dumps(["breadth"])]


def test_the_catalogue_says_what_each_guard_checks(capsys: pytest.CaptureFixture[str]):
    commands.catalogue(argparse.Namespace(json=False, word="ka20003"))
    printed = " ".join(capsys.readouterr().out.split())

    assert "guard breadth: advancers + unchanged + decliners ≤ listed_stocks" in printed
    assert "guard volume_fell:" in printed
    assert described()["ka10010"].tables[0].guards == {}


def test_an_explanation_names_the_suspect_rows():
    answer = broken_index()
    console = Console(record=True, width=200)
    whole = WholeAnswer(INDICES, (answer,), (b"{}",))

    explain(console, INDICES, Known(), whole, decide(INDICES, Known(), seen(INDICES, answer)))

    assert "suspect: indices/002 fails breadth" in console.export_text()


# --- the simulated market


def kst(day: date, clock: str) -> datetime:
    return datetime.combine(day, datetime.strptime(clock, "%H:%M:%S").time(), KST)  # noqa: DTZ007 - KST is added


MOMENTS = [
    kst(day, clock)
    for day in (MONDAY, TUESDAY)
    for clock in ("09:00:03", "09:00:41", "10:30:00", "15:29:59", "15:31:10", "15:34:00", "15:41:00", "18:30:00")
]
TARGETS = [
    *(target("ka10010", stk_cd=stock) for stock in ("005930", "005930_AL")),
    *(
        target("ka10051", mrkt_tp=market, amt_qty_tp=unit, stex_tp=exchange)
        for market in "01"
        for unit in "01"
        for exchange in "123"
    ),
    *(target("ka20001", inds_cd=sector) for sector in ("001", "013", "101", "201", "701")),
    *(target("ka20002", inds_cd=sector, stex_tp=exchange) for sector in ("013", "101") for exchange in "123"),
    *(target("ka20003", inds_cd=sector) for sector in ("001", "101")),
    *(target("ka20009", inds_cd=sector) for sector in ("001", "013", "101", "201", "701")),
]


@pytest.fixture(scope="module")
def states() -> dict[datetime, MarketState]:
    """Two days of the market; after each moment the one two seconds later, when the later pages are answered."""
    market = Market(seed=3)
    return {at: market.at(at) for moment in MOMENTS for at in (moment, moment + timedelta(seconds=2))}


def walked(asked: Target, known: Known, now: MarketState, later: MarketState) -> list[Answer]:
    """A walk over the pages of a market that moves, as far as a poller goes."""
    newest = {
        t.name: max(known.rows[t.name]) for t in asked.tr.tables if isinstance(t, Append) and known.rows.get(t.name)
    }
    pages: list[Answer] = []
    state, position = now, None
    while True:
        page = simulated(asked.tr.code, state, asked.request, position)
        pages.append({"return_code": 0, **page.elements})
        state, position = later, page.next_position
        if position is None or reaches_back(asked, newest, pages):
            return pages


@pytest.mark.parametrize("asked", TARGETS, ids=str)
def test_the_simulated_market_breaks_no_guard(asked: Target, states: dict[datetime, MarketState]):
    calendar, known, published = Calendar(), Known(), 0
    for moment in MOMENTS:
        now, later = states[moment], states[moment + timedelta(seconds=2)]
        reading = read_answer(asked, walked(asked, known, now, later))
        day, session = calendar.trading_day_at(moment), calendar.session_at(moment)
        done = decide(asked, known, Seen(reading, str(moment), moment, day, session, EPOCH, EVERY_S))
        assert done.suspect_rows == {}, moment
        known, published = done.known, published + len(done.drafts)
    assert published >= len(MOMENTS) // 2  # something was judged at all
