"""A server that lost its newest entries is seen: nothing is archived twice, and nothing that came after it is missed.

Every history here is a real one: a server's directory is copied, the server goes on, and is put back to the copy.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError
from structlog.testing import capture_logs

from consumers.alert.decide import AlertRole, Decider
from consumers.alert.rules import Rule, iso, steps
from consumers.archive.fork import Fork, parted
from consumers.archive.questions import archive_status, known_losses, run_sql, verify
from consumers.archive.settings import ArchiveSettings
from consumers.archive.tables import Line, declared, packed
from consumers.archive.writer import ArchiveRole, ArchiveTable
from consumers.group import Batch, Delivery
from consumers.service import Desk, roles_of
from poller.catalogue import CATALOGUE, described
from poller.commit import Known, decide
from poller.contract import decode, dumps, loads
from poller.store import Store, connect
from sectorwire import main
from tests.builders import NOON, recording, seen
from tests.model_store import ModelRedis, ModelServer
from tests.servers import RealServer
from tests.test_alert_decide import fields, rules
from tests.virtual import run

KNOWN = {"ka20003": described()["ka20003"]}
STREAM, POSITION, FORKS = "test:{ka20003}:changes", "test:{ka20003}:position:archive", "test:{ka20003}:forks"
ALERTS, ALERTING = "test:{ka20003}:alerts", "test:{ka20003}:alerting"
TR = next(tr for tr in CATALOGUE if tr.code == "ka20003")
TOLD = recording("ka20003")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for the read that is under way, and trouble for the next try."""
    monkeypatch.setattr("consumers.group.BLOCK_MS", 50)
    monkeypatch.setattr("consumers.group.RETRY_S", 0.05)


