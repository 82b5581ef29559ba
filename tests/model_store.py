"""A server that is a dictionary: what the store asks of Redis goes in; what the real one would do comes out.

`ModelStore` is the real store on such a server, so its errors, retries and lost replies are the product's own. What is
made up is below it: the few commands the poller uses, and its scripts, each written here a second time in Python and
read beside its Lua. The surprises: a command is always let wait for a moment, because real ones are, and others
run meanwhile; and expiry and entry ids go by the clock that is handed over, so they may be virtual.
"""

from __future__ import annotations

import asyncio
import bisect
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from poller.auth import LET_GO, SWAP
from poller.store import SCRIPTS, Store

Id = tuple[int, int]
Texts = list[str]
Value = TypeVar("Value")
Script = Callable[[Texts, Texts], Any]
FILES = ("commit", "note", "reign", "lease", "trim")


@dataclass
class Group:
    """A consumer group: the last entry it was given, and what of that it has not acknowledged."""

    last_delivered: Id = (0, 0)
    pending: list[Id] = field(default_factory=list)


@dataclass
class Stream:
    """Entries in the order of their ids."""

    ids: list[Id] = field(default_factory=list)
    entries: list[dict[str, str]] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    last: Id = (0, 0)
    size: int = 0

    def add(self, now_ms: int, fields: dict[str, str]) -> None:
        """XADD with the id `*`: ids grow even where the clock does not."""
        self.last = (now_ms, 0) if now_ms > self.last[0] else (self.last[0], self.last[1] + 1)
        self.ids.append(self.last)
        self.entries.append(fields)
        self.size += _size(fields)

    def trim_below(self, keep_from: Id) -> int:
        """XTRIM MINID; how many entries went."""
        gone = bisect.bisect_left(self.ids, keep_from)
        self.size -= sum(map(_size, self.entries[:gone]))
        del self.ids[:gone], self.entries[:gone]
        return gone


class Committed(NamedTuple):
    """What one commit said of a target: its versions before and after, and its last good poll."""

    source: str
    before: int
    after: int
    last_good: str


def _size(fields: Mapping[str, str]) -> int:
    """Roughly the bytes that an entry takes."""
    return sum(map(len, fields.values()))


