"""What the doctor finds and what it advises: each rule by itself, and the facts as a real server tells them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.asyncio import Redis

from poller.budget import Limit, Share
from poller.clock import Clock
from poller.contract import Keys
from poller.doctor import Disk, Facts, Finding, findings, gather
from poller.groups import GroupStatus
from poller.service import Bus, open_bus
from poller.settings import BusSettings, DataSettings, PollSettings, Settings
from poller.status import Fork, Status, TargetStatus, Trouble
from poller.store import UnfitStore, connect
from sectorwire import main
from tests.conftest import MONDAY_NOON, HandClock
from tests.servers import RealServer, client, wait_until

FRESH = TargetStatus(
    target="ka20003?inds_cd=001",
    label="종합(KOSPI)",
    every_s=10.0,
    version=7,
    last_good=MONDAY_NOON,
    next_due=None,
    last_error="",
    gap="",
    hold="",
    finding="",
    suspect="",
    missed_ticks=0,
    stale=False,
)
WELL = Status("valkey 9.1.2", "1:host.1.ab", {"ka20003": 9}, [FRESH])
FACTS = Facts(
    url="redis://127.0.0.1:6379/0",
    info={
        "redis_version": "7.2.4",
        "valkey_version": "9.1.2",
        "maxmemory": 0,
        "used_memory": 10**6,
        "maxmemory_policy": "noeviction",
        "aof_enabled": 1,
        "aof_last_write_status": "ok",
        "aof_last_bgrewrite_status": "ok",
        "rdb_last_bgsave_status": "ok",
        "role": "master",
        "connected_slaves": 0,
    },
    config={"appendfsync": "always", "save": ""},
    ahead_s=0.01,
    keys=Keys("sectorwire"),
    roles={("ka20003", "changes", "alert"): "alert"},
    parked={},
    stream_bytes=10**6,
    max_bytes=10**9,
    retention_s=86400.0,
    disks=(Disk("[data] dir", Path("data"), 50 * 10**9),),
    plan=(Share("ka20003", Limit(1), ((1, 10.0),)),),
    status=WELL,
    calendar="",
)
GROUP = GroupStatus("ka20003", "changes", "mine", lag=0, pending=0, parked=0, idle_s=1.0, abandoned=False)


def found(**facts: Any) -> Finding:
    """The one thing that is wrong where everything else is well."""
    (finding,) = findings(replace(FACTS, **facts))
    return finding


def with_groups(*groups: GroupStatus) -> Status:
    return replace(WELL, groups=groups)


def with_info(**fields: object) -> dict[str, object]:
    return {**FACTS.info, **fields}


def test_where_all_is_well_nothing_is_found():
    assert findings(FACTS) == []


def test_the_worst_comes_first():
    troubled = replace(
        FACTS, ahead_s=5.0, info=with_info(maxmemory_policy="allkeys-lru"), config={"appendfsync": "everysec"}
    )

    assert [finding.severity for finding in findings(troubled)] == ["serious", "warning", "note"]


def test_a_finding_is_a_line_and_a_remedy():
    assert str(Finding("note", "it rains", "take an umbrella")) == "note     it rains\n         -> take an umbrella"


@pytest.mark.parametrize(
    ("fields", "severity", "what", "remedy"),
    [
        ({"redis_version": "6.2.14", "valkey_version": "6.2.14"}, "serious", "6.2.14 is too old", "7.0 or later"),
        ({"dragonfly_version": "1.2"}, "note", "dragonfly", "Redis or Valkey"),
        ({"maxmemory_policy": "volatile-lru"}, "serious", "policy is volatile-lru", "maxmemory-policy noeviction"),
        ({"maxmemory": 5 * 10**8}, "warning", "maxmemory is 500.0 MB, [bus] max_bytes 1.0 GB", '"250MB"'),
        ({"maxmemory": 2 * 10**9, "used_memory": 19 * 10**8}, "warning", "uses 1.9 GB of its maxmemory", "raise"),
        ({"aof_enabled": 0}, "warning", "loses every entry", "CONFIG SET appendonly yes"),
        ({"aof_last_write_status": "err"}, "serious", "aof_last_write_status is err", "its disk"),
        ({"rdb_last_bgsave_status": "err"}, "serious", "rdb_last_bgsave_status is err", "its disk"),
        ({"aof_last_bgrewrite_status": "err"}, "warning", "aof_last_bgrewrite_status is err", "its disk"),
        ({"role": "slave", "master_host": "one", "master_port": 6379}, "serious", "a replica", "one:6379"),
    ],
)  # fmt: skip
def test_what_the_server_says_of_itself(fields: dict[str, object], severity: str, what: str, remedy: str):
    finding = found(info=with_info(**fields))

    assert (finding.severity, what in finding.what, remedy in finding.remedy) == (severity, True, True), finding


@pytest.mark.parametrize(
    ("config", "severity", "what"),
    [
        ({"appendfsync": "everysec"}, "note", "up to a second"),
        ({"appendfsync": "no"}, "warning", "half a minute"),
    ],
)
def test_how_often_the_file_is_written_out(config: dict[str, str], severity: str, what: str):
    finding = found(config=config)

    assert (finding.severity, what in finding.what) == (severity, True), finding


def test_entries_that_the_server_lost_are_worth_knowing_and_nothing_to_mend():
    fork = Fork("ka20003", "archive", MONDAY_NOON, had="9-0", has="7-0", lost=4, ranges=((1, 12, 15),))
    finding = found(status=replace(WELL, forks=(fork,)))

    assert (finding.severity, "4 entries are in the archive alone" in finding.what) == ("note", True), finding
    assert finding.remedy.startswith("nothing: ")


def test_a_server_that_only_dumps_now_and_then_loses_what_came_since():
    finding = found(info=with_info(aof_enabled=0), config={"appendfsync": "everysec", "save": "3600 1"})

    assert "loses what was written since its last dump" in finding.what


def test_where_config_is_forbidden_nothing_is_guessed():
    assert findings(replace(FACTS, config={})) == []


def test_a_replica_that_lags_is_what_a_failover_would_lose():
    replicas = {
        f"slave{n}": {"ip": "::1", "port": 7000 + n, "state": "online", "lag": lag} for n, lag in enumerate((1, 30))
    }
    finding = found(info=with_info(connected_slaves=2, **replicas))

    assert (finding.severity, "::1:7001 is online and 30 s behind" in finding.what) == ("warning", True), finding


@pytest.mark.parametrize(("ahead_s", "told"), [(5.5, "5.5 s ahead of"), (-3.0, "3.0 s behind")])
def test_clocks_that_differ_are_told_with_the_number(ahead_s: float, told: str):
    finding = found(ahead_s=ahead_s)

    assert (finding.severity, told in finding.what, "NTP" in finding.remedy) == ("warning", True, True), finding


@pytest.mark.parametrize(("stream_bytes", "severity"), [(9 * 10**8, "warning"), (10**9, "serious")])
def test_streams_near_their_ceiling_are_a_warning_and_at_it_polling_rests(stream_bytes: int, severity: str):
    assert found(stream_bytes=stream_bytes).severity == severity


@pytest.mark.parametrize("idle_s", [None, 2 * 86400.0])
def test_a_group_nobody_reads_is_told_with_the_command_that_ends_it(idle_s: float | None):
    finding = found(status=with_groups(replace(GROUP, lag=120, idle_s=idle_s)))

    assert (finding.severity, "120 entries are kept" in finding.what) == ("warning", True)
    assert "redis-cli -u redis://127.0.0.1:6379/0 XGROUP DESTROY 'sectorwire:{ka20003}:changes' mine" in finding.remedy


@pytest.mark.parametrize(
    "group",
    [
        replace(GROUP, lag=0, idle_s=None),
        replace(GROUP, lag=120, idle_s=3600.0),
        replace(GROUP, group="alert", lag=120, idle_s=1.0),
    ],
    ids=["it needs nothing", "its program may come back within retention", "a role that is at work"],
)
def test_a_group_that_does_no_harm_is_left_alone(group: GroupStatus):
    assert findings(replace(FACTS, status=with_groups(group))) == []


@pytest.mark.parametrize(
    ("lag", "told"), [(120, "120 entries wait"), (None, "entries wait")], ids=["counted", "not ours, so uncounted"]
)
def test_a_role_that_does_not_run_is_told_with_the_command_that_starts_it(lag: int | None, told: str):
    finding = found(status=with_groups(replace(GROUP, group="alert", lag=lag, idle_s=300.0)))

    assert told in finding.what
    assert "has not read for 5 minutes" in finding.what
    assert "`sectorwire alert`" in finding.remedy


def test_a_reader_that_is_far_behind_is_told_with_its_lag():
    assert "12,000 entries behind" in found(status=with_groups(replace(GROUP, lag=12_000))).what


def test_parked_entries_are_counted_per_report_and_group():
    finding = found(status=with_groups(GROUP), parked={("ka20003", "mine"): 3})

    assert finding.what.startswith("ka20003: group mine gave up on 3 entries")
    assert "parked list --tr ka20003 --group mine" in finding.remedy


def test_what_a_group_that_is_gone_has_left_parked_is_told():
    finding = found(parked={("ka20003", "mine"): 3})

    assert (finding.severity, finding.what.startswith("ka20003: group mine, which is gone")) == ("warning", True)
    assert "parked list --tr ka20003 --group mine" in finding.remedy


@pytest.mark.parametrize(("free_bytes", "severity"), [(5 * 10**8, "warning"), (10**7, "serious")])
def test_a_disk_that_fills_up_is_named_with_what_is_left(free_bytes: int, severity: str):
    finding = found(disks=[Disk("the archive", Path("/archive"), free_bytes)])

    assert (finding.severity, "MB are left for the archive in /archive" in finding.what) == (severity, True), finding


def test_a_plan_that_does_not_fit_is_told_with_its_remedy_and_a_full_one_is_noted():
    too_much, full = (Share("ka20001", Limit(1), ((1, every_s),) * 10) for every_s in (5.0, 12.5))

    assert ("serious", "longer" in found(plan=[too_much]).remedy) == (found(plan=[too_much]).severity, True)
    assert found(plan=[full]).what == f"the plan uses {full.used_pct:.0f} % of the limit of ka20001"


def test_without_a_leader_nothing_is_asked_and_nobody_counts_stale_targets():
    status = replace(WELL, leader=None, targets=[replace(FRESH, stale=True)])

    assert found(status=status).what == "no poller leads: nothing is asked"


def test_stale_targets_under_a_leader_are_serious_and_the_first_is_told_with_its_error():
    stale = replace(FRESH, stale=True, last_error="HTTP 503")
    finding = found(status=replace(WELL, targets=[FRESH, stale]))

    assert (finding.severity, finding.what) == ("serious", "1 of 2 targets stale, first ka20003?inds_cd=001")
    assert "HTTP 503" in finding.remedy


@pytest.mark.parametrize(
    ("state", "severity"),
    [("held", "serious"), ("stopped", "serious"), ("breaker open", "warning"), ("maintenance", "note")],
)
def test_keys_reports_and_the_broker_are_as_bad_as_the_person_they_need(state: str, severity: str):
    trouble = Trouble("app key a", state, "2026-11-23T12:00:00+09:00", "register this address")
    finding = found(status=replace(WELL, troubles=(trouble,)))

    assert (finding.severity, "register this address" in finding.what) == (severity, True)


def test_what_the_data_says_of_the_calendar_is_told_once():
    told = "the broker's newest day is 2026-11-20: add closed_days = [2026-11-23]"
    finding = found(status=replace(WELL, targets=[replace(FRESH, finding=told)] * 3))

    assert finding.remedy == "add closed_days = [2026-11-23]"


def test_the_end_of_the_late_openings_is_a_warning():
    finding = found(calendar="late openings are known until 2027-12-31: add those of 2028")

    assert (finding.severity, finding.remedy) == ("warning", "add those of 2028")


def plan_on(url: str, directory: Path) -> Settings:
    line = PollSettings.model_validate({"tr": "ka20003", "target": {"inds_cd": "001"}, "every": "10s"})
    return Settings(bus=BusSettings(url=url, prefix="test"), data=DataSettings(dir=directory / "not-yet"), poll=[line])


async def facts_of(server: RealServer, redis: Redis, directory: Path, clock: Clock) -> Facts:
    settings = plan_on(server.url, directory)
    roles = {("ka20003", "changes", "alert"): "alert"}
    bus = Bus(redis, None, "a server", server.url)
    return await gather(settings, settings.jobs(), [], bus, clock, roles=roles, archive=directory)


async def test_a_real_server_tells_all_the_facts(real_server: RealServer, redis: Redis, tmp_path: Path):
    """Three entries; `alert` was given one and holds it, `done` has them all, `new` was given none.

    `gone` has left what it gave up on. The report of the last stream is in no plan; its entry is not ours.
    """
    stream = "test:{ka20003}:changes"
    ids = [await redis.xadd(stream, {"seq": str(number)}) for number in (1, 2, 3)]
    await redis.hset("test:{ka20003}:meta", "seq", "3")
    for name in ("alert", "done", "new"):
        await redis.xgroup_create(stream, name, "0")
    await redis.xreadgroup("alert", "me", {stream: ">"}, count=1)
    await redis.xreadgroup("done", "me", {stream: ">"})
    await redis.xack(stream, "done", *(str(one) for one in ids))
    for name in ("done", "gone"):
        await redis.xadd(f"test:{{ka20003}}:parked:{name}", {"seq": "0"})
    await redis.xadd("another:{ka20003}:parked:done", {"seq": "0"})
    await redis.xadd("test:{ka10051}:changes", {"n": "0"})
    await redis.xgroup_create("test:{ka10051}:changes", "strange", "0")
    facts = await facts_of(real_server, redis, tmp_path, Clock())
    groups = {group.group: group for group in facts.status.groups}

    assert {name: (group.tr, group.lag) for name, group in groups.items()} == {
        "alert": ("ka20003", 3),
        "done": ("ka20003", 0),
        "new": ("ka20003", 3),
        "strange": ("ka10051", None),
    }
    assert facts.parked == {("ka20003", "done"): 1, ("ka20003", "gone"): 1}
    assert groups["new"].idle_s is None
    assert groups["alert"].idle_s is not None
    assert facts.stream_bytes > 0
    assert facts.config["appendfsync"] == "everysec"
    assert facts.info["maxmemory_policy"] == "noeviction"
    assert facts.info["aof_enabled"] == 1
    assert abs(facts.ahead_s) < 2
    assert [disk.what for disk in facts.disks] == ["[data] dir", "the archive"]
    assert all(disk.free_bytes > 0 for disk in facts.disks)
    assert {finding.severity for finding in findings(facts)} >= {"warning", "note"}


async def test_a_deletion_does_not_hide_how_far_behind_a_group_is(
    real_server: RealServer, redis: Redis, tmp_path: Path
):
    """The server cannot count any more; our own `seq` can."""
    stream = "test:{ka20003}:changes"
    ids = [str(await redis.xadd(stream, {"seq": str(number)})) for number in range(1, 10)]
    await redis.hset("test:{ka20003}:meta", "seq", "9")
    await redis.xgroup_create(stream, "new", ids[1])
    await redis.xdel(stream, ids[4])
    told = [one.what for one in findings(await facts_of(real_server, redis, tmp_path, Clock()))]

    assert any("group new has no consumer" in what and "7 entries are kept" in what for what in told), told


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_either_kind_of_server_says_what_the_rules_read(kind: Literal["redis", "valkey"], tmp_path: Path):
    """The names in INFO are the server's own: a rule that reads one which is not there finds nothing, ever."""
    with RealServer(tmp_path, kind=kind) as server:
        redis = connect(server.url)
        facts = await facts_of(server, redis, tmp_path, Clock())
        await redis.aclose()

    asked = {name for name in FACTS.info if name != "valkey_version"}
    assert asked <= facts.info.keys()
    assert ("valkey_version" in facts.info) is (kind == "valkey")
    assert facts.info["role"] == "master"


