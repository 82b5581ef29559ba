"""A client cannot tell the simulator beside it from the one behind a socket."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from poller.simulator.faults import KINDS
from poller.simulator.server import Simulator, SimulatorSettings
from tests.conftest import MONDAY_NOON, HandClock
from tests.inprocess import InProcess, MemoryLedger
from tests.test_simulator import BODIES, STANDING, Caller, calling, meet_a_fault
from tests.virtual import VirtualClock, run


@asynccontextmanager
async def beside(seed: int = 4, **changes: Any) -> AsyncIterator[Caller]:
    """As `calling`, without a socket."""
    settings = SimulatorSettings(**{"clock": STANDING, "limit_per_s": 10_000, "seed": seed, **changes})
    simulator = Simulator(settings, MemoryLedger(), HandClock())
    async with httpx.AsyncClient(base_url="http://broker", transport=InProcess(simulator, random.Random(1))) as http:
        yield Caller(http, simulator)


async def test_every_report_answers_as_over_a_socket():
    async with beside(seed=1) as one, calling(seed=1) as other:
        await one.sign_in()
        for api_id, body in BODIES.items():
            here, there = await one.post(api_id, body), await other.post(api_id, body)

            assert here.content == there.content
            assert {name: there.headers[name] for name in here.headers} == dict(here.headers)


async def test_every_fault_looks_as_over_a_socket():
    async with beside(faults=1.0) as one, calling(sign_in=False, faults=1.0, seed=4) as other:
        seen: list[tuple[str, str]] = []
        while {fault for fault, _ in seen} != set(KINDS):
            for caller in (one, other):
                if not caller.token or seen[-1:] == [("dead_token", "dead_token")]:
                    now = caller.simulator._now()
                    keys = {"appkey": "a", "secretkey": "s"}
                    caller.token = caller.simulator._tokens.issue({"grant_type": "client_credentials", **keys}, now)[
                        "token"
                    ]
            seen.append((await meet_a_fault(one), await meet_a_fault(other)))

    assert all(here == there for here, there in seen)


async def test_a_broker_that_is_away_is_an_error_of_connecting():
    simulator = Simulator(SimulatorSettings(clock=STANDING), MemoryLedger())
    transport = InProcess(simulator, random.Random(1), away=lambda: True)
    async with httpx.AsyncClient(base_url="http://broker", transport=transport) as http:
        with pytest.raises(httpx.ConnectError):
            await http.post("/oauth2/token")


def test_latency_is_drawn_from_its_seed_and_passes_on_the_loop():
    async def ask_twice(seed: int) -> list[float]:
        clock = VirtualClock(MONDAY_NOON)
        simulator = Simulator(SimulatorSettings(clock=STANDING), MemoryLedger(), clock)
        moments = []
        async with httpx.AsyncClient(
            base_url="http://broker", transport=InProcess(simulator, random.Random(seed))
        ) as http:
            for _ in range(2):
                await http.post("/oauth2/token")
                moments.append(clock.monotonic_s())
        return moments

    first = run(ask_twice(1))

    assert 0.04 <= first[0] <= 0.06
    assert 0.08 <= first[1] <= 0.12
    assert run(ask_twice(1)) == first
    assert run(ask_twice(2)) != first
