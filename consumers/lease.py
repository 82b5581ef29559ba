"""A group's one active place goes from member to member; whether it is ours comes out.

It is held for a few seconds at a time. The surprise: whoever saw another hold it starts over, even where that one left
soon after, because what it had in hand was in two hands meanwhile.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from consumers.clock import monotonic_s


class Lease:
    """One member's claim to be the active one. Raises RedisError and OSError where the server does not answer."""

    def __init__(self, redis: Redis, key: str, name: str) -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self._key, self._holder = key, f"{name}.{secrets.token_hex(4)}"
        self._until_s = 0.0
        self._hold = redis.register_script((Path(__file__).parent / "hold.lua").read_text("utf-8"))
        self.lost = False
        """Whether another was seen to hold it since `take` was last well."""

    async def take(self, for_s: float) -> bool:
        """Take it or keep it, for so long from now; whether it is ours then."""
        asked_s = monotonic_s()
        holder = await self._hold(keys=[self._key], args=[self._holder, int(for_s * 1000)])
        self.lost = holder != self._holder
        self._until_s = 0.0 if self.lost else asked_s + for_s
        return not self.lost

    def sure(self) -> bool:
        """Whether nobody else can hold it by now."""
        return monotonic_s() < self._until_s

    async def left_s(self) -> float:
        """How long its holder may have it still."""
        return max(int(await self._redis.pttl(self._key)), 0) / 1000

    async def let_go(self) -> None:
        """Let another follow at once; what is not ours stays as it is."""
        self._until_s = 0.0
        await self._hold(keys=[self._key], args=[self._holder, 0])
