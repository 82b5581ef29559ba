"""The program as its users start it, against a broker that fails and a server that dies; then everything is checked.

Real processes throughout: `sectorwire simulate`, `sectorwire poll`, `sectorwire demo`, and a real server. Each story
ends the same way: the poller is asked to stop, and `checker.py`, which shares no code with the product, compares what
the simulator wrote down with what stands in the streams and snapshots. The soak versions are the same stories, longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poller.store import LEASE_S
from tests import checker
from tests.holding_proxy import HoldingProxy
from tests.servers import RealServer, free_port, running

APP_KEY, SECRET_KEY = "app-key-of-the-acceptance-tests", "secret-key-of-the-acceptance-tests"
KEYS = {"KIWOOM_APP_KEY": APP_KEY, "KIWOOM_SECRET_KEY": SECRET_KEY}
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
STOP_S = 10.0
"""A stop is promised within this."""

# All six reports; ka10051 in won and in shares. The closed days make every hour of every day the same: nothing is
# "before the opening", and no trading day begins.
PLAN = """\
[kiwoom]
base_url = "{base_url}"
requests_per_second = 4

[schedule]
sessions = "always"
closed_days = [{closed_days}]

[data]
dir = "data"

[[poll]]
tr = "ka20003"
target = {{ inds_cd = ["001", "101"] }}
every = "1s"

[[poll]]
tr = "ka20001"
target = {{ inds_cd = ["001", "101"] }}
every = "1s"

[[poll]]
tr = "ka20001"
target = {{ inds_cd = "013" }}
every = "3s"

[[poll]]
tr = "ka10051"
target = {{ mrkt_tp = ["0", "1"], amt_qty_tp = ["0", "1"], stex_tp = "3" }}
every = "2s"

[[poll]]
tr = "ka10010"
target = {{ stk_cd = ["005930", "005930_AL"] }}
every = "1s"

[[poll]]
tr = "ka20009"
target = {{ inds_cd = ["001", "101"] }}
every = "2s"

[[poll]]
tr = "ka20002"
target = {{ inds_cd = "013", stex_tp = "1" }}
every = "4s"
"""
LONG_WALK = """
[[poll]]
tr = "ka20002"
target = { inds_cd = "001", stex_tp = "3" }
every = "12s"
"""
EVERY_SECOND = [
    "ka20003?inds_cd=001",
    "ka20003?inds_cd=101",
    "ka20001?inds_cd=001&mrkt_tp=0",
    "ka20001?inds_cd=101&mrkt_tp=1",
    "ka10010?stk_cd=005930",
    "ka10010?stk_cd=005930_AL",
]


async def until(condition: Callable[[], object], what: str, deadline_s: float = 20.0) -> None:
    """Return once the condition holds, while proxies and servers of this process go on; fail when it never does."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:g} s in vain for {what}")
        await asyncio.sleep(0.02)


def say(text: str) -> None:
    """For whoever runs the soak tests and wants to see the counts."""
    print(text)  # noqa: T201 -- pytest shows it with -s, or when the test fails


