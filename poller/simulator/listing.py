"""The stocks of the made-up market, and which sectors each of them is in.

Pure, and the same for every seed: seeds change what prices do, not who is listed. The companies are invented, but for
Samsung Electronics, whose code people know by heart. The surprise: some sectors have no stocks. Futures, leveraged and
volatility indices follow another sector instead, and count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from poller.sectors import SECTORS
from poller.simulator.chance import chance
from poller.simulator.prices import to_step

KOSPI, KOSDAQ = "001", "101"


@dataclass(frozen=True)
class Stock:
    """One listed stock. Price and volume are what is typical of it; days swing around them."""

    code: str
    name: str
    market: str
    industry: str
    price_krw: int
    shares: int
    volume_shares: int
    beta: float

    @property
    def cap_krw(self) -> int:
        """Typical market capitalisation."""
        return self.price_krw * self.shares


# Industry: how many stocks, and how such companies are called.
KOSPI_INDUSTRIES = {
    "005": (12, "식품 제과 음료"),
    "006": (8, "섬유 패션 어패럴"),
    "007": (6, "제지 페이퍼"),
    "008": (20, "화학 케미칼 유화"),
    "009": (14, "제약 약품 바이오"),
    "010": (6, "시멘트 세라믹"),
    "011": (12, "제강 금속 스틸"),
    "012": (12, "기계 중공업 엔진"),
    "013": (20, "전자 반도체 디스플레이"),
    "014": (5, "메디칼 정밀"),
    "015": (14, "모터스 오토 조선"),
    "016": (14, "유통 상사 마트"),
    "017": (7, "가스 에너지"),
    "018": (10, "건설 개발"),
    "019": (8, "해운 항공 로지스"),
    "020": (4, "텔레콤 통신"),
    "021": (12, "금융지주 캐피탈"),
    "024": (8, "증권 투자증권"),
    "025": (6, "생명 화재"),
    "026": (10, "홀딩스 서비스"),
    "028": (5, "리츠 자산"),
    "029": (9, "소프트 시스템즈"),
    "030": (6, "엔터 미디어"),
}
KOSDAQ_INDUSTRIES = {
    "103": (16, "컨설팅 에듀 서비스"),
    "107": (8, "이앤씨 토건"),
    "108": (10, "트레이드 커머스"),
    "110": (5, "물류 익스프레스"),
    "111": (6, "인베스트 벤처스"),
    "115": (6, "푸드 팜"),
    "116": (4, "텍스타일 웨어"),
    "117": (4, "우드 팩"),
    "118": (4, "북스 프린팅"),
    "119": (14, "켐 머티리얼즈 소재"),
    "120": (22, "팜텍 바이오로직스 테라퓨틱스"),
    "121": (4, "글라스 세라텍"),
    "122": (10, "메탈 특수강"),
    "123": (18, "테크윈 로보틱스 이엔지"),
    "124": (24, "일렉 세미콘 옵틱스"),
    "125": (14, "메디텍 덴탈 헬스케어"),
    "126": (8, "파츠 오토텍"),
    "127": (5, "리빙 토이"),
    "128": (4, "네트웍스 링크"),
    "129": (20, "소프트웨어 데이터 클라우드"),
    "141": (10, "게임즈 스튜디오 픽쳐스"),
}
FIRST_NAMES = (
    "가람 나래 다온 라온 마루 바른 새솔 아라 자람 한빛 누리 도담 미르 보람 소담 여울 온새 은하 이든 해솔 "
    "단비 대한 동해 백두 금강 서진 성우 세종 신라 우리 유성 정우 진양 태산 하늘 한강 현진 화인 청운 삼우"
)


def _names(industry: str, count: int, lasts: list[str]) -> list[str]:
    """Company names of an industry; no two industries share a last name, so no name is given twice."""
    firsts = chance("listing", industry).sample(FIRST_NAMES.split(), count)
    return [first + lasts[at % len(lasts)] for at, first in enumerate(firsts)]


def _codes(count: int) -> list[str]:
    """Stock codes: six digits that end in 0, and one in forty with the letters that newer listings have."""
    source = chance("listing", "codes")
    numbers = source.sample([number for number in range(60, 49_000) if number != 593], count)
    letters = source.sample("ACDFGHJKLMNPRSTVWXYZ", 20)
    codes = [f"{number:05d}0" for number in numbers]
    codes[::40] = [f"0{number % 1000:03d}{letters[at % 20]}0" for at, number in enumerate(numbers[::40])]
    codes[1] = "0126Z0"
    return codes


def _listed(code: str, name: str, industry: str, source: Random) -> Stock:
    market = KOSPI if industry in KOSPI_INDUSTRIES else KOSDAQ
    price = to_step(min(900_000.0, 1_000 + source.lognormvariate(9.9, 1.0)))
    cap = source.lognormvariate(27.7 if market == KOSPI else 26.0, 1.2)
    shares = max(2_000_000, int(cap / price))
    turnover = source.lognormvariate(-5.3 if market == KOSPI else -4.2, 0.8)
    volume = max(2_000, int(shares * turnover))
    return Stock(code, name, market, industry, price, shares, volume, beta=source.uniform(0.6, 1.4))


def _list_stocks() -> tuple[Stock, ...]:
    industries = KOSPI_INDUSTRIES | KOSDAQ_INDUSTRIES
    codes = iter(_codes(sum(count for count, _ in industries.values())))
    source = chance("listing", "stocks")
    stocks = [Stock("005930", "삼성전자", KOSPI, "013", 71_000, 5_969_782_550, 14_000_000, beta=1.1)]
    for industry, (count, lasts) in industries.items():
        stocks += [_listed(next(codes), name, industry, source) for name in _names(industry, count, lasts.split())]
    return tuple(sorted(stocks, key=lambda stock: stock.code))


STOCKS = _list_stocks()
"""Every stock, by code. Everywhere in the simulator a stock is its place in this tuple."""
PLACES = {stock.code: place for place, stock in enumerate(STOCKS)}


def _by_size(*industries_or_markets: str) -> list[int]:
    chosen = set(industries_or_markets)
    places = (place for place, stock in enumerate(STOCKS) if {stock.industry, stock.market} & chosen)
    return sorted(places, key=lambda place: -STOCKS[place].cap_krw)


def _every(places: list[int], *, nth: int, count: int) -> list[int]:
    return places[::nth][:count]


def _composites_and_sizes() -> dict[str, Iterable[int]]:
    kospi, kosdaq = _by_size(KOSPI), _by_size(KOSDAQ)
    return {
        KOSPI: kospi,
        "002": kospi[:60],
        "003": kospi[60:150],
        "004": kospi[150:],
        "604": _every(kospi, nth=3, count=50),
        "605": _every(kospi[1:], nth=2, count=50),
        KOSDAQ: kosdaq,
        "138": kosdaq[:50],
        "139": kosdaq[50:130],
        "140": kosdaq[130:],
        # KOSDAQ puts each company into one of four classes.
        "142": kosdaq[::4],
        "143": kosdaq[1::4],
        "144": kosdaq[2::4],
        "145": kosdaq[3::4],
        "150": kosdaq[:100],
        "151": _every(kosdaq, nth=2, count=25),
        "302": kosdaq[:30],
    }


def _industries() -> dict[str, Iterable[int]]:
    plain: dict[str, Iterable[int]] = {
        industry: _by_size(industry) for industry in KOSPI_INDUSTRIES | KOSDAQ_INDUSTRIES
    }
    umbrellas = {
        "021": _by_size("021", "024", "025"),
        "027": _by_size(*(f"{number:03d}" for number in range(5, 16))),
        "106": _by_size(*(str(number) for number in range(115, 128))),
    }
    return plain | umbrellas


def _kospi200() -> dict[str, Iterable[int]]:
    kospi = _by_size(KOSPI)
    large = set(kospi[:140])
    groups = {
        "211": "018",
        "212": "012 015",
        "213": "011",
        "214": "008 017",
        "215": "013 020 029",
        "216": "021 024 025",
        "217": "005 016",
        "218": "006 015 030",
        "219": "012 019",
        "220": "009 014",
    }
    parts = {code: [place for place in _by_size(*wanted.split()) if place in large] for code, wanted in groups.items()}
    return {"201": kospi[:140], "255": kospi[70:140], "257": kospi[:10], "401": kospi[:70], "402": kospi[:35], **parts}


def _krx() -> dict[str, Iterable[int]]:
    both = _by_size(KOSPI, KOSDAQ)
    groups = {
        "702": "015",
        "703": "013 124",
        "704": "009 120",
        "705": "021",
        "706": "006 016 108",
        "707": "008 017",
        "708": "011",
        "709": "005 115",
        "710": "020 128",
        "711": "018 107",
        "713": "024",
        "714": "012 123",
        "715": "025",
        "716": "019 110",
        "717": "017",
        "718": "030 141",
        "719": "029 129",
    }
    parts = {code: _by_size(*wanted.split())[:20] for code, wanted in groups.items()}
    return {"701": both[:80], "730": both[:30], "750": _every(both, nth=2, count=100), "771": both[:200], **parts}


MEMBERS: dict[str, tuple[int, ...]] = {
    code: tuple(sorted(places))
    for code, places in (_composites_and_sizes() | _industries() | _kospi200() | _krx()).items()
}
"""The sectors that have stocks: code -> their places, by stock code."""

FOLLOWERS: dict[str, tuple[str, float]] = {
    "160": ("150", 1),
    "165": ("150", -1),
    "207": ("201", 1),
    "208": ("201", -1),
    "209": ("201", 2),
    "210": ("201", 2),
    "224": ("214", 2),
    "225": ("215", 2),
    "226": ("216", 2),
    "227": ("218", 2),
    "250": ("201", 1),
    "251": ("201", 0.8),
    "252": ("201", -0.6),
    "253": ("201", 0.7),
    "254": ("201", 0.6),
    "256": ("201", 1.5),
    "603": ("201", -3),
    "731": ("730", 2),
    "770": ("201", -0.05),
}
"""The sectors without stocks: code -> whom it follows, and how strongly."""

SUMMED = tuple(MEMBERS)
"""The sectors with stocks, in the order in which sums over them are kept."""
SUMMED_AT = {code: at for at, code in enumerate(SUMMED)}
IN_SECTORS: tuple[tuple[int, ...], ...] = tuple(
    tuple(at for at, code in enumerate(SUMMED) if place in set(MEMBERS[code])) for place in range(len(STOCKS))
)
"""Of each stock: where in SUMMED its sectors stand."""

_TYPICAL_CAPS = {code: sum(STOCKS[place].cap_krw for place in places) for code, places in MEMBERS.items()}
_TYPICAL_LEVELS = {"001": 270_000, "101": 85_000, "201": 36_000, "150": 140_000, "603": 2_000, "770": 11_000}


def level(sector_code: str, cap_krw: int) -> int:
    """The index level in hundredths of a point, given what the stocks of the sector (or of its leader) are worth.

    It only ever grows with that worth, or for inverse indices shrinks.
    """
    typical = _TYPICAL_LEVELS.get(sector_code, 30_000 + int(sector_code) * 13_700 % 470_000)
    if sector_code in MEMBERS:
        whole = _TYPICAL_CAPS[sector_code]
        return (2 * cap_krw * typical + whole) // (2 * whole)
    leader, power = FOLLOWERS[sector_code]
    return round(typical * float((cap_krw / _TYPICAL_CAPS[leader]) ** power))


def leader_of(sector_code: str) -> str:
    """The sector whose stocks decide this one's level: itself, if it has any."""
    return FOLLOWERS[sector_code][0] if sector_code in FOLLOWERS else sector_code


def known(sector_code: str) -> bool:
    """Whether there is such a sector."""
    return sector_code in SECTORS and (sector_code in MEMBERS or sector_code in FOLLOWERS)
