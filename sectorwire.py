"""The command line, and the only place that knows both packages: what is asked of the poller and of the consumers.

`main` reads as a table of contents: the commands in groups, what each of them calls, and what an error becomes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import difflib
import errno
import inspect
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from consumers import tail
from consumers.alert import send
from consumers.alert.endpoints import EndpointError
from consumers.alert.outbox import DEAD_KEPT
from consumers.alert.receiver import receiving
from consumers.alert.rules import RuleError
from consumers.parked import Parked, ParkedError, ParkingLot
from consumers.service import ConsumerSettings, Desk, Roles, checked_desk, roles_of
from poller import commands
from poller.catalogue import described, tr_named
from poller.clock import Clock
from poller.commit import iso
from poller.contract import Catalogue, Entry, dumps
from poller.demo import HOOK_SECRET_ENV, MarketTimetable, Pendulum, new_secrets, write_plan
from poller.doctor import Finding
from poller.errors import BrokerError
from poller.reload import Plan, Reloader
from poller.schedule import Poller
from poller.service import Bus, open_bus, open_desk
from poller.session import KST
from poller.settings import (
    CONSUMER_SECTIONS,
    ConfigError,
    Settings,
    checked,
    find_config,
    load_settings,
    read_keys,
    read_toml,
)
from poller.store import StoreError
from poller.trs.base import BadRequest

SERVICES = frozenset({"run", "poll", "alert", "archive"})
"""Commands that are left alone for days: their logs tell what happens."""

DEMO_TOP = 3
"""How many of a poll's changes the demo prints: enough to see the market move, few enough to read."""

HELP = """\
watches the six sector (업종) reports of Kiwoom Securities and tells what changed

start
  demo        everything at once on a simulated market: the first thing to run
  init        write a commented sectorwire.toml
  check       prove that the plan fits the broker's limits; --online signs in and asks
  run         every role in one process
  poll        one role: ask the broker, publish what changed
  alert       one role: decide by the rules, send webhooks
  archive     one role: keep every entry in Delta Lake tables

look
  once        one poll, printed: once ka20003 inds_cd=001
  tail        changes as they come
  status      targets with their freshness
  catalogue   what each report holds; with a word, the fields that go by it
  schema      the stream's contract as an AsyncAPI document
  archive     status, sql, export, verify: questions asked of the archive

repair
  doctor      look for what usually goes wrong, with the remedy of each
  endpoints   list, test, dead, redrive: where alerts go, and what did not get there
  quarantine  list, show, retry: answers that could not be read
  parked      list, show, redrive, drop: entries that a group gave up on

develop
  simulate    the made-up market as a server of its own; --replay DIR a recorded day
  replay      a recorded day decided again: what would have been published

sectorwire COMMAND --help explains each. Errors are one line; --debug adds the traceback.
Exit status: 0 well, 1 failed while running, 2 wrong usage or configuration.
"""


