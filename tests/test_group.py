"""Every entry reaches the handler, in order and until it is done, whoever dies, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from consumers.group import MAX_HANDED_OUT, Batch, Handler, Membership
from poller.contract import dumps
from poller.store import connect
from tests.servers import RealServer

STREAM, PARKED = "test:{ka20003}:changes", "test:{ka20003}:parked:desk"
POSITION = "test:{ka20003}:position:desk"


def member(redis: Redis, name: str = "one", *, alone: bool = True) -> Membership:
    return Membership(redis, "test", "ka20003", "desk", name, alone=alone)


async def publish(redis: Redis, *numbers: int) -> None:
    for number in numbers:
        fields: dict[Any, Any] = {
            "specversion": "1.0",
            "id": f"ka20003?inds_cd=001#1.{number}.1",
            "source": "/kiwoom/ka20003?inds_cd=001",
            "type": "sectorwire.row.changed",
            "subject": "indices/001",
            "time": "2026-11-23T09:00:01.123+09:00",
            "seq": str(number),
            "datacontenttype": "application/json",
            "data": dumps({"number": number}),
        }
        await redis.xadd(STREAM, fields)


class Notebook:
    """A handler that writes down what it was given, and may be told to fail or to wait."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.tries: dict[int, int] = {}
        self.fails_on: set[int] = set()
        self.waits_on: set[int] = set()
        self.inside = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, batch: Batch) -> None:
        numbers = [delivery.entry.seq for delivery in batch if delivery.entry]
        for number in numbers:
            self.tries[number] = self.tries.get(number, 0) + 1
        if self.fails_on & set(numbers):
            raise ZeroDivisionError("cannot handle this")
        if self.waits_on & set(numbers):
            self.inside.set()
            await self.go_on.wait()
        self.seen += numbers


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for the read that is under way."""
    monkeypatch.setattr("consumers.group.BLOCK_MS", 100)


@pytest.fixture
def notes() -> Notebook:
    return Notebook()


@asynccontextmanager
async def consuming(membership: Membership, handler: Handler) -> AsyncIterator[asyncio.Event]:
    """A member at work; stopped cleanly at the end."""
    stop = asyncio.Event()
    working = asyncio.create_task(membership.consume(handler, stop))
    try:
        yield stop
    finally:
        stop.set()
        await working


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- any condition, not only an event's
            await asyncio.sleep(0.01)


async def pending(redis: Redis) -> int:
    client: Any = redis
    return int((await client.xpending(STREAM, "desk"))["pending"])


async def handed_out(redis: Redis) -> dict[str, int]:
    """How often each pending entry was handed out, by the server's own count."""
    client: Any = redis
    found = await client.xpending_range(STREAM, "desk", "-", "+", 100)
    return {one["message_id"]: one["times_delivered"] for one in found}


async def killed(membership: Membership, handler: Notebook) -> None:
    """A member that dies while its handler is at work: nothing is acknowledged, the lease is left behind."""
    working = asyncio.create_task(membership.consume(handler, asyncio.Event()))
    await handler.inside.wait()
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working


async def test_entries_come_once_in_order_and_are_acknowledged(redis: Redis, notes: Notebook):
    await publish(redis, *range(1, 6))
    async with consuming(member(redis), notes):
        await until(lambda: len(notes.seen) == 5)
        await publish(redis, 6)
        await until(lambda: len(notes.seen) == 6)

    assert notes.seen == [1, 2, 3, 4, 5, 6]
    assert await pending(redis) == 0


async def test_what_was_published_before_the_first_start_is_not_missed(redis: Redis, notes: Notebook):
    await publish(redis, 1)
    async with consuming(member(redis), notes):
        await until(lambda: notes.seen == [1])


async def test_a_restart_begins_with_what_was_not_finished(redis: Redis, notes: Notebook):
    await publish(redis, 1, 2, 3)
    first = Notebook()
    first.waits_on = {2}
    await killed(member(redis), first)
    await redis.delete("test:{ka20003}:active:desk")
    await publish(redis, 4)
    async with consuming(member(redis), notes):
        await until(lambda: len(notes.seen) == 4)

    assert notes.seen == [1, 2, 3, 4]


async def test_what_a_dead_member_held_is_taken_over_in_order(redis: Redis, notes: Notebook):
    await publish(redis, 1, 2, 3)
    first = Notebook()
    first.waits_on = {1}
    await killed(member(redis, "dead"), first)
    await redis.delete("test:{ka20003}:active:desk")
    await publish(redis, 4)
    async with consuming(member(redis, "alive"), notes):
        await until(lambda: len(notes.seen) == 4)

    assert notes.seen == [1, 2, 3, 4]
    assert await pending(redis) == 0


