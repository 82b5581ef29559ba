"""What is wrong with a configuration is told in one line, with the place, the remedy, and never a secret."""

from __future__ import annotations

import math
import re
import tomllib
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from consumers.service import ConsumerSettings
from poller.settings import (
    BusSettings,
    ConfigError,
    KiwoomSettings,
    Secrets,
    Settings,
    checked,
    duration_s,
    find_config,
    load_settings,
    read_keys,
    read_secrets,
    size_bytes,
)
from poller.starter import starter_config

SECRET = "hunter2-hunter2-hunter2"
A_POLL = '[[poll]]\ntr = "ka20003"\ntarget = { inds_cd = "001" }\nevery = "10s"\n'


@pytest.fixture
def write(tmp_path: Path):
    """A function that writes a configuration and gives its path."""

    def written(text: str) -> Path:
        path = tmp_path / "sectorwire.toml"
        path.write_text(text, "utf-8")
        return path

    return written


def poll(tr: str, target: str, every: str = "10s", more: str = "") -> str:
    return f'[[poll]]\ntr = "{tr}"\ntarget = {{ {target} }}\nevery = "{every}"\n{more}\n'


def planned(path: Path) -> list[str]:
    return [str(job.target) for job in load_settings(path, {}).jobs()]


def refused(path: Path, environ: dict[str, str] | None = None) -> str:
    """The one line that a configuration is refused with, without the path before it."""
    with pytest.raises(ConfigError) as raised:
        load_settings(path, environ or {}).jobs()
    message = str(raised.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message.removeprefix(f"{path}: ")


# --- the calendar


def test_the_calendar_takes_what_the_lists_do_not_know(write):
    schedule = """[schedule]
closed_days = [2026-12-30]
open_days = [2026-12-31]
late_opens = { "2028-01-03" = "10:00-15:30" }
"""
    calendar = load_settings(write(schedule + A_POLL), {}).schedule.calendar

    assert not calendar.is_trading_day(date(2026, 12, 30))
    assert calendar.is_trading_day(date(2026, 12, 31))
    assert calendar.hours(date(2028, 1, 3)) == (time(10), time(15, 30))
    assert calendar.hours(date(2026, 11, 19)) == (time(10), time(16, 30))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('late_opens = { "2028-01-03" = "10:00" }', '"10:00-16:30"'),
        ('late_opens = { "2028-01-03" = "16:00-10:00" }', "are not opening hours"),
        ('late_opens = { "2028-01-03" = "25:00-26:00" }', "are not opening hours"),
        ("closed_days = [2026-12-31]\nopen_days = [2026-12-31]", "2026-12-31 stands in closed_days and in open_days"),
    ],
)
def test_a_calendar_that_makes_no_sense_is_refused(write, line: str, told: str):
    assert told in refused(write(f"[schedule]\n{line}\n{A_POLL}"))


def test_off_hours_have_an_interval_of_their_own(write):
    (job,) = load_settings(write(A_POLL + 'off_hours = "30m"\n'), {}).jobs()

    assert (job.every_s, job.off_hours_s) == (10.0, 1800.0)
    assert "at least as long as every" in refused(write(A_POLL + 'off_hours = "5s"\n'))


# --- the plan


def test_one_line_of_the_plan_is_one_target(write):
    assert planned(write(A_POLL)) == ["ka20003?inds_cd=001"]


def test_a_list_makes_one_target_per_value_and_several_lists_the_product(write):
    path = write(poll("ka10051", 'mrkt_tp = ["0", "1"], amt_qty_tp = ["0", "1"], stex_tp = "1"'))

    assert planned(path) == [
        "ka10051?amt_qty_tp=0&mrkt_tp=0&stex_tp=1",
        "ka10051?amt_qty_tp=1&mrkt_tp=0&stex_tp=1",
        "ka10051?amt_qty_tp=0&mrkt_tp=1&stex_tp=1",
        "ka10051?amt_qty_tp=1&mrkt_tp=1&stex_tp=1",
    ]


