"""What `sectorwire demo` runs: a plan over all six TRs; its market is always open and resumes where it stopped."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pydantic import SecretStr

from poller.contract import dumps
from poller.session import Calendar, Market, Session
from poller.settings import Secrets
from poller.simulator.clock import MarketClock, default_start

SPEED = 10.0
"""Ten market seconds a second: flows, which move every 90 s, move while a person watches."""


def new_secrets() -> Secrets:
    """A key pair of this start's own: the simulator of the last start took its tokens with it, and a token that is
    refused again and again would, rightly, be waited for.
    """
    return Secrets(app_key=SecretStr(f"demo-{secrets.token_hex(8)}"), secret_key=SecretStr("demo-secret-key"))


HOOK_SECRET_ENV = "SECTORWIRE_DEMO_SECRET"  # noqa: S105 -- the name of a variable

PLAN = """\
# Written by `sectorwire demo`, whose market is made up and runs ten times as fast.
# Look at it from another terminal:  sectorwire tail --config {path}

[kiwoom]
base_url = "{base_url}"
requests_per_second = 4

[schedule]
sessions = "always"

[data]
dir = {directory}

[archive]
path = {archive}
flush = "2s"

[[rule]]
name = "turns"
title = "등락 전환"
tr = "ka20003"
when = {{ kind = "cross", field = "change_pct", direction = "either", level = 0 }}
notify = ["demo"]

[[rule]]
name = "leads-by-one-percent"
title = "1 % 이상 상승"
tr = "ka20003"
when = {{ kind = "compare", field = "change_pct", op = ">=", value = 1, clear = 0.9 }}
keep_firing_for = "3s"
notify = ["demo"]

[[endpoint]]
name = "demo"
url = "{hook_url}"
secret_env = "{hook_secret}"
allow_http = true
allow_networks = ["127.0.0.0/8"]

[[poll]]
tr = "ka20003"
target = {{ inds_cd = ["001", "101"] }}
every = "5s"

[[poll]]
tr = "ka20001"
target = {{ inds_cd = ["001", "101", "013"] }}
every = "5s"

[[poll]]
tr = "ka10051"
target = {{ mrkt_tp = ["0", "1"], amt_qty_tp = "0", stex_tp = "3" }}
every = "6s"

[[poll]]
tr = "ka10010"
target = {{ stk_cd = ["005930"] }}
every = "5s"

[[poll]]
tr = "ka20002"
target = {{ inds_cd = "013", stex_tp = "3" }}
every = "10s"

[[poll]]
tr = "ka20009"
target = {{ inds_cd = ["001", "101"] }}
every = "10s"
"""


def write_plan(directory: Path, base_url: str, hook_url: str) -> Path:
    """Write the demo's configuration beside its data, where `tail` and `status` find it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "sectorwire.toml"
    content = PLAN.format(
        path=path,
        base_url=base_url,
        directory=dumps(str(directory)),
        archive=dumps(str(directory / "archive")),
        hook_url=hook_url,
        hook_secret=HOOK_SECRET_ENV,
    )
    path.write_text(content, "utf-8")
    return path


@dataclass(frozen=True)
class MarketTimetable:
    """The trading day and session of the made-up market at a real moment."""

    clock: MarketClock

    def trading_day_at(self, moment: datetime, market: Market = "KRX") -> date:
        """The market's trading day."""
        return self.clock.calendar.trading_day_at(self.clock.at(moment), market)

    def session_at(self, moment: datetime, market: Market = "KRX") -> Session:
        """The market's session."""
        return self.clock.calendar.session_at(self.clock.at(moment), market)


class Pendulum:
    """Keeps the market's time in a file, so that a second start goes on where the first stopped."""

    def __init__(self, directory: Path, now: datetime) -> None:
        self._path = directory / "market.json"
        calendar = Calendar()
        start = default_start(now, calendar)
        with suppress(OSError, ValueError, KeyError):  # a first start, or a file cut off by a crash
            start = datetime.fromisoformat(json.loads(self._path.read_text("utf-8"))["market_time"])
        self.clock = MarketClock(start, now, SPEED, skip_closed=True, calendar=calendar)

    def remember(self, now: datetime) -> None:
        """Write down the market's time, all of it or nothing. Raises OSError."""
        temporary = self._path.with_suffix(".part")
        temporary.write_text(dumps({"market_time": self.clock.at(now).isoformat()}), "utf-8")
        temporary.replace(self._path)
