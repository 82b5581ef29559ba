"""The story, from the broker's answer to what a reader of the stream sees. Read this first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from poller.catalogue import described, tr_named
from poller.contract import Entry, decode, fold, loads
from poller.grid import Job, Timing
from poller.poll import Desk, Watched
from poller.session import Calendar
from poller.trs.sector_indices import SectorIndex
from tests.conftest import HandClock, desk_for

STREAM = "test:{ka20003}:changes"
SNAPSHOT = "test:{ka20003}:snapshot:inds_cd=001"


ELEMENTS = dict.fromkeys(field.element or "" for field in SectorIndex.fields if field.element) | {"wght": ""}


class Exchange:
    """A broker whose indices the test moves. Levels carry the broker's mark, as it sends them."""

    def __init__(self) -> None:
        self.levels = {"001": "-2393.33", "013": "+24001.10"}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json={"return_code": 0, "token": "t", "expires_dt": "20991231000000"})
        rows = [
            {**ELEMENTS, "stk_cd": code, "stk_nm": f"업종 {code}", "cur_prc": level}
            for code, level in self.levels.items()
        ]
        return httpx.Response(200, json={"return_code": 0, "all_inds_idex": rows})


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
async def desk(redis: Redis, clock: HandClock, exchange: Exchange, tmp_path: Path) -> AsyncIterator[Desk]:
    """Everything a poll works with, on a real server, against the exchange above, leading."""
    async with desk_for(redis, exchange, clock, tmp_path) as desk:
        await desk.store.take_lead((tr_named("ka20003"),), desk.now_ms())
        yield desk


@pytest.fixture
def watched(desk: Desk) -> Watched:
    return Watched(Job(tr_named("ka20003").target({"inds_cd": "001"}), 10.0), desk)


async def stream(redis: Redis) -> list[Entry]:
    found: Any = await redis.xrange(STREAM)
    return [decode(fields) for _, fields in found]


async def test_a_level_moves_and_the_stream_says_so(
    redis: Redis, clock: HandClock, exchange: Exchange, watched: Watched
):
    """First sight is a reset with baselines; after that only what moved is told, with what it was before."""
    await watched.poll(clock.now())
    clock.advance(10)
    exchange.levels["013"] = "+24010.00"
    await watched.poll(clock.now())

    entries = await stream(redis)
    assert [(entry.type, entry.subject, entry.seq) for entry in entries] == [
        ("sectorwire.reset", "-", 1),
        ("sectorwire.row.baseline", "indices/001", 2),
        ("sectorwire.row.baseline", "indices/013", 3),
        ("sectorwire.row.changed", "indices/013", 4),
    ]
    news = entries[-1]
    assert news.id == f"ka20003?inds_cd=001#{news.data['epoch']}.2.1"
    assert news.source == "/kiwoom/ka20003?inds_cd=001"
    assert news.data["changed"] == ["level"]
    assert news.data["before"] == {"level": loads("24001.1")}
    assert news.data["after"]["level"] == 24010
    assert (news.data["label"], news.data["trading_day"], news.data["session"]) == ("업종 013", "2026-11-23", "regular")
    assert (news.data["observed_from"][11:19], news.data["observed_at"][11:19]) == ("12:00:00", "12:00:10")


async def test_whoever_folds_the_stream_holds_the_snapshot(
    redis: Redis, clock: HandClock, exchange: Exchange, watched: Watched
):
    for level in ("1", "2", "2", "3.50", "+3.5"):
        exchange.levels["001"] = level
        await watched.poll(clock.now())
        clock.advance(10)

    snapshot: Any = await redis.hgetall(SNAPSHOT)
    folded = fold(await stream(redis), described())["ka20003?inds_cd=001"]
    assert folded == {name: loads(text) for name, text in snapshot.items()}


async def test_an_unchanged_answer_publishes_nothing_but_is_seen(redis: Redis, clock: HandClock, watched: Watched):
    """`observed_from` of the next change is this poll, so looking counts even when nothing happened."""
    await watched.poll(clock.now())
    before = await stream(redis)
    clock.advance(10)
    await watched.poll(clock.now())

    assert await stream(redis) == before
    state: Any = await redis.hgetall("test:{ka20003}:state:inds_cd=001")
    assert state["last_good"].startswith("2026-11-23T12:00:10")
    assert state["version"] == "1"


async def test_a_restart_goes_on_where_the_last_process_stopped(
    redis: Redis, clock: HandClock, exchange: Exchange, watched: Watched, desk: Desk
):
    """A second process loads the snapshot, so a restart never looks like a market event."""
    await watched.poll(clock.now())
    clock.advance(10)
    exchange.levels["001"] = "-2400"
    await Watched(watched.job, desk).poll(clock.now())

    assert [entry.type for entry in await stream(redis)][3:] == ["sectorwire.row.changed"]


async def test_a_long_silence_is_declared_before_the_news(
    redis: Redis, clock: HandClock, exchange: Exchange, watched: Watched
):
    await watched.poll(clock.now())
    clock.advance(60)
    exchange.levels["001"] = "-2400"
    await watched.poll(clock.now())

    gap, news = (await stream(redis))[3:]
    assert (gap.type, gap.data["reason"], gap.data["polls_missed"]) == ("sectorwire.gap", "stopped", 5)
    assert news.type == "sectorwire.row.changed"


async def test_a_new_trading_day_is_a_reset_not_news(
    redis: Redis, clock: HandClock, exchange: Exchange, watched: Watched
):
    await watched.poll(clock.now())
    clock.advance(24 * 3600)
    exchange.levels = {"001": "0", "002": "+1"}
    await watched.poll(clock.now())

    reset = next(entry for entry in await stream(redis) if entry.data.get("reason") == "new_day")
    assert reset.data["joined"] == {"indices": ["002"]}
    assert reset.data["left"] == {"indices": ["013"]}
    assert "sectorwire.row.changed" not in {entry.type for entry in await stream(redis)}


async def test_answers_before_the_opening_are_not_compared(
    redis: Redis, clock: HandClock, exchange: Exchange, watched: Watched, desk: Desk
):
    """An hour before the opening everything shows a change of zero: that is not news, and not a look either."""
    by_hours = Watched(watched.job, replace(desk, timing=Timing(Calendar(), Calendar())))
    await by_hours.poll(clock.now())
    clock.advance(20.5 * 3600)
    exchange.levels["001"] = "2393.33"
    await by_hours.poll(clock.now())
    before_opening = await stream(redis)
    clock.advance(3600)
    await by_hours.poll(clock.now())

    assert len(before_opening) == 3
    gap = (await stream(redis))[3]
    assert (gap.type, gap.data["from"][:19]) == ("sectorwire.gap", "2026-11-23T12:00:00")


async def test_numbers_reach_the_reader_exactly(redis: Redis, clock: HandClock, exchange: Exchange, watched: Watched):
    exchange.levels["001"] = "-90.30"
    await watched.poll(clock.now())
    fields: Any = await redis.xrange(STREAM, min="-", max="+")

    assert '"level":90.3,' in fields[1][1]["data"]
    assert orjson.loads(fields[1][1]["data"])["after"]["level"] == 90.3