class UsageError(Exception):
    """The command line is wrong; the message says what to write."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest word that would have been right."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            option = re.match(r"argument (--[a-z-]+): ", message)
            known = re.findall(r"[a-z]+", unknown[2])
            what = f"{option[1]} takes {' or '.join(known)}, not" if option else "no command"
            message = f"{what} {unknown[1]!r}{nearest(unknown[1], known)}"
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def refuse(self, unknown: str) -> NoReturn:
        """Say that an option or a word is not known here."""
        options = [option for action in self._actions for option in action.option_strings]
        self.error(
            f"unknown {'option' if unknown.startswith('-') else 'argument'} {unknown}{nearest(unknown, options)}"
        )


def nearest(wrong: str, known: Sequence[str]) -> str:
    """A suggestion to append to a message, or nothing."""
    close = difflib.get_close_matches(wrong.partition("=")[0], known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _parser() -> _Parser:
    parser = _Parser(prog="sectorwire", usage="sectorwire COMMAND [options]", add_help=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="version", version=f"sectorwire {version('sectorwire')}")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, about: str, call: object, *, config: bool = True) -> argparse.ArgumentParser:
        sub = group.add_parser(name, prog=f"sectorwire {name}", help=about, description=about, allow_abbrev=False)
        sub.set_defaults(call=call, parser=sub)
        sub.add_argument("--debug", action="store_true", help="logs in detail, errors with their traceback")
        if config:
            sub.add_argument("--config", metavar="FILE", help="default: SECTORWIRE_CONFIG, or sectorwire.toml here")
        return sub

    _start_options(
        command("demo", "everything at once on a simulated market and a server of its own", demo, config=False),
        command("init", "write a commented configuration for the mock server", commands.init),
        command("check", "prove that the plan fits the broker's limits, and that rules and endpoints are right", check),
    )
    _record_option(command("poll", "poll, and publish changes to the streams, until Ctrl-C or SIGTERM", commands.poll))
    _look_options(
        command("once", "one poll, printed; nothing is published", commands.ask),
        command("tail", "changes as they come", follow),
        command("status", "targets with their freshness", commands.show_status),
    )
    _record_option(command("run", "every role in one process, until Ctrl-C or SIGTERM", run))
    command("alert", "decide and send alerts, until Ctrl-C or SIGTERM", alert)
    _archive_options(command("archive", "archive until Ctrl-C or SIGTERM, or answer a question asked of it", archive))
    command("doctor", "look for what usually goes wrong; status 1 if something serious is found", doctor).add_argument(
        "--json", action="store_true", help="for programs"
    )
    _endpoint_options(command("endpoints", "how things stand with the endpoints of alerts", endpoints))
    _reference_options(
        command("catalogue", "what each report holds", commands.catalogue, config=False),
        command("schema", "the stream's contract as an AsyncAPI document", commands.schema, config=False),
    )
    _quarantine_options(command("quarantine", "answers that could not be read", commands.quarantine))
    _parked_options(command("parked", "entries that a group gave up on, and why", parked))
    _simulate_options(command("simulate", "the made-up market as a server", commands.simulate, config=False))
    _replay_options(command("replay", "a recorded day decided again: what would have been published", replay))
    return parser


def _start_options(
    demo: argparse.ArgumentParser, init: argparse.ArgumentParser, check: argparse.ArgumentParser
) -> None:
    demo.add_argument("--seconds", type=_positive, metavar="N", help="end after N seconds with a summary")
    demo.add_argument("--data", type=Path, default=Path("data/demo"), metavar="DIR", help="default: data/demo")
    demo.add_argument("--all", action="store_true", help="print every change, not only the largest of each poll")
    init.add_argument("--real", action="store_true", help="for the real server")
    init.add_argument("--force", action="store_true", help="overwrite a file that exists")
    check.add_argument("--online", action="store_true", help="sign in, and ask one target of each TR")


def _record_option(role: argparse.ArgumentParser) -> None:
    role.add_argument("--record", type=Path, metavar="DIR", help="keep every answer there, in a file for each day")


def _look_options(
    once: argparse.ArgumentParser, tail: argparse.ArgumentParser, status: argparse.ArgumentParser
) -> None:
    once.add_argument("tr", metavar="TR", help="such as ka20003")
    once.add_argument("values", nargs="*", metavar="element=value", help="such as inds_cd=001")
    shape = once.add_mutually_exclusive_group()
    shape.add_argument("--explain", action="store_true", help="request, pages, checks, and the events it would publish")
    shape.add_argument("--raw", action="store_true", help="the answer as the broker sent it")
    tail.add_argument("trs", nargs="*", metavar="TR", help="only these reports")
    tail.add_argument("--from-start", action="store_true", help="begin with the oldest entry there is")
    tail.add_argument("--top", type=_count, metavar="N", help="of each poll only the N largest moves")
    tail.add_argument("--seconds", type=_positive, metavar="N", help="end after N seconds")
    tail.add_argument("--json", action="store_true", help="one entry a line")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="live, until Ctrl-C")
    how.add_argument("--check", action="store_true", help="one line; status 1 if nobody leads or a target is stale")
    how.add_argument("--json", action="store_true", help="for programs")


def _reference_options(catalogue: argparse.ArgumentParser, schema: argparse.ArgumentParser) -> None:
    catalogue.add_argument("word", nargs="?", metavar="WORD", help="a TR, or a field by name, element or Korean label")
    catalogue.add_argument("--json", action="store_true", help="for programs")
    schema.add_argument("--prefix", default="sectorwire", help="of the keys; default: sectorwire")
    schema.add_argument("--json", action="store_true", help="which it is anyway")


def _archive_options(archive: argparse.ArgumentParser) -> None:
    asked = archive.add_subparsers(dest="question", metavar="QUESTION", parser_class=_Parser)
    _part(asked, "status", "tables, rows, positions, lag")
    _part(asked, "verify", "prove that archive, streams and snapshots agree")
    _part(asked, "sql", "ask over tables such as ka20003_indices").add_argument("query", metavar="SQL")
    export = _part(asked, "export", "write a table to one file")
    export.add_argument("table", metavar="TABLE", help="such as ka20003_indices")
    export.add_argument("out", type=Path, metavar="FILE")
    export.add_argument("--format", choices=("parquet", "csv"), default="parquet")


def _endpoint_options(endpoints: argparse.ArgumentParser) -> None:
    actions = endpoints.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    _part(actions, "list", "waiting, delivered, dead, and whether they answer")
    for name, about in (
        ("test", "send a message that is marked as a test"),
        ("dead", "what was given up, and why"),
        ("redrive", "send what was given up again"),
    ):
        action = _part(actions, name, about)
        action.add_argument("name", metavar="ENDPOINT")
        if name == "redrive":
            action.add_argument("ids", nargs="*", default=[], metavar="ID", help="default: all of them")


def _quarantine_options(quarantine: argparse.ArgumentParser) -> None:
    actions = quarantine.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    _part(actions, "list", "what is there, newest first").add_argument(
        "--json", action="store_true", default=False, help="for programs"
    )
    _part(actions, "show", "one answer, with why and where").add_argument("id", metavar="ID")
    retry = _part(actions, "retry", "read again with today's declarations; what can be read now is removed")
    retry.add_argument("ids", nargs="*", default=[], metavar="ID", help="default: all of them")


def _parked_options(parked: argparse.ArgumentParser) -> None:
    actions = parked.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    listing = _part(actions, "list", "what is parked, oldest first")
    listing.add_argument("--tr", default=None, metavar="TR", help="only of this report")
    listing.add_argument("--group", default=None, metavar="GROUP", help="only of this group, such as alert")
    listing.add_argument("--json", action="store_true", default=False, help="for programs")
    for name, about, ids in (
        ("show", "one entry, with the stack of its last error", None),
        ("redrive", "let the group handle entries again, as they are and before what is new", "*"),
        ("drop", "forget entries for ever", "*"),
    ):
        action = _part(actions, name, about)
        action.add_argument("tr", metavar="TR")
        action.add_argument("group", metavar="GROUP")
        action.add_argument("ids", nargs=ids or 1, default=[], metavar="ID", help="as `parked list` prints it")
        if name == "drop":
            action.add_argument("--all", action="store_true", default=False, help="instead of ids: all of the group")


def _replay_options(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("dir", type=Path, metavar="DIR", help="where `sectorwire poll --record DIR` wrote")
    replay.add_argument("--day", type=_day, metavar="DAY", help="only this day, such as 2026-11-23")
    replay.add_argument("--top", type=_count, metavar="N", help="of each poll only the N largest moves")
    replay.add_argument("--json", action="store_true", help="one entry a line")


def _part(parts: argparse._SubParsersAction[_Parser], name: str, about: str) -> _Parser:
    """One part of a command; it takes what every command takes, so `archive sql --config x` works as well."""
    part = parts.add_parser(name, help=about, description=about, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    part.set_defaults(parser=part)
    part.add_argument("--debug", action="store_true", help="logs in detail, errors with their traceback")
    part.add_argument("--config", metavar="FILE", help="default: SECTORWIRE_CONFIG, or sectorwire.toml here")
    return part


def _simulate_options(simulate: argparse.ArgumentParser) -> None:
    add = simulate.add_argument
    add("--port", type=_port, default=9100, help="default: 9100; 0 takes a free one")
    add("--seed", type=_whole, default=1, help="another market; default: 1")
    add("--speed", type=_positive, default=1.0, metavar="X", help="market time runs X times as fast")
    add("--start", metavar="TIME", help="market time at the start, such as 2026-11-23T10:00")
    add("--skip-closed", action="store_true", help="jump from each close to the next opening")
    add("--faults", type=_share, default=0.0, metavar="P", help="share of requests that meet a fault, 0 to 1")
    add("--limit", type=_count, default=5, metavar="N", help="requests a second per TR; default: 5")
    add("--mock", action="store_true", help="one request a second over everything, as the mock server")
    add("--check-keys", action="store_true", help="accept only the pair in KIWOOM_APP_KEY and KIWOOM_SECRET_KEY")
    add("--ledger", type=Path, metavar="FILE", help="write down every answer that was served")
    add("--replay", type=Path, metavar="DIR", help="serve a recorded day, by default the oldest there, else --start's")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    if re.fullmatch(r"-?\d+", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 0 to 65535")
    return int(text)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2026-11-23") from None


def _positive(text: str) -> float:
    number = _float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _share(text: str) -> float:
    number = _float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return number


def _float(text: str) -> float:
    """A number; what is none is not in any range either."""
    try:
        return float(text)
    except ValueError:
        return math.nan


async def follow(args: argparse.Namespace) -> int:
    """Print changes as they come."""
    settings, stop = commands.settings_of(args), commands.stop_on_signals()
    catalogue = {code: tr for code, tr in described().items() if not args.trs or code in map(_code, args.trs)}
    if args.seconds:
        asyncio.get_running_loop().call_later(args.seconds, stop.set)
    async with open_bus(settings) as bus:
        await _print_changes(
            settings,
            bus,
            catalogue,
            stop,
            top=args.top,
            as_json=args.json,
            from_start=args.from_start,
        )
    return 0


def _code(name: str) -> str:
    return tr_named(name).code


async def _print_changes(
    settings: Settings,
    bus: Bus,
    catalogue: Catalogue,
    stop: asyncio.Event,
    *,
    top: int | None,
    as_json: bool = False,
    from_start: bool = False,
) -> None:
    console = commands.stdout()
    batches = tail.follow(bus.redis, settings.bus.prefix, catalogue, from_start=from_start, over=stop.is_set)
    async for entries in batches:
        _print_entries(console, entries, catalogue, top, as_json=as_json)


def _print_entries(
    console: Console, entries: Sequence[Entry], catalogue: Catalogue, top: int | None, *, as_json: bool
) -> None:
    if as_json:
        for entry in entries:
            print(dumps({**entry.model_dump(exclude={"time"}), "time": entry.data["observed_at"]}), flush=True)
        return
    for line in tail.lines(entries, catalogue, top):
        console.print(line, no_wrap=True, overflow="ellipsis")


def replay(args: argparse.Namespace) -> int:
    """Print what a poller would have published from a recording."""
    console, catalogue = commands.stdout(), described()
    for entries in commands.replayed(args):
        _print_entries(console, entries, catalogue, args.top, as_json=args.json)
    return 0


async def demo(args: argparse.Namespace) -> int:
    """The whole line on a made-up market: simulator, server, poller, alerts with their receiver, archive."""
    try:
        from poller.simulator.server import SimulatorSettings, serving  # noqa: PLC0415 -- an optional extra
    except ImportError as error:
        raise ConfigError("the demo needs extras: pip install 'sectorwire[embedded,simulator,archive]'") from error
    stop, catalogue, console = commands.stop_on_signals(), described(), commands.stdout()
    args.data.mkdir(parents=True, exist_ok=True)
    pendulum = Pendulum(args.data, Clock().now())
    if args.seconds:
        asyncio.get_running_loop().call_later(args.seconds, stop.set)
    secret = f"whsec_{base64.b64encode(os.urandom(24)).decode()}"
    received: list[str] = []

    def on_alert(body: dict[str, Any]) -> None:
        received.append(body["data"]["id"])
        console.print(_demo_alert(body), no_wrap=True, overflow="ellipsis")

    async with AsyncExitStack() as stack:
        hook_url = await stack.enter_async_context(receiving(secret, on_alert))
        simulator, base_url = await stack.enter_async_context(serving(SimulatorSettings(clock=pendulum.clock)))
        path = write_plan(args.data, base_url, hook_url)
        settings, desk = load_settings(path, {}), _desk_of(path, {HOOK_SECRET_ENV: secret})
        bus = await stack.enter_async_context(open_bus(settings))
        readers = await stack.enter_async_context(bus.readers("sectorwire-demo"))
        market = MarketTimetable(pendulum.clock)
        polling = await stack.enter_async_context(open_desk(settings, [new_secrets()], bus, timetable=market))
        poller = Poller(settings.jobs(), polling, commands.upkeep_of(settings))
        roles = roles_of(desk, readers, settings.bus.prefix, catalogue)
        console.print(_demo_banner(settings, bus, args.data))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_swing(pendulum, stop))
            tasks.create_task(_print_changes(settings, bus, catalogue, stop, top=None if args.all else DEMO_TOP))
            tasks.create_task(roles.run(stop))
            await poller.run(stop)
            stop.set()
    console.print(_demo_summary(poller, simulator.refusals, catalogue))
    console.print(_demo_outcome(roles, len(received)))
    console.print(_demo_question(args.data))
    return 0


async def _swing(pendulum: Pendulum, stop: asyncio.Event) -> None:
    """Write the market's time down every second, so that even a killed demo goes on where it was."""
    while not stop.is_set():
        pendulum.remember(Clock().now())
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            continue
    pendulum.remember(Clock().now())


