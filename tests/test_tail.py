"""What a person sees: names in Korean, rising red, falling blue, the largest moves first."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from redis.asyncio import Redis
from rich.text import Text

from consumers.tail import follow, line, lines
from poller.catalogue import described
from poller.contract import Entry, dumps

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
            "10:00:00",
        ),
        ("shape", {"appeared": {"indices": ["x"]}, "vanished": {}}, "응답 항목이 바뀜"),
        ("later", {}, "sectorwire.later"),
    ],
)
def test_notices_are_sentences(kind: str, data: dict[str, Any], said: str):
    """A reader prints types it does not know rather than fail on them: the contract only grows."""
    assert said in line(entry(kind, **data), CATALOGUE).plain


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


def blocked(clients: list[dict[str, str]]) -> bool:
    """Whether some client waits in a blocking read."""
    return any("b" in client["flags"] for client in clients)
