"""What a member has in hand goes in; that the others leave it alone, or may take it at once, comes out.

Members that share a group take one that was silent for `MIN_IDLE_MS` for dead. So while a handler is at work, the idle
time of what it has is begun anew again and again, and when a member leaves, all it owns is made as idle as the dead's.
Neither counts as handing out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from redis.asyncio import Redis

from consumers.clock import monotonic_s

SLOW_S = 60.0
"""How often a handler that does not end is named."""

PAGE = 500


class Hand:
    """What one consumer of a group on one stream has in a handler. Raises RedisError and OSError of the server."""

    def __init__(self, redis: Redis, tr: str, stream: str, group: str, name: str) -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self._stream, self._group, self._name = stream, group, name
        self._ids: Sequence[str] = ()
        self._since_s = self._name_at_s = 0.0
        self._log = structlog.get_logger("group").bind(tr=tr, group=group)

    @contextmanager
    def holding(self, ids: Sequence[str]) -> Iterator[None]:
        """These entries are in a handler."""
        self._ids, self._since_s = ids, monotonic_s()
        self._name_at_s = self._since_s + SLOW_S
        try:
            yield
        finally:
            self._ids = ()

    def name_if_slow(self) -> None:
        """Say which handler does not end, once a minute: nobody ends it."""
        now_s = monotonic_s()
        if self._ids and now_s >= self._name_at_s:
            self._name_at_s = now_s + SLOW_S
            took_s = round(now_s - self._since_s)
            self._log.warning("handler.slow", first=self._ids[0], entries=len(self._ids), since_s=took_s)

    async def keep(self) -> None:
        """Be heard of: begin the idle time of what is in hand anew, unless another has taken it."""
        if self._ids:
            await self._claim(await self._owned(self._ids[0], self._ids[-1]), idle_ms=0)

    async def give_back(self, idle_ms: int) -> None:
        """Let others take all that this consumer owns, as if it had been idle for so long."""
        after = "-"
        while owned := await self._owned(after, "+"):
            await self._claim(owned, idle_ms=idle_ms)
            after = f"({owned[-1]}"

    async def _owned(self, first: str, last: str) -> list[str]:
        found = await self._redis.xpending_range(self._stream, self._group, first, last, PAGE, self._name)
        return [one["message_id"] for one in found]

    async def _claim(self, ids: list[str], *, idle_ms: int) -> None:
        if ids:
            await self._redis.xclaim(self._stream, self._group, self._name, 0, ids, idle=idle_ms, justid=True)
