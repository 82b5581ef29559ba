"""The server's file is cut anywhere, as a power cut does: what comes back is whole, and polling goes on from it.

One life goes on through all cuts. A real poller asks the simulator and commits into a real server; the server is
killed, its last append-only file loses its end, and it starts again on the rest. What stands there then is judged by
`checker.py`, which shares no code with the product. Half of the time the poller is the same process and knows what it
had seen confirmed; otherwise it is a new one that remembers nothing. Only time is made up: it moves when all wait.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from structlog.testing import capture_logs

from consumers.alert.rules import Rule, RuleSettings, compile_rules, steps
from consumers.archive.questions import run_sql, verify
from consumers.archive.settings import ArchiveSettings
from consumers.service import Desk as Consumers
from consumers.service import roles_of
from poller.catalogue import described, tr_named
from poller.clock import Clock
from poller.contract import decode
from poller.grid import Job, Timing
from poller.poll import Desk
from poller.quarantine import Quarantine
from poller.schedule import Poller
from poller.session import KST, Calendar
from poller.simulator.clock import MarketClock
from poller.simulator.ledger import Ledger
from poller.simulator.server import Simulator, SimulatorSettings
from poller.store import Store, connect, this_machine
from poller.upkeep import Upkeep
from tests import checker
from tests.conftest import broker_for
from tests.inprocess import _received
from tests.servers import RealServer

EVERY_S = 10.0
START = datetime(2026, 11, 23, 9, 5, tzinfo=KST)
KEEP_ALL = Upkeep(10 * 365 * 86_400, 10**12)
JOBS = [
    Job(tr_named(tr).target(request), EVERY_S)
    for tr, request in (
        ("ka20003", {"inds_cd": "001"}),
        ("ka20001", {"inds_cd": "001", "mrkt_tp": "0"}),
        ("ka20009", {"inds_cd": "001", "mrkt_tp": "0"}),
        ("ka10010", {"stk_cd": "005930"}),
        ("ka10010", {"stk_cd": "005930_AL"}),
    )
]
MILLISECOND = timedelta(milliseconds=1)
TRS = sorted({job.target.tr.code for job in JOBS})


class StepClock(Clock):
    """Time that stands still while anybody works, and goes to the next moment that somebody waits for."""

    def __init__(self) -> None:
        self.moment = START
        self._sleepers: list[tuple[datetime, asyncio.Event]] = []

    def now(self) -> datetime:
        return self.moment

    def monotonic_s(self) -> float:
        return self.moment.timestamp()

    async def wait(self, event: asyncio.Event, timeout_s: float) -> bool:
        if timeout_s > 0 and not event.is_set():
            sleeper = self.moment + timedelta(seconds=timeout_s), asyncio.Event()
            waits = [asyncio.ensure_future(one.wait()) for one in (event, sleeper[1])]
            self._sleepers.append(sleeper)
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._sleepers.remove(sleeper)
                for wait in waits:
                    wait.cancel()
        return event.is_set()

    @property
    def waiting(self) -> int:
        """How many wait for a later moment."""
        return sum(not due.is_set() for _, due in self._sleepers)

    def go_on(self) -> None:
        """Let the next moment come that somebody waits for."""
        self.skip((min(moment for moment, _ in self._sleepers) - self.moment).total_seconds())

    def skip(self, seconds: float) -> None:
        """Let so much time pass."""
        self.moment += timedelta(seconds=max(seconds, 0.001))
        for moment, due in self._sleepers:
            if moment <= self.moment:
                due.set()


class Process:
    """One poller process: what it remembers ends with it. Its lease names a process of this machine that is gone."""

    def __init__(self, life: Life, number: int) -> None:
        self._life, self._redis, self._stop = life, connect(life.server.url), asyncio.Event()
        self.store = Store(self._redis, "test")
        self.store.nonce = f"{this_machine()}.{nobodys_pid()}.{number:08x}"
        self._running = asyncio.create_task(self._run())
        self.poller: Poller | None = None

    async def _run(self) -> None:
        life = self._life
        async with broker_for(self._redis, cast(Any, life.play), life.clock) as broker:
            quarantine = Quarantine(life.path / "quarantine")
            desk = Desk(broker, self.store, Timing(Calendar(), None), life.clock, quarantine)
            self.poller = Poller(JOBS, desk, KEEP_ALL, random.Random(life.seed))
            await self.poller.run(self._stop)

    @property
    def waits(self) -> bool:
        """Whether it has nothing to do before a later moment."""
        if self._running.done():
            self._running.result()
        reigns = self.poller is not None and self.poller._start is not None
        return self._life.clock.waiting == (len(JOBS) + 2 if reigns else 1)  # two more: the lease and the trimming

    async def end(self) -> None:
        """Kill it wherever it is: every task, and again, since the client may swallow a cancellation (redis-py 8.1)."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)
        await self._redis.aclose()


