"""An operation goes in; what a real server, the model and fakeredis make of it is compared, and the answer comes out.

The model and fakeredis are handed the real server's clock, so that ids are the same to the millisecond. The surprise:
idle times cannot be, so they are compared in quarters of an hour, which rules make up with XCLAIM; and where fakeredis
cannot follow, it is brought to the same state in another way, or left out from there: `FAKE_CANNOT` says why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import fakeredis
import fakeredis._helpers
import fakeredis._socket._base
import fakeredis.model._stream
from hypothesis.stateful import RuleBasedStateMachine, invariant
from redis.exceptions import DataError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from poller import store
from poller.store import Store, StoreError, connect
from tests.model_groups import Fields, Id, shown
from tests.model_store import ModelRedis, ModelServer, Stream

CHANGES, ALERTS, ALERTING = (f"test:{{ka20003}}:{part}" for part in ("changes", "alerts", "alerting"))
GROUPS = ("one", "other")
PARKED = {group: f"test:{{ka20003}}:parked:{group}" for group in GROUPS}
STREAMS = (CHANGES, ALERTS, *PARKED.values())
QUARTER_MS = 1_000_000
FULL = OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
REPLICA = ReadOnlyError("You can't write against a read only replica.")

NOT_COMPARED = {
    "radix-tree-keys": "how a server packs entries",
    "radix-tree-nodes": "how a server packs entries",
    "entries-read": "servers count differently after a deletion, and nobody here asks for it",
    "lag": "see entries-read",
    "inactive": "Redis 7.0 does not know it, and nobody here asks for it",
    **dict.fromkeys(("idmp-duration", "idmp-maxsize", "pids-tracked"), "Redis 8.6 alone knows it"),
    **dict.fromkeys(("iids-tracked", "iids-added", "iids-duplicates"), "Redis 8.6 alone knows it"),
}
FAKE_DIFFERS = {
    "INFO": "unknown to it, so the epoch of a TR names no server (`server` in meta is empty) and commits ask for none",
    "MEMORY USAGE": "unknown to it, so trim.lua fails; the stream is cut to the same length by XTRIM instead",
    "XREADGROUP BLOCK": "with COUNT it does not wait, without COUNT it loses what it finds; it is asked again instead",
    "XREADGROUP": "ends in an AttributeError where the key is no stream; a history read counts what is gone as handed "
    "out, so it sits out an example from there",
    "idle times": "a history read leaves them as they were, and what XCLAIM says with IDLE is not what XPENDING tells, "
    "but what XINFO CONSUMERS does",
    "errors": "their texts, where key or group are missing, are another command's; their kind is compared",
    "XCLAIM": "answers in the order of ids, not in that of its arguments",
    "XPENDING": "names consumers in the order in which they came, not by name; XINFO GROUPS and CONSUMERS as well",
    "maxmemory, REPLICAOF": "unknown to it: it refuses no writes, and sits out an example from there",
}
"""What fakeredis is known to do differently, and what the comparison does about it. Everything else is compared."""


def coarse(idle_ms: int) -> int:
    """An idle time, as far as two servers that are asked one after the other agree."""
    return idle_ms // QUARTER_MS


COARSE = {"idle": coarse, "time_since_delivered": coarse}


def plain(reply: Any) -> Any:
    """A reply without what servers may differ in."""
    if isinstance(reply, RedisError):
        return type(reply).__name__, told(reply)
    if isinstance(reply, dict):
        kept = {name: value for name, value in reply.items() if name not in NOT_COMPARED}
        return {name: COARSE.get(name, plain)(value) for name, value in kept.items()}
    return [plain(one) for one in reply] if isinstance(reply, list | tuple) else reply


def lenient(reply: Any) -> Any:
    """A plain reply without what fakeredis differs in, see `FAKE_DIFFERS`."""
    if isinstance(reply, tuple):
        return reply[0]
    if isinstance(reply, dict):
        return {name: lenient(value) for name, value in reply.items() if name not in {"server", *COARSE}}
    if isinstance(reply, list):
        listed = [lenient(one) for one in reply]
        named = all(isinstance(one, dict) and "name" in one for one in listed)
        return sorted(listed, key=lambda one: one["name"]) if named else listed
    return reply


OLD_DIFFERS = {
    "consumers": "come to be when they get something, not when they ask; who owns nothing is not compared",
    "ids": "of the entries of one script may have several moments, which the model follows and fakeredis cannot",
    "blocked readers": "are told in other words that their group or stream is gone",
}
"""What Redis did differently before 7.2."""


def old(reply: Any) -> Any:
    """A plain reply without what Redis 7.0 differs in, see `OLD_DIFFERS`."""
    if isinstance(reply, dict):
        count = {"consumers"} if "last-delivered-id" in reply else set()
        return {name: old(value) for name, value in reply.items() if name not in count}
    if isinstance(reply, list):
        return [old(one) for one in reply if not (isinstance(one, dict) and "idle" in one and not one["pending"])]
    return reply


def told(error: Exception) -> str:
    """An error's text, without the place in a pipeline or in a script."""
    text = str(error)
    if "caused error: " in text:
        text = text.partition("caused error: ")[2].strip("(),'\"")
    return text.partition(" script: ")[0]


