"""Whoever is due first goes first, and never more than the window allows."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from poller.budget import Limit
from poller.clock import Clock
from poller.gate import Deadline, Gate, Gates

SOON = Limit(1, per_s=-0.09)
"""A window of ten milliseconds with the margin: long enough to queue behind, short enough to wait for."""


async def test_the_earliest_deadline_goes_first():
    gate, order = Gate("ka20003", SOON, Clock()), list[str]()

    async def request(name: str, deadline_s: float) -> None:
        async with gate.slot(Deadline(deadline_s)):
            order.append(name)

    await asyncio.gather(request("late", 30), request("early", 10), request("middle", 20))

    assert order == ["early", "middle", "late"]


async def test_a_poll_off_the_grid_gives_way_until_its_own_tick_has_come():
    """At a start everybody asks at once; those whose tick has come must not be late for it."""
    gate, order, now_s = Gate("ka20003", SOON, Clock()), list[str](), Clock().monotonic_s()

    async def request(name: str, deadline: Deadline) -> None:
        async with gate.slot(deadline):
            order.append(name)

    await asyncio.gather(
        request("early in the day", Deadline(now_s + 1, counts_from_s=now_s + 60)),
        request("its tick comes soon", Deadline(now_s + 2, counts_from_s=now_s + 0.01)),
        *(request(f"on the grid {n}", Deadline(now_s + 100 + n)) for n in range(5)),
    )

    assert order[-1] == "early in the day"
    assert "on the grid" in order[0]
    assert order.index("its tick comes soon") < 5


async def test_a_refusal_that_names_the_limit_sets_it_and_one_without_halves_the_rate():
    """The number less one: what is left over is for people's own requests."""
    gate = Gate("ka20003", Limit(4), Clock())
    with capture_logs() as logs:
        gate.refused("허용된 요청 개수를 초과하였습니다. 유량=3, API ID=ka20003")
        gate.refused("허용된 요청 개수를 초과하였습니다. 유량=3, API ID=ka20003")

    assert [(log["event"], log["before"], log["now"]) for log in logs] == [("limit.learned", "4 in 1s", "2 in 1s")]


async def test_no_more_than_the_limit_are_in_flight():
    gate, inside, most = Gate("ka20003", Limit(3, per_s=-0.09), Clock()), 0, 0

    async def request() -> None:
        nonlocal inside, most
        async with gate.slot():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(request() for _ in range(20)))

    assert most <= 3


async def test_a_request_given_up_while_waiting_takes_no_slot():
    """A stopped target must not keep the others of its report waiting."""
    gate = Gate("ka20003", SOON, Clock())
    release = asyncio.Event()

    async def hold() -> None:
        async with gate.slot():
            await release.wait()

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    given_up = asyncio.create_task(gate.slot(Deadline(1)).__aenter__())
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    release.set()
    await holder
    async with gate.slot(Deadline(2)):
        pass


async def test_one_limit_over_everything_is_one_gate():
    gates, mock = Gates({"ka20003": Limit(4)}, Clock()), Gates({"*": Limit(1)}, Clock())

    assert gates.of("ka20003") is not gates.of("ka20001")
    assert mock.of("ka20003") is mock.of("au10001")