class Program:
    """One `sectorwire` process with its output in files, and no environment but what it is given."""

    def __init__(self, folder: Path, name: str, arguments: list[str], environ: Mapping[str, str]) -> None:
        self.name, self.log, self.printed = name, folder / f"{name}.err", folder / f"{name}.out"
        with self.log.open("wb") as err, self.printed.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sectorwire", *arguments],
                cwd=folder,
                env={**clean_environment(), **environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self.printed.read_text("utf-8")

    @property
    def err(self) -> str:
        return self.log.read_text("utf-8")

    def said(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = [json.loads(line) for line in self.err.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line["event"] == event]

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """End it as the kernel would, and fetch it, so that it is gone rather than a zombie."""
        self.process.kill()
        self.process.wait(STOP_S)

    async def stop(self) -> None:
        """Ask it to stop; it has to do so well, and in time."""
        self.process.terminate()
        await self.end(STOP_S)

    async def end(self, deadline_s: float) -> None:
        """Wait for an end of its own, with status 0."""
        await until(lambda: self.ended, f"the end of {self.name}; its last words:\n{self.err[-2000:]}", deadline_s)
        assert self.process.returncode == 0, f"{self.name} ended with {self.process.returncode}:\n{self.err[-2000:]}"


def clean_environment() -> dict[str, str]:
    """The environment without what would configure sectorwire."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("KIWOOM_", "REDIS_", "SECTORWIRE_"))
    }


async def address_of(simulator: Program) -> str:
    """Where a simulator serves, once it does."""
    await until(lambda: simulator.out.endswith("\n") or simulator.ended, "the simulator to serve")
    found = re.match(r"serving (http://[^,]+),", simulator.out)
    assert found, f"{simulator.out}{simulator.err}"
    return found[1]


class Story:
    """A simulator with its ledger, pollers that ask it, and the check at the end. All processes end with the story."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder, folder / "ledger.jsonl"
        self.config = folder / "sectorwire.toml"
        self.programs: list[Program] = []
        self.pollers: list[Program] = []

    async def open(self, *options: str, long_walk: bool = True) -> None:
        """Start the broker and write the plan for it.

        The long walk is a sector of several pages. It counts as 25, so it is asked every 12 s only.
        """
        market = ["--port", "0", "--speed", "10", "--start", "2026-11-20T10:00", "--ledger", str(self.ledger)]
        self.simulator = self.start("simulator", ["simulate", *market, *options], {})
        base_url = await address_of(self.simulator)
        today = datetime.now(UTC)
        closed_days = ", ".join(f"{today + timedelta(days=days):%Y-%m-%d}" for days in (-1, 0, 1, 2))
        plan = PLAN.format(base_url=base_url, closed_days=closed_days) + LONG_WALK * long_walk
        self.config.write_text(plan, "utf-8")
        self.targets = 14 + long_walk

    def start(self, name: str, arguments: list[str], environ: Mapping[str, str]) -> Program:
        program = Program(self.folder, name, arguments, environ)
        self.programs.append(program)
        return program

    def poll(self, url: str) -> Program:
        """Start one more poller on a server."""
        name = f"poller-{len(self.pollers) + 1}"
        poller = self.start(name, ["poll", "--config", str(self.config)], KEYS | {"REDIS_URL": url})
        self.pollers.append(poller)
        return poller

    async def close(self, url: str) -> checker.Checked:
        """Stop the last poller and the broker, which may have refused nothing, and check what is there."""
        await self.pollers[-1].stop()
        await self.simulator.stop()
        told = self.simulator.err.splitlines()[-1]
        assert re.fullmatch(r"\d+ requests, 0 refused, \d+ faults", told), f"the limits were not kept: {told}"
        for poller in self.pollers:
            assert "Traceback" not in poller.err, f"{poller.name} met the unexpected:\n{poller.err}"
            assert not poller.said("poll.crashed"), poller.err
        files = [self.folder / "data", *(program.log for program in self.programs)]
        files += [program.printed for program in self.programs]
        checked = await asyncio.to_thread(checker.check, url, self.ledger, secrets=[APP_KEY, SECRET_KEY], files=files)
        say(f"\n{told}; {checked}")
        return checked

    def end(self) -> None:
        for program in self.programs:
            if not program.ended:
                program.kill()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path)
    yield told
    told.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    """A server that has written down what it has confirmed, so that nothing but the story's own trouble is lost."""
    folder = tmp_path / "server"
    folder.mkdir()
    with RealServer(folder, appendfsync="always") as real:
        yield real


@pytest.fixture
def direct(server: RealServer) -> Iterator[Any]:
    """A look into the server that takes no detour."""
    connection = checker.connect(server.url)
    yield connection
    connection.close()


def seqs(direct: Any) -> int:
    """How many entries there are in all streams together."""
    return sum(int(direct.hget(f"sectorwire:{{{tr}}}:meta", "seq") or 0) for tr in checker.catalogue())


def seen(direct: Any, since: datetime) -> int:
    """How many targets had their last good poll after a moment."""
    states = [direct.hget(key, "last_good") for key in direct.scan_iter("sectorwire:*:state:*", count=1000)]
    return sum(datetime.fromisoformat(moment) > since for moment in states if moment)


async def published(direct: Any, more: int = 1, deadline_s: float = 20.0) -> None:
    """Wait for more entries than there are now."""
    before = seqs(direct)
    await until(lambda: seqs(direct) >= before + more, f"{more} more entries than {before}", deadline_s)


async def everything_seen(story: Story, direct: Any, since: datetime = LONG_AGO, deadline_s: float = 30.0) -> None:
    """Wait until every target has been committed after a moment."""
    await until(lambda: seen(direct, since) == story.targets, f"a look at {story.targets} targets", deadline_s)


# --- a broker that fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds",
    [15, pytest.param(120, marks=[pytest.mark.soak, pytest.mark.timeout(300)])],
)
async def test_under_faults_the_stream_tells_exactly_what_was_served(
    story: Story, server: RealServer, direct: Any, seconds: float
) -> None:
    """One answer in five is an error, a broken page, a cut connection or a dead token; none of it may become news."""
    await story.open("--faults", "0.2")
    story.poll(server.url)
    await asyncio.sleep(seconds)  # the length of the trouble is the subject

    checked = await story.close(server.url)

    faults = Counter(json.loads(line)["fault"] for line in story.ledger.read_text("utf-8").splitlines())
    say(f"faults: {dict(faults)}")
    assert faults.total() - faults[None] > seconds, "there was hardly any trouble"
    assert checked.walks > 3 * seconds, "there was hardly anything but trouble"
    assert seen(direct, LONG_AGO) >= story.targets - 1, "only the longest walk may have met a fault each time"