def _demo_banner(settings: Settings, bus: Bus, data: Path) -> Text:
    banner = Text("sectorwire demo", "bold")
    banner.append(f"  {len(settings.jobs())} targets of 6 reports, {bus.told}\n", "dim")
    banner.append("시장은 만들어낸 것이며 10배속입니다 (a made-up market, ten times as fast). Ctrl-C ends it.\n", "dim")
    return banner.append(f"look inside: sectorwire status --config {data}/sectorwire.toml\n", "dim")


def _demo_alert(body: dict[str, Any]) -> Text:
    data = body["data"]
    ended = body["type"].endswith("resolved")
    line = Text("   해제 " if ended else "   알림 ", "dim" if ended else "bold yellow")
    return line.append(f"{data['title'] or data['rule']}  ", "yellow").append(data["text"])


def _demo_summary(poller: Poller, refusals: int, catalogue: Catalogue) -> Text:
    stats = poller.stats
    summary = Text("\nsummary", "bold")
    summary.append(f"  {stats.polls} polls, {stats.failed} failed, {refusals} refusals\n")
    for code, tr in catalogue.items():
        summary.append(f"  {code} {stats.changes[code]:>7,} changes  ", "cyan")
        summary.append(f"{tr.name}\n")
    return summary


def _demo_outcome(roles: Roles, received: int) -> Text:
    decided = roles.alert.decided if roles.alert else 0
    outcome = Text(f"  alerts  {decided} decided, {roles.send.delivered if roles.send else 0} delivered, ")
    outcome.append(f"{received} verified by the receiver\n")
    rows = roles.archive.rows if roles.archive else {}
    return outcome.append(
        "  archive " + ", ".join(f"{table} {count:,}" for table, count in sorted(rows.items())) + "\n"
    )


