"""A day played again: the same entries every time, the live poller's own, and a broker that says it all once more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from poller.broker import Heard
from poller.commit import Commit
from poller.contract import Entry, decode
from poller.grid import Job, Timing
from poller.poll import Desk
from poller.recording import NoRecording, Recorded, Recorder, Recording, read_recording
from poller.replay import commits_of, entries_of, surveyed
from poller.schedule import Poller
from poller.session import Calendar
from poller.simulator.clock import MarketClock
from poller.simulator.ledger import Ledger
from poller.simulator.replay import ReplaySimulator, Tape
from poller.simulator.replies import Reply, response
from poller.simulator.server import SimulatorSettings, serving
from poller.trs.base import Target
from poller.upkeep import Upkeep
from tests.builders import recording, target
from tests.conftest import MONDAY_NOON, FastClock, HandClock, broker_for, desk_for

OK = {"return_code": 0, "return_msg": "정상적으로 처리되었습니다"}
ALWAYS = Timing(Calendar(), None)
INDICES, STOCKS = target("ka20003", inds_cd="001"), target("ka20002", inds_cd="001", stex_tp="1")
TRAIL = recording("ka20001").target
JOBS = {asked: Job(asked, 1.0) for asked in (INDICES, STOCKS, TRAIL)}
PATH = "/api/dostk/sect"


class Market:
    """A broker whose rows move with every poll, whose walks have two pages, and which is not always well."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json={"token": "t", "expires_dt": "20991231235959", **OK})
        api_id, key = request.headers["api-id"], request.headers.get("next-key", "")
        if not key:
            self.asked[api_id] = self.asked.get(api_id, 0) + 1
        number = self.asked[api_id]
        if api_id == "ka20003":
            return self._indices(number)
        return self._stocks(number, key) if api_id == "ka20002" else self._trail(number)

    def _indices(self, number: int) -> httpx.Response:
        if number % 7 == 3:
            return httpx.Response(200, html="<html>점검 중입니다</html>")
        if number % 7 in {4, 5}:
            raise httpx.ConnectError("refused")
        answer = recording("ka20003").answer
        rows = [
            dict(answer["all_inds_idex"][0], stk_cd=f"{code:03}", cur_prc=str(1000 + code)) for code in range(1, 30)
        ]
        rows[0]["cur_prc"] = str(1000 + number // 2)
        rows[1]["cur_prc"] = "no number" if number % 5 == 2 else str(2000 + number)
        return httpx.Response(200, json={**answer, "all_inds_idex": rows})

    def _stocks(self, number: int, key: str) -> httpx.Response:
        """The same next-key in every walk, as the broker has it."""
        if number % 6 == 4 and key:
            return httpx.Response(
                429, json={"return_code": 5, "return_msg": "[1700:허용된 요청 개수를 초과하였습니다]"}
            )
        row = recording("ka20002").answer["inds_stkpc"][0]
        codes = range(50, 99) if key else range(50)
        rows = [dict(row, stk_cd=f"{code:06}", stk_nm=f"종목{code}", now_trde_qty=str(number)) for code in codes]
        headers = {"cont-yn": "N"} if key else {"cont-yn": "Y", "next-key": "the-same"}
        return httpx.Response(200, json={"inds_stkpc": rows[number % 3 :], **OK}, headers=headers)

    def _trail(self, number: int) -> httpx.Response:
        """A sliding window that says that older rows follow; the poller asks only for what it lacks."""
        answer = recording("ka20001").answer
        (name,) = (name for name, value in answer.items() if isinstance(value, list))
        row = answer[name][0]
        rows = [dict(row, tm_n=f"{100000 + second}") for second in range(number + 20, number, -1)]
        return httpx.Response(200, json={**answer, name: rows}, headers={"cont-yn": "Y", "next-key": f"older{number}"})


@asynccontextmanager
async def recorded_desk(
    redis: Redis, play: Callable[[httpx.Request], httpx.Response], path: Path
) -> AsyncIterator[Desk]:
    clock = FastClock()
    async with desk_for(redis, play, clock, path / "quarantine") as desk:
        with Recorder(path / "recording", clock) as recorder:
            desk.broker.record = recorder.keep
            yield desk


async def live_run(redis: Redis, path: Path, polls: int = 60) -> list[Entry]:
    """Some polls of the real poller on a real server, recorded; what it published, in the order of each stream."""
    async with recorded_desk(redis, Market(), path) as desk:
        poller, stop = Poller([*JOBS.values()], desk, Upkeep(86_400, 10**9)), asyncio.Event()
        running = asyncio.create_task(poller.run(stop))
        async with asyncio.timeout(30):
            while poller.stats.polls < polls:  # noqa: ASYNC110 -- the poller has no event for it
                await asyncio.sleep(0.01)
        stop.set()
        await running
    client: Any = redis
    entries = []
    for asked in JOBS:
        found = await client.xrange(f"test:{{{asked.tr.code}}}:changes")
        entries += [decode(fields) for _, fields in found]
    return entries


def played(source: Sequence[Recorded] | Recording, jobs: dict[Target, Job] | None = None) -> list[Entry]:
    commits = commits_of(source, ALWAYS, JOBS if jobs is None else jobs)
    return [entry for entries in entries_of(commits) for entry in entries]


def facts(entries: Sequence[Entry], asked: Target) -> list[Any]:
    """All that does not depend on the moment of the poll or the reign of the poller.

    Gaps are left out, with what counts them: one is declared or not by the millisecond, and only the live poller knows
    that its store was slow.
    """
    passing = {"epoch", "version", "observed_from", "observed_at"}
    return [
        (entry.type, entry.subject, {name: part for name, part in entry.data.items() if name not in passing})
        for entry in entries
        if entry.source == f"/kiwoom/{asked}" and entry.type != "sectorwire.gap"
    ]


async def test_a_recording_gives_what_the_live_poller_published(redis: Redis, tmp_path: Path):
    """The same events with the same rows, names and order, although a third of the answers were trouble."""
    live = await live_run(redis, tmp_path)
    source = read_recording(tmp_path / "recording")

    again = played(source)

    for asked in JOBS:
        kinds = {entry.type for entry in live if entry.data["tr"] == asked.tr.code}
        assert "sectorwire.row.baseline" in kinds
        assert kinds & {"sectorwire.row.changed", "sectorwire.row.appended"}
        assert facts(again, asked) == facts(live, asked)
    assert {one.status for one in source} >= {200, 429, None}


async def test_a_recording_gives_the_same_bytes_every_time(redis: Redis, tmp_path: Path):
    await live_run(redis, tmp_path, polls=20)

    one, other = (
        [
            (draft.type, draft.subject, draft.data, commit.version)
            for commit in commits_of(read_recording(tmp_path / "recording"), ALWAYS, {})
            for draft in commit.drafts
        ]
        for _ in range(2)
    )

    assert one == other
    assert one


def line(number: int, later_s: float, body: Any = None, **more: Any) -> Recorded:
    """A recorded answer of ka20003, one page, unless said otherwise."""
    at = MONDAY_NOON + timedelta(seconds=later_s)
    answer = dict(recording("ka20003").answer)
    answer["all_inds_idex"] = [dict(answer["all_inds_idex"][0], cur_prc=str(1000 + number))]
    fields: dict[str, Any] = {
        "at": at,
        "asked_at": at,
        "tr": "ka20003",
        "target": {"inds_cd": "001"},
        "walk": number,
        "page": 1,
        "asked_key": "",
        "status": 200,
        "cont_yn": "N",
        "next_key": "",
        "content_type": "application/json;charset=UTF-8",
        "body": body if isinstance(body, bytes) else json.dumps(answer if body is None else body).encode(),
        "error": "",
        **more,
    }
    return Recorded(**fields)


def versions(source: Sequence[Recorded]) -> list[Commit]:
    return [*commits_of(source, ALWAYS, {})]


def test_the_epoch_is_the_first_record_and_versions_count_from_one():
    commits = versions([line(1, 0.125), line(2, 10), line(3, 20)])

    assert {commit.epoch for commit in commits} == {round((MONDAY_NOON.timestamp() + 0.125) * 1000)}
    assert [commit.version for commit in commits] == [1, 2, 3]
    assert [entry.seq for entry in played([line(1, 0), line(2, 10)])] == [1, 2, 3, 4]  # reset, shape, baseline, change


def test_an_interval_that_is_not_configured_is_the_usual_distance_of_the_polls():
    """So a target that was silent for three of its intervals has a gap, whatever they were."""
    survey = surveyed([line(number, later_s) for number, later_s in enumerate([0, 10, 20, 31, 71])])

    assert survey.every_s("ka20003?inds_cd=001") == 10.5
    assert surveyed([line(1, 0), line(2, 0.2)]).every_s("ka20003?inds_cd=001") == 1.0
    quiet = [line(number, later_s) for number, later_s in enumerate([0, 10, 20, 70])]
    assert [entry.type for entry in played(quiet, {}) if entry.row_kind is None] == [
        "sectorwire.reset",
        "sectorwire.gap",
    ]
    assert [entry.type for entry in played(quiet, {INDICES: Job(INDICES, 60.0)}) if entry.row_kind is None] == [
        "sectorwire.reset"
    ]


def test_trouble_with_the_broker_is_what_a_gap_is_declared_for():
    """As a live poller does it; a stretch without any answer means that nobody asked."""
    trouble = [line(number, 10.0 * number, b"<html>") for number in (2, 3, 4)]
    dead = {"return_code": 3, "return_msg": "인증에 실패했습니다[8005:Token이 유효하지 않습니다]"}
    renewed = [line(2, 50, dead), line(3, 51)]
    refused_twice = [line(2, 20, dead), line(3, 20.5, dead), line(5, 50)]

    reasons = [
        [entry.data["reason"] for entry in played([line(1, 10), *more], JOBS) if entry.type == "sectorwire.gap"]
        for more in ([*trouble, line(5, 50)], [line(5, 50)], renewed, refused_twice)
    ]

    assert reasons == [["broker"], ["stopped"], ["stopped"], ["broker"]]


def test_a_walk_without_its_end_is_no_answer():
    """The process was killed between two pages, or the disk was full for one of them."""
    rows = [{"stk_cd": "000020", "stk_nm": "a"}]
    first = {"tr": "ka20002", "target": STOCKS.request, "body": json.dumps({"inds_stkpc": rows, **OK}).encode()}
    cut = line(1, 0, **first, cont_yn="Y", next_key="a")
    second_page = line(2, 5, **first, page=2)

    assert played([cut, second_page]) == []
    assert len(played([cut, second_page, line(3, 10, **first)])) == 3  # reset, shape, baseline


def test_what_today_s_declarations_do_not_know_is_said_and_left_out():
    with capture_logs() as logs:
        entries = played([line(1, 0, tr="ka99999"), line(2, 1)])

    assert {entry.data["tr"] for entry in entries} == {"ka20003"}
    assert [entry["event"] for entry in logs] == ["replay.skipped"]


def test_nothing_recorded_is_an_error():
    with pytest.raises(NoRecording):
        played([])


# Served again


class Player:
    """A replaying simulator whose time is set by hand, and a client that is signed in."""

    def __init__(self, source: Sequence[Recorded], later_s: float = 0.0) -> None:
        self.clock = HandClock(MONDAY_NOON + timedelta(seconds=later_s))
        market = MarketClock(self.clock.now(), self.clock.now(), speed=1)
        settings = SimulatorSettings(clock=market, limit_per_s=1000)
        self.simulator = ReplaySimulator(Tape(source), settings, Ledger(None), self.clock)

    async def sign_in(self) -> str:
        body = json.dumps({"grant_type": "client_credentials", "appkey": "a", "secretkey": "s"}).encode()
        reply = await self.simulator.call("/oauth2/token", {}, body)
        assert reply.answer is not None
        return str(reply.answer["token"])

    async def ask(self, later_s: float, *, tr: str = "ka20003", key: str = "", **request: str) -> Reply:
        self.clock.moment = MONDAY_NOON + timedelta(seconds=later_s)
        headers = {"api-id": tr, "authorization": f"Bearer {await self.sign_in()}", "content-type": "application/json"}
        headers |= {"cont-yn": "Y", "next-key": key} if key else {}
        body = request or {"inds_cd": "001"}
        return await self.simulator.call(PATH, headers, json.dumps(body).encode())


async def test_the_newest_answer_that_is_not_in_the_future_is_served():
    source = [line(number, 10.0 * number, {"n": number}) for number in (1, 2, 3)]
    player = Player(source)

    served = [(await player.ask(later_s)).answer for later_s in (0, 10, 19.9, 20, 500)]

    assert served == [{"n": 1}, {"n": 1}, {"n": 1}, {"n": 2}, {"n": 3}]


async def test_recorded_trouble_is_served_as_it_was():
    html = line(1, 0, b"<html>\xff</html>", status=503, content_type="text/html")
    nothing = line(2, 10, status=None, error="cannot be reached")
    player = Player([html, nothing])

    first, second = await player.ask(0), await player.ask(10)

    sent = response(first)
    assert (sent.status_code, sent.body, sent.headers["content-type"]) == (503, b"<html>\xff</html>", "text/html")
    assert (second.status, second.fault) == (None, "drop")


def walk(number: int, later_s: float, pages: int, **more: Any) -> Iterator[Recorded]:
    """A walk of ka20002 whose pages come a second after each other, with the keys that every walk has."""
    for page in range(1, pages + 1):
        further = {"cont_yn": "Y", "next_key": f"key{page}"} if page < pages else {}
        about = {"tr": "ka20002", "target": STOCKS.request, "page": page, **further, **more}
        yield line(number, later_s + page - 1, {"walk": number, "page": page}, **about)


async def test_the_pages_of_a_walk_stay_together():
    """Even if a newer walk has begun in between, and all of them had the same keys."""
    source = [*walk(1, 0, 3), *walk(2, 10, 3), *walk(3, 20, 3)]
    player = Player(source)
    first = await player.ask(5, tr="ka20002", **STOCKS.request)
    second = await player.ask(25, tr="ka20002", key=first.headers["next-key"], **STOCKS.request)
    third = await player.ask(26, tr="ka20002", key=second.headers["next-key"], **STOCKS.request)
    newest = await player.ask(26, tr="ka20002", **STOCKS.request)

    assert [one.answer for one in (first, second, third)] == [{"walk": 1, "page": page} for page in (1, 2, 3)]
    assert newest.answer == {"walk": 3, "page": 1}
    assert [one.headers["cont-yn"] for one in (first, second, third)] == ["Y", "Y", "N"]
    assert all(len(one.headers["next-key"]) <= 50 for one in (first, second, newest))


async def test_a_broken_walk_breaks_again_and_one_that_had_enough_ends():
    """Half a keyed table must not look whole; of a sliding window the poller had all it needed."""
    cut = [line(1, 0, {}, tr="ka20002", target=STOCKS.request, cont_yn="Y", next_key="a")]
    enough = [line(2, 1, {}, tr="ka20001", target=TRAIL.request, cont_yn="Y", next_key="b")]
    player = Player([*cut, *enough], 5)

    first = await player.ask(5, tr="ka20002", **STOCKS.request)
    second = await player.ask(5, tr="ka20002", key=first.headers["next-key"], **STOCKS.request)
    window = await player.ask(5, tr="ka20001", **TRAIL.request)

    assert first.headers["cont-yn"] == "Y"
    assert second.answer is not None
    assert "[1999:" in second.answer["return_msg"]
    assert (window.headers["cont-yn"], window.headers["next-key"]) == ("N", "")


async def test_a_target_that_was_never_recorded_is_refused_by_name():
    reply = await Player([line(1, 0)]).ask(0, inds_cd="101")

    assert reply.answer is not None
    assert reply.answer["return_code"] == 2
    assert "[1511:ka20003?inds_cd=101 is not in this recording, which holds ka20003?inds_cd=001" in str(reply.answer)


def test_a_tape_keeps_only_what_may_be_asked_for():
    """A day of any size is served from a small memory."""
    tape = Tape([line(number, 10.0 * number) for number in range(1000)])

    assert not tape.over(MONDAY_NOON + timedelta(seconds=5000))
    assert sum(len(walks) for walks in tape._walks.values()) < 20
    assert tape.over(MONDAY_NOON + timedelta(seconds=9990))


async def test_a_poller_reads_a_served_recording_as_it_read_the_broker(fake_redis: Redis, redis: Redis, tmp_path: Path):
    """Over a socket, and byte for byte."""
    await live_run(redis, tmp_path, polls=12)
    source = read_recording(tmp_path / "recording")
    tape = Tape(source)
    clock = MarketClock(tape.begins_at, tape.begins_at, speed=0)

    def kind(*args: Any, **more: Any) -> ReplaySimulator:
        return ReplaySimulator(tape, *args, **more)

    async with serving(SimulatorSettings(clock=clock), kind=kind) as (_, base_url), httpx.AsyncClient() as http:

        async def ask(request: httpx.Request) -> httpx.Response:
            answered = await http.request(
                request.method, f"{base_url}{request.url.path}", content=request.content, headers=request.headers
            )
            await answered.aread()
            return answered

        async with broker_for(fake_redis, ask, FastClock()) as broker:  # type: ignore[arg-type]  # httpx takes both
            heard: list[Heard] = []
            broker.record = heard.append
            answer = await broker.fetch(STOCKS)

    first = [one for one in source if one.tr == "ka20002"][:2]
    assert len(answer.pages) == 2
    assert list(answer.bodies) == [one.body for one in first]
    assert [one.cont_yn for one in heard] == [one.cont_yn for one in first]
