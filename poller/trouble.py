"""Failures and moments go in; who may ask now, and until when the others wait, come out.

Pure: time and chance are arguments. The surprise: whatever is shut (a report of one key, a key, the whole broker in
maintenance) is tried by one request at a time, so a broker that comes back is not met by everybody at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from poller.errors import BrokerError, NotWhole, TryLater
from poller.grid import backoff_s
from poller.session import KST

OPENS_AFTER = 5
"""So many failures in a row are a report's trouble, no longer one request's."""

MAINTENANCE_AFTER = 3
"""Pages of HTML or 5xx without an answer between: one may be a proxy's hiccup, and so may two."""

MAINTENANCE_PROBE_S = 60.0
HELD_PROBE_S = 600.0
"""A refused key needs a person, who needs minutes; asking more often only shows up in the broker's logs."""

SHORTEST_WAIT_S = 0.001
"""Moments are microseconds: who waited for less than that would come back at the same moment, again and again."""

UNEXPECTED = 1999
"""The broker's own word for a server error: it answers, and is not well."""


@dataclass(frozen=True)
class Window:
    """A stretch of every day, Korean time, in which the broker is known to be in maintenance."""

    begins: time
    ends: time

    def left_s(self, now: datetime) -> float:
        """How long it still lasts, in seconds; 0 outside of it. It may lead over midnight.

        >>> Window(time(23, 50), time(0, 10)).left_s(datetime(2026, 11, 23, 0, 4, tzinfo=KST))
        360.0
        """
        here = now.astimezone(KST)
        for days in (1, 0):
            began = datetime.combine(here.date() - timedelta(days=days), self.begins, KST)
            ends = datetime.combine(began.date(), self.ends, KST) + timedelta(days=self.ends <= self.begins)
            if began <= here < ends:
                return (ends - here).total_seconds()
        return 0.0

    def __str__(self) -> str:
        return f"{self.begins:%H:%M}-{self.ends:%H:%M}"


def answered(error: BrokerError) -> bool:
    """Whether the broker's API itself spoke, even if only to refuse: then it is not in maintenance."""
    if not isinstance(error, TryLater) or isinstance(error, NotWhole):
        return True
    return not error.maintenance and error.code is not None and error.code >= 1000 and error.code != UNEXPECTED


class Latch:
    """Open: everybody may ask. Shut: one probe at a time, and none before `probe_at_s`."""

    def __init__(self) -> None:
        self.since: datetime | None = None
        self.why = ""
        self.probe_at_s = 0.0
        self.probing = False

    @property
    def is_shut(self) -> bool:
        """Whether only a probe may pass."""
        return self.since is not None

    def shut(self, now: datetime, why: str, probe_at_s: float) -> bool:
        """Let nobody pass until then. Whether it was open."""
        was_open = not self.is_shut
        if was_open:
            self.since, self.why, self.probe_at_s = now, why, probe_at_s
        return was_open

    def open(self) -> bool:
        """Let everybody pass. Whether it was shut. A probe in flight still counts as one until it is over."""
        was_shut, self.since, self.why = self.is_shut, None, ""
        return was_shut

    def wait_s(self, now_s: float) -> float:
        """How long to wait before asking, 0 for now; infinite while a probe is in flight."""
        if not self.is_shut:
            return 0.0
        left_s = self.probe_at_s - now_s
        return math.inf if self.probing else left_s if left_s >= SHORTEST_WAIT_S else 0.0

    def enter(self) -> bool:
        """Somebody asks who need not wait. Whether that is the probe, who has to say when it is `over`."""
        if self.is_shut:
            self.probing = True
        return self.is_shut

    def over(self) -> None:
        """The probe has ended, whatever came of it."""
        self.probing = False


class Breaker:
    """One report under one key, whose shortest interval is `every_s`."""

    def __init__(self, every_s: float, rng: random.Random) -> None:
        self.latch = Latch()
        self.every_s, self._rng = every_s, rng
        self._failures = 0

    def failed(self, now: datetime, now_s: float, why: str, *, hint_s: float = 0.0, probe: bool = False) -> bool:
        """One more failure in a row; `hint_s` is the pause that the server asked for. Whether it has just opened.

        What was sent before it opened says nothing new.
        """
        if self.latch.is_shut and not probe:
            return False
        self._failures += 1
        pause_s = max(hint_s, backoff_s(self._failures, self.every_s, self._rng))
        if self.latch.is_shut:
            self.latch.probe_at_s = now_s + pause_s
            return False
        return self._failures >= OPENS_AFTER and self.latch.shut(now, why, now_s + pause_s)

    def succeeded(self) -> bool:
        """The report was served. Whether that has just closed the breaker."""
        self._failures = 0
        return self.latch.open()

    def try_now(self, now_s: float) -> None:
        """What stood in the way is gone: the next probe need not wait."""
        self.latch.probe_at_s = min(self.latch.probe_at_s, now_s)


class Maintenance:
    """The whole broker, as its answers to the reports of a plan show it."""

    def __init__(self) -> None:
        self.latch = Latch()
        self._seen = 0
        self._trs = set[str]()

    def suspected(self, tr: str, planned: Collection[str], now: datetime, now_s: float, why: str) -> bool:
        """A report was answered with a page of HTML or a 5xx. Whether that makes it maintenance just now."""
        self._seen += 1
        self._trs.add(tr)
        if self._seen < MAINTENANCE_AFTER or len(self._trs) < min(2, len(planned)):
            return False
        return self.latch.shut(now, why, now_s + MAINTENANCE_PROBE_S)

    def answered(self) -> bool:
        """The broker's API spoke. Whether that has just ended the maintenance."""
        self._seen = 0
        self._trs.clear()
        return self.latch.open()
