"""How far each group has come is counted in our own `seq`, on a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from poller.groups import GroupStatus, read_groups, summary
from tests.test_group import STREAM, publish

META = "test:{ka20003}:meta"
DAY_S = 86_400.0


async def published(redis: Redis, *numbers: int) -> None:
    await publish(redis, *numbers)
    await redis.hset(META, "seq", str(numbers[-1]))


async def given(redis: Redis, group: str, count: int, done: int = 0) -> None:
    """A group whose consumer was given so many entries and has done the first of them."""
    client: Any = redis
    await client.xgroup_create(STREAM, group, "0")
    if count:
        ((_, entries),) = await client.xreadgroup(group, "one", {STREAM: ">"}, count=count)
        for entry_id, _ in entries[:done]:
            await client.xack(STREAM, group, entry_id)


async def groups(redis: Redis, later_s: float = 0.0) -> list[GroupStatus]:
    now = datetime.now(UTC) + timedelta(seconds=later_s)
    return await read_groups(redis, "test", ["ka10010", "ka20003"], now=now, retention_s=DAY_S)


async def test_the_lag_counts_what_is_not_done_and_not_what_was_handed_out(redis: Redis):
    await published(redis, *range(11, 21))
    await given(redis, "behind", 5, done=2)
    await given(redis, "new", 0)
    await given(redis, "ready", 10, done=10)
    lags = {one.group: (one.lag, one.pending) for one in await groups(redis)}

    assert lags == {"behind": (8, 3), "new": (10, 0), "ready": (0, 0)}


async def test_a_deletion_does_not_hide_the_lag(redis: Redis):
    """The server's own lag is null from then on."""
    await published(redis, 1, 2, 3)
    await given(redis, "desk", 1, done=1)
    client: Any = redis
    _, (second, _), _ = await client.xrange(STREAM)
    await redis.xdel(STREAM, second)
    (one,) = await groups(redis)

    assert one.lag == 1


async def test_a_group_that_goes_between_two_questions_is_passed_over(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    await published(redis, 1, 2)
    await given(redis, "going", 1)
    await given(redis, "staying", 1)
    client: Any = redis
    listed = client.xinfo_groups

    async def gone_once_listed(stream: str) -> Any:
        found = await listed(stream)
        await client.xgroup_destroy(stream, "going")
        return found

    monkeypatch.setattr(client, "xinfo_groups", gone_once_listed)

    assert [one.group for one in await groups(redis)] == ["staying"]


async def test_a_stream_that_goes_between_two_questions_is_passed_over(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    await published(redis, 1)
    await given(redis, "desk", 1)
    client: Any = redis
    listed = client.xinfo_groups

    async def deleted_once_listed(stream: str) -> Any:
        found = await listed(stream)
        await client.delete(stream)
        return found

    monkeypatch.setattr(client, "xinfo_groups", deleted_once_listed)

    assert await groups(redis) == []


async def test_an_entry_without_a_seq_leaves_the_lag_open(redis: Redis):
    await redis.xadd(STREAM, {"strange": "fields"})
    await given(redis, "desk", 0)
    (one,) = await groups(redis)

    assert one.lag is None
    assert summary([one]) == ["group desk: behind by ka20003 ?"]


async def test_a_group_that_nobody_reads_is_named_once_it_holds_back_more_than_the_retention(redis: Redis):
    await published(redis, 1, 2)
    await given(redis, "theirs", 0)
    await given(redis, "desk", 0)
    await redis.set("test:{ka20003}:position:desk", "0-1")
    fresh, old = await groups(redis), await groups(redis, later_s=DAY_S + 60)

    assert not any(one.abandoned for one in fresh)
    assert [one.group for one in old if one.abandoned] == ["theirs"]
    assert any("group theirs on ka20003 is abandoned" in line and "XGROUP DESTROY" in line for line in summary(old))


async def test_a_group_whose_reader_asks_is_not_abandoned_however_far_behind(redis: Redis):
    await published(redis, 1, 2)
    await given(redis, "slow", 1)

    assert not any(one.abandoned for one in await groups(redis, later_s=DAY_S + 60))


async def test_what_is_parked_is_counted_and_the_command_named(redis: Redis):
    await published(redis, 1)
    await given(redis, "desk", 1, done=1)
    await redis.xadd("test:{ka20003}:parked:desk", {"parked_id": "1-0"})
    found = await groups(redis)

    assert summary(found) == ["group desk: has read everything, 1 parked: see `sectorwire parked list`"]
    assert found[0].as_json()["parked"] == 1
