"""ka20002, every stock of a sector, 100 a page: about 25 pages for all of KOSPI, a handful for one sector.

The surprises: a code may come several times (the broker's own example repeats one five times), a stock that did not
trade has prices of 0, which are no prices, and the ask is called `sel_bid`.
"""

from poller.session import STOCK_HOURS
from poller.trs.base import TR, Keyed, Request, Row
from poller.trs.fields import Change, Code, Direction, Level, Percent, Quantity, Text
from poller.trs.guards import VOLUME_FELL, price_range
from poller.trs.requests import EXCHANGE, MARKET_OF_SECTOR, SECTOR, exchange_hours, sector_label, with_market


class SectorStock(Row):
    """One stock of a sector; prices in won, `change` against the base price of the day."""

    stock_code = Code("stk_cd", "종목코드")
    stock_name = Text("stk_nm", "종목명")
    price = Level("cur_prc", "현재가", "KRW", 1)
    direction = Direction("pred_pre_sig", "전일대비기호")
    change = Change("pred_pre", "전일대비", "KRW", 1)
    change_pct = Percent("flu_rt", "등락률", "percent", 1)
    volume_shares = Quantity("now_trde_qty", "현재거래량", "shares", 1)
    ask = Level("sel_bid", "매도호가", "KRW", 1)
    bid = Level("buy_bid", "매수호가", "KRW", 1)
    open = Level("open_pric", "시가", "KRW", 1)
    high = Level("high_pric", "고가", "KRW", 1)
    low = Level("low_pric", "저가", "KRW", 1)


USUAL_PAGES = {"001": 25, "101": 19, "201": 2}


def usual_pages(request: Request) -> int:
    """How many pages a sector takes: counted for the composites, at most five for a single sector."""
    return USUAL_PAGES.get(request["inds_cd"], 5)


SECTOR_STOCKS = TR(
    code="ka20002",
    name="업종별주가요청",
    request=(MARKET_OF_SECTOR, SECTOR, EXCHANGE),
    tables=(
        Keyed(
            "stocks",
            SectorStock,
            rows_at="inds_stkpc",
            key="stock_code",
            label="stock_name",
            headline=("price", "change", "change_pct"),
            guards=(price_range("price"), VOLUME_FELL),
        ),
    ),
    moves=STOCK_HOURS,
    moves_for=exchange_hours,
    revision=1,
    complete=with_market,
    pages=usual_pages,
    max_pages=60,
    target_label=sector_label,
)
