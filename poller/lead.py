"""The reports to be led go in; this poller leads them, alone, until it is told to stop or another does.

The surprises: a lease counts from when it was asked for, not from the answer, and ends somewhat early, since a request
sent in its last moment could arrive after it; and a lease that is still ours is no proof that nobody has led meanwhile:
only the token of each report tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from poller.poll import Desk
from poller.store import LEASE_S, Fenced, StoreDown, StoreFull, UnfitStore
from poller.telling import Telling
from poller.trs.base import TR

GIVE_UP_LEAD_S = 2.0
"""A server that does not answer must not hold up a stop; the lease runs out by itself."""

STORE_RETRY_S = 0.5
LEASE_MARGIN_S = 1.0
"""A request sent this shortly before the lease ends could arrive after it."""


class Leadership:
    """One reign after the other over `trs`, which may grow. `over` is set when a reign ends, and `on_end` is called."""

    def __init__(self, desk: Desk, trs: Sequence[TR], telling: Telling) -> None:
        self.trs = tuple(trs)
        self.over = asyncio.Event()
        self.fatal: UnfitStore | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._desk, self._store, self._clock, self._telling = desk, desk.store, desk.clock, telling
        self._until_s = 0.0
        self._log = structlog.get_logger("poller")

    def may_send(self) -> bool:
        """Whether a request that is sent now arrives while we lead."""
        return self._clock.monotonic_s() < self._until_s - LEASE_MARGIN_S

    # --- taking it

    async def take(self, stop: asyncio.Event) -> bool:
        """Stand by until we lead, which begins a reign. False where `stop` came first. Raises UnfitStore."""
        standby = False
        while not stop.is_set():
            asked_s, wait_s = self._clock.monotonic_s(), STORE_RETRY_S
            try:
                wait_s = await self._store.take_lead(self.trs, self._desk.now_ms())
                self._store_answered()
            except (StoreDown, StoreFull, Fenced) as error:
                self._telling.store_is_gone(error)
                await self._store.revive()
            if wait_s == 0:
                self._until_s, self.over = asked_s + LEASE_S, asyncio.Event()
                self._log.info("lead.taken", epochs=self._store.epochs)
                return True
            if not standby and not self._telling.store_trouble:
                standby = True
                self._log.info("lead.awaited", why="another poller leads; this one follows when it stops")
            await self._clock.wait(stop, min(wait_s, LEASE_S / 3))
        return False

    async def take_also(self, trs: Sequence[TR]) -> bool:
        """Begin an epoch in reports that are new in the plan; whether our token is high enough for that.

        Raises StoreDown or UnfitStore.
        """
        for tr in trs:
            try:
                await self._store.begin_epoch(tr, self._desk.now_ms())
            except Fenced:
                return False
        return True

    # --- keeping it

    async def keep(self) -> None:
        """Renew the lease until the reign is over, or has to be: another leads, or the lease ran out."""
        while not await self._clock.wait(self.over, STORE_RETRY_S if self._telling.store_trouble else LEASE_S / 3):
            asked_s = self._clock.monotonic_s()
            try:
                if not await self._store.renew_lead():
                    self._log.warning("lead.lost", why="another poller leads now")
                    return
                self._until_s = asked_s + LEASE_S
                self._store_answered()
            except (StoreDown, StoreFull) as error:
                self._telling.store_is_gone(error)
                await self._store.revive()
                if self._clock.monotonic_s() > self._until_s:
                    return
            except UnfitStore as error:
                self.end_for_good(error)

    def _store_answered(self) -> None:
        """A server that is full lets itself be led, and takes no polls."""
        if self._store.is_full:
            self._telling.store_is_gone(StoreFull())
        else:
            self._telling.store_is_back()

    async def still_ours(self, tr: TR, error: Fenced) -> bool:
        """The script refused us: another leads, the server is new or forgot us, or a task of ours was first.

        Whether we lead the report again, or still; if not, the reign is over. Raises the errors of the store.
        """
        if error.epoch in {0, self._store.epochs[tr.code]}:
            if not await self._store.renew_lead():
                self._log.warning("lead.lost", why="another poller leads now")
                self.end()
                return False
            try:
                await self._store.begin_epoch(tr, self._desk.now_ms())
            except Fenced:
                # the lease was free again and is ours, but another has led meanwhile, with a higher token
                self._log.warning("lead.lost", why="another poller has led meanwhile")
                await self._store.give_up_lead()
                self.end()
                return False
            self._log.info("epoch.begun", tr=tr.code, epoch=self._store.epochs[tr.code], why=str(error))
        return True

    # --- losing it

    def end(self) -> None:
        """Let everybody know that the reign is over; another may follow."""
        self.over.set()
        self.on_end()

    def end_for_good(self, error: UnfitStore) -> None:
        """Nothing helps but a person: no other reign follows."""
        self.fatal = self.fatal or error
        self.end()

    async def give_up(self) -> None:
        """Let another poller lead at once, if the server can be told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_LEAD_S):
                await self._store.give_up_lead()
