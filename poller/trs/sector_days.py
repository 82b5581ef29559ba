"""ka20009, one sector day by day: the summary of ka20001, then days, newest first.

The surprise: today's row is among the days and moves while the market is open. Its date is the only date stamp in the
whole family, so it tells which trading day the broker's answers belong to.
"""

from poller.session import INDEX_HOURS
from poller.trs.base import TR, Append, Document, Row
from poller.trs.fields import Change, Date, Direction, Level, Percent, Quantity
from poller.trs.guards import VOLUME_FELL
from poller.trs.quote import QUOTE_GUARDS, QUOTE_HEADLINE, SectorQuote
from poller.trs.requests import MARKET_OF_SECTOR, SECTOR, sector_label, with_market


class SectorDay(Row):
    """One day of a sector: `level` is the close, of today's row the level now."""

    date = Date("dt_n", "일자n")
    level = Level("cur_prc_n", "현재가n", "points", 1)
    direction = Direction("pred_pre_sig_n", "전일대비기호n")
    change = Change("pred_pre_n", "전일대비n", "points", 1)
    change_pct = Percent("flu_rt_n", "등락률n", "percent", 1)
    volume_shares = Quantity("acc_trde_qty_n", "누적거래량n", "shares", 1_000)


SECTOR_DAYS = TR(
    code="ka20009",
    name="업종현재가일별요청",
    request=(MARKET_OF_SECTOR, SECTOR),
    tables=(
        Document("quote", SectorQuote, required=("level",), headline=QUOTE_HEADLINE, guards=QUOTE_GUARDS),
        Append(
            "days",
            SectorDay,
            rows_at="inds_cur_prc_daly_rept",
            key="date",
            window=100,
            newest_is_trading_day=True,
            headline=QUOTE_HEADLINE,
            guards=(VOLUME_FELL,),
        ),
    ),
    moves=INDEX_HOURS,
    revision=1,
    complete=with_market,
    max_pages=6,
    target_label=sector_label,
)
