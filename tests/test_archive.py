"""Every entry of a stream is in the archive, once, typed and exact, on a real server and a real disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from pydantic import ValidationError
from redis.asyncio import Redis
from structlog.testing import capture_logs

from consumers.archive import writer
from consumers.archive.disk import TIDYING, alone
from consumers.archive.questions import QuestionError, archive_status, export, run_sql, status_table, verify
from consumers.archive.settings import ArchiveSettings
from consumers.archive.tables import Line, arrow, cell, declared, placed
from consumers.archive.writer import ArchiveRole, ArchiveTable
from consumers.group import MAX_HANDED_OUT, Delivery
from poller.catalogue import CATALOGUE, described
from poller.commit import Known, decide
from poller.contract import Catalogue, decode, dumps, loads
from poller.store import Store
from poller.trs.base import Target
from tests.builders import EPOCH, MONDAY, TUESDAY, Answer, Recording, recording, seen

KNOWN = described()
STREAM, GROUP = "test:{ka20003}:changes", "archive"
INDICES = "ka20003/indices"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for the read that is under way."""
    monkeypatch.setattr("consumers.group.BLOCK_MS", 100)


@pytest.fixture
async def store(redis: Redis) -> Store:
    """A store that leads, so that streams and snapshots are those of a real poller."""
    made = Store(redis, "test")
    assert await made.take_lead(CATALOGUE, EPOCH) == 0
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder whose name has to be quoted in SQL; with a space or Korean letters in it, polars would find no file."""
    return tmp_path / "desk's"


class Watch:
    """One target as a poller watches it: each answer is compared with the last and committed."""

    def __init__(self, store: Store, code: str = "ka20003") -> None:
        self.recording: Recording = recording(code)
        self.asked: Target = self.recording.target
        self._store, self._known, self._polls = store, Known(), 0

    async def sees(self, answer: Answer | None = None, *, day: date = MONDAY) -> None:
        told = replace(
            seen(self.asked, answer or self.recording.answer, self._polls * 10.0, day=day),
            epoch=self._store.epochs[self.asked.tr.code],
        )
        commit = decide(self.asked, self._known, told)
        await self._store.commit(commit, {})
        self._known, self._polls = commit.known, self._polls + 1

    async def moves(self, times: int) -> None:
        """The first index moves so often, by a hundredth of a point each time."""
        for number in range(times):
            first, *others = self.recording.answer["all_inds_idex"]
            level = f"-{3000 + self._polls + number / 100:.2f}"
            await self.sees({**self.recording.answer, "all_inds_idex": [{**first, "cur_prc": level}, *others]})


@asynccontextmanager
async def archiving(
    redis: Redis, path: Path, catalogue: Catalogue = KNOWN, *, flush: float = 0, name: str = "one"
) -> AsyncIterator[ArchiveRole]:
    """The role at work; stopped cleanly at the end."""
    role = ArchiveRole(redis, "test", catalogue, ArchiveSettings(path=path, flush=flush), name)
    stop = asyncio.Event()
    working = asyncio.create_task(role.run(stop))
    try:
        yield role
    finally:
        stop.set()
        await working


async def drained(redis: Redis) -> None:
    """Return when every stream is acknowledged to its end."""
    client: Any = redis
    async with asyncio.timeout(20):
        for tr in KNOWN:
            stream = f"test:{{{tr}}}:changes"
            while (last := await client.xrevrange(stream, count=1)) and await _behind(client, stream, last[0][0]):  # noqa: ASYNC110 -- the server has no event for it
                await asyncio.sleep(0.02)


async def _behind(client: Any, stream: str, last: str) -> bool:
    groups = [one for one in await client.xinfo_groups(stream) if one["name"] == GROUP]
    return not groups or groups[0]["pending"] > 0 or groups[0]["last-delivered-id"] != last


async def archive(redis: Redis, path: Path, catalogue: Catalogue = KNOWN) -> ArchiveRole:
    """Archive what the streams hold."""
    async with archiving(redis, path, catalogue) as role:
        await drained(redis)
    return role


def frame(path: Path, table: str = INDICES) -> pl.DataFrame:
    """A table as an analyst opens it, in the order of the stream."""
    return pl.read_delta(str(path / table)).sort("seq")


async def ids(redis: Redis, stream: str = STREAM) -> list[str]:
    client: Any = redis
    return [fields["id"] for _, fields in await client.xrange(stream)]


def delivery(after: dict[str, Any], number: int = 1, **other: Any) -> Delivery:
    """A row of `indices` as the loop hands it over."""
    data = {
        "tr": "ka20003",
        "target": {"inds_cd": "001"},
        "label": "종합",
        "trading_day": "2026-11-23",
        "session": "regular",
        "observed_from": None,
        "observed_at": "2026-11-23T12:00:00.123+09:00",
        "epoch": 7,
        "version": number,
        "table": "indices",
        "key": "001",
        "changed": [],
        "before": None,
        "after": after,
        **other,
    }
    fields = {
        "specversion": "1.0",
        "id": f"ka20003?inds_cd=001#7.{number}.1",
        "source": "/kiwoom/ka20003?inds_cd=001",
        "type": "sectorwire.row.added",
        "subject": "indices/001",
        "time": "2026-11-23T12:00:00.123+09:00",
        "seq": str(number),
        "datacontenttype": "application/json",
        "data": dumps(data),
    }
    return Delivery("ka20003", f"{1795330635454 + number}-0", fields, decode(fields))


COLUMNS = declared({"ka20003": KNOWN["ka20003"]})


def line(after: dict[str, Any], number: int = 1, **other: Any) -> Line:
    (made,) = placed([delivery(after, number, **other)], KNOWN["ka20003"], COLUMNS)[INDICES]
    return made


async def test_every_table_of_every_report_is_there_with_its_rows_to_the_digit(redis: Redis, store: Store, path: Path):
    watches = [Watch(store, tr.code) for tr in CATALOGUE]
    for watch in watches:
        await watch.sees()
    role = await archive(redis, path)

    client: Any = redis
    for watch in watches:
        tr = watch.asked.tr
        snapshot = await client.hgetall(f"test:{{{tr.code}}}:snapshot:{watch.asked.query}")
        for table in tr.tables:
            stored = {one["key"]: one for one in frame(path, f"{tr.code}/{table.name}").to_dicts()}
            rows = {name.partition("/")[2]: loads(text) for name, text in snapshot.items() if _of(name, table.name)}
            assert stored.keys() == rows.keys()
            assert role.rows[f"{tr.code}/{table.name}"] == len(rows)
            for key, row in rows.items():
                row.pop("extra", None)
                assert stored[key]["op"] == "baseline"
                assert {field: _as_published(stored[key][field]) for field in row} == row
    assert sum("/" in name for name in role.rows) == 8
    assert await verify(redis, "test", path, KNOWN) == []


def _of(name: str, table: str) -> bool:
    return name.startswith(f"{table}/")


def _as_published(value: object) -> object:
    return value.isoformat() if isinstance(value, date) else value


async def test_columns_have_the_types_of_their_units(redis: Redis, store: Store, path: Path):
    await Watch(store).sees()
    await archive(redis, path)

    schema = frame(path).schema
    assert schema["level"] == schema["change_pct"] == pl.Decimal(18, 4)
    assert schema["trading_value_krw"] == schema["volume_shares"] == schema["advancers"] == pl.Int64()
    assert schema["trading_day"] == pl.Date()
    assert schema["observed_at"] == pl.Datetime("us", "UTC")
    assert schema["inds_cd"] == schema["sector_code"] == schema["before"] == pl.String()
    assert (path / INDICES / "trading_day=2026-11-23").is_dir()


async def test_a_change_is_archived_with_what_it_was_before(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    await watch.moves(1)
    await archive(redis, path)

    last = frame(path).to_dicts()[-1]
    assert (last["op"], last["changed"], last["key"]) == ("changed", '["level"]', "001")
    assert (last["before"], last["level"]) == ('{"level":2393.33}', Decimal(3001))
    assert (last["observed_at"] - last["observed_from"]).total_seconds() == 10


async def test_resets_gaps_and_shapes_are_in_one_table_of_notices(redis: Redis, store: Store, path: Path):
    await Watch(store).sees()
    await Watch(store, "ka20001").sees()
    await archive(redis, path)

    notices = frame(path, "notices")
    assert sorted(notices["tr"]) == ["ka20001", "ka20003"]
    assert set(zip(notices["op"], notices["reason"], strict=True)) == {("reset", "first")}


async def test_what_is_handed_out_again_adds_nothing(redis: Redis, store: Store, path: Path):
    """The group is lost with the position it kept, so that everything comes again from the start."""
    watch = Watch(store)
    await watch.sees()
    await watch.moves(3)
    await archive(redis, path)
    await redis.xgroup_destroy(STREAM, GROUP)
    await redis.delete("test:{ka20003}:position:archive")
    await watch.moves(1)
    again = await archive(redis, path)

    assert again.rows[INDICES] == 1
    assert sorted([*frame(path)["event_id"], *frame(path, "notices")["event_id"]]) == sorted(await ids(redis))
    assert await verify(redis, "test", path, KNOWN) == []


def test_a_rival_that_opened_before_us_is_fenced(tmp_path: Path):
    """The position is checked on the handle that writes, so the slower of two cannot double what the faster wrote."""
    ours, theirs = (ArchiveTable(tmp_path, INDICES, STREAM, COLUMNS[INDICES]) for _ in range(2))
    assert ours.write([line({"level": 1})]) == 1
    with pytest.raises(CommitFailedError):
        theirs.write([line({"level": 1})])
    assert ArchiveTable(tmp_path, INDICES, STREAM, COLUMNS[INDICES]).write([line({"level": 1})]) == 0
    assert frame(tmp_path).height == 1


def test_what_comes_late_never_takes_the_position_back(tmp_path: Path):
    """Else what stands after it would be taken for new when it is handed out again."""
    table = ArchiveTable(tmp_path, INDICES, STREAM, COLUMNS[INDICES])

    assert [table.write([line({"level": number}, number)]) for number in (5, 3, 5, 3)] == [1, 1, 0, 0]


async def test_two_archivers_that_both_believe_to_be_alone_double_and_lose_nothing(
    redis: Redis, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def granted(_: object) -> bool:
        return True

    monkeypatch.setattr("consumers.group.Membership._take_lease", granted)
    watch = Watch(store)
    await watch.sees()
    async with archiving(redis, path, name="one") as one, archiving(redis, path, name="two") as two:
        for _ in range(20):
            await watch.moves(1)
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        await drained(redis)

    assert one.rows[INDICES] + two.rows[INDICES] == 23
    assert sorted(frame(path)["seq"]) == list(range(2, 25))


def test_bytes_that_were_not_utf_8_are_kept_as_they_were():
    r"""The client reads them as lone surrogates. In JSON `\udcff` is an escape, so a reader gets the same back."""
    fields = {"id": "\udcff\udcfe", "data": '{"label":"\udcb0\udca1"}', "\udcc7": '"종합"\n'}
    strange = Delivery("ka20003", "1795330635455-0", fields, None)
    (kept,) = placed([strange], KNOWN["ka20003"], COLUMNS)["unreadable"]
    told = arrow(COLUMNS["unreadable"], [kept]).column("fields").to_pylist()[0]

    assert told.isprintable()
    assert loads(told) == fields


async def test_what_cannot_be_decoded_is_kept_and_never_parked(redis: Redis, store: Store, path: Path):
    strange = [
        {"strange": "fields"},
        delivery({"level": 1}, table="unheard_of").fields,
        delivery({"level": 1}, trading_day="someday").fields,
        {**delivery({}).fields, "data": '{"tr":"ka20003","label":"\\ud800"}'},
        {**delivery({}).fields, "data": "[]"},
    ]
    client: Any = redis
    for fields in strange:
        await client.xadd(STREAM, fields)
    await Watch(store).sees()
    await archive(redis, path)

    kept = frame(path, "unreadable").sort("stream_id")
    assert loads(kept["fields"][0]) == {"strange": "fields"}
    assert kept.height == len(strange)
    assert "no table 'unheard_of'" in kept["reason"][1]
    assert frame(path).height == 3
    assert not await redis.exists("test:{ka20003}:parked:archive")


def test_a_value_its_column_cannot_hold_exactly_goes_to_extra():
    """Arrow and Delta would round it or drop it without a word."""
    odd = {
        "level": Decimal("1.23456"),
        "advancers": Decimal("1.5"),
        "change_pct": "n/a",
        "decliners": 10**18,
        "new": [1],
        "extra": {"fid_9": "x"},
    }
    made = line({**odd, "trading_value_krw": 5})

    assert made.cells["trading_value_krw"] == 5
    assert not {"level", "advancers", "change_pct", "decliners"} & made.cells.keys()
    extra = '{"fid_9":"x","level":1.23456,"advancers":1.5,"change_pct":"n/a","decliners":1000000000000000000,"new":[1]}'
    assert made.cells["extra"] == extra


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("long", Decimal("1.5")),
        ("long", 10**18),
        ("long", True),
        ("long", "12"),
        ("decimal(18,4)", Decimal("0.00001")),
        ("decimal(18,4)", Decimal("1E+14")),
        ("decimal(18,4)", Decimal("NaN")),
        ("date", "2026-02-30"),
        ("date", "20261123"),
        ("string", 5),
        ("string", "\ud800"),
    ],
)
def test_no_cell_is_ever_rounded_or_guessed(kind: str, value: object):
    with pytest.raises(ValueError, match=r"."):
        cell(kind, value)


def test_the_largest_and_smallest_numbers_of_the_contract_arrive_exactly():
    """Fifteen digits are what an entry may hold."""
    values = {"level": Decimal("99999999999.9999"), "change": Decimal("-0.0001"), "trading_value_krw": -(10**15) + 1}
    table = arrow(COLUMNS[INDICES], [line(values)])

    assert {name: table.column(name).to_pylist()[0] for name in values} == values


async def test_a_field_added_later_is_a_new_column_that_is_empty_before(redis: Redis, store: Store, path: Path):
    older = {code: tr.model_copy(deep=True) for code, tr in KNOWN.items()}
    fields = older["ka20003"].tables[0].fields
    fields[:] = [field for field in fields if field.field != "advancers"]
    watch = Watch(store)
    await watch.sees()
    await archive(redis, path, older)
    assert '"advancers":17' in frame(path)["extra"][0]
    await watch.moves(1)
    await archive(redis, path)

    assert frame(path)["advancers"].to_list() == [None, None, None, 17]
    assert await verify(redis, "test", path, KNOWN) == []


async def test_an_older_release_goes_on_with_columns_it_does_not_know(redis: Redis, store: Store, path: Path):
    older = {code: tr.model_copy(deep=True) for code, tr in KNOWN.items()}
    fields = older["ka20003"].tables[0].fields
    watch = Watch(store)
    await watch.sees()
    await archive(redis, path)
    fields[:] = [field for field in fields if field.field != "advancers"]
    await watch.moves(1)
    await archive(redis, path, older)

    assert frame(path)["advancers"].to_list()[-1] == 17


async def test_small_files_are_merged_and_nothing_is_lost(
    redis: Redis, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "TIDY_AFTER", 5)
    watch = Watch(store)
    async with archiving(redis, path):
        await watch.sees()
        for _ in range(18):
            await watch.moves(1)
            await drained(redis)

    assert len(DeltaTable(str(path / INDICES)).file_uris()) <= 5
    assert frame(path)["seq"].to_list() == list(range(2, 23))
    assert list((path / INDICES / "_delta_log").glob("*.checkpoint.parquet"))
    assert await verify(redis, "test", path, KNOWN) == []


async def test_a_new_trading_day_merges_the_old_one(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    async with archiving(redis, path):
        await watch.sees()
        for _ in range(3):
            await watch.moves(1)
            await drained(redis)
        await watch.sees(day=TUESDAY)
        await drained(redis)

    assert len(DeltaTable(str(path / INDICES)).file_uris()) == 2
    assert frame(path).group_by("trading_day").len().sort("trading_day")["len"].to_list() == [6, 3]
    assert await verify(redis, "test", path, KNOWN) == []


def test_two_that_merge_the_same_files_double_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As all the archivers of one process do with `notices` when a day begins; Delta would let each of them commit."""
    monkeypatch.setattr(writer, "TIDY_AFTER", 1)
    tables = [ArchiveTable(tmp_path, INDICES, f"{STREAM}{number}", COLUMNS[INDICES]) for number in range(3)]
    for number, table in enumerate(tables):
        table.write([replace(line({"level": number}), identity=f"{number}")])
    for table in tables:
        table.tidy_if_due()
        table.tidy_if_due()

    assert sorted(frame(tmp_path)["level"].to_list()) == [0, 1, 2]