# --- a poller that is killed ---------------------------------------------------------------------------------------


class Killer:
    """Kills pollers in the middle of a commit, and knows what became of every commit that was caught."""

    def __init__(self, story: Story, proxy: HoldingProxy, direct: Any) -> None:
        self.story, self.proxy, self.direct = story, proxy, direct
        self.counts: Counter[str] = Counter()
        self.caught: list[str] = []
        self.never: list[str] = []
        self.done: list[str] = []

    async def kill_with_the_request_held(self, *, late: bool) -> None:
        """The commit has not reached the server. It never does, or only when the next poller has taken over."""
        self.caught.clear()
        self.proxy.hold_requests(self.is_commit)
        await self.proxy.wait_held(20)
        self.story.pollers[-1].kill()
        held = list(self.caught)
        if late:
            await self.next_poller()
            self.proxy.release()
            self.counts["request held, delivered to the next reign"] += 1
        else:
            self.proxy.drop()
            await self.next_poller()
            self.counts["request held, never delivered"] += 1
        self.never += held

    async def kill_with_the_reply_held(self) -> None:
        """The commit is done, and its poller dies before it learns that."""
        self.caught.clear()
        self.proxy.hold_replies(self.is_commit)
        await self.proxy.wait_held(20)
        self.story.pollers[-1].kill()
        self.done.append(self.caught[0])  # of those behind it the poller may have sent only a part
        self.proxy.drop()
        await self.next_poller()
        self.counts["reply held"] += 1

    async def kill_anywhere(self, after_s: float) -> None:
        """Somewhere between start and commit."""
        await asyncio.sleep(after_s)  # a moment that nobody chose
        self.story.pollers[-1].kill()
        await self.next_poller()
        self.counts["at any moment"] += 1

    async def next_poller(self) -> None:
        """A successor on the same machine sees that the holder of the lease is dead, and waits for no lease to end."""
        following = self.story.poll(self.proxy.url)
        await until(lambda: following.said("lead.taken"), f"{following.name} to take over:\n{following.err}")

    def is_commit(self, command: bytes) -> bool:
        """Whether it publishes rows; if so its entries' ids are remembered, but for their number."""
        parts = command.split(b"\r\n", 3)
        if parts[2].upper() != b"EVALSHA" or b"sectorwire.row" not in command:
            return False
        found = re.search(rb"\r\n(ka\d{5}\?[^\r\n]+#\d+\.\d+\.)\r\n", command)
        assert found, command[:500]
        self.caught.append(found[1].decode())
        return True

    def published(self, *commits: str) -> set[str]:
        """Those of these commits, named as their ids begin, that are in the streams."""
        entries = [entry for tr in checker.catalogue() for entry in checker.read_entries(self.direct, "sectorwire", tr)]
        return {entry.fields["id"].rpartition(".")[0] + "." for entry in entries}.intersection(commits)

    def check(self) -> None:
        """What was held back is nowhere, what was done is there. That it is there once, the checker sees."""
        assert not self.published(*self.never), "a commit of a dead poller was published"
        assert self.published(*self.done) == set(self.done), "a commit that was done is gone"


