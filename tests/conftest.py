"""What most tests need: a clock to set, a real server, an empty store on it, and a broker that plays answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import fakeredis
import httpx
import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis

from poller.broker import TOKEN_API_ID, Broker
from poller.budget import MARGIN_S, USUAL_LATENCY_S, Limit
from poller.catalogue import CATALOGUE
from poller.clock import Clock
from poller.gate import Gates
from poller.grid import Timing
from poller.poll import Desk
from poller.quarantine import Quarantine
from poller.session import KST, Calendar
from poller.store import Store, connect
from tests.servers import RealServer

MONDAY_NOON = datetime(2026, 11, 23, 12, 0, tzinfo=KST)


class HandClock(Clock):
    """A clock that moves when it is told to."""

    def __init__(self, now: datetime = MONDAY_NOON) -> None:
        self.moment = now

    def now(self) -> datetime:
        return self.moment

    def monotonic_s(self) -> float:
        return self.moment.timestamp()

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class FastClock(Clock):
    """Real time, sped up: ten seconds of a plan pass while a test waits for one."""

    SPEED = 10.0

    def __init__(self) -> None:
        self._began_s = super().monotonic_s()

    def now(self) -> datetime:
        return MONDAY_NOON + timedelta(seconds=self.monotonic_s())

    def monotonic_s(self) -> float:
        return (super().monotonic_s() - self._began_s) * self.SPEED

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        return await super().wait(event, timeout_s / self.SPEED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers were compared with each other, and which could not be."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [pair for report in reports for pair in getattr(report, "user_properties", [])]
    engines, missing = (
        ", ".join(dict.fromkeys(str(value) for name, value in told if name == wanted))
        for wanted in ("engine", "no engine")
    )
    if engines or missing:
        terminalreporter.write_line(f"engines: {'; '.join(filter(None, (engines, missing)))}")


def broker_for(redis: Redis, play: Callable[[httpx.Request], httpx.Response], clock: Clock) -> Broker:
    """A broker client that is answered by `play`, with limits that do not matter."""
    limits = {
        name: Limit(50, per_s=-MARGIN_S - USUAL_LATENCY_S) for name in [*(tr.code for tr in CATALOGUE), TOKEN_API_ID]
    }
    return Broker(
        "http://broker",
        SecretStr("k"),
        SecretStr("s"),
        gates=Gates(limits, clock),
        redis=redis,
        prefix="test",
        clock=clock,
        transport=httpx.MockTransport(play),
    )


@asynccontextmanager
async def desk_for(
    redis: Redis, play: Callable[[httpx.Request], httpx.Response], clock: Clock, path: Path
) -> AsyncIterator[Desk]:
    """Everything a poll works with, around the clock, answered by `play`."""
    async with broker_for(redis, play, clock) as broker:
        yield Desk(broker, Store(redis, "test"), Timing(Calendar(), None), clock, Quarantine(path))


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command sets the logs up for its process, with a stream that ends with its test."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A real Valkey, started once: what Lua and streams do, only a server knows."""
    with RealServer(Path(tmp_path_factory.mktemp("valkey"))) as server:
        yield server


@pytest.fixture
async def redis(real_server: RealServer) -> AsyncIterator[Redis]:
    """A client as the poller makes it, on an empty server."""
    client = connect(real_server.url)
    await client.flushall()
    await client.script_flush()
    yield client
    await client.aclose()


@pytest.fixture
async def fake_redis() -> AsyncIterator[Redis]:
    client = fakeredis.FakeAsyncRedis(decode_responses=True)
    yield client
    await client.aclose()
