"""The market at a moment and a request go in; one page of the broker's answer comes out.

Pure. A page says where the next one starts: after which stock, before which day, below which time row. So a walk over
the pages of a market that moves loses nothing, though its pages are not one instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from poller.sectors import KOSDAQ_SECTORS, KOSPI_SECTORS, SECTORS, market_of
from poller.session import KST
from poller.simulator.flows import Program
from poller.simulator.listing import MEMBERS, PLACES, STOCKS
from poller.simulator.market import MarketState, SectorQuote, Tick, direction
from poller.simulator.prices import limits, step_krw
from poller.simulator.walk import StockQuote
from poller.simulator.words import flow, marked, marked_points, per_cent, plus, points

ROWS_A_PAGE = 20
STOCKS_A_PAGE = 100
DAYS_KEPT = 120
"""How many days ka20009 goes back. Nobody has counted the broker's pages; six are enough to walk."""
FLOW_SECTORS = {
    "0": [code for code in KOSPI_SECTORS if code not in {"603", "604", "605"}],
    "1": [code for code in KOSDAQ_SECTORS if code not in {"160", "165"}],
}
SUFFIXES = {"1": "", "2": "_NX", "3": "_AL"}
SUCCESS = {"return_code": 0, "return_msg": "정상적으로 처리되었습니다"}

Body = Mapping[str, str]
Element = dict[str, Any]


class Page(NamedTuple):
    """One answer without its return code, and where the next page starts if there is one."""

    elements: Element
    next_position: str | None = None


def answer(api_id: str, state: MarketState, body: Body, position: str | None) -> Page:
    """What the broker answers to a request that has passed its checks."""
    return ANSWERS[api_id](state, body, position)


def program(state: MarketState, body: Body, position: str | None) -> Page:  # noqa: ARG001 - one page
    """Ka10010: empty for some stocks, and for all of them before they have been traded."""
    code = body["stk_cd"].split("_")[0]
    quote = state.stocks[PLACES[code]]
    traded = state.flows.program(code, state.day, elapsed_s=state.elapsed_s, length_s=state.length_s)
    filled = _program_fields(traded, quote) if quote.volume_shares and any(traded) else {}
    shown = [name for name in filled if _program_shows(code, name)]
    names = [f"{kind}_{side}_{unit}" for kind in PROGRAM_KINDS for side in PROGRAM_SIDES for unit in ("qty", "amt")]
    return Page({name: filled[name] if name in shown else "" for name in names})


PROGRAM_KINDS = ("dfrt_trst", "ndiffpro_trst", "all_dfrt_trst")
PROGRAM_SIDES = ("sell", "buy", "netprps")


