"""A group that nobody reads is warned of, then removed, so that trimming goes on; on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from poller.expiry import Expiry
from poller.grid import Job
from poller.groups import OURS, REMOVED_AFTER
from poller.store import Store
from poller.upkeep import Trimmer, Upkeep
from tests.builders import target
from tests.test_group import POSITION, STREAM, publish

KOSPI = target("ka20003", inds_cd="001")
RETENTION_S = 0.1
NOTED = "test:{ka20003}:abandoned"
Logs = list[MutableMapping[str, Any]]


def trimmer(redis: Redis, *, retention_s: float = RETENTION_S, max_bytes: int = 10**9) -> Trimmer:
    """As the leading poller makes it; a new one is a new poller."""
    store, job = Store(redis, "test"), Job(KOSPI, 60.0)
    return Trimmer(store, [KOSPI.tr], [job], Upkeep(retention_s, max_bytes), Expiry(store))


async def trim(redis: Redis, **settings: Any) -> Logs:
    """Trim once by the server's clock; what was logged."""
    seconds, _ = await redis.time()
    with capture_logs() as logs:
        await trimmer(redis, **settings).trim((seconds + 1) * 1000)
    return logs


async def retentions(times: float) -> None:
    """Let so much time pass: it is the server's own."""
    await asyncio.sleep(times * RETENTION_S + 0.02)


async def given(redis: Redis, group: str, count: int) -> None:
    """A group whose consumer was given so many entries and has done none."""
    client: Any = redis
    await client.xgroup_create(STREAM, group, "0")
    if count:
        await client.xreadgroup(group, "one", {STREAM: ">"}, count=count)


async def ids(redis: Redis) -> list[str]:
    client: Any = redis
    return [entry_id for entry_id, _ in await client.xrange(STREAM)]


async def groups(redis: Redis) -> list[str]:
    client: Any = redis
    return [one["name"] for one in await client.xinfo_groups(STREAM)]


def said(logs: Logs) -> list[str]:
    return [log["event"] for log in logs]


@pytest.mark.parametrize("read", [0, 2], ids=["nobody has ever read", "its reader has gone"])
async def test_a_group_that_nobody_reads_is_warned_of_once_and_then_removed(redis: Redis, read: int):
    await publish(redis, 11, 12, 13)
    first, _, last = await ids(redis)
    await given(redis, "theirs", read)
    await retentions(1)
    warned, again = await trim(redis), await trim(redis)
    kept = await redis.xlen(STREAM)
    await retentions(REMOVED_AFTER - 1)
    removed, after = await trim(redis), await trim(redis)

    needs = {"group": "theirs", "stream": STREAM, "first": first, "last": last, "entries": 3, "pending": read}
    assert (said(warned), said(again), said(removed), said(after)) == (["group.abandoned"], [], ["group.expired"], [])
    assert (warned[0]["log_level"], removed[0]["log_level"]) == ("warning", "error")
    assert needs.items() <= warned[0].items()
    assert needs.items() <= removed[0].items()
    assert (kept, await redis.xlen(STREAM)) == (3, 0)
    assert not await redis.exists(NOTED)


async def test_a_group_that_is_read_again_in_time_begins_anew(redis: Redis):
    """Its reader is seen, or where nobody looked meanwhile, what it has done."""
    await publish(redis, *range(1, 10))
    await given(redis, "theirs", 1)
    client: Any = redis
    await retentions(1)
    first, returned = await trim(redis), Logs()
    while not returned:  # a slow machine may look too late
        await client.xreadgroup("theirs", "one", {STREAM: ">"}, count=1)
        returned = await trim(redis)
    await retentions(1)
    second = await trim(redis)
    await retentions(REMOVED_AFTER - 2)
    await client.xreadgroup("theirs", "passing", {STREAM: ">"}, count=1)
    await client.xgroup_delconsumer(STREAM, "theirs", "passing")  # which leaves no trace but what is read
    await retentions(1)
    unremoved = await trim(redis)

    assert [*map(said, (first, returned, second, unremoved))] == [
        ["group.abandoned"],
        ["group.returned"],
        ["group.abandoned"],
        [],
    ]
    assert await groups(redis) == ["theirs"]


