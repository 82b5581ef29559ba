"""Request elements that several TRs share: the sector with its market, and the exchange."""

from __future__ import annotations

from poller.sectors import market_of, name_of
from poller.session import NXT_HOURS, UNIFIED_HOURS, Moves
from poller.trs.base import BadRequest, Element, Request


def _three_digits(given: str) -> str | None:
    """`1` was meant to be "001": TOML and spreadsheets drop the zeros."""
    return given.zfill(3) if given.isdigit() and len(given) < 3 else None


MARKET_OF_SECTOR = Element(
    "mrkt_tp", "시장구분", {"0": "코스피", "1": "코스닥", "2": "코스피200", "4": "코스피100", "7": "KRX"}
)
SECTOR = Element(
    "inds_cd",
    "업종코드",
    form='three digits in quotes, such as "001" 종합(KOSPI), "101" 종합(KOSDAQ), "201" KOSPI200, "701" KRX100',
    pattern="[0-9]{3}",
    hint=_three_digits,
)
WHOLE_MARKET = Element("inds_cd", "업종코드", {"001": "종합(KOSPI)", "101": "종합(KOSDAQ)"}, hint=_three_digits)
EXCHANGE = Element("stex_tp", "거래소구분", {"1": "KRX", "2": "NXT", "3": "통합"})


def exchange_hours(request: Request) -> Moves | None:
    """When the answer to a request moves that asks for NXT, or for both exchanges; None for KRX alone."""
    return {"2": NXT_HOURS, "3": UNIFIED_HOURS}.get(request["stex_tp"])


def with_market(values: dict[str, object]) -> dict[str, object]:
    """Fill in `mrkt_tp` from the sector code. The broker ignores it, so a contradiction would go unnoticed there."""
    sector, given = values.get("inds_cd"), values.get("mrkt_tp")
    if sector is None:
        return values
    market = market_of(SECTOR.check(sector))
    if given is None and market is None:
        raise BadRequest(f'sector "{sector}" does not tell its market; give mrkt_tp as well')
    if given is not None and market is not None and MARKET_OF_SECTOR.check(given) != market:
        raise BadRequest(f'mrkt_tp = "{given}" contradicts inds_cd = "{sector}"; write "{market}" or leave it out')
    return {**values, "mrkt_tp": market if given is None else given}


def sector_label(request: Request) -> str:
    """The sector's Korean name.

    >>> sector_label({"inds_cd": "013", "mrkt_tp": "0"})
    '전기/전자'
    """
    return name_of(request["inds_cd"])
