"""The power goes before a commit of the archive is on the disk: what is torn is set aside, and archived again, once.

Nothing was acknowledged then, so every test that tears a commit first sees to it that it is written and no more.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from deltalake import DeltaTable
from redis.asyncio import Redis
from structlog.testing import capture_logs

from consumers.archive import torn, writer
from consumers.archive.disk import in_thread
from consumers.archive.questions import QuestionError, archive_status, run_sql, verify
from consumers.archive.settings import ArchiveSettings
from consumers.archive.writer import ArchiveRole, ArchiveTable
from poller.catalogue import CATALOGUE
from poller.store import Store, connect
from tests.builders import EPOCH
from tests.servers import RealServer
from tests.test_archive import COLUMNS, GROUP, INDICES, KNOWN, STREAM, Watch, archive, archiving, frame, ids, line

Tear = Callable[[Path], None]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for the read that is under way, and trouble for the next try."""
    monkeypatch.setattr("consumers.group.BLOCK_MS", 50)
    monkeypatch.setattr("consumers.group.RETRY_S", 0.05)


@pytest.fixture
async def store(redis: Redis) -> Store:
    made = Store(redis, "test")
    assert await made.take_lead(CATALOGUE, EPOCH) == 0
    return made


def entry(table: Path, back: int = 0) -> Path:
    """The newest log entry, or one so many before it."""
    return sorted((table / "_delta_log").glob("*.json"))[-1 - back]


