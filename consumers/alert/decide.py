"""Changes go in; decisions are written to the alerts stream, each once: the role that runs the rules.

What the rules remember, what they decided and how far they have read are written by one script. The surprises: a batch
that comes again after a crash is recognised by the position and decides nothing twice; a rival that was active a moment
ago cannot write over newer state, since every write names the version it was computed on; and timers run only when
everything that was published has been looked at, so that they never run ahead of the news.

Only computing on an entry counts against it: the state is loaded before the first entry is asked for, and what fails in
loading, in rules that left or in writing is `NotTheEntry` or the server's, so it is waited out and parks nothing. An
entry that was parked and is handed out again is computed on the state as it is now, and moves the position nowhere.

A server that lost its newest entries lost what was decided on them as well: state and position are beside the stream,
and go back with it. So we go on from what the server has, whatever we remember; what it still holds is decided again
under the same id, which receivers know, and what it lost comes back from the poller as a reset, which fires nothing.
A process that was started again with the server cannot tell by itself; it says what poller and archive have marked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from consumers.alert.rules import Decision, Rule, State, Tick, iso, next_due, retire, steps
from consumers.clock import utc_now
from consumers.group import Batch, LeaseLost, Membership, NotTheEntry
from consumers.place import order
from poller.contract import Catalogue, Keys, dumps, loads

GROUP = "alert"
TICK_S = 1.0
LOOK_AGAIN = timedelta(seconds=5)
"""How often a member that waits looks at what the active one wrote, so that it knows the timers when it takes over."""

SAME_FORK = timedelta(minutes=10)
"""What another role marks within this of our own mark is the same fork: a poller sees it at its next poll."""

RECENT = timedelta(days=1)
"""What another role marked before that is no news to a role that is started today."""

TRIES = 5
SERIES = "series:"
START = "0-0"


class AlertRole:
    """Runs the rules on every TR that has some. `decided` counts the decisions this process wrote."""

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        catalogue: Catalogue,
        rules: Sequence[Rule],
        name: str,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`name` is this process's and stays the same over restarts; `now` is what timers go by."""
        trs = [tr for tr in catalogue if any(rule.tr == tr for rule in rules)]
        self._deciders = [Decider(redis, prefix, tr, [r for r in rules if r.tr == tr], now=now) for tr in trs]
        self._members = [
            Membership(redis, prefix, tr, GROUP, name, alone=True, joined=decider.load)
            for tr, decider in zip(trs, self._deciders, strict=True)
        ]

    @property
    def decided(self) -> int:
        """How many decisions were written, firing and resolved."""
        return sum(decider.decided for decider in self._deciders)

    async def run(self, stop: asyncio.Event) -> None:
        """Decide until `stop`. Trouble with the server is waited out."""
        async with asyncio.TaskGroup() as tasks:
            for member, decider in zip(self._members, self._deciders, strict=True):
                tasks.create_task(_decide(member, decider, stop))
            tasks.create_task(self._keep_time(stop))

    async def _keep_time(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            for decider in self._deciders:
                with suppress(
                    RedisError, OSError, LeaseLost, NotTheEntry
                ):  # the loop beside this one says so, and waits
                    await decider.tick()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), TICK_S)


async def _decide(member: Membership, decider: Decider, stop: asyncio.Event) -> None:
    with suppress(RedisError, OSError, NotTheEntry):  # it is tried again with the first batch, which says so
        await decider.load()
    await member.consume(decider.handle, stop)


