"""Several app keys as one broker: who asks for what, whose trouble stops whom, and how everybody comes back."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, time
from itertools import pairwise
from typing import Any, cast

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from poller.broker import Broker
from poller.budget import Limit
from poller.catalogue import CATALOGUE, tr_named
from poller.commands import fitting
from poller.errors import GiveUp, HeldBack, TryLater
from poller.gate import Gates
from poller.grid import Job
from poller.keyring import KeyRing
from poller.service import Bus, open_desk, rereading
from poller.settings import ConfigError, KiwoomSettings, Secrets, Settings, read_keys
from poller.trouble import Window
from tests.conftest import MONDAY_NOON
from tests.model_store import ModelRedis, ModelServer
from tests.virtual import VirtualClock, VirtualLoop, run

OK = {"return_code": 0}
HTML = httpx.Response(200, html="<html>시스템 점검 중입니다</html>")
BROKEN = httpx.Response(500)
REFUSED = httpx.Response(200, json={"return_code": 3, "return_msg": "[8050:지정단말기 인증에 실패했습니다]"})

INDICES = [Job(tr_named("ka20003").target({"inds_cd": code}), 10.0) for code in ("001", "101")]
QUOTES = [Job(tr_named("ka20001").target({"inds_cd": f"{code:03}"}), 10.0) for code in range(2, 8)]
PLAN = [*INDICES, *QUOTES]


class Office:
    """A broker that notes when each key asked for what, and refuses as the test says."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.asked: list[tuple[float, str, str]] = []
        self.tokens: list[tuple[float, str]] = []
        self.answer: Callable[[str, str], httpx.Response | None] = lambda key, tr: None
        self.token: Callable[[str], httpx.Response | None] = lambda key: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            key = json.loads(request.content)["appkey"]
            self.tokens.append((self.loop.time(), key))
            good = {**OK, "token": f"{key}:{len(self.tokens)}", "expires_dt": "20991231000000"}
            return self.token(key) or httpx.Response(200, json=good)
        key = request.headers["authorization"].removeprefix("Bearer ").partition(":")[0]
        tr = request.headers["api-id"]
        self.asked.append((self.loop.time(), key, tr))
        answer = {"all_inds_idex": [], "inds_cur_prc_tm": [], **OK}
        return self.answer(key, tr) or httpx.Response(200, json=answer)

    @property
    def keys(self) -> list[str]:
        return [key for _, key, _ in self.asked]


class Scene:
    """A ring over the office, in virtual time."""

    def __init__(self, office: Office, start: datetime = MONDAY_NOON) -> None:
        self.office, self.clock = office, VirtualClock(start, office.loop)
        self.server = ModelServer(lambda: int(self.clock.now().timestamp() * 1000))
        self.ring: KeyRing

    def broker(self, app_key: str) -> Broker:
        limits = {tr.code: Limit(50, 0.1) for tr in CATALOGUE}
        return Broker(
            "http://broker",
            SecretStr(app_key),
            SecretStr(f"secret of {app_key}"),
            gates=Gates(limits, self.clock),
            redis=cast("Redis", ModelRedis(self.server)),
            prefix="test",
            clock=self.clock,
            transport=httpx.MockTransport(self.office),
        )

    def play(
        self,
        story: Callable[[Scene], Awaitable[None]],
        *,
        keys: Sequence[str] = ("a", "b"),
        plan: Sequence[Job] = PLAN,
        windows: Sequence[Window] = (),
    ) -> None:
        async def whole() -> None:
            brokers = {name: self.broker(f"key-{name}") for name in keys}
            self.ring = KeyRing(brokers, self.clock, windows=windows, rng=random.Random(3))
            self.ring.plan(plan)
            async with self.ring:
                await story(self)

        run(whole(), self.office.loop)

    async def ask(self, job: Job) -> TryLater | None:
        """Ask for one target: what stood in the way, if anything did."""
        try:
            await self.ring.fetch(job.target)
        except TryLater as error:
            return error
        return None

    async def ask_all(self, jobs: Sequence[Job] = PLAN) -> list[TryLater | None]:
        return await asyncio.gather(*map(self.ask, jobs))


@pytest.fixture
def office() -> Office:
    return Office()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


def said(logs: list[Any], *names: str) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"] in names]


# --- who asks for what


