"""What is parked, why, and how it comes back, on a real server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from structlog.testing import capture_logs

from consumers.blame import STACK_BYTES, stack_of
from consumers.group import MAX_HANDED_OUT, Batch, LeaseLost, NotTheEntry
from consumers.parked import Parked, ParkedError, ParkingLot
from poller.store import connect
from sectorwire import main
from tests.dying_group import DIED
from tests.servers import RealServer
from tests.test_group import (
    PARKED,
    STREAM,
    Notebook,
    consuming,
    killed,
    member,
    memory,
    notes,
    pending,
    publish,
    until,
)

__all__ = ["memory", "notes"]
TRS = ("ka10010", "ka20003")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for the read that is under way, and trouble for the next try."""
    monkeypatch.setattr("consumers.group.BLOCK_MS", 50)
    monkeypatch.setattr("consumers.group.RETRY_S", 0.01)


def lot(redis: Redis) -> ParkingLot:
    return ParkingLot(redis, "test", TRS)


async def parked_one(redis: Redis, notes: Notebook, *numbers: int) -> Parked:
    """Publish 1, 2, 3 to a handler that cannot do 2."""
    await publish(redis, 1, 2, 3)
    notes.fails_on = {2}
    async with consuming(member(redis), notes):
        await until(lambda: notes.seen == [1, 3])
    (one,) = await lot(redis).listed()
    return one


async def test_a_parked_entry_has_its_reason_the_stack_and_where_it_stood(redis: Redis, notes: Notebook):
    one = await parked_one(redis, notes)
    client: Any = redis
    _, (stream_id, fields), _ = await client.xrange(STREAM)

    assert (one.tr, one.group, one.stream_id, one.fields) == ("ka20003", "desk", stream_id, fields)
    assert "ZeroDivisionError: cannot handle this" in one.why
    assert one.stack.startswith("Traceback")
    assert "in __call__" in one.stack
    assert not await redis.exists("test:{ka20003}:failing:desk")


async def test_a_redriven_entry_is_handled_as_it_was_and_nothing_is_published(redis: Redis, notes: Notebook):
    one = await parked_one(redis, notes)
    notes.fails_on = set()
    given: list[Batch] = []

    async def handle(batch: Batch) -> None:
        given.append(batch)

    assert await lot(redis).redrive("ka20003", "desk") == 1
    assert await lot(redis).redrive("ka20003", "desk", [one.id]) == 0  # asked for already
    await publish(redis, 4)
    async with consuming(member(redis), handle):
        await until(lambda: len(given) == 2)
        while await lot(redis).listed():  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.01)

    (again,), (new,) = given
    assert (again.stream_id, again.fields, again.redriven) == (one.stream_id, one.fields, True)
    assert (new.entry.seq if new.entry else 0, new.redriven) == (4, False)
    assert await redis.xlen(STREAM) == 4


async def test_an_order_reaches_a_group_that_is_at_work(redis: Redis, notes: Notebook):
    await parked_one(redis, notes)
    notes.fails_on = set()
    async with consuming(member(redis), notes):
        await lot(redis).redrive("ka20003", "desk")
        await until(lambda: notes.seen == [1, 3, 2])


async def test_what_fails_again_is_parked_again_with_the_new_stack(redis: Redis, notes: Notebook):
    one = await parked_one(redis, notes)
    await lot(redis).redrive("ka20003", "desk", [one.id])
    tries = notes.tries[2]
    async with consuming(member(redis), notes):
        await until(lambda: notes.tries[2] == tries + 1)
        await publish(redis, 4)
        await until(lambda: notes.seen == [1, 3, 4])

    (again,) = await lot(redis).listed("ka20003", "desk")
    assert "handed out again and failed: ZeroDivisionError" in again.why
    assert (again.fields, again.stream_id) == (one.fields, one.stream_id)
    assert notes.tries[2] == tries + 1
    assert not again.asked_for


async def test_a_redriven_entry_waits_where_the_server_fails(redis: Redis, notes: Notebook):
    await parked_one(redis, notes)
    await lot(redis).redrive("ka20003", "desk")
    failures = iter([OutOfMemoryError("full"), LeaseLost("a rival"), NotTheEntry("state")])

    async def handle(batch: Batch) -> None:
        for failure in failures:
            raise failure
        notes.fails_on = set()
        await notes(batch)

    async with consuming(member(redis), handle):
        await until(lambda: notes.seen == [1, 3, 2])


