"""The consumers as their users start them, killed, doubled and cut off; then what they left is checked, entry by entry.

Real processes on a real server, fed by a poller that watches the simulator: the harness of `test_acceptance`, with a
receiver that verifies webhooks as a stranger would, by the package `standardwebhooks`. Every story ends the same way:
nothing is published any more, the roles catch up, and then the streams are the truth. The archive holds every entry
once, the decisions are those of a run that nobody disturbed, and each of them has reached its receiver.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests import checker
from tests.holding_proxy import HoldingProxy
from tests.servers import RealServer
from tests.test_acceptance import (
    KEYS,
    Program,
    Story,
    clean_environment,
    direct,
    published,
    say,
    seen,
    server,
    until,
)

__all__ = ["direct", "server"]  # fixtures, which pytest finds by their names here

LEASE_S = 10.0
"""For so long a dead member of a group may hold the others up."""

SLACK_S = 1.0
"""What a busy machine may add to that."""

HIDDEN_S = 17.0
"""A delivery that a dead sender had in hand stays hidden until no attempt can be under way."""

SECRET = "whsec_" + base64.b64encode(b"the secret of the receiver").decode()
HOOK = {"ROLES_HOOK_SECRET": SECRET}
ROLES = """
[archive]
path = "archive"
flush = "1s"

[[endpoint]]
name = "hook"
url = "{url}"
secret_env = "ROLES_HOOK_SECRET"
allow_http = true
allow_networks = ["127.0.0.0/8"]
rate = 100

[[rule]]
name = "turns"
title = "등락 전환"
tr = "ka20003"
when = {{ kind = "cross", field = "change_pct", direction = "either", level = 0 }}
notify = ["hook"]

[[rule]]
name = "half"
tr = "ka20003"
when = {{ kind = "compare", field = "change_pct", op = ">=", value = 0.5 }}
notify = ["hook"]

[[rule]]
name = "between"
tr = "ka20003"
when = {{ kind = "all", of = [
    {{ kind = "compare", field = "change_pct", op = "<", value = 0.25, clear = 0.3 }},
    {{ kind = "not", of = {{ kind = "compare", field = "change_pct", op = "<", value = -0.25 }} }},
] }}
notify = ["hook"]

[[rule]]
name = "latest tick"
tr = "ka20001"
table = "ticks"
when = {{ kind = "cross", field = "change_pct", direction = "either", level = 0.5 }}
notify = ["hook"]

