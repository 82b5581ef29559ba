"""What a handler has in hand is its own as long as it works, and another's at once when it is asked to stop."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from consumers.blame import suspects_turn
from consumers.group import SUSPECT
from tests.servers import RealServer
from tests.test_group import STREAM, Notebook, consuming, handed_out, killed, member, notes, pending, publish, until

__all__ = ["notes"]
ACTIVE, REDRIVE = "test:{ka20003}:active:desk", "test:{ka20003}:redrive:desk"
LEASE_S, IDLE_MS = 0.6, 600


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.group.BLOCK_MS", 50)
    monkeypatch.setattr("consumers.group.RETRY_S", 0.01)
    monkeypatch.setattr("consumers.group.LEASE_S", LEASE_S)


@pytest.fixture
def stuck() -> Notebook:
    """A handler that does not end with entry 1 before it is told to."""
    waiting = Notebook()
    waiting.waits_on = {1}
    return waiting


async def begun_anew(redis: Redis, *, alone: bool, times: int = 4) -> None:
    """Until the lease, or the idle time of what is in hand, was seen to begin anew so often."""
    client: Any = redis
    left, before = times, -1.0
    async with asyncio.timeout(20):
        while left:
            if alone:
                age = -float(await client.pttl(ACTIVE))
            else:
                (one,) = await client.xpending_range(STREAM, "desk", "-", "+", 1)
                age = float(one["time_since_delivered"])
            left, before = left - (age < before), age
            await asyncio.sleep(0.005)


async def test_a_slow_handler_keeps_the_lease(redis: Redis, stuck: Notebook, notes: Notebook):
    await publish(redis, 1)
    async with consuming(member(redis, "slow"), stuck), consuming(member(redis, "other"), notes):
        await stuck.inside.wait()
        await begun_anew(redis, alone=True)
        stuck.go_on.set()
        await until(lambda: stuck.seen == [1])

    assert (stuck.tries, notes.seen) == ({1: 1}, [])
    assert await pending(redis) == 0


async def test_nobody_takes_a_slow_member_of_a_shared_group_for_dead(
    redis: Redis, stuck: Notebook, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consumers.group.MIN_IDLE_MS", IDLE_MS)
    await publish(redis, 1)
    async with consuming(member(redis, "slow", alone=False), stuck):
        await stuck.inside.wait()
        async with consuming(member(redis, "other", alone=False), notes):
            await begun_anew(redis, alone=False)
            counts = await handed_out(redis)
            stuck.go_on.set()
            await until(lambda: stuck.seen == [1])

    assert list(counts.values()) == [1]
    assert (stuck.tries, notes.seen) == ({1: 1}, [])
    assert await pending(redis) == 0


async def test_a_member_that_waits_for_its_turn_keeps_the_lease(redis: Redis, notes: Notebook):
    """Another TR's suspect may be slow; its turn is the process's."""
    await publish(redis, 1)
    await given_as_a_suspect(redis)
    async with suspects_turn():
        working = consuming(member(redis), notes)
        await working.__aenter__()
        await begun_anew(redis, alone=True)
        waited = [*notes.seen]
    await until(lambda: notes.seen == [1])
    await working.__aexit__(None, None, None)

    assert waited == []


async def given_as_a_suspect(redis: Redis) -> None:
    """The group's first entry is the member's, and was handed out too often to come with others."""
    client: Any = redis
    await client.xgroup_create(STREAM, "desk", "0")
    await client.xreadgroup("desk", "one", {STREAM: ">"}, count=1)
    (first,) = await handed_out(redis)
    await client.xclaim(STREAM, "desk", "one", 0, [first], retrycount=SUSPECT, justid=True)


@pytest.mark.parametrize("suspect", [False, True])
async def test_what_was_done_after_the_lease_was_lost_is_not_acknowledged(redis: Redis, stuck: Notebook, suspect: bool):
    """The handler ends, since a thread of it would write on; the other member does the entry itself."""
    await publish(redis, 1)
    if suspect:
        await given_as_a_suspect(redis)
    ours = member(redis)
    with capture_logs() as logs:
        async with consuming(ours, stuck):
            await stuck.inside.wait()
            await redis.set(ACTIVE, "another")
            await until(lambda: ours._lease.lost)
            stuck.go_on.set()
            await until(lambda: any(log["event"] == "group.waiting" for log in logs))
            left = list((await handed_out(redis)).values())
            await redis.delete(ACTIVE)
            await until(lambda: stuck.seen == [1, 1])

    assert left == [SUSPECT if suspect else 1]
    assert "another member of desk is active" in next(log["error"] for log in logs if log["event"] == "group.waiting")


async def test_no_handler_is_ended_for_a_server_that_is_away(redis: Redis, stuck: Notebook, real_server: RealServer):
    await publish(redis, 1)
    async with consuming(member(redis), stuck):
        await stuck.inside.wait()
        real_server.pause()
        try:
            await asyncio.sleep(1.5 * LEASE_S)
        finally:
            real_server.resume()
        stuck.go_on.set()
        await until(lambda: stuck.seen == [1])

    assert stuck.tries == {1: 1}
    assert await pending(redis) == 0


async def test_a_handler_that_does_not_end_is_named_again_and_again(
    redis: Redis, stuck: Notebook, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consumers.hand.SLOW_S", 0.01)
    await publish(redis, 1)
    with capture_logs() as logs:
        async with consuming(member(redis), stuck):
            await until(lambda: [log["event"] for log in logs].count("handler.slow") == 2)
            (first,) = await handed_out(redis)
            stuck.go_on.set()

    slow = next(log for log in logs if log["event"] == "handler.slow")
    assert (slow["first"], slow["entries"], slow["tr"], slow["group"]) == (first, 1, "ka20003", "desk")


@pytest.mark.parametrize("alone", [True, False])
async def test_a_stop_hands_back_what_does_not_end_and_another_has_it_at_once(
    redis: Redis, stuck: Notebook, notes: Notebook, monkeypatch: pytest.MonkeyPatch, alone: bool
):
    """Members that share a group wait a minute for one that is silent; not for one that was asked to stop."""
    monkeypatch.setattr("consumers.group.FINISH_S", 0.05)
    await publish(redis, 1, 2)
    with capture_logs() as logs:
        async with consuming(member(redis, "stopped", alone=alone), stuck):
            await stuck.inside.wait()
    counts = await handed_out(redis)
    async with consuming(member(redis, "next", alone=alone), notes):
        await until(lambda: notes.seen == [1, 2])

    assert stuck.seen == []
    assert [log["event"] for log in logs] == ["entries.handed_back"]
    assert list(counts.values()) == [1, 1]


async def test_a_suspect_that_is_handed_back_is_counted_as_before(
    redis: Redis, stuck: Notebook, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consumers.group.FINISH_S", 0.05)
    await publish(redis, 1)
    await given_as_a_suspect(redis)
    async with consuming(member(redis), stuck):
        await stuck.inside.wait()

    assert list((await handed_out(redis)).values()) == [SUSPECT]


async def test_a_stop_while_a_suspect_waits_for_its_turn_hands_nothing_out(
    redis: Redis, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consumers.group.FINISH_S", 0.05)
    await publish(redis, 1)
    await given_as_a_suspect(redis)
    async with suspects_turn(), consuming(member(redis), notes):
        await begun_anew(redis, alone=True, times=1)

    assert notes.tries == {}
    assert list((await handed_out(redis)).values()) == [SUSPECT]
    assert not await redis.exists(ACTIVE)


async def test_a_stop_while_a_redriven_entry_waits_for_its_turn_forgets_no_order(
    redis: Redis, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("consumers.group.FINISH_S", 0.05)
    await redis.xadd("test:{ka20003}:parked:desk", {"parked_id": "1-0"}, id="7-0")
    await redis.rpush(REDRIVE, "6-0", "7-0")
    async with suspects_turn(), consuming(member(redis), notes):
        client: Any = redis
        while await client.llen(REDRIVE) == 2:  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.01)

    assert await redis.lrange(REDRIVE, 0, -1) == ["7-0"]


async def test_a_standby_that_is_stopped_takes_nothing_from_the_active_member(
    redis: Redis, stuck: Notebook, notes: Notebook
):
    await publish(redis, 1)
    async with consuming(member(redis, "active"), stuck):
        await stuck.inside.wait()
        async with consuming(member(redis, "standby"), notes):
            await begun_anew(redis, alone=True, times=2)
        client: Any = redis
        owners = [one["consumer"] for one in await client.xpending_range(STREAM, "desk", "-", "+", 2)]
        stuck.go_on.set()

    assert owners == ["active"]


async def test_what_is_read_after_the_stop_is_not_begun(redis: Redis, notes: Notebook):
    """The read that is under way may bring something; it waits for the next start."""
    await publish(redis, 1)
    async with consuming(member(redis), notes) as stop:
        await until(lambda: notes.seen == [1])
        stop.set()
        await publish(redis, 2)
    begun = [*notes.seen]
    async with consuming(member(redis), notes):
        await until(lambda: notes.seen == [1, 2])

    assert begun == [1]


async def test_what_the_dead_left_is_found_in_a_busy_hour_as_well(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    """Where many share a group, nobody need be quiet for long."""
    monkeypatch.setattr("consumers.group.MIN_IDLE_MS", IDLE_MS)
    await publish(redis, 1)
    dead, busy = Notebook(), Notebook()
    dead.waits_on = {1}
    with suppress(asyncio.CancelledError):
        await killed(member(redis, "dead", alone=False), dead)
    client: Any = redis
    (first,) = await handed_out(redis)
    await client.xclaim(STREAM, "desk", "dead", 0, [first], justid=True)  # a death hands nothing back
    await publish(redis, 2)

    async def never_quiet(batch: Any) -> None:
        await publish(redis, 3)
        await busy(batch)

    async with consuming(member(redis, "busy", alone=False), never_quiet):
        await until(lambda: 1 in busy.seen)


async def test_what_comes_after_the_lease_is_over_is_not_handed_over(redis: Redis, notes: Notebook):
    """The answer to a read may be long on its way; the other member has taken over what it brings."""
    ours, other = member(redis), Notebook()
    with capture_logs() as logs:
        async with consuming(ours, notes):
            await publish(redis, 1)
            await until(lambda: notes.seen == [1])
            await redis.set(ACTIVE, "another")
            ours._lease._until_s = 0.0
            await publish(redis, 2)
            await until(lambda: any(log["event"] == "group.waiting" for log in logs))
            tries = dict(notes.tries)
            await redis.delete(ACTIVE)
            await until(lambda: notes.seen == [1, 2])

    assert (tries, other.seen) == ({1: 1}, [])


async def test_a_handler_that_does_not_end_holds_other_suspects_up_and_does_not_stop_them(
    redis: Redis, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    """Or one of them would stop every report and every group of the process."""
    monkeypatch.setattr("consumers.blame.TURN_S", 0.05)
    await publish(redis, 1)
    await given_as_a_suspect(redis)
    async with suspects_turn():
        async with consuming(member(redis), notes):
            await until(lambda: notes.seen == [1])
        async with suspects_turn():
            pass