@pytest.mark.parametrize(
    ("sector", "market"), [("001", "0"), ("603", "0"), ("150", "1"), ("201", "2"), ("402", "4"), ("771", "7")]
)
def test_the_market_follows_from_the_sector(write, sector: str, market: str):
    assert planned(write(poll("ka20001", f'inds_cd = "{sector}"'))) == [f"ka20001?inds_cd={sector}&mrkt_tp={market}"]


def test_a_market_that_agrees_may_be_given(write):
    assert planned(write(poll("ka20009", 'inds_cd = "101", mrkt_tp = "1"'))) == ["ka20009?inds_cd=101&mrkt_tp=1"]


def test_interval_and_priority_reach_the_job(write):
    (job,) = load_settings(write(poll("ka20003", 'inds_cd = "001"', "1.5m", "priority = 3")), {}).jobs()

    assert (job.every_s, job.priority) == (90.0, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is nothing to poll: add a [[poll]] section"),
        (A_POLL + A_POLL, "ka20003?inds_cd=001 is polled twice"),
        (poll("ka20003", 'inds_cd = ["001", "101", "001"]'), "ka20003?inds_cd=001 is polled twice"),
        (poll("ka2003", 'inds_cd = "001"'), "[[poll]] 1: no TR 'ka2003'; did you mean ka20003?"),
        (A_POLL + poll("nonsense", ""), "[[poll]] 2: no TR 'nonsense'; known: ka10010, ka10051"),
        (poll("ka20003", "inds_cd = 1"), '[[poll]] 1: inds_cd = 1 is not text; write inds_cd = "001"'),
        (poll("ka20003", 'inds_cd = "1"'), 'write inds_cd = "001"'),
        (poll("ka20003", "inds_cd = 101"), 'inds_cd = 101 is not text; write inds_cd = "101"'),
        (poll("ka20001", "inds_cd = 1"), '[[poll]] 1: inds_cd = 1 is not text; write inds_cd = "001"'),
        (poll("ka20003", 'inds_cd = "002"'), 'allowed: "001" 종합(KOSPI), "101" 종합(KOSDAQ)'),
        (poll("ka20003", ""), "ka20003 needs inds_cd (업종코드)"),
        (poll("ka20001", ""), "ka20001 needs mrkt_tp (시장구분)"),
        (poll("ka20002", 'inds_cd = "001"'), 'ka20002 needs stex_tp (거래소구분); allowed: "1" KRX, "2" NXT, "3" 통합'),
        (poll("ka20002", 'inds_cd = "001", stex = "1"'), "no request element 'stex'; did you mean stex_tp?"),
        (poll("ka20001", 'inds_cd = "101", mrkt_tp = "0"'), 'contradicts inds_cd = "101"; write "1" or leave it out'),
        (poll("ka20001", 'inds_cd = "302"'), 'sector "302" does not tell its market; give mrkt_tp as well'),
        (poll("ka10051", 'mrkt_tp = "2", amt_qty_tp = "0", stex_tp = "1"'), 'allowed: "0" 코스피, "1" 코스닥'),
        (poll("ka10010", 'stk_cd = "KRX:039490"'), 'write stk_cd = "039490"'),
        (
            poll("ka10051", 'mrkt_tp = "0", amt_qty_tp = "0", stex_tp = "1", base_dt = "20241107"'),
            "base_dt names a fixed day",
        ),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_the_remedy(write, text: str, told: str):
    assert told in refused(write(text))


@pytest.mark.parametrize("server", ["", '[kiwoom]\nenvironment = "mock"\n'])
@pytest.mark.parametrize("exchange", ["2", "3"])
def test_the_mock_server_serves_krx_only(write, server: str, exchange: str):
    text = server + poll("ka20002", f'inds_cd = "001", stex_tp = "{exchange}"')

    assert f'the mock server serves KRX only; write stex_tp = "1" instead of "{exchange}"' in refused(write(text))


@pytest.mark.parametrize("server", ['environment = "real"', 'base_url = "http://127.0.0.1:9100"'])
def test_other_servers_serve_every_exchange(write, server: str):
    path = write(f"[kiwoom]\n{server}\n" + poll("ka20002", 'inds_cd = "001", stex_tp = "3"'))

    assert planned(path) == ["ka20002?inds_cd=001&mrkt_tp=0&stex_tp=3"]


# --- the parts that are not the poller's


def refused_part(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        checked(ConsumerSettings, tomllib.loads(text), Path("f"))
    return str(raised.value).removeprefix("f: ")


def rule(when: str, more: str = "") -> str:
    return f'[[rule]]\nname = "x"\ntr = "ka20003"\nwhen = {when}\n{more}'


COMPARE = '{ kind = "compare", field = "level", op = "<", value = 1 }'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            rule('{ kind = "compar" }'),
            "[[rule]] 1: when kind 'compar' is none of 'compare', 'cross', 'all', 'any', 'not'; "
            "did you mean 'compare'?",
        ),
        (rule("{}"), "[[rule]] 1: when has no kind; write one of 'compare', 'cross', 'all', 'any', 'not'"),
        (rule('"level < 1"'), "[[rule]] 1: when 'level < 1' is not a table; write { name = value }"),
        (rule('{ kind = "any", of = [] }'), "[[rule]] 1: when.of is empty: give at least 1 value"),
        (
            rule(f'{{ kind = "all", of = [{COMPARE}, {COMPARE.replace("<", "=<")}] }}'),
            "[[rule]] 1: when.of[1].op '=<' is none of '<', '<=', '>', '>=', '==', '!='",
        ),
        (
            rule('{ kind = "not", of = { kind = "cross", field = "level", direction = "up", levl = 1 } }'),
            "[[rule]] 1: unknown key 'levl' in when.of; did you mean 'level'? (and 1 more)",
        ),
        (rule(COMPARE, "keys = [1]"), '[[rule]] 1: keys 1 is not text; write it in quotes, such as "001"'),
        (rule(COMPARE, 'for = "soon"'), "[[rule]] 1: for 'soon' is not a duration"),
        (rule(COMPARE, 'fro = "3s"'), "[[rule]] 1: unknown key 'fro'; did you mean 'for'?"),
        (
            rule(COMPARE, 'session = ["regulr"]'),
            "session 'regulr' is none of 'pre', 'regular', 'closing', 'after', 'cl",
        ),
        ("[archive]\npath = 3", '[archive] path 3 is not a path; write it in quotes, as "data" is'),
        ('[archive]\npath = "a"\nflush = "9s"', "[archive] flush '9s' is too much: at most 5s"),
        ('[[endpoint]]\nname = "a b"', "[[endpoint]] 1: name 'a b' is not a name; write letters and digits, with"),
        (
            '[[endpoint]]\nname = "a"\nallow_networks = ["x"]',
            "allow_networks 'x' is not a network; write it like \"10.",
        ),
        ('[[endpoint]]\nname = "a"\nallow_http = "si"', "allow_http 'si' is neither true nor false; write one of them"),
        ('[[endpoint]]\nname = "a"\nrate = 0', "[[endpoint]] 1: rate 0 is too little: it has to be above 0"),
    ],
)
def test_a_mistake_in_a_rule_an_endpoint_or_the_archive_is_told_as_well(text: str, told: str):
    assert refused_part(text).startswith(told) or told in refused_part(text)


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WRONG: list[object] = [
    *("", "x", "x" * 200, "5x", "9999s", 0, -1, 1000, 1.5, math.nan, math.inf, True, NOON, NOON.date(), NOON.time()),
    *([], ["x"], [3], [[]], [{}], ["x"] * 20, {}, {"x": "x"}, {"x": [3]}),
    *({"kind": "compar"}, {"kind": "not", "of": {"kind": "cross", "of": 1}}, {"kind": "any", "of": [{}] * 20}),
]  # fmt: skip
RIGHT: dict[str, dict[str, object]] = {
    "poll": {"tr": "ka20003", "target": {"inds_cd": "001"}, "every": "10s"},
    "rule": {"name": "n", "tr": "ka20003", "when": {"kind": "cross", "field": "x", "direction": "up", "level": 3}},
    "endpoint": {"name": "n"},
    "archive": {"path": "p"},
}


