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
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from poller.budget import MOCK_PERIOD_S, REAL_LIMIT, Limit
from poller.catalogue import CATALOGUE, tr_named
from poller.grid import Job
from poller.session import LATE_OPENS, Calendar, Hours
from poller.trs.base import BadRequest

Model = TypeVar("Model", bound=BaseModel)

FILE_NAME = "sectorwire.toml"
SERVERS = {"real": "https://api.kiwoom.com", "mock": "https://mockapi.kiwoom.com"}
CONSUMER_SECTIONS = frozenset({"rule", "endpoint", "archive"})
"""Sections of the same file that are not the poller's to check."""

MAY_HOLD_A_PASSWORD = frozenset({"url", "base_url"})

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


DurationS = Annotated[float, BeforeValidator(duration_s)]
OpeningHours = Annotated[Hours, BeforeValidator(opening_hours)]
SizeBytes = Annotated[int, BeforeValidator(size_bytes)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KiwoomSettings(_Section):
    """Which server is asked, and how often it may be."""

    environment: Literal["real", "mock"] | None = None
    base_url: str | None = Field(default=None, pattern=r"^https?://[^\s/@]+$")
    requests_per_second: Annotated[int, Field(ge=1, lt=REAL_LIMIT)] = 1

    @model_validator(mode="after")
    def _one_server(self) -> KiwoomSettings:
        if self.environment and self.base_url:
            raise ValueError("give environment or base_url, not both")
        return self

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
    """One line of the plan: a list of values makes one target per value, several lists make the product."""

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
        tr = tr_named(self.tr)
        if "base_dt" in self.target:
            raise BadRequest("base_dt names a fixed day, which never changes: leave it out, or ask `sectorwire once`")
        names = list(self.target)
        choices = [value if isinstance(value, list) else [value] for value in self.target.values()]
        if [] in choices:
            raise BadRequest(f"{names[choices.index([])]} is an empty list: give a value, or leave it out")
        targets = [tr.target(dict(zip(names, values, strict=True))) for values in itertools.product(*choices)]
        return [Job(target, self.every, self.priority, self.off_hours) for target in targets]


class Settings(_Section):
    """What differs between a laptop and production."""

    kiwoom: KiwoomSettings = KiwoomSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    bus: BusSettings = BusSettings()
    data: DataSettings = DataSettings()
    poll: list[PollSettings] = []

    def jobs(self) -> list[Job]:
        """The whole plan. Raises ConfigError if it is empty, or a target stands in it twice."""
        jobs = [job for line in self.poll for job in line.jobs()]
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


def _only_krx(job: Job) -> None:
    exchange = job.target.request["stex_tp"]
    if exchange != "1":
        raise ConfigError(f'{job.target}: the mock server serves KRX only; write stex_tp = "1" instead of "{exchange}"')


class Secrets(BaseModel):
    """The key pair of one Kiwoom account."""

    model_config = ConfigDict(frozen=True)

    app_key: SecretStr
    secret_key: SecretStr


def read_secrets(environ: Mapping[str, str]) -> Secrets:
    """The key pair in `KIWOOM_APP_KEY` and `KIWOOM_SECRET_KEY`, or in the files that `…_FILE` names.

    Raises ConfigError, which never holds a key.
    """
    return Secrets(app_key=_secret("KIWOOM_APP_KEY", environ), secret_key=_secret("KIWOOM_SECRET_KEY", environ))


def _secret(name: str, environ: Mapping[str, str]) -> SecretStr:
    file = environ.get(f"{name}_FILE")
    text = environ.get(name, "").strip()
    if not text and file:
        try:
            text = Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}_FILE: {file} cannot be read ({type(error).__name__})") from error
    if not text:
        raise ConfigError(f"{name} is not set: put the key into {name}, or the path of its file into {name}_FILE")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{name} holds more than one word of plain characters: it is not a key")
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
    bus = content.get("bus", {})
    if environ.get("REDIS_URL") and isinstance(bus, dict):
        content["bus"] = {**bus, "url": environ["REDIS_URL"]}
    return checked(Settings, content, path)


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
    name, number = location[0], location[1] if len(location) > 1 else None
    return f"[[{name}]] {number + 1}: " if isinstance(number, int) else f"[{name}] "


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    wrong = str(location[-1])
    if model is Settings and ("key" in wrong or "secret" in wrong or "token" in wrong):
        return ": secrets come from the environment, as KIWOOM_APP_KEY and KIWOOM_SECRET_KEY"
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            annotation: Any = model.model_fields[part].annotation
            models = (arg for arg in (*get_args(annotation), annotation) if isinstance(arg, type))
            model = next((arg for arg in models if issubclass(arg, BaseModel)), model)
    close = difflib.get_close_matches(wrong, model.model_fields, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(model.model_fields)}"
