"""Polling while leading: whose trouble is whose, what is said once, and what a stop leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from poller.catalogue import tr_named
from poller.contract import loads
from poller.grid import Job, Timing
from poller.poll import Desk
from poller.schedule import Poller
from poller.session import Calendar
from poller.status import read_status
from poller.store import Store, UnfitStore
from poller.upkeep import Trimmer, Upkeep
from tests.conftest import MONDAY_NOON, FastClock, desk_for

OK = {"return_code": 0}
PROGRAM = {"all_dfrt_trst_sell_qty": "1", "all_dfrt_trst_buy_qty": ""}
KEEP_ALL = Upkeep(86_400, 10**9)


def job(tr: str, **request: str) -> Job:
    return Job(tr_named(tr).target(request), 1.0)


SAMSUNG, HYNIX, KOSPI = job("ka10010", stk_cd="005930"), job("ka10010", stk_cd="000660"), job("ka20003", inds_cd="001")


class Office:
    """A broker that counts who was asked, and answers each target as the test says."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.special: dict[str, Callable[[int], httpx.Response]] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json={**OK, "token": "t", "expires_dt": "20991231000000"})
        body = orjson.loads(request.content)
        name = f"{request.headers['api-id']}?{'&'.join(f'{k}={v}' for k, v in sorted(body.items()))}"
        self.asked[name] = self.asked.get(name, 0) + 1
        if name in self.special:
            return self.special[name](self.asked[name])
        row = {
            "stk_cd": "001",
            "stk_nm": "종합",
            "cur_prc": str(1000 + self.asked[name]),
        }  # few elements: a shape entry
        answer = PROGRAM if "stk_cd" in body else {"all_inds_idex": [row]}
        return httpx.Response(200, json={**OK, **answer})


def refusal(message: str) -> Callable[[int], httpx.Response]:
    return lambda asked: httpx.Response(200, json={"return_code": 2, "return_msg": message})


@pytest.fixture
def office() -> Office:
    return Office()


