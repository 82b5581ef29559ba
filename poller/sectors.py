"""Sector codes and their Korean names, and the groups a plan may name: `@kospi`, `@industries` ….

The list is what ka10101 said when it was last read, until then the one built in (November 2026). The surprise: names
repeat across markets (화학 is 008 and 119), so a sector is always told by its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

KOSPI = "001 종합(KOSPI), 002 대형주, 003 중형주, 004 소형주, 005 음식료/담배, 006 섬유/의류, 007 종이/목재, \
008 화학, 009 제약, 010 비금속, 011 금속, 012 기계/장비, 013 전기/전자, 014 의료/정밀기기, 015 운송장비/부품, \
016 유통, 017 전기/가스, 018 건설, 019 운송/창고, 020 통신, 021 금융, 024 증권, 025 보험, 026 일반서비스, 027 제조, \
028 부동산, 029 IT 서비스, 030 오락/문화, 603 변동성지수, 604 코스피고배당50, 605 코스피배당성장50"

KOSDAQ = "101 종합(KOSDAQ), 103 일반서비스, 106 제조, 107 건설, 108 유통, 110 운송/창고, 111 금융, 115 음식료/담배, \
116 섬유/의류, 117 종이/목재, 118 출판/매체복제, 119 화학, 120 제약, 121 비금속, 122 금속, 123 기계/장비, \
124 전기/전자, 125 의료/정밀기기, 126 운송장비/부품, 127 기타제조, 128 통신, 129 IT 서비스, 138 KOSDAQ 100, \
139 KOSDAQ MID 300, 140 KOSDAQ SMALL, 141 오락/문화, 142 코스닥 우량기업, 143 벤처기업, 144 중견기업, \
145 신성장기업, 150 KOSDAQ 150, 151 코스닥글로벌지수, 160 F-KOSDAQ150, 165 F-KOSDAQ150인버스"

KOSPI200 = "201 KOSPI200, 207 F-KOSPI200, 208 F-KOSPI200인버스, 209 레버리지KOSPI200, 210 F-KOSPI200레버리지, \
211 건설, 212 중공업, 213 철강소재, 214 에너지화학, 215 정보통신(기술), 216 금융, 217 생활소비재, 218 경기소비재, \
219 산업재, 220 헬스케어, 224 에너지화학레버리지, 225 정보기술레버리지, 226 금융레버리지, 227 경기소비재레버리지, \
250 F-KOSPI200 Plus, 251 K200 USD F BuySell, 252 USD K200 F BuySell, 253 K200 F 매수 콜매도, \
254 K200 F 매도 풋매도, 255 K200 중소형주, 256 K200 SF레버리지1.5X, 257 KOSPI TOP 10"

OTHERS = "302 KOSTAR, 401 KOSPI100, 402 KOSPI50"

KRX = "701 KRX100, 702 KRX자동차, 703 KRX반도체, 704 KRX바이오, 705 KRX금융, 706 KRX경기소비재, 707 KRX에너지화학, \
708 KRX철강, 709 KRX필수소비재, 710 KRX방송통신, 711 KRX건설, 713 KRX증권, 714 KRX기계장비, 715 KRX보험, \
716 KRX운송, 717 KRX유틸리티, 718 KRX미디어&엔터테인, 719 KRX정보기술, 730 KTOP 30, 731 KTOP30레버리지, \
750 KRXESG리더스150, 770 국채선물대표(F-KTB), 771 KRX300"


def _names(listing: str) -> dict[str, str]:
    return dict(entry.split(" ", 1) for entry in listing.split(", "))


KOSPI_SECTORS = _names(KOSPI)
KOSDAQ_SECTORS = _names(KOSDAQ)
SECTORS = {**KOSPI_SECTORS, **KOSDAQ_SECTORS, **_names(KOSPI200), **_names(OTHERS), **_names(KRX)}
"""Every sector of the built-in list: code -> Korean name."""

GROUPS = {"@kospi": ("0",), "@kosdaq": ("1",), "@kospi200": ("2",), "@krx": ("7",), "@industries": ("0", "1")}
"""What a plan may write in the place of codes, and the markets (`mrkt_tp`) it stands for."""

PARTS = frozenset({"024", "025"})
UMBRELLAS = frozenset({"027", "106"})


def market_of(sector_code: str) -> str | None:
    """The `mrkt_tp` a sector code belongs to, or None where the code does not tell (302).

    >>> market_of("001"), market_of("603"), market_of("150"), market_of("302")
    ('0', '0', '1', None)
    """
    return {"0": "0", "6": "0", "1": "1", "2": "2", "4": "4", "7": "7"}.get(sector_code[:1])


def is_industry(sector_code: str) -> bool:
    """Whether a sector is one of the industries into which KOSPI and KOSDAQ are divided, each stock in one of them.

    021 금융 stands for its parts 024 and 025, which do not make up the whole of it. Left out are the umbrellas 027 and
    106, the composites, sizes and indices. Of KOSDAQ's 138 to 145, sizes and divisions of the market, only 141
    오락/문화 is an industry: it is the twin of KOSPI's 030, and its stocks would be counted nowhere else.

    >>> [code for code in ("001", "004", "005", "021", "024", "027", "603") if is_industry(code)]
    ['005', '021']
    >>> [code for code in ("101", "103", "106", "127", "138", "141", "142", "150") if is_industry(code)]
    ['103', '127', '141']
    """
    if sector_code in PARTS | UMBRELLAS:
        return False
    return "005" <= sector_code <= "099" or "103" <= sector_code <= "137" or sector_code == "141"


@dataclass(frozen=True)
class SectorList:
    """The sectors of each market (`mrkt_tp`), code -> name; `read_at` is when ka10101 said so, None if built in."""

    markets: Mapping[str, Mapping[str, str]]
    read_at: datetime | None = None

    @cached_property
    def names(self) -> dict[str, str]:
        """Every sector: code -> Korean name."""
        return {code: name for sectors in self.markets.values() for code, name in sectors.items()}

    def group(self, name: str) -> list[str]:
        """The codes a group stands for, in their order. Raises KeyError for a name that is no group."""
        codes = [code for market in GROUPS[name] for code in sorted(self.markets.get(market, {}))]
        return [code for code in codes if is_industry(code)] if name == "@industries" else codes


BUILT_IN = SectorList(
    {
        market: {code: name for code, name in SECTORS.items() if market_of(code) == market}
        for market in ("0", "1", "2", "4", "7")
    }
)


class _InUse:
    """The list that this process goes by: names are asked for in places that no list is handed to."""

    listed = BUILT_IN


def listed() -> SectorList:
    """The list in use."""
    return _InUse.listed


def use(sectors: SectorList) -> None:
    """Go by this list from now on."""
    _InUse.listed = sectors


def name_of(sector_code: str) -> str:
    """A sector's Korean name; of one that the list in use does not have, the built-in one, else its code.

    >>> name_of("013"), name_of("999")
    ('전기/전자', '999')
    """
    return _InUse.listed.names.get(sector_code) or SECTORS.get(sector_code, sector_code)