@pytest.mark.parametrize("model", [Settings, ConsumerSettings])
def test_whatever_a_setting_is_given_no_line_is_written_for_programmers(model: type[BaseModel]):
    """What a new type of error would print is pydantic's own words: this walks every setting to find one."""
    lines = []
    for section, info in model.model_fields.items():
        inner: Any = next(iter(get_args(info.annotation)), info.annotation)
        for name, setting in inner.model_fields.items():
            for wrong in WRONG:
                given = {**RIGHT.get(section, {}), setting.alias or name: wrong}
                content = {section: [given] if isinstance(info.default, list) else given}
                try:
                    checked(model, content, Path("f"))
                except ConfigError as error:
                    lines.append(str(error))

    ugly = re.compile(r"Input|should|valid|<class|Value error|\bNone\b|pattern|discriminator|function-")
    assert len(lines) > 200
    assert [line for line in lines if ugly.search(line) or "\n" in line] == []


# --- the file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[kiwom]\nenvironment = 'mock'", "unknown key 'kiwom'; did you mean 'kiwoom'?"),
        ("[kiwoom]\nenvironmnt = 'mock'", "[kiwoom] unknown key 'environmnt'; did you mean 'environment'?"),
        ("[bus]\nzzz = 1", "[bus] unknown key 'zzz'; known here: url, prefix, retention, max_bytes"),
        (A_POLL + 'evry = "1s"', "[[poll]] 1: unknown key 'evry'; did you mean 'every'?"),
        ('[[poll]]\ntr = "ka20003"\ntarget = { inds_cd = "001" }', "[[poll]] 1: every is missing"),
        (poll("ka20003", 'inds_cd = "001"', "10"), "every '10' is not a duration; write a number with its unit"),
        (A_POLL.replace('"10s"', "10"), "every 10 is not a duration"),
        (poll("ka20003", 'inds_cd = "001"', "-5s"), "every '-5s' is not a duration"),
        (poll("ka20003", 'inds_cd = "001"', "0.5s"), 'every is at least "1s"'),
        ('[bus]\nmax_bytes = "1 gigabyte"', "max_bytes '1 gigabyte' is not a size"),
        ('[bus]\nretention = "1 week"', "retention '1 week' is not a duration"),
        ('[bus]\nprefix = "a b"', "[bus] prefix 'a b' is not a prefix; write letters and digits"),
        ('[bus]\nprefix = ""', "[bus] prefix '' is not a prefix; write letters and digits"),
        ('[bus]\nurl = "foo"', '[bus] url is not the address of a server; write it like "redis://HOST:6379/0"'),
        ('[bus]\nurl = "redis://h:99999"', "[bus] url is not the address of a server"),
        ('[kiwoom]\nbase_url = "x"', '[kiwoom] base_url is not a broker\'s address; write it like "https://HOST"'),
        ('[schedule]\nclosed_days = ["23.11."]', "closed_days '23.11.' is not a date; write it like \"2026-11-23\""),
        ("[schedule]\nopen_days = 2026-11-23", "open_days 2026-11-23 is not a list; write its values in [ ]"),
        (
            '[schedule.late_opens]\n"1-3" = "10:00-15:30"',
            "[schedule] late_opens.1-3 '1-3' is not a date; write it like",
        ),
        ("[data]\ndir = 3", "[data] dir 3 is not a path; write it in quotes"),
        ("[data]\ndir = true", "[data] dir true is not a path; write it in quotes"),
        (A_POLL + "priority = 0", "[[poll]] 1: priority 0 is too little: at least 1"),
        (A_POLL + 'priority = "high"', "[[poll]] 1: priority 'high' is not a whole number"),
        (A_POLL.replace("every", "evry"), "[[poll]] 1: unknown key 'evry'; did you mean 'every'? (and 1 more)"),
        ("[poll]\ntr = 'ka20003'", "poll is a section: write [[poll]]"),
        ("[[bus]]\nprefix = 'x'", "bus is a section: write [bus]"),
        ("[kiwoom.key]\nname = 'x'", "kiwoom.key is a section: write [[kiwoom.key]]"),
        ("[[rules]]\nname = 'x'", "unknown key 'rules'; did you mean 'rule'?"),
        ('[kiwoom]\nenvironment = "test"', "environment 'test' is none of 'real', 'mock'"),
        ('[kiwoom]\nenvironment = "mock"\nbase_url = "http://x"', "give environment or base_url, not both"),
        ("[kiwoom]\nrequests_per_second = 5", "requests_per_second 5 is too much: it has to be below 5"),
        ('[schedule]\nsessions = "never"', "sessions 'never' is none of 'market', 'always'"),
        ("[kiwoom]\nzzz = 1\n[bus]\nzzz = 1", "(and 1 more)"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_the_remedy(write, text: str, told: str):
    assert told in refused(write(text))


@pytest.mark.parametrize("name", ["app_key", "appkey", "secret_key", "secretkey", "token", "KIWOOM_secret"])
@pytest.mark.parametrize("section", ["", "[kiwoom]\n", "[data]\n", A_POLL])
def test_a_secret_in_the_file_is_refused_with_the_place_where_it_belongs(write, name: str, section: str):
    message = refused(write(f'{section}{name} = "{SECRET}"'))

    assert f"unknown key '{name}': secrets come from the environment" in message
    assert "KIWOOM_APP_KEY and KIWOOM_SECRET_KEY" in message
    assert SECRET not in message


def test_a_file_that_is_not_toml_says_where(write):
    assert "is not TOML" in refused(write("[bus\n"))


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not text", "no file"])
def test_a_file_that_cannot_be_read_says_so(tmp_path: Path, content: bytes | None):
    path = tmp_path / "sectorwire.toml"
    if content is not None:
        path.write_bytes(content)

    assert "cannot be read" in refused(path)


def test_sections_of_the_readers_are_not_the_pollers_to_check(write):
    text = A_POLL + '[[rule]]\nname = "x"\n[[endpoint]]\nname = "y"\n[archive]\npath = "z"\n'

    assert load_settings(write(text), {}).jobs()


def test_nothing_but_the_plan_has_to_be_said(write):
    settings = load_settings(write(A_POLL), {})

    assert (settings.kiwoom.url, settings.bus.url, settings.bus.prefix) == (
        "https://mockapi.kiwoom.com",
        None,
        "sectorwire",
    )
    assert (settings.bus.retention, settings.bus.max_bytes) == (86_400, 10**9)
    assert settings.schedule.sessions == "market"


def test_the_environment_overrides_the_address_of_the_bus_alone(write):
    settings = load_settings(write('[bus]\nurl = "redis://here"\nprefix = "mine"'), {"REDIS_URL": "redis://there/1"})

    assert (settings.bus.url, settings.bus.prefix) == ("redis://there/1", "mine")
    assert load_settings(write(""), {"REDIS_URL": ""}).bus == BusSettings()


@pytest.mark.parametrize("environment", ["real", "mock"])
def test_the_starter_configuration_is_a_configuration(write, environment):
    settings = load_settings(write(starter_config(environment)), {})

    assert settings.jobs()
    assert settings.kiwoom.environment == environment


def test_settings_do_not_change_once_read():
    with pytest.raises(ValueError, match="frozen"):
        Settings().kiwoom = KiwoomSettings()


@pytest.mark.parametrize(("text", "found"), [("10s", 10), ("1.5m", 90), ("24h", 86_400), ("2d", 172_800), (" 5 s ", 5)])
def test_a_duration_is_a_number_with_its_unit(text: str, found: float):
    assert duration_s(text) == found


@pytest.mark.parametrize("wrong", ["", "s", "10", "1h30m", "10S", "1e3s", None, 10, 1.5, True])
def test_anything_else_is_no_duration(wrong: object):
    with pytest.raises(ValueError, match="is not a duration"):
        duration_s(wrong)


@pytest.mark.parametrize(("text", "found"), [("1GB", 10**9), ("500 mb", 5 * 10**8), ("512MiB", 2**29), ("4KiB", 4096)])
def test_a_size_is_a_number_with_its_unit(text: str, found: int):
    assert size_bytes(text) == found


@pytest.mark.parametrize("wrong", ["", "1", "1.5GB", "1TB", "GB", 5, None])
def test_anything_else_is_no_size(wrong: object):
    with pytest.raises(ValueError, match="is not a size"):
        size_bytes(wrong)


# --- limits


def test_the_mock_server_has_one_limit_and_the_real_one_has_one_per_tr():
    assert list(KiwoomSettings().limits) == ["*"]
    real = KiwoomSettings(environment="real", requests_per_second=4).limits
    assert len(real) == 6
    assert {limit.requests for limit in real.values()} == {4}
    assert KiwoomSettings(base_url="http://127.0.0.1:9100").limits.keys() == real.keys()


# --- where the file is


def test_the_configuration_is_given_or_named_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("given.toml", "named.toml", "sectorwire.toml"):
        (tmp_path / name).touch()
    named = {"SECTORWIRE_CONFIG": "named.toml"}

    assert find_config("given.toml", named) == Path("given.toml")
    assert find_config(None, named) == Path("named.toml")
    assert find_config(None, {}) == Path("sectorwire.toml")


def test_a_missing_configuration_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="run `sectorwire init` to write one"):
        find_config(None, {})
    with pytest.raises(ConfigError, match=r"there is no elsewhere\.toml: check the path"):
        find_config("elsewhere.toml", {})