async def test_an_entry_that_keeps_failing_is_parked_and_the_others_flow_on(redis: Redis, notes: Notebook):
    """By the server's own count, so that a handler which kills its process is counted too."""
    await publish(redis, 1, 2, 3)
    notes.fails_on = {2}
    with capture_logs() as logs:
        async with consuming(member(redis), notes):
            await until(lambda: notes.seen == [1, 3])
            await publish(redis, 4)
            await until(lambda: notes.seen == [1, 3, 4])

    client: Any = redis
    ((_, parked),) = await client.xrange(PARKED)
    assert notes.tries[2] == MAX_HANDED_OUT
    assert notes.tries[3] == 3  # twice with the others, then alone
    assert (parked["seq"], parked["parked_by"]) == ("2", "desk")
    assert f"handed out {MAX_HANDED_OUT} times" in parked["parked_why"]
    assert [log["event"] for log in logs if log["event"] == "entry.parked"] == ["entry.parked"]


async def test_only_one_member_is_active_and_another_follows_it(redis: Redis, notes: Notebook):
    other = Notebook()

    def seen_by_now(number: int) -> bool:
        return len(notes.seen + other.seen) == number

    await publish(redis, 1)
    async with consuming(member(redis, "first"), notes):
        await until(lambda: notes.seen == [1])
        async with consuming(member(redis, "second"), other) as stop:
            for number in range(2, 6):  # who waits for an entry has his turn after who had the last one
                await publish(redis, number)
                await until(partial(seen_by_now, number))
            stop.set()

    assert other.seen == []
    async with consuming(member(redis, "second"), other):
        await publish(redis, 6)
        await until(lambda: other.seen == [6])


async def test_many_may_share_where_order_does_not_matter(redis: Redis, notes: Notebook):
    other = Notebook()
    first, second = member(redis, "first", alone=False), member(redis, "second", alone=False)
    async with consuming(first, notes), consuming(second, other):
        await publish(redis, *range(1, 21))
        await until(lambda: len(notes.seen) + len(other.seen) == 20)

    assert sorted(notes.seen + other.seen) == list(range(1, 21))


async def test_a_group_that_the_server_lost_goes_on_where_it_was_and_says_so(redis: Redis, notes: Notebook):
    await publish(redis, 1, 2)
    with capture_logs() as logs:
        async with consuming(member(redis), notes):
            await until(lambda: notes.seen == [1, 2])
            await publish(redis, 3)
            await until(lambda: notes.seen == [1, 2, 3])
            await redis.xgroup_destroy(STREAM, "desk")
            await publish(redis, 4)
            await until(lambda: 4 in notes.seen)

    assert "group.recreated" in [log["event"] for log in logs]
    assert notes.seen[-1] == 4
    assert notes.seen.count(1) == 1


async def test_what_stands_where_a_lost_entry_stood_is_not_acknowledged_with_it(redis: Redis, notes: Notebook):
    """A server that lost its tail counts on from its last id, so new entries may have the very ids of those it lost."""
    client: Any = redis
    await publish(redis, 1, 2)
    notes.waits_on = {2}
    async with consuming(member(redis), notes):
        await notes.inside.wait()
        was = await client.xrange(STREAM)
        other = {**was[1][1], "id": "ka20003?inds_cd=001#2.2.1", "seq": "3"}
        await client.delete(STREAM)
        for (entry_id, _), fields in zip(was, (was[0][1], other), strict=True):
            await client.xadd(STREAM, fields, id=entry_id)
        notes.waits_on = set()
        notes.go_on.set()
        await until(lambda: 3 in notes.seen)

    assert await pending(redis) == 0


async def test_a_stop_lets_the_handler_finish_and_acknowledges(redis: Redis, notes: Notebook):
    await publish(redis, 1)
    notes.waits_on = {1}
    async with consuming(member(redis), notes) as stop:
        await notes.inside.wait()
        stop.set()
        notes.go_on.set()

    assert notes.seen == [1]
    assert await pending(redis) == 0
    assert await redis.get("test:{ka20003}:active:desk") is None


async def test_what_is_not_an_entry_of_ours_is_delivered_as_such(redis: Redis):
    """An archive keeps even what it cannot read, so the loop does not decide for it."""
    seen: list[Batch] = []

    async def handle(batch: Batch) -> None:
        seen.append(batch)

    await redis.xadd(STREAM, {"strange": "fields"})
    async with consuming(member(redis), handle):
        await until(lambda: bool(seen))

    assert (seen[0][0].entry, seen[0][0].fields) == (None, {"strange": "fields"})