@cache
def nobodys_pid() -> int:
    """The id of a process that has ended."""
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


class Life:
    """A server that is cut again and again, and who polls into it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed, self.rng = path, seed, random.Random(seed)
        (path / "server").mkdir()
        self.server = RealServer(path / "server")
        self.clock = StepClock()
        market = MarketClock(START, START)
        self._simulator = Simulator(
            SimulatorSettings(seed=seed, clock=market, limit_per_s=10**6), Ledger(None), self.clock
        )
        self._processes = 0
        self.told: dict[tuple[str, str, str], str] = {}
        """Every id there ever was, by TR, epoch and `seq`."""
        self.seen: Counter[str] = Counter()
        """What happened, for people."""

    async def play(self, request: httpx.Request) -> httpx.Response:
        """The broker's answer."""
        return _received(await self._simulator.call(request.url.path, request.headers, request.content), request)

    def process(self) -> Process:
        """Another poller; a process takes a moment to start."""
        self._processes += 1
        self.clock.skip(0.3)
        return Process(self, self._processes)

    async def rounds(self, process: Process, number: int) -> None:
        """Let every target be asked so often."""
        ends = self.clock.moment + timedelta(seconds=number * EVERY_S)
        async with asyncio.timeout(30):
            while True:
                if not process.waits:
                    await asyncio.sleep(0)
                elif self.clock.moment >= ends:
                    return
                else:
                    self.clock.go_on()

    async def into_a_poll(self, process: Process) -> None:
        """Let the next polls begin, and stop in the middle of one."""
        while process.waits:
            self.clock.go_on()
            await asyncio.sleep(0)
        for _ in range(self.rng.randrange(60)):
            await asyncio.sleep(0)

    async def write_anew(self) -> None:
        """Let the server put all it holds into a new base file; what comes goes into another file, at once."""
        server = checker.connect(self.server.url)
        before = last_file(self.server.directory)
        server.bgrewriteaof()
        async with asyncio.timeout(10):
            while last_file(self.server.directory) == before:  # noqa: ASYNC110 -- the server has no event for it
                await asyncio.sleep(0.002)
        server.close()

    def cut(self) -> str:
        """Kill the server, cut its last file somewhere, and start it again; what was done, for people."""
        self.server.kill()
        file = last_file(self.server.directory)
        written = file.read_bytes()
        byte, place = self._somewhere(written)
        self.seen[place] += 1
        os.truncate(file, byte)
        self.server.start()
        return f"byte {byte:,} of {len(written):,} of {file.name}, {place}"

    def _somewhere(self, written: bytes) -> tuple[int, str]:
        """Where to cut: at any byte, mostly; else between two commands, at the start or at the end."""
        borders = commands(written)
        ways = ("start", "border", "end", "any")
        number = self.seen["cuts"]
        at = ways[number] if number < len(ways) else self.rng.choices(ways, (1, 4, 1, 14))[0]
        outside = [end for end, open_ in borders if not open_]
        byte = {
            "any": self.rng.randint(0, len(written)),
            "border": self.rng.choice(outside or [0]),
            "start": 0,
            "end": len(written),
        }[at]
        return byte, place_of(byte, borders)

    def polled_since(self, moment: datetime) -> None:
        """Every target had a good poll after that moment."""
        server = checker.connect(self.server.url)
        for job in JOBS:
            seen = server.hget(f"test:{{{job.target.tr.code}}}:state:{job.target.query}", "last_good")
            assert seen, f"{job.target} was not polled after the loss"
            assert datetime.fromisoformat(seen) >= moment - MILLISECOND, f"{job.target} was not polled after the loss"
        server.close()

    def whole(self) -> dict[str, list[checker.Entry]]:
        """The entries of each TR, after a check of all that stands in the server."""
        server, entries = checker.connect(self.server.url), {}
        try:
            for tr in TRS:
                entries[tr] = read(server, tr)
                checker.check_order(entries[tr], tr)
                seq = int(server.hget(f"test:{{{tr}}}:meta", "seq") or 0)
                assert seq == len(entries[tr]), f"{tr}: meta says seq {seq}, the stream has {len(entries[tr])}"
                self._check_targets(server, tr, entries[tr])
        finally:
            server.close()
        for tr, stream in entries.items():
            for entry in stream:
                place = tr, str(entry.epoch), entry.fields["seq"]
                assert self.told.setdefault(place, entry.fields["id"]) == entry.fields["id"], f"{place} came twice"
        return entries

    def _check_targets(self, server: Any, tr: str, entries: list[checker.Entry]) -> None:
        """Of each target: the stream folded is the snapshot, and both are of the version that the state names."""
        folded, versions = checker.fold(entries), {entry.target: entry.version for entry in entries}
        for target in {*folded, *(str(job.target) for job in JOBS if job.target.tr.code == tr)}:
            query = target.partition("?")[2]
            snapshot = server.hgetall(f"test:{{{tr}}}:snapshot:{query}")
            version = server.hget(f"test:{{{tr}}}:state:{query}", "version") or "0"
            assert folded.get(target, {}) == snapshot, f"{target}: the folded stream is not the snapshot"
            assert version == str(versions.get(target, 0)), f"{target}: the state has another version than the stream"


