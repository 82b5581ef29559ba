"""ka20001, one sector now, with a trail of ten-second rows that slides over the last 200 s.

The surprises: after the close two marker rows without a clock time lead the trail (888888, 999999: real steps, the last
presumably the trades after the close, moving until the evening), and before the opening the time may be empty.
"""

from poller.session import INDEX_HOURS
from poller.trs.base import TR, Append, Document, Row
from poller.trs.fields import Change, Direction, Level, Percent, Quantity, Time
from poller.trs.guards import VOLUME_CHAIN, VOLUME_FELL
from poller.trs.quote import QUOTE_GUARDS, QUOTE_HEADLINE, SectorQuote
from poller.trs.requests import MARKET_OF_SECTOR, SECTOR, sector_label, with_market


class SectorTick(Row):
    """Ten seconds of one sector. `step_volume_shares` is the difference of two rows' `volume_shares`."""

    time = Time("tm_n", "시간n")
    level = Level("cur_prc_n", "현재가n", "points", 1)
    direction = Direction("pred_pre_sig_n", "전일대비기호n")
    change = Change("pred_pre_n", "전일대비n", "points", 1)
    change_pct = Percent("flu_rt_n", "등락률n", "percent", 1)
    step_volume_shares = Quantity("trde_qty_n", "거래량n", "shares", 1_000)
    volume_shares = Quantity("acc_trde_qty_n", "누적거래량n", "shares", 1_000)


SECTOR_QUOTES = TR(
    code="ka20001",
    name="업종현재가요청",
    request=(MARKET_OF_SECTOR, SECTOR),
    tables=(
        Document("quote", SectorQuote, required=("level",), headline=QUOTE_HEADLINE, guards=QUOTE_GUARDS),
        Append(
            "ticks",
            SectorTick,
            rows_at="inds_cur_prc_tm",
            key="time",
            window=240,
            row_every_s=10,
            page_rows=20,
            headline=QUOTE_HEADLINE,
            guards=(VOLUME_CHAIN, VOLUME_FELL),
        ),
    ),
    moves=INDEX_HOURS,
    revision=1,
    complete=with_market,
    max_pages=12,  # 40 minutes of rows: more is a gap, and said so
    target_label=sector_label,
)
