"""A probability and a seed go in; for each request the trouble it meets comes out, or none.

Pure, but for the random source it goes on with. The surprise: it is told the time, because a token that dies more than
once a minute would be a broker nobody can work with.
"""

from __future__ import annotations

from typing import Literal

from poller.simulator.chance import chance

Fault = Literal["http_500", "html", "cut_json", "drop", "drop_in_body", "dead_token", "error_1999", "empty"]

KINDS: tuple[Fault, ...] = (
    "http_500",
    "html",
    "cut_json",
    "drop",
    "drop_in_body",
    "error_1999",
    "empty",
    "dead_token",
)
TOKEN_LIVES_S = 60.0
TOKEN_CALL_SHARE = 0.25
"""Maintenance pages come to the token call too, but rarely: a client may wait a minute before it asks again."""


class Faults:
    """Decides which request fails, and how."""

    def __init__(self, p: float, seed: int) -> None:
        self.p = p
        self._source = chance(seed, "faults")
        self._token_died_s: float | None = None

    def draw(self, now_s: float) -> Fault | None:
        """The fault of a data request made at `now_s`, on any clock that only grows."""
        if self._source.random() >= self.p:
            return None
        kind = self._source.choice(KINDS)
        if kind == "dead_token" and not self._token_may_die(now_s):
            return self._source.choice(KINDS[:-1])
        return kind

    def spoils_token_call(self) -> bool:
        """Whether a token call is answered with a page of HTML."""
        return self._source.random() < self.p * TOKEN_CALL_SHARE

    def _token_may_die(self, now_s: float) -> bool:
        if self._token_died_s is not None and now_s - self._token_died_s < TOKEN_LIVES_S:
            return False
        self._token_died_s = now_s
        return True
