"""Limits and a plan go in; when the next request may go, and whether the plan fits, come out.

Pure: seconds are arguments. The surprise: requests are counted from their *answers*. The server counts when a request
reaches it, somewhere between sending and answer, so only then is it certain that no second of its sees too many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True)
class Limit:
    """At most `requests` in any `per_s` seconds."""

    requests: int
    per_s: float = 1.0

    @property
    def sustained_per_s(self) -> float:
        """What can be kept up, margin and latency included.

        >>> round(Limit(4).sustained_per_s, 2)
        3.45
        """
        return self.requests / (self.per_s + MARGIN_S + USUAL_LATENCY_S)


class Window:
    """A sliding window over one limit, full at the start: a predecessor may just have used it."""

    def __init__(self, limit: Limit, *, now_s: float) -> None:
        self._hold_s = limit.per_s + MARGIN_S
        self._free_at_s = [now_s + self._hold_s] * limit.requests

    def take(self, now_s: float) -> float:
        """Take a slot and return 0, or return how long to wait; infinite while all are in flight.

        >>> window = Window(Limit(1), now_s=0.0)
        >>> window.take(0.5), window.take(1.1), window.take(9.0)
        (0.6, 0.0, inf)
        """
        soonest = min(range(len(self._free_at_s)), key=self._free_at_s.__getitem__)
        wait_s = round(self._free_at_s[soonest] - now_s, 9)
        if wait_s > 0:
            return wait_s
        self._free_at_s[soonest] = math.inf
        return 0.0

    def answered(self, now_s: float) -> None:
        """A request in flight has been answered, or is known to be lost: its slot is free a window later."""
        self._free_at_s[self._free_at_s.index(math.inf)] = now_s + self._hold_s


@dataclass(frozen=True)
class Share:
    """What the targets of one limit need, and what it allows, in requests a second."""

    name: str
    targets: int
    requests_per_round: int
    needed_per_s: float
    allowed_per_s: float
    longest_every_s: float

    @property
    def used_pct(self) -> float:
        """The part of the limit that the plan uses."""
        return 100 * self.needed_per_s / self.allowed_per_s

    @property
    def fits(self) -> bool:
        """Whether the plan can be kept."""
        return self.needed_per_s <= self.allowed_per_s

    @property
    def worst_staleness_s(self) -> float:
        """How old a row can be when all targets come due at once: its interval and one round of everything."""
        return self.longest_every_s + self.requests_per_round / self.allowed_per_s

    def remedy(self) -> str:
        """The arithmetic, and two ways out with the numbers filled in."""
        factor = self.needed_per_s / self.allowed_per_s
        keep = max(1, math.floor(self.targets / factor))
        return (
            f"{self.name}: {self.targets} targets need {self.needed_per_s:.2f} requests/s, "
            f"{self.allowed_per_s:.2f} are allowed; make every `every` {factor:.1f} times longer "
            f"(the longest {self.longest_every_s * factor:.0f}s), or keep {keep} of the targets"
        )


def shares(plan: Iterable[tuple[Target, float]], limits: Mapping[str, Limit]) -> list[Share]:
    """The plan, (target, interval in seconds) each, set against its limits: one share per limit.

    `limits` has an entry per TR code, or one named `*` that all of them share.
    """
    groups: dict[str, list[tuple[Target, float]]] = {}
    for target, every_s in plan:
        groups.setdefault("*" if "*" in limits else target.tr.code, []).append((target, every_s))
    return [
        Share(
            name="all TRs together" if name == "*" else name,
            targets=len(members),
            requests_per_round=sum(target.pages for target, _ in members),
            needed_per_s=sum(target.pages / every_s for target, every_s in members),
            allowed_per_s=limits[name].sustained_per_s,
            longest_every_s=max(every_s for _, every_s in members),
        )
        for name, members in sorted(groups.items())
    ]