async def test_an_order_outlives_a_server_that_goes_away_in_the_middle(tmp_path: Path, notes: Notebook):
    """It is off the list then, and cannot be put back at once."""
    with RealServer(tmp_path, appendfsync="always") as server:
        async with connect(server.url) as redis:
            await parked_one(redis, notes)
            await lot(redis).redrive("ka20003", "desk")
            notes.fails_on = set()

            async def handle(batch: Batch) -> None:
                if batch[0].redriven and not notes.inside.is_set():
                    server.kill()
                    notes.inside.set()
                    raise RedisConnectionError("gone")
                await notes(batch)

            async with consuming(member(redis), handle):
                await notes.inside.wait()
                await asyncio.to_thread(server.start)
                await until(lambda: notes.seen == [1, 3, 2])


@pytest.mark.parametrize(("command", "done", "handled"), [("lrem", True, 1), ("lrem", False, 1), ("xdel", False, 2)])
async def test_an_order_outlives_a_connection_that_is_lost(
    redis: Redis, notes: Notebook, monkeypatch: pytest.MonkeyPatch, command: str, done: bool, handled: int
):
    """What was asked for is done; at worst it is handled twice."""
    await parked_one(redis, notes)
    await lot(redis).redrive("ka20003", "desk")
    notes.fails_on = set()
    real, failures = getattr(redis, command), [RedisConnectionError("gone")]

    async def cut_off_once(*args: Any) -> Any:
        answer = await real(*args) if done or not failures else None
        for _ in range(len(failures)):
            raise failures.pop()
        return answer

    monkeypatch.setattr(redis, command, cut_off_once)
    async with consuming(member(redis), notes):
        await until(lambda: notes.seen == [1, 3] + [2] * handled)
        while await lot(redis).listed():  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.01)


async def test_an_order_is_put_back_by_a_member_that_only_stands_by_now(
    redis: Redis, notes: Notebook, monkeypatch: pytest.MonkeyPatch
):
    """The one that is active by now carries it out."""
    one = await parked_one(redis, notes)
    await lot(redis).redrive("ka20003", "desk")
    real, failures = redis.lpush, [RedisConnectionError("gone")]

    async def cut_off_once(*args: Any) -> Any:
        for _ in range(len(failures)):
            raise failures.pop()
        return await real(*args)

    async def handle(batch: Batch) -> None:
        await redis.set("test:{ka20003}:active:desk", "another")
        raise LeaseLost("a rival")

    monkeypatch.setattr(redis, "lpush", cut_off_once)
    async with consuming(member(redis), handle):
        await until(lambda: not failures)
        async with asyncio.timeout(20):
            while not (asked_for := await redis.lrange("test:{ka20003}:redrive:desk", 0, -1)):  # noqa: ASYNC110 -- the server tells nobody
                await asyncio.sleep(0.01)

    assert asked_for == [one.id]


async def test_an_order_that_a_full_server_does_not_take_back_stops_nothing_and_is_carried_out_later(
    redis: Redis, notes: Notebook, memory: Callable[[int], Awaitable[Any]]
):
    await parked_one(redis, notes)
    await lot(redis).redrive("ka20003", "desk")
    notes.fails_on = set()
    failures = [OSError("disk")]

    async def handle(batch: Batch) -> None:
        for _ in range(len(failures)):
            await memory(1)
            raise failures.pop()
        await notes(batch)

    with capture_logs() as logs:
        async with consuming(member(redis), handle):
            await until(lambda: any(log["event"] == "group.recovered" for log in logs))
            waiting = [*notes.seen]
            await memory(0)
            await until(lambda: notes.seen == [1, 3, 2])

    assert waiting == [1, 3]


