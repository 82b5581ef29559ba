"""What a real server refuses for a while: trouble that ends by itself ends no poller."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from poller.catalogue import tr_named
from poller.store import Store, StoreDown, connect
from tests.servers import RealServer

INDICES = tr_named("ka20003")
NOW_MS = 1_795_330_635_454


@asynccontextmanager
async def leading(server: RealServer) -> AsyncIterator[Store]:
    """A store on a server that leads, in a client of its own."""
    async with connect(server.url) as redis:
        store = Store(redis, "test")
        assert await store.take_lead((INDICES,), NOW_MS) == 0
        yield store


@asynccontextmanager
async def no_memory_left(redis: Redis) -> AsyncIterator[None]:
    await redis.config_set("maxmemory", "1")
    try:
        yield
    finally:
        await redis.config_set("maxmemory", "0")


async def test_a_full_server_can_still_be_led_since_only_a_leader_makes_room(redis: Redis):
    store, follower = Store(redis, "test"), Store(redis, "test")
    assert await store.take_lead((INDICES,), NOW_MS) == 0
    full = [store.is_full]
    async with no_memory_left(redis):
        assert await store.renew_lead()
        full.append(store.is_full)
        assert await follower.take_lead((INDICES,), NOW_MS) > 0
        await store.give_up_lead()

        assert await follower.take_lead((INDICES,), NOW_MS) == 0
        assert follower.epochs["ka20003"] > NOW_MS
        full.append(follower.is_full)
    assert await follower.renew_lead()
    assert [*full, follower.is_full] == [False, True, True, False]


async def no_replica_is_there(server: RealServer, redis: Any) -> None:
    await redis.config_set("min-replicas-to-write", "1")


async def the_primary_is_away(server: RealServer, redis: Any) -> None:
    await redis.config_set("replica-serve-stale-data", "no")
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")


async def the_disk_of_the_server_is_gone(server: RealServer, redis: Any) -> None:
    await redis.config_set("save", "3600 1")
    shutil.rmtree(server.directory)
    await redis.bgsave()
    while (await redis.info("persistence"))["rdb_last_bgsave_status"] == "ok":  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("trouble", [no_replica_is_there, the_primary_is_away, the_disk_of_the_server_is_gone])
async def test_a_server_that_does_not_do_it_now_is_down_and_not_unfit(
    tmp_path: Path, trouble: Callable[[RealServer, Any], Any]
):
    folder = tmp_path / "server"
    folder.mkdir()
    with RealServer(folder, options=["--appendonly", "no", "--logfile", str(tmp_path / "log")]) as server:
        async with leading(server) as store:
            await trouble(server, store.redis)

            with pytest.raises(StoreDown, match="does not do it now"):
                await store.renew_lead()


async def test_a_server_that_is_busy_with_a_script_is_down_and_not_unfit(tmp_path: Path):
    with RealServer(tmp_path) as server:
        async with leading(server) as store, connect(server.url) as other:
            await store.redis.config_set("busy-reply-threshold", "1")
            endless = asyncio.ensure_future(other.eval("while true do end", 0))
            refused = None
            while refused is None:
                try:
                    await store.renew_lead()
                except StoreDown as error:
                    refused = str(error)
            await store.redis.script_kill()
            with pytest.raises(RedisError):
                await endless

            assert "does not do it now: BUSY" in refused

            assert await store.renew_lead()


async def test_after_a_failover_new_connections_are_made_as_the_address_may_lead_to_the_new_primary(tmp_path: Path):
    with RealServer(tmp_path) as server:
        async with leading(server) as store:
            client: Any = store.redis
            before = await client.client_id()
            await client.execute_command("REPLICAOF", "127.0.0.1", "1")
            assert await client.client_id() == before
            with pytest.raises(StoreDown):
                await store.renew_lead()

            assert await client.client_id() != before


async def test_a_poller_does_not_wait_for_its_own_lease(redis: Redis):
    """A report that is new in its plan was led with a higher token before, so it has to take the lead anew."""
    store, days = Store(redis, "test"), tr_named("ka20009")
    assert await store.take_lead((INDICES,), NOW_MS) == 0
    await redis.hset("test:{ka20009}:meta", "fence", "99:another")

    assert await store.take_lead((INDICES, days), NOW_MS) == 0
    assert store.lead is not None
    assert store.lead.token == 100
