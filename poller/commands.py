"""The poller's commands, one function each: read settings, do it, print for a person or as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.live import Live
from rich.table import Table

from poller import doctor, listing, once, sectors, status
from poller.asyncapi import asyncapi
from poller.budget import Share, shares
from poller.catalogue import described, find, tr_named
from poller.clock import Clock
from poller.contract import Entry
from poller.grid import Job, Timing
from poller.poll import Desk
from poller.quarantine import Quarantine, one_of, quarantine_table
from poller.recording import Recorder, read_recording, recorded_days
from poller.reload import Plan, Reloader
from poller.replay import commits_of, entries_of
from poller.routes import spread
from poller.schedule import Poller
from poller.sector_list import SECTOR_LIST, SectorKeeper
from poller.service import open_bus, open_desk
from poller.session import KST, Calendar
from poller.settings import FILE_NAME, ConfigError, Settings, find_config, load_settings, read_keys, read_secrets
from poller.starter import starter_config
from poller.store import StoreDown
from poller.trs.base import BadRequest
from poller.upkeep import Upkeep

WATCH_EVERY_S = 1.0
BESIDE_S = 1.0
"""What runs beside the polling may finish within this after a stop; a list or a plan half-read is read again."""

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
    _print_groups(settings, console)
    if args.online:
        await _ask_everything(settings, jobs, console)
    ending = settings.schedule.calendar.late_opens_end(Clock().now().astimezone(KST).date())
    if ending:
        console.print(f"[yellow]warning[/]: {ending}")
    console.print(f"[green]well[/]: {len(jobs)} targets against {settings.kiwoom.url}")
    return 0


def fitting(settings: Settings, jobs: Sequence[Job]) -> list[Share]:
    """The plan's share of every limit of every key. Raises ConfigError with the arithmetic where it does not fit."""
    plan = shares_of(settings, jobs)
    for share in plan:
        if not share.fits:
            raise ConfigError(f"the plan does not fit: {share.remedy()}")
    return plan


def shares_of(settings: Settings, jobs: Sequence[Job]) -> list[Share]:
    """The plan's share of every limit of every key, whether it fits or not."""
    limits, names = settings.kiwoom.limits, settings.kiwoom.key_names
    if len(names) == 1 or "*" in limits:
        plan = shares([(job.target, job.every_s) for job in jobs], limits)
    else:
        homes, plan = spread(jobs, names), []
        for name in names:
            mine = shares([(job.target, job.every_s) for job in jobs if homes[job.target] == name], limits)
            plan += [replace(share, name=f"{share.name} with key {name}") for share in mine]
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


def _print_groups(settings: Settings, console: Console) -> None:
    """How many targets each group of sectors gave, and by which list."""
    read_at = sectors.listed().read_at
    by = f"as the broker listed them on {read_at.astimezone(KST):%Y-%m-%d}" if read_at else "by the built-in list"
    for (tr, group), targets in settings.groups().items():
        console.print(f"{tr} {group}: {targets} targets, {by}")


async def _ask_everything(settings: Settings, jobs: Sequence[Job], console: Console) -> None:
    """Sign in, and ask one target of each TR."""
    first = {job.target.tr.code: job for job in reversed(jobs)}
    keys = read_keys(settings.kiwoom, os.environ)
    async with open_bus(settings) as bus, open_desk(settings, keys, bus, one_by_one=True) as desk:
        console.print(bus.told)
        await desk.broker.sign_in()
        console.print(f"signed in at {settings.kiwoom.url}")
        for job in first.values():
            _, answer, _ = await once.ask_once(job, desk)
            console.print(f"  {job.target} {job.target.label}: {len(answer.pages)} pages, readable")


async def poll(args: Namespace) -> int:
    """Poll until Ctrl-C or SIGTERM."""
    path, stop = find_config(args.config, os.environ), stop_on_signals()
    reloader = Reloader(path, partial(plan_of, path))
    reload_on_hangup(reloader)
    settings = reloader.plan.settings
    keys = read_keys(settings.kiwoom, os.environ)
    async with open_bus(settings) as bus, open_desk(settings, keys, bus) as desk:
        with recording(args.record, desk):
            await poll_by(reloader, desk, stop)
    return 0


