"""The row that ka20001 and ka20009 share: one sector's summary of the day."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from poller.trs.base import Row
from poller.trs.fields import Amount, Change, Count, Date, Direction, Level, Percent, Quantity, Value
from poller.trs.guards import BREADTH, VALUE_FELL, VOLUME_FELL, price_range

QUOTE_HEADLINE = ("level", "change", "change_pct")
QUOTE_GUARDS = (BREADTH, price_range("level"), VOLUME_FELL, VALUE_FELL)


def share_of_advancers(row: Mapping[str, Value]) -> Value:
    """Advancers in percent of all stocks that moved, two decimals, half even; null when nothing moved.

    >>> share_of_advancers({"advancers": 17, "decliners": 130})
    Decimal('11.56')
    """
    advancers, decliners = row["advancers"], row["decliners"]
    if not isinstance(advancers, int) or not isinstance(decliners, int) or advancers + decliners <= 0:
        return None
    hundredths = round(Fraction(advancers * 10_000, advancers + decliners))
    return hundredths // 100 if hundredths % 100 == 0 else Decimal(hundredths).scaleb(-2).normalize()


def advancers_pct() -> Percent:
    """How widely a move is shared: the one figure of breadth that compares across sectors."""
    return Percent(
        None, "상승비율", "percent", formula="advancers ÷ (advancers + decliners) × 100", derive=share_of_advancers
    )


class SectorQuote(Row):
    """One sector as it stood when we looked; volume and value run since the open."""

    level = Level("cur_prc", "현재가", "points", 1)
    direction = Direction("pred_pre_sig", "전일대비기호")
    change = Change("pred_pre", "전일대비", "points", 1)
    change_pct = Percent("flu_rt", "등락률", "percent", 1)
    volume_shares = Quantity("trde_qty", "거래량", "shares", 1_000)
    trading_value_krw = Amount("trde_prica", "거래대금", "KRW", 1_000_000)
    traded_stocks = Count("trde_frmatn_stk_num", "거래형성종목수", "stocks", 1)
    traded_pct = Percent("trde_frmatn_rt", "거래형성비율", "percent", 1)
    open = Level("open_pric", "시가", "points", 1)
    high = Level("high_pric", "고가", "points", 1)
    low = Level("low_pric", "저가", "points", 1)
    limit_up_stocks = Count("upl", "상한", "stocks", 1)
    advancers = Count("rising", "상승", "stocks", 1)
    unchanged = Count("stdns", "보합", "stocks", 1)
    decliners = Count("fall", "하락", "stocks", 1)
    limit_down_stocks = Count("lst", "하한", "stocks", 1)
    high_52w = Level("52wk_hgst_pric", "52주최고가", "points", 1)
    high_52w_date = Date("52wk_hgst_pric_dt", "52주최고가일")
    from_high_52w_pct = Percent("52wk_hgst_pric_pre_rt", "52주최고가대비율", "percent", 1)
    low_52w = Level("52wk_lwst_pric", "52주최저가", "points", 1)
    low_52w_date = Date("52wk_lwst_pric_dt", "52주최저가일")
    from_low_52w_pct = Percent("52wk_lwst_pric_pre_rt", "52주최저가대비율", "percent", 1)
    advancers_pct = advancers_pct()
