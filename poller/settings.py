"""`sectorwire.toml` and the environment go in; checked settings come out, or one line that says what to change.

Read once at the start, then passed on. The surprise: secrets are never in the file. They come from the environment, or
from files that the environment names, which is how Kiwoom hands them out.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from redis.connection import ConnectionPool

from poller import sectors
from poller.budget import MOCK_PERIOD_S, REAL_LIMIT, Limit
from poller.catalogue import CATALOGUE, tr_named
from poller.contract import ONLY_KEY
from poller.grid import Job
from poller.sector_list import load_sectors
from poller.session import LATE_OPENS, Calendar, Hours
from poller.trouble import Window
from poller.trs.base import TR, BadRequest
from poller.trs.requests import SECTOR

Model = TypeVar("Model", bound=BaseModel)

FILE_NAME = "sectorwire.toml"
SERVERS = {"real": "https://api.kiwoom.com", "mock": "https://mockapi.kiwoom.com"}
CONSUMER_SECTIONS = frozenset({"rule", "endpoint", "archive"})
"""Sections of the same file that are not the poller's to check."""

MAY_HOLD_A_PASSWORD = frozenset({
    "url", "base_url", "app_key_env", "secret_key_env", "app_key_file", "secret_key_file", "url_env", "secret_env",
})  # fmt: skip
"""Settings whose value is not repeated: people put the secret itself there."""

MAINTENANCE = ("01:00-01:30", "05:50-06:10", "07:00-07:30")
"""Daily, Korean time, as Kiwoom's support tells (November 2026)."""

MAX_SHOWN = 100
"""Characters of a wrong value that are repeated; more would hide what is said of it."""

DURATION_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIZE_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class ConfigError(Exception):
    """The configuration or the environment is wrong; the message is one line with the remedy."""