[[rule]]
name = "told nobody"
tr = "ka10051"
when = {{ kind = "cross", field = "change_pct", direction = "either", level = 0.1 }}
"""
"""No timers: what a rule with one decides depends on when it is looked at, and here two runs are compared."""

RULED = ("ka10051", "ka20001", "ka20003")
GROUPS = {"alert": ("alert", "send"), "archive": ("archive",), "run": ("alert", "send", "archive")}


# --- the receiver --------------------------------------------------------------------------------------------------


class Receiver:
    """Takes webhooks over loopback. What is not signed rightly is remembered in `broken`.

    With `refusing`, every other webhook is refused when it first comes, which is a third of all requests. None is
    refused twice, since the waits grow with every refusal.
    """

    def __init__(self, *, refusing: bool = False) -> None:
        self.url = ""
        self.accepted: dict[str, Any] = {}
        """By webhook-id, in the order of acceptance."""
        self.again: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.broken: list[str] = []
        self._refusing, self._requests, self._webhook = refusing, 0, Webhook(SECRET)
        self._seen: set[str] = set()

    @property
    def requests(self) -> int:
        """How many came, whatever was answered."""
        return self._requests

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer. A sender that dies in the middle has sent nothing."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers["content-length"]))
            status = self._answer(headers, body)
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
            await writer.drain()
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, headers: dict[str, str], body: bytes) -> str:
        self._requests += 1
        try:
            told = self._webhook.verify(body, headers)
        except WebhookVerificationError as error:
            self.broken.append(f"{error}: {headers} {body!r}")
            return "400 Bad Request"
        name = headers["webhook-id"]
        is_new = name not in self._seen
        self._seen.add(name)
        if self._refusing and is_new and len(self._seen) % 2:
            self.refused[name] += 1
            return "503 Service Unavailable"
        if name in self.accepted:
            self.again[name] += 1
        else:
            self.accepted[name] = told
        return "204 No Content"


@asynccontextmanager
async def receiving(*, refusing: bool = False) -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver(refusing=refusing)
    listening = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    async with listening:
        receiver.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/hook"
        yield receiver


# --- the line: simulator, poller, roles ----------------------------------------------------------------------------


class Line(Story):
    """A story with rules, an endpoint and an archive in its plan."""

    async def open_for(self, receiver: Receiver) -> None:
        """Start the simulator, and write the plan of every role."""
        await self.open(long_walk=False)
        self.roles: list[Program] = []
        self.archive = self.folder / "archive"
        with self.config.open("a", encoding="utf-8") as config:
            config.write(ROLES.format(url=receiver.url))

    def role(self, role: str, url: str) -> Program:
        """Start one more process of a role."""
        number = sum(program.name.startswith(role) for program in self.roles) + 1
        program = self.start(
            f"{role}-{number}", [role, "--config", str(self.config)], {**KEYS, **HOOK, "REDIS_URL": url}
        )
        self.roles.append(program)
        return program

    async def ask(self, url: str, *arguments: str) -> tuple[int, str]:
        """The status and the answer of a command that ends."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "sectorwire", *arguments, "--config", str(self.config)),
            cwd=self.folder,
            env={**clean_environment(), **HOOK, "REDIS_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode() + err.decode()

    def check_logs(self) -> None:
        """Trouble is waited out in a line of its own; a traceback is a surprise. The secret is nobody's business."""
        for program in self.programs:
            assert "Traceback" not in program.err, f"{program.name} met the unexpected:\n{program.err[-4000:]}"
            assert "handler.failed" not in program.err, program.err[-4000:]
            assert SECRET not in program.err + program.out


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    told = Line(tmp_path)
    yield told
    told.end()


def changes(direct: Any, tr: str, prefix: str = "sectorwire") -> list[tuple[str, dict[str, str]]]:
    entries: list[tuple[str, dict[str, str]]] = direct.xrange(f"{prefix}:{{{tr}}}:changes")
    return entries


def decisions(direct: Any, tr: str, prefix: str = "sectorwire") -> list[dict[str, Any]]:
    """The data of every decision, in order, with the id that its entry has."""
    entries = direct.xrange(f"{prefix}:{{{tr}}}:alerts")
    return [{**json.loads(fields["data"]), "entry_id": fields["id"], "seq": fields["seq"]} for _, fields in entries]


def decided(direct: Any) -> int:
    """How many decisions there are."""
    return sum(direct.xlen(f"sectorwire:{{{tr}}}:alerts") for tr in RULED)


def to_be_told(direct: Any) -> set[str]:
    """The ids of the decisions that somebody is to be told."""
    return {one["id"] for tr in RULED for one in decisions(direct, tr) if one["notify"]}


def positions(direct: Any, group: str) -> dict[str, str]:
    """How far a group has acknowledged, per TR."""
    return {tr: direct.get(f"sectorwire:{{{tr}}}:position:{group}") or "" for tr in checker.catalogue()}


def lagging(direct: Any, groups: Sequence[str], prefix: str = "sectorwire") -> list[str]:
    """Groups that have not acknowledged all there is."""
    late = []
    for group in groups:
        part = "alerts" if group == "send" else "changes"
        for tr in checker.catalogue() if group == "archive" else RULED:
            newest = direct.xrevrange(f"{prefix}:{{{tr}}}:{part}", count=1)
            if newest and direct.get(f"{prefix}:{{{tr}}}:position:{group}") != newest[0][0]:
                late.append(f"{group} on {tr}")
    return late


def holders(direct: Any, groups: Sequence[str]) -> dict[str, str]:
    """Who is active, by the key of the lease."""
    trs = {group: list(checker.catalogue()) if group == "archive" else RULED for group in groups}
    keys = [f"sectorwire:{{{tr}}}:active:{group}" for group in groups for tr in trs[group]]
    keys += ["sectorwire:send:{hook}:active"] if "send" in groups else []
    return {key: holder for key in keys if (holder := direct.get(key))}


def leases(groups: Sequence[str]) -> int:
    """How many leases the members of these groups hold."""
    per_group = {"archive": len(checker.catalogue()), "alert": len(RULED), "send": len(RULED) + 1}
    return sum(per_group[group] for group in groups)


async def more_decided(direct: Any, more: int) -> None:
    before = decided(direct)
    await until(lambda: decided(direct) >= before + more, f"{more} more decisions than {before}", 30.0)


async def more_archived(direct: Any) -> None:
    """Wait until the archive has acknowledged something new of a stream that moves every second."""
    before = positions(direct, "archive")["ka20003"]
    await until(lambda: positions(direct, "archive")["ka20003"] != before, "the archive to go on", 30.0)


# --- the end of every story ----------------------------------------------------------------------------------------


async def caught_up(line: Line, direct: Any, receiver: Receiver, last: Sequence[Program]) -> None:
    """Publish no more, let the roles come to the end of everything, and stop them well."""
    pollers = [poller for poller in line.pollers if not poller.ended]
    for poller in pollers:
        await poller.stop()
    await line.simulator.stop()
    await until(lambda: not lagging(direct, ["archive", "alert"]), "archive and alerts to catch up", 2 * LEASE_S)
    await until(lambda: not lagging(direct, ["send"]), "the queues to be filled", 2 * LEASE_S)
    await until(
        lambda: receiver.accepted.keys() >= to_be_told(direct),
        f"every webhook; refused were {receiver.refused.total()}, "
        f"missing {len(to_be_told(direct) - receiver.accepted.keys())}",
        HIDDEN_S + 30,
    )
    await asyncio.gather(*(program.stop() for program in last))


async def all_is_well(line: Line, server: RealServer, direct: Any, receiver: Receiver, *, twice: int = 0) -> None:
    """What every story promises. `twice`: how many webhooks may have come again, which a killed sender had in hand."""
    rows = check_archive(line.archive, direct)
    (status, answer), count = await asyncio.gather(
        line.ask(server.url, "archive", "verify"), check_decisions(line, server, direct)
    )
    assert (status, answer) == (0, "well: archive, streams and snapshots agree\n"), answer
    check_webhooks(direct, receiver, twice)
    assert not list(direct.scan_iter("sectorwire:*:parked:*")), "something was parked"
    line.check_logs()
    say(
        f"\n{rows:,} entries archived once; {count} decisions as undisturbed; {len(receiver.accepted)} webhooks "
        f"accepted in {receiver.requests} requests, {receiver.refused.total()} refused, "
        f"{receiver.again.total()} came again"
    )


def check_archive(archive: Path, direct: Any) -> int:
    """Every table holds the entries that the streams hold for it, each once; how many."""
    notices, total = pl.read_delta(str(archive / "notices")), 0
    for tr, described in checker.catalogue().items():
        wanted: dict[str, list[str]] = {}
        for _, fields in changes(direct, tr):
            table = fields["subject"].partition("/")[0] if ".row." in fields["type"] else "notices"
            wanted.setdefault(table, []).append(fields["id"])
        tables = {table["table"]: pl.read_delta(str(archive / tr / table["table"])) for table in described["tables"]}
        found = {name: table["event_id"].to_list() for name, table in tables.items()}
        found["notices"] = notices.filter(tr=tr)["event_id"].to_list()
        for name, ids in found.items():
            there, expected = Counter(ids), Counter(wanted.pop(name, []))
            twice = [one for one, times in there.items() if times > 1]
            assert not twice, f"{tr}/{name}: {len(twice)} entries are archived more than once: {twice[:3]}"
            assert there == expected, (
                f"{tr}/{name}: {len(expected - there)} missing {list(expected - there)[:3]}, "
                f"{len(there - expected)} unknown {list(there - expected)[:3]}"
            )
            total += len(ids)
        assert not wanted, f"{tr}: no table for {list(wanted)}"
    assert pl.read_delta(str(archive / "unreadable")).is_empty()
    return total


async def check_decisions(line: Line, server: RealServer, direct: Any) -> int:
    """Copy the streams to where nobody disturbs, decide again, and find the same; how many decisions.

    An id names the rule, the row and the entry that began it, so equal ids are equal alerts; the facts are compared all
    the same, since they are what people read.
    """
    for tr in RULED:
        pipeline = direct.pipeline(transaction=False)
        for entry_id, fields in changes(direct, tr):
            pipeline.xadd(f"undisturbed:{{{tr}}}:changes", fields, id=entry_id)
        pipeline.execute()
    config = line.folder / "undisturbed.toml"
    config.write_text(
        re.sub("(?m)^notify = .*$", "", line.config.read_text("utf-8")) + '\n[bus]\nprefix = "undisturbed"\n', "utf-8"
    )
    calm = line.start("undisturbed", ["alert", "--config", str(config)], {**HOOK, "REDIS_URL": server.url})
    await until(lambda: not lagging(direct, ["alert"], "undisturbed"), f"the undisturbed run:\n{calm.err[-2000:]}", 30)
    await calm.stop()

    count = 0
    for tr in RULED:
        ours, theirs = decisions(direct, tr), decisions(direct, tr, "undisturbed")
        ids = Counter(one["entry_id"] for one in ours)
        assert max(ids.values(), default=1) == 1, f"{tr}: decided twice: {ids.most_common(3)}"
        assert [int(one["seq"]) for one in ours] == list(range(1, len(ours) + 1))
        facts, calm_facts = Counter(map(fact, ours)), Counter(map(fact, theirs))
        assert facts == calm_facts, (
            f"{tr}: an undisturbed run has {len(theirs)} decisions and this one {len(ours)}; "
            f"missing {list(calm_facts - facts)[:3]}, too many {list(facts - calm_facts)[:3]}"
        )
        assert ids.keys() == {one["entry_id"] for one in theirs}
        count += len(ours)
    return count


def fact(one: dict[str, Any]) -> tuple[str, ...]:
    """What was decided."""
    return (one["rule"], json.dumps(one["target"]), one["table"], one["key"], one["state"], one["since"])


def check_webhooks(direct: Any, receiver: Receiver, twice: int) -> None:
    """Each decision has reached its receiver, in order per alert, and nothing else has."""
    assert not receiver.broken, receiver.broken[:3]
    assert receiver.accepted.keys() == to_be_told(direct)
    assert receiver.again.total() <= twice, f"accepted, and sent again: {receiver.again}"
    streams = [decisions(direct, tr) for tr in RULED]
    for name in {fact(one)[:4] for stream in streams for one in stream if one["notify"]}:
        in_stream = [one["id"] for stream in streams for one in stream if fact(one)[:4] == name]
        accepted = [webhook for webhook, told in receiver.accepted.items() if fact(told["data"])[:4] == name]
        assert accepted == in_stream, f"{name}: accepted in another order than decided"
        states = [receiver.accepted[webhook]["data"]["state"] for webhook in accepted]
        assert states == (["firing", "resolved"] * len(states))[: len(states)], f"{name}: {states}"


# --- a receiver that is often not well -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alerts",
    [12, pytest.param(300, marks=[pytest.mark.soak, pytest.mark.timeout(400)])],
)
async def test_a_receiver_that_refuses_a_third_gets_every_alert_once_and_in_order(
    line: Line, server: RealServer, direct: Any, alerts: int
) -> None:
    """A 503 is trouble that passes: the same bytes come again until they are taken, and then never more."""
    async with receiving(refusing=True) as receiver:
        await line.open_for(receiver)
        line.poll(server.url)
        roles = [line.role("alert", server.url), line.role("archive", server.url)]
        await until(lambda: len(to_be_told(direct)) >= alerts, f"{alerts} alerts", 300)

        await caught_up(line, direct, receiver, roles)
        await all_is_well(line, server, direct, receiver)

        assert receiver.refused.total() == round(receiver.requests / 3)
        assert receiver.requests == len(receiver.accepted) + receiver.refused.total()


