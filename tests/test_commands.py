"""The commands as a user types them: what they print, and the one line they say when something is wrong."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from redis import Redis

from consumers.alert.delivery import Job
from poller.broker import Heard
from poller.embedded import EmbeddedServer
from poller.quarantine import Quarantine
from poller.recording import Recorder
from poller.settings import load_settings
from sectorwire import main
from tests.builders import recording
from tests.conftest import MONDAY_NOON, HandClock
from tests.servers import RealServer

KEYS = {"KIWOOM_APP_KEY": "an-app-key", "KIWOOM_SECRET_KEY": "a-secret-key"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and an environment that names neither server nor keys."""
    monkeypatch.chdir(tmp_path)
    for name in (*KEYS, "REDIS_URL", "SECTORWIRE_CONFIG", "KIWOOM_APP_KEY_FILE", "KIWOOM_SECRET_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command that fails: its status and the one line it said."""
    status = main(words)
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return status, line


def test_help_names_every_command_in_groups(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out

    for words in (
        "start demo init check poll",
        "look once tail status catalogue schema",
        "repair endpoints quarantine",
        "develop simulate replay",
    ):
        assert all(word in printed for word in words.split())


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("sectorwire 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chek"], "did you mean check?"),
        (["demo", "--secnds", "3"], "did you mean --seconds?"),
        (["demo", "--seconds", "0"], "argument --seconds: '0' is not a number above 0"),
        (["demo", "--seconds", "soon"], "argument --seconds: 'soon' is not a number above 0"),
        (["tail", "--top", "x"], "argument --top: 'x' is not a whole number above 0"),
        (["tail", "--seconds", "nan"], "'nan' is not a number above 0"),
        (["simulate", "--speed", "inf"], "'inf' is not a number above 0"),
        (["simulate", "--faults", "2"], "argument --faults: '2' is not a number between 0 and 1"),
        (["simulate", "--faults", "x"], "argument --faults: 'x' is not a number between 0 and 1"),
        (["simulate", "--port", "http"], "argument --port: 'http' is not a port, a number from 0 to 65535"),
        (["simulate", "--port", "65536"], "argument --port: '65536' is not a port"),
        (["simulate", "--seed", "x"], "argument --seed: 'x' is not a whole number"),
        (["archive", "export", "t", "f", "--format", "parqet"], "--format takes parquet or csv, not 'parqet'; did you"),
        (["quarantine", "lst"], "did you mean list?"),
        (["simulate", "--start", "noon"], "2026-11-23T10:00"),
        (["check"], "sectorwire init"),
        (["tail", "--config", "nowhere.toml"], "there is no nowhere.toml"),
        (["once", "ka2003", "inds_cd=001"], "did you mean ka20003?"),
        (["once", "ka20003"], 'ka20003 needs inds_cd (업종코드); allowed: "001" 종합(KOSPI)'),
        (["once", "ka20003", "inds_cd"], "element=value"),
        (["once", "ka20001", "inds_cd=1"], 'write inds_cd = "001"'),
        (["once", "ka20001", "inds_cd=001", "mrkt_tp=1"], 'contradicts inds_cd = "001"; write "0"'),
        (["catalogue", "nothing-like-it"], "no field goes by"),
        (["replay", "nowhere"], "nowhere holds no recording: `sectorwire poll --record nowhere` makes one"),
        (["replay", "nowhere", "--day", "today"], "not a day such as 2026-11-23"),
        (["simulate", "--replay", "nowhere"], "nowhere holds no recording"),
        (["simulate", "--replay", ".", "--faults", "0.5"], "belong to the made-up market"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_one_line_with_the_right_one(capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    status, line = failed(capsys, *words)

    assert (status, said in line) == (2, True), line


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["init"], ["init", "--real"]], ids=" ".join)
def test_what_init_writes_passes_check(capsys: pytest.CaptureFixture[str], words: list[str]):
    assert main(words) == 0
    assert main(["check"]) == 0
    assert "well" in capsys.readouterr().out


def test_init_overwrites_nothing_unless_told(capsys: pytest.CaptureFixture[str], elsewhere: Path):
    (elsewhere / "sectorwire.toml").write_text("# mine")
    status, line = failed(capsys, "init")

    assert (status, "--force" in line) == (2, True)
    assert main(["init", "--force"]) == 0


def test_a_plan_that_cannot_fit_shows_the_arithmetic_and_two_ways_out(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
):
    (elsewhere / "sectorwire.toml").write_text(
        '[kiwoom]\nenvironment = "real"\n[[poll]]\ntr = "ka20002"\n'
        'target = { inds_cd = ["001", "101"], stex_tp = "3" }\nevery = "10s"\n'
    )
    status, line = failed(capsys, "check")

    assert status == 2
    assert "2 targets need 4.40 requests/s, 0.86 are allowed" in line
    assert "5.2 times longer (the longest 52s)" in line


def test_the_ways_out_of_a_plan_are_longer_fewer_and_faster(capsys: pytest.CaptureFixture[str], elsewhere: Path):
    (elsewhere / "sectorwire.toml").write_text(
        '[kiwoom]\nenvironment = "real"\n[[poll]]\ntr = "ka20001"\n'
        'target = { inds_cd = ["001", "101", "201", "701"] }\nevery = "3s"\n'
    )
    status, line = failed(capsys, "check")

    assert status == 2
    assert "4 targets need 1.33 requests/s, 0.86 are allowed" in line
    assert "1.6 times longer (the longest 5s), or keep 2 of the targets" in line
    assert "or set [kiwoom] requests_per_second = 2" in line


@pytest.mark.parametrize("command", [["poll"], ["once", "ka20003", "inds_cd=001"], ["check", "--online"]], ids=" ".join)
def test_missing_keys_are_named(capsys: pytest.CaptureFixture[str], command: list[str]):
    main(["init"])
    capsys.readouterr()
    status = main(command)

    assert status == 2
    assert "KIWOOM_APP_KEY is not set" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named_without_its_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    main(["init"])
    capsys.readouterr()
    for name, value in {**KEYS, "REDIS_URL": "redis://me:hidden-password@127.0.0.1:1/0"}.items():
        monkeypatch.setenv(name, value)
    status, line = failed(capsys, "poll")

    assert status == 1
    assert "no server answers at redis://127.0.0.1:1/0: start it, or correct REDIS_URL" in line
    assert "hidden-password" not in line


@pytest.mark.parametrize("command", [["status"], ["doctor"], ["parked", "list"], ["poll"]], ids=" ".join)
@pytest.mark.parametrize("password", ["", ":wrong@"])
def test_a_server_that_refuses_us_wants_another_password(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    guarded: RealServer,
    command: list[str],
    password: str,
):
    """It runs and answers: to start it is no remedy."""
    main(["init"])
    capsys.readouterr()
    url = f"redis://{password}127.0.0.1:{guarded.port}/0"
    for name, value in {**KEYS, "REDIS_URL": url}.items():
        monkeypatch.setenv(name, value)
    status, line = failed(capsys, *command)

    assert (status, "wants another user or password: correct REDIS_URL" in line) == (2, True), line
    assert password not in line or not password


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server that wants a password."""
    with RealServer(tmp_path_factory.mktemp("guarded")) as server:
        admin = Redis.from_url(server.url)
        admin.config_set("requirepass", "hidden-password")
        admin.close()
        yield server


def with_a_data_dir(elsewhere: Path, directory: str) -> None:
    (elsewhere / "file").touch()
    plan = '[[poll]]\ntr = "ka20003"\ntarget = { inds_cd = "001" }\nevery = "20s"\n'
    (elsewhere / "sectorwire.toml").write_text(f'[data]\ndir = "{directory}"\n{plan}')


@pytest.mark.parametrize("command", [["status"], ["doctor"], ["parked", "list"], ["poll"], ["run"]], ids=" ".join)
@pytest.mark.parametrize(
    ("directory", "told"),
    [("file/data", "/file is a file, not a directory; move it away"), ("/proc/x", "it cannot be made in /proc")],
)
def test_a_data_dir_that_cannot_be_used_is_told_with_the_remedy(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: Path,
    command: list[str],
    directory: str,
    told: str,
):
    with_a_data_dir(elsewhere, directory)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    status, line = failed(capsys, *command)

    assert (status, told in line, "or choose another [data] dir" in line) == (1, True, True), line


def test_a_place_that_cannot_be_used_is_told_with_the_word_that_names_it(capsys: pytest.CaptureFixture[str]):
    status, line = failed(capsys, "demo", "--data", "/proc/x")

    assert (status, line) == (
        1,
        "sectorwire: /proc/x cannot be used: it cannot be made in /proc; make it, or choose another --data",
    )
    _, line = failed(capsys, "init", "--config", "nowhere/at/all.toml")
    assert "there is no " in line
    assert "nowhere/at; make it, or choose another --config" in line
    _, line = failed(capsys, "simulate", "--port", "0", "--ledger", "nowhere/ledger")
    assert "or choose another --ledger" in line


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "may not: {there} belongs to {owner}; chown it to "),
        (errno.EROFS, "{there} is on a disk that is mounted read-only; mount it for writing"),
        (errno.ENOSPC, "the disk is full; make room there"),
    ],
)
def test_a_disk_that_refuses_is_told_with_the_owner_or_the_way_out(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: Path,
    number: int,
    told: str,
):
    """Root may write anywhere and no test fills a disk, so the system's refusal is played."""
    refused = elsewhere / "data" / "server"

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number), str(refused))

    with_a_data_dir(elsewhere, "data")
    monkeypatch.setattr(EmbeddedServer, "start", refuse)
    status, line = failed(capsys, "status")

    assert status == 1
    assert f"{refused} cannot be used: " in line
    assert told.format(there=elsewhere, owner=elsewhere.owner()) in line