def test_check_proves_the_plan_for_every_key_and_with_one_key_says_what_it_always_said():
    keys = [{"name": name, "app_key_env": "A", "secret_key_env": "B"} for name in ("first", "second")]
    fast = [Job(job.target, 4.0) for job in QUOTES]
    one = Settings(kiwoom=KiwoomSettings(environment="real"))
    two = Settings(kiwoom=KiwoomSettings.model_validate({"environment": "real", "key": keys}))
    mock = Settings(kiwoom=KiwoomSettings.model_validate({"environment": "mock", "key": keys}))

    with pytest.raises(ConfigError, match="the plan does not fit: ka20001: 6 targets need"):
        fitting(one, fast)
    assert [share.name for share in fitting(two, fast)] == ["ka20001 with key first", "ka20001 with key second"]
    assert [share.name for share in fitting(one, PLAN)] == ["ka20001", "ka20003"]
    with pytest.raises(ConfigError, match="all TRs together: 6 targets"):
        fitting(mock, fast)


def test_every_key_asks_for_its_own_targets(office: Office):
    async def story(scene: Scene) -> None:
        assert await scene.ask_all() == [None] * len(PLAN)

    Scene(office).play(story)

    assert Counter(office.keys) == {"key-a": 4, "key-b": 4}
    assert Counter(key for _, key in office.tokens) == {"key-a": 1, "key-b": 1}


async def test_the_mock_server_counts_all_keys_together_and_the_real_one_each(fake_redis: Redis, tmp_path):
    keys = [Secrets(app_key=SecretStr(name), secret_key=SecretStr("s"), name=name) for name in ("a", "b")]
    bus = Bus(fake_redis, None, "", "")
    gates = {}
    for environment in ("real", "mock"):
        settings = Settings.model_validate({"kiwoom": {"environment": environment}, "data": {"dir": tmp_path}})
        async with open_desk(settings, keys, bus) as desk:
            ring = cast("KeyRing", desk.broker)
            gates[environment] = {id(broker._gates) for broker in ring._brokers.values()}

    assert (len(gates["real"]), len(gates["mock"])) == (2, 1)


# --- a refused key


def refuse(key: str) -> Callable[[str, str], httpx.Response | None]:
    return lambda asking, tr: REFUSED if asking == key else None


def test_a_refused_key_is_held_and_the_others_ask_for_it(office: Office, logs: list[Any]):
    """At the rate that is left, and nobody's poll is lost."""

    async def story(scene: Scene) -> None:
        assert await scene.ask_all() == [None] * len(PLAN)
        office.asked.clear()
        assert await scene.ask_all() == [None] * len(PLAN)
        assert json.loads(scene.ring.states()["a"])["state"] == "held"

    office.answer = refuse("key-a")
    Scene(office).play(story)

    assert set(office.keys) == {"key-b"}
    (held,) = [entry for entry in logs if entry["event"] == "key.held"]
    assert held["key"] == "a"
    assert "register this machine's public address" in held["remedy"]


def test_a_held_key_is_tried_every_ten_minutes_by_one_poll_and_comes_back(office: Office, logs: list[Any]):
    async def story(scene: Scene) -> None:
        for _ in range(150):  # twenty-five minutes
            assert await scene.ask_all() == [None] * len(PLAN)
            await asyncio.sleep(10)
        assert said(logs, "key.held", "key.back") == ["key.held"]
        tried = [at_s for at_s, key, _ in office.asked if key == "key-a"]
        assert all(600 <= later - earlier < 620 for earlier, later in pairwise(tried[-3:]))
        office.answer = lambda key, tr: None
        for _ in range(61):
            await scene.ask_all()
            await asyncio.sleep(10)
        office.asked.clear()
        await scene.ask_all()

    office.answer = refuse("key-a")
    Scene(office).play(story)

    assert said(logs, "key.held", "key.back") == ["key.held", "key.back"]
    assert Counter(office.keys) == {"key-a": 4, "key-b": 4}


def test_a_key_that_is_back_bears_its_part_of_what_others_leave(office: Office):
    async def story(scene: Scene) -> None:
        await scene.ask_all()
        office.answer = refuse("key-b")
        await asyncio.sleep(601)
        for _ in range(2):
            office.asked.clear()
            await scene.ask_all()

    office.answer = lambda key, tr: REFUSED if key in {"key-a", "key-b"} else None
    Scene(office).play(story, keys=["a", "b", "c"])

    assert Counter(office.keys) == {"key-a": 4, "key-c": 4}