class History:
    """A server with a poller and an archive on it, which can be put back to what it was."""

    def __init__(self, server: RealServer, where: Path) -> None:
        self.server, self.path = server, where / "archive"
        self._copy = where / "copy"
        self.redis: Redis = connect(server.url)
        self.client: Any = self.redis
        self.published: set[str] = set()
        """The ids of all entries there ever were, in whatever history."""
        self._store, self._known, self._polls = Store(self.redis, "test"), Known(), 0

    async def begin(self) -> None:
        assert await self._store.take_lead(CATALOGUE, round(time.time() * 1000)) == 0

    async def moves(self, times: int) -> None:
        """The first index moves so often, and each move is committed as a poller does."""
        await self.moves_to(*(3001 + self._polls + number for number in range(times)))

    async def moves_to(self, *levels: int) -> None:
        """The first index moves to these levels, one after the other."""
        for level in levels:
            first, *others = TOLD.answer["all_inds_idex"]
            self._polls += 1
            answer = {**TOLD.answer, "all_inds_idex": [{**first, "cur_prc": f"-{level}"}, *others]}
            told = replace(seen(TOLD.target, answer, self._polls), epoch=self._store.epochs["ka20003"])
            commit = decide(TOLD.target, self._known, told)
            await self._store.commit(commit, {})
            self._known = commit.known
        self.published |= set(await self.ids())

    async def remember(self) -> None:
        """Keep a copy of what the server holds now."""
        await asyncio.to_thread(self.server.stop)
        shutil.copytree(self.server.directory, self._copy)
        await asyncio.to_thread(self.server.start)
        await self.new_epoch()

    async def new_epoch(self) -> None:
        """What a leader does on a server that was started again."""
        await self._store.begin_epoch(TR, round(time.time() * 1000))

    @property
    def epoch(self) -> int:
        return self._store.epochs["ka20003"]

    async def go_back(self) -> None:
        """Lose everything since then, as a promoted replica has that was behind."""
        await asyncio.to_thread(self.server.kill)
        shutil.rmtree(self.server.directory)
        shutil.copytree(self._copy, self.server.directory)
        await asyncio.to_thread(self.server.start)

    async def cut(self, size: int) -> None:
        """Lose what the server has written beyond this size of its file."""
        await asyncio.to_thread(self.server.kill)
        os.truncate(self.file, size)
        await asyncio.to_thread(self.server.start)

    @property
    def file(self) -> Path:
        """The file to which the server appends what it does."""
        (file,) = self.server.directory.glob("*/*.incr.aof")
        return file

    async def poller_comes_back(self, *, remembers: bool = True) -> None:
        """What a leader does that finds an older version than it committed: another epoch, and a reset follows.

        One that was started again has nothing to compare with: it begins an epoch, as always, and goes on.
        """
        self._known = replace(await self._store.load(TOLD.target), rolled_back=remembers)
        await self._store.begin_epoch(TR, round(time.time() * 1000))

    async def clock_ahead(self, seconds: int = 60) -> None:
        """Let the ids go on from so far ahead: who is put back to before that has a clock that is so far behind."""
        for stream in (STREAM, ALERTS):
            if await self.client.exists(stream):
                await self.client.execute_command("XSETID", stream, f"{round(time.time() + seconds) * 1000}-0")

    @asynccontextmanager
    async def archiving(self, flush: float = 0) -> AsyncIterator[ArchiveRole]:
        role = ArchiveRole(self.redis, "test", KNOWN, ArchiveSettings(path=self.path, flush=flush), "one")
        stop = asyncio.Event()
        working = asyncio.create_task(role.run(stop))
        try:
            yield role
        finally:
            stop.set()
            await working

    async def archived(self) -> None:
        """Return when everything the stream holds now is durable."""
        async with asyncio.timeout(20):
            while await self.client.get(POSITION) != (await self.client.xinfo_stream(STREAM))["last-generated-id"]:  # noqa: ASYNC110 -- the server has no event for it
                await asyncio.sleep(0.02)

    async def archive(self) -> None:
        async with self.archiving():
            await self.archived()

    async def ids(self) -> list[str]:
        return [fields["id"] for _, fields in await self.client.xrange(STREAM) if "id" in fields]

    def ids_archived(self) -> list[str]:
        sql = "SELECT event_id FROM ka20003_indices UNION ALL SELECT event_id FROM notices WHERE op <> 'fork'"
        return [event_id for (event_id,) in run_sql(self.path, sql).rows]

    def forks(self) -> list[dict[str, Any]]:
        rows = run_sql(self.path, "SELECT tr, data FROM notices WHERE op = 'fork' ORDER BY event_id").rows
        return [{"tr": tr, **loads(data)} for tr, data in rows]

    async def verified(self) -> list[str]:
        """What is wrong, and of each fork that is marked one line, which is not."""
        wrong = await verify(self.redis, "test", self.path, KNOWN)
        return [*wrong, *(f"known: {one}" for one in known_losses(self.path, "test", KNOWN))]

    async def is_well(self, *, forks: int) -> None:
        """Nothing is wrong, and so many forks are told."""
        told = await self.verified()
        assert [one.partition(":")[0] for one in told] == ["known"] * forks, told

    async def marks(self) -> dict[str, Any]:
        """What each role wrote down for `status`."""
        return {role: loads(text) for role, text in (await self.client.hgetall(FORKS)).items()}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 -- a log, not an event
            await asyncio.sleep(0.01)


@pytest.fixture
async def past(tmp_path: Path) -> AsyncIterator[History]:
    (tmp_path / "server").mkdir()
    with RealServer(tmp_path / "server") as server:
        history = History(server, tmp_path)
        await history.begin()
        yield history
        await history.redis.aclose()


