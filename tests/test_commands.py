"""The commands as a user types them: what they print, and the one line they say when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from poller.broker import Heard
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
        (["demo", "--seconds", "0"], "not above 0"),
        (["simulate", "--faults", "2"], "between 0 and 1"),
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