def duration_s(given: object) -> float:
    """Seconds in a text such as "10s", "1.5m", "24h".

    >>> duration_s("1.5m")
    90.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", given.strip()) if isinstance(given, str) else None
    if match is None:
        raise ValueError(f'{given!r} is not a duration; write a number with its unit, such as "10s", "5m" or "24h"')
    return float(match[1]) * DURATION_S[match[2]]


def size_bytes(given: object) -> int:
    """Bytes in a text such as "1GB" or "512MiB".

    >>> size_bytes("1GB")
    1000000000
    """
    match = re.fullmatch(r"(\d+)\s*([KMG]I?B)", given.strip().upper()) if isinstance(given, str) else None
    if match is None:
        raise ValueError(f'{given!r} is not a size; write a number with its unit, such as "500MB" or "1GB"')
    return int(match[1]) * SIZE_BYTES[match[2]]


def opening_hours(given: object) -> Hours:
    """The hours of a regular session in a text such as "10:00-16:30".

    >>> opening_hours("10:00-16:30").opens
    datetime.time(10, 0)
    """
    match = re.fullmatch(r"(\d\d:\d\d)-(\d\d:\d\d)", given.strip()) if isinstance(given, str) else None
    try:
        hours = Hours(time.fromisoformat(match[1]), time.fromisoformat(match[2])) if match else None
    except ValueError:
        hours = None
    if hours is None or hours.opens >= hours.closes:
        raise ValueError(f'{given!r} are not opening hours; write them like "10:00-16:30"')
    return hours


def daily_window(given: object) -> Window:
    """A stretch of every day in a text such as "05:50-06:10"; it may lead over midnight.

    >>> str(daily_window("05:50-06:10"))
    '05:50-06:10'
    """
    match = re.fullmatch(r"(\d\d:\d\d)-(\d\d:\d\d)", given.strip()) if isinstance(given, str) else None
    try:
        window = Window(time.fromisoformat(match[1]), time.fromisoformat(match[2])) if match else None
    except ValueError:
        window = None
    if window is None or window.begins == window.ends:
        raise ValueError(f'{given!r} is not a daily window; write it like "05:50-06:10"')
    return window


def server_address(given: str) -> str:
    """The address of a server as its client takes it. Raises ValueError without it: a password may stand in it."""
    try:
        ConnectionPool.from_url(given).make_connection()  # which connects nowhere yet
    except (ValueError, TypeError):  # the latter for an option that there is not
        raise ValueError(
            'is not the address of a server; write it like "redis://HOST:6379/0", "rediss://HOST:6379/0" for TLS, '
            'or "unix:///PATH"'
        ) from None
    return given


def _like(pattern: str, words: str) -> AfterValidator:
    """A check of a text that says in words, not as a pattern, what is to be written."""

    def check(given: str) -> str:
        if re.fullmatch(pattern, given) is None:
            raise ValueError(words)
        return given

    return AfterValidator(check)


DailyWindow = Annotated[Window, BeforeValidator(daily_window)]
DurationS = Annotated[float, BeforeValidator(duration_s)]
OpeningHours = Annotated[Hours, BeforeValidator(opening_hours)]
SizeBytes = Annotated[int, BeforeValidator(size_bytes)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


VariableName = Annotated[
    str, _like(r"[A-Z_][A-Z0-9_]{0,63}", 'is not the name of a variable; write it like "KIWOOM_APP_KEY_2"')
]
KeyName = Annotated[
    str, _like(r"[A-Za-z0-9_-]{1,32}", 'is not a name; write 1 to 32 letters and digits, with "_" or "-"')
]
Prefix = Annotated[
    str, _like(r"[A-Za-z0-9_.:-]+", 'is not a prefix; write letters and digits, with "_", ".", ":" or "-"')
]
WebAddress = Annotated[
    str, _like(r"https?://[^\s/@]+", 'is not a broker\'s address; write it like "https://HOST" or "http://HOST:PORT"')
]
ServerAddress = Annotated[str, AfterValidator(server_address)]


class KeySettings(_Section):
    """One of several app keys: where its two halves are. They themselves stand in no configuration."""

    name: KeyName
    app_key_env: VariableName | None = None
    secret_key_env: VariableName | None = None
    app_key_file: Path | None = None
    secret_key_file: Path | None = None

    @model_validator(mode="after")
    def _one_place(self) -> KeySettings:
        variables, files = (self.app_key_env, self.secret_key_env), (self.app_key_file, self.secret_key_file)
        if not (all(variables) and not any(files)) and not (all(files) and not any(variables)):
            raise ValueError("give app_key_env and secret_key_env, or app_key_file and secret_key_file")
        return self


class KiwoomSettings(_Section):
    """Which server is asked, with which keys, and how often it may be."""

    environment: Literal["real", "mock"] | None = None
    base_url: WebAddress | None = None
    requests_per_second: Annotated[int, Field(ge=1, lt=REAL_LIMIT)] = 1
    maintenance: list[DailyWindow] | None = None
    key: list[KeySettings] = []

    @model_validator(mode="after")
    def _one_server(self) -> KiwoomSettings:
        if self.environment and self.base_url:
            raise ValueError("give environment or base_url, not both")
        for name, times in Counter(key.name for key in self.key).items():
            if times > 1:
                raise ValueError(f"two [[kiwoom.key]] are named {name!r}: give each a name of its own")
        return self

    @property
    def key_names(self) -> list[str]:
        """What the app keys are called."""
        return [key.name for key in self.key] or [ONLY_KEY]

    @property
    def windows(self) -> list[Window]:
        """When the broker is in maintenance every day: Kiwoom's own hours, for a server of our own none."""
        if self.maintenance is not None:
            return self.maintenance
        return [] if self.base_url else [daily_window(text) for text in MAINTENANCE]

    @property
    def url(self) -> str:
        """The server's address; the mock unless something else is said."""
        return self.base_url or SERVERS[self.environment or "mock"]

    @property
    def limits(self) -> dict[str, Limit]:
        """The limit per TR, or one named `*` over everything: the mock counts all calls together."""
        if self.base_url is None and self.environment != "real":
            return {"*": Limit(1, MOCK_PERIOD_S)}
        return {tr.code: Limit(self.requests_per_second) for tr in CATALOGUE}


class ScheduleSettings(_Section):
    """When to poll, and what the calendar does not know: closed and open days, and days that open late."""

    sessions: Literal["market", "always"] = "market"
    closed_days: list[date] = []
    open_days: list[date] = []
    late_opens: dict[date, OpeningHours] = {}

    @model_validator(mode="after")
    def _no_day_twice(self) -> ScheduleSettings:
        for day in sorted({*self.closed_days} & {*self.open_days}):
            raise ValueError(f"{day} stands in closed_days and in open_days: leave it out of one")
        return self

    @property
    def calendar(self) -> Calendar:
        """The trading days and hours, with what is configured added."""
        return Calendar(
            closures=frozenset(self.closed_days),
            late_opens=LATE_OPENS | self.late_opens,
            open_days=frozenset(self.open_days),
        )