def _demo_question(data: Path) -> Group:
    """One question to the archive, with the line that asks it."""
    sql = (
        "SELECT key, label, count(*) AS changes, max(level) AS high FROM ka20003_indices "
        "WHERE op = 'changed' GROUP BY key, label ORDER BY changes DESC LIMIT 3"
    )
    from consumers.archive import questions  # noqa: PLC0415 -- an extra, which `_desk_of` has found

    line = Text(f'$ sectorwire archive sql --config {data}/sectorwire.toml "{sql}"', "dim")
    return Group(line, questions.run_sql(data / "archive", sql).rich())


def _consumer_settings(path: Path) -> ConsumerSettings:
    """The consumers' part of a configuration, without the secrets that it names. Raises ConfigError."""
    content = {name: part for name, part in read_toml(path).items() if name in CONSUMER_SECTIONS}
    if "archive" in content and find_spec("deltalake") is None:
        raise ConfigError("the archive is an extra: pip install 'sectorwire[archive]', or leave [archive] out")
    return checked(ConsumerSettings, content, path)


def _desk_of(path: Path, environ: Mapping[str, str]) -> Desk:
    """The same, checked, with its secrets. Raises ConfigError, RuleError or EndpointError."""
    return checked_desk(_consumer_settings(path), described(), environ)


