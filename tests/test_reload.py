"""A plan that is replaced while it runs: what stays notices nothing, and what cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from poller.catalogue import tr_named
from poller.commands import plan_of
from poller.grid import Job
from poller.reload import LOOK_EVERY_S, Reloader, fixed_changes, turnover
from poller.schedule import Poller
from poller.session import KST
from poller.settings import ConfigError, Settings
from poller.store import StoreDown, UnfitStore
from tests.servers import RealServer
from tests.test_acceptance import KEYS, Program, address_of, direct, server, until
from tests.virtual import VirtualClock, run
from tests.world import World

__all__ = ["direct", "server"]  # fixtures, which pytest finds by their names here

MONDAY_10 = datetime(2026, 11, 23, 10, 0, tzinfo=KST)
HEAD = '[kiwoom]\nbase_url = "http://127.0.0.1:9100"\n'


def job(tr: str, every_s: float = 10.0, priority: int = 1, **request: str) -> Job:
    return Job(tr_named(tr).target(request), every_s, priority)


KOSPI, KOSDAQ = job("ka20003", inds_cd="001"), job("ka20003", inds_cd="101")
SAMSUNG, FLOWS = job("ka10010", stk_cd="005930"), job("ka10051", mrkt_tp="0", amt_qty_tp="0", stex_tp="3")


# --- planning (pure)


def test_the_difference_of_two_plans_is_who_starts_who_ends_and_who_goes_on_otherwise():
    slower = job("ka20003", 60.0, inds_cd="001")

    found = turnover([KOSPI, KOSDAQ, FLOWS], [slower, FLOWS, SAMSUNG])

    assert (found.added, found.removed, found.changed) == ((SAMSUNG,), (KOSDAQ.target,), (slower,))


@pytest.mark.parametrize(
    "other", [Job(KOSPI.target, 20.0), Job(KOSPI.target, 10.0, 2), Job(KOSPI.target, 10.0, 1, 600.0)]
)
def test_interval_priority_and_off_hours_are_what_can_change_in_a_target_that_stays(other: Job):
    assert turnover([KOSPI], [other]).changed == (other,)


def test_the_same_plan_in_another_order_is_no_difference():
    found = turnover([KOSPI, SAMSUNG], [SAMSUNG, KOSPI])

    assert (found.added, found.removed, found.changed) == ((), (), ())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"bus": {"prefix": "other"}}, ["[bus] prefix"]),
        ({"bus": {"url": "redis://elsewhere", "retention": "1h"}}, ["[bus] url", "[bus] retention"]),
        ({"data": {"dir": "elsewhere"}}, ["[data] dir"]),
        ({"kiwoom": {"environment": "real", "requests_per_second": 4}}, None),
        ({"schedule": {"sessions": "always"}}, ["[schedule] sessions"]),
        ({"poll": [{"tr": "ka20003", "target": {"inds_cd": "001"}, "every": "10s"}]}, []),
    ],
)
def test_what_only_a_restart_can_change_is_named(changed: dict[str, Any], named: list[str] | None):
    found = fixed_changes(Settings(), Settings.model_validate(changed))

    assert found == (named if named is not None else ["[kiwoom] environment", "[kiwoom] requests_per_second"])


# --- the poller, in virtual time

PLAN = [
    ("ka20003", {"inds_cd": "001"}, 10.0),
    ("ka20003", {"inds_cd": "101"}, 10.0),
]


class Loads:
    """Counts how often each target is loaded from the store."""

    def __init__(self, poller: Poller) -> None:
        self.counts: dict[str, int] = {}
        self._store = poller._store
        self._load = self._store.load
        cast("Any", self._store).load = self

    async def __call__(self, target: Any) -> Any:
        self.counts[str(target)] = self.counts.get(str(target), 0) + 1
        return await self._load(target)


def played(plan: Any, scenario: Callable[[World, Poller], Awaitable[None]]) -> World:
    """A world in which one poller leads from 10 o'clock on, and the scenario begins a minute later."""
    world = World(start=MONDAY_10, plan=plan)

    async def whole(world: World) -> None:
        world.start()
        await world.until(MONDAY_10 + timedelta(minutes=1))
        poller = world.processes[0].poller
        assert poller is not None
        await scenario(world, poller)

    world.run(whole)
    return world


def asked_at(world: World, api_id: str, request: dict[str, str]) -> list[datetime]:
    return [one.at_real for one in world.ledger.served if (one.api_id, one.request) == (api_id, request)]


def minutes(number: float) -> datetime:
    return MONDAY_10 + timedelta(minutes=number)


