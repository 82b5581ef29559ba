"""Moments of requests go in; whether each is still within the limit comes out.

Pure: the moment is an argument. The surprise: what was refused does not count, so a client that waits a second is
always let in again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable

WINDOW_S = 1.0


class Limit:
    """At most `per_s` requests of a kind in any second."""

    def __init__(self, per_s: int) -> None:
        self.per_s = per_s
        self._admitted: defaultdict[Hashable, deque[float]] = defaultdict(deque)

    def admits(self, kind: Hashable, now_s: float) -> bool:
        """Whether a request made now is let in; if so it counts.

        >>> limit = Limit(1)
        >>> limit.admits("ka20003", 0.0), limit.admits("ka20003", 0.9), limit.admits("ka20003", 1.0)
        (True, False, True)
        """
        admitted = self._admitted[kind]
        while admitted and now_s - admitted[0] >= WINDOW_S:
            admitted.popleft()
        if len(admitted) >= self.per_s:
            return False
        admitted.append(now_s)
        return True

    def count(self, kind: Hashable, now_s: float) -> None:
        """Count a request that is let in whatever the limit says."""
        self._admitted[kind].append(now_s)