async def test_a_reader_that_asked_while_nobody_looked_is_waited_for_from_then_on(redis: Redis):
    """Even if there was nothing for it, and it has been silent again since: the step that removes looks once more."""
    await publish(redis, 1)
    await given(redis, "theirs", 1)
    client: Any = redis
    await retentions(1)
    await trim(redis)
    await retentions(REMOVED_AFTER - 3)
    await client.xreadgroup("theirs", "one", {STREAM: ">"}, count=1)
    await retentions(3)
    kept = await trim(redis)
    await retentions(REMOVED_AFTER - 4)
    removed = await trim(redis)

    assert [*map(said, (kept, removed))] == [[], ["group.expired"]]


async def test_a_group_of_ours_is_never_removed(redis: Redis):
    """The roles', and those of any other member of ours: it keeps a position."""
    await publish(redis, 1)
    for group in (*OURS, "desk"):
        await given(redis, group, 1)
    await redis.set(POSITION, "0-1")
    await retentions(1)
    logs = await trim(redis)
    await retentions(REMOVED_AFTER)
    logs += await trim(redis)

    assert said(logs) == []
    assert sorted(await groups(redis)) == sorted([*OURS, "desk"])


@pytest.mark.parametrize("gone", ["group", "stream"])
async def test_a_group_that_was_made_anew_is_not_removed_for_what_was_noted_of_the_old_one(redis: Redis, gone: str):
    await publish(redis, 1)
    await given(redis, "theirs", 0)
    await retentions(1)
    noted = await trim(redis)
    await (redis.xgroup_destroy(STREAM, "theirs") if gone == "group" else redis.delete(STREAM))
    forgotten = await trim(redis)
    left = await redis.exists(NOTED)
    await publish(redis, 2)
    await given(redis, "theirs", 0)
    await retentions(REMOVED_AFTER)
    anew = await trim(redis)

    assert [*map(said, (noted, forgotten, anew))] == [["group.abandoned"], [], ["group.abandoned"]]
    assert left == 0
    assert await groups(redis) == ["theirs"]


async def test_a_full_server_notes_and_removes_as_well(redis: Redis):
    """What nobody reads may be what fills it."""
    await publish(redis, 1)
    await given(redis, "theirs", 0)
    await retentions(1)
    try:
        await redis.config_set("maxmemory", 1)
        logs = await trim(redis)
        await retentions(REMOVED_AFTER - 1)
        logs += await trim(redis)
    finally:
        await redis.config_set("maxmemory", 0)

    assert said(logs) == ["group.abandoned", "group.expired"]


async def test_a_group_that_has_everything_may_be_silent_for_ever(redis: Redis):
    await publish(redis, 1)
    await given(redis, "theirs", 1)
    client: Any = redis
    await client.xack(STREAM, "theirs", *await ids(redis))
    await retentions(1)
    logs = await trim(redis)

    assert said(logs) == []
    assert await groups(redis) == ["theirs"]


async def test_a_full_memory_pauses_polling_and_names_whom_it_keeps_entries_for(redis: Redis):
    """A group is removed when its time is over, not when there is much to keep."""
    await publish(redis, 1, 2, 3)
    await given(redis, "theirs", 1)
    await retentions(1)
    logs = await trim(redis, max_bytes=100)

    assert said(logs) == ["group.abandoned", "polling.paused"]
    assert logs[1]["kept_for_nobody"] == [f"theirs on {STREAM}"]
    assert await groups(redis) == ["theirs"]


async def test_a_server_that_refuses_to_tell_hinders_no_trimming(redis: Redis):
    await publish(redis, 1, 2)
    await redis.set(NOTED, "another program's")
    await given(redis, "done", 2)
    client: Any = redis
    await client.xack(STREAM, "done", *await ids(redis))
    await retentions(1)
    ours = trimmer(redis)
    seconds, _ = await redis.time()
    with capture_logs() as logs:
        await ours.trim((seconds + 1) * 1000)
        await ours.trim((seconds + 1) * 1000)

    assert said(logs) == ["groups.unseen"]
    assert await redis.xlen(STREAM) == 1
