"""Whoever is due first goes first, and never more than the window allows."""

from __future__ import annotations

import asyncio

import pytest

from poller.budget import Limit
from poller.clock import Clock
from poller.gate import Gate, Gates

SOON = Limit(1, per_s=-0.09)
"""A window of ten milliseconds with the margin: long enough to queue behind, short enough to wait for."""


async def test_the_earliest_deadline_goes_first():
    gate, order = Gate(SOON, Clock()), list[str]()

    async def request(name: str, deadline_s: float) -> None:
        async with gate.slot(deadline_s):
            order.append(name)

    await asyncio.gather(request("late", 30), request("early", 10), request("middle", 20))

    assert order == ["early", "middle", "late"]


async def test_no_more_than_the_limit_are_in_flight():
    gate, inside, most = Gate(Limit(3, per_s=-0.09), Clock()), 0, 0

    async def request() -> None:
        nonlocal inside, most
        async with gate.slot(0):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(request() for _ in range(20)))

    assert most <= 3


async def test_a_request_given_up_while_waiting_takes_no_slot():
    """A stopped target must not keep the others of its report waiting."""
    gate = Gate(SOON, Clock())
    release = asyncio.Event()

    async def hold() -> None:
        async with gate.slot(0):
            await release.wait()

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    given_up = asyncio.create_task(gate.slot(1).__aenter__())
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    release.set()
    await holder
    async with gate.slot(2):
        pass


async def test_one_limit_over_everything_is_one_gate():
    gates, mock = Gates({"ka20003": Limit(4)}, Clock()), Gates({"*": Limit(1)}, Clock())

    assert gates.of("ka20003") is not gates.of("ka20001")
    assert mock.of("ka20003") is mock.of("au10001")