class BusSettings(_Section):
    """Where entries go, and how long they stay."""

    url: ServerAddress | None = Field(default=None, repr=False)  # it may hold a password
    prefix: Prefix = "sectorwire"
    retention: DurationS = duration_s("24h")
    max_bytes: SizeBytes = size_bytes("1GB")


class DataSettings(_Section):
    """Where files go."""

    dir: Path = Path("data")


class PollSettings(_Section):
    """One line of the plan: a list of values makes one target per value, several lists make the product.

    In the place of sector codes a group may stand, such as `@kospi`.
    """

    tr: str
    target: dict[str, object]
    every: DurationS
    off_hours: DurationS | None = None
    priority: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _sensible(self) -> PollSettings:
        if self.every < 1:
            raise ValueError('every is at least "1s"')
        if self.off_hours is not None and self.off_hours < self.every:
            raise ValueError("off_hours is at least as long as every: nothing moves then")
        self.jobs()
        return self

    def jobs(self) -> list[Job]:
        """The targets of this line. Raises BadRequest, which is a ValueError."""
        return [job for job, _ in once_each(self.planned())]

    def planned(self) -> list[Planned]:
        """The targets of this line, those of groups included that another value names as well. Raises BadRequest."""
        tr = tr_named(self.tr)
        if "base_dt" in self.target:
            raise BadRequest("base_dt names a fixed day, which never changes: leave it out, or ask `sectorwire once`")
        names = list(self.target)
        given = [value if isinstance(value, list) else [value] for value in self.target.values()]
        if [] in given:
            raise BadRequest(f"{names[given.index([])]} is an empty list: give a value, or leave it out")
        choices = [_without_groups(tr, name, values) for name, values in zip(names, given, strict=True)]
        planned = []
        for combination in itertools.product(*choices):
            target = tr.target({name: value for name, (value, _) in zip(names, combination, strict=True)})
            job = Job(target, self.every, self.priority, self.off_hours)
            planned.append((job, next((group for _, group in combination if group), "")))
        return planned


Planned = tuple[Job, str]
"""A job and the group that it came from, "" if its target was given value by value."""


def once_each(planned: Iterable[Planned]) -> list[Planned]:
    """The plan without repeats. What a group gives twice, or another line names by its code, the group leaves out.

    A target that was twice given by its code stays twice: that is a mistake.
    """
    given = list(planned)
    taken, kept = {job.target for job, group in given if not group}, []
    for job, group in given:
        if not group or job.target not in taken:
            taken.add(job.target)
            kept.append((job, group))
    return kept


def _without_groups(tr: TR, name: str, values: Sequence[object]) -> Iterator[tuple[object, str]]:
    """The values of a request element, groups replaced by their codes, each with its group. Raises BadRequest."""
    for value in values:
        if name == SECTOR.name and isinstance(value, str) and value.startswith("@"):
            yield from ((code, value) for code in _codes_of(tr, value))
        else:
            yield value, ""


def _codes_of(tr: TR, group: str) -> list[str]:
    if group not in sectors.GROUPS:
        close = difflib.get_close_matches(group, sectors.GROUPS, 1)
        hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(sectors.GROUPS)}"
        raise BadRequest(f'no group "{group}" of sectors; {hint}')
    if SECTOR not in tr.request:
        known = next((element.values for element in tr.request if element.name == SECTOR.name), {})
        allowed = ", ".join(f'"{value}" {meaning}' for value, meaning in known.items())
        raise BadRequest(f'{tr.code} takes no group of sectors such as "{group}"; allowed: {allowed or "no sector"}')
    return sectors.listed().group(group)