async def check(args: argparse.Namespace) -> int:
    """Read the whole configuration, the consumers' part included, and prove that the plan fits."""
    desk = _desk_of(find_config(args.config, os.environ), os.environ)
    status = await commands.check(args)
    if desk.rules:
        names = ", ".join(endpoint.name for endpoint in desk.endpoints) or "nobody"
        print(f"{len(desk.rules)} rules, told to {names}")
    return status


async def run(args: argparse.Namespace) -> int:
    """Every role in one process, until Ctrl-C or SIGTERM."""
    path, stop = find_config(args.config, os.environ), commands.stop_on_signals()
    reloader, desk = Reloader(path, partial(_whole_plan, path)), _desk_of(path, os.environ)
    settings = reloader.plan.settings
    keys = read_keys(settings.kiwoom, os.environ)
    commands.reload_on_hangup(reloader)
    async with open_bus(settings) as bus, bus.readers("sectorwire-run") as readers:
        roles = roles_of(desk, readers, settings.bus.prefix, described())
        async with open_desk(settings, keys, bus) as polling, asyncio.TaskGroup() as tasks:
            tasks.create_task(roles.run(stop))
            try:
                with commands.recording(args.record, polling):
                    await commands.poll_by(reloader, polling, stop)
            finally:
                stop.set()
    return 0