# --- roles that are killed -----------------------------------------------------------------------------------------


class Killer:
    """Kills the processes of one role, half of them when something is done and not yet acknowledged."""

    def __init__(self, line: Line, role: str, proxy: HoldingProxy, direct: Any) -> None:
        self.line, self.role, self.proxy, self.direct = line, role, proxy, direct
        self.counts: Counter[str] = Counter()
        self.caught: list[bytes] = []
        self.program = line.role(role, proxy.url)

    async def kill_often(self, kills: int, moments: Sequence[str]) -> None:
        """Every other kill at a moment that nobody chose, the others at these moments in turn."""
        between: dict[str, Callable[[], Awaitable[None]]] = {
            "decided": self.when_decided,
            "queued": self.when_queued,
            "delivered": self.when_delivered,
            "archived": self.when_archived,
        }
        for number in range(kills):
            if number % 2:
                moment = "at any moment"
                await asyncio.sleep(random.uniform(0.3, 3.0))  # a moment that nobody chose
                self.program.kill()
            else:
                moment = moments[number // 2 % len(moments)]
                await between[moment]()
                moment += ", not acknowledged"
            self.counts[moment] += 1
            self.forget_leases()
            self.program = self.line.role(self.role, self.proxy.url)

    async def when_decided(self) -> None:
        """The script has written decisions; its answer, and so the acknowledgement of what led to them, never comes."""
        self.proxy.hold_replies(self.marked(rb":alerting\r\n", rb"\r\nsectorwire\.alert\."))
        (tr,) = await self.kill_held(rb"\{(ka\d{5})\}:alerting")
        (decision,) = self.found(rb"\r\n([0-9a-f]{32})\r\n\$\d+\r\n/kiwoom")
        assert decision in {one["id"] for one in decisions(self.direct, tr)}, "what was held back was not done"
        assert self.direct.xpending(f"sectorwire:{{{tr}}}:changes", "alert")["pending"]

    async def when_queued(self) -> None:
        """A delivery is in its endpoint's queue; the decision is not yet acknowledged."""
        self.proxy.hold_replies(self.marked(rb"send:\{hook\}:seen\r\n"))
        (decision,) = await self.kill_held(rb"\r\n([0-9a-f]{32})\r\n")
        assert self.direct.zscore("sectorwire:send:{hook}:seen", decision)
        assert any(self.direct.xpending(f"sectorwire:{{{tr}}}:alerts", "send")["pending"] for tr in self.alerted())

    async def when_delivered(self) -> None:
        """The receiver has accepted a webhook, and nobody has written that down: it comes again."""
        self.proxy.hold_requests(self.marked(rb"send:\{hook\}:claims\r\n", rb"\r\ndone\r\n"))
        (decision,) = await self.kill_held(rb"\r\n([0-9a-f]{32})\r\n\$4\r\ndone")
        assert self.direct.hexists("sectorwire:send:{hook}:jobs", decision)

    async def when_archived(self) -> None:
        """The rows are in the archive; their acknowledgement never arrives."""
        self.proxy.hold_requests(self.marked(rb"^\*\d+\r\n\$4\r\nEVAL\r\n", rb":position:archive\r\n"))
        (tr,) = await self.kill_held(rb"\{(ka\d{5})\}:changes")
        (entry,) = self.found(rb"\r\narchive\r\n\$\d+\r\n\d+\r\n\$\d+\r\n(\d+-\d+)\r\n")
        logs = [*(self.line.archive / tr).glob("*/_delta_log"), self.line.archive / "notices" / "_delta_log"]
        archived = {one for log in logs for one in pl.read_delta(str(log.parent))["stream_id"]}
        assert entry in archived, "it was to be acknowledged before it was archived"
        assert self.direct.xpending_range(f"sectorwire:{{{tr}}}:changes", "archive", entry, entry, 1)

    def marked(self, *marks: bytes) -> Callable[[bytes], bool]:
        """Whether a command has all of these; the first that has is remembered."""
        self.caught.clear()

        def wants(command: bytes) -> bool:
            wanted = all(re.search(mark, command) for mark in marks)
            if wanted:
                self.caught.append(command)
            return wanted

        return wants

    async def kill_held(self, what: bytes) -> tuple[str]:
        await self.proxy.wait_held(30)
        self.program.kill()
        self.proxy.drop()
        return self.found(what)

    def found(self, what: bytes) -> tuple[str]:
        found = re.search(what, self.caught[0])
        assert found, self.caught[0][:500]
        return (found[1].decode(),)

    def alerted(self) -> list[str]:
        return [tr for tr in RULED if self.direct.exists(f"sectorwire:{{{tr}}}:alerts")]

    def forget_leases(self) -> None:
        """Takeover by the end of a lease has a story of its own; here more kills are worth more than waiting."""
        held = holders(self.direct, GROUPS[self.role])
        if held:
            self.direct.delete(*held)


@pytest.mark.parametrize(
    ("kills", "alert_moments"),
    [
        pytest.param(4, ["decided", "queued"], id="4"),
        pytest.param(
            20, ["decided", "queued", "delivered"], id="20", marks=[pytest.mark.soak, pytest.mark.timeout(400)]
        ),
    ],
)
async def test_alert_and_archive_killed_again_and_again_lose_nothing_and_do_nothing_twice(
    line: Line, server: RealServer, direct: Any, kills: int, alert_moments: list[str]
) -> None:
    """Whoever follows finds what was done and not acknowledged, knows it by its position, and goes on behind it."""
    async with receiving() as receiver, HoldingProxy(server.url) as for_alert, HoldingProxy(server.url) as for_archive:
        await line.open_for(receiver)
        line.poll(server.url)
        alert, archive = Killer(line, "alert", for_alert, direct), Killer(line, "archive", for_archive, direct)
        async with asyncio.TaskGroup() as together:
            together.create_task(alert.kill_often(kills, alert_moments))
            together.create_task(archive.kill_often(kills, ["archived"]))
        await more_decided(direct, 1)
        await more_archived(direct)

        await caught_up(line, direct, receiver, [alert.program, archive.program])
        say(f"\nalert: {dict(alert.counts)}; archive: {dict(archive.counts)}")
        await all_is_well(line, server, direct, receiver, twice=alert.counts.total())

    assert alert.counts.total() == archive.counts.total() == kills == 2 * alert.counts["at any moment"]
    assert archive.counts["archived, not acknowledged"] == kills // 2
    assert receiver.again.total() >= bool(alert.counts["delivered, not acknowledged"])


@pytest.mark.parametrize(
    ("kills", "moments"),
    [
        pytest.param(4, ["decided", "archived"], id="4"),
        pytest.param(
            20,
            ["decided", "archived", "queued", "delivered"],
            id="20",
            marks=[pytest.mark.soak, pytest.mark.timeout(400)],
        ),
    ],
)
async def test_all_roles_in_one_process_killed_again_and_again_lose_nothing_and_do_nothing_twice(
    line: Line, server: RealServer, direct: Any, kills: int, moments: list[str]
) -> None:
    """Poller, alerts and archive die together, each in another moment of its work."""
    async with receiving() as receiver, HoldingProxy(server.url) as proxy:
        await line.open_for(receiver)
        everything = Killer(line, "run", proxy, direct)
        await everything.kill_often(kills, moments)
        await more_decided(direct, 1)
        await more_archived(direct)
        await everything.program.stop()  # it publishes as well, so another has to come to the end of it
        roles = [line.role("alert", server.url), line.role("archive", server.url)]

        await caught_up(line, direct, receiver, roles)
        say(f"\nrun: {dict(everything.counts)}")
        await all_is_well(line, server, direct, receiver, twice=everything.counts.total())

    assert everything.counts.total() == kills == 2 * everything.counts["at any moment"]


# --- a server that is away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "away_s", "how"),
    [
        pytest.param(["poll", "alert", "archive"], 4.0, "stopped", id="4 s"),
        *(
            pytest.param(roles, 10.0, how, id=f"10 s {how} {name}", marks=[pytest.mark.soak, pytest.mark.timeout(300)])
            for roles, name in ((["poll", "alert", "archive"], "apart"), (["run"], "together"))
            for how in ("stopped", "frozen")
        ),
    ],
)
async def test_a_server_gone_for_a_while_is_survived_by_every_role(
    line: Line, server: RealServer, direct: Any, roles: list[str], away_s: float, how: str
) -> None:
    """Nobody has to be restarted, nothing is lost, and what is found afterwards is told as before."""
    async with receiving() as receiver:
        await line.open_for(receiver)
        programs = [line.role(role, server.url) for role in roles]
        await more_decided(direct, 1)
        await more_archived(direct)
        pids = [program.process.pid for program in programs]
        if how == "stopped":
            server.stop()
        else:
            server.pause()
        await asyncio.sleep(away_s)  # the length of the outage is the subject
        back_at = datetime.now(UTC)
        told = set(receiver.accepted)
        if how == "stopped":
            server.start()
        else:
            server.resume()
        await until(lambda: seen(direct, back_at), "a poll that was published after the outage")
        await more_decided(direct, 1)
        await more_archived(direct)
        await until(lambda: receiver.accepted.keys() - told, "a webhook after the outage", 30)

        assert [program.process.pid for program in programs] == pids
        assert not [program.name for program in programs if program.ended]
        await programs[0].stop()  # who publishes stops first; where that is everybody, others come to the end of it
        rest = programs[1:] or [line.role("alert", server.url), line.role("archive", server.url)]
        await caught_up(line, direct, receiver, rest)
        await all_is_well(line, server, direct, receiver)


