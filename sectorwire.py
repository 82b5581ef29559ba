"""The command line, and the only place that knows both packages: what is asked of the poller and of the consumers.

`CALLS` is the table of contents: what each command calls. `main` says what an error becomes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import errno
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any

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
from poller.arguments import HELP, Parser, UsageError, nearest, parser
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


CALLS = {
    "demo": demo,
    "init": commands.init,
    "check": check,
    "run": run,
    "poll": commands.poll,
    "alert": alert,
    "archive": archive,
    "once": commands.ask,
    "tail": follow,
    "status": commands.show_status,
    "catalogue": commands.catalogue,
    "schema": commands.schema,
    "doctor": doctor,
    "endpoints": endpoints,
    "quarantine": commands.quarantine,
    "parked": parked,
    "simulate": commands.simulate,
    "replay": replay,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error becomes one line on stderr and an exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if isinstance(sys.stdout, TextIOWrapper):  # a name on the server need not be text; what is shown of it is
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args, unknown = parser(CALLS).parse_known_args(argv)
        if unknown:
            refusing: Parser = getattr(args, "parser", parser(CALLS))
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