def last_file(directory: Path) -> Path:
    """The file that the server was writing, as its manifest names it."""
    manifest = directory / "appendonlydir" / "appendonly.aof.manifest"
    names = re.findall(r"^file (\S+) seq \d+ type i$", manifest.read_text("utf-8"), re.MULTILINE)
    return manifest.parent / str(names[-1])


PLACES = ("at the start", "at the end", "between two commands", "in a command", "in a transaction")


def place_of(byte: int, borders: list[tuple[int, bool]]) -> str:
    """What a cut falls into, where the commands of a file end as given."""
    if byte == 0:
        return PLACES[0]
    if borders and byte == borders[-1][0]:
        return PLACES[1]
    end, in_transaction = [border for border in [(0, False), *borders] if border[0] <= byte][-1]
    return PLACES[4] if in_transaction else PLACES[2] if end == byte else PLACES[3]


def commands(written: bytes) -> list[tuple[int, bool]]:
    """Where each command of a file ends, and whether a transaction is open there; a kill may leave half a command."""
    at, in_transaction, borders = 0, False, []
    with suppress(ValueError, IndexError):
        while at < len(written):
            at, name = command_at(written, at)
            in_transaction = name == b"MULTI" or (in_transaction and name != b"EXEC")
            borders.append((at, in_transaction))
    return borders


def command_at(written: bytes, at: int) -> tuple[int, bytes]:
    """Where the command that begins here ends, and its name: `*2 $6 SELECT $1 0`, a line end after each.

    Raises ValueError or IndexError where the file ends before it does.
    """

    def number() -> int:
        nonlocal at
        end = written.index(b"\r\n", at)
        text, at = written[at + 1 : end], end + 2
        return int(text)

    words = []
    for _ in range(number()):
        size = number()
        words.append(written[at : at + size])
        at += size + 2
    if at > len(written):
        raise IndexError
    return at, words[0].upper()


def next_day(moment: datetime) -> datetime:
    """The same report an hour after the next opening."""
    return datetime.combine(Calendar().next_trading_day(moment.date()), START.timetz())


_read: dict[tuple[str, ...], checker.Entry] = {}


