"""Limits and a plan go in; when the next request may go, and whether the plan can be kept, come out.

Pure: seconds are arguments. The surprises: requests are counted from their *answers*, because the server counts a
request somewhere between sending and answer; and they are paced, one in a slot of `per_s / requests`, because evenly
spread slots are what lets a plan be proved beforehand.

The proof: in any stretch of time t that is never idle, at least floor((t - latency) / slot) requests are answered. An
interval T therefore holds n(T) = floor((T - latency) / slot) whole requests. If the pages of all targets, each divided
by its n(T), sum up to no more than 1, then the requests that must be answered within any t fit into it, since
floor(t / T) <= floor((t - latency) / slot) / n(T); and earliest deadline first keeps every deadline that can be kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from poller.trs.base import Target

MARGIN_S = 0.1
"""Clocks tick at slightly different speeds, and an answer may be stamped before it is sent."""

USUAL_LATENCY_S = 0.06
"""40 to 60 ms were measured on a kept-alive connection; a request holds its slot that much longer."""

REAL_LIMIT = 5
"""Requests a second that the real server allows per TR and app key; it names the number in its refusals."""

MOCK_PERIOD_S = 1.1
"""With the margin 1.2 s between two requests, whatever they ask: what the mock server was seen to bear."""

RECOVERY_S = 600.0
"""So long without a refusal, and a rate that was halved is tried one step higher."""

_NAMED_LIMIT = re.compile(r"유량\s*=\s*([1-9]\d*)")


@dataclass(frozen=True)
class Limit:
    """At most `requests` in any `per_s` seconds."""

    requests: int
    per_s: float = 1.0

    @property
    def slot_s(self) -> float:
        """The pace: a request every so often is answered, and out of the server's count, in time for the next round.

        >>> round(Limit(4).slot_s, 2)
        0.29
        """
        return (self.per_s + MARGIN_S + USUAL_LATENCY_S) / self.requests

    @property
    def sustained_per_s(self) -> float:
        """What can be kept up, margin and latency included.

        >>> round(Limit(4).sustained_per_s, 2)
        3.45
        """
        return 1 / self.slot_s

    def slots_in(self, interval_s: float) -> int:
        """How many whole requests an interval holds, the last one answered.

        >>> Limit(4).slots_in(10), Limit(1).slots_in(1)
        (34, 0)
        """
        return max(0, math.floor(round((interval_s - USUAL_LATENCY_S) / self.slot_s, 9)))

    def halved(self) -> Limit:
        """Half the rate: half the requests, or, of a single one, twice the time."""
        return Limit(self.requests // 2, self.per_s) if self.requests > 1 else Limit(1, 2 * self.per_s)

    def raised(self, ceiling: Limit) -> Limit:
        """One step faster, never past the ceiling."""
        if self.per_s > ceiling.per_s:
            return Limit(1, max(ceiling.per_s, self.per_s / 2))
        return Limit(min(ceiling.requests, self.requests + 1), self.per_s)


def named_limit(refusal: str) -> int | None:
    """The number of requests a second that a refusal names, if it does.

    >>> named_limit("허용된 요청 개수를 초과하였습니다. 유량=5, API ID=ka10080"), named_limit("HTTP 429")
    (5, None)
    """
    match = _NAMED_LIMIT.search(refusal)
    return int(match[1]) if match else None


class Window:
    """A sliding window over one limit, full at the start: a predecessor may just have used it."""

    def __init__(self, limit: Limit, *, now_s: float) -> None:
        self.limit = limit
        self._free_at_s = [now_s + self._hold_s] * limit.requests
        self._next_s = now_s

    @property
    def _hold_s(self) -> float:
        return self.limit.per_s + MARGIN_S

    def take(self, now_s: float) -> float:
        """Take a slot and return 0, or return how long to wait; infinite while all are in flight.

        >>> window = Window(Limit(1), now_s=0.0)
        >>> window.take(0.5), window.take(1.1), window.take(9.0)
        (0.6, 0.0, inf)
        """
        soonest = min(range(len(self._free_at_s)), key=self._free_at_s.__getitem__)
        wait_s = round(max(self._free_at_s[soonest], self._next_s) - now_s, 9)
        if wait_s > 0:
            return wait_s
        self._free_at_s[soonest] = math.inf
        # From when it was due, not from now, or every late timer would slow the pace down for good.
        late = now_s - self._next_s >= self.limit.slot_s
        self._next_s = (now_s if late else self._next_s) + self.limit.slot_s
        return 0.0

    def answered(self, now_s: float) -> None:
        """A request in flight has been answered, or is known to be lost: its slot is free a window later."""
        in_flight = self._free_at_s.index(math.inf)
        if len(self._free_at_s) > self.limit.requests:
            del self._free_at_s[in_flight]
        else:
            self._free_at_s[in_flight] = now_s + self._hold_s

    def set(self, limit: Limit, now_s: float) -> None:
        """Go on under another limit: full, since the server has just been found to count otherwise."""
        in_flight = self._free_at_s.count(math.inf)
        free = max(0, limit.requests - in_flight)
        self.limit = limit
        self._free_at_s = [math.inf] * in_flight + [now_s + self._hold_s] * free


@dataclass
class Learned:
    """The limit as refusals have taught it; `configured` is never passed."""

    configured: Limit
    now: Limit
    refused_at_s: float = -math.inf

    @classmethod
    def nothing(cls, configured: Limit) -> Learned:
        """Before any refusal."""
        return cls(configured, configured)

    def refused(self, named: int | None, now_s: float) -> bool:
        """Learn from a refusal: the number it names, less one for people's own requests, else half. Whether it changed.

        Of several refusals within a window only the first counts: they were sent under the same limit.
        """
        again = now_s - self.refused_at_s < self.now.per_s + MARGIN_S
        self.refused_at_s = now_s
        if named is not None:
            new = Limit(max(1, min(named - 1, self.configured.requests)), self.configured.per_s)
        else:
            new = self.now if again else self.now.halved()
        changed, self.now = new != self.now, new
        return changed

    def recovered(self, now_s: float) -> bool:
        """Whether a quiet stretch has just raised the limit by a step."""
        if self.now == self.configured or now_s - self.refused_at_s < RECOVERY_S:
            return False
        self.refused_at_s = now_s
        self.now = self.now.raised(self.configured)
        return True


@dataclass(frozen=True)
class Share:
    """What the targets of one limit need of it: (pages, interval in seconds) for each."""

    name: str
    limit: Limit
    members: tuple[tuple[int, float], ...]

    @property
    def targets(self) -> int:
        """How many targets share the limit."""
        return len(self.members)

    @property
    def requests_per_round(self) -> int:
        """How many requests one look at everything takes."""
        return sum(pages for pages, _ in self.members)

    @property
    def needed_per_s(self) -> float:
        """Requests a second that the plan asks for."""
        return sum(pages / every_s for pages, every_s in self.members)

    @property
    def allowed_per_s(self) -> float:
        """Requests a second that can be kept up."""
        return self.limit.sustained_per_s

    @property
    def load(self) -> float:
        """The part of the limit that the plan uses, intervals counted in whole requests; above 1 it cannot be kept."""
        return _load(self.limit, self.members)

    @property
    def used_pct(self) -> float:
        """The same in percent."""
        return 100 * self.load

    @property
    def fits(self) -> bool:
        """Whether every deadline of the plan can be kept."""
        return self.load <= 1 + 1e-9

    @property
    def worst_staleness_s(self) -> float:
        """How old a row can get: its interval, and as long as its next poll may take."""
        longest_s = max(every_s for _, every_s in self.members)
        return longest_s + min(longest_s, (self.requests_per_round + 1) * self.limit.slot_s + USUAL_LATENCY_S)

    def remedy(self) -> str:
        """The arithmetic, and the ways out with their numbers: longer intervals, fewer targets, a higher rate."""
        needs = "target needs" if self.targets == 1 else "targets need"
        told = (
            f"{self.name}: {self.targets} {needs} {self.needed_per_s:.2f} requests/s, {self.allowed_per_s:.2f} "
            f"are allowed, and intervals count in whole requests of {self.limit.slot_s:.2f}s: {self._use()}"
        )
        longest_s = max(every_s for _, every_s in self.members)
        factor = self._factor_that_fits()
        longer = f"make every `every` {factor:.1f} times longer (the longest {math.ceil(longest_s * factor)}s)"
        lightest = sorted(self.members, key=lambda member: member[0] / member[1])
        keep = next(n for n in reversed(range(self.targets)) if _load(self.limit, lightest[:n]) <= 1)
        fewer = f", or keep {keep} of the targets (the lightest)" if keep else ""
        return f"{told}; {longer}{fewer}{self._faster()}"

    def _use(self) -> str:
        """How much of the limit the plan needs; an interval that holds no request has no such number."""
        shortest_s = min(every_s for _, every_s in self.members)
        if math.isinf(self.load):
            return f"not one is asked and answered within {shortest_s:g}s"
        return f"{self.used_pct:.0f} % of what the limit bears"

    def _faster(self) -> str:
        """The rate at which the plan would fit, where the real server leaves one."""
        if self.limit.per_s != 1.0:
            return ""
        rates = range(self.limit.requests + 1, REAL_LIMIT)
        rate = next((rate for rate in rates if _load(Limit(rate), self.members) <= 1), None)
        return f", or set [kiwoom] requests_per_second = {rate}" if rate else ""

    def _factor_that_fits(self) -> float:
        """By how much all intervals have to grow, to a tenth."""
        tenths = 10
        while _load(self.limit, [(pages, every_s * tenths / 10) for pages, every_s in self.members]) > 1:
            tenths += max(1, tenths // 50)
        return tenths / 10


def _load(limit: Limit, members: Sequence[tuple[int, float]]) -> float:
    slots = [(pages, limit.slots_in(every_s)) for pages, every_s in members]
    return sum(pages / held if held else math.inf for pages, held in slots)


def shares(plan: Iterable[tuple[Target, float]], limits: Mapping[str, Limit]) -> list[Share]:
    """The plan, (target, interval in seconds) each, set against its limits: one share per limit.

    `limits` has an entry per TR code, or one named `*` that all of them share.
    """
    groups: dict[str, list[tuple[int, float]]] = {}
    for target, every_s in plan:
        groups.setdefault("*" if "*" in limits else target.tr.code, []).append((target.pages_at(every_s), every_s))
    return [
        Share("all TRs together" if name == "*" else name, limits[name], tuple(members))
        for name, members in sorted(groups.items())
    ]
