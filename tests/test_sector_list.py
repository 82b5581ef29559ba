"""The list of sectors: what ka10101 says, the groups that follow from it, and what streams are told of its changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from structlog.testing import capture_logs

from poller import sectors
from poller.catalogue import described
from poller.commands import fitting
from poller.commit import Known, state_of
from poller.contract import ShapeData, dumps, fold
from poller.errors import NotWhole
from poller.schedule import Poller
from poller.sector_list import (
    FILE_NAME,
    SECTOR_LIST,
    SectorKeeper,
    SectorNews,
    is_due,
    load_sectors,
    names_in,
    save_sectors,
    sector_commit,
)
from poller.sectors import BUILT_IN, GROUPS, SectorList, is_industry
from poller.session import KST, Calendar
from poller.settings import ConfigError, Settings, load_settings
from poller.simulator.checks import STOCK_INFO_PATH
from poller.simulator.listing import MEMBERS
from poller.store import RETRY_S, known_of
from poller.trs.base import Target
from tests.builders import EPOCH, NOON, after, recording, target
from tests.test_reload import played
from tests.world import World

MONDAY_10 = datetime(2026, 11, 23, 10, 0, tzinfo=KST)
QUOTES = target("ka20001", inds_cd="001")


@pytest.fixture(autouse=True)
def list_as_it_was() -> Iterator[None]:
    yield
    sectors.use(BUILT_IN)


def changed(market: str = "0", *, gone: str = "", **names: str) -> SectorList:
    """The built-in list, with other names in one market (`s031="새업종"`) and perhaps one sector less."""
    new = {**BUILT_IN.markets[market], **{code[1:]: name for code, name in names.items()}}
    new.pop(gone, None)
    return SectorList({**BUILT_IN.markets, market: new}, NOON)


def listed(market: str, rows: Mapping[str, str]) -> dict[str, Any]:
    """An answer of ka10101."""
    return {
        "return_code": 0,
        "list": [{"marketCode": market, "code": code, "name": name, "group": code[:1]} for code, name in rows.items()],
    }


def asked(market: str = "0") -> Target:
    return SECTOR_LIST.target({"mrkt_tp": market})


# --- reading


def test_the_simulators_list_is_the_built_in_one():
    """Through client, gate and token, in virtual time."""
    found: list[SectorList] = []

    async def scenario(world: World, poller: Poller) -> None:
        keeper = keeper_of(poller, found.append, world.quarantine.directory)
        stop = asyncio.Event()
        running = asyncio.create_task(keeper.run(stop))
        await world.until(MONDAY_10 + timedelta(minutes=2))
        stop.set()
        await running
        assert load_sectors(world.quarantine.directory).markets == found[0].markets

    world = played([("ka20003", {"inds_cd": "001"}, 10.0)], scenario)

    assert found[0].markets == BUILT_IN.markets
    assert [one.request for one in world.ledger.served if one.api_id == "ka10101"] == [
        {"mrkt_tp": market} for market in "01247"
    ]


def keeper_of(poller: Poller, hear: Callable[[SectorList], None], folder: Path) -> SectorKeeper:
    desk = poller._desk
    return SectorKeeper(desk.broker, folder, desk.clock, Calendar(), hear)


def test_what_is_no_sector_of_the_market_is_left_out_and_said():
    with capture_logs() as logs:
        names = names_in(asked(), [listed("0", {"001": "종합(KOSPI)", "119": "화학", "0x1": "?", "031": "새업종"})])

    assert names == {"001": "종합(KOSPI)", "031": "새업종"}
    assert logs[0]["left_out"] == {"119": "화학", "0x1": "?"}


@pytest.mark.parametrize("answer", [listed("0", {}), {"return_code": 0}, listed("0", {"001": ""})])
def test_an_empty_success_is_no_list(answer: dict[str, Any]):
    with pytest.raises(NotWhole):
        names_in(asked(), [answer])


# --- the file


def test_a_list_is_kept_with_its_date(tmp_path: Path):
    save_sectors(tmp_path / "data", changed(s031="새업종"))

    kept = load_sectors(tmp_path / "data")
    assert kept == changed(s031="새업종")
    assert kept.read_at == NOON
    assert [path.name for path in (tmp_path / "data").iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"read_at": "yesterday", "markets": {}}', b"\xff"])
def test_a_file_that_cannot_be_used_is_said_and_the_built_in_list_serves(tmp_path: Path, content: bytes):
    (tmp_path / FILE_NAME).write_bytes(content)
    with capture_logs() as logs:
        assert load_sectors(tmp_path) is BUILT_IN
    assert [log["event"] for log in logs] == ["sectors.unreadable"]


def test_before_the_first_fetch_the_built_in_list_serves(tmp_path: Path):
    assert load_sectors(tmp_path) is BUILT_IN


def test_the_list_is_read_again_after_a_week_when_the_market_is_shut():
    week_old = replace(BUILT_IN, read_at=MONDAY_10 - timedelta(days=7, minutes=1))

    assert is_due(BUILT_IN, MONDAY_10, Calendar())
    assert not is_due(week_old, MONDAY_10, Calendar())
    assert is_due(week_old, MONDAY_10 + timedelta(hours=12), Calendar())
    assert is_due(week_old, MONDAY_10 + timedelta(days=1), Calendar())
    assert not is_due(replace(BUILT_IN, read_at=MONDAY_10), MONDAY_10 + timedelta(hours=12), Calendar())


# --- groups


@pytest.mark.parametrize(("market", "composite"), [("0", "001"), ("1", "101")])
def test_the_industries_count_every_stock_of_a_market_once(market: str, composite: str):
    """Summing is what the group is for. The simulator's stocks stand in sectors as the broker's overlap."""
    industries = [code for code in BUILT_IN.group("@industries") if sectors.market_of(code) == market]
    counted = sorted(place for code in industries for place in MEMBERS[code])

    assert counted == sorted(MEMBERS[composite])


def test_an_index_that_comes_is_no_industry_and_a_new_industry_is_one():
    assert is_industry("031")
    assert not any(map(is_industry, ("606", "146", "166", "201", "701")))


def test_the_groups_are_markets_as_they_are_listed():
    sizes = {name: len(BUILT_IN.group(name)) for name in GROUPS}

    assert sizes == {"@kospi": 31, "@kosdaq": 34, "@kospi200": 27, "@krx": 23, "@industries": 42}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Settings]:
    """A function that makes settings of some lines of a plan."""
    return lambda *lines: load_settings(write(tmp_path, *lines), {})


def targets(settings: Settings) -> list[str]:
    return [str(job.target) for job in settings.jobs()]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "sectorwire.toml"
    head = f'[kiwoom]\nbase_url = "http://127.0.0.1:9100"\n[data]\ndir = "{folder}/data"\n'
    path.write_text(head + "".join(lines), "utf-8")
    return path


def poll(tr: str, sector: str, more: str = "", every: str = "60s") -> str:
    return f'[[poll]]\ntr = "{tr}"\ntarget = {{ inds_cd = {sector}{more} }}\nevery = "{every}"\n'


@pytest.mark.parametrize("tr", ["ka20001", "ka20009"])
def test_a_group_makes_one_target_per_sector_with_its_own_market(planned: Callable[..., Settings], tr: str):
    assert targets(planned(poll(tr, '"@krx"')))[:2] == [f"{tr}?inds_cd=701&mrkt_tp=7", f"{tr}?inds_cd=702&mrkt_tp=7"]
    assert len(targets(planned(poll(tr, '"@kosdaq"')))) == 34


def test_a_group_multiplies_with_other_lists(planned: Callable[..., Settings]):
    found = planned(poll("ka20002", '["@kospi200", "001"]', ', stex_tp = ["1", "3"]'))

    assert len(found.jobs()) == 2 * 28
    assert found.groups() == {("ka20002", "@kospi200"): 2 * 27}


def test_what_groups_give_twice_is_asked_once(planned: Callable[..., Settings]):
    found = planned(poll("ka20001", '["001", "@kospi", "@industries", "@kospi"]'))

    assert len(found.jobs()) == 31 + 21
    assert found.groups() == {("ka20001", "@kospi"): 30, ("ka20001", "@industries"): 21}


def test_a_code_that_is_given_twice_is_still_a_mistake(planned: Callable[..., Settings]):
    with pytest.raises(ConfigError, match="polled twice"):
        planned(poll("ka20001", '["@kospi", "001", "001"]')).jobs()


def test_a_sector_that_a_line_names_by_its_code_keeps_that_lines_interval(tmp_path: Path):
    settings = load_settings(write(tmp_path, poll("ka20001", '"@kospi"'), poll("ka20001", '"001"', every="10s")), {})
    every = {str(job.target): job.every_s for job in settings.jobs()}

    assert every["ka20001?inds_cd=001&mrkt_tp=0"] == 10.0
    assert (len(every), sum(every_s == 60.0 for every_s in every.values())) == (31, 30)
    assert fitting(settings, settings.jobs())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (poll("ka20001", '"@kopsi"'), 'no group "@kopsi" of sectors; did you mean "@kospi"?'),
        (poll("ka20001", '"@zz9"'), "known: @kospi, @kosdaq, @kospi200, @krx, @industries"),
        (poll("ka20003", '"@kospi"'), 'ka20003 takes no group of sectors such as "@kospi"; allowed: "001" 종합(KOSPI)'),
        (poll("ka20001", '"@kosdaq"', ', mrkt_tp = "0"'), 'contradicts inds_cd = "101"'),
        (poll("ka10051", '"@kospi"'), "ka10051"),
    ],
)
def test_a_group_that_cannot_be_is_refused_with_the_remedy(planned: Callable[..., Settings], line: str, told: str):
    with pytest.raises(ConfigError) as raised:
        planned(line)

    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_groups_and_labels_follow_the_list_that_was_read(tmp_path: Path, planned: Callable[..., Settings]):
    save_sectors(tmp_path / "data", changed(s031="새업종", s008="화학/정유", gone="030"))
    found = targets(planned(poll("ka20001", '"@kospi"')))

    assert "ka20001?inds_cd=031&mrkt_tp=0" in found
    assert "ka20001?inds_cd=030&mrkt_tp=0" not in found
    labels = [target("ka20001", inds_cd=code).label for code in ("031", "008", "030")]
    assert labels == ["새업종", "화학/정유", "오락/문화"]


# --- news


def told(known: Known, listing: SectorList, of: Target = QUOTES) -> Any:
    commit = sector_commit(of, known, listing, "regular", EPOCH)
    return None if commit is None else orjson.loads(commit.drafts[0].data)


@pytest.fixture
def known() -> Known:
    return after(QUOTES, recording("ka20001").answer)


def test_sectors_that_come_go_and_are_renamed_are_told_with_code_and_name(known: Known):
    data = told(known, changed(s031="새업종", s008="화학/정유", gone="030"))

    assert data["appeared"] == {"sectors": ["008 화학/정유", "031 새업종"]}
    assert data["vanished"] == {"sectors": ["008 화학", "030 오락/문화"]}
    assert data["label"] == "코스피 업종 목록"
    assert ShapeData.model_validate(data)


def test_a_list_that_says_what_was_told_is_no_news(known: Known):
    assert told(known, BUILT_IN) is None
    assert told(known, changed("1", s131="새업종")) is None  # another market's
    commit = sector_commit(QUOTES, known, changed(s031="새업종"), "regular", EPOCH)
    assert commit is not None
    assert told(commit.known, changed(s031="새업종")) is None
    assert told(commit.known, changed(s031="딴이름"))["vanished"] == {"sectors": ["031 새업종"]}


def test_a_list_that_is_again_as_built_in_is_news_once_another_was_told(known: Known):
    commit = sector_commit(QUOTES, known, changed(s031="새업종"), "regular", EPOCH)
    assert commit is not None

    assert told(commit.known, BUILT_IN)["vanished"] == {"sectors": ["031 새업종"]}


def test_what_was_told_survives_the_store(known: Known):
    commit = sector_commit(QUOTES, known, changed(s031="새업종"), "regular", EPOCH)
    assert commit is not None
    rows = {f"{name}/{key}": dumps(row) for name, table in known.rows.items() for key, row in table.items()}

    loaded = known_of(QUOTES, state_of(commit.known), rows)
    assert loaded == commit.known
    assert told(loaded, changed(s031="새업종")) is None


def test_the_news_move_the_version_and_nothing_else(known: Known):
    commit = sector_commit(QUOTES, known, changed(s031="새업종"), "regular", EPOCH)

    assert commit is not None
    assert (commit.version_before, commit.version) == (known.version, known.version + 1)
    assert (commit.set_rows, commit.delete_rows, commit.clear) == ({}, (), False)
    elements = commit.known.elements
    assert replace(commit.known, version=known.version, elements=known.elements) == known
    assert {name: elements[name] for name in known.elements} == known.elements


def test_a_target_that_was_never_seen_tells_nothing():
    assert sector_commit(QUOTES, Known(), changed(s031="새업종"), "regular", EPOCH) is None


def test_one_target_of_each_report_and_market_carries_the_news():
    news, sectors_by_code = SectorNews(), ("013", "001", "101", "701")
    quotes = [target("ka20001", inds_cd=code) for code in sectors_by_code]
    others = [target("ka20003", inds_cd="001"), target("ka10051", mrkt_tp="0", amt_qty_tp="0", stex_tp="3")]
    days = target("ka20009", inds_cd="013")
    news.plan([*quotes, *others, days])
    assert not any(map(news.untold, quotes))

    news.hear(BUILT_IN)

    assert [one.request["inds_cd"] for one in quotes if news.untold(one)] == ["001", "101", "701"]
    assert news.untold(days)
    assert not any(map(news.untold, others))
    news.told(quotes[1])
    assert not news.untold(quotes[1])
    assert news.untold(days)


def test_when_the_carrier_leaves_the_plan_another_carries_what_is_untold():
    news, first, second = SectorNews(), target("ka20001", inds_cd="013"), target("ka20001", inds_cd="014")
    news.plan([first, second])
    news.hear(BUILT_IN)
    news.plan([second])

    assert news.untold(second)


PLAN = [("ka20001", {"inds_cd": code}, 10.0) for code in ("001", "013", "101")]


def test_the_streams_are_told_once_and_fold_to_the_snapshots_all_the_same():
    async def scenario(world: World, poller: Poller) -> None:
        for minute in (2, 3, 4):
            poller.hear_sectors(changed(s031="새업종"))
            await world.until(MONDAY_10 + timedelta(minutes=minute))

    world = played(PLAN, scenario)
    entries = world.entries("ka20001")
    shapes = [entry for entry in entries if entry.type == "sectorwire.shape"]
    folded = fold(entries, described())

    assert [(entry.source, entry.subject) for entry in shapes] == [("/kiwoom/ka20001?inds_cd=001&mrkt_tp=0", "sectors")]
    assert shapes[0].time.isoformat(timespec="milliseconds") == shapes[0].data["observed_at"]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert len({entry.id for entry in entries}) == len(entries)
    for one in world.targets:
        assert {name: dumps(row) for name, row in folded[str(one)].items()} == world.snapshot(one)
    assert not [log for log in world.logs if log["event"] in {"commit.stale", "poll.crashed", "store.rolled_back"}]


@pytest.mark.parametrize("moment", ["before commit", "after commit"])
def test_news_that_were_interrupted_are_told_once(moment: str):
    """The lost reply of a commit that was made must not become a second entry, a lost request no missing one."""

    async def scenario(world: World, poller: Poller) -> None:
        seen: list[str] = []

        def trouble(where: str) -> None:
            """Let the next poll's commit pass; that of the news fails, and so do all its tries."""
            if where == moment:
                seen.append(where)
                if 1 < len(seen) <= 1 + len(RETRY_S):
                    raise ConnectionResetError(where)

        poller.hear_sectors(changed(s031="새업종"))
        world.processes[0].trouble = trouble
        await world.until(MONDAY_10 + timedelta(minutes=5))
        assert len(seen) > 1 + len(RETRY_S)

    world = played(PLAN[:1], scenario)

    assert len([entry for entry in world.entries("ka20001") if entry.type == "sectorwire.shape"]) == 1