# --- several keys, and maintenance


def keys(*lines: str) -> str:
    return "[kiwoom]\n" + "".join(f"[[kiwoom.key]]\n{line}\n" for line in lines) + A_POLL


VARIABLES = 'app_key_env = "A"\nsecret_key_env = "B"'


def test_several_keys_come_from_variables_and_files_each_under_its_name(write, tmp_path: Path):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n", "utf-8")
    files = f'app_key_file = "{file}"\nsecret_key_file = "{file}"'
    kiwoom = load_settings(write(keys(f'name = "one"\n{VARIABLES}', f'name = "two"\n{files}')), {}).kiwoom
    one, two = read_keys(kiwoom, {"A": "first", "B": "second"})

    assert kiwoom.key_names == [one.name, two.name] == ["one", "two"]
    assert (one.app_key.get_secret_value(), two.app_key.get_secret_value()) == ("first", SECRET)
    assert SECRET not in f"{two} {two!r} {two.model_dump()}"
    file.write_text("replaced", "utf-8")
    assert two.again().app_key.get_secret_value() == "replaced"
    assert one.again().app_key == one.app_key


def test_without_any_key_in_the_file_there_is_one_by_the_name_of_default():
    environ = {"KIWOOM_APP_KEY": "a", "KIWOOM_SECRET_KEY": "b"}

    assert [pair.name for pair in read_keys(KiwoomSettings(), environ)] == KiwoomSettings().key_names == ["default"]