async def outcome(call: Awaitable[Any]) -> Any:
    """What an operation says, or how it fails."""
    try:
        return await call
    except StoreError as error:
        return type(error).__name__, told(error), vars(error)
    except (ResponseError, DataError) as error:
        return error


@dataclass
class Party:
    """One server: a client of it, and two pollers' stores on it. `redis` is typed loosely: three kinds of clients."""

    name: str
    redis: Any
    stores: tuple[Store, Store]


Operation = Callable[[Party], Awaitable[Any]]


def party(name: str, redis: Any) -> Party:
    """A party whose pollers have no chance in their names."""
    one, other = Store(redis, "test"), Store(redis, "test")
    one.nonce, other.nonce = "one", "other"
    return Party(name, redis, (one, other))


@contextmanager
def fakes_clock(now_ms: Callable[[], int]) -> Iterator[None]:
    """Let fakeredis go by a clock, as far as ids, idle times and expiry go."""
    clock = SimpleNamespace(**{**vars(time), "time": lambda: (now_ms() + 0.5) / 1000})
    with ExitStack() as stack:
        for module in (fakeredis._helpers, fakeredis.model._stream, fakeredis._socket._base):
            stack.enter_context(patch.object(module, "time", clock))
        yield


class _Model(ModelServer):
    """The model, whose clock moves on between two entries where the real server's did."""

    def __init__(self, parties: Parties) -> None:
        super().__init__(lambda: parties.clock_ms)
        self._parties = parties

    def add(self, key: str, fields: Fields, entry_id: Id | None = None) -> str:
        """XADD at its moment."""
        if self._parties.moments_ms:
            self._parties.clock_ms = self._parties.moments_ms.pop(0)
        return super().add(key, fields, entry_id)