def read(server: Any, tr: str) -> list[checker.Entry]:
    """The stream of a TR; texts that were taken apart before are not again."""
    entries = []
    for _, fields in server.xrange(f"test:{{{tr}}}:changes"):
        texts = tuple(fields.values())
        if texts not in _read:
            _read[texts] = checker._entry(fields)
        entries.append(_read[texts])
    return entries


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is back before anybody can ask it again."""
    monkeypatch.setattr("poller.store.RETRY_S", (0.0, 0.001, 0.01, 0.1, 1.0))
    monkeypatch.setattr("consumers.group.BLOCK_MS", 50)
    monkeypatch.setattr("consumers.group.RETRY_S", 0.02)


async def some_life(life: Life, process: Process) -> None:
    """What happens between two cuts: polls; and now and then a gap, a new day, or the file is written anew."""
    happens = ("polls", "gap", "polls", "new day", "polls", "file written anew")[life.seen["cuts"] % 6]
    life.seen[happens] += 1
    if happens == "gap":
        life.clock.skip(90)
    elif happens == "new day":
        life.clock.skip((next_day(life.clock.moment) - life.clock.moment).total_seconds())
    elif happens == "file written anew":  # a cut loses nothing of what is in the base from now on
        await life.write_anew()
    await life.rounds(process, life.rng.choice((0, 1, 2)))


async def lose(life: Life, process: Process) -> tuple[Process, str]:
    """Cut the file, and see that the rest is whole, that it is polled on, and that what follows is whole as well."""
    confirmed = life.whole()
    if life.rng.random() < 0.3:
        life.seen["in mid-poll"] += 1
        await life.into_a_poll(process)
    done, moment = life.cut(), life.clock.moment
    kept = life.whole()
    remembers = life.seen["cuts"] % 2 == 0
    if not remembers:
        await process.end()
        process = life.process()
    await life.rounds(process, 1)
    new = {tr: entries[len(kept[tr]) :] for tr, entries in life.whole().items()}
    life.polled_since(moment)
    for job in JOBS:
        lost, left, came = (of(job, entries) for entries in (confirmed, kept, new))
        if remembers and len(left) < len(lost):
            expected = "rollback" if left else "first"
            assert next((one.data["reason"] for one in came if one.type == "reset"), None) == expected, job.target
            life.seen[f"reset: {expected}"] += 1
        epochs = {one.epoch for entries in (lost, left) for one in entries}
        assert not epochs & {one.epoch for one in came}, f"{job.target}: an epoch that was before the loss goes on"
    return process, f"{done}, {'the same' if remembers else 'another'} poller"


def of(job: Job, entries: dict[str, list[checker.Entry]]) -> list[checker.Entry]:
    return [entry for entry in entries[job.target.tr.code] if entry.target == str(job.target)]


async def cut_again_and_again(path: Path, seed: int, cuts: int) -> Life:
    life, done = Life(path, seed), "nothing yet"
    with life.server, capture_logs() as logs:
        process = life.process()
        try:
            await life.rounds(process, 2)
            for _ in range(cuts):
                process, done = await lose(life, process)
                life.seen["cuts"] += 1
                await some_life(life, process)
        except BaseException:
            say(f"seed {seed}, cut {life.seen['cuts'] + 1} of {cuts}; the one before: {done}")
            say("\n".join(map(str, logs[-30:])))
            raise
        finally:
            await process.end()
    say(f"seed {seed}: {dict(sorted(life.seen.items()))}")
    return life


def say(text: str) -> None:
    print(text)  # noqa: T201 -- pytest shows it with -s, or when the test fails


async def test_wherever_the_file_is_cut_the_folded_stream_is_the_snapshot_and_polling_goes_on(tmp_path: Path):
    life = await cut_again_and_again(tmp_path, seed=1, cuts=25)

    assert life.seen.keys() >= {"reset: rollback", "reset: first", "gap", "new day", "file written anew"}
    assert life.seen.keys() >= set(PLACES) - {"in a command"}, "most commands are in transactions"


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 12))
async def test_the_same_for_five_hundred_cuts(tmp_path: Path, seed: int):
    await cut_again_and_again(tmp_path, seed, cuts=50)


READ = {tr: described()[tr] for tr in ("ka20003", "ka10010")}
"""What the consumers read."""


def risers() -> list[Rule]:
    """Fires for each index that rises above yesterday's close."""
    rule = {"name": "rises", "tr": "ka20003", "when": {"kind": "compare", "field": "change_pct", "op": ">", "value": 0}}
    return compile_rules([RuleSettings.model_validate(rule)], described(), [])


