"""A group on one stream goes in; its place on the server comes out: made where it left off, moved on, inherited.

The surprise: the position is written down beside the group, which knows it as well, because a server may lose the
group. It says up to where everything is done, whoever had it, so that a group that is made again loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from poller.contract import Keys

START = "0-0"
PAGE = 500
GONE_MS = 86_400_000
"""A member that asked for nothing for so long and owns nothing is taken off the list."""

SCRIPTS = Path(__file__).parent


class Place:
    """A group as one of its consumers uses it. Raises RedisError and OSError of the server."""

    def __init__(self, redis: Redis, keys: Keys, tr: str, stream: str, group: str, name: str) -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self._stream, self._group, self._name = stream, group, name
        self._position, self._failing = keys.of(tr, "position", group), keys.of(tr, "failing", group)
        self._done = (SCRIPTS / "done.lua").read_text("utf-8")
        self._dismiss = redis.register_script((SCRIPTS / "dismiss.lua").read_text("utf-8"))
        self._log = structlog.get_logger("group").bind(tr=tr, group=group)

    async def make(self) -> None:
        """See that the group exists where it left off.

        One that is there is only looked at: a full server refuses to make it, and would never be read down.
        """
        try:
            if any(one["name"] == self._group for one in await self._redis.xinfo_groups(self._stream)):
                return
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
        position = await self._left_off()
        try:
            await self._redis.xgroup_create(self._stream, self._group, position, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # another member was faster
                raise
        else:
            if position != START:
                self._log.warning("group.recreated", at=position, why="the server had lost it")

    async def _left_off(self) -> str:
        """The position that was written down; the start where the stream ends before it, and so is another one."""
        position = await self._redis.get(self._position)
        try:
            last = (await self._redis.xinfo_stream(self._stream))["last-generated-id"]
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            last = START
        return position if position and order(position) <= order(last) else START

    def moving_on(self, done: Mapping[str, str]) -> tuple[int | str, ...]:
        """The arguments of EVAL that acknowledge what is done; apart from it, so that they may join a pipeline.

        `done` has the entries in order: the id in the stream, and the one that the entry has of itself.
        """
        keys = self._stream, self._position, self._failing
        return self._done, 3, *keys, self._group, len(done), *done, *done.values()

    async def move_on(self, done: Mapping[str, str]) -> None:
        """Acknowledge what is done. Raises ResponseError where the server has lost it."""
        if done:
            await self._redis.eval(*self.moving_on(done))

    async def inherit(self, idle_ms: int, *, alone: bool) -> None:
        """Take over what others were given and have been silent about for so long.

        Claiming does not count as handing out, so that a restart wears nothing down. Members that own nothing and are
        gone for a day are taken off the list: a container has another name after every upgrade.
        """
        after = "-"
        while True:
            pending = await self._redis.xpending_range(self._stream, self._group, after, "+", PAGE, idle=idle_ms)
            theirs = [one["message_id"] for one in pending if one["consumer"] != self._name]
            if theirs:
                taken = await self._redis.xclaim(self._stream, self._group, self._name, idle_ms, theirs, justid=True)
                self._log.info("entries.claimed", entries=len(taken))
                if alone:  # nobody else can have taken the others
                    self.lost([one for one in theirs if one not in set(taken)])
            if len(pending) < PAGE:
                break
            after = f"({pending[-1]['message_id']}"
        await self._dismiss(keys=[self._stream], args=[self._group, self._name, GONE_MS])

    def lost(self, gone: list[str]) -> None:
        """Say which entries nobody will ever handle."""
        if gone:
            self._log.error("entries.lost", ids=gone, why="trimmed before they were handled")


def untouched(facts: Mapping[str, Any]) -> bool:
    """Whether nothing was ever taken out of a stream, by what XINFO STREAM says of it."""
    return bool(facts.get("entries-added") == facts["length"])


def may_be_trimmed(stream_id: str, facts: Mapping[str, Any]) -> bool:
    """Whether an entry that stood there may be gone without the server having lost it, by what XINFO STREAM says."""
    first, deleted = facts["first-entry"], facts.get("max-deleted-entry-id", START)
    outside = first is None or order(stream_id) < order(first[0]) or order(stream_id) <= order(deleted)
    return outside and not untouched(facts)


def order(stream_id: str) -> tuple[int, int]:
    """What ids are compared by."""
    ms, _, number = stream_id.partition("-")
    return int(ms), int(number)