class Parties(RuleBasedStateMachine):
    """A real server, its model and fakeredis, on which everything is done one after the other."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock_ms = 0
        self.answer: Any = None
        """What the real server has answered last."""
        self.moments_ms: list[int] = []
        """When the next entries are added, where that is not one moment."""
        self.model = _Model(self)
        self.twin = party("model", ModelRedis(self.model))
        self.real = self.runner.run(self._connected(url))
        self.fake: Party | None = party(
            "fakeredis", fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), decode_responses=True)
        )
        self._patched = ExitStack()
        self._patched.enter_context(fakes_clock(lambda: self.clock_ms))
        self._patched.enter_context(patch.object(store, "LEASE_S", 3600.0))  # no example lasts as long, on any machine

    async def _connected(self, url: str) -> Party:
        redis: Any = connect(url)
        await redis.replicaof("NO", "ONE")
        await redis.config_set("maxmemory", 0)
        await redis.flushall()
        facts = await redis.info("server")
        self.model.run_id = facts["run_id"]
        self.model.queue_needs_memory = facts.get("server_name") != "valkey"
        self.old = tuple(map(int, facts["redis_version"].split(".")[:2])) < (7, 2)
        return party("real", redis)

    def seen(self, reply: Any) -> Any:
        """A reply as far as this server and the model have to agree on it."""
        return old(plain(reply)) if self.old else plain(reply)

    def same(self, call: Operation, *, fake: Operation | None = None, fake_sorts: bool = False) -> Any:
        """Do the same everywhere, with the same result, which is returned.

        On fakeredis do something else, or look away from the order of its answer.
        """
        return self.runner.run(self._same(call, fake, fake_sorts=fake_sorts))

    async def _same(self, call: Operation, fake: Operation | None = None, *, fake_sorts: bool = False) -> Any:
        self.answer = answer = await outcome(call(self.real))
        self.clock_ms = await self._moment_ms()
        expected = self.seen(answer)
        assert self.seen(await outcome(call(self.twin))) == expected
        if self.fake is not None:
            faked, expected = lenient(self.seen(await outcome((fake or call)(self.fake)))), lenient(expected)
            if fake_sorts:
                faked, expected = sorted(faked, key=str), sorted(expected, key=str)
            assert fake or faked == expected, "fakeredis"
        return answer

    def while_they_wait(self, stream: str, group: str, consumers: str, do: Sequence[Operation]) -> None:
        """Let consumers wait for new entries, one each, and then do something: all are answered the same."""
        self.runner.run(self._while_they_wait(stream, group, consumers, do))

    async def _while_they_wait(self, stream: str, group: str, consumers: str, do: Sequence[Operation]) -> None:
        async def read(one: Party, consumer: str, block: int | None) -> Any:
            return await outcome(one.redis.xreadgroup(group, consumer, {stream: ">"}, count=1, block=block))

        async def wait(one: Party) -> list[asyncio.Task[Any]]:
            waiting: list[asyncio.Task[Any]] = []
            for number, consumer in enumerate(consumers, start=1):
                waiting.append(asyncio.create_task(read(one, consumer, 4_000)))
                while await self._blocked(one) < number:  # noqa: ASYNC110 -- only the server knows
                    await asyncio.sleep(0)
            return waiting

        at_real, at_model = await wait(self.real), await wait(self.twin)
        unserved = list(consumers)
        for operation in do:
            await self._same(operation)
            if self.fake is not None:  # which does not wait, so it asks again
                unserved = [one for one in unserved if await read(self.fake, one, None) == []]
        answers = plain(await asyncio.gather(*at_real)), plain(await asyncio.gather(*at_model))
        if self.old:
            answers = lenient(answers[0]), lenient(answers[1])
        assert answers[0] == answers[1]

    async def _blocked(self, one: Party) -> int:
        """How many wait at a server."""
        return (
            len(self.model._blocked) if one is self.twin else int((await one.redis.info("clients"))["blocked_clients"])
        )

    def refuse(self, error: ResponseError | None) -> None:
        """Let the servers refuse writes, or take them again. fakeredis cannot, and is left out."""
        self.model.refuses = error
        self.fake = None if error else self.fake
        self.runner.run(self._refuse(error))

    async def _refuse(self, error: ResponseError | None) -> None:
        await self.real.redis.config_set("maxmemory", 1 if error is FULL else 0)
        await self.real.redis.replicaof(*(("127.0.0.1", 1) if error is REPLICA else ("NO", "ONE")))

    async def _moment_ms(self) -> int:
        """When the newest entries were added, or now, so that ids are equal and leases live as long."""
        ask = self.real.redis.pipeline(transaction=False)
        ask.time()
        for key in STREAMS:
            ask.xinfo_stream(key)
        (seconds, micros), *streams = await ask.execute(raise_on_error=False)
        for key, facts in zip(STREAMS, streams, strict=True):
            held = self.model.keys.get(key)
            seen = held.last if isinstance(held, Stream) else (0, 0)
            if not isinstance(facts, Exception):
                ms, number = map(int, facts["last-generated-id"].split("-"))
                if (ms, number) > seen:
                    if self.old:
                        await self._follow(key, seen)
                    return ms
        return int(seconds * 1000 + micros // 1000)

    async def _follow(self, key: str, seen: Id) -> None:
        """Before 7.2 the time went on within a script: then each entry is added at the moment it was."""
        newer = await self.real.redis.xrange(key, f"({shown(seen)}", "+")
        moments = [int(entry_id.partition("-")[0]) for entry_id, _ in newer]
        if len(set(moments)) > 1:
            self.moments_ms = moments
            self.fake = None

    # --- what is there

    @invariant()
    def all_hold_the_same(self) -> None:
        """Every key, every entry, and every group with what is pending for whom."""
        self.runner.run(self._all_hold_the_same())

    async def _all_hold_the_same(self) -> None:
        kinds = {key: type(held) for key, held in self.model.keys.items()}
        expected = await self._held(self.real, kinds)
        assert await self._held(self.twin, kinds) == expected
        assert sorted(await self.real.redis.keys("test:*")) == sorted(kinds)
        if self.fake is not None:
            assert lenient(await self._held(self.fake, kinds)) == lenient(expected), "fakeredis"
            assert sorted(await self.fake.redis.keys("test:*")) == sorted(kinds), "fakeredis"

    async def _held(self, party: Party, kinds: dict[str, type]) -> Any:
        ask = party.redis.pipeline(transaction=True)
        for key, kind in kinds.items():
            if kind is Stream:
                self._ask_of_stream(ask, key)
            elif kind is dict:
                ask.hgetall(key)
            elif kind is list:
                ask.lrange(key, 0, -1)
            else:
                ask.get(key)
        return self.seen(await ask.execute())

    def _ask_of_stream(self, ask: Any, key: str) -> None:
        ask.xrange(key)
        ask.xinfo_stream(key)
        ask.xinfo_groups(key)
        for group in self.model.stream(key).groups:
            ask.xpending_range(key, group, "-", "+", 1000)
            ask.xinfo_consumers(key, group)

    def teardown(self) -> None:
        """Every connection is closed, and fakeredis has its own clock again."""
        self._patched.close()
        self.runner.run(self._closed())
        self.runner.close()

    async def _closed(self) -> None:
        await self.real.redis.aclose()