def data(table: Path, back: int = 0) -> Path:
    """The one file that a commit adds."""
    (name,) = torn._Commit.read(table / "_delta_log", int(entry(table, back).stem)).files("add")
    return table / name


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def halved(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


TEARS: dict[str, Tear] = {
    "data file empty": lambda table: emptied(data(table)),
    "data file half": lambda table: halved(data(table)),
    "data file zeros": lambda table: zeroed(data(table)),
    "data file gone": lambda table: data(table).unlink(),
    "entry empty": lambda table: emptied(entry(table)),
    "entry half": lambda table: halved(entry(table)),
    "entry zeros": lambda table: zeroed(entry(table)),
}


async def write_and_lose_power(redis: Redis, path: Path, table: str = INDICES) -> None:
    """Let the archive write what is there to a table; it dies between that and the acknowledgement."""
    writing, written = ArchiveTable.write, threading.Event()

    def write(self: ArchiveTable, lines: Any) -> int:
        count = writing(self, lines)
        if self._path == path / table:
            written.set()
            raise OSError("no power")
        return count

    with patch.object(ArchiveTable, "write", write):
        async with archiving(redis, path):
            assert await asyncio.to_thread(written.wait, 20)
    client: Any = redis
    assert (await client.xpending(STREAM, GROUP))["pending"] > 0


@contextmanager
def told() -> Iterator[dict[str, list[Any]]]:
    """What is logged, by event."""
    found: dict[str, list[Any]] = {}
    with capture_logs() as logs:
        yield found
    for log in logs:
        found.setdefault(log["event"], []).append(log)


async def published(redis: Redis, *streams: str) -> list[str]:
    """The ids of all entries of the streams."""
    return sorted([one for stream in streams for one in await ids(redis, stream)])


def archived(path: Path) -> list[str]:
    """The ids of all that the archive holds."""
    tables = [log.parent.relative_to(path).as_posix() for log in path.glob("*/*/_delta_log")]
    return sorted(one for table in [*tables, "notices"] for one in frame(path, table)["event_id"])


@pytest.mark.parametrize("tear", ["data file half", "data file gone", "entry empty", "entry half"])
async def test_a_commit_torn_by_a_power_cut_is_set_aside_and_archived_once(
    redis: Redis, store: Store, tmp_path: Path, tear: str
):
    watch = Watch(store)
    await watch.sees()
    await archive(redis, tmp_path)
    await watch.moves(1)
    await write_and_lose_power(redis, tmp_path)
    name = entry(tmp_path / INDICES).name
    TEARS[tear](tmp_path / INDICES)
    with pytest.raises(QuestionError, match=f"{INDICES}: a power cut has torn .*start `sectorwire archive`"):
        await archive_status(tmp_path, "test")
    (finding,) = await verify(redis, "test", tmp_path, KNOWN)
    with told() as logs:
        await archive(redis, tmp_path)

    assert finding.startswith(f"ka20003: the archive cannot be read: {INDICES}: a power cut has torn ")
    assert archived(tmp_path) == await published(redis, STREAM)
    assert await verify(redis, "test", tmp_path, KNOWN) == []
    (warning,) = logs["archive.torn"]
    assert (warning["table"], warning["versions"]) == (str(tmp_path / INDICES), (int(name[:20]),))
    assert len(warning["files"]) == 1
    assert "archive.undone" not in logs
    assert list((tmp_path / INDICES / torn.ASIDE).glob(f"*/{name}"))


async def test_a_torn_commit_to_a_table_that_all_share_takes_the_later_ones_of_others_with_it(
    redis: Redis, store: Store, tmp_path: Path
):
    """The stream of each TR hands out again what was in them."""
    await archive(redis, tmp_path)
    for code in ("ka20001", "ka20003"):
        await Watch(store, code).sees()
    await write_and_lose_power(redis, tmp_path, "notices")
    emptied(data(tmp_path / "notices", back=1))
    with told() as logs:
        await archive(redis, tmp_path)

    assert [log["versions"] for log in logs["archive.torn"]] == [(1, 2)]
    assert "archive.undone" not in logs
    assert archived(tmp_path) == await published(redis, STREAM, "test:{ka20001}:changes")
    assert await verify(redis, "test", tmp_path, KNOWN) == []


async def test_a_disk_that_lost_what_it_had_confirmed_is_told_and_the_stream_is_read_again(
    redis: Redis, store: Store, tmp_path: Path
):
    watch = Watch(store)
    await watch.sees()
    await archive(redis, tmp_path)
    await watch.moves(2)
    await archive(redis, tmp_path)
    emptied(data(tmp_path / INDICES))
    await watch.moves(1)
    with told() as logs:
        await archive(redis, tmp_path)

    (error,) = logs["archive.undone"]
    assert (error["log_level"], error["streams"]) == ("error", [STREAM])
    assert archived(tmp_path) == await published(redis, STREAM)
    assert await verify(redis, "test", tmp_path, KNOWN) == []


@pytest.mark.parametrize("tear", ["data file half", "entry half"])
async def test_what_such_a_disk_lost_and_the_stream_has_no_more_is_found_by_verify(
    redis: Redis, store: Store, tmp_path: Path, tear: str
):
    client: Any = redis
    watch = Watch(store)
    await watch.sees()
    await archive(redis, tmp_path)
    await watch.moves(1)
    await archive(redis, tmp_path)
    TEARS[tear](tmp_path / INDICES)
    await client.xtrim(STREAM, maxlen=0, approximate=False)
    await watch.moves(1)
    await archive(redis, tmp_path)

    assert "ka20003: seq goes from 4 to 6" in await verify(redis, "test", tmp_path, KNOWN)


def table_of(root: Path, rows: int) -> ArchiveTable:
    """A table with so many rows, each in a file of its own."""
    table = ArchiveTable(root, INDICES, STREAM, COLUMNS[INDICES])
    for number in range(1, rows + 1):
        table.write([line({"level": number}, number)])
    return table


def levels(root: Path) -> list[int]:
    return sorted(int(level) for level in frame(root)["level"])


@pytest.mark.parametrize("tear", TEARS)
def test_where_a_merge_is_torn_the_files_that_it_merged_count_again(tmp_path: Path, tear: str):
    table = table_of(tmp_path, 3)
    table.delta.optimize.compact(post_commithook_properties=writer.NO_HOOKS)
    TEARS[tear](tmp_path / INDICES)
    done = torn.set_aside(tmp_path / INDICES)

    assert done
    assert done.versions == (4,)
    assert levels(tmp_path) == [1, 2, 3]
    assert len(DeltaTable(str(tmp_path / INDICES)).file_uris()) == 3


def test_a_file_that_a_torn_merge_had_replaced_may_be_torn_as_well(tmp_path: Path):
    table = table_of(tmp_path, 3)
    table.delta.optimize.compact(post_commithook_properties=writer.NO_HOOKS)
    halved(data(tmp_path / INDICES, back=2))
    halved(data(tmp_path / INDICES))
    done = torn.set_aside(tmp_path / INDICES)

    assert done
    assert done.versions == (2, 3, 4)
    assert levels(tmp_path) == [1]


@pytest.mark.parametrize("tear", [emptied, halved, zeroed])
def test_a_torn_checkpoint_is_set_aside_alone(tmp_path: Path, tear: Tear):
    table = table_of(tmp_path, 3)
    table._tidy(full=False)
    table.write([line({"level": 4}, 4)])
    (checkpoint,) = (tmp_path / INDICES / "_delta_log").glob("*.checkpoint.parquet")
    tear(checkpoint)
    done = torn.set_aside(tmp_path / INDICES)

    assert done
    assert (done.versions, done.broken) == ((), (checkpoint.name,))
    assert levels(tmp_path) == [1, 2, 3, 4]
    assert table_of(tmp_path, 5).position
    assert levels(tmp_path) == [1, 2, 3, 4, 5]


def test_a_log_with_a_hole_ends_before_it(tmp_path: Path):
    """Names reach the disk in any order."""
    table_of(tmp_path, 4)
    entry(tmp_path / INDICES, back=1).unlink()
    done = torn.set_aside(tmp_path / INDICES)

    assert done
    assert done.versions == (4,)
    assert levels(tmp_path) == [1, 2]


def test_a_table_whose_beginning_is_torn_begins_again(tmp_path: Path):
    table_of(tmp_path, 0)
    emptied(entry(tmp_path / INDICES))
    assert torn.set_aside(tmp_path / INDICES)
    table_of(tmp_path, 1)

    assert levels(tmp_path) == [1]


def test_of_two_that_find_a_torn_commit_the_second_leaves_alone_what_the_first_has_written_since(tmp_path: Path):
    table_of(tmp_path, 2)
    emptied(data(tmp_path / INDICES))
    assert torn.find(tmp_path / INDICES)
    assert torn.set_aside(tmp_path / INDICES)
    table_of(tmp_path, 2)

    assert torn.set_aside(tmp_path / INDICES) is None
    assert levels(tmp_path) == [1, 2]


def test_what_others_write_and_merge_just_now_is_never_taken_for_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever looks sees whole commits, or none."""
    monkeypatch.setattr(writer, "TIDY_AFTER", 4)
    table, over = table_of(tmp_path, 1), threading.Event()
    looking = threading.Thread(target=lambda: found.extend(looks(tmp_path / INDICES, over)))
    found: list[Any] = []
    looking.start()
    for number in range(2, 18):
        table.write([line({"level": number}, number)])
        table.tidy_if_due()
    over.set()
    looking.join()

    assert len(found) > 10
    assert not any(found)
    assert levels(tmp_path) == [*range(1, 18)]


def looks(table: Path, over: threading.Event) -> Iterator[Any]:
    while not over.is_set():
        yield torn.find(table)


def test_a_log_that_is_tidied_just_then_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table_of(tmp_path, 2)
    names = torn._names(tmp_path / INDICES / "_delta_log")
    listings = iter([[*names, f"{3:020}.json"], names])
    monkeypatch.setattr(torn, "_names", lambda _: next(listings))

    assert torn.find(tmp_path / INDICES) is None
    assert next(listings, None) is None


def test_before_the_last_checkpoint_nothing_is_looked_for(tmp_path: Path):
    """What was on the disk and is broken now was broken by something else, and setting it aside might lose more."""
    table = table_of(tmp_path, 3)
    table._tidy(full=False)
    emptied(next((tmp_path / INDICES).glob("*/*zstd.parquet")))

    assert torn.find(tmp_path / INDICES) is None


def test_a_file_that_a_merge_has_replaced_is_not_missed(tmp_path: Path):
    """`vacuum` takes it a day later, when the table may have had no more commits."""
    table_of(tmp_path, 3).delta.optimize.compact(post_commithook_properties=writer.NO_HOOKS)
    data(tmp_path / INDICES, back=1).unlink()

    assert torn.find(tmp_path / INDICES) is None


def test_an_empty_entry_with_others_after_it_is_a_commit_of_nothing(tmp_path: Path):
    """So Delta takes it, and the later ones may have been acknowledged."""
    table_of(tmp_path, 3)
    emptied(entry(tmp_path / INDICES, back=1))

    assert torn.find(tmp_path / INDICES) is None
    assert levels(tmp_path) == [1, 3]


def test_nothing_is_moved_where_what_was_before_is_gone_as_well(tmp_path: Path):
    table = table_of(tmp_path, 2)
    first = data(tmp_path / INDICES)
    table.delta.create_checkpoint()
    table.delta.optimize.compact(post_commithook_properties=writer.NO_HOOKS)
    emptied(data(tmp_path / INDICES))
    first.unlink()
    with pytest.raises(OSError, match=f"gone as well: .*{first.name}.*from a copy"):
        torn.set_aside(tmp_path / INDICES)

    assert torn.find(tmp_path / INDICES)
    assert not (tmp_path / INDICES / torn.ASIDE).exists()


def test_nor_where_the_log_would_have_no_beginning(tmp_path: Path):
    """Delta would take the table for none, and make another over its files."""
    table = table_of(tmp_path, 3)
    table.delta.create_checkpoint()
    log = tmp_path / INDICES / "_delta_log"
    for old in log.glob("*.json"):
        old.unlink()
    halved(next(log.glob("*.checkpoint.parquet")))
    with pytest.raises(OSError, match="gone as well: every whole checkpoint"):
        torn.set_aside(tmp_path / INDICES)


def test_what_is_set_aside_is_kept_with_its_data(tmp_path: Path):
    """A commit after the torn one may be whole, and its file is no longer the table's: `vacuum` takes it some day."""
    table_of(tmp_path, 3)
    kept = data(tmp_path / INDICES).read_bytes()
    halved(data(tmp_path / INDICES, back=1))
    torn.set_aside(tmp_path / INDICES)
    table = table_of(tmp_path, 3)
    table.delta.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)

    assert levels(tmp_path) == [1, 2, 3]
    aside = [*(tmp_path / INDICES / torn.ASIDE).glob("*/*")]
    assert len([one for one in aside if one.suffix == ".json"]) == 2
    assert kept in [one.read_bytes() for one in aside]