def _program_fields(traded: Program, quote: StockQuote) -> dict[str, str]:
    sides = {
        "dfrt_trst": (traded.arbitrage_sell, traded.arbitrage_buy),
        "ndiffpro_trst": (traded.other_sell, traded.other_buy),
        "all_dfrt_trst": (traded.arbitrage_sell + traded.other_sell, traded.arbitrage_buy + traded.other_buy),
    }
    fields = {}
    for kind, (sold, bought) in sides.items():
        # At the base price, so that amounts bought and sold only grow.
        paid, earned = (shares * quote.base // 1_000_000 for shares in (bought, sold))
        amounts = ((sold, earned), (bought, paid), (bought - sold, paid - earned))
        for side, (shares, millions) in zip(PROGRAM_SIDES, amounts, strict=True):
            fields[f"{kind}_{side}_qty"] = str(shares)
            fields[f"{kind}_{side}_amt"] = str(millions)
    return fields


def _program_shows(code: str, name: str) -> bool:
    """Some stocks show everything, some the totals in shares only, as in the document; no other has arbitrage."""
    if code == "005930" or PLACES[code] % 3 == 0:
        return True
    if PLACES[code] % 3 == 1:
        return name.startswith("all_") and name.endswith("_qty")
    return not name.startswith("dfrt_")


def investors(state: MarketState, body: Body, position: str | None) -> Page:  # noqa: ARG001 - one page
    """Ka10051. Another `mrkt_tp` than 0 is not refused but answered with KOSDAQ."""
    codes = FLOW_SECTORS["0" if body["mrkt_tp"] == "0" else "1"]
    day = _day(body.get("base_dt", "")) or state.day
    if not state.history.calendar.is_trading_day(day):
        return Page({"inds_netprps": []})
    return Page({"inds_netprps": [_flow_row(state, code, min(day, state.day), body) for code in codes]})


def _day(text: str) -> date | None:
    return datetime.strptime(text, "%Y%m%d").replace(tzinfo=KST).date() if text else None


def _flow_row(state: MarketState, code: str, day: date, body: Body) -> Element:
    row = state.days(code, until=day, count=1)[0]
    exchange, change = body["stex_tp"], row.level - row.base
    net = state.flows.net(
        code,
        day,
        exchange,
        in_shares=body["amt_qty_tp"] == "1",
        # A day that is over has had its correction in the evening.
        elapsed_s=state.elapsed_s if day == state.day else 86_400,
        length_s=state.history.length_s(day),
    )
    return {
        "inds_cd": code + SUFFIXES[exchange],
        "inds_nm": SECTORS[code],
        "cur_prc": marked(row.level, row.base),
        "pre_smbol": _index_direction(row.level, row.base),
        "pred_pre": plus(str(change)),
        "flu_rt": str(per_cent(change, row.base)),
        "trde_qty": str(_on_exchange(row.volume_thousands, exchange)),
        **{f"{group}_netprps": flow(net[group], seller=net["ind"] > 0) for group in FLOW_ORDER},
    }


FLOW_ORDER = (
    "sc",
    "insrnc",
    "invtrt",
    "bank",
    "jnsinkm",
    "endw",
    "etc_corp",
    "ind",
    "frgnr",
    "native_trmt_frgnr",
    "natn",
    "samo_fund",
    "orgn",
)
"""In the document's order."""


def _on_exchange(volume: int, stex_tp: str) -> int:
    """What of a volume on KRX is seen there, on the second exchange, on both."""
    second = volume * 3 // 10
    return {"1": volume, "2": second, "3": volume + second}[stex_tp]


def sector_now(state: MarketState, body: Body, position: str | None) -> Page:
    """Ka20001: the sector, and its time rows, newest first."""
    code, count = body["inds_cd"], state.tick_count()
    newest = count - 1
    if position:
        day, below = position.split("-")
        newest = int(below) - 1 if day == _compact(state.day) else -1
    oldest = max(0, newest - ROWS_A_PAGE + 1)
    base = state.sector(code).base
    rows = [_tick_row(state.tick(code, at), base) for at in range(newest, oldest - 1, -1)]
    following = f"{_compact(state.day)}-{oldest}" if oldest > 0 else None
    return Page(_sector_fields(state, code) | {"inds_cur_prc_tm": rows}, following)


def _tick_row(tick: Tick, base: int) -> Element:
    return {
        "tm_n": tick.label,
        **_index_fields(tick.level, base, suffix="_n"),
        "trde_qty_n": str(tick.step_thousands),
        "acc_trde_qty_n": str(tick.volume_thousands),
    }


def sector_days(state: MarketState, body: Body, position: str | None) -> Page:
    """Ka20009: the sector, and its days, newest first."""
    code, until = body["inds_cd"], _day(position or "") or state.day
    last = state.history.days_before(state.day, DAYS_KEPT - 1)[-1]
    rows = [row for row in state.days(code, until=until, count=ROWS_A_PAGE + 1) if row.day >= last]
    page, more = rows[:ROWS_A_PAGE], rows[ROWS_A_PAGE:]
    days = [
        {
            "dt_n": _compact(row.day),
            **_index_fields(row.level, row.base, suffix="_n"),
            "acc_trde_qty_n": str(row.volume_thousands),
        }
        for row in page
    ]
    following = _compact(page[-1].day - timedelta(days=1)) if more else None
    return Page(_sector_fields(state, code) | {"inds_cur_prc_daly_rept": days}, following)


def stocks(state: MarketState, body: Body, position: str | None) -> Page:
    """Ka20002: the stocks of a sector, by code; a sector without stocks has an empty list."""
    exchange = body["stex_tp"]
    places = [place for place in MEMBERS.get(body["inds_cd"], ()) if STOCKS[place].code > (position or "")]
    page = places[:STOCKS_A_PAGE]
    following = STOCKS[page[-1]].code if len(places) > STOCKS_A_PAGE else None
    return Page({"inds_stkpc": [_stock_row(place, state.stocks[place], exchange) for place in page]}, following)


def _stock_row(place: int, quote: StockQuote, exchange: str) -> Element:
    ask, bid = _book(quote)
    change = quote.price - quote.base
    return {
        "stk_cd": STOCKS[place].code + SUFFIXES[exchange],
        "stk_nm": STOCKS[place].name,
        "cur_prc": marked(quote.price, quote.base),
        "pred_pre_sig": direction(quote),
        "pred_pre": plus(str(change)),
        "flu_rt": plus(points(per_cent(change, quote.base))),
        "now_trde_qty": str(_on_exchange(quote.volume_shares, exchange)),
        "sel_bid": marked(ask, quote.base),
        "buy_bid": marked(bid, quote.base),
        "open_pric": marked(quote.open, quote.base),
        "high_pric": marked(quote.high, quote.base),
        "low_pric": marked(quote.low, quote.base),
    }


def _book(quote: StockQuote) -> tuple[int, int]:
    """Ask and bid; at a price limit one of them is missing, without trades both are."""
    if not quote.volume_shares:
        return 0, 0
    lowest, highest = limits(quote.base)
    paid_the_ask = quote.volume_shares % 2 == 1
    bid = quote.price - step_krw(quote.price - 1) if paid_the_ask else quote.price
    ask = quote.price if paid_the_ask else quote.price + step_krw(quote.price)
    return (ask if ask <= highest else 0), (bid if bid >= lowest else 0)


def indices(state: MarketState, body: Body, position: str | None) -> Page:  # noqa: ARG001 - one page
    """Ka20003: all sectors of a market."""
    codes = KOSPI_SECTORS if body["inds_cd"] == "001" else KOSDAQ_SECTORS
    return Page({"all_inds_idex": [_index_row(state.sector(code)) for code in codes]})


def _index_row(sector: SectorQuote) -> Element:
    at_upper, rising, unchanged, falling, at_lower = map(str, sector.breadth)
    level = _index_fields(sector.level, sector.base)
    return {
        "stk_cd": sector.code,
        "stk_nm": SECTORS[sector.code],
        "cur_prc": level["cur_prc"],
        "pre_sig": level["pred_pre_sig"],
        "pred_pre": level["pred_pre"],
        "flu_rt": level["flu_rt"],
        "trde_qty": str(sector.volume_shares // 1_000),
        "wght": "",
        "trde_prica": str(sector.value_krw // 1_000_000),
        "upl": at_upper,
        "rising": rising,
        "stdns": unchanged,
        "fall": falling,
        "lst": at_lower,
        "flo_stk_num": str(sector.listed),
    }


def _sector_fields(state: MarketState, code: str) -> Element:
    """The elements that ka20001 and ka20009 share."""
    sector, year = state.sector(code), state.extremes(code)
    at_upper, rising, unchanged, falling, at_lower = map(str, sector.breadth)
    return {
        **_index_fields(sector.level, sector.base),
        "trde_qty": str(sector.volume_shares // 1_000),
        "trde_prica": str(sector.value_krw // 1_000_000),
        "trde_frmatn_stk_num": str(sector.breadth.traded),
        "trde_frmatn_rt": plus(points(per_cent(sector.breadth.traded, sector.listed))),
        "open_pric": marked_points(sector.open, sector.base),
        "high_pric": marked_points(sector.high, sector.base),
        "low_pric": marked_points(sector.low, sector.base),
        "upl": at_upper,
        "rising": rising,
        "stdns": unchanged,
        "fall": falling,
        "lst": at_lower,
        "52wk_hgst_pric": marked_points(year.high, sector.base),
        "52wk_hgst_pric_dt": _compact(year.high_day),
        "52wk_hgst_pric_pre_rt": plus(points(per_cent(sector.level - year.high, year.high))),
        "52wk_lwst_pric": marked_points(year.low, sector.base),
        "52wk_lwst_pric_dt": _compact(year.low_day),
        "52wk_lwst_pric_pre_rt": plus(points(per_cent(sector.level - year.low, year.low))),
    }


def _index_fields(level: int, base: int, suffix: str = "") -> Element:
    return {
        f"cur_prc{suffix}": marked_points(level, base),
        f"pred_pre_sig{suffix}": _index_direction(level, base),
        f"pred_pre{suffix}": plus(points(level - base)),
        f"flu_rt{suffix}": plus(points(per_cent(level - base, base))),
    }


def _index_direction(level: int, base: int) -> str:
    return "2" if level > base else "5" if level < base else "3"


def _compact(day: date) -> str:
    return day.strftime("%Y%m%d")


def sector_codes(state: MarketState, body: Body, position: str | None) -> Page:  # noqa: ARG001 - it never moves
    """Ka10101: the sectors of a market, in camelCase as no other answer here."""
    market = body["mrkt_tp"]
    rows = [
        {"marketCode": market, "code": code, "name": name, "group": code[0]}
        for code, name in SECTORS.items()
        if market_of(code) == market
    ]
    return Page({"list": rows})


ANSWERS: dict[str, Callable[[MarketState, Body, str | None], Page]] = {
    "ka10010": program,
    "ka10051": investors,
    "ka10101": sector_codes,
    "ka20001": sector_now,
    "ka20002": stocks,
    "ka20003": indices,
    "ka20009": sector_days,
}


def emptied(elements: Element) -> Element:
    """A success that holds nothing: empty lists, empty texts; of ka10010 not even the names are left."""
    if "dfrt_trst_sell_qty" in elements:
        return {}
    return {name: [] if isinstance(value, list) else "" for name, value in elements.items()}