def _whole_plan(path: Path) -> Plan:
    """The plan of a whole configuration, whose rules and endpoints have to be right although they are not reloaded."""
    try:
        _desk_of(path, os.environ)
    except (RuleError, EndpointError) as error:
        raise ConfigError(str(error)) from error
    apart = {name: part for name, part in read_toml(path).items() if name in CONSUMER_SECTIONS}
    return replace(commands.plan_of(path), apart=apart)


async def alert(args: argparse.Namespace) -> int:
    """Decide and send alerts, until Ctrl-C or SIGTERM."""
    path = find_config(args.config, os.environ)
    desk = _desk_of(path, os.environ)
    if not desk.rules:
        raise ConfigError(f"{path} has no [[rule]]: there is nothing to decide")
    return await _run_roles(load_settings(path), desk, alerts=True)


async def archive(args: argparse.Namespace) -> int:
    """Archive until Ctrl-C or SIGTERM; or answer a question asked of the archive."""
    path = find_config(args.config, os.environ)
    settings, where = load_settings(path), _consumer_settings(path).archive
    if where is None:
        raise ConfigError(f'{path} has no [archive]: add the section with path = "data/archive"')
    if args.question is None:
        return await _run_roles(settings, Desk([], [], where), alerts=False)
    from consumers.archive import questions  # noqa: PLC0415 -- an extra, which `_desk_of` has found

    try:
        return await _answer(questions, args, settings, where.path)
    except questions.QuestionError as error:
        raise ConfigError(str(error)) from error


async def _answer(questions: ModuleType, args: argparse.Namespace, settings: Settings, where: Path) -> int:
    console = commands.stdout()
    match args.question:
        case "sql":
            console.print(questions.run_sql(where, args.query).rich())
        case "export":
            rows = questions.export(where, args.table, args.format, args.out)
            print(f"{rows:,} rows into {args.out}")
        case "status":
            async with open_bus(settings) as bus:
                console.print(
                    questions.status_table(await questions.archive_status(where, settings.bus.prefix, bus.redis))
                )
        case "verify":
            async with open_bus(settings) as bus:
                findings = await questions.verify(bus.redis, settings.bus.prefix, where, described())
            losses = questions.known_losses(where, settings.bus.prefix, described())
            print("\n".join([*losses, *(findings or ["well: archive, streams and snapshots agree"])]))
            return 1 if findings else 0
    return 0


async def _run_roles(settings: Settings, desk: Desk, *, alerts: bool) -> int:
    stop = commands.stop_on_signals()
    async with open_bus(settings) as bus, bus.readers("sectorwire-role") as readers:
        await roles_of(desk, readers, settings.bus.prefix, described(), alerts=alerts, archive=not alerts).run(stop)
    return 0


async def doctor(args: argparse.Namespace) -> int:
    """Look for what usually goes wrong, and tell the remedies."""
    path = find_config(args.config, os.environ)
    known = _consumer_settings(path)
    trs = {rule.tr for rule in known.rule}
    roles = {(tr, "changes", "alert"): "alert" for tr in trs}
    roles |= {(tr, "alerts", "send"): "alert" for tr in trs if known.endpoint}
    roles |= {(tr, "changes", "archive"): "archive" for tr in described() if known.archive}
    return await commands.diagnose(
        args, roles, known.archive.path if known.archive else None, partial(findings_of_roles, path, os.environ)
    )


async def findings_of_roles(path: Path, environ: Mapping[str, str], redis: Redis, prefix: str) -> list[Finding]:
    """What would keep a role from starting with this environment, and endpoints that alerts do not reach."""
    found = []
    try:
        read_keys(load_settings(path, environ).kiwoom, environ)
    except ConfigError as error:
        found.append(_would_refuse("polling", error))
    try:
        desk = _desk_of(path, environ)
    except (ConfigError, RuleError, EndpointError) as error:
        return [*found, _would_refuse("alerts", error)]
    for one in await send.list_endpoints(redis, prefix, desk.endpoints):
        now = one.standing
        if now.disabled or (now.waiting and now.breaker.opened):
            why = now.disabled or f"{one.breaker}, {now.last}"
            what = f"endpoint {one.name}: {now.waiting:,} alerts wait, {why}"
            found.append(Finding("warning", what, f"`sectorwire endpoints test {one.name}` shows what it answers"))
        if now.dead_kept:
            what = f"endpoint {one.name}: {now.dead_kept:,} alerts were given up"
            again = f"`sectorwire endpoints dead {one.name}` tells why, `endpoints redrive {one.name}` sends them again"
            found.append(Finding("warning", what, again))
    return found