def test_an_empty_quarantine_says_so(capsys: pytest.CaptureFixture[str]):
    main(["init"])
    capsys.readouterr()

    assert main(["quarantine", "list"]) == 0
    assert capsys.readouterr().out == "nothing is in quarantine\n"


@pytest.fixture
def endpoint(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, real_server: RealServer) -> Redis:
    """A configuration with one endpoint, and its server with one letter that was given up."""
    monkeypatch.setenv("REDIS_URL", real_server.url)
    monkeypatch.setenv("DESK_SECRET", "whsec_" + base64.b64encode(bytes(24)).decode())
    main(["init"])
    with (elsewhere / "sectorwire.toml").open("a", encoding="utf-8") as file:
        file.write('[[endpoint]]\nname = "desk"\nurl = "https://example.com/hook"\nsecret_env = "DESK_SECRET"\n')
    return Redis.from_url(real_server.url)


def test_a_dead_letter_is_sent_again_by_an_id_that_there_is(capsys: pytest.CaptureFixture[str], endpoint: Redis):
    capsys.readouterr()
    assert main(["endpoints", "redrive", "desk"]) == 0
    assert main(["endpoints", "dead", "desk"]) == 0
    assert capsys.readouterr().out == "nothing was given up there\n" * 2
    assert failed(capsys, "endpoints", "redrive", "desk", "zz") == (
        2,
        "sectorwire: nothing dead goes by 'zz': nothing was given up there",
    )
    job = Job("alert#1", decided_s=0.0, expires_s=0.0).dumps()
    letter = {"id": "alert#1", "lane": "lane", "place": "1", "job": job, "body": "{}", "why": "404", "at": 1}
    endpoint.xadd("sectorwire:send:dead:{desk}", letter, "1-1")  # type: ignore[arg-type]  # any fields will do

    for wrong, told in (("zz", "there are 1-1"), ("alert#2", "did you mean alert#1?")):
        status, line = failed(capsys, "endpoints", "redrive", "desk", wrong)
        assert (status, told in line) == (2, True), line
    endpoint.hset("sectorwire:send:{desk}:state", "disabled", "410 Gone")
    assert main(["endpoints", "redrive", "desk", "1-1"]) == 0
    assert capsys.readouterr().out == "1 is sent again, the endpoint is switched on again\n"
    endpoint.close()


