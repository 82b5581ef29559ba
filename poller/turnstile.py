"""Requests of several processes go in; one at a time comes out, and the next only when the server has forgotten it.

A poller keeps its own budget in memory, and leaves one request a second to people (`once`, `check --online`). Those
share that one here, through Redis; so does everybody on the mock server, which counts all calls of a key together.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from poller.clock import pause
from poller.errors import NotAsked

IN_FLIGHT_S = 15.0
"""Longer than any request takes: a process that died with the slot gives it back so much later."""

LOOK_AGAIN_S = 0.25

LEAVE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""
"""Only who holds the slot may shorten its life: it may have passed to another after too long a request."""


class Turnstile:
    """The one slot under a key; it is free again `hold_s` after the answer."""

    def __init__(self, redis: Redis, key: str, hold_s: float) -> None:
        self._redis, self._key, self._hold_ms = redis, key, int(hold_s * 1000)
        self._leave = redis.register_script(LEAVE)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for the slot; inside, one request may be sent. Raises NotAsked where no server answers."""
        nonce = secrets.token_hex(8)
        try:
            while not await self._redis.set(self._key, nonce, nx=True, px=int(IN_FLIGHT_S * 1000)):
                left_ms = await self._redis.pttl(self._key)
                await pause(min(LOOK_AGAIN_S, max(0.005, left_ms / 1000)))
        except (RedisError, OSError) as error:
            raise NotAsked(f"the request slot cannot be shared, no server answers: {error}", everywhere=True) from error
        try:
            yield
        finally:
            with suppress(RedisError, OSError):  # the slot comes back by itself
                await self._leave(keys=[self._key], args=[nonce, self._hold_ms])