def test_a_successor_does_not_tell_again_what_the_stream_has():
    async def scenario(world: World, poller: Poller) -> None:
        poller.hear_sectors(changed(s031="새업종"))
        await world.until(MONDAY_10 + timedelta(minutes=2))
        await world.processes[0].kill()
        world.processes[0].start()
        await world.until(MONDAY_10 + timedelta(minutes=3))
        successor = world.processes[0].poller
        assert successor is not None
        successor.hear_sectors(changed(s031="새업종"))
        await world.until(MONDAY_10 + timedelta(minutes=4))

    world = played(PLAN[:1], scenario)

    assert len([entry for entry in world.entries("ka20001") if entry.type == "sectorwire.shape"]) == 1


# --- keeping


class Lister(httpx.AsyncBaseTransport):
    """The simulator, but for the list of KOSPI, which is the test's."""

    def __init__(self, world: World, answer: Callable[[], httpx.Response]) -> None:
        self._world, self._answer, self.asked = world.transport, answer, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == STOCK_INFO_PATH:
            self.asked += 1
            if orjson.loads(request.content)["mrkt_tp"] == "0":
                return self._answer()
        return await self._world.handle_async_request(request)


def kept(
    answer: Callable[[], httpx.Response], before: SectorList, hours: float
) -> tuple[list[SectorList], World, Lister]:
    """What a keeper heard in these hours, which begin a minute after 10 o'clock."""
    heard: list[SectorList] = []
    world = World(start=MONDAY_10, plan=[("ka20003", {"inds_cd": "001"}, 60.0)])
    lister = Lister(world, answer)
    world.transport = lister  # type: ignore[assignment]  # the world needs no more of it

    async def scenario(world: World) -> None:
        folder = world.quarantine.directory
        if before.read_at:
            save_sectors(folder, before)
        world.start()
        await world.until(MONDAY_10 + timedelta(minutes=1))
        poller = world.processes[0].poller
        assert poller is not None
        stop = asyncio.Event()
        running = asyncio.create_task(keeper_of(poller, heard.append, folder).run(stop))
        await world.until(MONDAY_10 + timedelta(hours=hours))
        stop.set()
        await running

    world.run(scenario)
    return heard, world, lister