def test_a_target_that_stays_is_asked_on_its_own_grid_without_a_hole_and_never_loaded_again():
    async def scenario(world: World, poller: Poller) -> None:
        loads = Loads(poller)
        for number in range(2, 7):
            jobs = [KOSPI, SAMSUNG] if number % 2 else [KOSPI, KOSDAQ]
            await poller.replan(jobs)
            await world.until(minutes(number))
        assert str(KOSPI.target) not in loads.counts

    world = played(PLAN, scenario)
    times = asked_at(world, "ka20003", {"inds_cd": "001"})[2:]
    steps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]

    assert len(steps) > 30
    assert all(abs(step - 10.0) < 0.5 for step in steps)
    gaps = [entry.source for entry in world.entries("ka20003") if entry.type == "sectorwire.gap"]
    assert f"/kiwoom/{KOSPI.target}" not in gaps  # the one that was away in between has its own


def test_a_new_target_is_asked_at_once_and_a_removed_one_no_more():
    async def scenario(world: World, poller: Poller) -> None:
        await poller.replan([KOSPI, Job(SAMSUNG.target, 600.0)])
        await world.until(minutes(5))

    world = played(PLAN, scenario)

    assert minutes(1) <= asked_at(world, "ka10010", {"stk_cd": "005930"})[0] <= minutes(1) + timedelta(seconds=5)
    assert max(asked_at(world, "ka20003", {"inds_cd": "101"})) <= minutes(1) + timedelta(seconds=1)


def test_a_report_that_is_new_in_the_plan_is_led_and_committed():
    async def scenario(world: World, poller: Poller) -> None:
        await poller.replan([KOSPI, SAMSUNG])
        await world.until(minutes(3))

    world = played(PLAN, scenario)

    assert [entry.type for entry in world.entries("ka10010")][:2] == ["sectorwire.reset", "sectorwire.row.baseline"]
    assert not [log for log in world.logs if log["event"] in {"poll.crashed", "lead.lost"}]


def test_a_changed_interval_replaces_the_old_one_without_a_load():
    async def scenario(world: World, poller: Poller) -> None:
        loads = Loads(poller)
        await poller.replan([job("ka20003", 30.0, inds_cd="001"), KOSDAQ])
        await world.until(minutes(6))
        assert loads.counts == {}

    world = played(PLAN, scenario)
    times = [moment for moment in asked_at(world, "ka20003", {"inds_cd": "001"}) if moment > minutes(2)]
    steps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]

    assert all(abs(step - 30.0) < 0.5 for step in steps)
    assert len(steps) >= 6


def test_a_shorter_interval_does_not_wait_for_the_old_turn():
    async def scenario(world: World, poller: Poller) -> None:
        await poller.replan([job("ka20003", 10.0, inds_cd="001")])
        await world.until(minutes(2))

    world = played([("ka20003", {"inds_cd": "001"}, 3600.0)], scenario)

    assert len([moment for moment in asked_at(world, "ka20003", {"inds_cd": "001"}) if moment > minutes(1)]) >= 5


def test_a_target_that_leaves_and_comes_back_in_one_breath_is_not_asked_twice_at_a_time():
    async def scenario(world: World, poller: Poller) -> None:
        for _ in range(20):
            await poller.replan([KOSPI])
            await poller.replan([KOSPI, KOSDAQ])
        await world.until(minutes(3))

    world = played(PLAN, scenario)
    times = [moment for moment in asked_at(world, "ka20003", {"inds_cd": "101"}) if moment > minutes(1)]

    assert len(times) <= 15
    assert not [log for log in world.logs if log["event"] in {"commit.stale", "poll.crashed"}]


def test_a_standby_takes_the_new_plan_over_with_the_lead():
    world = World(start=MONDAY_10, plan=PLAN, pollers=2)

    async def scenario(world: World) -> None:
        world.start()
        await world.until(minutes(1))
        for process in world.processes:
            assert process.poller is not None
            await process.poller.replan([KOSPI, SAMSUNG])
        await world.processes[0].kill()
        await world.until(minutes(3))

    world.run(scenario)

    assert max(asked_at(world, "ka10010", {"stk_cd": "005930"})) > minutes(2)
    assert max(asked_at(world, "ka20003", {"inds_cd": "101"})) < minutes(2)


def test_a_report_of_a_newer_program_is_refused_and_the_old_plan_goes_on():
    async def scenario(world: World, poller: Poller) -> None:
        world.server.hset("world:{ka10010}:meta", mapping={"revision": "99"})
        with pytest.raises(UnfitStore, match="upgrade"):
            await poller.replan([SAMSUNG])
        await world.until(minutes(3))

    world = played(PLAN, scenario)

    assert max(asked_at(world, "ka20003", {"inds_cd": "001"})) > minutes(2.5)
    assert asked_at(world, "ka10010", {"stk_cd": "005930"}) == []