@pytest.mark.parametrize(
    ("kills", "in_mid_commit"),
    [(6, 6), pytest.param(20, 14, marks=[pytest.mark.soak, pytest.mark.timeout(300)])],
)
async def test_killed_in_mid_commit_nothing_is_lost_or_doubled(
    story: Story, server: RealServer, direct: Any, kills: int, in_mid_commit: int
) -> None:
    """A commit is whole or not there, a dead poller's late commit is refused, and a lost reply doubles nothing."""
    await story.open()
    async with HoldingProxy(server.url) as proxy:
        killer = Killer(story, proxy, direct)
        story.poll(proxy.url)
        for round_ in range(kills):
            await published(direct)
            if round_ >= in_mid_commit:
                await killer.kill_anywhere(after_s=0.7 * (round_ - in_mid_commit) / 2)
            elif round_ % 2:
                await killer.kill_with_the_reply_held()
            else:
                await killer.kill_with_the_request_held(late=round_ % 4 == 0)
        await everything_seen(story, direct)
        await published(direct, 100)

        await story.close(server.url)

    say(f"kills: {dict(killer.counts)}; held {proxy.held_requests} requests, {proxy.held_replies} replies")
    killer.check()
    assert killer.counts["reply held"] == in_mid_commit // 2
    assert killer.counts["request held, delivered to the next reign"] == (in_mid_commit + 3) // 4
    assert killer.counts["request held, never delivered"] == (in_mid_commit + 1) // 4
    assert killer.counts.total() == kills == len(story.pollers) - 1
    assert proxy.held_requests >= (in_mid_commit + 1) // 2
    assert proxy.held_replies >= in_mid_commit // 2


async def test_a_poller_that_lost_the_reply_to_its_commit_does_not_publish_it_twice(
    story: Story, server: RealServer, direct: Any
) -> None:
    """It cannot know whether the commit was done, so it sends it again; the script knows it by its id."""
    await story.open(long_walk=False)
    async with HoldingProxy(server.url) as proxy:
        killer = Killer(story, proxy, direct)
        poller = story.poll(proxy.url)
        await everything_seen(story, direct)
        for lost_reply in (True, False, True, False):
            killer.caught.clear()
            (proxy.hold_replies if lost_reply else proxy.hold_requests)(killer.is_commit)
            await proxy.wait_held(20)
            held = killer.caught[0]
            proxy.drop()
            await until(partial(killer.published, held), f"the commit {held} of a poller that lives")
            await published(direct, 30)

        await story.close(server.url)

    assert len(poller.said("lead.taken")) == 1
    assert not poller.said("commit.stale"), "a commit that was done was not recognised"
    assert (proxy.held_replies, proxy.held_requests) >= (2, 2)


