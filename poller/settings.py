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
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)

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
    "url", "base_url", "app_key_env", "secret_key_env", "app_key_file", "secret_key_file",
})  # fmt: skip
"""Settings whose value is not repeated: people put the secret itself there."""

MAINTENANCE = ("01:00-01:30", "05:50-06:10", "07:00-07:30")
"""Daily, Korean time, as Kiwoom's support tells (November 2026)."""

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


DailyWindow = Annotated[Window, BeforeValidator(daily_window)]
DurationS = Annotated[float, BeforeValidator(duration_s)]
OpeningHours = Annotated[Hours, BeforeValidator(opening_hours)]
SizeBytes = Annotated[int, BeforeValidator(size_bytes)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


VariableName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]{0,63}$")]


class KeySettings(_Section):
    """One of several app keys: where its two halves are. They themselves stand in no configuration."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
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
    base_url: str | None = Field(default=None, pattern=r"^https?://[^\s/@]+$")
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

    url: str | None = Field(default=None, pattern=r"^(rediss?|unix)://", repr=False)  # it may hold a password
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")] = "sectorwire"
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
    if environ.get("REDIS_URL") and isinstance(bus, dict):
        content["bus"] = {**bus, "url": environ["REDIS_URL"]}
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
        raise ConfigError(f"{path}: {_explain(error, model)}") from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong, in one line; how many more there are."""
    errors = error.errors(include_url=False, include_context=False)
    first, more = errors[0], len(errors) - 1
    where = _section(first["loc"], model)
    if first["type"] == "extra_forbidden":
        text = f"unknown key {first['loc'][-1]!r}{_suggestion(first['loc'], model)}"
    elif first["type"] == "missing":
        text = f"{first['loc'][-1]} is missing"
    else:
        may_show = isinstance(first["input"], str | int | float) and first["loc"][-1] not in MAY_HOLD_A_PASSWORD
        value = first["input"] if may_show else None
        given = f" (given: {value!r})" if value is not None and str(value) not in first["msg"] else ""
        field = first["loc"][-1] if isinstance(first["loc"][-1], str) and len(first["loc"]) > 1 else ""
        text = f"{field} {first['msg'].removeprefix('Value error, ')}{given}".strip()
    return f"{where}{text}" + (f" (and {more} more)" if more else "")


def _section(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Where in the file: `[bus] `, or `[[poll]] 2 ` for the second of a list."""
    if len(location) < 2 and location and location[0] not in model.model_fields:
        return ""
    if location[:2] == ("kiwoom", "key") and len(location) > 2:
        return f"[[kiwoom.key]] {int(location[2]) + 1}: "
    name, number = location[0], location[1] if len(location) > 1 else None
    return f"[[{name}]] {number + 1}: " if isinstance(number, int) else f"[{name}] "


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    wrong = str(location[-1])
    if location[:2] == ("kiwoom", "key"):
        return ": a key stands in an environment variable or a file; known here: " + ", ".join(KeySettings.model_fields)
    if model is Settings and ("key" in wrong or "secret" in wrong or "token" in wrong):
        return ": secrets come from the environment, as KIWOOM_APP_KEY and KIWOOM_SECRET_KEY"
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            annotation: Any = model.model_fields[part].annotation
            models = (arg for arg in (*get_args(annotation), annotation) if isinstance(arg, type))
            model = next((arg for arg in models if issubclass(arg, BaseModel)), model)
    close = difflib.get_close_matches(wrong, model.model_fields, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(model.model_fields)}"