def test_a_file_that_the_environment_names_is_read_again(tmp_path: Path):
    file = tmp_path / "secret"
    file.write_text("old", "utf-8")
    secrets = read_secrets({"KIWOOM_APP_KEY": "a", "KIWOOM_SECRET_KEY_FILE": str(file)})
    file.write_text("new", "utf-8")

    assert secrets.again().secret_key.get_secret_value() == "new"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('name = "x"', "[[kiwoom.key]] 1: give app_key_env and secret_key_env, or app_key_file"),
        (f'name = "x"\n{VARIABLES}\napp_key_file = "f"', "give app_key_env and secret_key_env, or app_key_file"),
        ('name = "x"\napp_key_env = "A"\nsecret_key_file = "f"', "give app_key_env and secret_key_env, or"),
        (VARIABLES, "[[kiwoom.key]] 1: name is missing"),
        (f'name = "*"\n{VARIABLES}', "[[kiwoom.key]] 1: name '*' is not a name; write 1 to 32"),
        (f'name = "x"\n{VARIABLES}\n[[kiwoom.key]]\nname = "x"\n{VARIABLES}', "two [[kiwoom.key]] are named 'x'"),
    ],
)
def test_a_key_that_is_not_described_well_is_refused(write, line: str, told: str):
    assert told in refused(write(keys(line)))