async def test_a_replica_is_seen_from_both_ends(real_server: RealServer, redis: Redis, tmp_path: Path):
    with RealServer(tmp_path, options=["--replicaof", "127.0.0.1", str(real_server.port)]) as server:
        replica = connect(server.url)
        told = await facts_of(server, replica, tmp_path, Clock())
        primary = client(real_server.url)
        wait_until(lambda: primary.info("replication")["connected_slaves"], "the replica to arrive")
        primary.close()
        seen = await facts_of(real_server, redis, tmp_path, Clock())
        await replica.aclose()

    assert f"127.0.0.1:{real_server.port}" in next(one.remedy for one in findings(told) if "replica" in one.what)
    assert {"ip", "port", "state", "lag"} <= seen.info["slave0"].keys()


async def test_a_server_that_forbids_config_is_asked_for_nothing_more(tmp_path: Path):
    with RealServer(tmp_path, options=["--rename-command", "CONFIG", ""]) as server:
        redis = connect(server.url)
        facts = await facts_of(server, redis, tmp_path, Clock())
        await redis.aclose()

    assert facts.config == {}
    assert facts.info["maxmemory_policy"] == "noeviction"


async def test_the_difference_of_the_clocks_is_measured(real_server: RealServer, redis: Redis, tmp_path: Path):
    clock = HandClock(Clock().now() - timedelta(seconds=60))

    assert 55 < (await facts_of(real_server, redis, tmp_path, clock)).ahead_s < 120


