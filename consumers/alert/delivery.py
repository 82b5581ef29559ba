"""What came of an attempt goes in; what to do next comes out: done, again at that time, or given up and why.

Pure: time and chance are arguments. The surprises: a receiver that says "no" gets two more tries, since a deployment
answers 404 for a minute; where the next wait of the schedule is longer than a message's life, half of what is left
is waited instead, so that an outage does not swallow the last minutes; and what would have to be waited for longer than
anything ever is was written down before a clock was set back, and is not waited for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

from pydantic import TypeAdapter

SCHEDULE_S: tuple[float, ...] = (0.0, 2.0, 10.0, 30.0, 120.0, 600.0, 1800.0, 7200.0)
"""The wait before each attempt."""

REFUSED_S: tuple[float, ...] = (30.0, 300.0)
"""The waits before the two tries after a plain "no"."""

JITTER = 0.2
RETRY_AFTER_MAX_S = 3600.0
BREAKER_FAILURES = 5
BREAKER_S, BREAKER_MAX_S = 30.0, 300.0
ROUNDING_S = 1.0
AGAIN = frozenset({408, 425, 429, *range(500, 600)})

Kind = Literal["ok", "trouble", "refused", "gone", "blocked"]
Next = Literal["done", "retry", "dead", "disable"]


def longest_wait_s() -> float:
    """No delivery is ever put off for longer."""
    return max(max(*SCHEDULE_S, *REFUSED_S) * (1 + JITTER), RETRY_AFTER_MAX_S, BREAKER_MAX_S) + ROUNDING_S


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt, in words for people that hold no secret.

    `trouble` may pass by itself; `refused` is an answer that says no; `gone` is a 410; `blocked` never left.
    """

    kind: Kind
    words: str
    retry_after_s: float | None = None
    slow_down: bool = False

    @property
    def ok(self) -> bool:
        """Whether it was taken."""
        return self.kind == "ok"


def answered(status: int, headers: Mapping[str, str], body: bytes, location: str | None, *, now_s: float) -> Outcome:
    """What an answer means. `location` is the host a redirect points to."""
    words = f"answered {status}"
    if 200 <= status < 300:
        return Outcome("ok", words)
    if status == 410:
        return Outcome("gone", f"{words}: the receiver wants no more")
    if status in AGAIN:
        return Outcome("trouble", words, _retry_after_s(headers, body, now_s), slow_down=status == 429)
    if status in {401, 403}:
        return Outcome("refused", f"{words}: check the secret or the token")
    if 300 <= status < 400:
        return Outcome("refused", f"{words}, a redirect to {location or 'nowhere'}: redirects are never followed")
    return Outcome("refused", words)


def _retry_after_s(headers: Mapping[str, str], body: bytes, now_s: float) -> float | None:
    """How long the receiver asks us to wait: in the header, or where the chats put it, in the answer."""
    given = headers.get("retry-after", "").strip()
    if not given and (found := re.search(rb'"retry_after"\s*:\s*(\d+(?:\.\d+)?)', body)):
        given = found[1].decode()
    if re.fullmatch(r"\d+(\.\d+)?", given):
        return min(float(given), RETRY_AFTER_MAX_S)
    try:
        moment = parsedate_to_datetime(given)
    except ValueError:
        return None
    at_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return min(max(0.0, at_s - now_s), RETRY_AFTER_MAX_S)


@dataclass(frozen=True)
class Job:
    """One delivery and how it went so far."""

    id: str
    decided_s: float
    expires_s: float
    attempts: int = 0
    refusals: int = 0
    words: str = ""

    def dumps(self) -> str:
        """As the queue keeps it."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def loads(text: str) -> Job:
        """Read back what `dumps` wrote, here or in a newer program. Raises ValueError where it did not."""
        return _JOB.validate_json(text)


_JOB = TypeAdapter(Job)


@dataclass(frozen=True)
class Verdict:
    """What to do with a delivery: `retry` at `due_s`; `dead` and `disable` say why in `words`."""

    next: Next
    job: Job
    words: str
    due_s: float = 0.0


def expired(job: Job, *, now_s: float) -> Verdict | None:
    """The end of a message that is too old to be of use."""
    if now_s < job.expires_s:
        return None
    last = f", last: {job.words}" if job.words else ""
    return Verdict("dead", job, f"expired after {_attempts(job)}{last}")


def judge(outcome: Outcome, job: Job, *, now_s: float, chance: float) -> Verdict:
    """What an attempt's outcome means for its delivery. `chance` is in 0 ≤ chance < 1."""
    refusals = job.refusals + (outcome.kind == "refused")
    job = replace(job, attempts=job.attempts + 1, refusals=refusals, words=outcome.words)
    waits: tuple[float, ...]
    match outcome.kind:
        case "ok":
            return Verdict("done", job, outcome.words)
        case "gone":
            return Verdict("disable", job, outcome.words)
        case "blocked":
            return Verdict("dead", job, outcome.words)
        case "refused":
            waits = REFUSED_S[refusals - 1 :]
        case "trouble":
            waits = SCHEDULE_S[job.attempts :]
    if not waits or job.attempts >= len(SCHEDULE_S):
        return Verdict("dead", job, f"gave up after {_attempts(job)}: {outcome.words}")
    return _later(outcome, job, waits[0] * (1 - JITTER + 2 * JITTER * chance), now_s)


