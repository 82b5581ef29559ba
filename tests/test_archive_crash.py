"""The archiver is killed again and again, half of the times between effect and acknowledgement: nothing lost or twice.

Run as a program, this file is the archiver that is to be killed: URL, folder and the moment to die, if it is to choose.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from redis.asyncio import Redis

from consumers import group
from consumers.archive import writer
from consumers.archive.questions import verify
from consumers.archive.settings import ArchiveSettings
from consumers.archive.writer import ArchiveRole, ArchiveTable
from poller.catalogue import CATALOGUE, described
from poller.commit import Known, decide
from poller.store import Store, connect
from tests.builders import EPOCH, recording, seen
from tests.servers import RealServer

ROOT = Path(__file__).parents[1]
CODES = ("ka20001", "ka20003")
AFTER_WRITE, IN_MERGE, ANY = "after-write", "in-merge", "any"


async def keep_moving(store: Store, code: str, stop: asyncio.Event) -> None:
    """A market of one target that moves until `stop`."""
    told, known, polls = recording(code), Known(), 0
    while not stop.is_set():
        level = f"-{2000 + polls / 100:.2f}"
        if code == "ka20003":
            first, *others = told.answer["all_inds_idex"]
            answer = {**told.answer, "all_inds_idex": [{**first, "cur_prc": level}, *others]}
        else:
            answer = {**told.answer, "cur_prc": level}
        commit = decide(told.target, known, replace(seen(told.target, answer, polls), epoch=store.epochs[code]))
        await store.commit(commit, {})
        known, polls = commit.known, polls + 1
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.01)


async def kill_often(url: str, path: Path, times: int) -> None:
    """Let an archiver work and die, so many times; half of them choose a moment that hurts."""
    for number in range(times):
        how = (AFTER_WRITE, ANY, IN_MERGE, ANY)[number % 4]
        after = random.randint(1, 6)
        command = [sys.executable, "-m", "tests.test_archive_crash", url, str(path), how, str(after)]
        child = await asyncio.to_thread(subprocess.Popen, command, cwd=ROOT, stdout=subprocess.DEVNULL)
        if how == ANY:
            await asyncio.sleep(0.7 + random.random())
            child.kill()
        assert await asyncio.to_thread(child.wait, 30) == -signal.SIGKILL


async def archived_to_the_end(redis: Redis, path: Path) -> ArchiveRole:
    client: Any = redis
    role, stop = (
        ArchiveRole(redis, "test", described(), ArchiveSettings(path=path, flush=0), "survivor"),
        asyncio.Event(),
    )
    working = asyncio.create_task(role.run(stop))
    async with asyncio.timeout(60):
        for code in CODES:
            stream = f"test:{{{code}}}:changes"
            last = (await client.xrevrange(stream, count=1))[0][0]
            while await client.get(f"test:{{{code}}}:position:archive") != last:  # noqa: ASYNC110 -- the server has no event for it
                await asyncio.sleep(0.05)
    stop.set()
    await working
    return role


async def killed_and_checked(redis: Redis, url: str, path: Path, times: int) -> None:
    client: Any = redis
    store, stop = Store(redis, "test"), asyncio.Event()
    await store.take_lead(CATALOGUE, EPOCH)
    async with asyncio.TaskGroup() as together:
        for code in CODES:
            together.create_task(keep_moving(store, code, stop))
        try:
            await kill_often(url, path, times)
        finally:
            stop.set()
    await archived_to_the_end(redis, path)

    notices = pl.read_delta(str(path / "notices"))
    for code in CODES:
        published = [fields["id"] for _, fields in await client.xrange(f"test:{{{code}}}:changes")]
        tables = [pl.read_delta(str(log.parent)) for log in (path / code).glob("*/_delta_log")]
        archived = [one for table in tables for one in table["event_id"]]
        archived += notices.filter(tr=code)["event_id"].to_list()
        assert len(published) > 50 * times
        assert sorted(archived) == sorted(published)
        assert not await client.exists(f"test:{{{code}}}:parked:archive")
    assert len(DeltaTable(str(path / "ka20003/indices")).file_uris()) < 20
    assert await verify(redis, "test", path, described()) == []


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "BLOCK_MS", 100)
    monkeypatch.setattr(writer, "TIDY_AFTER", 10)


async def test_an_archiver_killed_six_times_archives_each_entry_once(
    redis: Redis, real_server: RealServer, tmp_path: Path
):
    await killed_and_checked(redis, real_server.url, tmp_path / "archive", 6)


@pytest.mark.soak
async def test_an_archiver_killed_twenty_times_archives_each_entry_once(
    redis: Redis, real_server: RealServer, tmp_path: Path
):
    await killed_and_checked(redis, real_server.url, tmp_path / "archive", 20)


def _dying(call: Any, after: int) -> Any:
    """The call, with a process that dies right after it has done its work for the so-manieth time."""
    left = after

    def wrapped(*args: Any, **more: Any) -> Any:
        nonlocal left
        result = call(*args, **more)
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


async def _work(url: str, path: Path, how: str, after: int) -> None:
    if how == AFTER_WRITE:
        ArchiveTable.write = _dying(ArchiveTable.write, after)  # type: ignore[method-assign]  # it dies of it
    if how == IN_MERGE:
        DeltaTable.create_checkpoint = _dying(lambda _: None, 1)  # type: ignore[method-assign]  # merged, and no more
    group.LEASE_S, group.BLOCK_MS, writer.TIDY_AFTER = 0.5, 100, 5
    redis = connect(url)
    role = ArchiveRole(redis, "test", described(), ArchiveSettings(path=path, flush=0), "killed")
    await role.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
