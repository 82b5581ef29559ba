"""The poller's commands, one function each: read settings, do it, print for a person or as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from redis.exceptions import RedisError
from rich.console import Console
from rich.live import Live
from rich.table import Table

from poller import listing, once, status
from poller.asyncapi import asyncapi
from poller.budget import Share, shares
from poller.catalogue import described, find, tr_named
from poller.clock import Clock
from poller.grid import Job, Timing
from poller.schedule import Poller
from poller.service import open_bus, open_desk
from poller.session import KST, Calendar
from poller.settings import FILE_NAME, ConfigError, Settings, find_config, load_settings, read_secrets
from poller.starter import starter_config
from poller.store import StoreDown
from poller.trs.base import BadRequest
from poller.upkeep import Upkeep

WATCH_EVERY_S = 1.0
MARKET_TIME = "%Y-%m-%dT%H:%M"


def stdout() -> Console:
    """Where a command prints: as wide as the terminal, and wide enough for every table where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 320)


def settings_of(args: Namespace) -> Settings:
    """The settings that a command's `--config` leads to. Raises ConfigError."""
    return load_settings(find_config(args.config, os.environ))


def stop_on_signals() -> asyncio.Event:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop_once() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop_once)
    return stop


def init(args: Namespace) -> int:
    """Write a commented configuration."""
    path = Path(args.config or FILE_NAME)
    if path.exists() and not args.force:
        raise ConfigError(f"{path} exists: choose another --config, or overwrite it with --force")
    path.write_text(starter_config("real" if args.real else "mock"), "utf-8")
    print(f"wrote {path}; set KIWOOM_APP_KEY and KIWOOM_SECRET_KEY, then: sectorwire check")
    return 0


async def check(args: Namespace) -> int:
    """Prove that the plan fits; with `--online` sign in and ask."""
    settings = settings_of(args)
    jobs = settings.jobs()
    plan = fitting(settings, jobs)
    console = stdout()
    console.print(_plan_table(plan))
    if args.online:
        await _ask_everything(settings, jobs, console)
    ending = settings.schedule.calendar.late_opens_end(Clock().now().astimezone(KST).date())
    if ending:
        console.print(f"[yellow]warning[/]: {ending}")
    console.print(f"[green]well[/]: {len(jobs)} targets against {settings.kiwoom.url}")
    return 0


def fitting(settings: Settings, jobs: Sequence[Job]) -> list[Share]:
    """The plan's share of every limit. Raises ConfigError with the arithmetic where it does not fit."""
    plan = shares([(job.target, job.every_s) for job in jobs], settings.kiwoom.limits)
    for share in plan:
        if not share.fits:
            raise ConfigError(f"the plan does not fit: {share.remedy()}")
    return plan


def _plan_table(plan: Iterable[Share]) -> Table:
    grid = Table(box=None, title="plan", title_justify="left")
    for name in ("limit", "targets", "requests a round", "needed/s", "allowed/s", "use", "oldest row"):
        grid.add_column(name, justify="left" if name == "limit" else "right")
    for share in plan:
        grid.add_row(
            share.name,
            str(share.targets),
            str(share.requests_per_round),
            f"{share.needed_per_s:.2f}",
            f"{share.allowed_per_s:.2f}",
            f"{share.used_pct:.0f} %",
            f"{share.worst_staleness_s:.0f} s",
        )
    return grid


async def _ask_everything(settings: Settings, jobs: Sequence[Job], console: Console) -> None:
    """Sign in, and ask one target of each TR."""
    first = {job.target.tr.code: job for job in reversed(jobs)}
    secrets = read_secrets(os.environ)
    async with open_bus(settings) as bus, open_desk(settings, secrets, bus, one_by_one=True) as desk:
        console.print(bus.told)
        await desk.broker.sign_in()
        console.print(f"signed in at {settings.kiwoom.url}")
        for job in first.values():
            _, answer, _ = await once.ask_once(job, desk)
            console.print(f"  {job.target} {job.target.label}: {len(answer.pages)} pages, readable")


async def poll(args: Namespace) -> int:
    """Poll until Ctrl-C or SIGTERM."""
    settings, stop = settings_of(args), stop_on_signals()
    jobs, secrets = settings.jobs(), read_secrets(os.environ)
    fitting(settings, jobs)
    async with open_bus(settings) as bus, open_desk(settings, secrets, bus) as desk:
        await Poller(jobs, desk, upkeep_of(settings)).run(stop)
    return 0


def upkeep_of(settings: Settings) -> Upkeep:
    """What the poller keeps of the streams."""
    return Upkeep(settings.bus.retention, settings.bus.max_bytes)