def test_without_any_key_everybody_waits_for_the_next_try(office: Office, logs: list[Any]):
    """The poller keeps running: a key that is registered at noon must not need a restart."""

    async def story(scene: Scene) -> None:
        (first, *others) = await scene.ask_all()
        assert isinstance(first, HeldBack)
        assert (round(first.wait_s), first.everywhere) == (600, True)
        assert "register this machine's public address" in str(first)
        assert all(isinstance(error, HeldBack) for error in others)
        await asyncio.sleep(601)
        office.asked.clear()
        await scene.ask_all()
        assert len(office.asked) == 1
        office.answer = lambda key, tr: None
        await asyncio.sleep(601)
        assert await scene.ask_all() == [None] * len(PLAN)

    office.answer = refuse("key-only")
    Scene(office).play(story, keys=["only"])

    assert said(logs, "key.held", "key.back") == ["key.held", "key.back"]


def test_a_person_s_question_ends_with_the_remedy_at_once(office: Office):
    async def story(scene: Scene) -> None:
        brokers = {"a": scene.broker("key-a"), "b": scene.broker("key-b")}
        async with KeyRing(brokers, scene.clock, patient=False) as ring:
            with pytest.raises(GiveUp, match="register this machine's public address"):
                await ring.fetch(INDICES[0].target)
            office.token = lambda key: REFUSED
            with pytest.raises(GiveUp, match=r"app key b: .*register this machine's public address"):
                await ring.sign_in()

    office.answer = refuse("key-a")
    Scene(office).play(story)


def test_a_replaced_key_takes_effect_on_a_reload(office: Office, logs: list[Any], tmp_path):
    files = {"app_key_file": tmp_path / "app", "secret_key_file": tmp_path / "secret"}
    for file in files.values():
        file.write_text("key-old\n", "utf-8")
    settings = KiwoomSettings.model_validate({"key": [{"name": "desk", **files}]})
    (pair,) = read_keys(settings, {})

    async def story(scene: Scene) -> None:
        broker = scene.broker("key-old")
        broker.reread = rereading(pair)
        async with KeyRing({"desk": broker}, scene.clock) as ring:
            scene.ring = ring
            assert isinstance(await scene.ask(INDICES[0]), HeldBack)
            files["app_key_file"].write_text("key-new\n", "utf-8")
            assert isinstance(await scene.ask(INDICES[0]), HeldBack)
            ring.reload_keys()
            assert await scene.ask(INDICES[0]) is None
            files["app_key_file"].unlink()
            ring.reload_keys()  # what cannot be read leaves the pair as it was
            assert await scene.ask(INDICES[0]) is None

    office.answer = refuse("key-old")
    Scene(office).play(story)

    assert said(logs, "key.held", "key.replaced", "key.back", "key.unreadable") == [
        "key.held",
        "key.replaced",
        "key.back",
        "key.unreadable",
    ]
    assert "key-new" not in str(logs)


def test_a_key_that_is_replaced_while_it_is_refused_is_not_held(office: Office, logs: list[Any]):
    """The refusal was its predecessor's."""
    named = ["key-old"]

    async def story(scene: Scene) -> None:
        def replaced_meanwhile(key: str, tr: str) -> httpx.Response | None:
            if key == "key-new":
                return None
            named[:] = ["key-new"]
            scene.ring.reload_keys()
            return REFUSED

        broker = scene.broker("key-old")
        broker.reread = lambda: (SecretStr(named[0]), SecretStr("s"))
        office.answer = replaced_meanwhile
        async with KeyRing({"desk": broker}, scene.clock) as ring:
            scene.ring = ring
            assert await scene.ask(INDICES[0]) is None

    Scene(office).play(story)

    assert said(logs, "key.held", "key.replaced") == ["key.replaced"]
    assert office.keys == ["key-old", "key-new"]


def test_a_file_is_read_again_before_each_token(office: Office, tmp_path):
    file = tmp_path / "app"
    file.write_text("key-old", "utf-8")
    pair = read_keys(KiwoomSettings(), {"KIWOOM_APP_KEY_FILE": str(file), "KIWOOM_SECRET_KEY": "s"})[0]
    dead = httpx.Response(200, json={"return_code": 3, "return_msg": "[8005:Token이 유효하지 않습니다]"})

    async def story(scene: Scene) -> None:
        broker = scene.broker("key-old")
        broker.reread = rereading(pair)
        async with KeyRing({"default": broker}, scene.clock) as ring:
            await ring.fetch(INDICES[0].target)
            file.write_text("key-new", "utf-8")
            office.answer = lambda key, tr: dead if key == "key-old" else None
            await ring.fetch(INDICES[0].target)

    Scene(office).play(story)

    assert [key for _, key in office.tokens] == ["key-old", "key-new"]