@pytest.mark.parametrize("name", ["app_key", "secret_key", "app_key_env", "secret_key_env"])
def test_a_secret_put_where_its_place_is_named_is_not_repeated(write, name: str):
    message = refused(write(keys(f'name = "x"\n{name} = "{SECRET}"')))

    assert SECRET not in message
    assert "[[kiwoom.key]] 1: " in message


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"A": "a"}, "B is not set: put the key into it, or name another variable in [[kiwoom.key]]"),
        ({"A": "a a", "B": "b"}, "A holds more than one word"),
    ],
)
def test_a_variable_without_a_key_is_named(environ: dict[str, str], told: str):
    key = {"name": "x", "app_key_env": "A", "secret_key_env": "B"}
    with pytest.raises(ConfigError) as raised:
        read_keys(KiwoomSettings.model_validate({"key": [key]}), environ)

    assert told in str(raised.value)


def test_a_file_of_a_key_that_cannot_be_used_is_told_by_its_setting(tmp_path: Path):
    """Its path is not repeated: people put the secret itself there."""
    (tmp_path / "empty").touch()
    for path, told in ((SECRET, "app_key_file cannot be read (FileNotFoundError)"), ("empty", "holds nothing")):
        key = {"name": "x", "app_key_file": tmp_path / path, "secret_key_file": tmp_path / "empty"}
        with pytest.raises(ConfigError) as raised:
            read_keys(KiwoomSettings.model_validate({"key": [key]}), {})

        assert told in str(raised.value)
        assert SECRET not in str(raised.value)


