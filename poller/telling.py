"""Trouble and rest go in as often as they are met; one line in the log when they begin, one when they end, come out.

Whose trouble it is also decides whom a gap is blamed on. The surprise: while the store is gone, it is to blame for what
every target misses, not only for the poll that could not be written down.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime

import structlog

from poller.commit import iso
from poller.errors import TryLater
from poller.poll import Watched
from poller.store import StoreError
from poller.trs.base import Target


class Telling:
    """What a poller tells a person of its targets, of which `watched` is a live view, and of broker and store."""

    def __init__(self, watched: Collection[Watched]) -> None:
        self.store_trouble = False
        self._watched = watched
        self._broker_trouble = False
        self._resting: dict[tuple[str, str], date] = {}
        self._log = structlog.get_logger("poller")

    def poll_failed(self, watched: Watched, error: TryLater) -> None:
        """A poll brought no answer: the trouble of its target, or everybody's."""
        if error.everywhere and not self._broker_trouble:
            self._broker_trouble = True
            self._log.warning("broker.lost", error=str(error))
        elif not error.everywhere and watched.trouble is None:
            self._log.warning("poll.failed", target=str(watched.target), error=str(error))
        watched.trouble = None if error.everywhere else str(error)

    def poll_is_good(self, watched: Watched) -> None:
        """A poll was written down: the trouble of its target is over, and the broker's."""
        watched.failures, watched.gap_reason = 0, "broker"  # from now on we are here: what is missed is slow answers
        if self._broker_trouble:
            self._broker_trouble = False
            self._log.info("broker.recovered")
        if watched.trouble is not None:
            watched.trouble = None
            self._log.info("poll.recovered", target=str(watched.target))

    def rests(self, target: Target, until: date | None, due: datetime) -> None:
        """Say once per report when it is asked again and why, if that is not simply the next tick.

        `until` is the day of `due`, None where that is simply the next tick.
        """
        code, moves = target.tr.code, target.moves
        if until is None or self._resting.get((code, moves.label)) == until:
            return
        self._resting[code, moves.label] = until
        why = f"on trading days it moves {moves.label} (Korean time)"
        self._log.info("polling.rests", tr=code, next_due=iso(due), why=why)

    def store_is_gone(self, error: StoreError) -> None:
        """The store did not do what was asked."""
        if not self.store_trouble:
            self.store_trouble = True
            self._log.warning("store.lost", error=str(error))
        for watched in self._watched:
            watched.gap_reason = "store"

    def store_is_back(self) -> None:
        """The store did what was asked."""
        if self.store_trouble:
            self.store_trouble = False
            self._log.info("store.recovered")
