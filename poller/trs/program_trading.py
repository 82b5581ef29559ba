"""ka10010, programme trading of one stock; its name says sector, its request takes a stock code.

The surprises: most fields are empty most of the time, no unit is documented anywhere, and the broker's own example
does not add up. So the names claim no unit, and no identity is enforced.
"""

from poller.session import NXT_HOURS, STOCK_HOURS, UNIFIED_HOURS, Moves
from poller.trs.base import TR, Document, Element, Request, Row
from poller.trs.fields import Amount, Quantity


def _bare_code(given: str) -> str | None:
    """`KRX:039490` is the document's notation; what is sent is `039490`."""
    return given.rpartition(":")[2] or None


STOCK = Element(
    "stk_cd",
    "종목코드",
    form='six letters or digits in quotes, such as "005930"; "005930_NX" and "005930_AL" choose NXT or both exchanges',
    pattern="[0-9A-Z]{6}(_NX|_AL)?",
    hint=_bare_code,
)


def suffix_hours(request: Request) -> Moves | None:
    """When the answer moves for a stock on NXT, or on both exchanges; None for KRX alone."""
    return {"NX": NXT_HOURS, "AL": UNIFIED_HOURS}.get(request["stk_cd"].partition("_")[2])


class ProgramTrading(Row):
    """Programme trades of one stock, for customers (agency). Arbitrage and non-arbitrage, sold, bought and net."""

    arbitrage_agency_sell_quantity = Quantity("dfrt_trst_sell_qty", "차익위탁매도수량", None, 1)
    arbitrage_agency_sell_amount = Amount("dfrt_trst_sell_amt", "차익위탁매도금액", None, 1)
    arbitrage_agency_buy_quantity = Quantity("dfrt_trst_buy_qty", "차익위탁매수수량", None, 1)
    arbitrage_agency_buy_amount = Amount("dfrt_trst_buy_amt", "차익위탁매수금액", None, 1)
    arbitrage_agency_net_quantity = Quantity("dfrt_trst_netprps_qty", "차익위탁순매수수량", None, 1)
    arbitrage_agency_net_amount = Amount("dfrt_trst_netprps_amt", "차익위탁순매수금액", None, 1)
    nonarbitrage_agency_sell_quantity = Quantity("ndiffpro_trst_sell_qty", "비차익위탁매도수량", None, 1)
    nonarbitrage_agency_sell_amount = Amount("ndiffpro_trst_sell_amt", "비차익위탁매도금액", None, 1)
    nonarbitrage_agency_buy_quantity = Quantity("ndiffpro_trst_buy_qty", "비차익위탁매수수량", None, 1)
    nonarbitrage_agency_buy_amount = Amount("ndiffpro_trst_buy_amt", "비차익위탁매수금액", None, 1)
    nonarbitrage_agency_net_quantity = Quantity("ndiffpro_trst_netprps_qty", "비차익위탁순매수수량", None, 1)
    nonarbitrage_agency_net_amount = Amount("ndiffpro_trst_netprps_amt", "비차익위탁순매수금액", None, 1)
    total_agency_sell_quantity = Quantity("all_dfrt_trst_sell_qty", "전체차익위탁매도수량", None, 1)
    total_agency_sell_amount = Amount("all_dfrt_trst_sell_amt", "전체차익위탁매도금액", None, 1)
    total_agency_buy_quantity = Quantity("all_dfrt_trst_buy_qty", "전체차익위탁매수수량", None, 1)
    total_agency_buy_amount = Amount("all_dfrt_trst_buy_amt", "전체차익위탁매수금액", None, 1)
    total_agency_net_quantity = Quantity("all_dfrt_trst_netprps_qty", "전체차익위탁순매수수량", None, 1)
    total_agency_net_amount = Amount("all_dfrt_trst_netprps_amt", "전체차익위탁순매수금액", None, 1)


PROGRAM_TRADING = TR(
    code="ka10010",
    name="업종프로그램요청",
    request=(STOCK,),
    tables=(
        Document(
            "program",
            ProgramTrading,
            headline=("total_agency_net_quantity", "arbitrage_agency_net_quantity"),
        ),
    ),
    moves=STOCK_HOURS,
    moves_for=suffix_hours,
    revision=1,
    target_label=lambda request: request["stk_cd"],
)