class Decider:
    """The rules of one TR with what they remember, as it was last read from the server or written there."""

    def __init__(
        self, redis: Redis, prefix: str, tr: str, rules: Sequence[Rule], *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        keys = Keys(prefix)
        self._alerting = keys.of(tr, "alerting")
        self._forks = keys.of(tr, "forks")
        self._keys = [self._alerting, keys.of(tr, "alerts"), keys.of(tr, "changes")]
        self._write = redis.register_script((Path(__file__).parent / "decide.lua").read_text("utf-8"))
        self._rules, self._now = rules, now
        self._lock = asyncio.Lock()
        self._version: int | None = None
        self._position = START
        self._furthest = (0, START)
        """The latest version and position this process has seen."""
        self._state: State = {}
        self._retired = False
        self._looked_at: datetime | None = None
        self._log = structlog.get_logger("alert").bind(tr=tr)
        self.decided = 0

    async def load(self) -> None:
        """Read what was written last. Raises NotTheEntry where that cannot be read."""
        async with self._lock:
            await self._load()

    async def handle(self, batch: Batch) -> None:
        """Decide on a batch and write that down. What was decided before is passed over, unless it is redriven."""
        async with self._lock:
            for attempt in range(TRIES):
                repeated = any(order(one.stream_id) <= order(self._position) for one in batch)
                if self._version is None or (repeated and not attempt):  # or the server has gone back, unnoticed
                    await self._load()
                new = [one for one in batch if one.redriven or order(one.stream_id) > order(self._position)]
                if not new:
                    return
                now, state = self._now(), self._state
                ended: list[Decision] = []
                if not self._retired:
                    state, ended = self._retire(now)
                entries = [one.entry for one in new if one.entry is not None]
                state, decided = steps(self._rules, state, entries, now)
                last = max(new, key=lambda one: order(one.stream_id))
                position = max(self._position, last.stream_id, key=order)
                entry_id = last.fields.get("id", "") if position == last.stream_id else ""
                verdict = await self._commit(state, [*ended, *decided], position, entry_id=entry_id)
                if verdict == "gone":
                    raise LeaseLost("the server has lost what was read: it is read again")
                if verdict == "ok":
                    self._retired = True
                    return
        raise LeaseLost("another member keeps writing the state of the alerts")

    async def tick(self) -> None:
        """Run the timers that are due. Any member may: the script lets the first one do it."""
        async with self._lock:
            now = self._now()
            if self._looked_at is None or now - self._looked_at >= LOOK_AGAIN:
                self._looked_at = now
                stored = await self._redis.hget(self._alerting, "version")
                if (stored or "0") != str(self._version):
                    await self._load()
                await self._hear_of_forks()
            due = next_due(self._state)
            if due is None or due > now:
                return
            state, decided = steps(self._rules, self._state, [Tick()], now)
            if decided:
                await self._commit(state, decided, self._position, tick=True)

    def _retire(self, now: datetime) -> tuple[State, list[Decision]]:
        """End what belongs to rules that left. Raises NotTheEntry."""
        try:
            return retire(self._rules, self._state, now)
        except Exception as error:
            raise NotTheEntry(f"the rules cannot go on from the state in {self._alerting}: {error}") from error

    async def _load(self) -> None:
        stored = await self._redis.hgetall(self._alerting)
        try:
            self._state = {
                field.removeprefix(SERIES): loads(value) for field, value in stored.items() if field.startswith(SERIES)
            }
            self._version, self._position = int(stored.get("version", 0)), stored.get("position", START)
        except ValueError as error:
            raise NotTheEntry(f"cannot read the state in {self._alerting}, delete it to begin anew: {error}") from error
        self._retired = False
        await self._look_back()

    async def _look_back(self) -> None:
        """Say so where the server has an older state than it had."""
        version, position = self._furthest
        if (self._version or 0) < version or order(self._position) < order(position):
            await self._say_forked("alert", had=position, has=self._position)
        self._furthest = (self._version or 0, self._position)

    async def _hear_of_forks(self) -> None:
        """Say so where another role saw the server go back lately, and nobody here did.

        All that we have is on the server, and went back with it: a process that was started again with the server
        remembers nothing to compare it with. The poller may, and the archive always does.
        """
        with suppress(ResponseError, ValueError, KeyError):  # what cannot be read is no reason to stop the timers
            marks = await self._marks()
            own, since = marks.pop(GROUP, {}), self._now() - RECENT
            if own:
                since = max(since, datetime.fromisoformat(own["at"]) + SAME_FORK)
            times = {role: datetime.fromisoformat(mark["at"]) for role, mark in marks.items()}
            role = max(times, key=lambda one: times[one], default="")
            if role and times[role] > since and own.get("heard", {}).get(role) != marks[role]["at"]:
                await self._say_forked(role, had=marks[role]["had"], has=marks[role]["has"])

    async def _marks(self) -> dict[str, Any]:
        """What each role wrote down when it saw the server go back."""
        return {role: loads(text) for role, text in (await self._redis.hgetall(self._forks)).items()}

    async def _say_forked(self, seen_by: str, *, had: str, has: str) -> None:
        """Say it once in the log, and write down where `status` looks that we did, and which marks we know."""
        self._log.warning("alert.forked", had=had, has=has, seen_by=seen_by)
        with suppress(ResponseError, ValueError, KeyError):
            heard = {role: mark["at"] for role, mark in (await self._marks()).items() if role != GROUP}
            mark = {"at": iso(self._now()), "had": had, "has": has, "seen_by": seen_by, "heard": heard}
            await self._redis.hset(self._forks, GROUP, dumps(mark))

    async def _commit(
        self, state: State, decided: Sequence[Decision], position: str, *, entry_id: str = "", tick: bool = False
    ) -> str:
        """Write one step, all or nothing. What is remembered here follows only when it was written.

        With `entry_id` nothing is written unless that entry is still the one at the position, or was trimmed.
        """
        old = self._state
        changed = [(name, series) for name, series in state.items() if old.get(name) != series]
        written = [text for name, series in changed for text in (SERIES + name, dumps(series))]
        gone = [SERIES + name for name in old if name not in state]
        lists: list[list[str]] = [written, gone, [text for one in decided for text in _fields(one)]]
        args: list[str | int] = [str(self._version), position, int(tick), entry_id]
        for texts in lists:
            args += [len(texts), *texts]
        before, self._version = self._version, None  # until the answer is there, nothing is known
        verdict, version = await self._write(keys=self._keys, args=args)
        if verdict == "type":
            raise ResponseError(f"one of {', '.join(self._keys)} has a wrong type: another program writes it")
        if verdict == "ok":
            self._version, self._state, self._position = version, state, position
            self._furthest = (version, position)
            self._tell(decided)
        elif verdict == "behind":
            self._version = before
        return str(verdict)

    def _tell(self, decided: Sequence[Decision]) -> None:
        self.decided += len(decided)
        for one in decided:
            self._log.info("alert.decided", rule=one.rule, state=one.transition, what=one.data["text"])


def _fields(one: Decision) -> list[str]:
    data = {**one.data, "notify": one.notify}  # for the sender alone: no receiver is told who else is
    return [one.id, one.source, one.type, one.subject, iso(one.time), dumps(data)]