def test_one_app_key_under_two_names_would_be_asked_twice_as_often_as_it_may():
    named = [{"name": name, "app_key_env": "A", "secret_key_env": "B"} for name in ("x", "y")]
    with pytest.raises(ConfigError, match="x and y are one app key"):
        read_keys(KiwoomSettings.model_validate({"key": named}), {"A": "a", "B": "b"})


def test_kiwoom_s_maintenance_is_known_and_a_server_of_our_own_has_none(write):
    known = ["01:00-01:30", "05:50-06:10", "07:00-07:30"]

    assert [str(window) for window in load_settings(write(A_POLL), {}).kiwoom.windows] == known
    assert KiwoomSettings(base_url="http://127.0.0.1:9100").windows == []
    mine = load_settings(write(f'[kiwoom]\nmaintenance = ["23:50-00:10"]\n{A_POLL}'), {}).kiwoom.windows
    assert [str(window) for window in mine] == ["23:50-00:10"]
    assert load_settings(write(f"[kiwoom]\nmaintenance = []\n{A_POLL}"), {}).kiwoom.windows == []


@pytest.mark.parametrize("wrong", ['"05:50"', '"05:50-05:50"', '"25:00-26:00"', "5"])
def test_anything_else_is_no_daily_window(write, wrong: str):
    message = refused(write(f"[kiwoom]\nmaintenance = [{wrong}]\n{A_POLL}"))

    assert 'is not a daily window; write it like "05:50-06:10"' in message


