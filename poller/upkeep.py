"""Keeps the streams within retention and memory; where groups still need everything, polling gives way, not they.

A group that nobody reads any more keeps entries for a while only: `expiry.py` ends it, loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from poller.catalogue import CATALOGUE
from poller.contract import STREAMS
from poller.expiry import Expiry
from poller.grid import Job
from poller.store import Store
from poller.trs.base import TR

LOW_WATER = 0.9
"""Trim to, and resume below, this part of the ceiling, so that polling does not flutter at its edge."""


@dataclass(frozen=True)
class Upkeep:
    """How long streams are kept, and how large they may grow together."""

    retention_s: float
    max_bytes: int


class Trimmer:
    """Trims every stream, also of TRs that left the plan, and knows which jobs have to wait for memory."""

    def __init__(
        self, store: Store, trs: Sequence[TR], jobs: Sequence[Job], upkeep: Upkeep, expiry: Expiry | None = None
    ) -> None:
        """Without `expiry`, groups that nobody reads stay."""
        self._store, self._upkeep, self._expiry = store, upkeep, expiry
        self._paused_from: int | None = None
        self._log = structlog.get_logger("poller")
        self.plan(trs, jobs)

    def plan(self, trs: Sequence[TR], jobs: Sequence[Job]) -> None:
        """Go by this plan from now on."""
        self._trs = tuple({tr.code: tr for tr in (*CATALOGUE, *trs)}.values())
        self._priorities = sorted({job.priority for job in jobs})

    def pauses(self, job: Job) -> bool:
        """Whether the job waits until memory is free again."""
        return self._paused_from is not None and job.priority >= self._paused_from

    async def trim(self, now_ms: int) -> None:
        """Remove what retention and groups allow; over the ceiling more, and if that is not enough, pause.

        The highest priority number pauses first, one more with every call. Raises StoreDown.
        """
        await self._expire()
        keep_from_ms = now_ms - int(self._upkeep.retention_s * 1000)
        total = await self._trim_all(keep_from_ms, 1.0)
        if total > self._upkeep.max_bytes:
            total = await self._trim_all(keep_from_ms, LOW_WATER * self._upkeep.max_bytes / total)
        if total > self._upkeep.max_bytes:
            lower = [p for p in self._priorities if self._paused_from is None or p < self._paused_from]
            self._paused_from = lower[-1] if lower else self._priorities[0]
            nobody = self._expiry.abandoned if self._expiry else []
            self._log.warning(
                "polling.paused", from_priority=self._paused_from, stream_bytes=total, kept_for_nobody=nobody
            )
        elif self._paused_from is not None and total < LOW_WATER * self._upkeep.max_bytes:
            self._paused_from = None
            self._log.info("polling.resumed", stream_bytes=total)

    async def _expire(self) -> None:
        if self._expiry is not None:
            for tr in self._trs:
                for part in STREAMS:
                    await self._expiry.look(tr.code, part, self._upkeep.retention_s)

    async def _trim_all(self, keep_from_ms: int, share: float) -> int:
        """Trim every stream and return what they hold together, in bytes."""
        total = 0
        for tr in self._trs:
            for part in STREAMS:
                total += (await self._store.trim(tr, keep_from_ms, share, part=part))[1]
        return total