async def test_a_server_that_throws_entries_away_is_refused_at_the_start_and_the_doctor_still_sees_it(tmp_path: Path):
    with RealServer(
        tmp_path, options=["--maxmemory-policy", "allkeys-lru", "--rename-command", "CONFIG", ""]
    ) as server:
        settings = plan_on(server.url, tmp_path)
        with pytest.raises(UnfitStore, match=r"maxmemory-policy allkeys-lru\): set it to noeviction"):
            async with open_bus(settings):
                pass
        async with open_bus(settings, unfit_too=True) as bus:
            facts = await facts_of(server, bus.redis, tmp_path, Clock())

    assert findings(facts)[0].what.startswith("maxmemory-policy is allkeys-lru")


def test_the_command_prints_the_worst_first_and_fails_on_what_is_serious(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with RealServer(tmp_path) as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        assert main(["init"]) == 0
        capsys.readouterr()
        assert main(["doctor"]) == 0
        printed = capsys.readouterr().out
        operator = client(server.url)
        operator.config_set("maxmemory-policy", "allkeys-lru")
        operator.close()
        assert main(["doctor", "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert main(["doctor"]) == 1
        assert main(["status"]) == 1

    assert "warning  no poller leads: nothing is asked\n         -> start `sectorwire run`" in printed
    assert "warning  polling could not be started from here: KIWOOM_APP_KEY is not set\n" in printed
    assert printed.endswith("well: 2 warnings and 1 note, nothing serious\n")
    assert (told["well"], told["findings"][0]["severity"]) == (False, "serious")
    assert "noeviction" in told["findings"][0]["remedy"]
