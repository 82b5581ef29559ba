"""The made-up market keeps the laws that a real one keeps, at every moment and for every sector."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.sectors import KOSDAQ_SECTORS, KOSPI_SECTORS, SECTORS
from poller.session import KST, Calendar
from poller.simulator.answers import Element, answer
from poller.simulator.clock import MarketClock, default_start
from poller.simulator.listing import FOLLOWERS, MEMBERS, PLACES, STOCKS
from poller.simulator.market import Market, MarketState
from poller.simulator.prices import limits, step_krw

MONDAY = date(2026, 11, 23)
FRIDAY_BEFORE = date(2026, 11, 20)
TIMES = ("09:00:00", "09:00:07", "10:00:00", "12:34:56", "15:29:59", "15:30:00", "15:31:00", "15:35:00", "19:00:00")


def kst(day: date, clock: str) -> datetime:
    return datetime.combine(day, datetime.strptime(clock, "%H:%M:%S").time(), KST)  # noqa: DTZ007 - KST is added


@pytest.fixture(scope="module")
def day() -> dict[str, MarketState]:
    """One Monday, seen at all the times the laws are checked at."""
    market = Market(seed=7)
    return {clock: market.at(kst(MONDAY, clock)) for clock in TIMES}


@pytest.fixture(scope="module")
def before_opening() -> MarketState:
    return Market(seed=7).at(kst(MONDAY, "08:30:00"))


@pytest.fixture(scope="module")
def weekend() -> list[MarketState]:
    """The Friday evening before that Monday, and the Sunday."""
    market = Market(seed=7)
    return [market.at(kst(FRIDAY_BEFORE, "18:30:00")), market.at(kst(date(2026, 11, 22), "12:00:00"))]


def ask(state: MarketState, api_id: str, **body: str) -> Element:
    return answer(api_id, state, body, None).elements


def walk_pages(state: MarketState, api_id: str, rows_at: str, *, most: int = 10_000, **body: str) -> list[Element]:
    rows: list[Element] = []
    position: str | None = None
    while True:
        page = answer(api_id, state, body, position)
        rows += page.elements[rows_at]
        position = page.next_position
        if position is None or len(rows) >= most:
            return rows


def number(text: str) -> float:
    return abs(float(text))


def volume_rows(state: MarketState) -> dict[str, int]:
    indices = (
        ask(state, "ka20003", inds_cd="001")["all_inds_idex"] + ask(state, "ka20003", inds_cd="101")["all_inds_idex"]
    )
    return {row["stk_cd"]: int(row["trde_qty"]) for row in indices}


# Who is listed


def test_over_four_hundred_stocks_have_codes_and_names_of_their_own() -> None:
    assert len(STOCKS) > 400
    assert len({stock.code for stock in STOCKS}) == len({stock.name for stock in STOCKS}) == len(STOCKS)
    assert all(re.fullmatch(r"[0-9A-Z]{6}", stock.code) for stock in STOCKS)
    assert "0126Z0" in PLACES
    samsung = STOCKS[PLACES["005930"]]
    assert (samsung.name, samsung.market, samsung.industry) == ("삼성전자", "001", "013")


def test_every_stock_is_in_its_composite_one_size_and_one_industry() -> None:
    for composite, sizes in (("001", ("002", "003", "004")), ("101", ("138", "139", "140"))):
        assert sorted(place for size in sizes for place in MEMBERS[size]) == list(MEMBERS[composite])
    for place, stock in enumerate(STOCKS):
        assert place in MEMBERS[stock.market]
        assert place in MEMBERS[stock.industry]


def test_every_sector_has_stocks_or_follows_one_that_has() -> None:
    assert set(SECTORS) == set(MEMBERS) | set(FOLLOWERS)
    assert {leader for leader, _ in FOLLOWERS.values()} <= set(MEMBERS)
    assert set(MEMBERS["024"]) | set(MEMBERS["025"]) < set(MEMBERS["021"])


# Stocks


@pytest.mark.parametrize("clock", TIMES)
def test_every_price_stands_on_a_step_between_the_day_s_limits(day: dict[str, MarketState], clock: str) -> None:
    for quote in day[clock].stocks:
        lowest, highest = limits(quote.base)
        assert quote.price % step_krw(quote.price) == 0
        assert lowest <= quote.price <= highest


@pytest.mark.parametrize("clock", TIMES)
def test_a_stock_lies_between_its_low_and_its_high_or_has_none(day: dict[str, MarketState], clock: str) -> None:
    for quote in day[clock].stocks:
        if quote.volume_shares:
            assert quote.low <= min(quote.open, quote.price) <= max(quote.open, quote.price) <= quote.high
            assert quote.low * quote.volume_shares <= quote.value_krw <= quote.high * quote.volume_shares
        else:
            assert (quote.open, quote.high, quote.low, quote.value_krw, quote.price) == (0, 0, 0, 0, quote.base)


def test_some_stocks_start_late_and_a_few_are_suspended_all_day(day: dict[str, MarketState]) -> None:
    untraded = [sum(not quote.volume_shares for quote in day[clock].stocks) for clock in TIMES]
    assert untraded == sorted(untraded, reverse=True)
    assert untraded[0] > 20
    assert untraded[2] > untraded[-1] > 0
    suspended = next(place for place, quote in enumerate(day["15:30:00"].stocks) if not quote.volume_shares)
    code = STOCKS[suspended].market
    rows = walk_pages(day["10:00:00"], "ka20002", "inds_stkpc", inds_cd=code, stex_tp="1")
    row = next(row for row in rows if row["stk_cd"] == STOCKS[suspended].code)
    zeros = ("now_trde_qty", "sel_bid", "buy_bid", "open_pric", "high_pric", "low_pric")
    assert {row[name] for name in zeros} == {"0"}


def test_a_stock_now_and_then_runs_to_its_price_limit(day: dict[str, MarketState]) -> None:
    assert any(quote.high == limits(quote.base)[1] for quote in day["15:29:59"].stocks)
    assert any(state.sector(code).breadth.at_upper for state in day.values() for code in ("001", "101"))


def test_a_bid_is_below_its_ask_and_both_carry_marks_of_their_own(day: dict[str, MarketState]) -> None:
    rows = walk_pages(day["10:00:00"], "ka20002", "inds_stkpc", inds_cd="001", stex_tp="3")
    assert all(row["stk_cd"].endswith("_AL") for row in rows)
    both = [row for row in rows if row["sel_bid"] != "0" and row["buy_bid"] != "0"]
    assert all(number(row["buy_bid"]) < number(row["sel_bid"]) for row in both)
    assert any(row["sel_bid"][0] == "+" and row["low_pric"][0] == "-" for row in both)


# Indices


@pytest.mark.parametrize("clock", TIMES)
@pytest.mark.parametrize("market", ["001", "101"])
def test_breadth_counts_every_traded_stock_once(day: dict[str, MarketState], clock: str, market: str) -> None:
    rows = ask(day[clock], "ka20003", inds_cd=market)["all_inds_idex"]
    for row in rows:
        members = [day[clock].stocks[place] for place in MEMBERS.get(row["stk_cd"], ())]
        counted = int(row["rising"]) + int(row["stdns"]) + int(row["fall"])
        assert counted == sum(quote.volume_shares > 0 for quote in members)
        assert int(row["rising"]) == sum(quote.price > quote.base for quote in members if quote.volume_shares)
        assert int(row["upl"]) <= int(row["rising"])
        assert int(row["lst"]) <= int(row["fall"])
        assert row["flo_stk_num"] == str(len(members))


@pytest.mark.parametrize("clock", TIMES)
@pytest.mark.parametrize("code", ["001", "004", "101", "128", "160", "165", "201", "208", "603", "701", "770"])
def test_an_index_lies_between_its_extremes(day: dict[str, MarketState], clock: str, code: str) -> None:
    quote = ask(day[clock], "ka20001", mrkt_tp="0", inds_cd=code)
    low, high, now = number(quote["low_pric"]), number(quote["high_pric"]), number(quote["cur_prc"])
    assert low <= min(now, number(quote["open_pric"])) <= max(now, number(quote["open_pric"])) <= high
    assert number(quote["52wk_lwst_pric"]) <= low <= high <= number(quote["52wk_hgst_pric"])
    assert float(quote["52wk_hgst_pric_pre_rt"]) <= 0 <= float(quote["52wk_lwst_pric_pre_rt"])
    counted = int(quote["rising"]) + int(quote["stdns"]) + int(quote["fall"])
    assert counted == int(quote["trde_frmatn_stk_num"])


@pytest.mark.parametrize("code", ["001", "020", "106", "139", "220", "718"])
def test_an_index_is_what_its_stocks_are_worth(day: dict[str, MarketState], code: str) -> None:
    for state in day.values():
        worth = sum(state.stocks[place].price * STOCKS[place].shares for place in MEMBERS[code])
        base = sum(state.stocks[place].base * STOCKS[place].shares for place in MEMBERS[code])
        sector = state.sector(code)
        assert sector.level == pytest.approx(sector.base * worth / base, abs=1.01)
        assert sector.volume_shares == sum(state.stocks[place].volume_shares for place in MEMBERS[code])


def test_volumes_and_values_only_grow(day: dict[str, MarketState]) -> None:
    for earlier, later in pairwise(TIMES):
        for before, after in zip(day[earlier].stocks, day[later].stocks, strict=True):
            assert before.volume_shares <= after.volume_shares
            assert before.value_krw <= after.value_krw
            assert before.high <= after.high
        volumes = volume_rows(day[later])
        assert all(volume <= volumes[code] for code, volume in volume_rows(day[earlier]).items())


def test_most_indices_move_within_half_a_minute() -> None:
    market = Market(seed=3)
    first, second = (
        ask(market.at(kst(MONDAY, clock)), "ka20003", inds_cd="001")["all_inds_idex"]
        for clock in ("10:00:00", "10:00:30")
    )
    moved = sum(before["cur_prc"] != after["cur_prc"] for before, after in zip(first, second, strict=True))
    assert moved > 0.8 * len(first)


def test_ka20003_lists_every_sector_of_its_market(day: dict[str, MarketState]) -> None:
    state = day["10:00:00"]
    for market, sectors in (("001", KOSPI_SECTORS), ("101", KOSDAQ_SECTORS)):
        rows = ask(state, "ka20003", inds_cd=market)["all_inds_idex"]
        assert [(row["stk_cd"], row["stk_nm"]) for row in rows] == list(sectors.items())
        assert {row["wght"] for row in rows} == {""}
    volatility = next(row for row in ask(state, "ka20003", inds_cd="001")["all_inds_idex"] if row["stk_cd"] == "603")
    assert (volatility["flo_stk_num"], volatility["rising"], volatility["trde_qty"]) == ("0", "0", "0")


def test_an_inverse_index_falls_when_its_leader_rises(day: dict[str, MarketState]) -> None:
    for state in day.values():
        leader, inverse = state.sector("150"), state.sector("165")
        assert (leader.level - leader.base) * (inverse.level - inverse.base) <= 0


def test_a_level_is_marked_by_its_side_of_the_previous_close(day: dict[str, MarketState]) -> None:
    for state in day.values():
        for code in ("001", "018", "101", "119"):
            quote, base = ask(state, "ka20009", mrkt_tp="0", inds_cd=code), state.sector(code).base / 100
            for name in ("cur_prc", "open_pric", "high_pric", "low_pric", "52wk_hgst_pric", "52wk_lwst_pric"):
                side = (number(quote[name]) > base) - (number(quote[name]) < base)
                assert quote[name].startswith({1: "+", -1: "-", 0: ""}[side])
            change = float(quote["pred_pre"])
            assert change == pytest.approx(number(quote["cur_prc"]) - base, abs=1e-6)
            assert quote["pred_pre_sig"] == {True: "2", False: "5"}[change > 0] if change else "3"
            assert float(quote["flu_rt"]) == pytest.approx(100 * change / base, abs=0.006)


# Time rows


@pytest.mark.parametrize("clock", TIMES)
@pytest.mark.parametrize("code", ["001", "007", "101", "150", "208", "402"])
def test_each_time_row_adds_its_own_step_to_the_older_one(day: dict[str, MarketState], clock: str, code: str) -> None:
    rows = walk_pages(day[clock], "ka20001", "inds_cur_prc_tm", most=300, mrkt_tp="0", inds_cd=code)
    for newer, older in pairwise(rows):
        assert int(newer["acc_trde_qty_n"]) == int(older["acc_trde_qty_n"]) + int(newer["trde_qty_n"])
        assert int(newer["trde_qty_n"]) >= 0
    if len(rows) < 300:
        assert rows[-1]["acc_trde_qty_n"] == rows[-1]["trde_qty_n"]


def test_the_time_rows_stand_ten_seconds_apart_and_reach_back_to_the_opening(day: dict[str, MarketState]) -> None:
    rows = walk_pages(day["10:00:00"], "ka20001", "inds_cur_prc_tm", mrkt_tp="0", inds_cd="001")
    expected = [(kst(MONDAY, "10:00:00") - timedelta(seconds=10 * at)).strftime("%H%M%S") for at in range(361)]
    assert [row["tm_n"] for row in rows] == expected


@pytest.mark.parametrize("clock", ["09:00:00", "10:00:00", "15:30:00", "15:31:00", "15:35:00", "19:00:00"])
def test_the_newest_time_row_has_the_quote_s_level_and_volume(day: dict[str, MarketState], clock: str) -> None:
    quote = ask(day[clock], "ka20001", mrkt_tp="1", inds_cd="101")
    newest = quote["inds_cur_prc_tm"][0]
    assert (newest["cur_prc_n"], newest["acc_trde_qty_n"]) == (quote["cur_prc"], quote["trde_qty"])


def test_after_the_close_the_marker_rows_come_first(day: dict[str, MarketState]) -> None:
    labels = {
        clock: [row["tm_n"] for row in ask(day[clock], "ka20001", mrkt_tp="0", inds_cd="001")["inds_cur_prc_tm"][:3]]
        for clock in ("15:30:00", "15:31:00", "15:35:00", "19:00:00")
    }
    assert labels == {
        "15:30:00": ["153000", "152950", "152940"],
        "15:31:00": ["153100", "153050", "153040"],
        "15:35:00": ["888888", "153220", "153210"],
        "19:00:00": ["999999", "888888", "153220"],
    }


def test_a_time_row_never_changes_once_it_has_been_seen(day: dict[str, MarketState]) -> None:
    earlier = walk_pages(day["10:00:00"], "ka20001", "inds_cur_prc_tm", mrkt_tp="0", inds_cd="013")
    later = walk_pages(day["19:00:00"], "ka20001", "inds_cur_prc_tm", mrkt_tp="0", inds_cd="013")
    assert later[-len(earlier) :] == earlier


# Days


@pytest.mark.parametrize("code", ["001", "128", "150", "165", "214"])
def test_yesterday_s_close_is_today_s_base(day: dict[str, MarketState], code: str) -> None:
    state = day["12:34:56"]
    rows = walk_pages(state, "ka20009", "inds_cur_prc_daly_rept", mrkt_tp="0", inds_cd=code)
    assert rows[0]["dt_n"] == "20261123"
    assert len(rows) >= 60
    assert len({row["dt_n"] for row in rows}) == len(rows)
    for newer, older in pairwise(rows):
        base = number(newer["cur_prc_n"]) - float(newer["pred_pre_n"])
        assert base == pytest.approx(number(older["cur_prc_n"]), abs=1e-6)


def test_a_day_ends_where_the_next_day_s_history_says_it_ended(day: dict[str, MarketState]) -> None:
    evening, tomorrow = day["19:00:00"], Market(seed=7).at(kst(date(2026, 11, 24), "09:10:00"))
    for code in ("001", "002", "119", "140", "201", "603", "716"):
        last = ask(evening, "ka20009", mrkt_tp="0", inds_cd=code)["inds_cur_prc_daly_rept"][0]
        assert ask(tomorrow, "ka20009", mrkt_tp="0", inds_cd=code)["inds_cur_prc_daly_rept"][1] == last
    assert [quote.price for quote in evening.stocks] == [quote.base for quote in tomorrow.stocks]


def test_the_history_has_no_closed_days(day: dict[str, MarketState]) -> None:
    rows = walk_pages(day["10:00:00"], "ka20009", "inds_cur_prc_daly_rept", mrkt_tp="0", inds_cd="001")
    days = [datetime.strptime(row["dt_n"], "%Y%m%d").replace(tzinfo=KST).date() for row in rows]
    assert all(Calendar().is_trading_day(day) for day in days)
    assert days == sorted(days, reverse=True)


# Investors


@pytest.mark.parametrize("clock", TIMES)
@pytest.mark.parametrize("amount_or_quantity", ["0", "1"])
def test_the_five_groups_close_to_zero_as_printed(
    day: dict[str, MarketState], clock: str, amount_or_quantity: str
) -> None:
    parts = ("sc", "insrnc", "invtrt", "bank", "jnsinkm", "endw", "samo_fund")
    for market, exchange in (("0", "1"), ("0", "2"), ("1", "3")):
        body = {"mrkt_tp": market, "amt_qty_tp": amount_or_quantity, "stex_tp": exchange}
        for row in ask(day[clock], "ka10051", **body)["inds_netprps"]:
            net = {name.removesuffix("_netprps"): int(text) for name, text in row.items() if name.endswith("_netprps")}
            assert sum(net[group] for group in ("ind", "frgnr", "native_trmt_frgnr", "orgn", "etc_corp")) == 0
            assert sum(net[part] for part in parts) == net["orgn"]


def test_the_two_exchanges_add_up_to_the_unified_market(day: dict[str, MarketState]) -> None:
    krx, nxt, unified = (
        ask(day["12:34:56"], "ka10051", mrkt_tp="0", amt_qty_tp="0", stex_tp=exchange)["inds_netprps"]
        for exchange in "123"
    )
    assert [rows[0]["inds_cd"] for rows in (krx, nxt, unified)] == ["001", "001_NX", "001_AL"]
    for one, other, both in zip(krx, nxt, unified, strict=True):
        names = [name for name in one if name.endswith("_netprps")]
        assert all(int(one[name]) + int(other[name]) == int(both[name]) for name in names)
    assert any(int(row["frgnr_netprps"]) for row in krx)


def test_flows_stand_still_for_a_minute_and_move_within_two() -> None:
    market = Market(seed=5)
    body = {"mrkt_tp": "0", "amt_qty_tp": "0", "stex_tp": "3"}
    seen = [
        [row["frgnr_netprps"] for row in ask(market.at(kst(MONDAY, clock)), "ka10051", **body)["inds_netprps"]]
        for clock in ("09:30:00", "09:31:29", "09:31:30")
    ]
    assert seen[0] == seen[1] != seen[2]


def test_ka10051_speaks_in_hundredths_and_never_writes_plus_before_a_rate(day: dict[str, MarketState]) -> None:
    state = day["12:34:56"]
    for market, rows_expected, composite in (("0", 28, "001"), ("1", 32, "101")):
        body = {"mrkt_tp": market, "amt_qty_tp": "0", "stex_tp": "1"}
        rows = ask(state, "ka10051", **body)["inds_netprps"]
        index = ask(state, "ka20003", inds_cd=composite)["all_inds_idex"][0]
        assert len(rows) == rows_expected
        assert rows[0]["cur_prc"] == index["cur_prc"].replace(".", "")
        assert int(rows[0]["flu_rt"]) == round(100 * float(index["flu_rt"]))
        assert not any(row["flu_rt"].startswith("+") for row in rows)
        assert all(re.fullmatch(r"[+-]\d+", row["orgn_netprps"]) for row in rows)


def test_another_market_than_kospi_is_answered_with_kosdaq(day: dict[str, MarketState]) -> None:
    rows = ask(day["10:00:00"], "ka10051", mrkt_tp="9", amt_qty_tp="0", stex_tp="1")["inds_netprps"]
    assert rows[0]["inds_cd"] == "101"


def test_a_day_that_is_over_is_served_as_it_ended(day: dict[str, MarketState], weekend: list[MarketState]) -> None:
    body = {"mrkt_tp": "0", "amt_qty_tp": "0", "stex_tp": "1"}
    then, now = ask(weekend[0], "ka10051", **body), ask(day["10:00:00"], "ka10051", base_dt="20261120", **body)
    assert then == now
    assert ask(day["10:00:00"], "ka10051", base_dt="20261121", **body) == {"inds_netprps": []}


# Programmes


def test_programmes_are_empty_before_any_trade_and_grow_afterwards(
    day: dict[str, MarketState], before_opening: MarketState
) -> None:
    assert set(ask(before_opening, "ka10010", stk_cd="005930").values()) == {""}
    bought = [int(ask(day[clock], "ka10010", stk_cd="005930")["ndiffpro_trst_buy_qty"] or 0) for clock in TIMES]
    assert bought == sorted(bought)
    assert bought[2] < bought[3]


def test_programmes_fill_different_fields_for_different_stocks(day: dict[str, MarketState]) -> None:
    state = day["12:34:56"]
    filled = {
        tuple(name for name, text in ask(state, "ka10010", stk_cd=f"{stock.code}_AL").items() if text)
        for stock in STOCKS[:40]
    }
    totals = ("all_dfrt_trst_sell_qty", "all_dfrt_trst_buy_qty", "all_dfrt_trst_netprps_qty")
    assert totals in filled
    assert max(map(len, filled)) == 18


# The hours around the session


def test_before_the_opening_everything_shows_change_zero(before_opening: MarketState) -> None:
    rows = ask(before_opening, "ka20003", inds_cd="001")["all_inds_idex"]
    assert {(row["pred_pre"], row["flu_rt"], row["pre_sig"], row["trde_qty"]) for row in rows} == {
        ("0.00", "0.00", "3", "0")
    }
    quote = ask(before_opening, "ka20001", mrkt_tp="0", inds_cd="001")
    assert (quote["open_pric"], quote["high_pric"], quote["low_pric"]) == ("0", "0", "0")
    assert [row["tm_n"] for row in quote["inds_cur_prc_tm"]] == [""]
    flows = ask(before_opening, "ka10051", mrkt_tp="0", amt_qty_tp="0", stex_tp="1")["inds_netprps"]
    assert {row["frgnr_netprps"] for row in flows} <= {"+0", "-0"}
    days = ask(before_opening, "ka20009", mrkt_tp="0", inds_cd="001")["inds_cur_prc_daly_rept"]
    assert [row["dt_n"] for row in days[:2]] == ["20261123", "20261120"]


def test_at_the_weekend_friday_evening_is_still_served(weekend: list[MarketState]) -> None:
    friday, sunday = weekend
    for api_id, body in (("ka20003", {"inds_cd": "001"}), ("ka20001", {"mrkt_tp": "0", "inds_cd": "101"})):
        assert ask(friday, api_id, **body) == ask(sunday, api_id, **body)


def test_on_the_day_of_the_college_exam_the_market_opens_at_ten() -> None:
    state = Market(seed=7).at(kst(date(2026, 11, 19), "10:00:20"))
    rows = ask(state, "ka20001", mrkt_tp="0", inds_cd="001")["inds_cur_prc_tm"]
    assert [row["tm_n"] for row in rows] == ["100020", "100010", "100000"]


# Determinism


def picture(state: MarketState) -> tuple[Any, ...]:
    return (
        ask(state, "ka20003", inds_cd="001"),
        ask(state, "ka20001", mrkt_tp="1", inds_cd="128"),
        ask(state, "ka10051", mrkt_tp="0", amt_qty_tp="1", stex_tp="1"),
        ask(state, "ka20002", mrkt_tp="0", inds_cd="013", stex_tp="1"),
        ask(state, "ka10010", stk_cd="005930"),
    )


EARLY = ("09:01:03", "09:04:05", "08:10:00")


@pytest.fixture(scope="module")
def asked_once() -> dict[str, tuple[Any, ...]]:
    """What markets answer that have been asked nothing else."""
    return {clock: picture(Market(seed=11).at(kst(MONDAY, clock))) for clock in EARLY}


@settings(max_examples=3, deadline=None)  # each example walks the market anew
@given(st.permutations(EARLY))
def test_answers_do_not_depend_on_what_was_asked_before(
    asked_once: dict[str, tuple[Any, ...]], order: list[str]
) -> None:
    market = Market(seed=11)
    for clock in order:
        assert picture(market.at(kst(MONDAY, clock))) == asked_once[clock]


def test_a_state_stays_as_it_was_while_the_market_goes_on(asked_once: dict[str, tuple[Any, ...]]) -> None:
    market = Market(seed=11)
    state = market.at(kst(MONDAY, "09:04:05"))
    market.at(kst(MONDAY, "09:06:00"))
    assert picture(state) == asked_once["09:04:05"]


def test_another_seed_is_another_market(asked_once: dict[str, tuple[Any, ...]]) -> None:
    assert picture(Market(seed=12).at(kst(MONDAY, "09:04:05"))) != asked_once["09:04:05"]


# The clock


def test_market_time_runs_as_fast_as_it_is_told() -> None:
    start, began = kst(MONDAY, "10:00:00"), kst(date(2026, 11, 29), "03:00:00")
    clock = MarketClock(start, began, speed=60)
    assert clock.at(began + timedelta(seconds=10)) == start + timedelta(minutes=10)
    assert clock.at(began + timedelta(hours=8)) == start + timedelta(hours=480)


def test_without_closed_hours_the_close_is_followed_by_the_next_opening() -> None:
    began = kst(date(2026, 11, 29), "03:00:00")
    clock = MarketClock(kst(FRIDAY_BEFORE, "15:29:00"), began, skip_closed=True)
    assert clock.at(began + timedelta(seconds=59)) == kst(FRIDAY_BEFORE, "15:29:59")
    assert clock.at(began + timedelta(seconds=60)) == kst(MONDAY, "09:00:00")
    assert clock.at(began + timedelta(seconds=59)) == kst(FRIDAY_BEFORE, "15:29:59")


def test_without_closed_hours_a_start_in_the_evening_is_the_next_morning() -> None:
    began = kst(date(2026, 11, 29), "03:00:00")
    clock = MarketClock(kst(FRIDAY_BEFORE, "20:00:00"), began, skip_closed=True)
    assert clock.at(began) == kst(MONDAY, "09:00:00")


@settings(max_examples=30, deadline=None)  # the first look counts the days of years
@given(st.lists(st.floats(min_value=0, max_value=3e6), min_size=2, max_size=5))
def test_without_closed_hours_the_market_is_always_open_and_never_goes_back(waits_s: list[float]) -> None:
    began = kst(date(2026, 11, 29), "03:00:00")
    clock, calendar = MarketClock(kst(MONDAY, "10:00:00"), began, speed=30, skip_closed=True), Calendar()
    moments = [clock.at(began + timedelta(seconds=wait_s)) for wait_s in sorted(waits_s)]
    assert moments == sorted(moments)
    assert {calendar.session_at(moment) for moment in moments} == {"regular"}


@pytest.mark.parametrize(
    ("now", "start"),
    [
        ("2026-11-23T11:11:11+09:00", "2026-11-23T11:11:11+09:00"),
        ("2026-11-23T09:00:30+09:00", "2026-11-23T10:00:00+09:00"),
        ("2026-11-23T20:00:00+09:00", "2026-11-23T10:00:00+09:00"),
        ("2026-11-22T12:00:00+09:00", "2026-11-20T10:00:00+09:00"),
        ("2026-11-19T20:00:00+09:00", "2026-11-19T11:00:00+09:00"),
    ],
)
def test_a_market_starts_now_or_an_hour_into_the_last_trading_day(now: str, start: str) -> None:
    assert default_start(datetime.fromisoformat(now), Calendar()) == datetime.fromisoformat(start)