# --- a server that goes away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize(
    "away_s",
    [4, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(300)])],
)
async def test_a_server_gone_for_a_while_is_survived_and_declared(
    story: Story, server: RealServer, direct: Any, away_s: float, how: str
) -> None:
    """The same process goes on by itself, and says of each target in which stretch it saw nothing, and why."""
    await story.open(long_walk=False)
    poller = story.poll(server.url)
    await everything_seen(story, direct)
    gone_at = datetime.now(UTC)
    if how == "killed":
        server.kill()
    else:
        server.pause()
    await asyncio.sleep(away_s)  # the length of the outage is the subject
    await until(lambda: poller.said("store.lost"), f"{poller.name} to notice:\n{poller.err[-2000:]}")
    back_at = datetime.now(UTC)
    if how == "killed":
        server.start()
    else:
        server.resume()

    await until(lambda: poller.said("store.recovered"), f"{poller.name} to recover:\n{poller.err[-2000:]}")
    await until(
        lambda: gaps_since(direct, gone_at).keys() >= set(EVERY_SECOND),
        f"a gap of each of {EVERY_SECOND}, there are {gaps_since(direct, gone_at)}",
    )
    await everything_seen(story, direct, since=back_at)  # what was served meanwhile may never have been committed
    assert not poller.ended

    await story.close(server.url)

    gaps = gaps_since(direct, gone_at)
    say(f"away for {(back_at - gone_at).total_seconds():.1f} s; gaps: {gaps}")
    assert {target: {*gaps[target]} for target in EVERY_SECOND} == {target: {"store"} for target in EVERY_SECOND}
    assert len(poller.said("store.lost")) == len(poller.said("store.recovered")) == 1


def gaps_since(direct: Any, moment: datetime) -> dict[str, list[str]]:
    """The reasons of the gaps that were declared of each target since a moment."""
    gaps: dict[str, list[str]] = {}
    for tr in checker.catalogue():
        for entry in checker.read_entries(direct, "sectorwire", tr):
            if entry.type == "gap" and entry.observed_at >= moment:
                gaps.setdefault(entry.target, []).append(entry.data["reason"])
    return gaps


# --- more than one poller ------------------------------------------------------------------------------------------


async def test_two_pollers_share_the_work_of_one(story: Story, server: RealServer, direct: Any) -> None:
    """One asks and the other waits, so the broker sees the requests of one; whichever way the first ends, work goes on.

    The simulator refuses what is too much, and the story does not close with a refusal.
    """
    await story.open(long_walk=False)
    first = story.poll(server.url)
    await until(lambda: first.said("lead.taken"), "the first to lead")
    second = story.poll(server.url)
    await until(lambda: second.said("lead.awaited"), "the second to stand by")
    await everything_seen(story, direct)
    assert not second.said("lead.taken")
    assert not second.said("change.published")

    await first.stop()
    await until(lambda: second.said("lead.taken"), "the second to follow one that stopped")
    third = story.poll(server.url)
    await until(lambda: third.said("lead.awaited"), "the third to stand by")
    await published(direct, 100)
    assert not third.said("lead.taken")

    second.kill()
    await until(lambda: third.said("lead.taken"), "the third to follow one that was killed")
    await published(direct, 100)

    checked = await story.close(server.url)

    leaders = [poller.name for poller in story.pollers if poller.said("change.published")]
    assert leaders == [poller.name for poller in story.pollers]
    assert checked.epochs >= 3
    assert not direct.exists("sectorwire:leader"), "the last one gave up its lead"


async def test_a_leader_that_was_paused_past_its_lease_wakes_up_as_a_standby(
    story: Story, server: RealServer, direct: Any
) -> None:
    """A laptop's lid, a stopped virtual machine: its clock jumps, another leads by now, and it must not say a word."""
    await story.open(long_walk=False)
    first = story.poll(server.url)
    await until(lambda: first.said("lead.taken"), "the first to lead")
    await published(direct, 50)
    second = story.poll(server.url)
    await until(lambda: second.said("lead.awaited"), "the second to stand by")

    first.process.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: second.said("lead.taken"), "the second to follow within a lease", LEASE_S + 3)
        told = len(first.said("change.published"))
        await published(direct, 50)
    finally:
        first.process.send_signal(signal.SIGCONT)
    await until(lambda: first.said("lead.lost"), "the first to notice")
    await until(lambda: len(first.said("lead.awaited")) >= 1, "the first to stand by")
    await published(direct, 100)

    assert len(first.said("change.published")) == told
    assert len(first.said("lead.taken")) == 1
    await first.stop()
    checked = await story.close(server.url)
    assert checked.epochs >= 2


