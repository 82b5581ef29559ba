"""Commands on texts, hashes and lists go in; what a made-up server answers, and refuses, comes out.

The surprises: hashes and lists are replaced and never changed, so that a copy of a server may share them; expiry goes
by the clock that is handed over; and a server without memory lets a script end what it has begun to write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from redis.exceptions import DataError, OutOfMemoryError, RedisError, ResponseError

from tests.model_groups import Stream

Held = dict[str, str] | Stream | str | list[str]
Value = TypeVar("Value")

NEED_MEMORY = {"set", "hset", "hincrby", "lpush", "rpush", "xadd", "xgroup_create"}
WRITE = NEED_MEMORY | {
    *("delete", "hdel", "expire", "lpop", "lrem", "xdel", "xtrim", "xgroup_destroy", "xgroup_delconsumer"),
    *("xreadgroup", "xack", "xclaim"),
}
"""What a server that takes no writes refuses, and what one without memory does."""


def text_of(value: object) -> str:
    """A value as it crosses the wire. Raises DataError as redis-py does."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise DataError(f"Invalid input of type: '{kind}'. Convert to a bytes, string, int or float first.")
    return str(value)


class ModelKeys:
    """What is at the keys of one server, until when, and whether it may be changed."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.keys: dict[str, Held] = {}
        self._ends_ms: dict[str, int] = {}
        self.refuses: RedisError | None = None
        """What the server says instead of taking writes: OutOfMemoryError to what needs memory, a ConnectionError such
        as BusyLoadingError to everything, another error to every write."""
        self.queue_needs_memory = False
        """Whether a full server refuses whatever is asked for in a transaction, as Redis does and Valkey does not."""
        self._changed: set[str] = set()
        """Streams that somebody may wait for."""
        self._written = False

    def may(self, command: str, *, queued: bool = False) -> None:
        """See that a command is not refused, when done or `queued` for a transaction.

        Without memory, a script may end what it has begun to write; and on Redis a transaction may not even read.
        """
        refuses = self.refuses
        if isinstance(refuses, OutOfMemoryError):
            if queued:
                self._written = False
            refused = (queued and self.queue_needs_memory) or (command in NEED_MEMORY and not self._written)
        else:
            refused = refuses is not None and command in WRITE
        if refused:
            self.refuse()
        self._written = True

    def refuse(self) -> NoReturn:
        """Raises what the server says instead."""
        assert self.refuses is not None
        raise type(self.refuses)(*self.refuses.args)  # a new one: clients write into those they get

    # --- keys

    def value(self, key: str, kind: type[Value]) -> Value | None:
        """What is at a key, None where nothing is. Raises ResponseError where it is of another type."""
        if key in self._ends_ms and self._ends_ms[key] <= self.now_ms():
            self._remove(key)
        found = self.keys.get(key)
        if found is not None and not isinstance(found, kind):
            raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found

    def is_or_may_be(self, key: str, kind: type) -> bool:
        """Whether a key is of a type, or free."""
        return isinstance(self.value(key, object), kind | None)

    def _remove(self, key: str) -> None:
        self._ends_ms.pop(key, None)
        if isinstance(self.keys.pop(key, None), Stream):
            self._changed.add(key)

    def delete(self, *keys: str) -> int:
        """DEL."""
        self.may("delete")
        there = [key for key in dict.fromkeys(keys) if self.value(key, object) is not None]
        for key in there:
            self._remove(key)
        return len(there)

    def exists(self, *keys: str) -> int:
        """EXISTS."""
        return sum(self.value(key, object) is not None for key in keys)

    def get(self, key: str) -> str | None:
        """GET."""
        return self.value(key, str)

    def set(self, key: str, value: object, *, nx: bool = False, px: int | None = None) -> bool | None:
        """SET; None where `nx` found something."""
        self.may("set")
        text = text_of(value)
        if nx and self.value(key, object) is not None:
            return None
        self._remove(key)
        self.keys[key] = text
        if px is not None:
            self._ends_ms[key] = self.now_ms() + px
        return True

    def expire(self, key: str, in_ms: int) -> None:
        """PEXPIRE."""
        self.may("expire")
        self._ends_ms[key] = self.now_ms() + in_ms

    def pttl(self, key: str) -> int:
        """PTTL: -2 where nothing is, -1 where it stays."""
        if self.value(key, object) is None:
            return -2
        return self._ends_ms.get(key, self.now_ms() - 1) - self.now_ms()

    def lifetime(self, key: str) -> tuple[str | None, int]:
        """GET and PTTL: the text at a key, and for how many milliseconds it will still be there."""
        text = self.value(key, str)
        return text, self._ends_ms.get(key, self.now_ms()) - self.now_ms()

    def time(self) -> tuple[int, int]:
        """TIME."""
        return self.now_ms() // 1000, self.now_ms() % 1000 * 1000

    # --- hashes and lists

    def hash(self, key: str) -> dict[str, str]:
        """HGETALL; the server's own dictionary, so nobody may change it."""
        return self.value(key, dict) or {}

    def hgetall(self, key: str) -> dict[str, str]:
        """HGETALL."""
        return dict(self.hash(key))

    def hget(self, key: str, name: str) -> str | None:
        """HGET."""
        return self.hash(key).get(name)

    def hmget(self, key: str, names: Sequence[str]) -> list[str | None]:
        """HMGET."""
        return [self.hash(key).get(name) for name in names]

    def hset(
        self, key: str, name: str | None = None, value: object = None, *, mapping: Mapping[str, object] | None = None
    ) -> int:
        """HSET; how many fields are new."""
        self.may("hset")
        fields = {**({} if name is None else {name: value}), **(mapping or {})}
        if not fields:
            raise DataError("'hset' with no key value pairs")
        before = self.hash(key)
        after = {**before, **{name: text_of(value) for name, value in fields.items()}}
        self.keys[key] = after
        return len(after) - len(before)

    def hincrby(self, key: str, name: str, by: int = 1) -> int:
        """HINCRBY."""
        self.may("hincrby")
        number = int(self.hash(key).get(name, "0")) + by
        self.keys[key] = {**self.hash(key), name: str(number)}
        return number

    def hdel(self, key: str, *names: str) -> int:
        """HDEL; a hash without fields is no hash."""
        self.may("hdel")
        if not names:
            raise ResponseError("wrong number of arguments for 'hdel' command")
        before = self.hash(key)
        after = {name: text for name, text in before.items() if name not in names}
        if after:
            self.keys[key] = after
        else:
            self._remove(key)
        return len(before) - len(after)

    def lpush(self, key: str, *values: object) -> int:
        """LPUSH."""
        self.may("lpush")
        texts = [*reversed([text_of(value) for value in values]), *self.lrange(key, 0, -1)]
        self._put(key, texts)
        return len(texts)

    def rpush(self, key: str, *values: object) -> int:
        """RPUSH."""
        self.may("rpush")
        texts = [*self.lrange(key, 0, -1), *map(text_of, values)]
        self._put(key, texts)
        return len(texts)

    def lpop(self, key: str) -> str | None:
        """LPOP; a list without texts is no list."""
        self.may("lpop")
        texts = self.lrange(key, 0, -1)
        self._put(key, texts[1:])
        return texts[0] if texts else None

    def lrem(self, key: str, count: int, value: str) -> int:
        """LREM of so many, from the left; 0 removes all."""
        self.may("lrem")
        texts = list(self.lrange(key, 0, -1))
        found = [place for place, text in enumerate(texts) if text == value][: count or None]
        self._put(key, [text for place, text in enumerate(texts) if place not in found])
        return len(found)

    def _put(self, key: str, texts: list[str]) -> None:
        if texts:
            self.keys[key] = texts
        else:
            self._remove(key)

    def lindex(self, key: str, place: int) -> str | None:
        """LINDEX."""
        return next(iter(self.lrange(key, place, place)), None)

    def lrange(self, key: str, first: int, last: int) -> list[str]:
        """LRANGE, both ends included."""
        return (self.value(key, list) or [])[first : None if last == -1 else last + 1]
