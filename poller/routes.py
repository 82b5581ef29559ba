"""A plan and the names of several app keys go in; which key asks for which target comes out.

Pure. The surprise: a key that is to be left alone keeps its targets. Another one only stands in for it, and what stands
in is spread as evenly as the plan itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from poller.grid import Job
from poller.trs.base import Target


def spread(jobs: Iterable[Job], key_names: Sequence[str]) -> dict[Target, str]:
    """Which key asks for which target: within a TR the neediest first, each to whoever has least of that TR so far.

    The same plan is spread the same way, in whatever order it stands; of equals, the key with the smallest load over
    all TRs comes first, then the one named first.
    """
    needs = {job.target: job.target.pages_at(job.every_s) / job.every_s for job in jobs}
    load = {(code, name): 0.0 for code in {"", *(target.tr.code for target in needs)} for name in key_names}
    homes = {}
    for target, need in sorted(needs.items(), key=lambda item: (item[0].tr.code, -item[1], str(item[0]))):
        code = target.tr.code
        name = min(key_names, key=lambda one: (load[code, one], load["", one]))
        homes[target] = name
        load[code, name] += need
        load["", name] += need
    return homes


class Routes:
    """Where each target of a plan is at home, and who stands in where a home does not work."""

    def __init__(self, key_names: Iterable[str]) -> None:
        self._names = tuple(key_names)
        self.plan((), self._names)

    def plan(self, jobs: Sequence[Job], working: Sequence[str]) -> None:
        """Spread these jobs over the keys, and over those that are `working` now."""
        self._jobs = tuple(jobs)
        self._homes = spread(jobs, self._names)
        self.stand_in(working)

    def stand_in(self, working: Sequence[str]) -> None:
        """Let those keys that are `working` now stand in for the others."""
        self._standing_in = spread(self._jobs, working) if working else {}

    def name_for(self, target: Target, wait_s: Callable[[str], float]) -> str:
        """The key that asks: the target's own if it works or is to be tried again, else one that works.

        `wait_s` tells how long a key is still to be left alone, in seconds. Without any that works it is the one that
        is tried again first.
        """
        home = self._homes.get(target) or self._names[0]
        if wait_s(home) > 0:
            home = self._standing_in.get(target, home)
        if wait_s(home) > 0:
            return min(self._names, key=wait_s)
        return home
