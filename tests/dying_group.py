"""A process of its own that reads one group on two TRs; its handler or its time kills it, as it is told.

python -m tests.dying_group URL NAME SECONDS SLOW_S FATAL…: entries whose `seq` is FATAL on ka10010 kill the process; on
ka20003 each batch takes SLOW_S. Dies without a word after SECONDS; ends with status 0 when nothing is left to do.
A member of any other NAME than "one" shares the group with others.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from consumers import group
from consumers.group import Batch, Membership
from poller.store import connect

DIED = 7
LAST_BREATH_S = 0.1
"""Longer than the other TR needs to take an entry in hand, so that it is there when the process dies."""


async def main(url: str, name: str, seconds: float, slow_s: float, fatal: set[int]) -> None:
    group.BLOCK_MS, group.LEASE_S, group.MIN_IDLE_MS = 50, 0.3, 300
    redis, stop = connect(url), asyncio.Event()
    client: Any = redis
    asyncio.get_running_loop().call_later(seconds, os._exit, DIED)

    async def handle_or_die(batch: Batch) -> None:
        if fatal & {one.entry.seq for one in batch if one.entry}:
            await asyncio.sleep(LAST_BREATH_S)
            os._exit(DIED)
        for one in batch:
            await client.rpush("handled", one.fields["seq"])

    async def take_a_moment(batch: Batch) -> None:
        await asyncio.sleep(slow_s)
        for one in batch:
            await client.rpush("done", one.stream_id)

    async def end_when_all_is_done() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.1)
            facts = [(await client.xinfo_groups(f"test:{{{tr}}}:changes")) for tr in ("ka10010", "ka20003")]
            if all(one and one[0]["pending"] == 0 and one[0]["lag"] == 0 for one in facts):
                stop.set()

    async with asyncio.TaskGroup() as tasks:
        for tr, handler in (("ka10010", handle_or_die), ("ka20003", take_a_moment)):
            tasks.create_task(Membership(redis, "test", tr, "desk", name, alone=name == "one").consume(handler, stop))
        tasks.create_task(end_when_all_is_done())
    await redis.aclose()


if __name__ == "__main__":
    where, member, *numbers = sys.argv[1:]
    asyncio.run(main(where, member, float(numbers[0]), float(numbers[1]), {int(text) for text in numbers[2:]}))
