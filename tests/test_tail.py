"""What a person sees: names in Korean, rising red, falling blue, the largest moves first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, cast, get_args

import pytest
from redis.asyncio import Redis
from rich.text import Text
from structlog.testing import capture_logs

from consumers.tail import GAPS, follow, line, lines
from poller.catalogue import described
from poller.contract import Entry, GapReason, dumps

CATALOGUE = described()
KEY = "test:{ka20003}:changes"


def entry(kind: str = "row.changed", number: int = 1, **data: Any) -> Entry:
    """An entry of ka20003's table, 013 rising, unless said otherwise."""
    row = {"direction": "up", "level": Decimal("24010.5"), "change": Decimal("9.4"), "change_pct": Decimal("0.04")}
    whole: dict[str, Any] = {
        "tr": "ka20003",
        "target": {"inds_cd": "001"},
        "label": "전기/전자",
        "table": "indices",
        "key": "013",
        "changed": ["level"],
        "before": {"level": Decimal(24001)},
        "after": row,
        "observed_at": "2026-11-23T10:31:20.123+09:00",
    }
    return Entry(
        id=f"ka20003?inds_cd=001#1.1.{number}",
        source="/kiwoom/ka20003?inds_cd=001",
        type=f"sectorwire.{kind}",
        subject="indices/013",
        time="2026-11-23T10:31:20.123+09:00",  # type: ignore[arg-type]  # pydantic reads it
        seq=number,
        data=whole | data,
    )


def style_of(text: Text, part: str) -> str:
    """The style in which a part of a line is printed."""
    at = text.plain.index(part)
    return " ".join(str(span.style) for span in text.spans if span.start <= at < span.end)


def test_a_rising_index_is_a_red_line_with_level_and_change():
    printed = line(entry(), CATALOGUE)

    assert " ".join(printed.plain.split()) == "10:31:20 ka20003 전업종지수 ▲ 013 전기/전자 24,010.50 +9.40 +0.04 %"
    assert "red" in style_of(printed, "▲")
    assert "red" in style_of(printed, "+9.40")


def test_a_falling_one_is_blue():
    row = {"direction": "down", "level": 24000, "change": -1, "change_pct": Decimal("-0.01")}
    printed = line(entry(after=row), CATALOGUE)

    assert "▼" in printed.plain
    assert "blue" in style_of(printed, "-1.00")


def test_flows_are_coloured_each_by_its_own_sign():
    """The index may rise while foreigners sell."""
    row = {"direction": "up", "foreigner_net_krw": -62_200_000_000, "institution_net_krw": 60_100_000_000}
    printed = line(entry(tr="ka10051", table="flows", key="001", label="종합(KOSPI)", after=row), CATALOGUE)

    assert "외국인순매수 -622억" in printed.plain
    assert "blue" in style_of(printed, "외국인")
    assert "red" in style_of(printed, "기관계")


def test_flows_in_shares_are_shown_as_shares():
    row = {"direction": "up", "foreigner_net_shares": -1_000}
    printed = line(entry(tr="ka10051", table="flows", key="001", label="종합(KOSPI)", after=row), CATALOGUE)

    assert "외국인순매수 -1,000" in printed.plain


def test_a_row_of_a_trail_is_told_by_its_time():
    row = {"time": "10:31:20", "direction": "up", "level": 2393}
    printed = line(
        entry("row.appended", tr="ka20001", table="ticks", key="103120", label="종합(KOSPI)", before=None, after=row),
        CATALOGUE,
    )

    assert "종합(KOSPI) 10:31:20" in printed.plain


def test_a_row_that_went_says_so():
    assert "사라짐" in line(entry("row.removed", before={"level": 1}, after=None), CATALOGUE).plain


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("reset", {"reason": "new_day"}, "새 거래일"),
        (
            "gap",
            {"from": "2026-11-23T10:00:00+09:00", "to": "2026-11-23T10:05:00+09:00", "reason": "broker"},
            "못 본 구간 10:00:00–10:05:00 (증권사 응답 없음)",
        ),
        ("shape", {"appeared": {"indices": ["x"]}, "vanished": {}}, "응답 항목이 바뀜"),
        ("later", {}, "sectorwire.later"),
    ],
)
def test_notices_are_sentences(kind: str, data: dict[str, Any], said: str):
    """A reader prints types it does not know rather than fail on them: the contract only grows."""
    assert said in line(entry(kind, **data), CATALOGUE).plain


