"""What one answer does to what was known: the entries it writes, what it holds back, and when it starts afresh."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from poller.commit import MAX_CHANGES, Commit, Gap, Known, decide, gap_since, is_unchanged, iso, state_of, unchanged
from poller.contract import DOCUMENT_KEY, RowData, decode, dumps
from poller.errors import NotWhole, SkipTarget
from poller.store import UNKNOWN_SHAPE, known_of
from tests.builders import (
    EPOCH,
    EVERY_S,
    MONDAY,
    NOON,
    TUESDAY,
    Answer,
    after,
    data_of,
    golden,
    recording,
    seen,
    target,
    told,
)

INDICES = target("ka20003", inds_cd="001")
STOCKS = target("ka20002", inds_cd="001", stex_tp="1")
QUOTE = target("ka20001", inds_cd="001")
DAYS = target("ka20009", inds_cd="001")
GAP = Gap(NOON - timedelta(minutes=5), NOON, 29, "broker")


def indices(**levels: str) -> Answer:
    """The recorded answer; `indices(_002="-2380.14")` with another level there, an empty one taking the row away."""
    answer = recording("ka20003").answer
    changed = {f"_{row['stk_cd']}": row for row in answer["all_inds_idex"]}
    for key, level in levels.items():
        changed[key] = {**changed["_001"], "stk_cd": key[1:], **changed.get(key, {}), "cur_prc": level}
    return {**answer, "all_inds_idex": [row for row in changed.values() if row["cur_prc"]]}


def stocks(number: int, price: str = "100", *, bad: int = 0) -> Answer:
    """So many stocks, the first of them with an unreadable price."""
    row = recording("ka20002").answer["inds_stkpc"][0]
    rows = [{**row, "stk_cd": f"{n:06}", "cur_prc": "abc" if n < bad else price} for n in range(number)]
    return {"inds_stkpc": rows, "return_code": 0, "return_msg": ""}


def ticks(*times: str) -> Answer:
    answer = recording("ka20001").answer
    tick = answer["inds_cur_prc_tm"][0]
    return {**answer, "inds_cur_prc_tm": [{**tick, "tm_n": time} for time in times]}


def confirmed(asked: Any, known: Known, answer: Answer) -> Commit:
    """The commit after the same answer came twice, a full interval apart."""
    held = decide(asked, known, seen(asked, answer, 10)).known
    return decide(asked, held, seen(asked, answer, 10 + EVERY_S))


# --- first sight, nothing new, news


def test_the_first_answer_is_a_reset_and_baselines_in_one_commit():
    commit = decide(INDICES, Known(), seen(INDICES, indices()))

    assert told(commit) == [
        ("reset", "-"),
        ("baseline", "indices/001"),
        ("baseline", "indices/002"),
        ("baseline", "indices/003"),
    ]
    assert data_of(commit)["reason"] == "first"
    assert commit.clear
    assert (commit.version_before, commit.version) == (0, 1)
    assert sorted(commit.set_rows) == ["indices/001", "indices/002", "indices/003"]
    assert commit.delete_rows == ()


def test_a_baseline_is_the_whole_row_and_no_news():
    data = data_of(decide(INDICES, Known(), seen(INDICES, indices())), 1)

    assert dumps(data["after"]) == dumps(recording("ka20003").rows["indices"][0][1])
    assert (data["before"], data["changed"], data["observed_from"]) == (None, [], None)


def test_documents_and_windows_have_baselines_of_their_own():
    commit = decide(QUOTE, Known(), seen(QUOTE, ticks("143000", "142950")))

    assert told(commit) == [
        ("reset", "-"),
        ("baseline", "quote/-"),
        ("baseline", "ticks/142950"),
        ("baseline", "ticks/143000"),
    ]


def test_an_equal_answer_writes_no_entry_but_that_we_looked():
    known = after(INDICES, indices())

    commit = decide(INDICES, known, seen(INDICES, indices(), 10))

    assert commit.drafts == ()
    assert (commit.version, commit.set_rows, commit.delete_rows, commit.clear) == (1, {}, (), False)
    assert commit.known == replace(known, last_good=NOON + timedelta(seconds=10))


def test_a_changed_row_tells_the_changed_fields_as_they_were_and_the_row_as_it_is():
    commit = decide(INDICES, after(INDICES, indices()), seen(INDICES, indices(_002="-2380.14"), 10))

    assert told(commit) == [("changed", "indices/002")]
    data = data_of(commit)
    assert (data["changed"], data["before"]) == (["level"], {"level": Decimal("2379.14")})
    assert data["after"] == {**dict(recording("ka20003").rows["indices"])["002"], "level": Decimal("2380.14")}
    assert commit.set_rows == {"indices/002": dumps(data["after"])}
    assert (commit.version, commit.clear, commit.delete_rows) == (2, False, ())


def test_rows_that_come_and_go_within_a_day_are_news():
    commit = decide(INDICES, after(INDICES, indices()), seen(INDICES, indices(_002="", _004="5"), 10))

    assert told(commit) == [("removed", "indices/002"), ("added", "indices/004")]
    assert data_of(commit)["after"] is None
    assert data_of(commit)["before"] == dict(recording("ka20003").rows["indices"])["002"]
    assert data_of(commit)["label"] == "대형주"
    assert commit.delete_rows == ("indices/002",)


def test_a_window_appends_and_forgets_without_a_word():
    """Falling out of the window is no entry, and yet the snapshot must lose the row."""
    full = [f"09{n // 6:02}{n % 6}0" for n in range(240)]
    known = after(QUOTE, ticks(*full))

    commit = decide(QUOTE, known, seen(QUOTE, ticks("095000", *full[:0:-1]), 10))

    assert told(commit) == [("appended", "ticks/095000")]
    assert commit.delete_rows == ("ticks/090000",)
    assert len(commit.known.rows["ticks"]) == 240


def test_the_day_that_moves_is_changed_and_not_appended():
    known, answer = after(DAYS, recording("ka20009").answer), recording("ka20009").answer
    answer["inds_cur_prc_daly_rept"][0]["cur_prc_n"] = "-2384.72"

    assert told(decide(DAYS, known, seen(DAYS, answer, 10))) == [("changed", "days/20241122")]


def test_the_answer_is_remembered_by_its_digest():
    known = after(INDICES, indices())

    assert known.digest == dumps(indices())
    assert known.elements == {"indices": sorted(indices()["all_inds_idex"][0])}


# --- what every entry says


def test_a_changed_row_is_the_golden_entry():
    """If this fails, readers in other languages fail: fields may be added to the contract, never renamed."""
    commit = decide(INDICES, after(INDICES, indices()), seen(INDICES, indices(_002="-2380.14"), 1.123))
    entry = golden("entry.json")

    data = data_of(commit)

    for name, value in entry["data"].items():
        assert data[name] == value, name
    assert list(data) == list(entry["data"])
    assert commit.drafts[0].data == dumps(entry["data"])
    assert (commit.drafts[0].type, commit.drafts[0].subject) == (entry["type"], entry["subject"])
    assert entry["id"] == f"{INDICES}#{EPOCH}.{commit.version}.1"
    assert (entry["source"], entry["time"]) == (f"/kiwoom/{INDICES}", commit.state["last_good"])


def test_the_golden_entry_is_decoded_by_a_reader():
    entry = golden("entry.json")
    fields = {name: dumps(value) if name == "data" else str(value) for name, value in entry.items()}

    decoded = decode({name.encode(): text.encode() for name, text in fields.items()})

    assert decoded.row_kind == "changed"
    assert decoded.data == entry["data"]
    assert decoded.seq == entry["seq"]
    assert RowData.model_validate(decoded.data).trading_day == MONDAY


@pytest.mark.parametrize(
    ("asked", "answer", "number", "label"),
    [
        (INDICES, indices(), 1, "종합(KOSPI)"),
        (STOCKS, recording("ka20002").answer, 1, "삼성전자"),
        (QUOTE, recording("ka20001").answer, 1, "종합(KOSPI)"),
        (QUOTE, recording("ka20001").answer, 2, "종합(KOSPI)"),
        (target("ka10010", stk_cd="005930_AL"), recording("ka10010").answer, 1, "005930_AL"),
        (recording("ka10051").target, recording("ka10051").answer, 1, "종합(KOSPI)"),
    ],
    ids=["index", "stock", "quote", "tick", "program", "flow"],
)
def test_a_label_is_the_rows_name_or_else_the_targets(asked: Any, answer: Answer, number: int, label: str):
    assert data_of(decide(asked, Known(), seen(asked, answer)), number)["label"] == label


def test_a_row_without_a_name_is_called_like_its_target():
    answer = indices()
    answer["all_inds_idex"][0]["stk_nm"] = ""

    assert data_of(decide(INDICES, Known(), seen(INDICES, answer)), 1)["label"] == INDICES.label


def test_every_entry_says_when_and_in_whose_reign_it_was_seen():
    commit = decide(INDICES, after(INDICES, indices()), seen(INDICES, indices(_001="5", _002="6"), 10, gap=GAP))

    assert told(commit) == [("gap", "-"), ("changed", "indices/001"), ("changed", "indices/002")]
    for number in range(3):
        data = data_of(commit, number)
        assert (data["tr"], data["target"]) == ("ka20003", {"inds_cd": "001"})
        assert (data["trading_day"], data["session"]) == ("2026-11-23", "regular")
        assert (data["observed_from"], data["observed_at"]) == (iso(NOON), iso(NOON + timedelta(seconds=10)))
        assert (data["epoch"], data["version"]) == (EPOCH, 2)


def test_a_notice_is_called_like_its_target():
    assert data_of(decide(INDICES, Known(), seen(INDICES, indices())))["label"] == INDICES.label


def test_baselines_and_notices_are_not_counted_as_changes():
    first = decide(INDICES, Known(), seen(INDICES, indices()))
    second = decide(INDICES, first.known, seen(INDICES, indices(_001="5", _002="", _004="6"), 10, gap=GAP))

    assert (first.changes, len(first.drafts)) == (0, 4)
    assert (second.changes, len(second.drafts)) == (3, 4)


def test_a_retry_has_the_id_of_its_commit_and_another_commit_has_not():
    known = after(INDICES, indices())
    first, again = (decide(INDICES, known, seen(INDICES, indices(_001="5"), 10)) for _ in range(2))

    assert first.commit_id == again.commit_id
    assert first.commit_id != decide(INDICES, first.known, seen(INDICES, indices(_001="6"), 20)).commit_id


# --- resets


def test_a_new_trading_day_starts_with_who_joined_and_who_left():
    known = after(INDICES, indices())

    commit = decide(INDICES, known, seen(INDICES, indices(_002="", _004="5", _001="6"), day=TUESDAY))

    assert told(commit) == [
        ("reset", "-"),
        ("baseline", "indices/001"),
        ("baseline", "indices/003"),
        ("baseline", "indices/004"),
    ]
    data = data_of(commit)
    assert (data["reason"], data["joined"], data["left"]) == ("new_day", {"indices": ["004"]}, {"indices": ["002"]})
    assert (commit.clear, commit.delete_rows, commit.version) == (True, (), 2)
    assert (data["trading_day"], data["observed_from"]) == ("2026-11-24", iso(NOON))


def test_only_keyed_tables_have_rows_that_join_and_leave():
    commit = decide(QUOTE, after(QUOTE, ticks("143000")), seen(QUOTE, ticks("090000"), day=TUESDAY))

    assert (data_of(commit)["joined"], data_of(commit)["left"]) == ({}, {})
    assert sorted(commit.known.rows["ticks"]) == ["090000"]


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (Known(), "first"),
        (Known(rolled_back=True), "first"),
        (Known(version=3, revision=1, trading_day=MONDAY, rolled_back=True), "rollback"),
        (Known(version=3, revision=9, trading_day=MONDAY), "declaration"),
        (Known(version=3, revision=9, trading_day=MONDAY, rolled_back=True), "rollback"),
        (Known(version=3, revision=9, trading_day=TUESDAY), "declaration"),
        (Known(version=3, revision=1, trading_day=TUESDAY), "new_day"),
    ],
)
def test_a_reset_has_one_reason(known: Known, reason: str):
    commit = decide(INDICES, known, seen(INDICES, indices()))

    assert data_of(commit)["reason"] == reason
    assert ("joined" in data_of(commit)) == (reason == "new_day")
    assert commit.clear
    assert not commit.known.rolled_back
    assert (commit.known.revision, commit.known.trading_day) == (INDICES.tr.revision, MONDAY)


@pytest.mark.parametrize("change", [{"revision": 9}, {"rolled_back": True}], ids=str)
def test_a_reset_publishes_all_rows_however_little_changed(change: dict[str, Any]):
    known = replace(after(INDICES, indices()), **change)

    assert [kind for kind, _ in told(decide(INDICES, known, seen(INDICES, indices(), 10)))] == [
        "reset",
        "baseline",
        "baseline",
        "baseline",
    ]


# --- rows that vanish


def test_a_loss_too_large_to_believe_is_held_and_nothing_is_published():
    known = after(STOCKS, stocks(40))

    commit = decide(STOCKS, known, seen(STOCKS, stocks(20, "200"), 10))

    assert commit.drafts == ()
    assert (commit.version, commit.set_rows, commit.delete_rows, commit.clear) == (1, {}, (), False)
    assert commit.known.rows == known.rows
    assert commit.known.hold is not None
    assert commit.known.hold.missing == {"stocks": [f"{n:06}" for n in range(20, 40)]}
    assert commit.known.digest == ""


def test_a_second_answer_a_full_interval_later_makes_it_true():
    commit = confirmed(STOCKS, after(STOCKS, stocks(40)), stocks(20))

    assert told(commit) == [("removed", f"stocks/{n:06}") for n in range(20, 40)]
    assert commit.delete_rows == tuple(f"stocks/{n:06}" for n in range(20, 40))
    assert commit.known.hold is None
    assert len(commit.known.rows["stocks"]) == 20


def test_a_second_answer_too_soon_proves_nothing():
    """Two answers of one broken moment agree with each other."""
    held = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(20), 10)).known

    soon = decide(STOCKS, held, seen(STOCKS, stocks(20), 10 + EVERY_S - 0.001))

    assert soon.drafts == ()
    assert soon.known.hold == held.hold
    assert decide(STOCKS, soon.known, seen(STOCKS, stocks(20), 10 + EVERY_S)).drafts


def test_rows_that_return_were_never_gone():
    held = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(20), 10)).known

    commit = decide(STOCKS, held, seen(STOCKS, stocks(40), 20))

    assert commit.drafts == ()
    assert commit.known.hold is None
    assert commit.known.digest == dumps(stocks(40))


def test_other_rows_missing_begin_another_hold():
    held = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(20), 10)).known

    commit = decide(STOCKS, held, seen(STOCKS, stocks(19), 60))

    assert commit.drafts == ()
    assert commit.known.hold is not None
    assert commit.known.hold.since == NOON + timedelta(seconds=60)


def test_while_rows_are_held_a_gap_is_told_at_once_and_once():
    """The stretch that nobody saw is over, whatever becomes of the rows."""
    known = after(STOCKS, stocks(40))

    held = decide(STOCKS, known, seen(STOCKS, stocks(20), 10, gap=GAP))
    confirming = decide(STOCKS, held.known, seen(STOCKS, stocks(20), 20))

    assert told(held) == [("gap", "-")]
    assert (held.version, held.set_rows, held.delete_rows) == (2, {}, ())
    assert held.known.rows == known.rows
    assert {kind for kind, _ in told(confirming)} == {"removed"}


def test_a_new_shape_waits_with_the_rows_that_are_held():
    answer = stocks(20)
    for row in answer["inds_stkpc"]:
        row["new_thing"] = "7"
    held = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, answer, 10))

    confirming = decide(STOCKS, held.known, seen(STOCKS, answer, 20))

    assert held.drafts == ()
    assert told(confirming)[0] == ("shape", "-")


def test_an_empty_table_at_first_sight_is_held_as_well():
    empty = stocks(0)
    held = decide(STOCKS, Known(), seen(STOCKS, empty, 10))

    assert held.drafts == ()
    assert held.known.hold is not None
    assert (held.known.revision, held.known.trading_day) == (0, None)

    commit = decide(STOCKS, held.known, seen(STOCKS, empty, 20))

    assert told(commit) == [("reset", "-")]
    assert data_of(commit)["reason"] == "first"


def test_an_empty_table_on_a_new_day_is_held_and_the_old_day_stays():
    known = after(STOCKS, stocks(40))

    held = decide(STOCKS, known, seen(STOCKS, stocks(0), day=TUESDAY))
    recovered = decide(STOCKS, held.known, seen(STOCKS, stocks(40), 10, day=TUESDAY))

    assert held.drafts == ()
    assert (held.known.trading_day, held.known.rows, held.clear) == (MONDAY, known.rows, False)
    assert told(recovered)[0] == ("reset", "-")
    assert data_of(recovered)["reason"] == "new_day"


@pytest.mark.parametrize("change", [{"revision": 9}, {"rolled_back": True}], ids=str)
def test_a_hold_forgets_no_reset_that_is_due(change: dict[str, Any]):
    known = replace(after(STOCKS, stocks(40)), **change)

    held = decide(STOCKS, known, seen(STOCKS, stocks(0), 10)).known

    assert (held.revision, held.rolled_back) == (known.revision, known.rolled_back)
    assert told(decide(STOCKS, held, seen(STOCKS, stocks(40), 20)))[0] == ("reset", "-")


@pytest.mark.parametrize("code", ["ka20001", "ka20009"])
def test_a_window_that_comes_back_empty_is_an_empty_success(code: str):
    asked, answer = target(code, inds_cd="001"), recording(code).answer
    rows_at = asked.tr.tables[1].rows_at or ""

    with pytest.raises(NotWhole, match=r"came back empty, it had [34] rows"):
        decide(asked, after(asked, answer), seen(asked, {**answer, rows_at: []}, 10))


def test_a_table_that_shrank_overnight_is_doubted_before_it_is_the_new_day():
    """Half a list on a new day would name everybody else as delisted."""
    known = after(STOCKS, stocks(40))
    held = decide(STOCKS, known, seen(STOCKS, stocks(20), day=TUESDAY))
    confirmed = decide(STOCKS, held.known, seen(STOCKS, stocks(20), EVERY_S, day=TUESDAY))

    assert held.drafts == ()
    assert (held.known.trading_day, held.known.rows) == (MONDAY, known.rows)
    assert told(confirmed)[0] == ("reset", "-")
    assert len(data_of(confirmed)["left"]["stocks"]) == 20


def test_a_few_rows_that_left_overnight_are_told_at_once():
    commit = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(30), day=TUESDAY))

    assert told(commit)[0] == ("reset", "-")
    assert len(data_of(commit)["left"]["stocks"]) == 10


def test_a_window_may_be_empty_at_first_sight_and_on_a_new_day():
    assert told(decide(QUOTE, Known(), seen(QUOTE, ticks()))) == [("reset", "-"), ("baseline", "quote/-")]
    known = after(QUOTE, ticks("143000"))

    assert told(decide(QUOTE, known, seen(QUOTE, ticks(), day=TUESDAY))) == [("reset", "-"), ("baseline", "quote/-")]


# --- rows that cannot be read


def test_a_row_that_cannot_be_read_is_no_news_and_keeps_its_value():
    known = after(STOCKS, stocks(40))

    commit = decide(STOCKS, known, seen(STOCKS, stocks(40, bad=1), 10))

    assert commit.drafts == ()
    assert commit.known.rows == known.rows


def test_rows_found_gone_went_after_the_last_poll_that_had_them():
    """The held answer in between published nothing, so it is no bound for what the second one says."""
    held = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(20), EVERY_S))
    known = known_of(
        STOCKS, held.state, {f"stocks/{key}": dumps(row) for key, row in held.known.rows["stocks"].items()}
    )
    gone = decide(STOCKS, known, seen(STOCKS, stocks(20), 2 * EVERY_S))

    assert data_of(gone)["observed_from"] == iso(NOON)
    assert data_of(gone)["observed_at"] == iso(NOON + timedelta(seconds=2 * EVERY_S))


def test_a_confirmed_empty_table_is_not_doubted_again_after_a_restart():
    held = decide(STOCKS, Known(), seen(STOCKS, stocks(0)))
    confirmed = decide(STOCKS, held.known, seen(STOCKS, stocks(0), EVERY_S))
    known = known_of(STOCKS, confirmed.state, {})
    later = decide(STOCKS, known, replace(seen(STOCKS, stocks(0), 2 * EVERY_S), digest="other bytes"))

    assert later.known.hold is None


def test_a_row_that_cannot_be_read_on_a_new_day_has_not_left():
    commit = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(40, bad=1), day=TUESDAY))

    assert data_of(commit)["left"] == {"stocks": []}


def test_a_row_that_cannot_be_read_has_no_value_after_a_reset():
    """Yesterday's price is not today's."""
    commit = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(40, bad=1), day=TUESDAY))

    assert "000000" not in commit.known.rows["stocks"]
    assert len(told(commit)) == 40


def test_a_quote_that_cannot_be_read_keeps_its_value_while_its_steps_go_on():
    times = [f"0900{n:02}" for n in range(20)]
    known = after(QUOTE, ticks(*times))

    commit = decide(QUOTE, known, seen(QUOTE, {**ticks(*times, "090100"), "upl": "abc"}, 10))

    assert told(commit) == [("appended", "ticks/090100")]
    assert commit.known.rows["quote"] == known.rows["quote"]


# --- gaps


@pytest.mark.parametrize(
    ("scheduled_polls", "missed"),
    [(0.0, None), (1.0, None), (2.0, None), (2.01, 1), (3.0, 2), (4.0, 3), (60.0, 59), (3.02, 2)],
)
def test_more_than_two_scheduled_intervals_without_a_poll_are_a_gap(scheduled_polls: float, missed: int | None):
    """One late poll is not worth an entry, and closed hours are not scheduled."""
    gap = gap_since(NOON, NOON + timedelta(days=1), scheduled_polls, "stopped")

    assert gap == (missed and Gap(NOON, NOON + timedelta(days=1), missed, "stopped"))


def test_a_gap_is_the_first_entry_of_the_commit_that_ends_it():
    commit = decide(INDICES, after(INDICES, indices()), seen(INDICES, indices(), 10, gap=GAP))

    assert told(commit) == [("gap", "-")]
    data = data_of(commit)
    assert (data["from"], data["to"]) == ("2026-11-23T11:55:00.000+09:00", "2026-11-23T12:00:00.000+09:00")
    assert (data["polls_missed"], data["reason"]) == (29, "broker")
    assert "table" not in data
    assert commit.version == 2


def test_a_gap_stands_before_a_reset_and_its_baselines():
    commit = decide(INDICES, after(INDICES, indices()), seen(INDICES, indices(), gap=GAP, day=TUESDAY))

    assert [kind for kind, _ in told(commit)] == ["gap", "reset", "baseline", "baseline", "baseline"]


def test_a_window_that_slid_past_what_we_had_is_a_gap():
    commit = decide(QUOTE, after(QUOTE, ticks("143000")), seen(QUOTE, ticks("143500", "143450"), 300))

    assert told(commit) == [("gap", "ticks"), ("appended", "ticks/143450"), ("appended", "ticks/143500")]
    data = data_of(commit)
    assert (data["reason"], data["table"], data["polls_missed"]) == ("window", "ticks", 0)
    assert (data["from"], data["to"]) == (iso(NOON), iso(NOON + timedelta(seconds=300)))


def test_a_window_that_starts_afresh_has_lost_nothing():
    commit = decide(QUOTE, after(QUOTE, ticks("143000")), seen(QUOTE, ticks("090000"), day=TUESDAY))

    assert [kind for kind, _ in told(commit)] == ["reset", "baseline", "baseline"]


# --- shapes


def with_elements(*appeared: str, without: str | None = None) -> Answer:
    answer = indices()
    for row in answer["all_inds_idex"]:
        row.update(dict.fromkeys(appeared, "7"))
        if without is not None:
            del row[without]
    return answer


def test_elements_that_come_and_go_are_told_once():
    known, changed = after(INDICES, indices()), with_elements("new_thing", without="wght")

    first = decide(INDICES, known, seen(INDICES, changed, 10))
    second = decide(INDICES, first.known, seen(INDICES, changed, 20))
    back = decide(INDICES, second.known, seen(INDICES, indices(), 30))

    assert told(first) == [("shape", "-")]
    assert data_of(first)["appeared"] == {"indices": ["new_thing"]}
    assert data_of(first)["vanished"] == {"indices": ["wght"]}
    assert second.drafts == ()
    assert data_of(back)["appeared"] == {"indices": ["wght"]}
    assert data_of(back)["vanished"] == {"indices": ["new_thing"]}


def test_at_first_sight_the_shape_is_that_of_the_declaration():
    """So a stranger learns at once that the broker's document and its server differ."""
    commit = decide(INDICES, Known(), seen(INDICES, with_elements("new_thing", without="wght")))

    assert [kind for kind, _ in told(commit)] == ["shape", "reset", "baseline", "baseline", "baseline"]
    assert data_of(commit)["appeared"] == {"indices": ["new_thing"]}
    assert data_of(commit)["vanished"] == {"indices": ["wght"]}


