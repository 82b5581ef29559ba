"""App keys go in; tokens come out, and whether a token is still good.

No clock is read, `now` is an argument. The surprise: a key has one token. Issuing another kills the first at once, so
two processes that each sign in on their own keep throwing each other out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from poller.session import KST
from poller.simulator.answers import SUCCESS
from poller.simulator.checks import Refusal

TOKEN_LIVES = timedelta(hours=24)


class Tokens:
    """All live tokens. `keys` is the only accepted pair, None accepts every pair; `text` makes up a token.

    Two servers must not make up the same texts: a client would take a token of the last one for a fresh one.
    """

    def __init__(self, keys: tuple[str, str] | None, text: Callable[[], str]) -> None:
        self._keys, self._text = keys, text
        self._live: dict[str, tuple[str, datetime]] = {}
        self.issued = 0

    def issue(self, body: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        """The answer to `POST /oauth2/token`."""
        grant_type = body.get("grant_type")
        if not grant_type:
            raise _refused(8011, "grant_type이 들어오지 않았습니다", return_code=2)
        if grant_type != "client_credentials":
            raise _refused(8012, "grant_type의 값이 맞지 않습니다", return_code=2)
        app_key = self._verified(body)
        self._live = {token: owner for token, owner in self._live.items() if owner[0] != app_key}
        token, expires = self._text(), now + TOKEN_LIVES
        self._live[token] = (app_key, expires)
        self.issued += 1
        expires_dt = expires.astimezone(KST).strftime("%Y%m%d%H%M%S")
        return {"expires_dt": expires_dt, "token_type": "bearer", "token": token, **SUCCESS}

    def revoke(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to `POST /oauth2/revoke`."""
        app_key = self._verified(body)
        token = body.get("token")
        if not token:
            raise _refused(8016, "Token이 입력되지 않았습니다", return_code=2)
        if self._live.get(token, ("",))[0] != app_key:
            raise _refused(8015, "Token 폐기에 실패했습니다", return_code=3)
        self.kill(token)
        return dict(SUCCESS)

    def owner(self, token: str, now: datetime) -> str | None:
        """The app key a token was issued to, or None if it is dead."""
        app_key, expires = self._live.get(token, (None, now))
        return app_key if now < expires else None

    def kill(self, token: str) -> None:
        """End a token before its time."""
        self._live.pop(token, None)

    def _verified(self, body: Mapping[str, Any]) -> str:
        app_key, secret_key = body.get("appkey"), body.get("secretkey")
        if not (isinstance(app_key, str) and isinstance(secret_key, str) and app_key and secret_key):
            raise _refused(8020, "입력파라미터로 appkey 또는 secretkey가 들어오지 않았습니다", return_code=2)
        if self._keys not in (None, (app_key, secret_key)):
            raise _refused(8001, "App Key와 Secret Key 검증에 실패했습니다", return_code=3)
        return app_key


def _refused(code: int, detail: str, *, return_code: int) -> Refusal:
    return Refusal(f"인증에 실패했습니다[{code}:{detail}]", return_code=return_code)
