"""Commands on sorted sets go in; what a model server then holds and answers comes out, as far as the queues need it.

The surprises: scores are kept as the texts they were given as, and to the rest of the model a sorted set is a hash of
them, so it is copied, saved and deleted like one; and a server that refuses HSET refuses ZADD, and with HDEL what
removes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.model_server import ModelServer


class SortedSet(dict[str, str]):
    """Members and their scores. Replaced and never changed."""


def members(server: ModelServer, key: str) -> SortedSet:
    """What is there, an empty one where nothing is. Raises ResponseError where it is of another type."""
    return server.value(key, SortedSet) or SortedSet()


def zadd(server: ModelServer, key: str, score: str, member: str, *, nx: bool = False) -> int:
    """ZADD of one; how many are new. With `nx` one that is there keeps its score."""
    server.may("hset")
    held = members(server, key)
    if not (nx and member in held):
        server.keys[key] = SortedSet({**held, member: score})
    return int(member not in held)


def zrem(server: ModelServer, key: str, *gone: str) -> int:
    """ZREM; a sorted set without members is none."""
    server.may("hdel")
    held = members(server, key)
    left = SortedSet({member: score for member, score in held.items() if member not in gone})
    if left:
        server.keys[key] = left
    elif held:
        server.delete(key)
    return len(held) - len(left)


def zrem_below(server: ModelServer, key: str, score: int) -> int:
    """ZREMRANGEBYSCORE -inf (score."""
    return zrem(server, key, *(member for member, held in members(server, key).items() if int(held) < score))


def zscore(server: ModelServer, key: str, member: str) -> str | None:
    """ZSCORE."""
    return members(server, key).get(member)


def first_of_lane(server: ModelServer, key: str, lane: str) -> str | None:
    """ZRANGEBYLEX [lane: (lane; LIMIT 0 1: the least member that begins so, `;` being the letter after `:`."""
    return min((member for member in members(server, key) if member.startswith(f"{lane}:")), default=None)