def _later(outcome: Outcome, job: Job, wait_s: float, now_s: float) -> Verdict:
    left_s = job.expires_s - now_s
    asked_s = outcome.retry_after_s or 0.0
    if left_s <= 0 or asked_s >= left_s:
        return Verdict("dead", job, f"expired after {_attempts(job)}, last: {outcome.words}")
    if wait_s >= left_s:
        wait_s = left_s / 2
    return Verdict("retry", job, outcome.words, due_s=now_s + max(wait_s, asked_s))


def _attempts(job: Job) -> str:
    return "1 attempt" if job.attempts == 1 else f"{job.attempts} attempts"


@dataclass(frozen=True)
class Breaker:
    """Leaves an endpoint in peace that keeps failing, and then asks with one message at a time."""

    failures: int = 0
    opened: int = 0
    open_until_s: float = 0.0
    slow_until_s: float = 0.0

    def until_s(self) -> float:
        """When to ask again."""
        return max(self.open_until_s, self.slow_until_s)

    def at(self, now_s: float) -> Breaker:
        """The breaker without a rest that is longer than it was given one: a clock was set back since."""
        is_open = self.open_until_s - now_s <= _rest_s(self.opened) + ROUNDING_S
        is_slow = self.slow_until_s - now_s <= RETRY_AFTER_MAX_S + ROUNDING_S
        return replace(
            self,
            open_until_s=self.open_until_s if is_open else 0.0,
            slow_until_s=self.slow_until_s if is_slow else 0.0,
        )

    def moved(self, by_s: float) -> Breaker:
        """The same rest on a clock that was set back by so much."""
        return replace(self, open_until_s=self.open_until_s - by_s, slow_until_s=self.slow_until_s - by_s)

    def may(self, now_s: float, in_flight: int) -> Literal["go", "wait", "defer"]:
        """Whether to send now, to wait for the probe that is on its way, or to come back when it opens."""
        if now_s < self.at(now_s).until_s():
            return "defer"
        return "wait" if self.opened and in_flight else "go"

    def after(self, outcome: Outcome, now_s: float) -> Breaker:
        """The breaker once this outcome is known. Whoever answers at all is there."""
        if outcome.kind == "blocked":
            return self
        if outcome.kind != "trouble":
            return Breaker()
        slow_until_s = now_s + (outcome.retry_after_s or 0.0) if outcome.slow_down else 0.0
        now = self.at(now_s)
        state = replace(now, slow_until_s=max(now.slow_until_s, slow_until_s))
        if now_s < now.open_until_s:
            return state  # it left before the breaker opened
        if not self.opened and self.failures + 1 < BREAKER_FAILURES:
            return replace(state, failures=self.failures + 1)
        opened = self.opened + 1
        return replace(state, failures=0, opened=opened, open_until_s=now_s + _rest_s(opened))

    def words(self, now_s: float) -> str:
        """For people."""
        now = self.at(now_s)
        if now_s < now.open_until_s:
            return f"open for {now.open_until_s - now_s:.0f} s"
        if now_s < now.slow_until_s:
            return f"asked to wait {now.slow_until_s - now_s:.0f} s"
        return "asking with one message" if self.opened else "closed"

    def dumps(self) -> str:
        """As the endpoint's state keeps it."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str | None) -> Breaker:
        """Read back what `dumps` wrote, if anything, here or in a newer program. Raises ValueError where it did not."""
        return _BREAKER.validate_json(text) if text else Breaker()


_BREAKER = TypeAdapter(Breaker)


def _rest_s(opened: int) -> float:
    """For how long a breaker rests that opened for that many times: each time twice as long, to the longest."""
    return min(BREAKER_S * 2.0 ** min(max(opened - 1, 0), 16), BREAKER_MAX_S)  # days of failing would be 2**1000


class Pace:
    """No more than `rate` requests a second, after a burst of one second's worth.

    It goes by seconds that never go back: on a clock that was set back it would wait for as long as the step.
    """

    def __init__(self, rate: float) -> None:
        self._step_s = 1 / rate
        self._slack_s = max(0.0, 1 - self._step_s)
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long until the next one may leave."""
        return max(0.0, self._next_s - self._slack_s - now_s)

    def take(self, now_s: float) -> None:
        """One leaves."""
        self._next_s = max(self._next_s, now_s) + self._step_s