# --- two of each ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "kills"),
    [
        pytest.param(["poll", "alert", "archive"], 1, id="apart"),
        pytest.param(["poll", "alert", "archive"], 4, id="apart 4", marks=[pytest.mark.soak, pytest.mark.timeout(400)]),
        pytest.param(["run"], 4, id="together 4", marks=[pytest.mark.soak, pytest.mark.timeout(400)]),
    ],
)
async def test_two_processes_of_each_role_do_nothing_twice_and_the_second_follows_within_a_lease(
    line: Line, server: RealServer, direct: Any, roles: list[str], kills: int
) -> None:
    """A spare does nothing while the other works, though both have the host's name, and is there when that dies."""
    groups = ("alert", "send", "archive")
    async with receiving() as receiver:
        await line.open_for(receiver)
        active = [line.role(role, server.url) for role in roles]
        await until(lambda: len(holders(direct, groups)) == leases(groups), "the first to be active", 20)
        slowest: list[float] = []
        for _ in range(kills):
            spare = await spares(line, server, direct, roles)
            held = holders(direct, groups)
            await published(direct, 100)
            assert holders(direct, groups) == held, "a spare became active beside one that works"

            for program in active:
                program.kill()
            waiting = await takeover(direct, held, LEASE_S * 2)
            slowest.append(max(waiting.values()))
            say(f"\nkilled; taken over after {sorted(round(one, 1) for one in waiting.values())} s")
            active = spare
            await more_decided(direct, 1)
            await more_archived(direct)

        await active[0].stop()
        rest = active[1:] or [line.role("alert", server.url), line.role("archive", server.url)]
        await caught_up(line, direct, receiver, rest)
        await all_is_well(line, server, direct, receiver, twice=8 * kills)

    assert max(slowest) <= LEASE_S + SLACK_S, f"the second followed after {max(slowest):.1f} s"