async def test_both_histories_are_archived_once_though_the_new_ids_are_lower(past: History):
    """The server's clock is behind: what it writes after its loss stands before what it had given us."""
    await past.moves(3)
    await past.archive()
    await past.remember()
    await past.clock_ahead()
    await past.moves(4)
    await past.archive()
    lost_epoch = past.epoch
    last_lost = (await past.client.xinfo_stream(STREAM))["last-generated-id"]
    await past.go_back()
    kept = await past.client.xrange(STREAM)
    await past.poller_comes_back()
    with capture_logs() as logs:
        async with past.archiving():
            await until(lambda: any(log["event"] == "archive.forked" for log in logs))
            await past.moves(5)
            await past.archived()

    assert packed((await past.client.xinfo_stream(STREAM))["last-generated-id"]) < packed(last_lost)
    assert sorted(past.ids_archived()) == sorted(past.published)
    last_kept = kept[-1][0]
    told = {"position": last_lost, "last_id": last_kept, "since": last_kept, "skipped": len(kept), "lost": 4}
    ranges = [[lost_epoch, len(kept) + 1, len(kept) + 4]]
    assert past.forks() == [{"tr": "ka20003", **told, "ranges": ranges}]
    assert [log["event"] for log in logs].count("archive.forked") == 1
    await past.moves(1)  # on its way, though lower than what the tables hold of the other history
    assert await past.verified() == [
        f"known: ka20003: fork 1: the stream ended at {last_kept}, the archive at {last_lost}; "
        f"4 entries after {last_kept} were written before the fork, lost by the server"
    ]


async def test_a_fork_is_seen_where_the_new_entries_have_overtaken_the_old(past: History):
    """The clock is right, so the stream is past our position before we look; but the entry we had read last is gone."""
    await past.moves(2)
    await past.archive()
    await past.remember()
    await past.moves(3)
    await past.archive()
    await past.go_back()
    await past.poller_comes_back()
    await past.moves(4)
    await past.archive()

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert [fork["lost"] for fork in past.forks()] == [3]
    await past.is_well(forks=1)


async def test_an_archiver_at_work_sees_the_server_go_back(past: History):
    await past.moves(2)
    await past.archive()
    await past.remember()
    await past.clock_ahead()
    async with past.archiving():
        await past.moves(3)
        await past.archived()
        await past.go_back()
        await past.poller_comes_back()
        await past.moves(3)
        await past.archived()

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert len(past.forks()) == 1
    await past.is_well(forks=1)


async def test_a_server_that_goes_back_while_nobody_talks_to_it_is_seen_at_the_next_batch(past: History):
    """In the pause between two commits the connection is idle, and the client makes another without a word."""
    await past.moves(2)
    await past.archive()
    await past.remember()
    await past.clock_ahead()
    async with past.archiving(flush=1) as role:
        await past.moves(1)
        await until(lambda: role.rows["ka20003/indices"] == 1)
        await past.go_back()
        await past.poller_comes_back()
        await past.moves(2)
        await until(lambda: role.rows["ka20003/indices"] == 5)

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert len(past.forks()) == 1


async def test_new_entries_may_have_the_very_ids_of_lost_ones(past: History):
    """Rows go by their own ids; what has none goes by its fields as well."""
    await past.moves(1)
    await past.clock_ahead()
    await past.moves(1)
    kept = await past.client.xadd(STREAM, {"strange": "kept"})
    await past.archive()
    await past.remember()
    await past.moves(6)
    stranger = await past.client.xadd(STREAM, {"strange": "old"})
    await past.moves(1)
    await past.archive()
    lost = {entry for entry, _ in await past.client.xrange(STREAM)}
    await past.go_back()
    await past.poller_comes_back()
    await past.moves(2)
    await past.client.xadd(STREAM, {"strange": "new"}, id=stranger)
    await past.moves(1)
    again = {entry for entry, _ in await past.client.xrange(STREAM)}
    await past.archive()

    assert again < lost
    assert max(again, key=packed) == max(lost, key=packed)
    assert sorted(past.ids_archived()) == sorted(past.published)
    strange = run_sql(past.path, "SELECT stream_id, fields FROM unreadable ORDER BY fields").rows
    assert strange == [(kept, '{"strange":"kept"}'), *((stranger, f'{{"strange":"{one}"}}') for one in ("new", "old"))]
    await past.is_well(forks=1)