class ModelServer:
    """What one server holds. Any number of stores may share it."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.run_id = "1"
        """Another one after every restart, and on every replica."""
        self.keys: dict[str, dict[str, str] | Stream | str] = {}
        self._ends_ms: dict[str, int] = {}
        self.commits: list[Committed] = []
        self.scripts: dict[str, Script] = {  # by their text
            **{(SCRIPTS / f"{name}.lua").read_text("utf-8"): getattr(self, name) for name in FILES},
            LET_GO: self.let_go,
            SWAP: self.swap,
        }

    # --- commands

    def value(self, key: str, kind: type[Value]) -> Value | None:
        """What is at a key, None where nothing is. Raises ResponseError where it is of another type."""
        if key in self._ends_ms and self._ends_ms[key] <= self.now_ms():
            self.delete(key)
        found = self.keys.get(key)
        if found is not None and not isinstance(found, kind):
            raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found

    def delete(self, key: str) -> None:
        """DEL."""
        self.keys.pop(key, None)
        self._ends_ms.pop(key, None)

    def set(self, key: str, text: str, *, nx: bool = False, px: int | None = None) -> bool | None:
        """SET; None where `nx` found something."""
        if nx and self.value(key, object) is not None:
            return None
        self.keys[key] = text
        self._ends_ms.pop(key, None)
        if px is not None:
            self.expire(key, px)
        return True

    def expire(self, key: str, in_ms: int) -> None:
        """PEXPIRE."""
        self._ends_ms[key] = self.now_ms() + in_ms

    def lifetime(self, key: str) -> tuple[str | None, int]:
        """GET and PTTL: the text at a key, and for how many milliseconds it will still be there."""
        text = self.value(key, str)
        return text, self._ends_ms.get(key, self.now_ms()) - self.now_ms()

    def hset(self, key: str, fields: Mapping[str, str]) -> None:
        """HSET; nothing to set makes no key."""
        if fields:
            self.keys[key] = {**self.hash(key), **fields}

    def hash(self, key: str) -> dict[str, str]:
        """HGETALL; the server's own dictionary, so nobody may change it."""
        return self.value(key, dict) or {}

    def entries(self, key: str) -> list[dict[str, str]]:
        """XRANGE - +, without the ids."""
        stream = self.value(key, Stream)
        return stream.entries if stream else []

    # --- scripts: beside commit.lua, note.lua, reign.lua, lease.lua, trim.lua, and the two of auth.py

    def commit(self, keys: Texts, argv: Texts) -> tuple[str, int]:
        """One poll: check everything, then write rows, entries, seq and state."""
        meta, changes, snapshot, state = keys
        fence, epoch, before, after, commit_id, id_prefix, source, time, clear = argv[:9]
        if not all(map(self._is_or_may_be, keys, (dict, Stream, dict, dict))):
            return "type", 0
        reign, stored = self.hash(meta), self.hash(state)
        if (reign.get("fence"), reign.get("epoch")) != (fence, epoch):
            return "fenced", 0
        if reign.get("server") != self.run_id:
            return "restarted", 0
        seq, version = int(reign.get("seq", "0")), stored.get("version", "0")
        if version != before:
            if version == after and stored.get("commit") == commit_id:
                return "again", seq
            return "stale", int(version)

        new_state, rows, gone, drafts = _lists(argv[9:])
        if clear == "1":
            self.delete(snapshot)
        self._drop(snapshot, gone)
        self.hset(snapshot, _pairs(rows))
        common = {"specversion": "1.0", "source": source, "time": time, "datacontenttype": "application/json"}
        number = 0
        for kind, subject, data in zip(drafts[::3], drafts[1::3], drafts[2::3], strict=True):
            number += 1
            entry = {"id": f"{id_prefix}{number}", "type": kind, "subject": subject, "seq": str(seq + number)}
            self._stream(changes).add(self.now_ms(), {**common, **entry, "data": data})
        if number:
            self.hset(meta, {"seq": str(seq + number)})
            self.hset(state, {"commit": commit_id})
        self.hset(state, _pairs(new_state))
        self.commits.append(Committed(source, int(before), int(after), time))
        return "ok", seq + number

    def note(self, keys: Texts, argv: Texts) -> int:
        """Write down an attempt that brought no answer, if its poller still leads."""
        meta, state = keys
        if self.hash(meta).get("fence") != argv[0]:
            return 0
        self.hset(state, _pairs(argv[1:]))
        return 1

    def reign(self, keys: Texts, argv: Texts) -> tuple[str, str]:
        """Put a leader's fence into one TR, and begin an epoch no entry has ever carried."""
        (meta,), (token, nonce, now_ms, revision) = keys, argv
        if not self._is_or_may_be(meta, dict):
            return "type", "0"
        reign, mine = self.hash(meta), f"{token}:{nonce}"
        if int(reign.get("revision", "0")) > int(revision):
            return "newer", reign["revision"]
        stored_token = int(reign.get("fence", "0").partition(":")[0])
        if stored_token > int(token) or (stored_token == int(token) and reign.get("fence") != mine):
            return "fenced", reign.get("epoch", "0")
        epoch = str(max(int(now_ms), int(reign.get("epoch", "0")) + 1))
        self.hset(meta, {"fence": mine, "epoch": epoch, "revision": revision, "server": self.run_id})
        return "ok", epoch

    def lease(self, keys: Texts, argv: Texts) -> tuple[str, int]:
        """Take or keep the lead: only the holder named by `takes_from` (or nobody) is followed."""
        (leader,), (mine, life_ms, takes_from) = keys, argv
        holder = self.value(leader, str)
        if holder is None or holder in (mine, takes_from):
            self.set(leader, mine, px=int(life_ms))
            return mine, int(life_ms)
        return holder, self._ends_ms.get(leader, self.now_ms() - 1) - self.now_ms()

    def trim(self, keys: Texts, argv: Texts) -> tuple[int, int]:
        """Trim one stream: what is older than the retention, but nothing that any group still needs."""
        found, keep_from, share = self.keys.get(keys[0]), (int(argv[0]), 0), float(argv[1])
        if not isinstance(found, Stream):
            return 0, 0
        if share < 1 and found.ids:
            first_ms, last_ms = found.ids[0][0], found.ids[-1][0]
            keep_from = max(keep_from, (round(last_ms - (last_ms - first_ms) * share), 0))
        for group in found.groups.values():
            keep_from = min(keep_from, group.last_delivered, *group.pending)
        return found.trim_below(keep_from), found.size

    def let_go(self, keys: Texts, argv: Texts) -> int:
        """Let a lock go, but not one that ran out and is another's."""
        if self.value(keys[0], str) != argv[0]:
            return 0
        self.delete(keys[0])
        return 1

    def swap(self, keys: Texts, argv: Texts) -> int:
        """Store a token in the place of the one that failed, or where there is none."""
        (key,), (failed, token, ends, refused_at, life_s) = keys, argv
        if self.hash(key).get("token", failed) != failed:
            return 0
        self.hset(key, {"token": token, "ends": ends, "refused_at": refused_at})
        self.expire(key, int(life_s) * 1000)
        return 1

    def _is_or_may_be(self, key: str, kind: type) -> bool:
        return isinstance(self.keys.get(key), kind | None)

    def _stream(self, key: str) -> Stream:
        return cast(Stream, self.keys.setdefault(key, Stream()))

    def _drop(self, key: str, names: Sequence[str]) -> None:
        """HDEL; a hash without fields is no hash."""
        rows = self.hash(key)
        for name in names:
            rows.pop(name, None)
        if not rows:
            self.delete(key)