# --- a report in trouble


def test_a_report_that_keeps_failing_rests_and_the_others_go_on(office: Office, logs: list[Any]):
    async def story(scene: Scene) -> None:
        for _ in range(5):
            await scene.ask_all(QUOTES[:1])
        office.asked.clear()
        found = await scene.ask_all([*QUOTES[:2], *INDICES])
        assert [isinstance(error, HeldBack) for error in found] == [True, True, False, False]
        assert not cast("HeldBack", found[0]).everywhere

    office.answer = lambda key, tr: BROKEN if tr == "ka20001" else None
    Scene(office).play(story, keys=["a"])

    assert {tr for _, _, tr in office.asked} == {"ka20003"}
    assert said(logs, "breaker.opened") == ["breaker.opened"]


def test_after_its_pause_one_request_tries_and_the_others_wait_for_what_it_finds(office: Office, logs: list[Any]):
    async def story(scene: Scene) -> None:
        for _ in range(5):
            await scene.ask_all(QUOTES[:1])
        assert "ka20001" in scene.ring._outages._every_s
        assert json.loads(scene.ring.breakers("ka20001"))[0]["key"] == "a"
        await asyncio.sleep(16)
        office.asked.clear()
        held = await scene.ask_all(QUOTES)
        assert len(office.asked) == 1
        assert sum(isinstance(error, HeldBack) for error in held) == len(QUOTES) - 1
        await asyncio.sleep(100)
        office.answer = lambda key, tr: None
        assert await scene.ask_all(QUOTES) == [None] * len(QUOTES)
        assert scene.ring.breakers("ka20001") == ""

    office.answer = lambda key, tr: BROKEN if tr == "ka20001" else None
    Scene(office).play(story, keys=["a"])

    assert said(logs, "breaker.opened", "breaker.closed") == ["breaker.opened", "breaker.closed"]


def test_a_quota_refusal_and_half_an_answer_open_nothing(office: Office, logs: list[Any]):
    quota = httpx.Response(429, json={"return_code": 5, "return_msg": "[1700:허용된 요청 개수를 초과하였습니다]"})
    half = httpx.Response(200, json={"inds_cur_prc_tm": [{"tm_n": "1"}], **OK}, headers={"cont-yn": "Y"})
    answers = iter([quota, half] * 6)

    async def story(scene: Scene) -> None:
        for _ in range(12):
            assert not isinstance(await scene.ask(QUOTES[0]), HeldBack)

    office.answer = lambda key, tr: next(answers)
    Scene(office).play(story, keys=["a"])

    assert said(logs, "breaker.opened") == []


def test_a_probe_that_was_cancelled_leaves_the_way_free(office: Office):
    async def story(scene: Scene) -> None:
        for _ in range(5):
            await scene.ask_all(QUOTES[:1])
        await asyncio.sleep(100)
        scene.ring._first._gates = Gates({"ka20001": Limit(1)}, scene.clock)  # full at the start, so it has to wait
        probing = asyncio.create_task(scene.ask(QUOTES[0]))
        await asyncio.sleep(0.5)
        probing.cancel()
        await asyncio.wait([probing])
        office.answer = lambda key, tr: None
        assert await scene.ask(QUOTES[1]) is None

    office.answer = lambda key, tr: BROKEN
    Scene(office).play(story, keys=["a"])


# --- maintenance


def minutes_of_maintenance(scene: Scene, minutes: int) -> Awaitable[None]:
    async def pass_them() -> None:
        for _ in range(minutes * 6):
            await scene.ask_all()
            await asyncio.sleep(10)

    return pass_them()


