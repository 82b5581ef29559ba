"""A server that lost its newest entries is seen: nothing is archived twice, and nothing that came after it is missed.

Every history here is a real one: a server's directory is copied, the server goes on, and is put back to the copy.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deltalake.exceptions import CommitFailedError
from redis.asyncio import Redis
from structlog.testing import capture_logs

from consumers.alert.decide import AlertRole, Decider
from consumers.archive.fork import Fork
from consumers.archive.questions import archive_status, run_sql, verify
from consumers.archive.settings import ArchiveSettings
from consumers.archive.tables import Line, declared, packed
from consumers.archive.writer import ArchiveRole, ArchiveTable
from consumers.group import Batch, Delivery
from poller.catalogue import CATALOGUE, described
from poller.commit import Known, decide
from poller.contract import decode, loads
from poller.store import Store, connect
from tests.builders import NOON, recording, seen
from tests.servers import RealServer
from tests.test_alert_decide import fields, rules

KNOWN = {"ka20003": described()["ka20003"]}
STREAM, POSITION = "test:{ka20003}:changes", "test:{ka20003}:position:archive"
ALERTS = "test:{ka20003}:alerts"
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
        for _ in range(times):
            first, *others = TOLD.answer["all_inds_idex"]
            self._polls += 1
            answer = {**TOLD.answer, "all_inds_idex": [{**first, "cur_prc": f"-{3000 + self._polls}"}, *others]}
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

    async def poller_comes_back(self) -> None:
        """What a leader does that finds an older version than it committed: another epoch, and a reset follows."""
        self._known = replace(await self._store.load(TOLD.target), rolled_back=True)
        await self.new_epoch()

    async def clock_ahead(self) -> None:
        """Let the ids go on from a minute ahead: who is put back to before that has a clock a minute behind."""
        await self.client.execute_command("XSETID", STREAM, f"{round(time.time() * 1000) + 60_000}-0")

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
        return await verify(self.redis, "test", self.path, KNOWN)


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
        f"ka20003: fork 1: the stream ended at {last_kept}, the archive at {last_lost}; "
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
    assert len(await past.verified()) == 1


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
    assert len(await past.verified()) == 1


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
    assert len(await past.verified()) == 1


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
    assert len(await past.verified()) == 2
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
    assert len(await past.verified()) == 1


async def test_a_stream_that_was_lost_alone_is_read_though_the_group_stands_beyond_it(past: History):
    """The group is made anew where it had been, and nothing with a lower id would ever be handed to it."""
    await past.moves(1)
    await past.clock_ahead()
    await past.moves(2)
    await past.archive()
    await past.client.delete(STREAM)
    await past.poller_comes_back()
    await past.moves(2)
    await past.archive()

    assert sorted(past.ids_archived()) == sorted(past.published)
    assert len(past.forks()) == 1
    assert len(await past.verified()) == 1


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


async def test_verify_says_that_a_fork_is_not_marked_yet(past: History):
    await past.moves(2)
    await past.remember()
    await past.moves(2)
    await past.archive()
    await past.go_back()

    assert await past.verified() == ["ka20003: the server has lost entries: start the archive, which marks where"]


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


async def test_an_entry_with_a_lower_id_is_not_passed_over_before_the_server_was_asked(redis: Redis):
    """The client may have made another connection without a word, so nobody has been told of the loss."""

    def handed(stream_id: str, number: int, pct: int) -> Batch:
        entry = fields(number, pct)
        return [Delivery("ka20003", stream_id, entry, decode(entry))]

    decider = Decider(redis, "test", "ka20003", rules())
    await decider.handle(handed("2000-0", 1, -1))
    await redis.delete("test:{ka20003}:alerting")
    with capture_logs() as logs:
        await decider.handle(handed("1000-0", 2, -3))

    assert decider.decided == 1
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["alert.forked"]