async def test_a_poller_that_stands_by_stops_as_well(story: Story, server: RealServer) -> None:
    """Nobody should have to kill a spare."""
    await story.open(long_walk=False)
    first = story.poll(server.url)
    await until(lambda: first.said("lead.taken"), "the first to lead")
    second = story.poll(server.url)
    await until(lambda: second.said("lead.awaited"), "the second to stand by")

    await second.stop()

    assert not first.ended
    assert not second.said("lead.taken")


# --- the demo ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the embedded server needs POSIX")
async def test_a_second_start_goes_on_where_the_first_stopped(story: Story, tmp_path: Path) -> None:
    """A demo that is started again is the same market on the same server, not a new one."""
    data = tmp_path / "demo"
    entries: list[dict[str, list[checker.Entry]]] = []
    for start in ("first", "second"):
        demo = story.start(f"demo-{start}", ["demo", "--seconds", "8", "--data", str(data)], {})
        server_pid = await pid_of_embedded(data / "server" / "address", demo)
        await demo.end(8 + 2 * STOP_S)

        assert not running(server_pid), "the embedded server has outlived its last user"
        assert re.search(r"summary +\d+ polls, 0 failed, 0 refusals\n", demo.out), demo.out[-1000:]
        counts = dict(re.findall(r"^  (ka\d{5}) +([\d,]+) changes", demo.out, re.MULTILINE))
        assert counts.keys() == checker.catalogue().keys()
        assert int(counts["ka20003"].replace(",", "")) > 0, f"the market stood still in the {start} run: {counts}"
        assert demo.err == ""
        entries.append(await asyncio.to_thread(post_mortem, data / "server", tmp_path / f"copy-{start}", demo))

    for tr, after in entries[1].items():
        before = entries[0][tr]
        new = after[len(before) :]
        assert before, f"nothing of {tr} in the first run"
        assert new, f"nothing of {tr} in the second run"
        assert [entry.fields for entry in after[: len(before)]] == [entry.fields for entry in before]
        assert new[0].fields["seq"] == str(len(before) + 1)
        assert "first" not in [entry.data["reason"] for entry in new if entry.type == "reset"]


async def pid_of_embedded(address: Path, demo: Program) -> int:
    """The process of the server that a demo runs on."""
    await until(lambda: address.exists() or demo.ended, f"an embedded server:\n{demo.err}")
    await until(lambda: "look inside" in demo.out or demo.ended, f"the demo to be ready:\n{demo.err}")
    embedded = checker.connect(await asyncio.to_thread(address.read_text))
    pid = int(embedded.info("server")["process_id"])
    embedded.close()
    return pid


def post_mortem(server: Path, copy: Path, demo: Program) -> dict[str, list[checker.Entry]]:
    """Check the files that a demo's server left, on a server of our own, and return the streams."""
    shutil.copytree(server, copy, ignore=shutil.ignore_patterns("*.sock", "*.lock", "address"))
    with RealServer(copy) as real:
        files = [demo.log, demo.printed]
        say(f"\n{checker.check(real.url, None, secrets=['demo-app-key', 'demo-secret-key'], files=files)}")
        direct = checker.connect(real.url)
        entries = {tr: checker.read_entries(direct, "sectorwire", tr) for tr in checker.catalogue()}
        direct.close()
    return entries


# --- what goes wrong at the start ----------------------------------------------------------------------------------


class Shell:
    """Runs a command to its end, beside whatever this process serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "sectorwire.toml"

    def plan(self, base_url: str, every: str = "5s") -> None:
        """One target, or too many requests for it."""
        self.config.write_text(
            f'[kiwoom]\nbase_url = "{base_url}"\n[schedule]\nsessions = "always"\n'
            f'[[poll]]\ntr = "ka20002"\ntarget = {{ inds_cd = "001", stex_tp = "1" }}\nevery = "{every}"\n',
            "utf-8",
        )

    async def run(self, *arguments: str, **environ: str) -> tuple[int, str]:
        """The exit status, and what was said on stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "sectorwire", *arguments),
            cwd=self.folder,
            env={**clean_environment(), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), 30)
        return process.returncode or 0, err.decode()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def check_line(answer: tuple[int, str], status: int, *remedy: str) -> None:
    """The status, and one line that says what to do; the keys are not in it."""
    assert answer[0] == status, answer[1]
    assert re.fullmatch(r"sectorwire: [^\n]+\n", answer[1]), f"not one line:\n{answer[1]}"
    for word in remedy:
        assert word in answer[1]
    assert APP_KEY not in answer[1]
    assert SECRET_KEY not in answer[1]


