"""Which streams the leading poller trims, on a real server; what gives way at the ceiling, test_schedule.py shows."""

from __future__ import annotations

from redis.asyncio import Redis

from poller.contract import STREAMS, Keys
from poller.grid import Job
from poller.store import Store
from poller.upkeep import Trimmer, Upkeep
from tests.builders import target

KOSPI = target("ka20003", inds_cd="001")
NOW_MS = 1_795_330_635_454


async def test_what_a_report_that_left_the_plan_has_published_is_trimmed_as_well(redis: Redis):
    """After a restart nobody polls it; it counts against the ceiling all the same."""
    streams = [Keys("test").of("ka10051", part) for part in STREAMS]
    for stream in streams:
        await redis.xadd(stream, {"n": "old"}, id=f"{NOW_MS - 60_000}-1")
        await redis.xadd(stream, {"n": "new"}, id=f"{NOW_MS}-1")
    trimmer = Trimmer(Store(redis, "test"), [KOSPI.tr], [Job(KOSPI, 1.0)], Upkeep(30.0, 10**9))
    await trimmer.trim(NOW_MS)

    assert [await redis.xlen(stream) for stream in streams] == [1, 1]