def test_a_table_without_rows_has_no_shape():
    commit = confirmed(STOCKS, after(STOCKS, stocks(40)), stocks(0))

    assert {kind for kind, _ in told(commit)} == {"removed"}
    assert commit.known.elements == after(STOCKS, stocks(40)).elements


def test_an_unknown_element_travels_with_its_row_and_is_never_compared():
    known = after(INDICES, with_elements("new_thing"))
    moved = with_elements("new_thing")
    for row in moved["all_inds_idex"]:
        row["new_thing"] = "8"

    assert decide(INDICES, known, seen(INDICES, moved, 10)).drafts == ()

    moved["all_inds_idex"][0]["cur_prc"] = "5"
    data = data_of(decide(INDICES, known, seen(INDICES, moved, 10)))

    assert (data["changed"], data["after"]["extra"]) == (["level"], {"new_thing": "8"})


# --- limits


def test_five_thousand_changes_fit_into_a_commit():
    assert len(decide(STOCKS, Known(), seen(STOCKS, stocks(MAX_CHANGES))).drafts) == MAX_CHANGES + 1


def test_more_than_five_thousand_changes_are_refused():
    with pytest.raises(SkipTarget, match="5001 changes in one poll, at most 5000"):
        decide(STOCKS, Known(), seen(STOCKS, stocks(MAX_CHANGES + 1)))


