"""ka10051, who bought and who sold, sector by sector and investor group by investor group.

The surprises: level, change and percentage come in hundredths, here alone; the same elements are 100 million won with
`amt_qty_tp=0` and thousands of shares with 1; a wrong `mrkt_tp` is answered with other data instead of a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from poller.session import FLOW_HOURS
from poller.trs.base import TR, Element, Keyed, Request, Row
from poller.trs.fields import Amount, Change, Code, Direction, Level, Percent, Quantity, Text, Value, Variant
from poller.trs.guards import INSTITUTION_PARTS, INVESTORS, VOLUME_FELL
from poller.trs.requests import EXCHANGE, exchange_hours

HUNDREDTHS = Decimal("0.01")
IN_SHARES = {"amt_qty_tp": "1"}


def net_buying(element: str, korean: str, group: str) -> Amount:
    """Bought minus sold by one group: won or shares, as the request says, and never in the same column."""
    shares = Quantity(element, korean, "shares", 1_000, name=f"{group}_net_shares")
    return Amount(element, korean, "KRW", 100_000_000, (Variant(IN_SHARES, shares),), name=f"{group}_net_krw")


def all_foreigners(row: Mapping[str, Value]) -> Value:
    """Foreigners and those treated as residents together, which is what other vendors call 외국인."""
    parts = row["foreigner_net_krw"], row["resident_foreigner_net_krw"]
    return (
        sum(part for part in parts if isinstance(part, int)) if all(isinstance(part, int) for part in parts) else None
    )


def foreigner_total() -> Amount:
    """The sum that other vendors show, in the unit of its parts."""
    formula, derive = "foreigner + resident_foreigner", all_foreigners
    shares = Quantity(
        None, "외국인합계순매수", "shares", formula=formula, derive=derive, name="foreigner_total_net_shares"
    )
    return Amount(
        None, "외국인합계순매수", "KRW", variants=(Variant(IN_SHARES, shares),), formula=formula, derive=derive
    )


class SectorFlows(Row):
    """Net buying in one sector by investor group since the open; provisional until the evening."""

    sector_code = Code("inds_cd", "업종코드")
    sector_name = Text("inds_nm", "업종명")
    level = Level("cur_prc", "현재가", "points", HUNDREDTHS)
    direction = Direction("pre_smbol", "대비부호")
    change = Change("pred_pre", "전일대비", "points", HUNDREDTHS)
    change_pct = Percent("flu_rt", "등락율", "percent", HUNDREDTHS)
    volume_shares = Quantity("trde_qty", "거래량", "shares", 1_000)
    securities_net_krw = net_buying("sc_netprps", "증권순매수", "securities")
    insurance_net_krw = net_buying("insrnc_netprps", "보험순매수", "insurance")
    investment_trust_net_krw = net_buying("invtrt_netprps", "투신순매수", "investment_trust")
    bank_net_krw = net_buying("bank_netprps", "은행순매수", "bank")
    other_finance_net_krw = net_buying("jnsinkm_netprps", "종신금순매수", "other_finance")
    pension_fund_net_krw = net_buying("endw_netprps", "기금순매수", "pension_fund")
    other_corporation_net_krw = net_buying("etc_corp_netprps", "기타법인순매수", "other_corporation")
    individual_net_krw = net_buying("ind_netprps", "개인순매수", "individual")
    foreigner_net_krw = net_buying("frgnr_netprps", "외국인순매수", "foreigner")
    resident_foreigner_net_krw = net_buying("native_trmt_frgnr_netprps", "내국인대우외국인순매수", "resident_foreigner")
    state_net_krw = net_buying("natn_netprps", "국가순매수", "state")
    private_fund_net_krw = net_buying("samo_fund_netprps", "사모펀드순매수", "private_fund")
    institution_net_krw = net_buying("orgn_netprps", "기관계순매수", "institution")
    foreigner_total_net_krw = foreigner_total()


def flows_label(request: Request) -> str:
    """Market, unit and exchange in Korean: `코스피 금액 통합`."""
    return " ".join(element.values[request[element.name]] for element in (MARKET, AMOUNT_OR_QUANTITY, EXCHANGE))


MARKET = Element("mrkt_tp", "시장구분", {"0": "코스피", "1": "코스닥"})
AMOUNT_OR_QUANTITY = Element("amt_qty_tp", "금액수량구분", {"0": "금액", "1": "수량"})
BASE_DATE = Element("base_dt", "기준일자", form='a day, "YYYYMMDD"', pattern="[0-9]{8}", required=False)

INVESTOR_FLOWS = TR(
    code="ka10051",
    name="업종별투자자순매수요청",
    request=(MARKET, AMOUNT_OR_QUANTITY, BASE_DATE, EXCHANGE),
    tables=(
        Keyed(
            "flows",
            SectorFlows,
            rows_at="inds_netprps",
            key="sector_code",
            label="sector_name",
            headline=("foreigner_net_krw", "institution_net_krw", "individual_net_krw"),
            guards=(INVESTORS, INSTITUTION_PARTS, VOLUME_FELL),
        ),
    ),
    moves=FLOW_HOURS,
    moves_for=exchange_hours,
    revision=1,
    target_label=flows_label,
    max_pages=3,
)
