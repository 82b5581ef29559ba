"""An app key goes in; one live token for all its processes comes out, and a new one when that has died.

The surprise: issuing a token kills the key's former one, so every process has to take the same, from Redis, and a new
one is issued only by whoever finds the stored token to be the one that failed: at most one per death, and one more for
each issuer that crashes between issuing and writing.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import cast

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError

from poller.clock import Clock, pause
from poller.contract import Keys
from poller.errors import GiveUp, NotAsked, TryLater
from poller.session import KST

RENEW_EARLY = timedelta(minutes=10)
COOL_DOWN_S = 60.0
"""Between two tokens issued because the one before was refused: a broken key would otherwise issue in a loop."""

USUAL_LIFE = timedelta(hours=12)
"""Half of what was seen: for an answer that does not say when its token ends."""

ISSUE_TRIES = 3
"""8006 and 8009 pass by themselves or not at all."""

LOCK_S = 15.0
ISSUE_S = 12.0
"""Less than the lock lives: whoever takes longer gives up before another may begin."""

LET_GO = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""
"""A lock that ran out may be another's by now."""

SWAP = """
local stored = redis.call('HGET', KEYS[1], 'token')
if stored and stored ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'ends', ARGV[3], 'refused_at', ARGV[4])
return redis.call('EXPIRE', KEYS[1], ARGV[5])
"""
"""A token is stored only in the place of the one that failed, or where there is none."""


@dataclass(frozen=True)
class Token:
    """One token, when it ends, and when a token of this key was last issued because another had been refused."""

    text: SecretStr
    ends: datetime
    refused_at: datetime | None = None


def token_of(body: dict[str, object], now: datetime) -> Token:
    """The token in the broker's answer; `expires_dt` is Korean time. Raises TryLater where there is none."""
    text, ends = str(body.get("token") or ""), str(body.get("expires_dt") or "")
    if not text:
        raise TryLater("the token call succeeded without a token")
    try:
        until = datetime.strptime(ends, "%Y%m%d%H%M%S").replace(tzinfo=KST)
    except ValueError:
        until = now + USUAL_LIFE
    return Token(SecretStr(text), until)


