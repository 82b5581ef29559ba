"""The proxy that holds commands and replies: other tests rest on it, so it has its own."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.retry import Retry

from tests.holding_proxy import HoldingProxy, read_value
from tests.servers import RealServer, client, wait_until

ADD_ONE = "return redis.call('incrby', KEYS[1], ARGV[1])"

CHILD = """
import sys, redis
redis.Redis.from_url(sys.argv[1]).eval(sys.argv[2], 1, "counter", 5)
"""


@pytest.fixture(scope="module", params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    directory: Path = tmp_path_factory.mktemp("s")
    with RealServer(directory, unix_socket=request.param == "unix") as real:
        yield real


@pytest.fixture
async def proxy(server: RealServer) -> AsyncIterator[HoldingProxy]:
    direct = client(server.url)
    direct.flushall()
    direct.close()
    async with HoldingProxy(server.url) as between:
        yield between


@pytest.fixture
async def through(proxy: HoldingProxy) -> AsyncIterator[redis.asyncio.Redis]:
    """A client whose commands take the way through the proxy, and which repeats none of them by itself."""
    connection = redis.asyncio.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=10)
    yield connection
    await connection.aclose()


def counter(server: RealServer) -> int:
    """What the server itself holds."""
    direct = client(server.url)
    value = direct.get("counter")
    direct.close()
    return int(value or 0)


async def add(through: redis.asyncio.Redis, count: int = 1) -> int:
    return int(await through.eval(ADD_ONE, 1, "counter", str(count)))


async def test_without_a_hold_everything_passes(through: redis.asyncio.Redis) -> None:
    pipeline = through.pipeline(transaction=True)
    for number in range(100):
        pipeline.rpush("list", "x" * number)
    await pipeline.execute()
    await through.hset("hash", mapping={"big": b"\r\n*3\r\n" * 100_000, "empty": b""})

    assert await through.llen("list") == 100
    assert await through.hgetall("hash") == {b"big": b"\r\n*3\r\n" * 100_000, b"empty": b""}
    assert await through.get("nothing there") is None


async def test_a_held_request_reaches_the_server_only_when_released(
    proxy: HoldingProxy, through: redis.asyncio.Redis, server: RealServer
) -> None:
    proxy.hold_requests(b"counter")
    call = asyncio.create_task(add(through))
    await proxy.wait_held()

    assert counter(server) == 0
    assert (proxy.held_requests, proxy.held_replies) == (1, 0)
    proxy.release()
    assert await call == 1


async def test_a_dropped_request_never_happened_and_the_next_one_passes(
    proxy: HoldingProxy, through: redis.asyncio.Redis, server: RealServer
) -> None:
    proxy.hold_requests(b"counter")
    call = asyncio.create_task(add(through))
    await proxy.wait_held()
    proxy.drop()

    with pytest.raises(Disconnected):
        await call
    assert counter(server) == 0
    assert await add(through) == 1


async def test_a_dropped_reply_was_carried_out_and_the_next_one_passes(
    proxy: HoldingProxy, through: redis.asyncio.Redis, server: RealServer
) -> None:
    """The client cannot know whether its command was done: the reason commits are recognised by their id."""
    proxy.hold_replies(b"counter")
    call = asyncio.create_task(add(through))
    await proxy.wait_held()
    assert counter(server) == 1
    proxy.drop()

    with pytest.raises(Disconnected):
        await call
    assert (proxy.held_requests, proxy.held_replies) == (0, 1)
    assert await add(through) == 2


async def test_only_what_matches_is_held(proxy: HoldingProxy, through: redis.asyncio.Redis) -> None:
    """Other commands with the marker, scripts without it, and other connections go on."""
    proxy.hold_replies(b"another")

    await through.set("another", "1")
    assert await add(through) == 1
    proxy.hold_requests(lambda command: b"LPUSH" in command)
    held = asyncio.ensure_future(through.execute_command("LPUSH", "list", "x"))  # type: ignore[no-untyped-call]  # redis-py
    await proxy.wait_held()
    assert await add(through) == 2
    proxy.release()
    assert await held == 1


async def test_replies_of_a_pipeline_are_matched_to_their_commands(
    proxy: HoldingProxy, through: redis.asyncio.Redis
) -> None:
    """All requests leave at once; only the reply in the middle is held, and those before it have passed."""
    proxy.hold_replies(b"counter")
    pipeline = through.pipeline(transaction=False)
    pipeline.set("before", "1")
    pipeline.lrange("nothing", 0, -1)
    pipeline.eval(ADD_ONE, 1, "counter", "7")
    pipeline.get("before")
    call = asyncio.create_task(pipeline.execute())
    await proxy.wait_held()

    assert proxy.held_replies == 1
    proxy.release()
    assert await call == [True, [], 7, b"1"]


async def test_a_script_the_server_does_not_know_is_not_what_we_wait_for(
    proxy: HoldingProxy, through: redis.asyncio.Redis, server: RealServer
) -> None:
    """NOSCRIPT says that nothing was done; the reply to hold is that of the second try."""
    await through.script_flush()
    proxy.hold_replies(b"counter")
    script = through.register_script(ADD_ONE)
    call = asyncio.ensure_future(script(keys=["counter"], args=["3"]))
    await proxy.wait_held()

    assert counter(server) == 3
    proxy.release()
    assert int(await call) == 3


async def test_the_command_of_a_killed_process_can_arrive_late(proxy: HoldingProxy, server: RealServer) -> None:
    proxy.hold_requests(b"counter")
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, proxy.url, ADD_ONE)
    await proxy.wait_held()
    child.kill()
    await child.wait()
    assert counter(server) == 0

    proxy.release()
    await asyncio.to_thread(wait_until, lambda: counter(server) == 5, "the late command")


async def test_the_command_of_a_killed_process_can_be_lost(proxy: HoldingProxy, server: RealServer) -> None:
    proxy.hold_replies(b"counter")
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, proxy.url, ADD_ONE)
    await proxy.wait_held()
    child.kill()
    await child.wait()

    assert counter(server) == 5
    proxy.drop()


async def test_a_server_that_is_away_looks_like_one(server: RealServer) -> None:
    gone = server.url.replace("test.sock", "none.sock") if "unix" in server.url else "redis://127.0.0.1:1/0"
    async with HoldingProxy(gone) as proxy:
        connection = redis.asyncio.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0))
        with pytest.raises(Disconnected):
            await connection.ping()
        await connection.aclose()


@pytest.mark.parametrize(
    "value",
    [
        b"+OK\r\n",
        b"PING\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"$0\r\n\r\n",
        b"$4\r\n\r\n\r\n\r\n",
        b"*2\r\n*1\r\n:1\r\n$1\r\na\r\n",
        b"%1\r\n+a\r\n~2\r\n#t\r\n_\r\n",
        b"=7\r\ntxt:a\r\n\r\n",
        b"|1\r\n+ttl\r\n:3\r\n*1\r\n,1.5\r\n",
        b">2\r\n+invalidate\r\n*0\r\n",
        b"!5\r\nERR x\r\n",
    ],
)
async def test_a_value_ends_where_it_ends_however_it_is_cut(value: bytes) -> None:
    """Byte by byte is the worst a network can do."""
    reader = asyncio.StreamReader()
    read = asyncio.create_task(read_value(reader))
    for byte in value + b"+next\r\n":
        reader.feed_data(bytes([byte]))
        await asyncio.sleep(0)

    assert await read == value
    assert await read_value(reader) == b"+next\r\n"