def answering(rows: Mapping[str, str]) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, json=listed("0", rows))


def test_a_list_that_changed_is_kept_used_and_told():
    names = {**BUILT_IN.markets["0"], "031": "새업종"}
    heard, world, _ = kept(answering(names), BUILT_IN, hours=1)

    assert [one.markets["0"] for one in heard] == [names]
    assert sectors.name_of("031") == "새업종"
    (log,) = [log for log in world.logs if log["event"] == "sectors.read"]
    assert (log["came"], log["went"]) == (["031 새업종"], [])


def test_a_list_that_lost_most_of_its_sectors_is_hardly_true_and_the_old_one_serves():
    few = {"001": "종합(KOSPI)", "002": "대형주"}
    heard, world, _ = kept(answering(few), replace(BUILT_IN, read_at=MONDAY_10 - timedelta(days=30)), hours=0.5)

    assert heard == []
    (log,) = [log for log in world.logs if log["event"] == "sectors.failed"]
    assert "29 of 31 sectors are gone" in log["error"]
    assert "delete sectors.json" in log["error"]


def test_trouble_with_the_list_is_logged_and_tried_again_an_hour_later():
    heard, world, lister = kept(lambda: httpx.Response(500), BUILT_IN, hours=2.5)

    assert heard == []
    assert lister.asked == 3
    assert len([log for log in world.logs if log["event"] == "sectors.failed"]) == 3
    assert len([one for one in world.ledger.served if one.api_id == "ka20003"]) > 140


def test_a_surprise_in_the_list_never_stops_the_polling():
    def surprise() -> httpx.Response:
        raise ZeroDivisionError("nobody expected this")

    _, world, _ = kept(surprise, BUILT_IN, hours=0.5)

    assert [log["event"] for log in world.logs if log["event"].startswith("sectors.")] == ["sectors.crashed"]


def test_a_poller_that_does_not_lead_asks_for_no_list():
    world = World(start=MONDAY_10, plan=PLAN[:1], pollers=2)

    async def scenario(world: World) -> None:
        world.start()
        await world.until(MONDAY_10 + timedelta(minutes=1))
        poller, stop = world.processes[1].poller, asyncio.Event()
        assert poller is not None
        running = asyncio.create_task(keeper_of(poller, lambda _: None, world.quarantine.directory).run(stop))
        await world.until(MONDAY_10 + timedelta(minutes=5))
        stop.set()
        await running

    world.run(scenario)

    assert not [one for one in world.ledger.served if one.api_id == "ka10101"]
    assert not [log for log in world.logs if log["event"] == "sectors.failed"]
