"""What `status` says of each target, and when a health check fails."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from rich.console import Console
from structlog.testing import capture_logs

from poller.catalogue import tr_named
from poller.commit import iso
from poller.contract import dumps
from poller.grid import Job, Timing
from poller.poll import Watched
from poller.session import Calendar
from poller.status import Status, read_status, table
from tests.conftest import MONDAY_NOON, HandClock, desk_for

JOB = Job(tr_named("ka20003").target({"inds_cd": "001"}), 10.0)
ALWAYS = Timing(Calendar(), None)


async def seen(redis: Redis, ago_s: float, **state: str) -> None:
    """A target that was last seen so long ago, under some leader."""
    fields: dict[Any, Any] = {"version": "7", "last_good": iso(MONDAY_NOON - timedelta(seconds=ago_s)), **state}
    await redis.hset("test:{ka20003}:state:inds_cd=001", mapping=fields)
    await redis.set("test:leader", "1:host.1.ab")


async def status_of(redis: Redis, timing: Timing = ALWAYS) -> Status:
    return await read_status(redis, "test", [JOB], timing, MONDAY_NOON, "valkey 9")


@pytest.mark.parametrize(("ago_s", "well"), [(5, True), (44, True), (46, False)])
async def test_a_target_is_stale_after_three_intervals_and_a_grace(fake_redis: Redis, ago_s: float, well: bool):
    await seen(fake_redis, ago_s)

    assert (await status_of(fake_redis)).well is well


async def test_closed_hours_make_nothing_stale(fake_redis: Redis):
    """At noon on Monday the last poll of Friday is three hours of polling old; on Sunday it is fresh."""
    timing = Timing(Calendar(), Calendar())
    await seen(fake_redis, 65 * 3600)
    on_sunday = await read_status(fake_redis, "test", [JOB], timing, MONDAY_NOON - timedelta(hours=20), "valkey 9")

    assert on_sunday.well
    assert not (await status_of(fake_redis, timing)).well


async def test_without_a_leader_nothing_is_well(fake_redis: Redis):
    await seen(fake_redis, 1)
    await fake_redis.delete("test:leader")

    assert (await status_of(fake_redis)).verdict() == "no poller leads: start `sectorwire poll`"


async def test_a_target_nobody_ever_saw_is_stale(fake_redis: Redis):
    await fake_redis.set("test:leader", "1:host.1.ab")
    found = await status_of(fake_redis)

    assert found.verdict() == "1 of 1 targets stale, first ka20003?inds_cd=001"


async def test_the_table_shows_name_age_and_trouble(fake_redis: Redis):
    await seen(fake_redis, 5, last_error="HTTP 503", next_due=iso(MONDAY_NOON + timedelta(seconds=5)))
    screen = StringIO()
    Console(file=screen, width=200).print(table(await status_of(fake_redis), MONDAY_NOON))

    for word in ("ka20003?inds_cd=001", "종합(KOSPI)", "5s ago", "+5s", "HTTP 503", "well: 1 targets fresh"):
        assert word in screen.getvalue()


async def test_a_key_a_report_and_the_broker_are_shown_while_they_are_not_well(fake_redis: Redis):
    since, ago = iso(MONDAY_NOON), iso(MONDAY_NOON - timedelta(hours=6))
    held = dumps({"state": "held", "since": since, "why": "register this machine's public address"})
    live = dumps({"state": "live", "since": since, "why": ""})
    over = dumps({"state": "maintenance", "since": ago, "until": ago, "why": "the daily window 05:50-06:10"})
    opened = dumps([{"key": "b", "since": since, "why": "HTTP 500"}])
    await seen(fake_redis, 5)
    keys: dict[Any, Any] = {"a": held, "b": live, "*": over}
    meta: dict[Any, Any] = {"seq": "9", "breaker": opened, "stopped": ""}
    await fake_redis.hset("test:keys", mapping=keys)
    await fake_redis.hset("test:{ka20003}:meta", mapping=meta)
    found = await status_of(fake_redis)
    screen = StringIO()
    Console(file=screen, width=200).print(table(found, MONDAY_NOON))

    assert [trouble["what"] for trouble in found.as_json()["troubles"]] == ["app key a", "ka20003 with app key b"]
    assert "app key a: held since 2026-11-23T12:00:00" in screen.getvalue()
    assert "ka20003 with app key b: breaker open" in screen.getvalue()
    assert found.seq == {"ka20003": 9}


async def test_for_programs_it_is_plain_data(fake_redis: Redis):
    await seen(fake_redis, 5)
    (target,) = (await status_of(fake_redis)).as_json()["targets"]

    assert (target["target"], target["version"], target["stale"]) == ("ka20003?inds_cd=001", 7, False)


async def test_what_the_data_itself_contradicts_is_shown_until_it_is_mended(fake_redis: Redis):
    finding = "the broker's newest day is 2026-11-20, the calendar's 2026-11-23: add closed_days = [2026-11-23]"
    await seen(fake_redis, 5, finding=finding, suspect='{"breadth":2}')
    found = await status_of(fake_redis)
    screen = StringIO()
    Console(file=screen, width=250).print(table(found, MONDAY_NOON))

    assert "closed_days = [2026-11-23]" in screen.getvalue()
    assert (found.targets[0].as_json()["finding"], found.targets[0].as_json()["suspect"]) == (finding, {"breadth": 2})


async def test_entries_that_the_server_lost_are_told_for_a_day_and_are_not_unwell(fake_redis: Redis):
    """The reset that follows mends it; who wonders about two histories in the archive finds the reason here."""
    earlier = iso(MONDAY_NOON - timedelta(hours=2))
    await seen(fake_redis, 5)
    marks: dict[Any, Any] = {
        "archive": dumps({"at": earlier, "had": "9-0", "has": "7-0", "lost": 4, "ranges": [[1, 12, 15]]}),
        "poller": dumps({"at": iso(MONDAY_NOON - timedelta(hours=3)), "had": "version 9", "has": "version 7"}),
        "alert": dumps({"at": iso(MONDAY_NOON - timedelta(hours=25)), "had": "5-0", "has": "4-0"}),
    }
    await fake_redis.hset("test:{ka20003}:forks", mapping=marks)
    found = await status_of(fake_redis)
    screen = StringIO()
    Console(file=screen, width=250).print(table(found, MONDAY_NOON))

    assert found.verdict() == "well: 1 targets fresh"
    assert [(fork["role"], fork["lost"]) for fork in found.as_json()["forks"]] == [("poller", None), ("archive", 4)]
    assert found.as_json()["forks"][1]["ranges"] == [{"epoch": 1, "first_seq": 12, "last_seq": 15}]
    shown = " ".join(screen.getvalue().split())
    saw = "ka20003: the server had lost entries, archive saw at 2026-11-23 10:00:00+09:00 (had 9-0, has 7-0); 4 entries"
    assert saw in shown
    assert "-> nothing: it keeps both histories, `sectorwire archive verify` proves it" in shown


async def rolled_back(redis: Redis, path: Path, *sectors: str) -> None:
    """A poller that had seen version 9 of these targets confirmed finds them gone."""
    async with desk_for(redis, lambda request: httpx.Response(500), HandClock(), path) as desk:
        assert await desk.store.take_lead((JOB.target.tr,), 1) == 0
        for sector in sectors:
            watched = Watched(Job(JOB.target.tr.target({"inds_cd": sector}), 10.0), desk)
            watched._committed_version = 9
            assert (await watched.load()).rolled_back
        await desk.store.give_up_lead()


async def test_what_the_server_lost_is_marked_once_for_all_targets_of_a_report(redis: Redis, tmp_path: Path):
    """Each finds out at its next poll, which may be an hour later; the first to do so tells the time."""
    await rolled_back(redis, tmp_path, "001", "101")
    (fork,) = (await status_of(redis)).forks

    assert (fork.role, fork.had, fork.has) == ("poller", "version 9", "version 0 of ka20003?inds_cd=001")
    assert fork.at == MONDAY_NOON


async def test_a_later_loss_replaces_the_mark_of_the_one_before(redis: Redis, tmp_path: Path):
    """Which server it was, the mark says: one that was started again is another."""
    before = dumps({"at": iso(MONDAY_NOON), "server": "another", "had": "version 3", "has": "version 2"})
    client: Any = redis
    await client.hset("test:{ka20003}:forks", "poller", before)
    await rolled_back(redis, tmp_path, "101")
    (fork,) = (await status_of(redis)).forks

    assert fork.has == "version 0 of ka20003?inds_cd=101"


async def test_a_mark_that_cannot_be_written_stops_no_poll(redis: Redis, tmp_path: Path):
    await redis.set("test:{ka20003}:forks", "somebody else's")
    with capture_logs() as logs:
        await rolled_back(redis, tmp_path, "001")

    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["store.rolled_back", "note.failed"]
