"""An answer goes in; nothing, or an error that tells its catcher what to do next, comes out.

The surprise: HTTP 200 is used for nearly everything, and `return_code` 5 means both "slow down" and "never". What
counts is the number in brackets in `return_msg`, so one table here maps that number, and nobody else looks at a code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal


class BrokerError(Exception):
    """The broker gave no usable answer. Each child says what to do about it."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class TryLater(BrokerError):
    """Keep the snapshot and ask again, `wait_s` from now at the earliest (quota, time-out, 5xx, a page of HTML).

    `refused` tells that the broker counted too many requests, which our budget should have prevented; `everywhere`
    that the trouble is not this target's: the broker cannot be reached, or there is no token; `maintenance` that the
    answer looks like it: a page of HTML, a 5xx.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        wait_s: float = 0.0,
        refused: bool = False,
        everywhere: bool = False,
        maintenance: bool = False,
    ) -> None:
        super().__init__(message, code=code)
        self.wait_s, self.refused, self.everywhere, self.maintenance = wait_s, refused, everywhere, maintenance


class NotWhole(TryLater):
    """The answer lacks a part or cannot be read: keep the snapshot, and put the answer aside for a person."""

    bodies: tuple[bytes, ...] = ()


class NotAsked(TryLater):
    """The broker was not asked, for a reason of our own: it says nothing about the broker."""


class NotLeading(NotAsked):
    """Not asked, because the lease has run out: this process was paused, or the server is away."""


class HeldBack(NotAsked):
    """Not asked, because of trouble that somebody has noticed, told and keeps trying."""


class SignInAgain(BrokerError):
    """The token is dead: renew it and repeat the call once. If that fails and `fatal_twice`, a person has to act."""

    def __init__(self, message: str, *, code: int | None = None, fatal_twice: bool = False) -> None:
        super().__init__(message, code=code)
        self.fatal_twice = fatal_twice


class SkipTarget(BrokerError):
    """The target does not exist there: stop asking for it and say so once."""


class GiveUp(BrokerError):
    """Asking again cannot help. `scope` says for whom: one target's request, this TR, or everything with this key."""

    def __init__(
        self, message: str, *, code: int | None = None, scope: Literal["target", "tr", "key"] = "target"
    ) -> None:
        super().__init__(message, code=code)
        self.scope = scope


QUOTA_WAIT_S = 1.3
"""No refusal outlasted 1.3 s; the caps over all requests (1701, 1702) have unknown windows, so wait longer."""

FIRST_CODE = 1000
"""Numbers below are `return_code` alone: 20 means "no data", 3 and 5 say nothing by themselves."""

QUOTA = frozenset({1700, 1701, 1702})
RETRY: Mapping[int, float] = {1700: QUOTA_WAIT_S, 1701: 5.0, 1702: 5.0, 1999: 0.0, 8006: 1.0, 8009: 1.0}
NEW_TOKEN = frozenset({8003, 8005})
NEW_TOKEN_ONCE = frozenset({8010, 8031, 8103})
NO_SUCH_TARGET = frozenset({1901, 1902, 1903})
NO_SUCH_TR = frozenset({1504, 1505, 8104, 8200})
REMEDY: Mapping[int, str] = {
    8001: "check KIWOOM_APP_KEY and KIWOOM_SECRET_KEY, or what [[kiwoom.key]] names: the pair was refused",
    8002: "check KIWOOM_APP_KEY and KIWOOM_SECRET_KEY, or what [[kiwoom.key]] names: the pair was refused",
    8020: "set both KIWOOM_APP_KEY and KIWOOM_SECRET_KEY, or what [[kiwoom.key]] names",
    8030: 'the app key belongs to the other environment: set [kiwoom] environment to "real" or "mock" to match it',
    8031: 'the token belongs to the other environment: set [kiwoom] environment to "real" or "mock" to match the key',
    8040: "register this device in Kiwoom's portal",
    8050: "register this machine's public address in Kiwoom's portal",
    8010: "the token was issued from another address: use one address per app key",
}

MAINTENANCE_WORD = "점검"
"""What the pages say; seen in a message as well, it means the same."""

_CODE_IN_BRACKETS = re.compile(r"\[(\d{4})[:\]]")


def fine_code(return_code: object, return_msg: str) -> int:
    """The number that tells what happened; 0 is success.

    >>> fine_code(3, "[8005:Token이 유효하지 않습니다]"), fine_code("8005", ""), fine_code("0000", "정상")
    (8005, 8005, 0)
    """
    text = str(return_code).strip()
    if text.isdigit() and int(text) == 0:
        return 0
    match = _CODE_IN_BRACKETS.search(return_msg)
    return int(match[1]) if match else int(text) if text.isdigit() else -1


def raise_for_answer(status: int, body: Mapping[str, object] | None, *, asked: str, html: bool = False) -> None:
    """Return if the answer is a success, else raise what its catcher should do.

    `body` is None where the answer was not a JSON object, `html` tells that it was a page for people. `asked` names
    the call in the message.
    Raises TryLater, SignInAgain, SkipTarget or GiveUp.
    """
    if body is None or "return_code" not in body:
        if status == 401:
            raise SignInAgain(f"{asked}: HTTP 401")
        what = f"HTTP {status}" if status != 200 else "HTTP 200 without JSON (maintenance?)"
        refused = status == 429
        down = status >= 500 or (html and not refused)
        wait_s = QUOTA_WAIT_S if refused else 0.0
        raise TryLater(f"{asked}: {what}", wait_s=wait_s, refused=refused, maintenance=down)
    message = " ".join(str(body.get("return_msg") or "").split())
    code = fine_code(body["return_code"], message)
    if code == 0 and status == 200:
        return
    _raise_for_code(code, status, f"{asked}: {message or 'no message'} (HTTP {status}, code {code})")


def _raise_for_code(code: int, status: int, told: str) -> None:
    told = f"{told}; {REMEDY[code]}" if code in REMEDY else told
    if code in NEW_TOKEN or code in NEW_TOKEN_ONCE or (status == 401 and code < FIRST_CODE):
        raise SignInAgain(told, code=code, fatal_twice=code in NEW_TOKEN_ONCE)
    if code in RETRY or code < FIRST_CODE:  # without a number there is nothing final in it, whatever the status
        refused = code in QUOTA or (status == 429 and code < FIRST_CODE)
        wait_s = RETRY.get(code, QUOTA_WAIT_S if refused else 0.0)
        down = status >= 500 or MAINTENANCE_WORD in told
        raise TryLater(told, code=code, wait_s=wait_s, refused=refused, maintenance=down)
    if code in NO_SUCH_TARGET:
        raise SkipTarget(told, code=code)
    if code in NO_SUCH_TR:
        raise GiveUp(told, code=code, scope="tr")
    raise GiveUp(told, code=code, scope="key" if code >= 8000 else "target")