def test_a_report_that_was_led_with_a_higher_token_makes_the_poller_take_the_lead_again():
    """A token only grows, and a new report may have seen a higher one under another plan."""

    async def scenario(world: World, poller: Poller) -> None:
        world.server.hset("world:{ka10010}:meta", mapping={"fence": "99:another"})
        await poller.replan([KOSPI, SAMSUNG])
        await world.until(minutes(3))

    world = played(PLAN, scenario)

    assert max(asked_at(world, "ka10010", {"stk_cd": "005930"})) > minutes(2.5)
    assert max(asked_at(world, "ka20003", {"inds_cd": "001"})) > minutes(2.5)
    assert world.entries("ka10010")
    assert [log["event"] for log in world.logs if log["event"].startswith("lead.")][:2] == [
        "lead.taken",
        "lead.renewed",
    ]


# --- the file


class Follower:
    """Stands where the poller stands: keeps the plans that it is given, or is in trouble."""

    def __init__(self) -> None:
        self.plans: list[list[str]] = []
        self.trouble: list[Exception] = []

    async def replan(self, jobs: Sequence[Job]) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        self.plans.append([str(one.target) for one in jobs])


def poll(sector: str, every: str = "10s") -> str:
    return f'[[poll]]\ntr = "ka20003"\ntarget = {{ inds_cd = "{sector}" }}\nevery = "{every}"\n'


class Desk:
    """One configuration with a reloader on it, in virtual time. `steps` are taken five looks apart."""

    def __init__(self, path: Path) -> None:
        self.path = path / "sectorwire.toml"
        self.follower, self.logs = Follower(), list[Any]()
        self.write(HEAD + poll("001"))

    def write(self, text: str) -> None:
        self.path.write_text(text, "utf-8")

    def play(self, *steps: Callable[[Reloader], object], keys: Callable[[], object] = lambda: None) -> None:
        async def story() -> None:
            stop, clock = asyncio.Event(), VirtualClock(MONDAY_10)
            reloader = Reloader(self.path, partial(plan_of, self.path))
            running = asyncio.create_task(reloader.run(cast("Poller", self.follower), clock, stop, keys))
            for step in steps:
                await asyncio.sleep(5 * LOOK_EVERY_S)
                step(reloader)
            await asyncio.sleep(5 * LOOK_EVERY_S)
            stop.set()
            await running

        with capture_logs() as logs:
            run(story())
        self.logs = [log for log in logs if log["event"].startswith(("reload.", "keys."))]

    @property
    def told(self) -> list[str]:
        return [log["event"] for log in self.logs]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    return Desk(tmp_path)


def test_a_file_with_another_plan_is_applied_by_itself(desk: Desk):
    desk.play(lambda _: desk.write(HEAD + poll("001", "20s") + poll("101")))

    assert desk.follower.plans == [["ka20003?inds_cd=001", "ka20003?inds_cd=101"]]
    assert [(log["added"], log["removed"], log["changed"]) for log in desk.logs] == [(1, 0, 1)]


def test_a_file_that_was_touched_or_never_changed_is_left_alone(desk: Desk):
    desk.play(lambda _: os.utime(desk.path, ns=(1, 1)))

    assert desk.told == []


def test_when_asked_it_reloads_at_once_whatever_the_file_says(desk: Desk):
    renewed = []
    desk.play(lambda reloader: reloader.ask(), keys=lambda: renewed.append(1))

    assert desk.told == ["reload.applied"]
    assert renewed == [1]