class Tokens:
    """The token of one app key. `issue` asks the broker for a new one."""

    def __init__(
        self, redis: Redis, prefix: str, app_key: SecretStr, issue: Callable[[], Awaitable[Token]], clock: Clock
    ) -> None:
        hashed = hashlib.sha256(app_key.get_secret_value().encode()).hexdigest()[:16]
        self._key = Keys(prefix).token(hashed)
        self._redis, self._issue, self._clock = redis, issue, clock
        self._let_go, self._swap = redis.register_script(LET_GO), redis.register_script(SWAP)
        self._lock = asyncio.Lock()
        self._token: Token | None = None
        self._unwritten: Token | None = None
        self._issue_failures = 0

    async def current(self) -> SecretStr:
        """The token to send: the one everybody uses, renewed ten minutes before it ends.

        Raises TryLater or GiveUp.
        """
        token = self._token
        if token is None or self._ends_soon(token):
            token = await self._replace(token)
        return token.text

    async def renew(self, failed: SecretStr) -> SecretStr:
        """The token after `failed` was refused: another process's, if there is one by now, else a new one.

        Raises TryLater or GiveUp.
        """
        token = self._token
        if token is None or token.text == failed:
            token = await self._replace(token)
        return token.text

    async def without_issuing(self) -> SecretStr | None:
        """The token that everybody uses, if there is one that has not ended. Raises TryLater."""
        try:
            token = self._token or await self._stored()
        except (RedisError, OSError) as error:
            raise _unshared(error) from error
        return token.text if token is not None and not self._ends_soon(token) else None

    def _ends_soon(self, token: Token) -> bool:
        return self._clock.now() > token.ends - RENEW_EARLY

    async def _replace(self, failed: Token | None) -> Token:
        async with self._lock:
            if self._token is not None and self._token is not failed and not self._ends_soon(self._token):
                return self._token  # another task of this process was faster
            try:
                self._token = await self._shared(failed)
            except (RedisError, OSError) as error:
                raise _unshared(error) from error
            self._unwritten = None
            return self._token

    async def _shared(self, failed: Token | None) -> Token:
        deadline_s = self._clock.monotonic_s() + LOCK_S
        while self._clock.monotonic_s() < deadline_s:
            stored = await self._stored()
            if stored is not None and self._is_good(stored, failed):
                return stored
            async with self._locked() as mine:
                if mine:
                    stored = await self._stored()  # somebody may have issued one before we had the lock
                    if stored is not None and self._is_good(stored, failed):
                        return stored
                    return await self._issue_new(stored)
            await pause(0.2)  # another process is issuing one
        raise NotAsked("another process has been issuing a token for too long", everywhere=True)

    def _is_good(self, stored: Token, failed: Token | None) -> bool:
        return not self._ends_soon(stored) and (failed is None or stored.text != failed.text)

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[bool]:
        """Whether the right to issue is ours, which ends here, and in any case after `LOCK_S`."""
        nonce, key = secrets.token_hex(8), f"{self._key}:lock"
        mine = bool(await self._redis.set(key, nonce, nx=True, px=int(LOCK_S * 1000)))
        try:
            yield mine
        finally:
            if mine:
                with suppress(RedisError, OSError):  # it runs out by itself
                    await self._let_go(keys=[key], args=[nonce])

    async def _stored(self) -> Token | None:
        fields = cast("dict[str, str]", await self._redis.hgetall(self._key))
        if not fields:
            return None
        refused_at = datetime.fromisoformat(fields["refused_at"]) if fields.get("refused_at") else None
        return Token(SecretStr(fields["token"]), datetime.fromisoformat(fields["ends"]), refused_at)

    async def _issue_new(self, stored: Token | None) -> Token:
        now, refused_at = self._clock.now(), stored.refused_at if stored else None
        if stored and not self._ends_soon(stored):  # it was refused, else it would be in use
            if refused_at and now - refused_at < timedelta(seconds=COOL_DOWN_S):
                wait_s = COOL_DOWN_S - (now - refused_at).total_seconds()
                raise NotAsked("a fresh token was refused; the next is issued later", wait_s=wait_s, everywhere=True)
            refused_at = now
        if self._unwritten is None or self._ends_soon(self._unwritten):
            self._unwritten = replace(await self._issued(), refused_at=refused_at)
        token = self._unwritten  # kept until it is written, else a server lost just now would cost a second one
        return token if await self._write(token, stored) else await self._stored() or token

    async def _write(self, token: Token, stored: Token | None) -> bool:
        """Put a token in the place of the stored one; False where that is another one by now."""
        life_s = (token.ends - self._clock.now()).total_seconds() + COOL_DOWN_S
        failed = stored.text.get_secret_value() if stored else ""
        refused_at = token.refused_at.isoformat() if token.refused_at else ""
        texts = [failed, token.text.get_secret_value(), token.ends.isoformat(), refused_at]
        arguments = [*texts, str(max(1, int(life_s)))]
        return bool(await self._swap(keys=[self._key], args=arguments))

    async def _issued(self) -> Token:
        try:
            async with asyncio.timeout(ISSUE_S):
                token = await self._issue()
        except TimeoutError as error:
            raise TryLater(f"no token was issued within {ISSUE_S:g}s", everywhere=True) from error
        except TryLater as error:
            self._issue_failures += 1 if error.code in {8006, 8009} else 0
            if self._issue_failures >= ISSUE_TRIES:
                raise GiveUp(str(error), code=error.code, scope="key") from error
            raise
        self._issue_failures = 0
        return token


def _unshared(error: Exception) -> NotAsked:
    return NotAsked(f"the token cannot be shared, no server answers: {error}", everywhere=True)