async def test_a_process_that_dies_in_a_redriven_entry_does_so_once(redis: Redis, notes: Notebook):
    await parked_one(redis, notes)
    await lot(redis).redrive("ka20003", "desk")
    client: Any = redis
    taken = await client.lpop("test:{ka20003}:redrive:desk")  # as the loop does, before the handler dies
    async with consuming(member(redis), notes):
        await publish(redis, 4)
        await until(lambda: notes.seen == [1, 3, 4])

    assert [one.id for one in await lot(redis).listed()] == [taken]


async def test_dropping_forgets_what_was_named(redis: Redis, notes: Notebook):
    one = await parked_one(redis, notes)

    assert await lot(redis).drop("ka20003", "desk", [one.id]) == 1
    assert await lot(redis).listed() == []


@pytest.mark.parametrize(
    ("tr", "group", "entry_id", "said"),
    [
        ("ka2003", "desk", "1-0", "no report 'ka2003'; did you mean ka20003?"),
        ("ka20003", "dsk", "1-0", "no group 'dsk'; did you mean desk?"),
        ("ka20003", "desk", "1-0", "no parked entry '1-0'; "),
    ],
)
async def test_an_unknown_name_is_answered_with_the_nearest(
    redis: Redis, notes: Notebook, tr: str, group: str, entry_id: str, said: str
):
    await parked_one(redis, notes)
    with pytest.raises(ParkedError) as error:
        await lot(redis).redrive(tr, group, [entry_id])

    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    "failure", [OutOfMemoryError("full"), OSError("disk"), LeaseLost("rival"), NotTheEntry("state")]
)
async def test_no_entry_is_parked_for_trouble_that_is_not_its_own(redis: Redis, notes: Notebook, failure: Exception):
    """A server that refuses writes for a few seconds fails every handler, over and over."""
    await publish(redis, 1, 2)
    tries = iter(range(3 * MAX_HANDED_OUT))

    async def handle(batch: Batch) -> None:
        for _ in tries:
            raise failure
        await notes(batch)

    async with consuming(member(redis), handle):
        await until(lambda: notes.seen == [1, 2])

    assert not await redis.exists(PARKED)
    assert await pending(redis) == 0


async def test_ten_restarts_in_the_middle_of_a_handler_park_nothing(redis: Redis, notes: Notebook):
    """A task that is cancelled, as all are when one of them fails, hands back what it holds."""
    await publish(redis, 1, 2)
    for _ in range(10):
        cut_off = Notebook()
        cut_off.waits_on = {1}
        await killed(member(redis), cut_off)
        await redis.delete("test:{ka20003}:active:desk")
    async with consuming(member(redis), notes):
        await until(lambda: notes.seen == [1, 2])

    assert not await redis.exists(PARKED)


async def publish_on(redis: Redis, tr: str, count: int) -> None:
    await publish(redis, *range(1, count + 1))
    if tr != "ka20003":
        await redis.rename(STREAM, f"test:{{{tr}}}:changes")


async def run_until_it_ends(url: str, seconds: float, slow_s: float, *fatal: int, name: str = "one") -> int:
    """Start the process once; how it ended."""
    words = [sys.executable, "-m", "tests.dying_group", url, name, str(seconds), str(slow_s), *map(str, fatal)]
    process = await asyncio.create_subprocess_exec(*words, cwd=Path(__file__).parents[1])
    async with asyncio.timeout(30):
        return await process.wait()


async def supervised(url: str, *, name: str = "one") -> int:
    """Start the process again whenever it has died, as systemd would; how often it died of entry 3."""
    deaths = 0
    while await run_until_it_ends(url, 20, 0.3, 3, name=name) == DIED:
        deaths += 1
    return deaths


async def test_an_entry_that_kills_its_process_is_parked_and_no_neighbour_is(
    redis: Redis, real_server: RealServer, config: str, capsys: pytest.CaptureFixture[str]
):
    """The other TR had an entry in hand at the first two deaths, and would at all of them if suspects took no turns."""
    await publish_on(redis, "ka10010", 5)
    await publish_on(redis, "ka20003", 4)
    deaths = await supervised(real_server.url)

    assert await asyncio.to_thread(main, ["parked", "list", "--json", "--config", config]) == 0
    (parked,) = json.loads(capsys.readouterr().out)
    assert (parked["tr"], parked["group"], parked["event_id"]) == ("ka10010", "desk", "ka20003?inds_cd=001#1.3.1")
    assert "the process died" in parked["why"]
    assert deaths == MAX_HANDED_OUT
    client: Any = redis
    assert sorted(await client.lrange("handled", 0, -1)) == ["1", "2", "4", "5"]
    assert len(set(await client.lrange("done", 0, -1))) == 4