class Settings(_Section):
    """What differs between a laptop and production."""

    kiwoom: KiwoomSettings = KiwoomSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    bus: BusSettings = BusSettings()
    data: DataSettings = DataSettings()
    poll: list[PollSettings] = []

    def jobs(self) -> list[Job]:
        """The whole plan. Raises ConfigError if it is empty, or a target stands in it twice.

        A target that a line names by its code is that line's, whatever groups hold it; else the first group's.
        """
        jobs = [job for job, _ in once_each(planned for line in self.poll for planned in line.planned())]
        if not jobs:
            raise ConfigError("there is nothing to poll: add a [[poll]] section, `sectorwire init` shows how")
        seen = set()
        for job in jobs:
            if job.target in seen:
                raise ConfigError(f"{job.target} is polled twice: leave it out of one [[poll]]")
            if self.kiwoom.base_url is None and self.kiwoom.environment != "real" and "stex_tp" in job.target.request:
                _only_krx(job)
            seen.add(job.target)
        return jobs

    def groups(self) -> dict[tuple[str, str], int]:
        """How many targets of the plan each group gave, by TR and group."""
        kept = once_each(planned for line in self.poll for planned in line.planned())
        return Counter((job.target.tr.code, group) for job, group in kept if group)


def _only_krx(job: Job) -> None:
    exchange = job.target.request["stex_tp"]
    if exchange != "1":
        raise ConfigError(f'{job.target}: the mock server serves KRX only; write stex_tp = "1" instead of "{exchange}"')


class Secrets(BaseModel):
    """The key pair of one Kiwoom account, and what logs call it."""

    model_config = ConfigDict(frozen=True)

    app_key: SecretStr
    secret_key: SecretStr
    name: str = ONLY_KEY
    _source: Callable[[], Secrets] | None = PrivateAttr(default=None)

    def read_from(self, source: Callable[[], Secrets]) -> Secrets:
        """The same, to be read there again."""
        self._source = source
        return self

    def again(self) -> Secrets:
        """The pair as its files hold it now. Raises ConfigError where they do not."""
        return self._source() if self._source else self


def read_keys(kiwoom: KiwoomSettings, environ: Mapping[str, str]) -> list[Secrets]:
    """The pair of every `[[kiwoom.key]]`; without any, the one that `read_secrets` finds.

    Raises ConfigError, which never holds a key.
    """
    pairs = [_pair(key, environ) for key in kiwoom.key] or [read_secrets(environ)]
    names: dict[str, str] = {}
    for pair in pairs:
        same = names.setdefault(pair.app_key.get_secret_value(), pair.name)
        if same != pair.name:
            raise ConfigError(f"[[kiwoom.key]] {same} and {pair.name} are one app key: leave one of them out")
    return pairs


def _pair(key: KeySettings, environ: Mapping[str, str]) -> Secrets:
    if key.app_key_env and key.secret_key_env:
        halves = [_variable(name, environ) for name in (key.app_key_env, key.secret_key_env)]
    else:
        files = {"app_key_file": key.app_key_file, "secret_key_file": key.secret_key_file}
        halves = [_word(_file(f"[[kiwoom.key]] {key.name}: {name}", path), f"{name} of {key.name}")
                  for name, path in files.items() if path]  # fmt: skip
    app_key, secret_key = halves
    return Secrets(app_key=app_key, secret_key=secret_key, name=key.name).read_from(partial(_pair, key, environ))


def _variable(name: str, environ: Mapping[str, str]) -> SecretStr:
    text = environ.get(name, "").strip()
    if not text:
        raise ConfigError(f"{name} is not set: put the key into it, or name another variable in [[kiwoom.key]]")
    return _word(text, name)


def read_secrets(environ: Mapping[str, str]) -> Secrets:
    """The key pair in `KIWOOM_APP_KEY` and `KIWOOM_SECRET_KEY`, or in the files that `…_FILE` names.

    Raises ConfigError, which never holds a key.
    """
    app_key, secret_key = _secret("KIWOOM_APP_KEY", environ), _secret("KIWOOM_SECRET_KEY", environ)
    return Secrets(app_key=app_key, secret_key=secret_key).read_from(partial(read_secrets, environ))


def _secret(name: str, environ: Mapping[str, str]) -> SecretStr:
    file = environ.get(f"{name}_FILE")
    text = environ.get(name, "").strip()
    if not text and file:
        text = _file(f"{name}_FILE: {file}", Path(file))
    if not text:
        raise ConfigError(f"{name} is not set: put the key into {name}, or the path of its file into {name}_FILE")
    return _word(text, name)