async def test_an_unknown_option_is_told_with_the_right_one(shell: Shell) -> None:
    """A typing error costs one look, not a search through the manual."""
    check_line(await shell.run("poll", "--confg", "x"), 2, "--confg", "did you mean --config?")


async def test_missing_keys_are_told_by_their_variable(shell: Shell) -> None:
    """Whoever forgot to set the keys is told which name they go by, before anything is asked."""
    shell.plan("http://127.0.0.1:9", every="60s")
    neither, half = await asyncio.gather(shell.run("poll"), shell.run("poll", KIWOOM_APP_KEY=APP_KEY))
    check_line(neither, 2, "KIWOOM_APP_KEY is not set", "KIWOOM_APP_KEY_FILE")
    check_line(half, 2, "KIWOOM_SECRET_KEY is not set", "KIWOOM_SECRET_KEY_FILE")


async def test_a_plan_that_cannot_be_kept_is_told_with_the_arithmetic(shell: Shell) -> None:
    """25 pages every 5 s are five requests a second, and one is allowed by default."""
    shell.plan("http://127.0.0.1:9")
    for answer in await asyncio.gather(shell.run("check", **KEYS), shell.run("poll", **KEYS)):
        check_line(answer, 2, "the plan does not fit", "5.00 requests/s", "longest 30s")


async def test_a_server_that_is_not_there_is_told_by_its_address(shell: Shell) -> None:
    """An address in the environment may be a stale one."""
    shell.plan("http://127.0.0.1:9", every="60s")
    url = f"redis://user:a-password@127.0.0.1:{free_port()}/0"
    commands = (["poll"], ["status"], ["tail"], ["check", "--online"])
    for answer in await asyncio.gather(*(shell.run(*command, **KEYS, REDIS_URL=url) for command in commands)):
        check_line(answer, 1, url.rpartition("@")[2], "correct REDIS_URL")
        assert "a-password" not in answer[1]


async def test_a_broker_that_is_not_there_is_told_by_its_address(shell: Shell, server: RealServer) -> None:
    """`check --online` is what people run when nothing comes."""
    base_url = f"http://127.0.0.1:{free_port()}"
    shell.plan(base_url, every="60s")
    answer = await shell.run("check", "--online", **KEYS, REDIS_URL=server.url)
    check_line(answer, 1, base_url, "[kiwoom]")


async def test_a_key_that_is_refused_is_told_by_its_variable(shell: Shell, server: RealServer, story: Story) -> None:
    """The broker speaks of a code, people set variables. The poller goes on, and tries the key again every ten minutes:
    asking at poll speed could lock it, and one key's trouble is not another's.
    """
    right = {name: f"the-right-{value}" for name, value in KEYS.items()}
    broker = story.start("broker", ["simulate", "--port", "0", "--check-keys"], right)
    shell.plan(await address_of(broker), every="60s")
    poller = story.start("poller", ["poll"], KEYS | {"REDIS_URL": server.url})

    check_line(await shell.run("check", "--online", **KEYS, REDIS_URL=server.url), 1, "KIWOOM_APP_KEY", "SECRET_KEY")
    await until(lambda: poller.said("key.held"), "the key to be held")
    (held,) = poller.said("key.held")
    assert "check KIWOOM_APP_KEY and KIWOOM_SECRET_KEY" in json.dumps(held)
    await poller.stop()
    assert len(poller.said("key.held")) == 1