def _would_refuse(role: str, error: Exception) -> Finding:
    what, _, remedy = str(error).partition("; " if "; " in str(error) else ": ")
    return Finding("warning", f"{role} could not be started from here: {what}", remedy or "correct it")


async def endpoints(args: argparse.Namespace) -> int:
    """How things stand with the endpoints; a test message; dead letters, and sending them again."""
    path = find_config(args.config, os.environ)
    settings, known = load_settings(path), {one.name: one for one in _desk_of(path, os.environ).endpoints}
    if args.action != "list" and args.name not in known:
        there = f"; known: {', '.join(known)}" if known else f": {path} has no [[endpoint]]"
        raise ConfigError(f"no endpoint {args.name!r}{nearest(args.name, list(known))}{there}")
    if args.action == "test":
        outcome = await send.test_endpoint(known[args.name])
        print(outcome.words)
        return 0 if outcome.ok else 1
    async with open_bus(settings) as bus:
        prefix = settings.bus.prefix
        if args.action == "redrive":
            await _check_letters(bus, prefix, args.name, args.ids)
            (before,) = await send.list_endpoints(bus.redis, prefix, [known[args.name]])
            count = await send.redrive(bus.redis, prefix, known[args.name], args.ids or None)
            on = ", the endpoint is switched on again" if before.standing.disabled else ""
            print((f"{_are(count)} sent again" if count else NOTHING_DEAD) + on)
        elif args.action == "dead":
            letters = await send.dead_letters(bus.redis, prefix, args.name)
            for letter in letters:
                print(f"{letter.letter}  {letter.id}  {letter.attempts} attempts  {letter.why}")
            if not letters:
                print(NOTHING_DEAD)
        else:
            if not known:
                print(f"{path} has no [[endpoint]]")
            for one in await send.list_endpoints(bus.redis, prefix, known.values()):
                now = one.standing
                counts = f"{now.delivered} delivered, {now.waiting} waiting, {now.dead_kept} dead"
                counts += f", {now.dropped} more dropped" if now.dropped else ""
                print(f"{one.name}  {one.format} at {one.host}  {now.disabled or one.breaker}  {counts}")
    return 0


NOTHING_DEAD = "nothing was given up there"


async def _check_letters(bus: Bus, prefix: str, endpoint: str, ids: Sequence[str]) -> None:
    """Refuse ids that are no dead letter's. Raises UsageError with those that it could mean."""
    letters = await send.dead_letters(bus.redis, prefix, endpoint, count=DEAD_KEPT) if ids else []
    known = [name for letter in letters for name in (letter.letter, letter.id)]
    for wrong in ids:
        if wrong not in known:
            some = ", ".join(letter.letter for letter in letters[:10])
            hint = nearest(wrong, known) or (f"; there are {some}" if some else f": {NOTHING_DEAD}")
            raise UsageError(f"nothing dead goes by {wrong!r}{hint}")


def _are(count: int) -> str:
    """How many, with the verb."""
    return f"{count:,} {'is' if count == 1 else 'are'}"


async def parked(args: argparse.Namespace) -> int:
    """What groups gave up on; handing it out again, or dropping it."""
    if args.action == "drop" and bool(args.ids) == args.all:
        raise UsageError("parked drop wants the ids that `parked list` prints, or --all")
    settings = commands.settings_of(args)
    async with open_bus(settings) as bus:
        lot = ParkingLot(bus.redis, settings.bus.prefix, described())
        match args.action:
            case "list":
                found = await lot.listed(args.tr, args.group)
                if args.json:
                    print(dumps([one.as_json() for one in found]))
                    return 0
                commands.stdout().print(_parked_table(found) if found else "nothing is parked")
            case "show":
                one = await lot.one(args.tr, args.group, args.ids[0])
                told = {name: value for name, value in one.as_json().items() if name != "stack"}
                print(dumps({**told, "fields": one.fields}), one.stack or "(no stack)", sep="\n")
            case _ if not await lot.listed(args.tr, args.group) and not args.ids:
                print(f"nothing of {args.tr} is parked for {args.group}")
            case "redrive":
                count = await lot.redrive(args.tr, args.group, args.ids)
                waits = "" if await lot.active(args.tr, args.group) else ", as soon as somebody runs the group"
                print(f"{_are(count)} handed out again{waits}" if count else f"they were asked for already{waits}")
            case "drop":
                print(f"{_are(await lot.drop(args.tr, args.group, args.ids))} dropped")
    return 0