async def test_a_second_fork_is_another(past: History):
    await past.moves(2)
    await past.archive()
    await past.remember()
    for _ in range(2):
        await past.clock_ahead()
        await past.moves(3)
        await past.archive()
        await past.go_back()
        await past.poller_comes_back()
        await past.archive()
    await past.moves(2)
    await past.archive()

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert len(past.forks()) == 2
    await past.is_well(forks=2)
    assert {one.forks for one in await archive_status(past.path, "test")} == {2}


async def test_a_server_that_lost_everything_is_a_fork_as_well(past: History):
    await past.moves(3)
    await past.archive()
    await past.client.flushall()
    await past.begin()
    await past.poller_comes_back()
    await past.moves(2)
    await past.archive()

    assert sorted(past.ids_archived()) == sorted(past.published)
    (fork,) = past.forks()
    assert (fork["since"], fork["skipped"]) == ("0-0", 0)
    await past.is_well(forks=1)


@pytest.mark.parametrize("overtaken", [False, True])
async def test_a_stream_that_was_lost_alone_is_read_though_the_group_stands_beyond_it(past: History, overtaken: bool):
    """The group is made anew where it had been, and nothing with a lower id would ever be handed to it."""
    await past.moves(1)
    await past.clock_ahead()
    await past.moves(2)
    await past.archive()
    await past.client.delete(STREAM)
    await past.poller_comes_back()
    await past.moves(2)
    if overtaken:
        await past.clock_ahead(90)
        await past.moves(1)
    await past.archive()

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert len(past.forks()) == 1
    await past.is_well(forks=1)


def test_of_two_archivers_one_marks_the_fork(tmp_path: Path):
    columns = declared(KNOWN)["notices"]
    one, other = (ArchiveTable(tmp_path, "notices", STREAM, columns) for _ in range(2))
    fork = Fork("ka20003", 1, "5-0", "7-0", "6-0", 3, 2, ((1, 4, 5),))
    one.mark(fork.line(NOON), f"{STREAM}~1")
    with pytest.raises(CommitFailedError):
        other.mark(fork.line(NOON), f"{STREAM}~1")


async def test_a_restart_that_loses_nothing_and_a_trim_are_no_forks(past: History):
    await past.moves(3)
    await past.archive()
    await asyncio.to_thread(past.server.kill)
    await asyncio.to_thread(past.server.start)
    await past.new_epoch()
    await past.archive()
    await past.client.xtrim(STREAM, maxlen=0, approximate=False)
    await past.archive()
    await past.moves(2)
    await past.archive()

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert past.forks() == []
    assert await past.verified() == []


async def test_a_fork_is_seen_though_all_that_stood_before_it_was_trimmed(past: History):
    """Nothing is left at our position, as after any trim; only `seq` tells that what follows is another history."""
    await past.moves(2)
    await past.archive()
    await past.remember()
    await past.moves(2)
    await past.archive()
    await past.go_back()
    await past.poller_comes_back()
    first = len(await past.client.xrange(STREAM))
    await past.moves(3)
    new_id = (await past.client.xrange(STREAM))[first][0]
    await past.client.xtrim(STREAM, minid=new_id, approximate=False)
    assert await past.verified() == ["ka20003: the server has lost entries: start the archive, which marks where"]
    await past.archive()

    (fork,) = past.forks()
    assert fork["lost"] == 2
    assert sorted(past.ids_archived()) == sorted(past.published)
    await past.is_well(forks=1)


async def test_verify_says_that_a_fork_is_not_marked_yet(past: History):
    await past.moves(2)
    await past.remember()
    await past.moves(2)
    await past.archive()
    await past.go_back()

    assert await past.verified() == ["ka20003: the server has lost entries: start the archive, which marks where"]