def test_why_something_was_not_seen_is_korean_for_every_reason():
    assert GAPS.keys() == {*get_args(GapReason)}
    assert not [word for word in GAPS.values() if re.search("[a-z]", word)]


def test_of_each_poll_the_largest_moves_come_first_and_the_rest_are_counted():
    moves = [entry(number=n, key=f"{n:03}", after={"level": 100 + n}, before={"level": 100}) for n in range(1, 6)]
    printed = [text.plain for text in lines(moves, CATALOGUE, 2)]

    assert ["005" in printed[0], "004" in printed[1], "외 3건" in printed[2]] == [True, True, True]


def test_without_a_limit_everything_is_printed_in_order():
    moves = [entry(number=n, key=f"{n:03}") for n in range(1, 6)]

    assert [f"{n:03}" in text.plain for n, text in enumerate(lines(moves, CATALOGUE, None), 1)] == [True] * 5


async def put(redis: Redis, number: int) -> None:
    fields: dict[Any, Any] = entry(number=number).model_dump(mode="json")
    await redis.xadd(KEY, fields | {"data": dumps(entry().data)})


async def test_a_reader_may_begin_with_the_oldest_entry(redis: Redis):
    await put(redis, 1)
    await put(redis, 2)
    async for entries in follow(redis, "test", ["ka20003"], from_start=True, over=lambda: False):
        assert [one.seq for one in entries] == [1, 2]
        break


async def test_an_entry_that_is_not_ours_is_passed_over_and_said(redis: Redis):
    client: Any = redis
    await client.xadd("test:{ka20003}:changes", {"strange": "fields"})
    await put(redis, 1)
    with capture_logs() as logs:
        async for entries in follow(redis, "test", ["ka20003"], from_start=True, over=lambda: False):
            assert [one.seq for one in entries] == [1]
            break

    assert [log["event"] for log in logs] == ["entries.unreadable"]


async def test_a_reader_begins_at_the_end_unless_asked(redis: Redis):
    """What is written while it looks for the end comes after it."""
    await put(redis, 1)
    seen: list[int] = []

    def over() -> bool:
        """Asked before each read: the second entry is written once the reader knows where the end is."""
        return len(seen) == 1

    async def read() -> None:
        async for entries in follow(redis, "test", ["ka20003"], from_start=False, over=over):
            seen.extend(one.seq for one in entries)

    reading = asyncio.create_task(read())
    client: Any = redis
    async with asyncio.timeout(10):
        while not blocked(await client.client_list()):  # noqa: ASYNC110 -- the server's word, not an event's
            await asyncio.sleep(0.01)
    await put(redis, 2)
    await reading

    assert seen == [2]


class Stream:
    """The stream of a TR as a server holds it, with entries of given ids, epochs and `seq`."""

    def __init__(self, redis: Redis) -> None:
        self._client: Any = redis

    async def has(self, *entries: tuple[int, int, int]) -> None:
        """Milliseconds, epoch and `seq` of each."""
        for ms, epoch, seq in entries:
            told = entry(number=seq).model_dump(mode="json") | {"id": f"ka20003?inds_cd=001#{epoch}.{seq}.1"}
            await self._client.xadd(KEY, told | {"data": dumps(entry().data)}, id=f"{ms}-0")

    async def goes_back_to(self, *entries: tuple[int, int, int]) -> None:
        """The same, and nothing else: what a server has after a crash, or a replica that was behind."""
        await self._client.delete(KEY)
        await self.has(*entries)


async def handed_on(redis: Redis, *steps: Callable[[], Awaitable[None]], from_start: bool = True) -> list[str]:
    """Epoch and `seq` of what a reader hands on; after each batch the next step happens, and the last batch ends it."""
    seen, coming = [], iter(steps)
    async with asyncio.timeout(10):
        async for entries in follow(redis, "test", ["ka20003"], from_start=from_start, over=lambda: False):
            seen += [one.id.rpartition("#")[2].rpartition(".")[0] for one in entries]
            step = next(coming, None)
            if step is None:
                break
            await step()
    return seen