async def test_a_member_that_is_gone_is_struck_off_only_when_it_owns_nothing(
    redis: Redis, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    """The server forgets for ever what a removed consumer held."""
    monkeypatch.setattr("consumers.place.GONE_MS", 0)
    await publish(redis, 1, 2)
    client: Any = redis
    await client.xgroup_create(STREAM, "desk", "0")
    await client.xreadgroup("desk", "owner", {STREAM: ">"}, count=1)
    await client.xgroup_createconsumer(STREAM, "desk", "idle")
    async with consuming(member(redis, alone=False), notes):
        await until(lambda: notes.seen == [2])

    assert {one["name"]: one["pending"] for one in await client.xinfo_consumers(STREAM, "desk")} == {
        "one": 0,
        "owner": 1,
    }


async def test_a_member_that_is_cut_off_gives_its_hand_out_back(redis: Redis):
    """Cancelled in the middle, it counts against none of the entries it had."""
    await publish(redis, 1, 2)
    counts = []
    for _ in range(3):
        cut_off = Notebook()
        cut_off.waits_on = {1}
        await killed(member(redis), cut_off)
        counts.append(list((await handed_out(redis)).values()))

    assert counts == [[1, 1], [1, 1], [1, 1]]


async def test_members_that_share_lose_nothing_with_the_group(redis: Redis, notes: Notebook):
    """It is made again before the oldest entry that anybody had in hand, not after the last that was done."""
    await publish(redis, 1)
    slow = Notebook()
    slow.waits_on = {1}
    working = asyncio.create_task(member(redis, "slow", alone=False).consume(slow, asyncio.Event()))
    await slow.inside.wait()
    async with consuming(member(redis, "quick", alone=False), notes):
        await publish(redis, 2, 3)
        await until(lambda: notes.seen == [2, 3])
    await redis.xgroup_destroy(STREAM, "desk")
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    async with consuming(member(redis, "next", alone=False), notes):
        await until(lambda: 1 in notes.seen)


async def test_the_position_moves_on_when_the_slowest_is_done(redis: Redis, notes: Notebook):
    await publish(redis, 1, 2, 3)
    slow = Notebook()
    slow.waits_on = {1}
    client: Any = redis
    (first, _), *_, (last, _) = await client.xrange(STREAM)
    await client.xgroup_create(STREAM, "desk", "0")
    await client.xreadgroup("desk", "slow", {STREAM: ">"}, count=1)
    async with consuming(member(redis, "slow", alone=False), slow):
        await slow.inside.wait()
        async with consuming(member(redis, "quick", alone=False), notes):
            await until(lambda: notes.seen == [2, 3])
        held = await client.get(POSITION)
        slow.go_on.set()
    done = await client.get(POSITION)
    await client.xgroup_create(STREAM, "probe", held)
    ((_, ((next_one, _),)),) = await client.xreadgroup("probe", "one", {STREAM: ">"}, count=1)

    assert (next_one, done) == (first, last)


async def test_a_group_whose_stream_is_another_one_starts_at_its_beginning(redis: Redis, notes: Notebook):
    """A stream that was deleted begins anew; with a clock that went back, its ids lie before the position."""
    await redis.set(POSITION, "9999999999999-0")
    await publish(redis, 1)
    async with consuming(member(redis), notes):
        await until(lambda: notes.seen == [1])


async def test_a_full_server_can_still_be_read_down(redis: Redis, notes: Notebook):
    """Nothing is trimmed before it was handled: if a full server stopped the groups, it would stay full."""
    await publish(redis, 1, 2)
    notes.waits_on = {1}
    failures = [OSError("a disk")]

    async def handle(batch: Batch) -> None:
        if failures:
            notes.inside.set()
            await notes.go_on.wait()
            raise failures.pop()
        await notes(batch)

    try:
        async with consuming(member(redis), handle):
            await notes.inside.wait()
            await redis.config_set("maxmemory", "1")
            notes.go_on.set()
            await until(lambda: notes.seen == [1, 2])
    finally:
        await redis.config_set("maxmemory", "0")

    assert await pending(redis) == 0


@pytest.fixture
async def memory(redis: Redis) -> AsyncIterator[Callable[[int], Awaitable[Any]]]:
    """Sets how many bytes the server may use; in the end as many as it likes."""
    yield partial(redis.config_set, "maxmemory")
    await redis.config_set("maxmemory", 0)


async def test_a_member_that_starts_on_a_full_server_reads_its_group_down(
    redis: Redis, notes: Notebook, memory: Callable[[int], Awaitable[Any]]
):
    """Whoever is started again because the server was full would else be what keeps it full."""
    await publish(redis, 1, 2)
    client: Any = redis
    await client.xgroup_create(STREAM, "desk", "0")
    await memory(1)
    async with consuming(member(redis), notes):
        await until(lambda: notes.seen == [1, 2])

    assert await pending(redis) == 0


async def test_an_entry_that_keeps_failing_is_parked_on_a_full_server_as_well_with_its_reason(
    redis: Redis, notes: Notebook, memory: Callable[[int], Awaitable[Any]]
):
    """Nothing behind it could be trimmed while it stops its group."""
    await publish(redis, 1, 2)
    client: Any = redis
    await client.xgroup_create(STREAM, "desk", "0")
    notes.fails_on = {1}
    await memory(1)
    with capture_logs():
        async with consuming(member(redis), notes):
            await until(lambda: notes.seen == [2])

    ((_, parked),) = await client.xrange(PARKED)
    assert (parked["seq"], notes.tries[1]) == ("1", MAX_HANDED_OUT)
    assert "ZeroDivisionError: cannot handle this" in parked["parked_why"]


async def test_the_stack_of_an_entry_that_failed_once_is_not_kept(redis: Redis, notes: Notebook):
    await publish(redis, 1)
    notes.fails_on = {1}

    async def handle(batch: Batch) -> None:
        try:
            await notes(batch)
        finally:
            notes.fails_on = set()

    async with consuming(member(redis), handle):
        await until(lambda: notes.seen == [1])

    assert not await redis.exists("test:{ka20003}:failing:desk")


async def test_each_outage_is_said_when_it_begins_and_when_it_ends(
    tmp_path: Path, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    """In a quiet hour as well, when nothing comes between two of them."""
    monkeypatch.setattr("consumers.group.RETRY_S", 0.05)
    with RealServer(tmp_path) as server, capture_logs() as logs:

        def said(event: str, times: int) -> bool:
            return [log["event"] for log in logs].count(event) == times

        async with connect(server.url) as redis, consuming(member(redis), notes):
            for times in (1, 2):
                server.kill()
                await until(partial(said, "group.waiting", times))
                await asyncio.to_thread(server.start)
                await until(partial(said, "group.recovered", times))

    assert [log["event"] for log in logs] == ["group.waiting", "group.recovered"] * 2


async def test_a_primary_that_was_demoted_is_left_for_the_one_that_its_address_leads_to(
    tmp_path: Path, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    """A connection that is open stays with the old one, which answers READONLY for ever."""
    monkeypatch.setattr("consumers.group.RETRY_S", 0.05)
    notes.waits_on = {1}
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    with RealServer(tmp_path / "old") as old, RealServer(tmp_path / "new") as new:
        ports = [new.port, old.port]

        async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            theirs, to_them = await asyncio.open_connection("127.0.0.1", ports[-1])
            with suppress(ConnectionError):
                await asyncio.gather(_passed(reader, to_them), _passed(theirs, writer))

        address = await asyncio.start_server(lead, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{address.sockets[0].getsockname()[1]}/0"
        async with (
            connect(url) as redis,
            connect(old.url) as demoted,
            connect(new.url) as promoted,
            consuming(member(redis), notes),
        ):
            await publish(demoted, 1)
            await notes.inside.wait()  # the server itself closes connections that wait for news
            ports.pop()
            await demoted.slaveof("127.0.0.1", new.port)
            await publish(promoted, 2)
            notes.go_on.set()
            await until(lambda: notes.seen == [1, 2])
        address.close()


async def _passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything that comes, until it ends."""
    while some := await reader.read(65_536):
        writer.write(some)
        await writer.drain()
    writer.close()


@pytest.mark.parametrize(("group", "part"), [("desk", "alerts"), ("send", "changes"), ("alerts-desk", "changes")])
def test_a_group_of_one_name_cannot_read_two_parts(redis: Redis, group: str, part: str):
    """Lease, position and what is parked are named by the group alone: two would take each other's."""
    with pytest.raises(ValueError, match=rf"not {part}.*call it {part}-{group}"):
        Membership(redis, "test", "ka20003", group, "one", part=part)
    Membership(redis, "test", "ka20003", f"{part}-{group}", "one", part=part)