# --- answers that need no comparison


def unread(known: Known, **change: Any) -> bool:
    return is_unchanged(INDICES, replace(known, **change), dumps(indices()), MONDAY)


def test_the_same_bytes_on_the_same_day_under_the_same_declaration_need_no_reading():
    assert unread(after(INDICES, indices()))


def test_anything_else_is_compared():
    known = after(INDICES, indices())
    held = decide(STOCKS, after(STOCKS, stocks(40)), seen(STOCKS, stocks(20), 10)).known.hold

    assert not unread(known, digest="")
    assert not unread(known, trading_day=TUESDAY)
    assert not unread(known, trading_day=None)
    assert not unread(known, revision=9)
    assert not unread(known, revision=0)
    assert not unread(known, hold=held)
    assert not unread(known, rolled_back=True)
    assert not is_unchanged(INDICES, known, dumps(indices(_001="5")), MONDAY)


def test_an_unchanged_answer_writes_only_when_it_came():
    known = after(INDICES, indices())
    later = NOON + timedelta(seconds=10)

    commit = unchanged(INDICES, known, later, EPOCH + 1)

    assert (commit.drafts, commit.set_rows, commit.delete_rows, commit.clear) == ((), {}, (), False)
    assert (commit.version_before, commit.version, commit.epoch) == (1, 1, EPOCH + 1)
    assert commit.known == replace(known, last_good=later)
    assert commit.state == {**state_of(known), "last_good": iso(later)}


