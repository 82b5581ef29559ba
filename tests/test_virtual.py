"""Time that only passes while nobody works."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta

import pytest

from poller.session import KST
from tests.virtual import NothingCanHappen, VirtualClock, run

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=KST)


async def elapsed_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_week_of_sleep_is_a_week_of_the_loops_time():
    async def week() -> float:
        await asyncio.sleep(7 * 86_400)
        return await elapsed_s()

    assert run(week()) == 7 * 86_400


def test_those_who_sleep_wake_in_the_order_of_their_alarms():
    async def sleepers() -> list[float]:
        woken: list[float] = []

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append(await elapsed_s())

        await asyncio.gather(*(sleep(seconds) for seconds in (3.0, 1.0, 2.5, 0.0)))
        return woken

    assert run(sleepers()) == [0.0, 1.0, 2.5, 3.0]


def test_timeouts_of_both_kinds_end_at_their_time():
    async def impatient() -> tuple[float, float]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 30)
        first = await elapsed_s()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(12):
                await asyncio.Event().wait()
        return first, await elapsed_s()

    assert run(impatient()) == (30, 42)


def test_time_stands_still_while_anything_is_ready():
    async def busy() -> float:
        asyncio.get_running_loop().call_later(0.001, lambda: None)
        for _ in range(1_000):
            await asyncio.sleep(0)
        return await elapsed_s()

    assert run(busy()) == 0


def test_waiting_for_what_never_comes_is_an_error_that_says_who_waits():
    async def forever() -> None:
        await asyncio.create_task(never())

    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingCanHappen, match=r"at 0\.000 s: .*forever.*never"):
        run(forever())


def test_a_threads_work_is_done_in_the_loop():
    async def elsewhere() -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(threading.get_ident)

    assert run(elsewhere()) == threading.get_ident()


def test_the_clock_shows_the_loops_time():
    async def wait() -> tuple[bool, bool, datetime, float]:
        clock, event = VirtualClock(NOON), asyncio.Event()
        in_vain = await clock.wait(event, 90)
        asyncio.get_running_loop().call_later(5, event.set)
        happened = await clock.wait(event, 90)
        return in_vain, happened, clock.now(), clock.monotonic_s()

    assert run(wait()) == (False, True, NOON + timedelta(seconds=95), 95.0)


def test_a_moment_a_year_away_is_met_to_the_microsecond():
    async def year() -> datetime:
        clock = VirtualClock(NOON)
        for second in range(0, 365 * 86_400, 86_399):
            await clock.until(NOON + timedelta(seconds=second + 0.1))
        return clock.now()

    last = (365 * 86_400 - 1) // 86_399 * 86_399

    assert run(year()) == NOON + timedelta(seconds=last + 0.1)