@pytest.fixture
async def desk(redis: Redis, office: Office, tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_for(redis, office, FastClock(), tmp_path) as made:
        yield made


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


async def run_until(poller: Poller, condition: Callable[[], bool]) -> None:
    """Run until the condition holds, then stop cleanly. Raises what the poller raises."""
    stop = asyncio.Event()
    running = asyncio.create_task(poller.run(stop))
    async with asyncio.timeout(20):
        while not condition() and not running.done():  # noqa: ASYNC110 -- any condition, not only an event's
            await asyncio.sleep(0.01)
    stop.set()
    await running


def events(logs: list[Any], *names: str) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"] in names]


async def test_every_target_is_asked_again_and_again(desk: Desk, office: Office):
    def often() -> bool:
        return len(office.asked) == 2 and min(office.asked.values()) >= 3

    await run_until(Poller([SAMSUNG, KOSPI], desk, KEEP_ALL), often)

    assert office.asked.keys() == {str(SAMSUNG.target), str(KOSPI.target)}


async def test_at_start_everybody_is_asked_whatever_the_hour_and_the_log_says_when_again(
    desk: Desk, office: Office, logs: list[Any]
):
    """Noon on Monday is closed here, so one look has to do until Tuesday; a report says so once."""
    calendar = Calendar(closures=frozenset({MONDAY_NOON.date()}))
    closed = replace(desk, timing=Timing(calendar, calendar))
    await run_until(Poller([SAMSUNG, HYNIX, KOSPI], closed, KEEP_ALL), lambda: len(rests(logs)) == 2)

    assert set(office.asked.values()) == {1}
    assert {rest["tr"]: rest["next_due"][:16] for rest in rests(logs)} == {
        "ka10010": "2026-11-24T09:00",
        "ka20003": "2026-11-24T09:00",
    }
    assert "09:00-15:40, 18:10" in next(rest["why"] for rest in rests(logs) if rest["tr"] == "ka20003")


def rests(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == "polling.rests"]


async def test_a_stock_that_is_gone_stops_its_target_alone(desk: Desk, office: Office, logs: list[Any]):
    office.special[str(HYNIX.target)] = refusal("[1902:종목 정보가 없습니다]")
    await run_until(Poller([HYNIX, SAMSUNG], desk, KEEP_ALL), lambda: office.asked.get(str(SAMSUNG.target), 0) >= 4)

    assert office.asked[str(HYNIX.target)] == 1
    assert events(logs, "poll.stopped") == ["poll.stopped"]


async def test_a_report_that_was_removed_stops_that_report_alone(desk: Desk, office: Office):
    """All of its targets: one that was answered until then is not asked again to hear the same."""
    asked_then: dict[str, int] = {}

    def removed_after_the_first(asked: int) -> httpx.Response:
        if asked == 1:
            return httpx.Response(200, json={**OK, **PROGRAM})
        asked_then.update(office.asked)
        return refusal("[1505:존재하지 않는 API ID입니다]")(asked)

    def much_later() -> bool:
        return bool(asked_then) and office.asked[str(KOSPI.target)] >= asked_then.get(str(KOSPI.target), 0) + 6

    office.special[str(HYNIX.target)] = removed_after_the_first
    await run_until(Poller([HYNIX, SAMSUNG, KOSPI], desk, KEEP_ALL), much_later)

    assert office.asked[str(HYNIX.target)] == 2
    assert office.asked[str(SAMSUNG.target)] <= asked_then.get(str(SAMSUNG.target), 0) + 2  # what was under way


async def test_a_refused_key_is_told_once_with_the_remedy_and_the_poller_keeps_trying(
    redis: Redis, desk: Desk, office: Office, logs: list[Any]
):
    """Whoever registers the address at noon need not know that there is something to restart."""
    office.special[str(KOSPI.target)] = refusal("[8050:지정단말기 인증에 실패했습니다]")
    poller = Poller([KOSPI, SAMSUNG], desk, KEEP_ALL)

    def told_and_reloaded() -> bool:
        if events(logs, "key.held") and office.asked.get(str(SAMSUNG.target), 0) < 2:
            office.special.clear()
            poller.ring.reload_keys()
        return bool(events(logs, "key.back"))

    await run_until(poller, told_and_reloaded)
    (held,) = [entry for entry in logs if entry["event"] == "key.held"]

    assert "register this machine's public address" in held["remedy"]
    assert events(logs, "key.held", "key.back", "poll.failed", "broker.lost") == ["key.held", "key.back"]


async def test_how_keys_and_reports_fare_is_written_where_another_process_sees_it(
    redis: Redis, desk: Desk, office: Office
):
    office.special[str(HYNIX.target)] = refusal("[1505:존재하지 않는 API ID입니다]")
    office.special[str(KOSPI.target)] = refusal("[8050:지정단말기 인증에 실패했습니다]")
    poller = Poller([HYNIX, KOSPI], desk, KEEP_ALL)
    timing = Timing(Calendar(), None)
    found: list[list[str]] = []

    async def look() -> None:
        while not found or len(found[-1]) < 2:
            status = await read_status(redis, "test", [HYNIX, KOSPI], timing, MONDAY_NOON, "")
            found.append([f"{trouble.what} {trouble.state}" for trouble in status.troubles])
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    await run_until(poller, looking.done)

    assert found[-1] == ["app key default held", "ka10010 stopped"]
    assert await redis.hget("test:{ka20003}:meta", "stopped") == ""


async def test_trouble_is_said_once_when_it_starts_and_once_when_it_ends(desk: Desk, office: Office, logs: list[Any]):
    def three_times(asked: int) -> httpx.Response:
        return httpx.Response(500) if asked <= 3 else httpx.Response(200, json={**OK, **PROGRAM})

    office.special[str(SAMSUNG.target)] = three_times
    await run_until(Poller([SAMSUNG], desk, KEEP_ALL), lambda: bool(events(logs, "poll.recovered")))

    assert events(logs, "poll.failed", "poll.recovered") == ["poll.failed", "poll.recovered"]


async def test_a_broker_nobody_reaches_is_said_once_for_all_targets(desk: Desk, office: Office, logs: list[Any]):
    def unreachable(asked: int) -> httpx.Response:
        raise httpx.ConnectError("refused")

    office.special = {str(one.target): unreachable for one in (SAMSUNG, HYNIX, KOSPI)}
    await run_until(
        Poller([SAMSUNG, HYNIX, KOSPI], desk, KEEP_ALL),
        lambda: all(count >= 2 for count in office.asked.values()) and len(office.asked) == 3,
    )

    assert events(logs, "broker.lost", "poll.failed") == ["broker.lost"]


async def test_a_surprise_in_one_target_never_stops_the_others(desk: Desk, office: Office, logs: list[Any]):
    def surprise(asked: int) -> httpx.Response:
        raise ZeroDivisionError("nobody expected this")

    office.special[str(SAMSUNG.target)] = surprise
    await run_until(Poller([SAMSUNG, KOSPI], desk, KEEP_ALL), lambda: office.asked.get(str(KOSPI.target), 0) >= 4)

    assert "poll.crashed" in events(logs, "poll.crashed")


async def test_a_failed_attempt_is_in_the_state_hash(redis: Redis, desk: Desk, office: Office):
    office.special[str(SAMSUNG.target)] = lambda asked: httpx.Response(503)
    await run_until(Poller([SAMSUNG], desk, KEEP_ALL), lambda: office.asked.get(str(SAMSUNG.target), 0) >= 3)
    state: Any = await redis.hgetall("test:{ka10010}:state:stk_cd=005930")

    assert "HTTP 503" in state["last_error"]
    assert state["next_due"] > state["last_attempt"]


async def test_a_clean_stop_lets_the_next_poller_lead_at_once(redis: Redis, desk: Desk, office: Office):
    await run_until(Poller([SAMSUNG], desk, KEEP_ALL), lambda: bool(office.asked))

    assert await redis.get("test:leader") is None


async def test_a_bad_answer_is_kept_aside_and_the_snapshot_stays(
    redis: Redis, desk: Desk, office: Office, tmp_path: Path
):
    def broken_second(asked: int) -> httpx.Response:
        row = {"stk_cd": "001", "stk_nm": "종합", "cur_prc": "+-5" if asked == 2 else "1000"}
        return httpx.Response(200, json={**OK, "all_inds_idex": [row]})

    office.special[str(KOSPI.target)] = broken_second
    await run_until(Poller([KOSPI], desk, KEEP_ALL), lambda: office.asked.get(str(KOSPI.target), 0) >= 4)
    snapshot: Any = await redis.hgetall("test:{ka20003}:snapshot:inds_cd=001")
    (kept,) = list(tmp_path.glob("ka20003/*.json"))  # noqa: ASYNC240 -- a handful of files

    assert orjson.loads(snapshot["indices/001"])["level"] == 1000
    assert "+-5" in kept.read_text("utf-8")
    assert "'+-5' is not a number" in orjson.loads(kept.read_bytes())["reason"]


async def test_a_store_of_a_newer_program_ends_the_poller(redis: Redis, desk: Desk):
    state: dict[Any, Any] = {"version": "1", "revision": "99"}
    await redis.hset("test:{ka10010}:state:stk_cd=005930", mapping=state)
    with pytest.raises(UnfitStore, match="upgrade"):
        await run_until(Poller([SAMSUNG], desk, KEEP_ALL), lambda: False)


async def test_a_server_that_forgot_everything_is_a_new_first_sight(redis: Redis, desk: Desk, office: Office):
    """FLUSHALL takes lease, fence and snapshot together; the same process goes on in a new epoch."""

    def forget_at_the_third(asked: int) -> httpx.Response:
        if asked == 3:
            flushing.append(asyncio.ensure_future(redis.flushall()))
        row = {"stk_cd": "001", "stk_nm": "종합", "cur_prc": str(1000 + asked)}
        return httpx.Response(200, json={**OK, "all_inds_idex": [row]})

    flushing: list[asyncio.Future[Any]] = []
    office.special[str(KOSPI.target)] = forget_at_the_third
    await run_until(Poller([KOSPI], desk, KEEP_ALL), lambda: office.asked.get(str(KOSPI.target), 0) >= 7)
    await asyncio.gather(*flushing)
    stream: Any = await redis.xrange("test:{ka20003}:changes")

    assert [fields["type"] for _, fields in stream][1:3] == ["sectorwire.reset", "sectorwire.row.baseline"]
    assert [int(fields["seq"]) for _, fields in stream] == list(range(1, len(stream) + 1))


async def test_what_a_poller_missed_while_its_lease_was_over_is_not_blamed_on_the_broker(
    redis: Redis, desk: Desk, office: Office, logs: list[Any]
):
    """As after a pause of the whole process: it asks nothing until it knows that it still leads."""
    poller, asked_at = Poller([KOSPI], desk, KEEP_ALL), desk.clock.now
    over_since: list[datetime] = []
    poller.ring.may_send = lambda: not over_since or asked_at() - over_since[0] > timedelta(seconds=30)

    def seen_again() -> bool:
        if office.asked.get(str(KOSPI.target), 0) == 2 and not over_since:
            over_since.append(asked_at())
        return office.asked.get(str(KOSPI.target), 0) > 4

    await run_until(poller, seen_again)

    entries: Any = await redis.xrange(desk.store.keys.of("ka20003", "changes"))
    gaps = [loads(entry["data"])["reason"] for _, entry in entries if entry["type"] == "sectorwire.gap"]
    assert gaps == ["stopped"]
    assert events(logs, "poll.failed", "broker.lost") == []


class TestMemory:
    """What gives way when the streams reach the ceiling."""

    async def test_the_highest_priority_number_pauses_first_and_returns(self, redis: Redis):
        """A group that reads nothing holds every entry, so polling less is all that is left."""
        important = Job(SAMSUNG.target, 1.0, priority=1)
        lesser = Job(HYNIX.target, 1.0, priority=5)
        store = Store(redis, "test")
        trimmer = Trimmer(store, [SAMSUNG.target.tr], [important, lesser], Upkeep(86_400, 10_000))
        key = store.keys.of("ka10010", "changes")
        for _ in range(100):
            await redis.xadd(key, {"data": "x" * 300})
        await redis.xgroup_create(key, "asleep", "0")
        now_ms = 4_000_000_000_000

        await trimmer.trim(now_ms)
        first = trimmer.pauses(important), trimmer.pauses(lesser)
        await trimmer.trim(now_ms)
        second = trimmer.pauses(important), trimmer.pauses(lesser)
        await redis.xgroup_destroy(key, "asleep")
        await trimmer.trim(now_ms)

        assert (first, second) == ((False, True), (True, True))
        assert not trimmer.pauses(important)
        assert not trimmer.pauses(lesser)

    async def test_a_full_server_is_led_trimmed_and_polled_for_again(self, redis: Redis, desk: Desk, logs: list[Any]):
        """Only the leader trims, so one that could not lead there would wait for ever."""
        key, long_ago_ms = desk.store.keys.of("ka20003", "changes"), 1_000_000_000_000
        async with redis.pipeline(transaction=False) as many:
            for number in range(20_000):
                many.xadd(key, {"data": "x" * 300}, id=f"{long_ago_ms + number}-1")
            await many.execute()
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", str(used - 1_000_000))
        try:
            await run_until(Poller([KOSPI], desk, KEEP_ALL), lambda: bool(events(logs, "change.published")))
        finally:
            await redis.config_set("maxmemory", "0")

        assert events(logs, "lead.taken", "store.lost", "store.recovered") == [
            "store.lost",
            "lead.taken",
            "store.recovered",
        ]
