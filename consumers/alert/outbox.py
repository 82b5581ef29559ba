"""Deliveries go in; what is due comes out, one per lane, and leaves when its end is written down.

All of an endpoint's keys share a hash tag, and every step is one script. The surprises: decisions on one alert share a
lane, and only a lane's first delivery is ever due, so that order needs no further care; what is being sent is
hidden until an attempt must be over, so that two senders never have the same delivery in hand, whoever dies; and what
cannot be read is given up like what cannot be sent, and stops nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import structlog
from redis.asyncio import Redis

from consumers.alert.delivery import Breaker, Job, longest_wait_s
from consumers.group import SCRIPTS

REMEMBERED_S = 7 * 86400
"""How long a decision that comes again is recognised: longer than a stream keeps it."""

DEAD_KEPT = 10_000
UNREADABLE = "what the queue holds of it cannot be read: another program wrote it; redrive sends it as it is"
LOST = "the queue has lost its text: nothing is left to send"
HERE = Path(__file__).parent
SCRIPT_NAMES = ("enqueue", "begin", "settle", "redrive")
End = Literal["done", "dead", "again"]


@dataclass(frozen=True)
class Claimed:
    """One delivery in hand. `unreadable` says why it cannot be sent, and is empty otherwise."""

    lane: str
    place: str
    claim: str
    job: Job
    body: str
    unreadable: str = ""


@dataclass(frozen=True)
class DeadLetter:
    """One delivery that was given up, and why."""

    letter: str
    id: str
    why: str
    at_s: float
    attempts: int
    body: str


@dataclass(frozen=True)
class Standing:
    """How things stand with one endpoint. `disabled` says why nothing is sent, and is empty otherwise.

    `dead` were given up, of which `dropped` were too many to be kept, and `dead_kept` can be sent again.
    """

    waiting: int
    dead_kept: int
    delivered: int
    dead: int
    dropped: int
    breaker: Breaker
    last: str
    last_s: float
    disabled: str


class Outbox:
    """The queue of one endpoint, in Redis. `name` is the sender's; looking and redriving need none."""

    def __init__(self, redis: Redis, prefix: str, endpoint: str, name: str = "") -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        tag = f"{prefix}:send:{{{endpoint}}}"
        self._active, self._seen, self._order = f"{tag}:active", f"{tag}:seen", f"{tag}:order"
        self._due, self._jobs, self._bodies = f"{tag}:due", f"{tag}:jobs", f"{tag}:bodies"
        self._claims, self._state = f"{tag}:claims", f"{tag}:state"
        self._dead = f"{prefix}:send:dead:{{{endpoint}}}"
        self._holder = f"{name}.{secrets.token_hex(4)}"
        self._dropping = False
        self._log = structlog.get_logger("send").bind(endpoint=endpoint)
        self._hold = redis.register_script((SCRIPTS / "hold.lua").read_text("utf-8"))
        scripts = [redis.register_script((HERE / f"{one}.lua").read_text("utf-8")) for one in SCRIPT_NAMES]
        self._enqueue, self._begin, self._settle, self._redrive = scripts

    async def enqueue(self, lane: str, position: str, job: Job, body: str, *, now_s: float) -> bool:
        """Take a delivery in; False where it had been taken before. `position` is the decision's in its stream."""
        keys = [self._seen, self._order, self._due, self._jobs, self._bodies]
        forget_ms = _ms(now_s - REMEMBERED_S)
        args: list[str | int] = [job.id, lane, _place(lane, position, job.id), job.dumps(), body, _ms(now_s), forget_ms]
        return bool(await self._enqueue(keys=keys, args=args))

    async def hold(self, lease_s: float) -> bool:
        """Be, or stay, the one active sender."""
        return bool(await self._hold(keys=[self._active], args=[self._holder, int(lease_s * 1000)]) == self._holder)

    async def let_go(self) -> None:
        """Let another sender follow at once."""
        await self._hold(keys=[self._active], args=[self._holder, 0])

    async def due(self, now_s: float, count: int) -> tuple[list[str], str]:
        """Lanes whose first delivery is due, the longest waiting first; and why nothing may be sent, or nothing.

        Last come those that were put off before a clock was set back.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zrangebyscore(self._due, "-inf", _ms(now_s), start=0, num=count)
        pipeline.zrangebyscore(self._due, f"({_latest_ms(now_s)}", "+inf", start=0, num=count)
        pipeline.hget(self._state, "disabled")
        lanes, stuck, disabled = await pipeline.execute()
        return [*lanes, *stuck][:count], disabled or ""

    async def bring_forward(self, by_s: float, *, now_s: float) -> None:
        """Let what waits wait no longer than before, on a clock that was just set back by so much."""
        waiting = await self._redis.zrange(self._due, f"({_ms(now_s)}", "+inf", byscore=True, withscores=True)
        if waiting:
            sooner = {lane: due_ms - _ms(by_s) for lane, due_ms in waiting}
            await self._redis.zadd(self._due, sooner, xx=True, lt=True)

    async def begin(self, lane: str, *, now_s: float, until_s: float) -> Claimed | None:
        """Take a lane's first delivery in hand; None where it is not due, or not ours to send."""
        claim = secrets.token_hex(8)
        keys = [self._active, self._order, self._due, self._jobs, self._bodies, self._claims]
        args: list[str | int] = [self._holder, lane, _ms(now_s), _ms(until_s), claim, _latest_ms(now_s)]
        found = await self._begin(keys=keys, args=args)
        if not found:
            return None
        place, text, body = found
        job, unreadable = _job(text, _decision_id(place))
        return Claimed(lane, place, claim, job, body, unreadable if body else LOST)

    async def settle(
        self,
        claimed: Claimed,
        what: End,
        job: Job,
        *,
        now_s: float,
        due_s: float = 0.0,
        why: str = "",
        state: dict[str, str] | None = None,
    ) -> bool:
        """Write down how it ended; False where it was not ours any more."""
        keys = [self._order, self._due, self._jobs, self._bodies, self._claims, self._dead, self._state]
        args: list[str | int] = [claimed.lane, claimed.claim, claimed.place, job.id, what, _ms(now_s), _ms(due_s)]
        args += [job.dumps(), why, DEAD_KEPT]
        for name, value in (state or {}).items():
            args += [name, value]
        mine, dropped = await self._settle(keys=keys, args=args)
        if mine and what == "dead":
            self._say_dropped(dropped)
        return bool(mine)

    def _say_dropped(self, dropped: int) -> None:
        """Once, until there is room again."""
        if dropped and not self._dropping:
            why = f"{DEAD_KEPT:,} are kept, each new one drops the oldest; `sectorwire endpoints redrive` sends them"
            self._log.error("letters.dropped", why=why)
        self._dropping = bool(dropped)

    async def breaker(self) -> Breaker:
        """The breaker as the last active sender left it; a closed one where that cannot be read."""
        return self._breaker_in(await self._redis.hget(self._state, "breaker"))

    def _breaker_in(self, text: str | None) -> Breaker:
        try:
            return Breaker.loads(text)
        except ValueError:
            self._log.warning("breaker.unreadable", why=f"another program wrote it into {self._state}")
            return Breaker()

    async def dead_letters(self, count: int) -> list[DeadLetter]:
        """What was given up, the newest first."""
        return [
            DeadLetter(
                letter, one["id"], one["why"], int(one["at"]) / 1000, _job(one["job"], "")[0].attempts, one["body"]
            )
            for letter, one in await self._redis.xrevrange(self._dead, count=count)
        ]

    async def redrive(self, ids: Sequence[str] | None, *, expires_s: float, now_s: float) -> int:
        """Send dead letters again, all or those with these decision ids, and switch the endpoint on again."""
        await self._redis.hdel(self._state, "disabled")
        again = 0
        for letter, one in await self._redis.xrange(self._dead):
            if ids is not None and one["id"] not in ids and letter not in ids:
                continue
            job, _ = _job(one["job"], one["id"])
            job = replace(job, attempts=0, refusals=0, words="", expires_s=expires_s)
            keys = [self._dead, self._order, self._due, self._jobs, self._bodies]
            args = [letter, one["id"], one["lane"], one["place"], job.dumps(), one["body"], _ms(now_s)]
            again += await self._redrive(keys=keys, args=args)
        return again

    async def standing(self) -> Standing:
        """How things stand."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hlen(self._jobs)
        pipeline.xlen(self._dead)
        pipeline.hgetall(self._state)
        waiting, dead, state = await pipeline.execute()
        return Standing(
            waiting=waiting,
            dead_kept=dead,
            delivered=int(state.get("done", 0)),
            dead=int(state.get("dead", 0)),
            dropped=int(state.get("dropped", 0)),
            breaker=self._breaker_in(state.get("breaker")),
            last=state.get("last", ""),
            last_s=int(state.get("last_ms", 0)) / 1000,
            disabled=state.get("disabled", ""),
        )


def _place(lane: str, position: str, decision_id: str) -> str:
    """Sorts by lane, then by the position in the stream.

    >>> _place("a1", "1795330635454-7", "x#1")
    'a1:00000001795330635454-0000000007:x#1'
    """
    milliseconds, _, number = position.partition("-")
    return f"{lane}:{int(milliseconds):020}-{int(number or 0):010}:{decision_id}"


def _decision_id(place: str) -> str:
    """Whose place it is.

    >>> _decision_id("a1:00000001795330635454-0000000007:x:y#1")
    'x:y#1'
    """
    return place.split(":", 2)[-1] if place.count(":") > 1 else place


def _job(text: str, decision_id: str) -> tuple[Job, str]:
    """What the queue holds of a delivery; where that cannot be read one without a past, and why."""
    try:
        return replace(Job.loads(text), id=decision_id), ""
    except ValueError:
        return Job(decision_id, 0.0, 0.0), UNREADABLE


def _latest_ms(now_s: float) -> int:
    """What is due after that was put off by a clock that has been set back since."""
    return _ms(now_s + longest_wait_s())


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
