"""People's requests and, on the mock server, everybody's share one slot, whatever process they come from."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from poller.budget import Limit
from poller.clock import Clock
from poller.errors import TryLater
from poller.gate import Gates
from poller.store import connect
from poller.turnstile import Turnstile
from tests.servers import free_port

HOLD_S = 0.05


async def test_two_processes_never_ask_within_a_window_of_each_other(redis: Redis):
    """Counted from the answers, since nobody knows when in between the server counts."""
    stays: list[tuple[float, float]] = []

    async def ask(turnstile: Turnstile) -> None:
        for _ in range(3):
            async with turnstile.slot():
                entered_s = asyncio.get_running_loop().time()
                await asyncio.sleep(0.01)
                stays.append((entered_s, asyncio.get_running_loop().time()))

    await asyncio.gather(*(ask(Turnstile(redis, "test:slot", HOLD_S)) for _ in range(3)))

    assert len(stays) == 9
    assert all(later[0] - earlier[1] > HOLD_S - 0.005 for earlier, later in pairwise(sorted(stays)))


async def test_a_slot_that_passed_to_another_is_not_touched(redis: Redis):
    async with Turnstile(redis, "test:slot", HOLD_S).slot():
        await redis.set("test:slot", "somebody else", px=60_000)

    assert await redis.get("test:slot") == "somebody else"
    assert await redis.pttl("test:slot") > 50_000


async def test_without_a_server_nothing_is_asked():
    client = connect(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(TryLater, match="request slot"):
        async with Turnstile(client, "test:slot", HOLD_S).slot():
            pass
    await client.aclose()


async def test_a_gate_asks_for_the_shared_slot_after_its_own(redis: Redis):
    gates = Gates({"*": Limit(1, per_s=-0.09)}, Clock(), lambda name: Turnstile(redis, f"test:slot:{name}", HOLD_S))

    async with gates.of("ka20003").slot():
        assert await redis.exists("test:slot:*") == 1
    assert 0 < await redis.pttl("test:slot:*") <= HOLD_S * 1000