async def spares(line: Line, server: RealServer, direct: Any, roles: Sequence[str]) -> list[Program]:
    """One more process of each role, connected."""
    clients = len(direct.client_list())
    programs = [line.role(role, server.url) for role in roles]
    await until(lambda: len(direct.client_list()) >= clients + len(roles), "spares to connect")
    return programs


async def takeover(direct: Any, before: dict[str, str], deadline_s: float) -> dict[str, float]:
    """How long after now each lease went to another holder, in seconds."""
    began, taken = time.monotonic(), dict[str, float]()

    def all_taken() -> bool:
        for key, holder in before.items():
            now = direct.get(key)
            if key not in taken and now and now != holder:
                taken[key] = time.monotonic() - began
        return len(taken) == len(before)

    await until(all_taken, f"others to follow; {len(before)} leases", deadline_s)
    return taken


@pytest.mark.soak
async def test_a_dead_members_late_read_costs_no_decision(line: Line, server: RealServer, direct: Any) -> None:
    """A read can be late in the network, and arrive when its sender is dead and another is active: nobody gets what it
    takes. The other finds that only after newer entries, and must not take it for done because of its place.
    """
    async with receiving() as receiver, HoldingProxy(server.url) as proxy:
        await line.open_for(receiver)
        line.poll(server.url)
        first, archive = line.role("alert", proxy.url), line.role("archive", server.url)
        await more_decided(direct, 1)
        proxy.hold_requests(
            lambda command: b"XREADGROUP" in command and b"\r\nalert\r\n" in command and b"\r\n>\r\n" in command
        )
        await until(lambda: proxy.held_requests >= len(RULED), "a late read of each stream")
        first.kill()
        second = line.role("alert", server.url)
        await more_decided(direct, 5)  # it has waited for the lease, and is at work

        second.process.send_signal(signal.SIGSTOP)
        await published(direct, 100)
        proxy.release()
        await until(lambda: pending(direct, "alert"), "the late reads to take something")
        second.process.send_signal(signal.SIGCONT)
        say(f"\nthe late reads took {pending(direct, 'alert')} entries")
        await published(direct, 100)

        await caught_up(line, direct, receiver, [second, archive])
        await all_is_well(line, server, direct, receiver, twice=8)


def pending(direct: Any, group: str) -> int:
    """How many entries were handed to a group and not acknowledged."""
    return sum(direct.xpending(f"sectorwire:{{{tr}}}:changes", group)["pending"] for tr in RULED)