def _file(told: str, path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{told} cannot be read ({type(error).__name__})") from error


def _word(text: str, told: str) -> SecretStr:
    if not text:
        raise ConfigError(f"{told} holds nothing: write the key into it")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{told} holds more than one word of plain characters: it is not a key")
    return SecretStr(text)


def find_config(given: str | None, environ: Mapping[str, str]) -> Path:
    """The configuration file: `--config`, `SECTORWIRE_CONFIG`, or `sectorwire.toml` here. Raises ConfigError."""
    path = Path(given or environ.get("SECTORWIRE_CONFIG") or FILE_NAME)
    if not path.is_file():
        hint = "run `sectorwire init` to write one" if path == Path(FILE_NAME) else "check the path"
        raise ConfigError(f"there is no {path}: {hint}")
    return path


def load_settings(path: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the poller's part of a configuration. Raises ConfigError, naming file, section, key and remedy."""
    content = {name: section for name, section in read_toml(path).items() if name not in CONSUMER_SECTIONS}
    sectors.use(load_sectors(_data_dir(content)))  # names and groups are those that the broker last listed
    bus = content.get("bus", {})
    given = environ.get("REDIS_URL")
    if given and isinstance(bus, dict):
        try:
            content["bus"] = {**bus, "url": server_address(given)}
        except ValueError as error:
            raise ConfigError(f"REDIS_URL {error}") from None
    return checked(Settings, content, path)


def _data_dir(content: Mapping[str, Any]) -> Path:
    """Where files go, before anything is checked."""
    section = content.get("data")
    given = section.get("dir") if isinstance(section, dict) else None
    return Path(given) if isinstance(given, str) else DataSettings().dir


def read_toml(path: Path) -> dict[str, Any]:
    """What a configuration file holds. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def checked(model: type[Model], content: Mapping[str, Any], path: Path) -> Model:
    """The content as the model has it. Raises ConfigError with the first thing that is wrong."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error, model, content)}") from None


# --- what is wrong with a value, in a person's words

SAID = {
    "missing": "is missing",
    **dict.fromkeys(("string_type", "string_unicode"), "is not text; write it in quotes"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "is not a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "is not a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "is neither true nor false; write one of them, without quotes"),
    **dict.fromkeys(
        ("date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"),
        'is not a date; write it like "2026-11-23"',
    ),
    "path_type": 'is not a path; write it in quotes, as "data" is',
    **dict.fromkeys(("list_type", "tuple_type"), "is not a list; write its values in [ ]"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "is not a table; write {{ name = value }}"),
    **dict.fromkeys(("ip_v4_network", "ip_v6_network"), 'is not a network; write it like "10.0.0.0/8"'),
    "greater_than": "is too little: it has to be above {gt:g}{unit}",
    "greater_than_equal": "is too little: at least {ge:g}{unit}",
    "less_than": "is too much: it has to be below {lt:g}{unit}",
    "less_than_equal": "is too much: at most {le:g}{unit}",
    "string_too_short": "is empty: write at least {min_length} character",
    "string_too_long": "is too long: at most {max_length} characters",
    "too_short": "is empty: give at least {min_length} value",
    "too_long": "holds too many values: at most {max_length}",
    "string_pattern_mismatch": 'is not a name; write letters and digits, with "_", "." or "-" between them',
}
"""What each type of pydantic's errors means to somebody who wrote the file. Tests walk every setting to see that no
other type can come."""


SECTIONS = [[name] for name in (*Settings.model_fields, *CONSUMER_SECTIONS)] + [["kiwoom", "key"]]


def _explain(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any]) -> str:
    """The first thing wrong, in one line; in how many places more there is something."""
    errors = error.errors(include_url=False)
    first = next((one for one in errors if _misspelt(one, errors[0])), errors[0])
    more = len({tuple(_path(one, content)) for one in errors}) - 1
    path = _path(first, content)
    where, field = _place(path)
    if first["type"] == "extra_forbidden":
        inside = f" in {field.rpartition('.')[0]}" if "." in field else ""
        text = f"unknown key {path[-1]!r}{inside}{_suggestion(first['loc'], model)}"
    elif path in SECTIONS and first["type"] in {"model_type", "list_type"}:
        name = ".".join(map(str, path))
        where, text = (
            "",
            f"{name} is a section: write " + (f"[[{name}]]" if first["type"] == "list_type" else f"[{name}]"),
        )
    elif first["type"] == "union_tag_not_found":
        kinds = [one.model_fields["kind"].default for one in _owners(first["loc"], model)]
        text = f"{field} has no kind; write one of {', '.join(map(repr, kinds))}"
    else:
        text = f"{field} {_said(first, hidden=bool(MAY_HOLD_A_PASSWORD & {*path}))}".strip()
    return f"{where}{text}" + (f" (and {more} more)" if more else "")


