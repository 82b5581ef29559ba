"""What came of requests goes in; what is shut comes out: one report under a key, a key, or the whole broker.

Each is said once when it begins and once when it ends, in the log and in the words that `status` shows. The surprise: a
request may be the probe of several of them at once, and what came of it opens or shuts each on its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from poller.clock import Clock
from poller.commit import iso
from poller.contract import EVERYTHING, dumps
from poller.errors import REMEDY, GiveUp, HeldBack, TryLater
from poller.grid import Job
from poller.trouble import HELD_PROBE_S, MAINTENANCE_PROBE_S, Breaker, Latch, Maintenance, Window
from poller.trs.base import Target

USUAL_EVERY_S = 60.0
"""For a target that stands in no plan."""

LOOK_AT_THE_KEY = "look at this app key in Kiwoom's portal"


@dataclass(frozen=True)
class Leave:
    """Leave to ask for a report with a key, and what that is the probe of."""

    name: str
    code: str
    breaker: Breaker
    probes: tuple[Latch, ...]


class Outages:
    """What is shut for the keys of these names. `windows` are the daily ones in which nothing is asked.

    Where it is not `patient` the windows are kept as well, but nothing is said of them.
    """

    def __init__(
        self, key_names: Iterable[str], clock: Clock, windows: Sequence[Window], rng: random.Random, *, patient: bool
    ) -> None:
        self._clock, self._windows, self._rng, self._patient = clock, tuple(windows), rng, patient
        self._held = {name: Latch() for name in key_names}
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._maintenance = Maintenance()
        self._window: Window | None = None
        self._window_told = ""
        self._well_since = dict.fromkeys([*self._held, EVERYTHING], clock.now())
        self._every_s: dict[str, float] = {}
        self._log = structlog.get_logger("poller")

    def plan(self, jobs: Iterable[Job]) -> None:
        """Go by the reports of this plan, and their shortest intervals, from now on."""
        self._every_s = {}
        for job in jobs:
            code = job.target.tr.code
            self._every_s[code] = min(job.every_s, self._every_s.get(code, math.inf))
        for (_, code), breaker in self._breakers.items():
            breaker.every_s = self._every_s.get(code, breaker.every_s)

    # --- who may ask

    @property
    def in_maintenance(self) -> bool:
        """Whether the broker was found to be in maintenance."""
        return self._maintenance.latch.is_shut

    @property
    def working(self) -> list[str]:
        """The names of the keys that are not held."""
        return [name for name, latch in self._held.items() if not latch.is_shut]

    def key_wait_s(self, name: str, now_s: float) -> float:
        """How long a key is to be left alone, in seconds; infinite while a probe shows whether it is back."""
        return self._held[name].wait_s(now_s)

    def leave(self, name: str, target: Target, now_s: float) -> Leave | None:
        """Leave to ask with a key; None while a probe in flight will show. Raises HeldBack where that takes longer."""
        code = target.tr.code
        breaker = self._breaker(name, code)
        latches = {
            "the broker is in maintenance": self._maintenance.latch,
            f"no app key works, {name} is refused": self._held[name],
            f"{code} failed {name}'s last requests": breaker.latch,
        }
        for told, latch in latches.items():
            wait_s = latch.wait_s(now_s)
            if wait_s == math.inf:
                return None
            if wait_s > 0:
                everywhere = latch is not breaker.latch
                raise HeldBack(f"{target}: {told}: {latch.why}", wait_s=wait_s, everywhere=everywhere)
        return Leave(name, code, breaker, tuple(latch for latch in latches.values() if latch.enter()))

    def tries_key(self, leave: Leave) -> bool:
        """Whether a request is to show if a key that was refused works again."""
        return self._held[leave.name] in leave.probes

    def try_soon(self, name: str) -> None:
        """Something may have changed about a key: if it is held, it need not wait for its next probe."""
        self._held[name].probe_at_s = min(self._held[name].probe_at_s, self._clock.monotonic_s())

    def _breaker(self, name: str, code: str) -> Breaker:
        if (name, code) not in self._breakers:
            self._breakers[name, code] = Breaker(self._every_s.get(code, USUAL_EVERY_S), self._rng)
        return self._breakers[name, code]

    def check_window(self) -> None:
        """Raises HeldBack in a daily window."""
        now = self._clock.now()
        window = next((window for window in self._windows if window.left_s(now) > 0), None)
        if self._patient and window != self._window:
            if self._window is not None:
                self._well_since[EVERYTHING] = now
                self._log.info("maintenance.ended", window=str(self._window))
            if window is not None:
                why, until = f"the daily window {window} (Korean time)", now + timedelta(seconds=window.left_s(now))
                told = {"state": "maintenance", "since": iso(now), "why": why, "until": iso(until)}
                self._window_told = dumps(told)
                self._log.info("maintenance.began", why=why)
            self._window = window
        if window is not None:
            text = f"nothing is asked during the maintenance of {window} (Korean time, [kiwoom] maintenance)"
            raise HeldBack(text, wait_s=window.left_s(now), everywhere=True)

    # --- what came of it

    def succeeded(self, leave: Leave) -> bool:
        """A whole answer came. Whether a key that was held is back with it."""
        self.broker_spoke()
        self.report_is_well(leave)
        if self.tries_key(leave) and self._held[leave.name].open():
            self._well_since[leave.name] = self._clock.now()
            self._log.info("key.back", key=leave.name)
            return True
        return False

    def broker_spoke(self) -> None:
        """The broker's API itself gave an answer, even if only to refuse: it is not in maintenance."""
        if self._maintenance.answered():
            self._well_since[EVERYTHING] = self._clock.now()
            self._log.info("maintenance.ended")
            for breaker in self._breakers.values():
                breaker.try_now(self._clock.monotonic_s())

    def report_is_well(self, leave: Leave) -> None:
        """The broker served the report under this key, or refused it for a reason that is not the report's trouble."""
        if leave.breaker.succeeded():
            self._log.info("breaker.closed", tr=leave.code, key=leave.name)

    def key_refused(self, leave: Leave, error: GiveUp) -> bool:
        """A key was refused: leave it alone. Whether it worked until now."""
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        if not self._held[leave.name].shut(now, str(error), now_s + HELD_PROBE_S):
            return False
        remedy = REMEDY.get(error.code or 0, LOOK_AT_THE_KEY)
        self._log.error("key.held", key=leave.name, error=str(error), remedy=remedy, tried_again_s=HELD_PROBE_S)
        return True

    def failed(self, leave: Leave, error: TryLater) -> None:
        """A request failed by the broker's fault: one of its report, or a sign that all of it is in maintenance."""
        now, now_s, why = self._clock.now(), self._clock.monotonic_s(), str(error)
        if error.maintenance and self._maintenance.suspected(leave.code, self._every_s, now, now_s, why):
            self._log.warning("maintenance.began", why=why)
        if self._maintenance.latch.is_shut:
            return  # no report's own trouble
        probe = leave.breaker.latch in leave.probes
        if leave.breaker.failed(now, now_s, why, hint_s=error.wait_s, probe=probe):
            self._log.warning("breaker.opened", tr=leave.code, key=leave.name, why=why)

    def over(self, leave: Leave, *, asked: bool) -> None:
        """A request is over: a probe without success is not repeated soon, but one that never left is."""
        now_s = self._clock.monotonic_s()
        for latch in leave.probes:
            latch.over()
            if asked and latch.is_shut and latch is not leave.breaker.latch:
                held = latch is self._held[leave.name]
                latch.probe_at_s = now_s + (HELD_PROBE_S if held else MAINTENANCE_PROBE_S)

    # --- for `status`

    def states(self) -> dict[str, str]:
        """How each key is, and the broker as a whole under `*`: a name of `P:keys` -> its JSON. Never a key itself."""
        found = {}
        for name, latch in self._held.items():
            found[name] = self._told(name, "held" if latch.is_shut else "live", latch)
        found[EVERYTHING] = self._told(EVERYTHING, "live", self._maintenance.latch)
        if self._maintenance.latch.is_shut:
            found[EVERYTHING] = self._told(EVERYTHING, "maintenance", self._maintenance.latch)
        elif self._window is not None:
            found[EVERYTHING] = self._window_told
        return found

    def _told(self, name: str, state: str, latch: Latch) -> str:
        since: datetime = latch.since or self._well_since[name]
        return dumps({"state": state, "since": iso(since), "why": latch.why})

    def breakers(self, code: str) -> str:
        """The open breakers of a TR as JSON, empty where there is none."""
        opened = [
            {"key": name, "since": iso(breaker.latch.since), "why": breaker.latch.why}
            for (name, tr), breaker in self._breakers.items()
            if tr == code and breaker.latch.since is not None
        ]
        return dumps(opened) if opened else ""
