"""A request goes in; nothing comes out, or the refusal the broker would answer with.

Pure. The surprise: nearly every refusal is an HTTP 200. What went wrong stands in brackets inside the message.
"""

from __future__ import annotations

import re
from binascii import crc32
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from poller.session import KST
from poller.simulator.listing import PLACES, known

SECTORS_PATH, STOCK_INFO_PATH = "/api/dostk/sect", "/api/dostk/stkinfo"
SERVED_AT = {
    "ka10010": SECTORS_PATH,
    "ka10051": SECTORS_PATH,
    "ka20001": SECTORS_PATH,
    "ka20002": SECTORS_PATH,
    "ka20003": SECTORS_PATH,
    "ka20009": SECTORS_PATH,
    "ka10101": STOCK_INFO_PATH,
}


class Refusal(Exception):
    """The broker does not answer the question; `str()` is its `return_msg`."""

    def __init__(self, message: str, *, return_code: int, status: int = 200) -> None:
        super().__init__(message)
        self.return_code = return_code
        self.status = status


def input_error(code: int, detail: str) -> Refusal:
    """A refusal that blames the request."""
    return Refusal(f"입력 값 오류입니다[{code}:{detail}]", return_code=2)


def wrong(parameter: str, reason: str) -> Refusal:
    """1517: a value is there, but not one that can be used."""
    return input_error(1517, f"입력 값 형식이 올바르지 않습니다. 파라미터={parameter}, 실패사유={reason}")


def dead_token() -> Refusal:
    """8005: never issued, expired, or replaced by a newer one."""
    return Refusal("인증에 실패했습니다[8005:Token이 유효하지 않습니다]", return_code=3)


def over_limit(per_s: int, api_id: str) -> Refusal:
    """1700: too many requests in one second."""
    text = f"허용된 요청 개수를 초과하였습니다. 유량={per_s}, API ID={api_id}"
    return Refusal(f"허용된 요청 개수를 초과하였습니다[1700:{text}]", return_code=5, status=429)


@dataclass(frozen=True)
class Asked:
    """A data request as it came in; `body` is None if it was not a JSON object."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any] | None

    @property
    def api_id(self) -> str:
        """Which report is asked for."""
        return self.headers.get("api-id", "").strip()


def check_headers(asked: Asked) -> str:
    """The token of a request whose headers are in order."""
    if not asked.api_id:
        raise input_error(1501, "API ID가 Null이거나 값이 없습니다")
    if asked.api_id not in SERVED_AT:
        raise input_error(1505, f"존재하지 않는 API ID입니다. API ID={asked.api_id}")
    if SERVED_AT[asked.api_id] != asked.path:
        raise input_error(1504, f"해당 URI에서는 지원하는 API ID가 아닙니다. API ID={asked.api_id}, URI={asked.path}")
    if not asked.headers.get("content-type", "").lower().startswith("application/json"):
        raise input_error(1512, "Http header에 값이 설정되지 않았거나 읽을 수 없습니다. header=content-type")
    authorization = asked.headers.get("authorization")
    if authorization is None:
        raise input_error(1513, "Http Header에 authorization 필드가 설정되어야 합니다")
    if not authorization.startswith("Bearer"):
        raise input_error(1514, "입력으로 들어온 Http Header의 authorization 필드 형식이 맞지 않습니다")
    token = authorization.removeprefix("Bearer").strip()
    if not token:
        raise input_error(1516, "Http Header의 authorization 필드 내에 토큰이 정의되어 있지 않습니다")
    return token


def _one_of(*allowed: str) -> Callable[[str], str | None]:
    return lambda value: None if value in allowed else f"{', '.join(allowed)} 중 하나여야 합니다"


def _short(value: str) -> str | None:
    return None if len(value) == 1 else "길이는 1이어야 합니다"


def _sector(value: str) -> str | None:
    return None if known(value) else "존재하지 않는 업종코드입니다"


def _day(value: str) -> str | None:
    try:
        datetime.strptime(value, "%Y%m%d").replace(tzinfo=KST)
    except ValueError:
        return "YYYYMMDD 형식이어야 합니다"
    return None if re.fullmatch(r"\d{8}", value) else "YYYYMMDD 형식이어야 합니다"


def _anything(value: str) -> str | None:  # noqa: ARG001 - a stock code is looked up afterwards, with a code of its own
    return None


# In the order of the document. `mrkt_tp` may be any one character: the broker ignores it, or answers something else.
REQUIRED: dict[str, dict[str, Callable[[str], str | None]]] = {
    "ka10010": {"stk_cd": _anything},
    "ka10051": {"mrkt_tp": _short, "amt_qty_tp": _one_of("0", "1"), "stex_tp": _one_of("1", "2", "3")},
    "ka10101": {"mrkt_tp": _short},
    "ka20001": {"mrkt_tp": _short, "inds_cd": _sector},
    "ka20002": {"mrkt_tp": _short, "inds_cd": _sector, "stex_tp": _one_of("1", "2", "3")},
    "ka20003": {"inds_cd": _one_of("001", "101")},
    "ka20009": {"mrkt_tp": _short, "inds_cd": _sector},
}
OPTIONAL = {"ka10051": {"base_dt": _day}}


def check_body(asked: Asked) -> dict[str, str]:
    """The parameters of a request that can be answered."""
    if asked.body is None:
        raise wrong("body", "JSON 형식이 아닙니다")
    required, optional = REQUIRED[asked.api_id], OPTIONAL.get(asked.api_id, {})
    for name in required:
        if asked.body.get(name) in (None, ""):
            raise input_error(1511, f"필수 입력 값에 값이 존재하지 않습니다. 필수입력 파라미터={name}")
    for name, rule in (required | optional).items():
        value = asked.body.get(name, "")
        if not isinstance(value, str):
            raise wrong(name, "문자열이어야 합니다")
        reason = rule(value) if value else None
        if reason:
            raise wrong(name, reason)
    if asked.api_id == "ka10010":
        _check_stock(asked.body["stk_cd"])
    return {name: asked.body.get(name, "") for name in required | optional}


def _check_stock(stock_code: str) -> None:
    code, _, suffix = stock_code.partition("_")
    if code not in PLACES or suffix not in {"", "NX", "AL"}:
        raise input_error(1902, f"종목 정보가 없습니다. 입력한 종목코드 값을 확인바랍니다. 종목코드={stock_code}")


def next_key(api_id: str, body: Mapping[str, str], position: str) -> str:
    """A key that means nothing to whoever gets it; it holds the position and fits the header's 50 characters."""
    return f"{_tag(api_id, body)}{position}".encode().hex()


def position_in(asked: Asked, body: Mapping[str, str]) -> str | None:
    """Where the page asked for starts; None is the beginning."""
    if asked.headers.get("cont-yn", "") != "Y":
        return None
    try:
        text = bytes.fromhex(asked.headers.get("next-key", "")).decode()
    except ValueError:
        text = ""
    tag = _tag(asked.api_id, body)
    if not text.startswith(tag):
        raise input_error(1512, "Http header에 값이 설정되지 않았거나 읽을 수 없습니다. header=next-key")
    return text.removeprefix(tag)


def _tag(api_id: str, body: Mapping[str, str]) -> str:
    """What binds a key to its request: the same key with another body leads nowhere."""
    return f"{crc32(repr((api_id, sorted(body.items()))).encode()):08x}"
