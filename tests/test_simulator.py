"""The simulator over a real socket: tokens, refusals, pages, limits, faults, and the ledger that remembers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from poller.session import KST
from poller.simulator.answers import FLOW_SECTORS
from poller.simulator.clock import MarketClock
from poller.simulator.faults import KINDS, Faults
from poller.simulator.limits import Limit
from poller.simulator.listing import MEMBERS
from poller.simulator.server import Simulator, SimulatorSettings, serving

# A market that stands still five minutes after the opening: cheap to reach, and two looks see the same.
STANDING = MarketClock(datetime(2026, 11, 23, 9, 5, tzinfo=KST), datetime.now(KST), speed=0)
BODIES = {
    "ka10010": {"stk_cd": "005930"},
    "ka10051": {"mrkt_tp": "0", "amt_qty_tp": "0", "stex_tp": "3"},
    "ka20001": {"mrkt_tp": "0", "inds_cd": "001"},
    "ka20002": {"mrkt_tp": "0", "inds_cd": "001", "stex_tp": "1"},
    "ka20003": {"inds_cd": "001"},
    "ka20009": {"mrkt_tp": "0", "inds_cd": "001"},
}
KEYS = {"appkey": "app-key", "secretkey": "secret-key"}


class Caller:
    """Asks the way a client would, and hides the headers."""

    def __init__(self, http: httpx.AsyncClient, simulator: Simulator) -> None:
        self.http = http
        self.simulator = simulator
        self.token = ""

    async def sign_in(self, **more: str) -> dict[str, Any]:
        body = {"grant_type": "client_credentials", **KEYS, **more}
        answer: dict[str, Any] = (await self.http.post("/oauth2/token", json=body)).json()
        self.token = answer.get("token", self.token)
        return answer

    async def post(
        self, api_id: str, body: dict[str, Any], *, key: str = "", path: str = "/api/dostk/sect", **headers: str
    ) -> httpx.Response:
        sent = {"api-id": api_id, "authorization": f"Bearer {self.token}", **headers}
        if key:
            sent |= {"cont-yn": "Y", "next-key": key}
        return await self.http.post(path, json=body, headers={name: text for name, text in sent.items() if text})

    async def ask(self, api_id: str, **changes: Any) -> dict[str, Any]:
        body = {name: text for name, text in {**BODIES[api_id], **changes}.items() if text is not None}
        answer: dict[str, Any] = (await self.post(api_id, body)).json()
        return answer

    async def walk(self, api_id: str, rows_at: str, **changes: str) -> list[list[dict[str, str]]]:
        pages, key = [], ""
        while True:
            response = await self.post(api_id, {**BODIES[api_id], **changes}, key=key)
            pages.append(response.json()[rows_at])
            key = response.headers["next-key"]
            assert response.headers["cont-yn"] == ("Y" if key else "N")
            assert len(key) <= 50
            if not key:
                return pages


@asynccontextmanager
async def calling(*, sign_in: bool = True, limit_per_s: int = 10_000, **changes: Any) -> AsyncIterator[Caller]:
    settings = SimulatorSettings(**{"clock": STANDING, "limit_per_s": limit_per_s, **changes})
    async with serving(settings) as (simulator, base_url), httpx.AsyncClient(base_url=base_url) as http:
        caller = Caller(http, simulator)
        if sign_in:
            await caller.sign_in()
        yield caller


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller() -> AsyncIterator[Caller]:
    """Signed in to a server without faults; for tests that leave it as they found it."""
    async with calling() as caller:
        yield caller


shared = pytest.mark.asyncio(loop_scope="module")


# Tokens


async def test_a_token_lives_a_day_of_korean_time() -> None:
    async with calling(sign_in=False) as caller:
        before = datetime.now(KST).replace(microsecond=0)
        answer = await caller.sign_in()
        expires = datetime.strptime(answer["expires_dt"], "%Y%m%d%H%M%S").replace(tzinfo=KST)
        assert before + timedelta(hours=24) <= expires <= datetime.now(KST) + timedelta(hours=24)
        assert (answer["token_type"], answer["return_code"]) == ("bearer", 0)


async def test_a_new_token_kills_the_old_one_of_the_same_key() -> None:
    async with calling() as caller:
        old = caller.token
        assert (await caller.ask("ka20003"))["return_code"] == 0
        await caller.sign_in(appkey="another-key")
        caller.token = old
        assert (await caller.ask("ka20003"))["return_code"] == 0
        await caller.sign_in()
        caller.token = old
        response = await caller.post("ka20003", BODIES["ka20003"])
        assert response.status_code == 200
        assert response.json()["return_code"] == 3
        assert "[8005:" in response.json()["return_msg"]
        assert caller.simulator.tokens_issued == 3


async def test_a_revoked_token_is_dead() -> None:
    async with calling() as caller:
        revoked = await caller.http.post("/oauth2/revoke", json={**KEYS, "token": caller.token})
        assert revoked.json()["return_code"] == 0
        assert "[8005:" in (await caller.ask("ka20003"))["return_msg"]
        again = await caller.http.post("/oauth2/revoke", json={**KEYS, "token": caller.token})
        assert "[8015:" in again.json()["return_msg"]


async def test_a_token_is_only_given_for_the_right_keys() -> None:
    async with calling(sign_in=False, keys=("app-key", "secret-key")) as caller:
        assert (await caller.sign_in())["return_code"] == 0
        refused = {
            code: await caller.sign_in(**change)
            for code, change in (
                (8001, {"secretkey": "wrong"}),
                (8001, {"appkey": "wrong"}),
                (8020, {"appkey": ""}),
                (8011, {"grant_type": ""}),
                (8012, {"grant_type": "password"}),
            )
        }
        assert all(f"[{code}:" in answer["return_msg"] for code, answer in refused.items())
        assert all(answer["return_code"] != 0 for answer in refused.values())
        assert caller.simulator.tokens_issued == 1


# Refusals


@shared
async def test_headers_are_checked(caller: Caller) -> None:
    wrong_headers = [
        (1501, {"api-id": ""}),
        (1504, {"api-id": "ka10101"}),
        (1505, {"api-id": "ka99999"}),
        (1512, {"content-type": "text/plain"}),
        (1513, {"authorization": ""}),
        (1514, {"authorization": "Basic abc"}),
        (1516, {"authorization": "Bearer"}),
        (8005, {"authorization": "Bearer abc"}),
    ]
    for code, headers in wrong_headers:
        response = await caller.post("ka20003", BODIES["ka20003"], **headers)
        assert response.status_code == 200
        assert response.json()["return_code"] not in {0, "0"}
        assert f"[{code}:" in response.json()["return_msg"]


@shared
async def test_parameters_are_checked_one_at_a_time(caller: Caller) -> None:
    """The refusal names the parameter; of several that are missing, the first."""
    wrong_parameters: list[tuple[int, str, str, dict[str, Any]]] = [
        (1511, "inds_cd", "ka20003", {"inds_cd": None}),
        (1517, "inds_cd", "ka20003", {"inds_cd": "013"}),
        (1511, "mrkt_tp", "ka20001", {"mrkt_tp": None, "inds_cd": None}),
        (1517, "inds_cd", "ka20001", {"inds_cd": "999"}),
        (1517, "inds_cd", "ka20001", {"inds_cd": 1}),
        (1511, "stex_tp", "ka20002", {"stex_tp": ""}),
        (1517, "stex_tp", "ka20002", {"stex_tp": "4"}),
        (1511, "inds_cd", "ka20009", {"inds_cd": ""}),
        (1517, "amt_qty_tp", "ka10051", {"amt_qty_tp": "2"}),
        (1517, "base_dt", "ka10051", {"base_dt": "20261399"}),
        (1902, "999999", "ka10010", {"stk_cd": "999999"}),
        (1902, "KRX:005930", "ka10010", {"stk_cd": "KRX:005930"}),
    ]
    for code, named, api_id, changes in wrong_parameters:
        message = (await caller.ask(api_id, **changes))["return_msg"]
        assert f"[{code}:" in message
        assert named in message
    unreadable = await caller.http.post(
        "/api/dostk/sect",
        content=b"[1, 2",
        headers={
            "api-id": "ka20003",
            "authorization": f"Bearer {caller.token}",
            "content-type": "application/json",
        },
    )
    assert "[1517:" in unreadable.json()["return_msg"]


@shared
async def test_a_key_that_was_given_for_another_body_is_refused(caller: Caller) -> None:
    first = await caller.post("ka20002", BODIES["ka20002"])
    other = {**BODIES["ka20002"], "inds_cd": "101"}
    response = await caller.post("ka20002", other, key=first.headers["next-key"])
    assert "[1512:" in response.json()["return_msg"]


# Answers and pages


@shared
async def test_every_report_answers_with_text_in_every_field(caller: Caller) -> None:
    for api_id, body in BODIES.items():
        response = await caller.post(api_id, body)
        answer = response.json()
        assert response.headers["content-type"] == "application/json;charset=UTF-8"
        assert response.headers["api-id"] == api_id
        assert (answer.pop("return_code"), answer.pop("return_msg")) == (0, "정상적으로 처리되었습니다")
        rows = [row for value in answer.values() if isinstance(value, list) for row in value]
        flat = {name: value for name, value in answer.items() if not isinstance(value, list)}
        assert all(isinstance(value, str) for row in [flat, *rows] for value in row.values())


@shared
async def test_all_pages_together_hold_every_stock_once(caller: Caller) -> None:
    for code in ("001", "101", "020"):
        pages = await caller.walk("ka20002", "inds_stkpc", inds_cd=code)
        codes = [row["stk_cd"] for page in pages for row in page]
        assert codes == sorted(set(codes))
        assert len(codes) == len(MEMBERS[code])
        assert [len(page) for page in pages[:-1]] == [100] * (len(pages) - 1)


@shared
async def test_a_sector_without_stocks_has_an_empty_list(caller: Caller) -> None:
    assert await caller.walk("ka20002", "inds_stkpc", inds_cd="603") == [[]]


@shared
async def test_time_rows_and_days_come_twenty_to_a_page(caller: Caller) -> None:
    ticks = await caller.walk("ka20001", "inds_cur_prc_tm")
    assert [len(page) for page in ticks] == [20, 11]
    days = await caller.walk("ka20009", "inds_cur_prc_daly_rept", inds_cd="201", mrkt_tp="2")
    assert {len(page) for page in days} == {20}
    assert len(days) >= 3


async def test_a_walk_over_a_moving_market_loses_no_time_row() -> None:
    moving = MarketClock(datetime(2026, 11, 23, 9, 5, tzinfo=KST), datetime.now(KST), speed=2_000)
    async with calling(clock=moving) as caller:
        pages = await caller.walk("ka20001", "inds_cur_prc_tm")
        rows = [row for page in pages for row in page]
        assert rows[-1]["tm_n"] == "090000"
        for newer, older in pairwise(rows):
            assert int(newer["acc_trde_qty_n"]) == int(older["acc_trde_qty_n"]) + int(newer["trde_qty_n"])


@shared
async def test_the_list_of_sector_codes_is_served_at_a_path_of_its_own(caller: Caller) -> None:
    counts = {"0": 31, "1": 34, "2": 27, "4": 2, "7": 23, "9": 0}
    for market, count in counts.items():
        response = await caller.post("ka10101", {"mrkt_tp": market}, path="/api/dostk/stkinfo")
        rows = response.json()["list"]
        assert len(rows) == count
        assert all(set(row) == {"marketCode", "code", "name", "group"} for row in rows)


# Limits


async def test_the_sixth_request_of_a_second_is_refused_with_the_number_in_it() -> None:
    async with calling(limit_per_s=5) as caller:
        responses = await asyncio.gather(*(caller.post("ka20003", BODIES["ka20003"]) for _ in range(12)))
        refused = [response for response in responses if response.status_code == 429]
        assert refused  # all but five, unless a slow machine takes more than a second for the twelve
        assert caller.simulator.refusals == len(refused)
        assert refused[0].json()["return_code"] == 5
        assert "[1700:" in refused[0].json()["return_msg"]
        assert "유량=5, API ID=ka20003" in refused[0].json()["return_msg"]
        assert (await caller.post("ka20009", BODIES["ka20009"])).status_code == 200


def test_any_window_of_a_second_holds_no_more_than_the_limit() -> None:
    limit = Limit(5)
    moments = [at / 10 for at in range(100)]
    admitted = [at for at in moments if limit.admits("ka20003", at)]
    assert max(sum(at <= other < at + 1 for other in admitted) for at in admitted) == 5
    assert len(admitted) == 50


async def test_the_mock_server_counts_everything_together_and_serves_krx_only() -> None:
    async with calling(mock=True) as caller:
        assert (await caller.post("ka20003", BODIES["ka20003"])).status_code == 429
        answer: dict[str, Any] = {}
        while "inds_netprps" not in answer:
            await asyncio.sleep(0.2)
            answer = await caller.ask("ka10051")
        assert [row["inds_cd"] for row in answer["inds_netprps"]] == FLOW_SECTORS["0"]
        refused = await caller.post("ka20009", BODIES["ka20009"])
        while refused.status_code != 429:
            refused = await caller.post("ka20009", BODIES["ka20009"])
        assert "유량=1" in refused.json()["return_msg"]


# Faults


async def meet_a_fault(caller: Caller, api_id: str = "ka20003") -> str:
    """What a client sees of one request on a server on which every request fails."""
    try:
        response = await caller.post(api_id, BODIES[api_id])
    except httpx.RemoteProtocolError as error:
        return "drop_in_body" if "body" in str(error) else "drop"
    except httpx.ReadError:
        return "drop"
    if response.status_code == 500:
        return "http_500"
    if "html" in response.headers["content-type"]:
        assert response.status_code == 200
        return "html"
    try:
        answer = response.json()
    except ValueError:
        assert len(response.content) == int(response.headers["content-length"])
        return "cut_json"
    if answer["return_code"] == 0:
        assert answer["all_inds_idex"] == []
        return "empty"
    return "error_1999" if "[1999:" in answer["return_msg"] else "dead_token"


async def test_every_fault_reaches_the_client_as_what_it_is(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    seen: list[str] = []
    async with calling(sign_in=False, faults=1.0, seed=4, ledger=ledger) as caller:
        while set(seen) != set(KINDS):
            if not caller.token or seen[-1:] == ["dead_token"]:
                caller.token = caller.simulator._tokens.issue(
                    {"grant_type": "client_credentials", **KEYS}, datetime.now(KST)
                )["token"]
            seen.append(await meet_a_fault(caller))
        assert sum(caller.simulator.faults_served.values()) == len(seen) == caller.simulator.requests
    written = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    assert [line["fault"] for line in written] == seen
    assert {line["fault"]: line["status"] for line in written}["drop"] is None


def test_a_token_dies_at_most_once_a_minute() -> None:
    faults = Faults(1.0, seed=1)
    deaths = [second for second in range(2_000) if faults.draw(second) == "dead_token"]
    assert len(deaths) > 10
    assert all(later - earlier >= 60 for earlier, later in pairwise(deaths))


def test_faults_come_as_often_as_asked_and_are_the_same_for_a_seed() -> None:
    drawn = [Faults(0.2, seed).draw(0.0) for seed in range(500)]
    assert 60 < sum(fault is not None for fault in drawn) < 140
    one, other = Faults(0.5, seed=9), Faults(0.5, seed=9)
    assert [one.draw(at) for at in range(50)] == [other.draw(at) for at in range(50)]


async def test_the_token_call_meets_maintenance_pages_too() -> None:
    async with calling(sign_in=False, faults=1.0) as caller:
        types = set[str]()
        while len(types) < 2:
            response = await caller.http.post("/oauth2/token", json={"grant_type": "client_credentials", **KEYS})
            types.add(response.headers["content-type"].split(";")[0])
        assert types == {"text/html", "application/json"}


async def test_an_empty_success_of_ka10010_has_not_even_the_names() -> None:
    async with calling(faults=0.0) as caller:
        caller.simulator._faults.draw = lambda now_s: "empty"  # type: ignore[method-assign]  # one fault
        assert await caller.ask("ka10010") == {"return_code": 0, "return_msg": "정상적으로 처리되었습니다"}
        answer = await caller.ask("ka20009")
        assert (answer["cur_prc"], answer["inds_cur_prc_daly_rept"]) == ("", [])


# The ledger


async def test_the_ledger_holds_every_data_request_with_what_was_served(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    async with calling(ledger=ledger, limit_per_s=2) as caller:
        first = await caller.post("ka20002", BODIES["ka20002"])
        key = first.headers["next-key"]
        # Read while the server runs: a line is there before its answer is.
        assert len(ledger.read_text(encoding="utf-8").splitlines()) == 1
        await caller.post("ka20002", BODIES["ka20002"], key=key)
        statuses = [(await caller.post("ka20009", BODIES["ka20009"])).status_code for _ in range(3)]
        lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == caller.simulator.requests == 5
    assert lines[0]["answer"] == first.json()
    assert (lines[0]["cont_yn"], lines[0]["next_key"], lines[0]["fault"]) == ("Y", key, None)
    assert (lines[1]["cont_yn_in"], lines[1]["next_key_in"]) == ("Y", key)
    assert lines[1]["body"] == BODIES["ka20002"]
    assert lines[1]["at_market"] == "2026-11-23T09:05:00+09:00"
    assert [line["status"] for line in lines[2:]] == statuses


# The server


async def test_a_port_in_use_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            async with serving(SimulatorSettings(clock=STANDING), port=port):
                raise AssertionError("nobody can serve there")


async def test_the_server_ends_while_connections_are_kept_alive() -> None:
    async with httpx.AsyncClient() as http:
        async with asyncio.timeout(20), serving(SimulatorSettings(clock=STANDING)) as (_, base_url):
            assert (await http.post(f"{base_url}/oauth2/token", json={})).status_code == 200
        with pytest.raises(httpx.TransportError):
            await http.post(f"{base_url}/oauth2/token", json={})


async def test_without_a_clock_the_market_is_open() -> None:
    async with calling(clock=None) as caller:
        row = (await caller.ask("ka20003"))["all_inds_idex"][0]
        assert int(row["trde_qty"]) > 0
        assert caller.simulator.market_now().date() <= datetime.now(KST).date()
        assert caller.simulator.clock.calendar.session_at(caller.simulator.market_now()) == "regular"


def test_the_standing_market_is_on_a_trading_day() -> None:
    assert STANDING.at(datetime.now(KST)).date() == date(2026, 11, 23)
