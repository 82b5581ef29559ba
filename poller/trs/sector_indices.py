"""ka20003, every index of one market at once: level, change, volume and breadth of 65 sectors for two calls.

The surprise: the element called `stk_cd` holds a sector code.
"""

from poller.session import INDEX_HOURS
from poller.trs.base import TR, Keyed, Row
from poller.trs.fields import Amount, Change, Code, Count, Direction, Level, Percent, Quantity, Text
from poller.trs.guards import BREADTH_OF_LISTED, VALUE_FELL, VOLUME_FELL
from poller.trs.quote import QUOTE_HEADLINE, advancers_pct
from poller.trs.requests import WHOLE_MARKET, sector_label


class SectorIndex(Row):
    """One sector index as it stood when we looked; volume and value run since the open."""

    sector_code = Code("stk_cd", "종목코드")
    sector_name = Text("stk_nm", "종목명")
    level = Level("cur_prc", "현재가", "points", 1)
    direction = Direction("pre_sig", "대비기호")
    change = Change("pred_pre", "전일대비", "points", 1)
    change_pct = Percent("flu_rt", "등락률", "percent", 1)
    volume_shares = Quantity("trde_qty", "거래량", "shares", 1_000)
    weight = Percent("wght", "비중", None, 1)  # never seen filled, so its name claims no unit
    trading_value_krw = Amount("trde_prica", "거래대금", "KRW", 1_000_000)
    limit_up_stocks = Count("upl", "상한", "stocks", 1)
    advancers = Count("rising", "상승", "stocks", 1)
    unchanged = Count("stdns", "보합", "stocks", 1)
    decliners = Count("fall", "하락", "stocks", 1)
    limit_down_stocks = Count("lst", "하한", "stocks", 1)
    listed_stocks = Count("flo_stk_num", "상장종목수", "stocks", 1)
    advancers_pct = advancers_pct()


SECTOR_INDICES = TR(
    code="ka20003",
    name="전업종지수요청",
    request=(WHOLE_MARKET,),
    tables=(
        Keyed(
            "indices",
            SectorIndex,
            rows_at="all_inds_idex",
            key="sector_code",
            label="sector_name",
            headline=QUOTE_HEADLINE,
            guards=(BREADTH_OF_LISTED, VOLUME_FELL, VALUE_FELL),
        ),
    ),
    moves=INDEX_HOURS,
    revision=1,
    target_label=sector_label,
    max_pages=3,
)