def test_no_question_is_answered_with_rows_that_are_not_there(tmp_path: Path):
    """Delta counts rows by its log, whatever the files hold."""
    table_of(tmp_path, 2)
    emptied(data(tmp_path / INDICES))

    with pytest.raises(QuestionError, match="a power cut has torn"):
        run_sql(tmp_path, "SELECT count(*) FROM ka20003_indices")


def test_a_disk_that_hangs_holds_up_no_stop(real_server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`asyncio.run` waits for its own threads, and so does Python at its end."""
    monkeypatch.setattr("consumers.group.FINISH_S", 0.1)
    in_hand, free, hanging = threading.Event(), threading.Event(), list[threading.Thread]()

    def hang(*_: object) -> int:
        hanging.append(threading.current_thread())
        in_hand.set()
        free.wait(30)
        return 0

    async def work() -> None:
        client, stop = connect(real_server.url), asyncio.Event()
        await client.flushall()
        watched = Store(client, "test")
        assert await watched.take_lead(CATALOGUE, EPOCH) == 0
        await Watch(watched).sees()
        role = ArchiveRole(client, "test", {"ka20003": KNOWN["ka20003"]}, ArchiveSettings(path=tmp_path), "one")
        working = asyncio.create_task(role.run(stop))
        assert await in_thread(in_hand.wait, 20)
        stop.set()
        await working
        await client.aclose()

    with patch.object(ArchiveTable, "write", hang):
        asyncio.run(work())

    assert [(thread.is_alive(), thread.daemon) for thread in hanging] == [(True, True)]
    free.set()
    hanging[0].join()


@pytest.mark.parametrize(("hangs_s", "status"), [(0.2, 0), (60, 1)])
def test_a_process_waits_a_moment_for_its_disk_and_then_ends(hangs_s: float, status: int):
    """Python waits for a thread at its end, or crashes under it."""
    program = f"""
import asyncio, time
from consumers.archive import disk

async def work():
    write = asyncio.create_task(disk.in_thread(time.sleep, {hangs_s}))
    await asyncio.sleep(0.01)
    write.cancel()

disk.LEAVE_S = {10 if hangs_s < 1 else 0.1}
asyncio.run(work())
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=30)

    assert ended.returncode == status


def test_what_fails_in_such_a_thread_is_told_to_who_waits_for_it():
    def fails(of: int) -> None:
        raise ValueError(of)

    async def work() -> None:
        with suppress(ValueError):
            await in_thread(fails, of=1)
            pytest.fail("nobody was told")

    asyncio.run(work())
