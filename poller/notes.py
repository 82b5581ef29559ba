"""Failed attempts and the state of keys and reports go in; fields that `status` reads come out, where they changed.

The surprise: a note that cannot be written is dropped with a line for debugging. Whoever needs the store tells that it
is gone, and no poll waits for a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import structlog

from poller.clock import Clock
from poller.commit import iso
from poller.contract import EVERYTHING
from poller.errors import BrokerError
from poller.keyring import KeyRing
from poller.poll import Watched
from poller.store import Fenced, Store, StoreDown, StoreFull
from poller.trs.base import TR


class Notes:
    """What other processes are told of this one's polling."""

    def __init__(self, store: Store, clock: Clock, ring: KeyRing) -> None:
        self._store, self._clock, self._ring = store, clock, ring
        self._noted: dict[str, dict[str, str]] = {}
        self._log = structlog.get_logger("poller")

    def forget(self) -> None:
        """Another may have written meanwhile: write everything anew at the next opportunity."""
        self._noted = {}

    async def attempt(self, watched: Watched, error: BrokerError, due: datetime | None) -> None:
        """Write a failed attempt into the state hash; `due` is the next, None where there is none."""
        now = self._clock.now()
        since = watched.overdue_since(now)
        fields = {
            "last_attempt": iso(now),
            "last_error": str(error),
            "next_due": iso(due) if due else "",
            "gap": iso(since) if since else "",
        }
        try:
            await self._store.note(watched.target, fields)
        except (StoreDown, StoreFull, Fenced) as trouble:  # told by those who need the store, this is a note
            self._log.debug("note.failed", target=str(watched.target), error=str(trouble))

    async def states(self, trs: Iterable[TR], stopped: Mapping[str, str]) -> None:
        """Write down how keys and reports fare where that has changed; `stopped` has a report's reason by its code."""
        try:
            for tr in trs:
                states = {"breaker": self._ring.breakers(tr.code), "stopped": stopped.get(tr.code, "")}
                if self._noted.get(tr.code) != states:
                    self._noted[tr.code] = states
                    await self._store.note_tr(tr, states)
            keys = self._ring.states()
            if self._noted.get(EVERYTHING) != keys:
                self._noted[EVERYTHING] = keys
                await self._store.note_keys(keys)
        except (StoreDown, StoreFull, Fenced) as error:
            self._noted = {}
            self._log.debug("note.failed", error=str(error))