class Readers:
    """Archive and alerts of one process, as `sectorwire run` has them."""

    def __init__(self, life: Life) -> None:
        self.archive, self._redis, self._stop = life.path / "archive", connect(life.server.url), asyncio.Event()
        self.client: Any = self._redis
        desk = Consumers(risers(), [], ArchiveSettings(path=self.archive, flush=0))
        self._task = asyncio.create_task(roles_of(desk, self._redis, "test", READ).run(self._stop))

    async def stop(self) -> None:
        self._stop.set()
        await self._task
        await self._redis.aclose()

    async def have_read_everything(self) -> None:
        """Return when both have done with all that the streams hold now."""
        async with asyncio.timeout(20):
            for tr, group in (*((tr, "archive") for tr in READ), ("ka20003", "alert")):
                while await self._position(tr, group) != await self._end(tr):  # noqa: ASYNC110 -- no event for it
                    await asyncio.sleep(0.01)

    async def _position(self, tr: str, group: str) -> str:
        if group == "alert":
            return str(await self.client.hget(f"test:{{{tr}}}:alerting", "position"))
        return str(await self.client.get(f"test:{{{tr}}}:position:{group}"))

    async def _end(self, tr: str) -> str:
        return str((await self.client.xinfo_stream(f"test:{{{tr}}}:changes"))["last-generated-id"])

    async def decisions(self) -> list[str]:
        """The ids of what was decided, as the server has them."""
        return [one["id"] for _, one in await self.client.xrange("test:{ka20003}:alerts")]

    async def called_for(self) -> list[str]:
        """The ids of what the stream calls for."""
        entries = [decode(one) for _, one in await self.client.xrange("test:{ka20003}:changes")]
        return [one.id for one in steps(risers(), {}, entries, START)[1]]

    def archived(self) -> list[str]:
        """The ids of all entries in the archive."""
        tables = "".join(
            f" UNION ALL SELECT event_id FROM {tr}_{table.table}"  # noqa: S608 -- our own names
            for tr in READ
            for table in READ[tr].tables
        )
        rows = run_sql(self.archive, f"SELECT event_id FROM notices WHERE op <> 'fork'{tables}").rows  # noqa: S608
        return sorted(event_id for (event_id,) in rows)


async def test_archive_and_alerts_go_on_after_every_cut(tmp_path: Path):
    """Both histories are archived, each entry once; decided is what the server's own history calls for, and once."""
    life, there_were, forks = Life(tmp_path, seed=1), set[str](), 0
    with life.server, capture_logs() as logs:
        process, readers = life.process(), Readers(life)
        await life.rounds(process, 3)
        for _ in range(4):
            await readers.have_read_everything()
            before = life.whole()
            there_were |= ids_of(before)
            life.cut()
            kept = life.whole()
            forks += sum(len(kept[tr]) < len(before[tr]) for tr in READ)
            life.seen["cuts"] += 1
            await life.rounds(process, 3)
            await readers.have_read_everything()
            assert sorted(await readers.decisions()) == sorted(await readers.called_for())
        there_were |= ids_of(life.whole())
        decided, wrong = await readers.decisions(), await verify(readers.client, "test", readers.archive, READ)
        await readers.stop()
        await process.end()

    assert readers.archived() == sorted(there_were)
    assert decided, "no index has crossed its close"
    assert wrong == []
    assert [log["event"] for log in logs].count("archive.forked") == forks > 0


def ids_of(entries: dict[str, list[checker.Entry]]) -> set[str]:
    """The ids of the entries that the consumers read."""
    return {entry.fields["id"] for tr in READ for entry in entries[tr]}
