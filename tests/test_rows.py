"""When an answer is whole, what of it can be read, and what is done with the rest."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from poller.contract import dumps
from poller.errors import NotWhole
from poller.rows import Reading, Unreadable, reaches_back
from poller.trs.base import Target
from tests.builders import Answer, read, recording, target

STOCKS = target("ka20002", inds_cd="001", stex_tp="1")
INDICES = target("ka20003", inds_cd="001")
QUOTE = target("ka20001", inds_cd="001")
DAYS = target("ka20009", inds_cd="001")
PROGRAM = target("ka10010", stk_cd="005930")


def stock(code: object = "005930", price: object = "6200", **more: object) -> dict[str, Any]:
    return {**recording("ka20002").answer["inds_stkpc"][0], "stk_cd": code, "cur_prc": price, **more}


def stocks(*rows: object) -> Answer:
    return {"inds_stkpc": list(rows), "return_code": 0, "return_msg": "정상적으로 처리되었습니다"}


def many_stocks(number: int, bad: int) -> Answer:
    return stocks(*(stock(f"{n:06}", "abc" if n < bad else "100") for n in range(number)))


def quote(**elements: object) -> Answer:
    return {**recording("ka20001").answer, **elements}


def ticks(*times: str) -> Answer:
    tick = recording("ka20001").answer["inds_cur_prc_tm"][0]
    return quote(inds_cur_prc_tm=[{**tick, "tm_n": time} for time in times])


def days(*dates: str) -> Answer:
    played = recording("ka20009").answer
    day = played["inds_cur_prc_daly_rept"][0]
    return {**played, "inds_cur_prc_daly_rept": [{**day, "dt_n": date} for date in dates]}


def keys(reading: Reading, table: str) -> list[str]:
    return [key for key, _ in reading.rows[table]]


# --- whole or not


@pytest.mark.parametrize("rows", [None, "", {}, "none", 0], ids=repr)
def test_an_answer_without_its_list_is_not_whole(rows: object):
    """A success without a list would look as if every stock had been delisted."""
    with pytest.raises(NotWhole, match="page 1 has no list inds_stkpc"):
        read(STOCKS, {"inds_stkpc": rows, "return_code": 0})


def test_the_list_must_be_on_every_page():
    with pytest.raises(NotWhole, match="page 2 has no list"):
        read(STOCKS, stocks(stock()), {"return_code": 0})


def test_an_empty_list_is_a_list():
    """Whether it may be empty is decided where the rows before it are known."""
    assert read(STOCKS, stocks()).rows == {"stocks": []}


@pytest.mark.parametrize("line", [None, "005930", 5, ["005930"]], ids=repr)
def test_a_row_that_is_no_object_makes_the_answer_unfit(line: object):
    with pytest.raises(NotWhole, match="no list inds_stkpc"):
        read(STOCKS, stocks(stock(), line))


@pytest.mark.parametrize("code", ["", "   ", None])
def test_a_row_without_its_key_makes_the_answer_unfit(code: object):
    with pytest.raises(NotWhole, match="a row without its key stk_cd"):
        read(STOCKS, stocks(stock(), stock(code)))


def test_a_row_whose_key_element_is_missing_makes_the_answer_unfit():
    line = stock()
    del line["stk_cd"]

    with pytest.raises(NotWhole, match="without its key stk_cd"):
        read(STOCKS, stocks(line))


def test_a_key_that_is_no_code_makes_the_answer_unfit():
    with pytest.raises(NotWhole, match="'00/5930' is not a code"):
        read(STOCKS, stocks(stock("00/5930")))


@pytest.mark.parametrize("level", ["", "0", "0.00"])
def test_a_quote_without_its_level_is_an_empty_success(level: str):
    with pytest.raises(NotWhole, match="quote has no level"):
        read(QUOTE, quote(cur_prc=level))


def test_a_success_without_any_element_is_not_whole():
    with pytest.raises(NotWhole, match="a success without any element of program"):
        read(PROGRAM, {"return_code": 0, "return_msg": "정상적으로 처리되었습니다"})


def test_a_document_may_be_all_empty():
    """Most stocks have no programme trades at most times."""
    empty = {name: "" for name in recording("ka10010").answer if not name.startswith("return")}

    ((key, row),) = read(PROGRAM, empty).rows["program"]

    assert key == "-"
    assert set(row.values()) == {None}


# --- rows that cannot be read


def test_a_bad_row_is_left_out_and_told_while_the_others_go_on():
    reading = read(STOCKS, many_stocks(20, bad=1))

    assert keys(reading, "stocks") == [f"{n:06}" for n in range(1, 20)]
    assert reading.unread_keys == {"stocks": ["000000"]}
    assert reading.unreadable == [Unreadable("stocks", "000000", "price", "cur_prc", "'abc' is not a number")]


@pytest.mark.parametrize(("number", "bad"), [(20, 1), (40, 2), (100, 5), (59, 2)])
def test_up_to_five_percent_of_the_rows_may_be_bad(number: int, bad: int):
    assert len(read(STOCKS, many_stocks(number, bad)).unreadable) == bad


@pytest.mark.parametrize(("number", "bad"), [(19, 1), (20, 2), (100, 6), (39, 2), (1, 1)])
def test_more_than_five_percent_of_bad_rows_make_the_answer_unfit(number: int, bad: int):
    """Then we do not understand it, and a partial diff would be a guess."""
    with pytest.raises(NotWhole) as refused:
        read(STOCKS, many_stocks(number, bad))

    assert f"{bad} of {number} rows" in str(refused.value)
    assert "first stocks/000000 price (cur_prc): 'abc' is not a number" in str(refused.value)
    assert str(refused.value).startswith("ka20002?")


def test_a_row_with_two_bad_values_is_one_bad_row():
    reading = read(STOCKS, stocks(*(stock(f"{n:06}") for n in range(19)), stock("000019", "abc", pred_pre="def")))

    assert len(reading.unreadable) == 1


def test_bad_rows_are_counted_over_all_tables_of_an_answer():
    """One bad quote among twenty good steps is one row of twenty-one."""
    reading = read(QUOTE, {**ticks(*(f"0900{n:02}" for n in range(20))), "upl": "abc"})

    assert reading.unread_keys == {"quote": ["-"], "ticks": []}


# --- repeats


def test_repeats_within_a_page_are_all_kept():
    """The broker's own example lists one code five times."""
    assert keys(read(STOCKS, stocks(stock(), stock(), stock("000660"))), "stocks") == ["005930", "005930", "000660"]