def _pairs(texts: Texts) -> dict[str, str]:
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _lists(texts: Texts) -> list[Texts]:
    """Lists one after the other, each led by its length."""
    lists = []
    while texts:
        size = int(texts[0])
        lists.append(texts[1 : size + 1])
        texts = texts[size + 1 :]
    return lists


def no_trouble(moment: str) -> None:
    """Nothing happens to requests and replies."""


async def one_turn() -> None:
    """The shortest wait: whoever is ready runs, and no time passes."""
    await asyncio.sleep(0)


class ModelRedis:
    """A client of a model server, as far as the poller uses one.

    `trouble` is told the moment, "before commit" or "after commit" (or another script or command), and may raise what a
    client raises: before, the request was lost; after, only its reply. `wait` passes before each of them.
    """

    def __init__(
        self,
        server: ModelServer,
        trouble: Callable[[str], None] = no_trouble,
        wait: Callable[[], Awaitable[None]] = one_turn,
    ) -> None:
        self.server, self.trouble, self._wait = server, trouble, wait

    async def _do(self, name: str, call: Callable[[], Value]) -> Value:
        await self._wait()
        self.trouble(f"before {name}")
        result = call()
        self.trouble(f"after {name}")
        return result

    def register_script(self, text: str) -> Callable[..., Awaitable[Any]]:
        """A script that the model server knows by its text. Raises KeyError for any other."""
        script = self.server.scripts[text]
        return lambda keys, args: self._do(script.__name__, lambda: script(list(keys), list(map(str, args))))

    async def get(self, key: str) -> str | None:
        """GET."""
        return await self._do("get", lambda: self.server.value(key, str))

    async def set(self, key: str, text: str, *, nx: bool = False, px: int | None = None) -> bool | None:
        """SET."""
        return await self._do("set", lambda: self.server.set(key, text, nx=nx, px=px))

    async def delete(self, key: str) -> None:
        """DEL."""
        await self._do("delete", lambda: self.server.delete(key))

    async def hget(self, key: str, name: str) -> str | None:
        """HGET."""
        return await self._do("hget", lambda: self.server.hash(key).get(name))

    async def hmget(self, key: str, names: Sequence[str]) -> list[str | None]:
        """HMGET."""
        return await self._do("hmget", lambda: [self.server.hash(key).get(name) for name in names])

    async def hgetall(self, key: str) -> dict[str, str]:
        """HGETALL."""
        return await self._do("hgetall", lambda: dict(self.server.hash(key)))

    def pipeline(self, *, transaction: bool) -> ModelPipeline:
        """MULTI, as far as the store needs it."""
        assert transaction, "commands that may be torn apart are not modelled"
        return ModelPipeline(self)


class ModelPipeline:
    """Commands kept back, then done at once."""

    def __init__(self, redis: ModelRedis) -> None:
        self._redis, self._kept = redis, list[Callable[[], None]]()

    async def __aenter__(self) -> ModelPipeline:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._kept.clear()

    def delete(self, key: str) -> None:
        """DEL."""
        self._kept.append(lambda: self._redis.server.delete(key))

    def hset(self, key: str, *, mapping: Mapping[str, str]) -> None:
        """HSET."""
        self._kept.append(lambda: self._redis.server.hset(key, mapping))

    async def execute(self) -> None:
        """EXEC."""
        await self._redis._do("execute", lambda: [command() for command in self._kept])


class ModelStore(Store):
    """The real store on a model server. `nonce` names the poller, the same in every run."""

    def __init__(self, redis: ModelRedis, prefix: str, nonce: str) -> None:
        super().__init__(cast("Redis", redis), prefix)
        self.nonce, self.rng = nonce, random.Random(nonce)