async def test_the_command_fails_until_the_fork_is_marked_and_then_tells_it(
    past: History, capsys: pytest.CaptureFixture[str]
):
    config = past.path.with_name("sectorwire.toml")
    content = f"""
        [bus]
        url = "{past.server.url}"
        prefix = "test"
        [archive]
        path = "{past.path}"
        [[poll]]
        tr = "ka20003"
        target = {{ inds_cd = "001" }}
        every = "10s"
    """
    await asyncio.to_thread(config.write_text, content)

    async def verifying() -> tuple[int, list[str]]:
        status = await asyncio.to_thread(main, ["archive", "verify", "--config", str(config)])
        return status, capsys.readouterr().out.splitlines()

    await past.moves(2)
    await past.remember()
    await past.moves(2)
    await past.archive()
    await past.go_back()
    unmarked = await verifying()
    await past.poller_comes_back()
    await past.archive()
    status, (fork, verdict) = await verifying()

    assert unmarked == (1, ["ka20003: the server has lost entries: start the archive, which marks where"])
    assert (status, verdict) == (0, "well: archive, streams and snapshots agree")
    assert fork.startswith("ka20003: fork 1: ")
    assert fork.endswith("were written before the fork, lost by the server")


async def test_verify_counts_what_only_the_archive_has(past: History):
    """What the server lost is nowhere else: a fork that is marked is well only as long as the archive has all of it."""
    await past.moves(2)
    await past.remember()
    await past.moves(2)
    await past.archive()
    await past.go_back()
    await past.poller_comes_back()
    await past.moves(1)
    await past.archive()
    (fork,) = past.forks()
    ((epoch, _, last),) = fork["ranges"]
    await past.is_well(forks=1)
    await asyncio.to_thread(DeltaTable(str(past.path / "ka20003/indices")).delete, f"epoch = {epoch} AND seq = {last}")

    (finding, _) = await past.verified()
    assert finding == "ka20003: the archive has 1 of 2 entries that the server lost at its fork 1"


async def test_an_archiver_that_dies_before_the_mark_marks_it_later(past: History, monkeypatch: pytest.MonkeyPatch):
    await past.moves(2)
    await past.remember()
    await past.clock_ahead()
    await past.moves(2)
    await past.archive()
    await past.go_back()
    await past.poller_comes_back()
    marking, tries = ArchiveTable.mark, iter([OSError("no space left on device"), None])

    def mark(self: ArchiveTable, notice: Line, history: str) -> None:
        if error := next(tries):
            raise error
        marking(self, notice, history)

    monkeypatch.setattr(ArchiveTable, "mark", mark)
    await past.moves(2)
    await past.archive()

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert len(past.forks()) == 1


async def test_alerts_go_on_from_what_the_server_has_and_decide_the_rest_under_the_same_ids(past: History):
    """What was published before the loss is decided again, which no receiver takes for news; what comes is heard."""
    client, stop = past.client, asyncio.Event()
    await client.xadd(STREAM, fields(1, -3))
    await past.remember()
    role = AlertRole(past.redis, "test", KNOWN, rules(), "one")
    with capture_logs() as logs:
        working = asyncio.create_task(role.run(stop))
        await past.clock_ahead()
        await client.xadd(STREAM, fields(2, -1))
        await until(lambda: role.decided == 2)
        decided = [one["id"] for _, one in await client.xrange(ALERTS)]
        await past.go_back()
        await until(lambda: role.decided == 3)
        await client.xadd(STREAM, fields(3, -1))
        await until(lambda: role.decided == 4)
        stop.set()
        await working

    assert [one["id"] for _, one in await client.xrange(ALERTS)] == decided
    assert [log["event"] for log in logs].count("alert.forked") == 1


async def handed(redis: Redis, stream_id: str, number: int, pct: int) -> Batch:
    """An entry of the stream, as the group hands it over."""
    entry: Any = fields(number, pct)
    await redis.xadd(STREAM, entry, id=stream_id)
    return [Delivery("ka20003", stream_id, entry, decode(entry))]