def _parked_table(found: Sequence[Parked]) -> Table:
    """What is parked, as lines for a person."""
    grid = Table("tr", "group", "id", "parked at", "event", "why", box=None)
    for one in found:
        at = f"{one.at.astimezone(KST):%Y-%m-%d %H:%M:%S}"
        grid.add_row(*map(Text, (one.tr, one.group, one.id, at, one.fields.get("id", "–"), one.why)))
    return grid


def _stamped(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Korean time, as in entries and in what `status` shows, wherever the machine stands."""
    event["timestamp"] = iso(Clock().now())
    return event


def _set_up_logs(*, debug: bool, quiet: bool) -> None:
    """key=value lines on a terminal, JSON elsewhere, always on stderr."""
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    on_terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    plain = [] if on_terminal else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _stamped,
            *plain,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error becomes one line on stderr and an exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if isinstance(sys.stdout, TextIOWrapper):  # a name on the server need not be text; what is shown of it is
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args, unknown = _parser().parse_known_args(argv)
        if unknown:
            refusing: _Parser = getattr(args, "parser", _parser())
            refusing.refuse(unknown[0])
        if args.command is None:
            print(HELP, end="", file=sys.stdout if args.help else sys.stderr)
            return 0 if args.help else 2
        _set_up_logs(debug=debug, quiet=args.command not in SERVICES)
        outcome = args.call(args)
        return int(_awaited(outcome) if inspect.iscoroutine(outcome) else outcome)
    except (UsageError, ConfigError, BadRequest, RuleError, EndpointError, ParkedError) as error:
        return _failed(error, 2, debug=debug)
    except BrokenPipeError:  # `sectorwire tail | head`: whoever read us has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (BrokerError, StoreError) as error:
        return _failed(error, 1, debug=debug)
    except OSError as error:
        return _failed(error, 1, debug=debug, told=_disk_told(error, PLACES.get(words[0], "[data] dir")))
    except RedisError as error:  # it was there when the command began
        return _failed(StoreError(f"the server does not answer any more: {error}"), 1, debug=debug)
    except KeyboardInterrupt:
        return 130


def _awaited(outcome: Coroutine[Any, Any, int]) -> int:
    """The exit status of a command; of several roles that ended together, the first one's error tells why."""
    try:
        return asyncio.run(outcome)
    except ExceptionGroup as group:
        first: Exception = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from group


def _failed(error: Exception, status: int, *, debug: bool, told: str = "") -> int:
    if debug:
        traceback.print_exception(error)
    print(f"sectorwire: {' '.join((told or str(error)).split())}", file=sys.stderr)
    return status


PLACES = {"demo": "--data", "init": "--config", "simulate": "--ledger", "archive": "[archive] path or [data] dir"}
"""What names the files of a command, where it is not `[data] dir`."""


def _disk_told(error: OSError, place: str) -> str:
    """What is wrong with which file, and what to do about it; the error's own words where it names no file."""
    if not isinstance(error.filename, str | bytes):
        return str(error)
    path = Path(os.fsdecode(error.filename)).absolute()
    there = next(one for one in (path, *path.parents) if os.path.exists(one))  # Path.exists may raise
    match error.errno:
        case errno.EACCES | errno.EPERM:
            user, owner = _user(os.geteuid()), _user(there.stat().st_uid)
            why = f"{user} may not: {there} belongs to {owner}; chown it to {user}"
        case errno.EROFS:
            why = f"{there} is on a disk that is mounted read-only; mount it for writing"
        case errno.ENOSPC | errno.EDQUOT:
            why = "the disk is full; make room there"
        case errno.ENOTDIR | errno.EEXIST:
            why = f"{there} is a file, not a directory; move it away"
        case errno.ENOENT:
            made = there in {path, path.parent}
            why = f"it cannot be made in {there}; make it" if made else f"there is no {path.parent}; make it"
        case _:
            return str(error)
    return f"{path} cannot be used: {why}, or choose another {place}"


def _user(uid: int) -> str:
    """A user by name, by number where it has none, as in a container."""
    import pwd  # noqa: PLC0415 -- Windows, where `--help` should work, has none

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


if __name__ == "__main__":
    sys.exit(main())