async def ask(args: Namespace) -> int:
    """One poll, printed; nothing is written but the token that all processes share."""
    values: dict[str, object] = {}
    for pair in args.values:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadRequest(f"{pair!r} is not of the form element=value, such as inds_cd=001")
        values[name] = value
    target = tr_named(args.tr).target(values)
    settings, secrets = settings_of(args), read_secrets(os.environ)
    every_s = next((job.every_s for line in settings.poll for job in line.jobs() if job.target == target), 60.0)
    async with open_bus(settings) as bus, open_desk(settings, secrets, bus, one_by_one=True) as desk:
        known, answer, commit = await once.ask_once(Job(target, every_s), desk)
    console = stdout()
    if args.raw:
        print(once.raw(answer))
    elif args.explain:
        once.explain(console, target, known, answer, commit)
    else:
        console.print(once.rows_table(target, answer))
    return 0


async def show_status(args: Namespace) -> int:
    """Targets with their freshness; `--check` for health checks, `--watch` live."""
    settings = settings_of(args)
    jobs, clock, calendar = settings.jobs(), Clock(), settings.schedule.calendar
    timing = Timing(calendar, None if settings.schedule.sessions == "always" else calendar)
    async with open_bus(settings) as bus:

        async def read() -> status.Status:
            try:
                return await status.read_status(bus.redis, settings.bus.prefix, jobs, timing, clock.now(), bus.told)
            except (RedisError, OSError) as error:
                raise StoreDown(f"the server does not answer any more: {error}") from error

        found = await read()
        if args.check:
            print(found.verdict())
            return 0 if found.well else 1
        if args.json:
            print(json.dumps(found.as_json(), ensure_ascii=False))
            return 0
        if not args.watch:
            stdout().print(status.table(found, clock.now()))
            return 0
        stop = stop_on_signals()
        with Live(status.table(found, clock.now()), auto_refresh=False) as live:
            while not await clock.wait(stop, WATCH_EVERY_S):
                live.update(status.table(await read(), clock.now()), refresh=True)
    return 0


def catalogue(args: Namespace) -> int:
    """What each TR holds; with a word, the fields that go by it."""
    known = described()
    if args.json:
        print(json.dumps([listing.as_json(tr) for tr in known.values()], ensure_ascii=False, indent=2))
        return 0
    console = stdout()
    if args.word is None:
        listing.print_catalogue(console, known)
        return 0
    found = list(find(known, args.word))
    if args.word in known:
        listing.print_catalogue(console, {args.word: known[args.word]})
    elif found:
        console.print(listing.fields_table((f"{tr.tr}.{table.table}", info) for tr, table, info in found))
    else:
        raise BadRequest(f"no field goes by {args.word!r}: `sectorwire catalogue` lists them all")
    return 0


def schema(args: Namespace) -> int:
    """The contract, as an AsyncAPI document."""
    prefix = args.prefix
    document = asyncapi(described(), prefix, version("sectorwire"))
    print(json.dumps(document, ensure_ascii=False, indent=2))
    return 0


async def simulate(args: Namespace) -> int:
    """Serve the made-up market until Ctrl-C."""
    try:
        from poller.simulator.clock import MarketClock, default_start  # noqa: PLC0415 -- an optional extra
        from poller.simulator.server import SimulatorSettings, serving  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("the simulator is an extra: pip install 'sectorwire[simulator]'") from error
    now = datetime.now(UTC)
    start = _market_time(args.start) if args.start else default_start(now, Calendar())
    clock = MarketClock(start, now, args.speed, skip_closed=args.skip_closed)
    settings = SimulatorSettings(
        seed=args.seed,
        clock=clock,
        faults=args.faults,
        limit_per_s=args.limit,
        mock=args.mock,
        keys=_key_pair() if args.check_keys else None,
        ledger=args.ledger,
    )
    stop = stop_on_signals()
    try:
        async with serving(settings, port=args.port) as (simulator, base_url):
            print(f"serving {base_url}, market time {clock.at(now):%Y-%m-%d %H:%M:%S}", flush=True)
            await stop.wait()
    except OSError as error:
        raise OSError(f"port {args.port} cannot be used ({error.strerror}): choose another with --port") from error
    faults = sum(simulator.faults_served.values())
    print(f"{simulator.requests} requests, {simulator.refusals} refused, {faults} faults", file=sys.stderr)
    return 0


def _key_pair() -> tuple[str, str]:
    secrets = read_secrets(os.environ)
    return secrets.app_key.get_secret_value(), secrets.secret_key.get_secret_value()


def _market_time(text: str) -> datetime:
    try:
        return datetime.strptime(text, MARKET_TIME).replace(tzinfo=KST)
    except ValueError as error:
        raise ConfigError(f"--start {text} is not a time such as 2026-11-23T10:00") from error