# --- secrets


def test_keys_come_from_the_environment_or_from_files_it_names(tmp_path: Path):
    file = tmp_path / "secret"
    file.write_text(f"  {SECRET}\n", "utf-8")

    secrets = read_secrets({"KIWOOM_APP_KEY": f" {SECRET[::-1]} ", "KIWOOM_SECRET_KEY_FILE": str(file)})

    assert secrets.app_key.get_secret_value() == SECRET[::-1]
    assert secrets.secret_key.get_secret_value() == SECRET


def test_a_key_beats_a_file_that_holds_one(tmp_path: Path):
    environ = {"KIWOOM_APP_KEY": "a", "KIWOOM_APP_KEY_FILE": str(tmp_path / "none"), "KIWOOM_SECRET_KEY": "b"}

    assert read_secrets(environ).app_key.get_secret_value() == "a"


def test_keys_are_shown_nowhere():
    secrets = read_secrets({"KIWOOM_APP_KEY": SECRET, "KIWOOM_SECRET_KEY": SECRET})

    assert isinstance(secrets, Secrets)
    assert SECRET not in f"{secrets} {secrets!r} {secrets.model_dump()} {secrets.model_dump_json()}"


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "KIWOOM_APP_KEY is not set: put the key into KIWOOM_APP_KEY, or the path of its file into"),
        ({"KIWOOM_APP_KEY": "  "}, "KIWOOM_APP_KEY is not set"),
        ({"KIWOOM_APP_KEY": SECRET}, "KIWOOM_SECRET_KEY is not set"),
        ({"KIWOOM_APP_KEY": f"{SECRET} {SECRET}"}, "KIWOOM_APP_KEY holds more than one word"),
        ({"KIWOOM_APP_KEY": f"{SECRET}\n{SECRET}"}, "KIWOOM_APP_KEY holds more than one word"),
        ({"KIWOOM_APP_KEY": f"{SECRET}키"}, "KIWOOM_APP_KEY holds more than one word of plain characters"),
        ({"KIWOOM_APP_KEY_FILE": "no/such/file"}, "KIWOOM_APP_KEY_FILE: no/such/file cannot be read"),
    ],
)
def test_a_missing_or_broken_key_is_told_without_showing_it(environ: dict[str, str], told: str):
    with pytest.raises(ConfigError) as raised:
        read_secrets(environ)

    assert told in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_password_in_an_address_is_told_to_nobody(write):
    path = write(poll("ka20003", 'inds_cd = "001"'))

    assert "hunter2" not in refused(path, {"REDIS_URL": "redsi://:hunter2@host"})
    assert "hunter2" not in repr(load_settings(path, {"REDIS_URL": "redis://:hunter2@host"}))


@pytest.mark.parametrize("wrong", ["foo", "redis://h:99999", "redis://h/0?foo=1", "redis://h/0?db=x", "http://h"])
def test_a_wrong_address_in_the_environment_is_told_as_the_environments(write, wrong: str):
    message = refused(write(A_POLL), {"REDIS_URL": wrong})

    assert message.startswith('REDIS_URL is not the address of a server; write it like "redis://HOST:6379/0"')


def test_a_section_that_is_none_is_told_although_the_environment_names_a_server(write):
    path = write('bus = "x"\n' + poll("ka20003", 'inds_cd = "001"'))

    assert "bus" in refused(path, {"REDIS_URL": "redis://host"})


@pytest.mark.parametrize(
    ("target", "told"),
    [("inds_cd = []", "inds_cd is an empty list"), ("inds_cd = true", "inds_cd = True is not text")],
)
def test_a_list_of_nothing_and_a_yes_are_no_values(write, target: str, told: str):
    assert told in refused(write(poll("ka20003", target) + poll("ka20003", 'inds_cd = "101"')))
