"""Bytes that are not UTF-8, from another program, end nobody who reads the stream; the entries around them flow on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from consumers.archive.questions import verify
from consumers.group import MAX_HANDED_OUT, Batch
from consumers.parked import ParkingLot
from consumers.tail import follow
from poller.contract import decode, entry_in, printable
from sectorwire import main
from tests.servers import RealServer
from tests.test_archive import KNOWN, archive, frame
from tests.test_group import PARKED, STREAM, Notebook, consuming, member, notes, pending, publish, short_waits, until
from tests.test_parked import config

__all__ = ["config", "notes", "short_waits"]
STRANGE: dict[Any, Any] = {"id": b"\xff\xfe", "data": b'{"label": "\xb0\xa1"}', b"\xc7\xd1": "1"}
"""Korean as EUC-KR writes it, among others."""


async def published_among_others(redis: Redis) -> str:
    """One such entry between two of ours; its stream id."""
    await publish(redis, 1)
    where = await redis.xadd(STREAM, STRANGE)
    await publish(redis, 2)
    return str(where)


async def test_it_is_handed_over_as_no_entry_of_ours_and_acknowledged(redis: Redis, notes: Notebook):
    strange: list[dict[str, str]] = []

    async def handle(batch: Batch) -> None:
        strange.extend(one.fields for one in batch if one.entry is None)
        await notes(batch)

    await published_among_others(redis)
    async with consuming(member(redis), handle):
        await until(lambda: notes.seen == [1, 2])

    assert [fields["id"].encode(errors="surrogateescape") for fields in strange] == [b"\xff\xfe"]
    assert await pending(redis) == 0


async def test_it_is_parked_byte_by_byte_where_a_handler_cannot_do_it_and_is_shown_in_print(
    redis: Redis, real_server: RealServer, notes: Notebook, config: str, capfdbinary: pytest.CaptureFixture[bytes]
):
    async def handle(batch: Batch) -> None:
        for one in batch:
            if one.entry is None:
                raise ValueError(one.fields["id"])
        await notes(batch)

    where = await published_among_others(redis)
    with capture_logs():
        async with consuming(member(redis), handle):
            await until(lambda: notes.seen == [1, 2])
    (parked,) = await ParkingLot(redis, "test", ["ka20003"]).listed()
    shown = await asyncio.to_thread(main, ["parked", "show", "ka20003", "desk", parked.id, "--config", config])

    assert shown == 0
    assert json.loads(capfdbinary.readouterr().out.partition(b"\n")[0])["fields"] == parked.fields
    assert (parked.fields["id"], parked.fields["??"]) == ("??", "1")
    assert parked.why == rf"handed out {MAX_HANDED_OUT} times and never acknowledged; ValueError: \udcff\udcfe"
    client: Any = redis
    ((_, kept),) = await client.xrange(PARKED)
    ((_, stood),) = await client.xrange(STREAM, where, where)
    assert {name: kept[name] for name in stood} == stood


async def test_tail_passes_over_it_and_says_so(redis: Redis):
    await published_among_others(redis)
    seen: list[int] = []
    with capture_logs() as logs:
        async for entries in follow(redis, "test", ["ka20003"], from_start=True, over=lambda: bool(seen)):
            seen.extend(entry.seq for entry in entries)

    assert seen == [1, 2]
    assert [(log["event"], log["entries"]) for log in logs] == [("entries.unreadable", 1)]


async def test_the_archive_keeps_it_as_unreadable_and_sees_no_fork_in_it(redis: Redis, tmp_path: Path):
    """The second start looks at the entry where the first one ended."""
    await redis.xadd(STREAM, STRANGE)
    with capture_logs() as logs:
        await archive(redis, tmp_path)
        await archive(redis, tmp_path)

    assert frame(tmp_path, "unreadable")["event_id"].to_list() == ["??"]
    assert "archive.forked" not in [log["event"] for log in logs]
    assert await verify(redis, "test", tmp_path, KNOWN) == []


def test_a_client_that_reads_bytes_and_one_that_reads_text_find_the_same():
    ours = {"id": "a", "source": "s", "type": "t", "subject": "-", "time": "2026-11-23T09:00:01+09:00", "seq": "1"}
    for data in ("{}", '{"label": "\udcb0"}'):
        texts = {**ours, "data": data}
        raw = {name.encode(): text.encode(errors="surrogateescape") for name, text in texts.items()}

        assert entry_in(texts) == entry_in(raw) == (decode(ours | {"data": "{}"}) if data == "{}" else None)


def test_what_is_printable_stays_as_it_is():
    assert [*map(printable, ("종합(KOSPI) ▼", "\udcb0\ud800"))] == ["종합(KOSPI) ▼", "??"]