@pytest.mark.parametrize("answer", [HTML, BROKEN], ids=["html", "500"])
def test_in_maintenance_one_request_a_minute_looks_and_the_first_answer_ends_it(
    office: Office, logs: list[Any], answer: httpx.Response
):
    async def story(scene: Scene) -> None:
        await scene.ask_all()
        office.answer = lambda key, tr: answer
        await scene.ask_all()
        office.asked.clear()
        await minutes_of_maintenance(scene, 20)
        assert 18 <= len(office.asked) <= 20
        assert json.loads(scene.ring.states()["*"])["state"] == "maintenance"
        office.answer = lambda key, tr: None
        await asyncio.sleep(60)
        assert await scene.ask_all() == [None] * len(PLAN)
        assert json.loads(scene.ring.states()["*"])["state"] == "live"

    Scene(office).play(story)

    assert said(logs, "maintenance.began", "maintenance.ended") == ["maintenance.began", "maintenance.ended"]
    assert said(logs, "breaker.opened", "breaker.closed") in ([], ["breaker.opened", "breaker.closed"])
    assert len(office.tokens) == 2


def test_in_maintenance_no_token_is_issued_not_even_where_there_is_none(office: Office, logs: list[Any]):
    """A start in maintenance: the token call answers with HTML too, so a data call shows when it is over."""
    dead = httpx.Response(200, json={"return_code": 3, "return_msg": "[8005:Token이 유효하지 않습니다]"})

    async def story(scene: Scene) -> None:
        await scene.ask_all()
        office.tokens.clear()
        await minutes_of_maintenance(scene, 10)
        assert office.tokens == []
        office.token = lambda key: None
        office.answer = lambda key, tr: dead if key == "none" else None
        await asyncio.sleep(60)
        await scene.ask_all()
        assert await scene.ask_all() == [None] * len(PLAN)

    office.token = lambda key: HTML
    office.answer = lambda key, tr: HTML
    Scene(office).play(story)

    assert said(logs, "maintenance.began", "maintenance.ended") == ["maintenance.began", "maintenance.ended"]
    assert Counter(key for _, key in office.tokens) == {"key-a": 1, "key-b": 1}


def test_in_a_daily_window_nothing_is_asked_and_no_token_issued(office: Office, logs: list[Any]):
    begins = MONDAY_NOON.replace(hour=5, minute=49)

    async def story(scene: Scene) -> None:
        held = await scene.ask(INDICES[0])
        assert held is None
        await asyncio.sleep(120)
        office.asked.clear()
        errors = await scene.ask_all()
        assert all(error and 19 * 60 - 5 < error.wait_s <= 19 * 60 for error in errors)
        assert all(error and error.everywhere for error in errors)
        assert json.loads(scene.ring.states()["*"])["until"].startswith("2026-11-23T06:10")
        assert office.asked == []
        await asyncio.sleep(19 * 60)
        assert await scene.ask_all() == [None] * len(PLAN)

    Scene(office, begins).play(story, windows=[Window(time(5, 50), time(6, 10))])

    assert said(logs, "maintenance.began", "maintenance.ended") == ["maintenance.began", "maintenance.ended"]


def test_a_walk_that_a_window_catches_stops_where_it_is(office: Office):
    """The page that would be asked for inside of it is not."""
    begins = MONDAY_NOON.replace(hour=5, minute=49, second=58)
    stocks = Job(tr_named("ka20002").target({"inds_cd": "001", "stex_tp": "1"}), 60.0)
    pages = iter(range(10_000))

    def page(key: str, tr: str) -> httpx.Response:
        number = next(pages)
        rows = [{"stk_cd": f"{number:06}"}]
        return httpx.Response(200, json={"inds_stkpc": rows, **OK}, headers={"cont-yn": "Y", "next-key": f"{number}"})

    async def story(scene: Scene) -> None:
        slow = {"ka20002": Limit(1, 0.3)}
        scene.ring._first._gates = Gates(slow, scene.clock)
        assert isinstance(await scene.ask(stocks), HeldBack)

    office.answer = page
    scene = Scene(office, begins)
    scene.play(story, keys=["a"], plan=[stocks], windows=[Window(time(5, 50), time(6, 10))])

    assert 0 < len(office.asked) < 5
    assert all(at_s < 2 for at_s, _, _ in office.asked)


def test_the_states_name_keys_and_never_hold_one(office: Office, logs: list[Any]):
    async def story(scene: Scene) -> None:
        await scene.ask_all()
        assert said(logs, "key.held") == ["key.held", "key.held"]
        assert "secret of" not in f"{scene.ring.states()} {scene.ring.breakers('ka20001')} {logs}"
        assert set(scene.ring.states()) == {"a", "b", "*"}

    office.token = lambda key: httpx.Response(200, json={"return_code": 3, "return_msg": f"[8001:secret of {key}]"})
    Scene(office).play(story)