def test_keys_that_cannot_be_read_leave_the_plan_alone(desk: Desk):
    def keys() -> None:
        raise ConfigError("KIWOOM_APP_KEY_FILE: x cannot be read")

    desk.play(lambda reloader: reloader.ask(), keys=keys)

    assert desk.told == ["keys.refused", "reload.applied"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[poll]", "is not TOML"),
        (HEAD, "there is nothing to poll"),
        (HEAD + poll("002"), "allowed:"),
        (HEAD + poll("001", "1s") + poll("101", "1s"), "the plan does not fit"),
        (HEAD + '[bus]\nprefix = "other"\n' + poll("001"), "restart to change [bus] prefix"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_once_and_the_old_plan_goes_on(desk: Desk, text: str, told: str):
    desk.play(lambda _: desk.write(text), lambda _: None, lambda _: None)

    assert desk.follower.plans == []
    assert desk.told == ["reload.refused"]
    assert told in desk.logs[0]["error"]


def test_a_refused_file_that_was_mended_is_applied(desk: Desk):
    desk.play(lambda _: desk.write("[[poll]"), lambda _: desk.write(HEAD + poll("101")))

    assert desk.told == ["reload.refused", "reload.applied"]
    assert desk.follower.plans == [["ka20003?inds_cd=101"]]


def test_a_file_that_is_still_being_written_is_not_read_half_way(desk: Desk):
    """Cut at the end of a section it would be a good configuration without the rest of the plan."""
    whole = HEAD + "".join(poll(sector, "20s") for sector in ("001", "101"))

    async def story() -> None:
        stop, clock = asyncio.Event(), VirtualClock(MONDAY_10)
        reloader = Reloader(desk.path, partial(plan_of, desk.path))
        running = asyncio.create_task(reloader.run(cast("Poller", desk.follower), clock, stop))
        await asyncio.sleep(LOOK_EVERY_S / 2)
        for end in (len(HEAD + poll("001", "20s")), len(whole)):
            desk.write(whole[:end])
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(3 * LOOK_EVERY_S)
        stop.set()
        await running

    run(story())

    assert desk.follower.plans == [["ka20003?inds_cd=001", "ka20003?inds_cd=101"]]


def test_a_file_that_is_gone_for_a_while_changes_nothing(desk: Desk):
    text = desk.path.read_text("utf-8")
    desk.play(lambda _: desk.path.unlink(), lambda _: desk.write(text))

    assert desk.told == []


def test_a_server_that_does_not_answer_just_then_is_asked_again(desk: Desk):
    desk.follower.trouble = [StoreDown("the server does not answer"), StoreDown("the server does not answer")]
    desk.play(lambda _: desk.write(HEAD + poll("101")))

    assert desk.told == ["reload.refused", "reload.applied"]


def test_a_surprise_in_a_new_plan_leaves_the_old_one(desk: Desk):
    desk.follower.trouble = [ZeroDivisionError("nobody expected this")]
    desk.play(lambda _: desk.write(HEAD + poll("101")), lambda reloader: reloader.ask())

    assert desk.told == ["reload.crashed", "reload.applied"]


def test_a_poller_goes_on_by_its_old_plan_after_a_bad_file_and_by_the_new_one_after_a_good_one(desk: Desk):
    """The whole way, from the file to the broker."""

    async def scenario(world: World, poller: Poller) -> None:
        stop = asyncio.Event()
        reloader = Reloader(desk.path, partial(plan_of, desk.path))
        running = asyncio.create_task(reloader.run(poller, world.clock, stop))
        desk.write(HEAD + poll("nonsense"))
        await world.until(minutes(3))
        desk.write(HEAD + poll("001") + poll("101"))
        await world.until(minutes(5))
        stop.set()
        await running

    world = played(PLAN[:1], scenario)
    times = asked_at(world, "ka20003", {"inds_cd": "001"})[2:]

    assert max((b - a).total_seconds() for a, b in pairwise(times)) < 10.5
    assert minutes(3) < asked_at(world, "ka20003", {"inds_cd": "101"})[0] < minutes(3.2)


# --- the program


RUNNING = """\
[kiwoom]
base_url = "{base_url}"
requests_per_second = 4

[schedule]
sessions = "always"

[[poll]]
tr = "ka10010"
target = {{ stk_cd = "{stock}" }}
every = "1s"
"""


async def test_a_hang_up_reloads_the_running_program(tmp_path: Path, server: RealServer, direct: Any) -> None:
    """As a user does it: edit the file, `kill -HUP`, and look."""
    config, programs = tmp_path / "sectorwire.toml", list[Program]()
    try:
        programs.append(Program(tmp_path, "simulator", ["simulate", "--port", "0"], {}))
        base_url = await address_of(programs[0])
        config.write_text(RUNNING.format(base_url=base_url, stock="005930"), "utf-8")
        poller = Program(tmp_path, "poller", ["poll"], {**KEYS, "REDIS_URL": server.url})
        programs.append(poller)
        await until(lambda: direct.exists("sectorwire:{ka10010}:state:stk_cd=005930"), "the first commit")

        config.write_text(RUNNING.format(base_url=base_url, stock="000660"), "utf-8")
        poller.process.send_signal(signal.SIGHUP)
        await until(lambda: direct.exists("sectorwire:{ka10010}:state:stk_cd=000660"), "the new target's commit")
        config.write_text("[[poll]", "utf-8")
        poller.process.send_signal(signal.SIGHUP)
        await until(lambda: poller.said("reload.refused"), "the refusal")

        assert [(line["added"], line["removed"]) for line in poller.said("reload.applied")] == [(1, 1)]
        await poller.stop()
    finally:
        for program in programs:
            if not program.ended:
                program.kill()