# --- what is stored is what was known


def stored(commit: Commit) -> Known:
    """What the store gives back after a first commit."""
    return known_of(commit.target, commit.state, commit.set_rows)


@pytest.mark.parametrize("code", ["ka10010", "ka10051", "ka20001", "ka20002", "ka20003", "ka20009"])
def test_what_was_committed_is_loaded_as_it_was_known(code: str):
    played = recording(code)
    commit = decide(played.target, Known(), seen(played.target, played.answer))

    assert stored(commit) == commit.known
    assert decide(played.target, stored(commit), seen(played.target, played.answer, 10)).drafts == ()


def test_elements_and_extra_values_survive_the_store():
    commit = decide(INDICES, Known(), seen(INDICES, with_elements("새것")))

    assert stored(commit) == commit.known
    assert stored(commit).rows["indices"]["001"]["extra"] == {"새것": "7"}


def test_a_hold_survives_the_store():
    first = decide(STOCKS, Known(), seen(STOCKS, stocks(40)))
    held = decide(STOCKS, first.known, seen(STOCKS, stocks(20), 10))

    known = known_of(STOCKS, held.state, first.set_rows)

    assert known == held.known
    assert told(decide(STOCKS, known, seen(STOCKS, stocks(20), 20)))[0] == ("removed", "stocks/000020")


def test_a_target_never_seen_is_known_as_nothing():
    assert known_of(INDICES, {}, {}) == Known()


@pytest.mark.parametrize(
    "spoiled",
    [
        {"indices/002": '{"level":1'},
        {"indices/002": '{"level":1}'},
        {"indices/002": "[]"},
        {"sectors/002": "{}"},
        {"indices/002": '{"price":1}', "extra": "{}"},
    ],
)
def test_a_snapshot_of_an_unknown_shape_is_not_half_read_but_starts_afresh(spoiled: dict[str, str]):
    commit = decide(INDICES, Known(), seen(INDICES, indices()))

    known = known_of(INDICES, commit.state, commit.set_rows | spoiled)
    following = decide(INDICES, known, seen(INDICES, indices(), 10))

    assert (known.revision, known.rows, known.version) == (UNKNOWN_SHAPE, {}, 1)
    assert data_of(following)["reason"] == "declaration"
    assert following.clear


def test_a_document_is_stored_under_its_own_name():
    commit = decide(QUOTE, Known(), seen(QUOTE, ticks("143000")))

    assert f"quote/{DOCUMENT_KEY}" in commit.set_rows
    assert json.loads(commit.set_rows["ticks/143000"])["time"] == "14:30:00"