@pytest.mark.soak
async def test_an_entry_that_kills_every_member_of_a_shared_group_is_parked(redis: Redis, real_server: RealServer):
    """Whoever takes over from the dead takes the count over as well."""
    await publish_on(redis, "ka10010", 5)
    await publish_on(redis, "ka20003", 4)
    deaths = await asyncio.gather(*(supervised(real_server.url, name=f"member {n}") for n in range(3)))

    parked = await lot(redis).listed()
    assert [(one.tr, one.fields["seq"]) for one in parked] == [("ka10010", "3")]
    assert sum(deaths) == MAX_HANDED_OUT
    client: Any = redis
    assert sorted(await client.lrange("handled", 0, -1)) == ["1", "2", "4", "5"]
    assert len(set(await client.lrange("done", 0, -1))) == 4


async def test_an_entry_that_fails_with_every_member_of_a_shared_group_is_parked(redis: Redis, notes: Notebook):
    await publish(redis, *range(1, 31))
    notes.fails_on = {7}
    members = [member(redis, f"member {n}", alone=False) for n in range(3)]
    async with consuming(members[0], notes), consuming(members[1], notes), consuming(members[2], notes):
        await until(lambda: sorted(notes.seen) == [n for n in range(1, 31) if n != 7])

    (one,) = await lot(redis).listed()
    assert (one.fields["seq"], notes.tries[7]) == ("7", MAX_HANDED_OUT)


async def test_ten_deaths_without_a_bad_entry_park_nothing(redis: Redis, real_server: RealServer):
    await publish_on(redis, "ka10010", 5)
    await publish_on(redis, "ka20003", 60)
    for death in range(10):
        await run_until_it_ends(real_server.url, 0.05 + 0.02 * death, 0.03)
    await run_until_it_ends(real_server.url, 20, 0.03)

    assert await lot(redis).listed() == []
    client: Any = redis
    assert len(set(await client.lrange("done", 0, -1))) == 60


def test_a_stack_is_short_and_tells_no_secret():
    told = "POST https://u:pw@hooks.example/T0/sEcReT?k=1 whsec_abcd token=tkn1 bot12:ABC"
    stack = stack_of(ValueError(told))

    assert len(stack_of(ValueError("x" * 2 * STACK_BYTES)).encode()) <= STACK_BYTES
    assert stack == "ValueError: POST https://hooks.example/… whsec_… token=… bot12:…\n"


@pytest.fixture
def config(tmp_path: Path, real_server: RealServer) -> str:
    path = tmp_path / "sectorwire.toml"
    path.write_text(
        f"""
[kiwoom]
environment = "mock"
[bus]
url = "{real_server.url}"
prefix = "test"
[[poll]]
tr = "ka20003"
target = {{ inds_cd = "001" }}
every = "60s"
""",
        "utf-8",
    )
    return str(path)


async def test_the_command_lists_shows_redrives_and_drops(
    redis: Redis, notes: Notebook, config: str, capsys: pytest.CaptureFixture[str]
):
    one = await parked_one(redis, notes)

    async def said(*words: str, status: int = 0) -> str:
        assert await asyncio.to_thread(main, ["parked", *words, "--config", config]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    assert "ZeroDivisionError" in await said("list")
    assert await said("list", "--group", "desk", "--tr", "ka10010") == "nothing is parked\n"
    assert json.loads(await said("list", "--json"))[0]["stream_id"] == one.stream_id
    assert "Traceback" in await said("show", "ka20003", "desk", one.id)
    assert "as soon as somebody runs the group" in await said("redrive", "ka20003", "desk", one.id)
    assert "did you mean desk?" in await said("redrive", "ka20003", "dsk", status=2)
    assert "or --all" in await said("drop", "ka20003", "desk", status=2)
    assert await said("drop", "ka20003", "desk", "--all") == "1 is dropped\n"