def test_another_entry_under_the_same_id_is_seen_without_a_query():
    """What stands where the last one stood that this process wrote has to be that one, whatever connection tells it."""
    server = ModelServer(lambda: 1)
    server.xadd(STREAM, {"id": "one"}, id="1-0")
    asked = partial(parted, cast("Redis", ModelRedis(server)), STREAM, packed("1-0"))

    assert run(asked(entry_id="one")) is None
    assert run(asked(entry_id="other")) is not None


def test_a_server_without_memory_can_still_be_asked():
    """Redis takes nothing into a MULTI then; were it asked so, the archive could never read it down."""
    server = ModelServer(lambda: 1)
    server.xadd(STREAM, {"id": "one"}, id="1-0")
    server.refuses, server.queue_needs_memory = OutOfMemoryError("full"), True

    assert run(parted(cast("Redis", ModelRedis(server)), STREAM, packed("1-0"))) is None


async def test_an_entry_with_a_lower_id_is_not_passed_over_before_the_server_was_asked(redis: Redis):
    """The client may have made another connection without a word, so nobody has been told of the loss."""
    lower, higher = await handed(redis, "1000-0", 2, -3), await handed(redis, "2000-0", 1, -1)
    decider = Decider(redis, "test", "ka20003", rules())
    await decider.handle(higher)
    await redis.delete(ALERTING)
    with capture_logs() as logs:
        await decider.handle(lower)

    assert decider.decided == 1
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["alert.forked"]


def of_the_level() -> list[Rule]:
    """Fires above 3,100 and not again before it was below."""
    return rules({"kind": "compare", "field": "level", "op": ">", "value": 3100}, keys=[first_key()])


def first_key() -> str:
    """The index that moves."""
    return str(TOLD.rows["indices"][0][0])


class Working:
    """The consumers of one process, as `sectorwire run` has them, until they are stopped."""

    def __init__(self, past: History) -> None:
        desk = Desk(of_the_level(), [], ArchiveSettings(path=past.path, flush=0))
        self.roles, self._stop = roles_of(desk, past.redis, "test", KNOWN), asyncio.Event()
        self._task = asyncio.create_task(self.roles.run(self._stop))

    async def stop(self) -> None:
        self._stop.set()
        await self._task


async def all_read(past: History) -> None:
    """Return when archive and alerts have done with all that the stream holds now."""
    await past.archived()
    last = (await past.client.xinfo_stream(STREAM))["last-generated-id"]
    async with asyncio.timeout(20):
        while await past.client.hget(ALERTING, "position") != last:  # noqa: ASYNC110 -- the server has no event for it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("consumers_stay", "poller_remembers"), [(True, True), (True, False), (False, True), (False, False)]
)
async def test_nothing_is_missed_on_a_server_that_lost_its_tail_and_whose_clock_is_five_seconds_behind(
    past: History, monkeypatch: pytest.MonkeyPatch, consumers_stay: bool, poller_remembers: bool
):
    """The end of the file is gone after a crash of the machine; who else was on that machine was started again with it.

    A server's clock shows in the ids alone: the lost entries, and the lost decisions, have ids from five seconds ahead
    of those that come in their place.
    """
    monkeypatch.setattr("consumers.alert.decide.TICK_S", 0.05)
    monkeypatch.setattr("consumers.alert.decide.LOOK_AGAIN", timedelta(0))
    with capture_logs() as logs:
        working = Working(past)
        await past.moves_to(3000, 3200, 3000)
        await all_read(past)
        size = past.file.stat().st_size
        await past.clock_ahead(5)
        await past.moves_to(3300, 3000, 3400)
        await all_read(past)
        lost = (await past.client.xinfo_stream(STREAM))["last-generated-id"]
        decided = await decisions(past)
        if not consumers_stay:
            await working.stop()
        await past.cut(size)
        kept, decided_before = await past.ids(), await decisions(past)
        if not consumers_stay:
            await past.client.delete(*(f"test:{{ka20003}}:active:{group}" for group in ("alert", "archive")))
            working = Working(past)
        await past.poller_comes_back(remembers=poller_remembers)
        await past.moves_to(3500, 3000, 3600, 3700, 3000)
        await all_read(past)
        await until(lambda: {"alert.forked", "archive.forked"} <= {log["event"] for log in logs})
        ends, marks = (await past.client.xinfo_stream(STREAM))["last-generated-id"], await past.marks()
        await working.stop()

    assert len(kept) < len(past.published) - 5
    assert sorted(past.ids_archived()) == sorted(past.published)
    await past.is_well(forks=1)
    called_for = steps(of_the_level(), {}, [decode(one) for _, one in await past.client.xrange(STREAM)], NOON)[1]
    now_decided = await decisions(past)
    assert now_decided == [(one.id, one.transition) for one in called_for]
    assert len({one for one, _ in {*decided, *now_decided}}) == len({*decided, *now_decided})
    assert len(decided_before) < len(decided)
    events = Counter(log["event"] for log in logs)
    assert (events["archive.forked"], events["alert.forked"]) == (1, 1)
    assert marks["archive"]["lost"] == 3
    seen_by = "alert" if consumers_stay else "archive"
    assert marks["alert"]["seen_by"] == seen_by
    if packed(ends) >= packed(lost):
        pytest.skip("this took more than five seconds, and the ids have overtaken those that were lost")


