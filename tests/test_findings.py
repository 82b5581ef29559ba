"""What the broker's own dates say against the calendar, and the line that mends it."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import httpx
import pytest
import structlog
from redis.asyncio import Redis

from poller.commit import Known
from poller.findings import day_contradiction
from poller.grid import Job
from poller.poll import Watched
from poller.session import KST, Calendar
from tests.builders import recording, target
from tests.conftest import HandClock, desk_for

DAYS = target("ka20009", inds_cd="001")
MONDAY = date(2026, 11, 23)


def known(*days: str, trading_day: date = MONDAY) -> Known:
    return Known(version=1, revision=1, trading_day=trading_day, rows={"days": {day: {} for day in days}})


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-23T{clock}").replace(tzinfo=KST)


def test_a_first_day_that_is_not_today_is_a_closure_nobody_announced():
    told = day_contradiction(DAYS, known("20261120", "20261119"), Calendar(), at("09:05:00"))

    assert "2026-11-20" in told
    assert "closed_days = [2026-11-23]" in told


def test_a_first_day_after_the_calendars_is_a_day_that_trades():
    closed = Calendar(closures=frozenset({MONDAY}))

    told = day_contradiction(DAYS, known("20261123", trading_day=date(2026, 11, 20)), closed, at("12:00:00"))

    assert "open_days = [2026-11-23]" in told


def test_the_hour_before_the_opening_contradicts_nothing():
    """The broker may show the new day's zeros by then, and the calendar knows the day: there is nothing to add."""
    early = known("20261123", "20261120", trading_day=date(2026, 11, 20))

    assert day_contradiction(DAYS, early, Calendar(), at("08:36:00")) == ""


@pytest.mark.parametrize(
    ("day", "clock"), [("20261123", "03:00:00"), ("20261124", "08:36:00"), ("20261128", "12:00:00")]
)
def test_a_day_that_is_yet_to_come_is_a_wrong_clock_and_no_day_to_add(day: str, clock: str):
    before = Calendar().trading_day_at(at(clock))
    told = day_contradiction(DAYS, known(day, trading_day=before), Calendar(), at(clock))

    assert "check this machine's clock" in told
    assert "open_days" not in told


@pytest.mark.parametrize(
    ("asked", "stood", "clock"),
    [
        (DAYS, known("20261123", "20261120"), "12:00:00"),
        (DAYS, known("20261120"), "09:04:59"),  # the broker may be a few minutes late
        (DAYS, known("20261120", trading_day=date(2026, 11, 20)), "12:00:00"),  # not seen today
        (DAYS, known(), "12:00:00"),
        (target("ka20003", inds_cd="001"), known("20261120"), "12:00:00"),
    ],
)
def test_nothing_is_found_where_they_agree_or_nobody_can_tell(asked, stood: Known, clock: str):
    assert day_contradiction(asked, stood, Calendar(), at(clock)) == ""


async def test_a_contradiction_is_logged_once_counted_and_kept_for_status_until_it_ends(
    redis: Redis, clock: HandClock, tmp_path: Path
):
    """An answer that never changes is never read again, and is wrong all the same once the day has begun."""
    played = recording("ka20009")
    (first, *older) = played.answer["inds_cur_prc_daly_rept"]
    dates = ["20261120"]

    def play(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json={"return_code": 0, "token": "t", "expires_dt": "20991231000000"})
        return httpx.Response(
            200, json={**played.answer, "inds_cur_prc_daly_rept": [{**first, "dt_n": dates[-1]}, *older]}
        )

    async with desk_for(redis, play, clock, tmp_path) as desk:
        await desk.store.take_lead((played.target.tr,), desk.now_ms())
        watched = Watched(Job(played.target, 10.0), desk)
        clock.moment = at("09:01:00")
        states = []
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                await watched.poll(clock.now())
                clock.advance(300)
                states.append(await redis.hgetall(f"test:{{ka20009}}:state:{played.target.query}"))
            dates.append("20261123")
            await watched.poll(clock.now())
            states.append(await redis.hgetall(f"test:{{ka20009}}:state:{played.target.query}"))

    told = [log["event"] for log in logs if log["event"].startswith("calendar.")]
    assert told == ["calendar.contradicted", "calendar.confirmed"]
    assert ["closed_days" in state["finding"] for state in states] == [False, True, True, False]
    assert states[-1]["findings"] == "1"
