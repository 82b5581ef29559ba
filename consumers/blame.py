"""A hand-out that came to nothing goes in; whom that counts against, and what is parked for it, come out.

So that a healthy entry is never parked:

* What was handed out twice is a suspect and comes alone, and only what is handed out is counted: a bad entry does not
  count against its neighbours, and a process that dies between two entries counts against none.
* One suspect at a time is in hand in the whole process, all TRs and groups taken together: when it kills the process,
  no other suspect was in a handler. One whose handler does not end holds the others up for `TURN_S`, and no longer.
* Where the server or a disk fails, the lease is lost, the task is cancelled or the handler raises `NotTheEntry`, the
  hand-out is taken back. Without that, a server that refuses writes for four seconds would park what is healthy.

What remains: a process that is killed from outside while its handler has a suspect in hand counts against that entry,
since it looks like an entry that kills. A handler therefore loads what it needs before, not in, its first call.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import structlog
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from poller.contract import Keys

STACK_BYTES = 4_096
"""How much of a traceback is kept with a parked entry: its end, which names the error."""

TURN_S = 60.0
"""How long a suspect waits for its turn: a handler that does not end holds the others up, but does not stop them."""

PARKED = "parked_"
"""What the loop adds to a parked entry begins so; the other fields are the entry's own."""

SCRIPTS = Path(__file__).parent
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


@asynccontextmanager
async def suspects_turn() -> AsyncIterator[None]:
    """Held while a suspect is in a handler of this process; waited for no longer than `TURN_S`."""
    turn, mine = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()), False
    with suppress(TimeoutError):
        async with asyncio.timeout(TURN_S):
            mine = await turn.acquire()
    try:
        yield
    finally:
        if mine:
            turn.release()


class Blame:
    """What goes wrong in one group on one stream, written down on the server."""

    def __init__(self, redis: Redis, keys: Keys, tr: str, stream: str, group: str) -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self._stream, self._group = stream, group
        self.failing, self.redrive = keys.of(tr, "failing", group), keys.of(tr, "redrive", group)
        self.parked = keys.of(tr, "parked", group)
        self._park, self._forgive, self._repark = (
            redis.register_script((SCRIPTS / f"{name}.lua").read_text("utf-8"))
            for name in ("park", "forgive", "repark")
        )
        self._latest = "", ""
        """The entry that failed last, and its stack: a full server does not keep it."""
        self._log = structlog.get_logger("group").bind(tr=tr, group=group)

    async def nobody(self, ids: Sequence[str], before: int) -> None:
        """Count a hand-out as if it had not been. Each was handed out so often before, at most."""
        await self._forgive(keys=[self._stream], args=[self._group, before, *ids])

    async def one(self, entry_id: str, error: Exception) -> None:
        """Keep the stack of an entry that failed alone, for when it is parked."""
        self._latest = entry_id, stack_of(error)
        with suppress(OutOfMemoryError):
            await self._redis.hset(self.failing, *self._latest)

    async def again(self, parked_at: str, entry_id: str, error: Exception) -> None:
        """What was parked, was handed out once more and failed stays parked, with the newer reason."""
        stack = stack_of(error)
        reason = f"handed out again and failed: {last_line(stack)}"
        await self._repark(keys=[self.parked], args=[parked_at, reason, stack])
        self._log.error("entry.parked", entry=entry_id, reason=reason, where=self.parked)

    async def set_aside(self, entry_id: str, handed_out: int) -> None:
        """Park an entry that keeps failing, so that the others flow on."""
        failed, latest = self._latest
        stack = latest if failed == entry_id else await self._redis.hget(self.failing, entry_id) or ""
        cause = last_line(stack) or "no error was seen: the process died each time, or was killed"
        reason = f"handed out {handed_out} times and never acknowledged; {cause}"
        keys = [self._stream, self.parked, self.failing]
        await self._park(keys=keys, args=[self._group, entry_id, reason, stack])
        self._log.error("entry.parked", entry=entry_id, reason=reason, where=self.parked)


def original(fields: dict[str, str]) -> dict[str, str]:
    """The fields of a parked entry as they stood in its stream."""
    return {name: value for name, value in fields.items() if not name.startswith(PARKED)}


def stack_of(error: BaseException) -> str:
    """The end of a traceback, without what addresses and headers carry: tokens, passwords, keys of webhooks."""
    text = "".join(traceback.format_exception(error))
    text = re.sub(r"(\w+://)(?:[^\s/@'\"]*@)?([^\s/'\"?#]*)[^\s'\"]*", r"\1\2/…", text)
    text = re.sub(
        r"(?i)(whsec_|bearer |bot\d+:|(?:secret|password|token|key)\w*['\"]?[=:] ?['\"]?)[^\s'\",)]+", r"\1…", text
    )
    return text.encode(errors="backslashreplace")[-STACK_BYTES:].decode(errors="ignore")


def last_line(stack: str) -> str:
    """What a traceback comes down to: the error and its message."""
    return stack.strip().rpartition("\n")[2]