def _misspelt(one: ErrorDetails, first: ErrorDetails) -> bool:
    """Whether a missing key may be there under this wrong name."""
    if (first["type"], one["type"]) != ("missing", "extra_forbidden") or one["loc"][:-1] != first["loc"][:-1]:
        return False
    return bool(_near(str(one["loc"][-1]), [str(first["loc"][-1])]))


def _path(error: ErrorDetails, content: object) -> list[int | str]:
    """Where in the file, without what pydantic adds of its own: kinds of conditions, members of unions."""
    path: list[int | str] = []
    for part in error["loc"]:
        inside = isinstance(content, dict) and part in content
        if inside or (isinstance(content, list) and isinstance(part, int)):
            path.append(part)
            content = content[part]  # type: ignore[index]  # it was just found there
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _place(path: Sequence[int | str]) -> tuple[str, str]:
    """The section, `[bus] ` or `[[poll]] 2: ` for the second of a list, and within it the setting: `when.of[1].op`."""
    if path[:2] == ["kiwoom", "key"] and len(path) > 2:
        where, rest = f"[[kiwoom.key]] {int(path[2]) + 1}: ", path[3:]
    elif len(path) > 1 and isinstance(path[1], int):
        where, rest = f"[[{path[0]}]] {path[1] + 1}: ", path[2:]
    else:
        where, rest = f"[{path[0]}] " if len(path) > 1 else "", path[1:] or path
    if rest and isinstance(rest[-1], int):  # one of several values, which stands beside it
        rest = rest[:-1]
    return where, "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest).removeprefix(".")


def _said(error: ErrorDetails, *, hidden: bool) -> str:
    """The value, where it may be shown, and what is wrong with it."""
    value, context = error["input"], error.get("ctx", {})
    if error["type"] == "union_tag_invalid":
        return f"kind {_none_of(context['tag'], context['expected_tags'])}"
    if error["type"] == "literal_error":
        return _none_of(value, context["expected"])
    shown = "" if hidden else _shown(value)
    if error["type"] == "value_error":  # many of ours repeat the value themselves
        text = str(context["error"])
        return f"{shown} {text}" if shown and repr(value) not in text else text
    unit = "s" if isinstance(value, str) and value.endswith(tuple(DURATION_S)) else ""
    text = SAID[error["type"]].format(**context, unit=unit) if error["type"] in SAID else error["msg"]
    return f"{shown} {text}".lstrip()


def _shown(value: object) -> str:
    """A value as it may be repeated: nothing of lists and tables."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return repr(value) if len(repr(value)) < MAX_SHOWN else ""
    return str(value) if isinstance(value, date | time) else ""


def _none_of(wrong: object, expected: str) -> str:
    """A value that is none of a few, with the nearest of them."""
    known = re.findall(r"'([^']*)'", expected)
    return f"{_shown(wrong)} is none of {', '.join(map(repr, known))}".strip() + _near(str(wrong), known)


def _near(wrong: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """What an unknown key may have meant."""
    wrong = str(location[-1])
    if location[:2] == ("kiwoom", "key"):
        return ": a key stands in an environment variable or a file; known here: " + ", ".join(KeySettings.model_fields)
    if model is Settings and ("key" in wrong or "secret" in wrong or "token" in wrong):
        return ": secrets come from the environment, as KIWOOM_APP_KEY and KIWOOM_SECRET_KEY"
    owner = _owners(location[:-1], model)[0]
    known = [info.alias or name for name, info in owner.model_fields.items()]
    if owner is Settings:
        known += sorted(CONSUMER_SECTIONS)
    return _near(wrong, known) or f"; known here: {', '.join(known)}"


def _owners(location: tuple[int | str, ...], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model that is read at a location; several where that is left to a kind, which the location does not tell."""
    owners = [model]
    for part in location:
        kinds = [one for one in owners if "kind" in one.model_fields and one.model_fields["kind"].default == part]
        fields = [one.model_fields[part] for one in owners if isinstance(part, str) and part in one.model_fields]
        inner = [found for info in fields for found in _models_in(info.annotation)]
        owners = kinds or inner or owners
    return owners


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
