"""A target whose turn it is goes in; it is polled, and when it is asked again comes out, if it ever is.

Read `Turns.take` as a sentence, and `poll.py` before it. The surprise: a poll that fails is no error here but another
time. What is raised all the same is not one target's: a store that is not ours, or that went away while another error
was dealt with; and what nobody expected.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from poller.commit import iso
from poller.contract import dumps
from poller.errors import GiveUp, HeldBack, NotLeading, NotWhole, SkipTarget, TryLater
from poller.grid import backoff_s
from poller.lead import STORE_RETRY_S, Leadership
from poller.notes import Notes
from poller.poll import Desk, Watched
from poller.sector_list import SectorNews, sector_commit
from poller.store import Fenced, Stale, StoreDown, StoreFull
from poller.telling import Telling


@dataclass
class Stats:
    """What happened since the start, for summaries."""

    polls: int = 0
    failed: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    suspects: Counter[str] = field(default_factory=Counter)


class Turns:
    """One poll at a time and what follows from it. `stopped` says of whole reports why they are no longer asked."""

    def __init__(
        self, desk: Desk, lead: Leadership, telling: Telling, notes: Notes, news: SectorNews, rng: random.Random
    ) -> None:
        self.stats = Stats()
        self.stopped: dict[str, str] = {}
        self._desk, self._clock = desk, desk.clock
        self._lead, self._telling, self._notes, self._news, self._rng = lead, telling, notes, news, rng
        self._log = structlog.get_logger("poller")

    async def take(self, watched: Watched, due: datetime) -> datetime | None:
        """One poll and what follows from it: the next due time, or None to stop asking.

        Raises UnfitStore, and StoreError where the store is lost while another error is dealt with.
        """
        self.stats.polls += 1
        try:
            commit, _ = await watched.poll(due)
            await self._tell_sectors(watched)
        except TryLater as error:
            return await self._try_later(watched, error)
        except (SkipTarget, GiveUp) as error:
            await self._stop_asking(watched, error)
            return None
        except Stale as error:
            watched.known = None
            self._log.info("commit.stale", target=str(watched.target), expected=error.expected, stored=error.stored)
            return self._clock.now()
        except Fenced as error:
            watched.known = None
            return self._clock.now() if await self._lead.still_ours(watched.target.tr, error) else None
        except (StoreDown, StoreFull) as error:
            watched.known, watched.gap_reason = None, "store"
            self.stats.failed += 1
            self._telling.store_is_gone(error)
            return self.soon()
        self.stats.changes[watched.target.tr.code] += commit.changes
        self.stats.suspects.update(commit.suspects)
        self._telling.poll_is_good(watched)
        due = self.due(watched)
        self._telling.rests(watched.target, self._desk.timing.rest(watched.job, self._clock.now(), due), due)
        if commit.known.last_good and self._desk.timing.due(watched.job, commit.known.last_good) < due:
            watched.gap_reason = "store"  # the commit took past a tick: what was missed, the store is to blame for
        return due

    def due(self, watched: Watched) -> datetime:
        """The next time on the target's own grid."""
        return self._desk.timing.due(watched.job, self._clock.now())

    def soon(self) -> datetime:
        """When to look whether a store that is gone is back."""
        return self._clock.now() + timedelta(seconds=STORE_RETRY_S)

    async def _tell_sectors(self, watched: Watched) -> None:
        """Publish what differs in the list of sectors, if this target has to and its answer was compared just now."""
        sectors, known, now = self._news.untold(watched.target), watched.known, self._clock.now()
        if sectors is None or known is None or self._desk.timing.before_opening(watched.job, now):
            return
        session = self._desk.timing.timetable.session_at(now, watched.market)
        commit = sector_commit(watched.target, known, sectors, session, watched.epoch)
        if commit is not None:
            await watched.publish(commit)
            self._log.info("sectors.told", target=str(watched.target), version=commit.version)
        self._news.told(watched.target)

    async def _try_later(self, watched: Watched, error: TryLater) -> datetime:
        """Note the trouble, put a bad answer aside, and come back after a pause or on the grid."""
        self.stats.failed += 1
        if isinstance(error, NotLeading):  # the lease tells how it goes on, and the broker is not to blame
            watched.gap_reason = "store" if self._telling.store_trouble else "stopped"
            return self.soon()
        watched.gap_reason = "broker"
        if isinstance(error, HeldBack):  # told by whoever holds it back, and who knows until when
            pause_s = error.wait_s
        else:
            watched.failures += 1
            self._telling.poll_failed(watched, error)
            pause_s = max(error.wait_s, backoff_s(watched.failures, watched.job.every_s, self._rng))
        if isinstance(error, NotWhole):
            watched.put_aside(str(error), error.bodies)
        now = self._clock.now()
        again = now + timedelta(seconds=pause_s)
        due = again if again < self.due(watched) else self._desk.timing.due(watched.job, again)
        await self._notes.attempt(watched, error, due)
        return due

    async def _stop_asking(self, watched: Watched, error: SkipTarget | GiveUp) -> None:
        whole_tr = isinstance(error, GiveUp) and error.scope == "tr"
        if whole_tr:
            self.stopped[watched.target.tr.code] = dumps({"since": iso(self._clock.now()), "why": str(error)})
        what = watched.target.tr.code if whole_tr else str(watched.target)
        self._log.error("poll.stopped", what=what, error=str(error))
        await self._notes.attempt(watched, error, None)