async def test_a_person_may_look_before_anything_polls_and_while_it_does(
    shell: Shell, server: RealServer, direct: Any, story: Story
) -> None:
    """`check --online` and `once` are what a newcomer runs first, and what everybody runs when something is odd."""
    await story.open(long_walk=False)
    here, once = KEYS | {"REDIS_URL": server.url}, ["once", "ka20003", "inds_cd=001"]
    before = [await shell.run(*words, **here) for words in (["check", "--online"], once)]
    assert not direct.keys("*:changes"), "who only looks publishes nothing"
    poller = story.poll(server.url)
    await published(direct)
    looks = ([*once, "--explain"], [*once, "--raw"], ["doctor"])
    during = await asyncio.gather(*(shell.run(*words, **here) for words in looks))

    await poller.stop()
    assert [answer for answer in (*before, *during) if answer[0] != 0] == []
    assert len(poller.said("lead.taken")) == 1


async def test_a_port_in_use_is_told_with_the_option_for_another(shell: Shell, server: RealServer) -> None:
    """Two simulators on one machine are common; the second says how to live with the first."""
    check_line(await shell.run("simulate", "--port", str(server.port)), 1, str(server.port), "--port")


# --- the checker itself --------------------------------------------------------------------------------------------


async def test_the_checker_sees_what_it_is_there_to_see(story: Story, server: RealServer, direct: Any) -> None:
    """A check that passes proves nothing before it has failed: each promise is broken once by hand."""
    await story.open(long_walk=False)
    story.poll(server.url)
    await everything_seen(story, direct)
    await published(direct, 60)
    await story.close(server.url)

    def fails(why: str, *, secret: str = APP_KEY, ledger: Path | None = story.ledger) -> None:
        with pytest.raises(AssertionError, match=why):
            checker.check(server.url, ledger, secrets=[secret], files=[story.folder / "data"])

    snapshot, changes = "sectorwire:{ka20003}:snapshot:inds_cd=001", "sectorwire:{ka20003}:changes"
    row = direct.hget(snapshot, "indices/001")
    for spoiled in (row.replace('"level":', '"level":1'), row.replace('"level":', '"level": '), "{}"):
        direct.hset(snapshot, "indices/001", spoiled)
        fails("indices/001")
    direct.hset(snapshot, "indices/001", row)

    lines = story.ledger.read_text("utf-8").splitlines()
    for target_rows in ("all_inds_idex", "inds_netprps", "inds_stkpc", "inds_cur_prc_tm", "inds_cur_prc_daly_rept"):
        fails("the ledger", ledger=one_digit_more(lines, target_rows, story.folder / "spoiled.jsonl"))

    direct.set("sectorwire:stray", f"Bearer {APP_KEY}")
    fails("a secret that begins with 'app-' stands in sectorwire:stray")
    direct.delete("sectorwire:stray")
    (token_key,) = direct.scan_iter("sectorwire:token:*")
    direct.hset("sectorwire:{ka20003}:meta", "remark", direct.hget(token_key, "token"))
    fails("a secret that begins with")
    direct.hdel("sectorwire:{ka20003}:meta", "remark")

    checker.check(server.url, story.ledger, secrets=[APP_KEY], files=[])
    *_, (last_id, last), (_, again) = direct.xrange(changes)[-2:]
    direct.xadd(changes, {**again, "seq": str(int(again["seq"]) + 1)})
    fails("ids that occur twice")
    assert int(last["seq"]) + 1 == int(again["seq"])
    direct.xdel(changes, last_id)
    fails("seq has a hole or a repeat")


def one_digit_more(lines: list[str], element: str, spoiled: Path) -> Path:
    """A ledger in which the last good answer with this list served another level than it did."""
    place = max(number for number, line in enumerate(lines) if f'"{element}"' in line and '"fault": null' in line)
    answer = re.sub(rf'("{element}": .*?"cur_prc(_n)?": ")([^"]+)"', r'\g<1>\g<3>1"', lines[place], count=1)
    spoiled.write_text("\n".join([*lines[:place], answer, *lines[place + 1 :]]), "utf-8")
    return spoiled