OLD = ((100, 1, 1), (200, 1, 2), (300, 1, 3))


@pytest.mark.parametrize(
    ("kept", "new"),
    [
        (OLD[:1], ((150, 2, 2), (160, 2, 3))),  # the stream ends before our position
        (OLD[:1], ((150, 2, 2), (400, 2, 3))),  # it has overtaken our position, where nothing stands any more
        (OLD[:1], ((150, 2, 2), (300, 2, 3))),  # another entry stands there
        ((), ((150, 2, 1),)),  # nothing is left of what we know
    ],
)
async def test_what_a_server_writes_after_it_went_back_is_read_though_the_ids_are_lower(
    redis: Redis, kept: tuple[tuple[int, int, int], ...], new: tuple[tuple[int, int, int], ...]
):
    """Its clock is behind, so it goes on under ids before our position."""
    stream = Stream(redis)
    await stream.has(*OLD)
    with capture_logs() as logs:
        seen = await handed_on(redis, lambda: stream.goes_back_to(*kept, *new))

    assert seen == ["1.1", "1.2", "1.3", *(f"{epoch}.{seq}" for _, epoch, seq in new)]
    assert [(log["event"], log["had"]) for log in logs] == [("tail.forked", "300-0")]


async def test_a_server_without_the_stream_is_read_from_its_start_when_there_is_one(redis: Redis):
    stream, client = Stream(redis), cast(Any, redis)
    await stream.has(*OLD)

    async def begins_anew() -> None:
        await client.delete(KEY)
        asyncio.get_running_loop().call_later(0.1, lambda: begun.append(asyncio.ensure_future(stream.has((50, 2, 1)))))

    begun: list[asyncio.Task[None]] = []

    assert await handed_on(redis, begins_anew) == ["1.1", "1.2", "1.3", "2.1"]


async def test_a_reader_that_began_at_the_end_is_not_told_the_past_when_the_server_goes_back(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    """Nothing that it knows is left, so it reads from the start; what was there before it is passed over."""
    monkeypatch.setattr("consumers.tail.BLOCK_MS", 50)
    stream, client = Stream(redis), cast(Any, redis)
    await stream.has(*OLD)
    reading = asyncio.create_task(handed_on(redis, from_start=False))
    async with asyncio.timeout(10):
        while not blocked(await client.client_list()):  # noqa: ASYNC110 -- the server's word, not an event's
            await asyncio.sleep(0.01)
    await stream.goes_back_to(*OLD[:2], (250, 2, 3), (260, 2, 4))

    assert await reading == ["2.3", "2.4"]


async def test_a_stream_that_was_trimmed_or_a_server_that_lost_nothing_is_no_fork(redis: Redis):
    stream, client = Stream(redis), cast(Any, redis)
    await stream.has(*OLD)

    async def trimmed() -> None:
        await client.xtrim(KEY, maxlen=0, approximate=False)
        await stream.has((400, 1, 4))

    async def deleted() -> None:
        await client.xdel(KEY, "400-0")
        await stream.has((500, 1, 5))

    with capture_logs() as logs:
        assert await handed_on(redis, trimmed, deleted) == ["1.1", "1.2", "1.3", "1.4", "1.5"]

    assert logs == []


async def test_beyond_what_is_remembered_entries_are_handed_on_again(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    """Twice is better than never; a server loses far less than we remember."""
    monkeypatch.setattr("consumers.tail.REMEMBERED", 1)
    stream = Stream(redis)
    await stream.has(*OLD)

    assert await handed_on(redis, lambda: stream.goes_back_to(OLD[0], (150, 2, 2))) == [
        "1.1",
        "1.2",
        "1.3",
        "1.1",
        "2.2",
    ]


def blocked(clients: list[dict[str, str]]) -> bool:
    """Whether some client waits in a blocking read."""
    return any("b" in client["flags"] for client in clients)