def plan_of(path: Path) -> Plan:
    """The plan in a configuration, proved to fit. Raises ConfigError or BadRequest."""
    settings = load_settings(path)
    jobs = settings.jobs()
    fitting(settings, jobs)
    return Plan(settings, tuple(jobs))


def reload_on_hangup(reloader: Reloader) -> None:
    """Let SIGHUP reload the configuration instead of ending the process."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)


async def poll_by(reloader: Reloader, desk: Desk, stop: asyncio.Event) -> None:
    """Poll until `stop`, by whatever plan the configuration holds and whatever sectors the broker lists."""
    settings, over = reloader.plan.settings, asyncio.Event()
    poller = Poller(reloader.plan.jobs, desk, upkeep_of(settings))
    keeper = SectorKeeper(desk.broker, settings.data.dir, desk.clock, settings.schedule.calendar, poller.hear_sectors)
    reload_keys = getattr(desk.broker, "reload_keys", lambda: None)
    beside = [
        asyncio.create_task(reloader.run(poller, desk.clock, over, reload_keys)),
        asyncio.create_task(keeper.run(over)),
    ]
    try:
        await poller.run(stop)
    finally:
        over.set()
        _, late = await asyncio.wait(beside, timeout=BESIDE_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


@contextmanager
def recording(directory: Path | None, desk: Desk) -> Iterator[None]:
    """Keep every answer in this directory, if one is given. Raises ConfigError where nothing can be written there."""
    if directory is None:
        yield
        return
    with suppress(OSError):  # a disk that is full now may not be later; what is wrong for good, the next line finds
        directory.mkdir(parents=True, exist_ok=True)
    if directory.exists() and not (directory.is_dir() and os.access(directory, os.W_OK)):
        raise ConfigError(f"--record {directory} is no directory that can be written to: choose another")
    with Recorder(directory, desk.clock) as recorder:
        # the list of sectors is no report: nothing could be decided again from it
        desk.broker.record = lambda heard: None if heard.target.tr is SECTOR_LIST else recorder.keep(heard)
        yield


def replayed(args: Namespace) -> Iterator[list[Entry]]:
    """What a poller would have published from a recording, commit by commit. Raises ConfigError."""
    named = args.config or os.environ.get("SECTORWIRE_CONFIG") or Path(FILE_NAME).exists()
    settings = settings_of(args) if named else Settings()
    calendar = settings.schedule.calendar
    timing = Timing(calendar, None if settings.schedule.sessions == "always" else calendar)
    jobs = {job.target: job for line in settings.poll for job in line.jobs()}
    return entries_of(commits_of(read_recording(args.dir, args.day), timing, jobs))


def quarantine(args: Namespace) -> int:
    """Answers that could not be used: which there are, what is in one, and whether they can be read now."""
    stored = Quarantine(settings_of(args).data.dir / "quarantine").kept()
    if args.action == "list":
        if args.json:
            print(json.dumps([one.summary() for one in stored], ensure_ascii=False))
        else:
            stdout().print(quarantine_table(stored) if stored else "nothing is in quarantine")
        return 0
    if args.action == "show":
        print(one_of(stored, args.id).described())
        return 0
    failed = 0
    for one in [one_of(stored, name) for name in args.ids] if args.ids else stored:
        why = one.still_bad()
        if why is None:
            one.path.unlink(missing_ok=True)
        print(f"{one.id}  {one.target}  {'readable now: removed' if why is None else why}")
        failed += why is not None
    return 1 if failed else 0


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
    settings = settings_of(args)
    keys = read_keys(settings.kiwoom, os.environ)
    every_s = next((job.every_s for line in settings.poll for job in line.jobs() if job.target == target), 60.0)
    async with open_bus(settings) as bus, open_desk(settings, keys, bus, one_by_one=True) as desk:
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
                return await status.read_status(
                    bus.redis, settings.bus.prefix, jobs, timing, clock.now(), bus.told, settings.bus.retention
                )
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


async def diagnose(
    args: Namespace,
    roles: doctor.Roles,
    archive: Path | None,
    more: Callable[[Redis, str], Awaitable[Sequence[doctor.Finding]]],
) -> int:
    """Look for what usually goes wrong, and print each finding with its remedy; 1 if one is serious.

    `more` finds what is beyond polling, given the server and the prefix of the keys.
    """
    settings = settings_of(args)
    jobs = settings.jobs()
    plan = shares_of(settings, jobs)
    async with open_bus(settings, unfit_too=True) as bus:
        try:
            facts = await doctor.gather(settings, jobs, plan, bus, Clock(), roles=roles, archive=archive)
            found = doctor.worst_first([*doctor.findings(facts), *await more(bus.redis, settings.bus.prefix)])
        except (RedisError, OSError) as error:
            raise StoreDown(f"the server does not answer any more: {error}") from error
    serious = any(finding.severity == "serious" for finding in found)
    if args.json:
        told = {"well": not serious, "server": bus.told, "findings": [finding.as_json() for finding in found]}
        print(json.dumps(told, ensure_ascii=False))
        return int(serious)
    print(bus.told)
    for finding in found:
        print(finding)
    if not serious:
        counts = Counter(finding.severity for finding in found)
        words = " and ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items())
        print(f"well: {words}, nothing serious" if found else "well: nothing found")
    return int(serious)


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
    """Serve the made-up market, or a recorded day, until Ctrl-C."""
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise ConfigError("the simulator is an extra: pip install 'sectorwire[simulator]'")
    try:
        return await (_serve_recording(args) if args.replay else _serve_market(args))
    except OSError as error:
        if error.filename is not None:  # the ledger's trouble
            raise
        raise OSError(f"port {args.port} cannot be used ({error.strerror}): choose another with --port") from error


async def _serve_market(args: Namespace) -> int:
    from poller.simulator.clock import MarketClock, default_start  # noqa: PLC0415 -- an optional extra
    from poller.simulator.server import SimulatorSettings, serving  # noqa: PLC0415

    now = Clock().now()
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
    async with serving(settings, port=args.port) as (simulator, base_url):
        print(f"serving {base_url}, market time {clock.at(now):%Y-%m-%d %H:%M:%S}", flush=True)
        await stop.wait()
    faults = sum(simulator.faults_served.values())
    print(f"{simulator.requests} requests, {simulator.refusals} refused, {faults} faults", file=sys.stderr)
    return 0


async def _serve_recording(args: Namespace) -> int:
    from poller.simulator.clock import MarketClock  # noqa: PLC0415 -- an optional extra
    from poller.simulator.replay import ReplaySimulator, Tape  # noqa: PLC0415
    from poller.simulator.server import SimulatorSettings, serving  # noqa: PLC0415

    if args.faults or args.skip_closed:
        raise ConfigError("--faults and --skip-closed belong to the made-up market: leave them out with --replay")
    start = _market_time(args.start) if args.start else None
    tape = Tape(read_recording(args.replay, start.date() if start else recorded_days(args.replay)[0]))
    clock = MarketClock(start or tape.begins_at, Clock().now(), args.speed)
    keys = _key_pair() if args.check_keys else None
    settings = SimulatorSettings(clock=clock, limit_per_s=args.limit, mock=args.mock, keys=keys, ledger=args.ledger)
    stop = stop_on_signals()
    async with serving(settings, port=args.port, kind=partial(ReplaySimulator, tape)) as (simulator, base_url):
        print(f"serving {base_url}, market time {simulator.market_now():%Y-%m-%d %H:%M:%S}", flush=True)
        while not await Clock().wait(stop, WATCH_EVERY_S):
            if await asyncio.to_thread(tape.over, simulator.market_now()):
                print(f"the recording is over at {tape.ends_at:%H:%M:%S}: its last answers are served on", flush=True)
                await stop.wait()
    print(f"{simulator.requests} requests, {simulator.refusals} refused", file=sys.stderr)
    return 0


def _key_pair() -> tuple[str, str]:
    secrets = read_secrets(os.environ)
    return secrets.app_key.get_secret_value(), secrets.secret_key.get_secret_value()


def _market_time(text: str) -> datetime:
    try:
        return datetime.strptime(text, MARKET_TIME).replace(tzinfo=KST)
    except ValueError as error:
        raise ConfigError(f"--start {text} is not a time such as 2026-11-23T10:00") from error