def test_a_group_with_nothing_parked_says_so(capsys: pytest.CaptureFixture[str], endpoint: Redis):
    endpoint.xgroup_create("sectorwire:{ka20003}:changes", "desk", mkstream=True)
    endpoint.close()
    capsys.readouterr()

    assert main(["parked", "redrive", "ka20003", "desk"]) == 0
    assert main(["parked", "drop", "ka20003", "desk", "--all"]) == 0
    assert capsys.readouterr().out == "nothing of ka20003 is parked for desk\n" * 2


def test_what_is_parked_is_listed_under_a_header_with_its_korean_time(
    capsys: pytest.CaptureFixture[str], endpoint: Redis
):
    parked = {"id": "event", "parked_id": "1-1", "parked_by": "desk", "parked_why": "odd", "parked_stack": "Traceback"}
    endpoint.xadd("sectorwire:{ka20003}:parked:desk", parked, f"{int(MONDAY_NOON.timestamp()) * 1000}-0")  # type: ignore[arg-type]
    endpoint.close()
    capsys.readouterr()

    assert main(["parked", "list"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["tr", "group", "id", "parked", "at", "event", "why"]
    assert line.split()[:2] == ["ka20003", "desk"]
    assert "2026-11-23 12:00:00  event  odd" in line
    (name,) = (word for word in line.split() if word.endswith("-0"))
    assert main(["parked", "show", "ka20003", "desk", name]) == 0
    facts, stack = capsys.readouterr().out.splitlines()
    assert "stack" not in json.loads(facts)
    assert stack == "Traceback"


def test_the_catalogue_for_programs_has_exactly_the_promised_keys(capsys: pytest.CaptureFixture[str]):
    assert main(["catalogue", "--json"]) == 0
    trs: list[dict[str, Any]] = json.loads(capsys.readouterr().out)

    assert [tr["tr"] for tr in trs] == ["ka10010", "ka10051", "ka20001", "ka20002", "ka20003", "ka20009"]
    for tr in trs:
        assert list(tr) == ["tr", "name", "path", "request", "tables"]
        assert all(list(one) == ["element", "korean", "required", "values"] for one in tr["request"])
        for table in tr["tables"]:
            assert list(table) == ["table", "mode", "key", "window", "element", "fields"]
            for field in table["fields"]:
                promised = ["field", "element", "korean", "kind", "unit", "scale", "variants"]
                assert list(field) == promised if field["element"] else [*promised, "derived"]


@pytest.mark.parametrize("word", ["flu_rt", "등락률", "change_pct", "등락율"])
def test_a_field_is_found_by_name_element_and_label(capsys: pytest.CaptureFixture[str], word: str):
    assert main(["catalogue", word]) == 0
    printed = capsys.readouterr().out

    assert "ka20003.indices" in printed
    assert "change_pct" in printed


def test_a_variant_is_found_by_its_name(capsys: pytest.CaptureFixture[str]):
    assert main(["catalogue", "foreigner_net_shares"]) == 0
    assert "amt_qty_tp=1" in capsys.readouterr().out


def test_schema_is_json_with_a_channel_per_report(capsys: pytest.CaptureFixture[str]):
    assert main(["schema", "--prefix", "mine"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert document["channels"]["ka20003"]["address"] == "mine:{ka20003}:changes"


def test_the_configuration_of_the_design_is_accepted_with_the_consumers_parts(elsewhere: Path):
    """Rules, endpoints and the archive stand in the same file; they are not the poller's to refuse."""
    path = elsewhere / "sectorwire.toml"
    path.write_text(
        '[[poll]]\ntr = "ka20003"\ntarget = { inds_cd = ["001", "101"] }\nevery = "10s"\n'
        '[[rule]]\nname = "kospi-falls"\n[[endpoint]]\nname = "desk"\n[archive]\npath = "data/archive"\n'
    )

    assert len(load_settings(path, {}).jobs()) == 2


def test_a_recording_goes_where_files_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, real_server: RealServer, elsewhere: Path
):
    main(["init"])
    capsys.readouterr()
    (elsewhere / "file").touch()
    for name, value in {**KEYS, "REDIS_URL": real_server.url}.items():
        monkeypatch.setenv(name, value)
    status, line = failed(capsys, "poll", "--record", "file")

    assert (status, line) == (2, "sectorwire: --record file is no directory that can be written to: choose another")


def test_a_recorded_day_is_printed_as_tail_prints_it_and_always_the_same(
    capsys: pytest.CaptureFixture[str], elsewhere: Path
):
    clock, known = HandClock(), recording("ka20003")
    with Recorder(elsewhere / "rec", clock) as recorder:
        for level in ("+2400.5", "-2390.1"):
            known.answer["all_inds_idex"][0]["cur_prc"] = level
            body = json.dumps(known.answer).encode()
            number = int(clock.monotonic_s())
            recorder.keep(Heard(known.target, number, clock.now(), 1, "", status=200, cont_yn="N", body=body))
            clock.advance(10)
    capsys.readouterr()

    assert main(["replay", "rec"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for _ in range(2):
        assert main(["replay", "rec", "--json", "--day", "2026-11-23"]) == 0
    as_json = capsys.readouterr().out.splitlines()

    assert "2,390.10" in printed[-1]
    assert printed[-1].startswith("12:00:10 ka20003 전업종지수")
    assert len(printed) * 2 == len(as_json)
    assert as_json[: len(printed)] == as_json[len(printed) :]
    assert json.loads(as_json[-1])["data"]["before"]["level"] == 2400.5


def test_the_quarantine_is_listed_shown_and_read_again(capsys: pytest.CaptureFixture[str], elsewhere: Path):
    main(["init"])
    capsys.readouterr()
    known = recording("ka20003")
    known.answer["all_inds_idex"][0]["cur_prc"] = "odd"
    kept = Quarantine(elsewhere / "data" / "quarantine")
    path = kept.keep(known.target, MONDAY_NOON, "indices/001 level (cur_prc): odd", [json.dumps(known.answer).encode()])
    assert path is not None
    (name,) = (one.id for one in kept.kept())

    assert main(["quarantine", "list"]) == 0
    assert f"{name}  2026-11-23 12:00:00  ka20003?inds_cd=001  indices/001 level" in capsys.readouterr().out
    assert main(["quarantine", "list", "--json"]) == 0
    assert [one["id"] for one in json.loads(capsys.readouterr().out)] == [name]
    assert main(["quarantine", "show", name]) == 0
    assert '"cur_prc": "odd"' in capsys.readouterr().out
    assert main(["quarantine", "retry"]) == 1
    assert f"{name}  ka20003?inds_cd=001  ka20003?inds_cd=001: 1 of" in capsys.readouterr().out
    path.write_text(path.read_text("utf-8").replace("odd", "+5"), "utf-8")
    assert main(["quarantine", "retry", name]) == 0
    assert "readable now: removed" in capsys.readouterr().out
    assert not path.exists()

    status, line = failed(capsys, "quarantine", "show", name)
    assert (status, "nothing in the quarantine goes by" in line) == (2, True)


def test_what_ends_all_roles_together_is_one_line_as_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, elsewhere: Path, real_server: RealServer
):
    """Roles of one process end as a group of errors; a person wants the first, and what to do."""
    for name, value in {**KEYS, "REDIS_URL": real_server.url}.items():
        monkeypatch.setenv(name, value)
    (elsewhere / "sectorwire.toml").write_text(
        '[kiwoom]\nbase_url = "http://127.0.0.1:1"\n[bus]\nprefix = "newer"\n'
        '[[poll]]\ntr = "ka20003"\ntarget = { inds_cd = "001" }\nevery = "10s"\n'
    )
    server = Redis.from_url(real_server.url)
    server.hset("newer:{ka20003}:meta", "revision", "99")
    server.close()

    assert main(["run"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("sectorwire: ka20003 was written with revision 99")
