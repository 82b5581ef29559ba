"""A folder, a seed and a server come in; a market, all roles on it and everything that happens to them is its life.

Two pollers, two alerts, two archives, three members of a plain group and a receiver, each process in a slot that is
filled again when it ends. The surprise: the logs go through pipes, so a full disk is met by the roles and not by them.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos_checker import Rule
from tests.chaos_plan import Fsync
from tests.chaos_server import DoomedServer
from tests.chaos_slots import Process, Slot, until
from tests.servers import free_port
from tests.test_acceptance import PLAN

RULES = [
    *(Rule(f"below {n}", "ka20003", "indices", "change_pct", "<", n) for n in ("-1", "-0.5", "0", "0.5", "1")),
    *(Rule(f"above {n}", "ka20003", "indices", "change_pct", ">=", n) for n in ("-0.75", "-0.25", "0.25", "0.75")),
]
SECTIONS = """
[archive]
path = "archive"
flush = "0.5s"

[[endpoint]]
name = "hook"
url = "http://127.0.0.1:{port}/hook"
secret_env = "CHAOS_HOOK_SECRET"
allow_http = true
allow_networks = ["127.0.0.0/8"]
rate = 100
"""
RULE = """
[[rule]]
name = "{name}"
tr = "{tr}"
table = "{table}"
when = {{ kind = "compare", field = "{field}", op = "{op}", value = {value} }}
notify = ["hook"]
"""


@dataclass
class Report:
    """What happened, for people, and what is wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Kills in mid-commit, by lane and by side."""
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    """Commits that came to nothing, and those that were done, by the beginning of their entries' ids."""
    full_disks: int = 0
    """How often one was met."""


class World:
    """A market, a server and all roles on it, with everything that happens to them."""

    def __init__(self, folder: Path, fsync: Fsync) -> None:
        self.folder, self.archive, self.received = folder, folder / "archive", folder / "received.jsonl"
        self.ledger, self.market_log = folder / "ledger.jsonl", folder / "simulator.log"
        self.server = DoomedServer(folder / "server", fsync)
        self.received.touch()
        self.simulator: Process | None = None
        config, here = str(folder / "sectorwire.toml"), "tests.chaos_roles"
        self._port = free_port()
        self.slots = [
            *(self._slot("poller", f"poller-{one}", _role("poll", config)) for one in "ab"),
            *(self._slot("alert", f"alert-{one}", _role("alert", config)) for one in "ab"),
            *(self._slot("archive", f"archive-{one}", _role("archive", config)) for one in "ab"),
            *(
                self._slot("member", one, _member(here, one, folder / f"{one}.effects"))
                for one in ("member-a", "member-b")
            ),
            self._slot("receiver", "receiver", lambda _: [here, "receiver", str(self._port), str(self.received)]),
        ]

    def _slot(self, lane: str, name: str, command: Callable[[str], Sequence[str]]) -> Slot:
        return Slot(self.folder, self.server, lane, name, command)

    @property
    def direct(self) -> Any:
        """A look into the server that takes no detour."""
        return self.server.direct

    @property
    def effects(self) -> list[Path]:
        """What the members of the plain group did, a file each."""
        return [path for slot in self.of("member") if (path := self.folder / f"{slot.name}.effects").exists()]

    def of(self, lane: str) -> list[Slot]:
        """Its processes, those of one role."""
        return [slot for slot in self.slots if slot.lane == lane]

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Start everything, keep it going, and end it."""
        self.server.start()
        background = [asyncio.create_task(self.server.watch_file()), asyncio.create_task(self._supervise())]
        try:
            await self._open()
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            for slot in self.slots:
                if slot.process:
                    slot.kill()
                for proxy in slot.proxies:
                    await proxy.__aexit__(None, None, None)
            if self.simulator:
                self.simulator.kill()
            self.server.end()
            self.direct.close()

    async def _open(self) -> None:
        """Start everything; return when something is published."""
        market = ["--port", "0", "--speed", "10", "--start", "2026-11-20T10:00", "--ledger", str(self.ledger)]
        log = self.market_log
        self.simulator = Process(self.folder, log, ["sectorwire", "simulate", *market], {})
        await until(lambda: re.search(r"serving (http://[^,]+),", log.read_text("utf-8")), "the simulator to serve")
        found = re.search(r"serving (http://[^,]+),", log.read_text("utf-8"))
        assert found
        today = datetime.now(UTC)
        closed_days = ", ".join(f"{today + timedelta(days=days):%Y-%m-%d}" for days in (-1, 0, 1, 2))
        text = PLAN.format(base_url=found[1], closed_days=closed_days) + SECTIONS.format(port=self._port)
        text += "".join(RULE.format(**vars(rule)) for rule in RULES)
        (self.folder / "sectorwire.toml").write_text(text, "utf-8")
        for slot in self.slots:
            await slot.fill()
        await until(partial(self.direct.hget, "sectorwire:{ka20003}:meta", "seq"), "the first entries")

    async def _supervise(self) -> None:
        """Start again what ended by itself, as a supervisor does: a role that finds no server at its start gives up."""
        while True:
            for slot in self.slots:
                if slot.wanted and slot.living.ended:
                    slot.by_itself.append(slot.living.status)
                    slot.wanted = False
                    await slot.fill()
            await asyncio.sleep(0.3)


def _role(role: str, config: str) -> Callable[[str], Sequence[str]]:
    return lambda _: ["sectorwire", role, "--config", config]


def _member(here: str, name: str, effects: Path) -> Callable[[str], Sequence[str]]:
    return lambda url: [here, "member", url, name, str(effects)]