def test_who_is_not_the_only_one_to_merge_lets_it_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "TIDY_AFTER", 1)
    table = ArchiveTable(tmp_path, INDICES, STREAM, COLUMNS[INDICES])
    table.write([line({"level": 1})])
    with alone(tmp_path / INDICES / TIDYING):
        table.tidy_if_due()

    assert "OPTIMIZE" not in {action["operation"] for action in table.delta.history()}


async def test_merging_that_fails_holds_nothing_up(
    redis: Redis, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(writer, "TIDY_AFTER", 1)
    monkeypatch.setattr(DeltaTable, "create_checkpoint", fails)
    with capture_logs() as logs:
        watch = Watch(store)
        await watch.sees()
        await watch.moves(2)
        await archive(redis, path)

    assert "archive.untidy" in {log["event"] for log in logs}
    assert frame(path).height == 5


async def test_everything_is_on_the_disk_before_it_is_acknowledged(
    redis: Redis, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Delta calls fsync for nothing; after a power loss an acknowledged row would be gone from both sides."""
    names: dict[int, str] = {}
    synced: set[str] = set()
    opening, syncing = os.open, os.fsync

    def opened(name: Any, *more: Any) -> int:
        handle = opening(name, *more)
        names[handle] = str(name)
        return handle

    def sync(handle: int) -> None:
        syncing(handle)
        synced.add(names[handle])

    monkeypatch.setattr("consumers.archive.disk.os.open", opened)
    monkeypatch.setattr("consumers.archive.disk.os.fsync", sync)
    seen_first: list[bool] = []
    executing = type(redis.pipeline()).execute

    async def execute(self: Any, *args: Any, **more: Any) -> Any:
        if any("XACK" in str(command) for command in self.command_stack):
            written = {str(file) for file in (path / INDICES).rglob("*.*") if file.suffix in {".parquet", ".json"}}
            seen_first.append(bool(written) and written <= synced)
        return await executing(self, *args, **more)

    monkeypatch.setattr(type(redis.pipeline()), "execute", execute)
    await Watch(store).sees()
    await archive(redis, path)

    assert seen_first
    assert all(seen_first)
    assert {str(path / INDICES), str(path / INDICES / "_delta_log"), str(path)} <= synced


async def test_a_full_disk_is_waited_out_and_no_entry_is_parked_for_it(
    redis: Redis, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
):
    tries = 0
    writing = ArchiveTable.write

    def write(self: ArchiveTable, lines: Any) -> int:
        nonlocal tries
        tries += 1
        if tries <= MAX_HANDED_OUT + 2:
            raise OSError("no space left on device")
        return writing(self, lines)

    monkeypatch.setattr(ArchiveTable, "write", write)
    monkeypatch.setattr("consumers.group.RETRY_S", 0.01)
    await Watch(store).sees()
    with capture_logs() as logs:
        await archive(redis, path)

    assert frame(path).height == 3
    assert not await redis.exists("test:{ka20003}:parked:archive")
    assert [log["event"] for log in logs if log["event"] == "group.waiting"] == ["group.waiting"]


async def test_entries_that_reuse_old_ids_after_a_lost_tail_are_not_taken_for_archived(
    redis: Redis, store: Store, path: Path
):
    """A server that lost its newest entries, with a clock that went back, gives ids that stand before our position."""
    client: Any = redis
    watch = Watch(store)
    await watch.sees()
    await archive(redis, path)
    kept = await client.xrange(STREAM)
    await client.delete(STREAM, "test:{ka20003}:position:archive")
    before = int(kept[0][0].partition("-")[0]) - 1000
    for number, fields in enumerate([kept[1][1], delivery({"level": 1}).fields]):
        await client.xadd(STREAM, fields, id=f"{before + number}-0")
    with capture_logs() as logs:
        again = await archive(redis, path)

    assert again.rows[INDICES] == 1
    assert frame(path)["event_id"].to_list().count("ka20003?inds_cd=001#7.1.1") == 1
    assert "archive.forked" in {log["event"] for log in logs}


async def test_a_stop_in_the_pause_between_commits_is_quick_and_acknowledges(redis: Redis, store: Store, path: Path):
    client: Any = redis
    await Watch(store).sees()
    async with archiving(redis, path, flush=5) as role:
        async with asyncio.timeout(10):
            while role.rows[INDICES] < 3:  # noqa: ASYNC110 -- a counter, not an event
                await asyncio.sleep(0.02)
        stopped_at = asyncio.get_running_loop().time()

    assert asyncio.get_running_loop().time() - stopped_at < 2
    assert (await client.xpending(STREAM, GROUP))["pending"] == 0


async def test_what_comes_during_the_pause_is_one_commit(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    async with archiving(redis, path, flush=0.6) as role:
        await drained(redis)
        await watch.moves(1)
        while role.rows[INDICES] < 4:  # noqa: ASYNC110 -- a counter, not an event
            await asyncio.sleep(0.01)
        for _ in range(10):
            await watch.moves(1)
        await drained(redis)

    assert frame(path).height == 14
    assert len(DeltaTable(str(path / INDICES)).file_uris()) == 3


async def test_verify_finds_what_was_doubled(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    await watch.moves(2)
    await archive(redis, path)
    row = run_sql(path, "SELECT * FROM ka20003_indices WHERE seq = 6")
    write_deltalake(str(path / INDICES), pl.DataFrame(row.rows, schema=frame(path).schema, orient="row"), mode="append")

    twice = (await ids(redis))[5]
    assert await verify(redis, "test", path, KNOWN) == [f"ka20003: {twice} is in the archive 2 times"]


async def test_verify_finds_what_is_missing(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    await watch.moves(5)
    await archive(redis, path)
    DeltaTable(str(path / INDICES)).delete("seq = 7")

    hole, missing = await verify(redis, "test", path, KNOWN)
    assert hole == "ka20003: seq goes from 6 to 8"
    assert missing.startswith(f"ka20003: {(await ids(redis))[6]} (")
    assert missing.endswith(") is in the stream and not in the archive")


async def test_verify_finds_where_archive_and_snapshot_differ(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    await archive(redis, path)
    snapshot = "test:{ka20003}:snapshot:inds_cd=001"
    client: Any = redis
    other = (await client.hget(snapshot, "indices/001")).replace("2393.33", "2393.34")
    await client.hset(snapshot, mapping={"indices/001": other, "indices/999": other})

    assert await verify(redis, "test", path, KNOWN) == [
        "ka20003: ka20003?inds_cd=001 indices/001 is not as the snapshot has it: level 2393.33 instead of 2393.34",
        "ka20003: ka20003?inds_cd=001 indices/999 is not as the snapshot has it: not in the archive",
    ]


async def test_verify_compares_a_snapshot_whose_newest_entries_are_on_their_way(redis: Redis, store: Store, path: Path):
    """A target that moves every second has some at any moment, and would never be compared otherwise."""
    watch = Watch(store)
    await watch.sees()
    await archive(redis, path)
    await watch.moves(3)
    assert await verify(redis, "test", path, KNOWN) == []
    snapshot = "test:{ka20003}:snapshot:inds_cd=001"
    client: Any = redis
    row = loads(await client.hget(snapshot, "indices/001"))
    await client.hset(snapshot, "indices/001", dumps({**row, "level": 1}))

    (finding,) = await verify(redis, "test", path, KNOWN)
    assert finding.startswith("ka20003: ka20003?inds_cd=001 indices/001 is not as the snapshot has it: level ")
    assert finding.endswith(" instead of 1")


async def test_verify_finds_a_file_that_cannot_be_read(redis: Redis, store: Store, path: Path):
    """A disk may break what was on it for long; statistics would still count its rows."""
    await Watch(store).sees()
    await archive(redis, path)
    ArchiveTable(path, INDICES, STREAM, COLUMNS[INDICES])._tidy(full=False)
    for file in (path / INDICES).glob("trading_day*/*.parquet"):
        file.write_bytes(b"")

    (finding,) = await verify(redis, "test", path, KNOWN)
    assert finding.startswith("ka20003: the archive cannot be read: ")
    newest = max((path / INDICES / "_delta_log").glob("*.json"))
    newest.with_stem(f"{int(newest.stem) + 1:020}").write_text('{"add":5}')
    with pytest.raises(QuestionError, match="ka20003/indices cannot be opened: "):
        run_sql(path, "SELECT 1")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["missing", "empty"])
async def test_a_file_that_is_gone_is_named_to_whoever_asks_for_its_table(
    redis: Redis, store: Store, path: Path, spoil: Callable[[Path], object], tmp_path: Path
):
    await Watch(store).sees()
    await archive(redis, path)
    ArchiveTable(path, INDICES, STREAM, COLUMNS[INDICES])._tidy(full=False)
    (file,) = (path / INDICES).glob("trading_day*/*.parquet")
    spoil(file)

    for ask in (
        lambda: run_sql(path, "SELECT sum(level) FROM ka20003_indices"),
        lambda: export(path, "ka20003_indices", "parquet", tmp_path / "out.parquet"),
    ):
        with pytest.raises(QuestionError, match=f"{file.name} is missing or damaged; put it back from a copy"):
            ask()
    assert run_sql(path, "SELECT count(*) FROM notices").rows
    assert [one.name for one in tmp_path.iterdir() if "part" in one.name] == []  # noqa: ASYNC240 -- a test


async def test_verify_is_right_while_the_system_is_at_work(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    async with archiving(redis, path):
        await drained(redis)
        for _ in range(4):
            await watch.moves(3)
            assert await verify(redis, "test", path, KNOWN) == []


async def test_sql_sums_decimals_exactly(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    await archive(redis, path)

    answer = run_sql(path, "SELECT sum(level) AS total, count(*) AS n FROM ka20003_indices")
    expected = sum((Decimal(str(row["level"])) for _, row in watch.recording.rows["indices"]), Decimal(0))
    assert (answer.columns, answer.rows) == (["total", "n"], [(expected, 3)])
    assert isinstance(answer.rows[0][0], Decimal)
    assert answer.rich().row_count == 1


async def test_a_wrong_question_is_answered_with_a_remedy(redis: Redis, store: Store, path: Path):
    with pytest.raises(QuestionError, match="no archive at"):
        run_sql(path, "SELECT 1")
    await Watch(store).sees()
    await archive(redis, path)
    with pytest.raises(QuestionError, match=r"ka2003_indices.*tables: .*ka20003_indices"):
        run_sql(path, "SELECT * FROM ka2003_indices")
    with pytest.raises(QuestionError, match="only queries"):
        run_sql(path, "DROP TABLE ka20003_indices")
    with pytest.raises(QuestionError, match=r"no table 'indices'.*ka20003_indices"):
        export(path, "indices", "csv", path / "out.csv")


async def test_a_table_is_exported_whole_and_in_order(redis: Redis, store: Store, path: Path):
    watch = Watch(store)
    await watch.sees()
    await watch.moves(2)
    await archive(redis, path)

    parquet, csv = path / "it's 표.parquet", path / "out.csv"
    assert export(path, INDICES, "parquet", parquet) == export(path, "ka20003_indices", "csv", csv) == 5
    read = pl.read_parquet(parquet)
    assert read["seq"].to_list() == [2, 3, 4, 5, 6]
    assert (read.schema["level"], read["trading_day"][0]) == (pl.Decimal(18, 4), MONDAY)
    assert pl.read_csv(csv, infer_schema=False)["level"][0] == "2393.3300"
    assert not [name for name in os.listdir(path) if name.startswith(".")]


async def test_status_tells_rows_position_and_lag(redis: Redis, store: Store, path: Path):
    client: Any = redis
    watch = Watch(store)
    await watch.sees()
    await archive(redis, path)
    await watch.moves(2)

    statuses = {one.table: one for one in await archive_status(path, "test", redis)}
    indices = statuses[INDICES]
    third = (await client.xrange(STREAM))[3][0]
    assert (indices.rows, indices.files, indices.positions, indices.lag) == (3, 1, {"ka20003": third}, 2)
    assert indices.bytes > 1000
    assert indices.newest
    assert indices.newest.isoformat() == "2026-11-23T03:00:00+00:00"
    assert statuses["notices"].positions == {"ka20003": (await client.xrange(STREAM))[0][0]}
    assert status_table(statuses.values()).row_count == len(statuses) == 3


def test_settings_say_what_is_wrong():
    assert ArchiveSettings.model_validate({"path": "a", "flush": "2.5s"}).flush == 2.5
    with pytest.raises(ValidationError, match="not a duration"):
        ArchiveSettings.model_validate({"path": "a", "flush": "soon"})
    with pytest.raises(ValidationError, match="less than or equal to 5"):
        ArchiveSettings.model_validate({"path": "a", "flush": 60})


def test_no_column_has_two_meanings():
    for columns in declared(KNOWN).values():
        names = [column.name for column in columns]
        assert len(names) == len(set(names))
    for tr in KNOWN.values():
        elements = {one.element for one in tr.request}
        assert not elements & {field.field for table in tr.tables for field in table.fields}


def test_days_are_not_mixed(tmp_path: Path):
    """A batch over midnight makes a file in each day's folder."""
    table = ArchiveTable(tmp_path, INDICES, STREAM, COLUMNS[INDICES])
    later = (MONDAY + timedelta(days=1)).isoformat()
    table.write([line({"level": 1}), line({"level": 2}, 2, trading_day=later)])

    assert {file.parent.name for file in (tmp_path / INDICES).rglob("*.parquet")} == {
        "trading_day=2026-11-23",
        "trading_day=2026-11-24",
    }