def test_a_repeat_across_a_page_border_is_dropped_with_its_later_value():
    """A row slid over the border while we walked: it is one stock seen twice."""
    reading = read(STOCKS, stocks(stock("000660"), stock(price="100")), stocks(stock(price="200"), stock("0126Z0")))

    assert keys(reading, "stocks") == ["000660", "005930", "0126Z0"]
    assert reading.rows["stocks"][1][1]["price"] == 100


def test_repeats_on_a_later_page_are_kept_where_no_earlier_page_has_them():
    reading = read(STOCKS, stocks(stock("000660")), stocks(stock(), stock()), stocks(stock(), stock("000660")))

    assert keys(reading, "stocks") == ["000660", "005930", "005930"]


def test_the_exchange_in_a_code_does_not_make_it_another_row():
    assert keys(read(STOCKS, stocks(stock("005930_AL")), stocks(stock("005930"))), "stocks") == ["005930"]


def test_of_many_pages_the_quote_is_the_first_ones():
    ((_, row),) = read(QUOTE, quote(cur_prc="+100.5"), quote(cur_prc="+99.5")).rows["quote"]

    assert row["level"] == Decimal("100.5")


# --- keys of windows


@pytest.mark.parametrize("time", ["143000", "999999", "888888", ""])
def test_the_key_of_a_step_is_its_time_as_sent(time: str):
    """Markers and empty times are rows like any other, with no time."""
    ((key, row),) = read(QUOTE, ticks(time)).rows["ticks"]

    assert key == time
    assert row["time"] == ("14:30:00" if time == "143000" else None)


def test_a_step_without_its_time_element_is_keyed_by_nothing():
    tick = recording("ka20001").answer["inds_cur_prc_tm"][0]
    del tick["tm_n"]

    assert keys(read(QUOTE, quote(inds_cur_prc_tm=[tick])), "ticks") == [""]


# --- elements


def test_elements_we_do_not_know_are_kept_as_text_beside_the_row():
    reading = read(STOCKS, stocks(stock(zz_new=7, aa_new="x"), stock("000660")))

    assert reading.rows["stocks"][0][1]["extra"] == {"aa_new": "x", "zz_new": "7"}
    assert "extra" not in reading.rows["stocks"][1][1]
    assert {"aa_new", "zz_new", "stk_cd"} <= set(reading.elements["stocks"])