async def decisions(past: History) -> list[tuple[str, str]]:
    """What the alerts stream holds: the id of each, and whether it begins or ends."""
    return [(one["id"], one["type"].rpartition(".")[2]) for _, one in await past.client.xrange(ALERTS)]


@pytest.fixture
def decider(redis: Redis) -> Decider:
    """Of a process that remembers nothing."""
    return Decider(redis, "test", "ka20003", rules(), now=lambda: NOON)


def mark(ago: timedelta, had: str = "9-0") -> str:
    """What a role wrote down so long ago."""
    return dumps({"at": iso(NOON - ago), "had": had, "has": "7-0"})


async def heard(decider: Decider) -> list[str]:
    """Who had seen it, of each fork that the next look is told of."""
    decider._looked_at = None
    with capture_logs() as logs:
        await decider.tick()
    return [log["seen_by"] for log in logs if log["event"] == "alert.forked"]


async def test_an_alert_role_without_memory_says_what_another_role_has_marked(redis: Redis, decider: Decider):
    """Its state went back with the server, so it has nothing to compare. It says each fork once, whoever marks it."""
    client: Any = redis
    said = [await heard(decider)]
    await client.hset(FORKS, "archive", mark(timedelta(minutes=2)))
    said += [await heard(decider), await heard(decider)]
    await client.hset(FORKS, "poller", mark(timedelta(minutes=1), "version 9"))
    said += [await heard(decider)]
    await client.hset(FORKS, "archive", mark(timedelta(minutes=-11)))
    said += [await heard(decider), await heard(decider)]

    assert said == [[], ["archive"], [], [], ["archive"], []]
    assert loads(await client.hget(FORKS, "alert"))["seen_by"] == "archive"


@pytest.mark.parametrize("text", [mark(timedelta(hours=25)), '{"at": "whenever"}', "no mark at all", "{}"])
async def test_an_old_mark_or_none_of_ours_is_no_news(redis: Redis, decider: Decider, text: str):
    client: Any = redis
    await client.hset(FORKS, "poller", text)

    assert await heard(decider) == []


async def test_a_fork_that_cannot_be_written_down_stops_no_alert(redis: Redis, decider: Decider):
    """It is a note: whoever put something else under that name has hidden it from `status`, and no more."""
    client: Any = redis
    lower, higher = await handed(redis, "1000-0", 2, -3), await handed(redis, "2000-0", 1, -3)
    await decider.handle(higher)
    await client.delete(ALERTING)
    await client.set(FORKS, "something else")
    with capture_logs() as logs:
        await decider.handle(lower)
        assert await heard(decider) == []

    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["alert.forked"]
    assert decider.decided == 2