def test_the_envelope_and_the_lists_are_no_elements_of_a_quote():
    reading = read(QUOTE, quote(next_thing={"a": 1}, new_element="5"))

    assert not {"return_code", "return_msg", "inds_cur_prc_tm", "next_thing"} & set(reading.elements["quote"])
    assert reading.rows["quote"][0][1]["extra"] == {"new_element": "5"}


def test_an_element_that_is_missing_from_a_row_is_null_there():
    line = stock()
    del line["sel_bid"]

    assert read(STOCKS, stocks(line)).rows["stocks"][0][1]["ask"] is None


def test_saturated_values_are_told_with_row_and_field():
    reading = read(STOCKS, stocks(stock(now_trde_qty="4294967295"), stock("000660", "-2147483647")))

    assert reading.saturated == ["stocks/005930 volume_shares", "stocks/000660 price"]
    assert reading.rows["stocks"][0][1]["volume_shares"] is None
    assert not reading.unreadable


# --- derived fields


@pytest.mark.parametrize(
    ("advancers", "decliners", "share"),
    [
        ("17", "130", "11.56"),
        ("1", "1", "50"),
        ("1", "0", "100"),
        ("1", "7", "12.5"),
        ("1", "799", "0.12"),
        ("3", "797", "0.38"),
        ("0", "5", "0"),
        ("0", "0", None),
        ("", "5", None),
        ("5", "", None),
    ],
)
def test_the_share_of_advancers_has_two_decimals_half_even(advancers: str, decliners: str, share: str | None):
    """0.125 becomes 0.12 and 0.375 becomes 0.38; when nothing moved there is no share."""
    ((_, row),) = read(QUOTE, quote(rising=advancers, fall=decliners)).rows["quote"]

    assert dumps(row["advancers_pct"]) == (share or "null")


@pytest.mark.parametrize(("unit", "total"), [("krw", -618 * 10**8), ("shares", -618 * 10**3)])
def test_all_foreigners_are_summed_in_the_unit_of_the_request(unit: str, total: int):
    asked = target("ka10051", mrkt_tp="0", amt_qty_tp="0" if unit == "krw" else "1", stex_tp="3")

    ((_, row), *_) = read(asked, recording("ka10051").answer).rows["flows"]

    assert row[f"foreigner_total_net_{unit}"] == total
    assert row[f"foreigner_net_{unit}"] == total * 622 // 618
    other = "shares" if unit == "krw" else "krw"
    assert not [name for name in row if name.endswith(f"_net_{other}")]


def test_a_sum_with_an_unknown_part_is_unknown():
    answer = recording("ka10051").answer
    answer["inds_netprps"][0]["native_trmt_frgnr_netprps"] = ""

    ((_, row), *_) = read(recording("ka10051").target, answer).rows["flows"]

    assert row["foreigner_total_net_krw"] is None


# --- how far back to walk


@pytest.mark.parametrize(
    ("newest", "enough"),
    [("090010", True), ("090010#2", True), ("085950", False), (None, True)],
)
def test_pages_reach_back_when_they_hold_the_newest_row_we_have(newest: str | None, *, enough: bool):
    held = {"ticks": newest} if newest else {}

    assert reaches_back(QUOTE, held, [ticks("090030", "090020"), ticks("090010", "090000")]) is enough


def test_a_walk_back_through_days_ends_at_the_newest_day_we_have():
    assert not reaches_back(DAYS, {"days": "20241120"}, [days("20241122", "20241121")])
    assert reaches_back(DAYS, {"days": "20241120"}, [days("20241122", "20241121"), days("20241120")])


@pytest.mark.parametrize("asked", [STOCKS, INDICES], ids=str)
def test_a_keyed_table_always_needs_every_page(asked: Target):
    assert not reaches_back(asked, {}, [stocks(stock())])


def test_a_document_is_on_its_first_page():
    assert reaches_back(PROGRAM, {}, [recording("ka10010").answer])


def test_a_key_sent_as_a_number_is_a_key():
    """`Field.read` takes whole numbers, so the key must not lose them."""
    answer = recording("ka20009").answer
    dates = [{**day, "dt_n": int(day["dt_n"])} for day in answer["inds_cur_prc_daly_rept"]]

    assert (
        keys(read(target("ka20009", inds_cd="001"), {**answer, "inds_cur_prc_daly_rept": dates}), "days")[0]
        == "20241122"
    )
