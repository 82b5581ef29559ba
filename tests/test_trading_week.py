"""A trading week in virtual time: what is published is what the market did, and what nobody saw is a gap.

Monday 2026-11-16 to Monday 2026-11-23: an ordinary week, but that Wednesday is declared closed at short notice, on
Thursday the market opens an hour late (college entrance exam), and the pollers are stopped, killed and cut off from the
broker in between. Hours, gaps and final tables are worked out here a second time, without the product's schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from typing import Any

import pytest

from poller.contract import Entry, dumps
from poller.diff import settle
from poller.rows import read_answer
from poller.session import KST, Calendar
from poller.simulator.answers import answer
from poller.simulator.market import Market
from poller.trs.base import Append, Target
from tests.inprocess import Served
from tests.test_world import check
from tests.world import World

HOLIDAY, EXAM_DAY = date(2026, 11, 18), date(2026, 11, 19)
START, END = datetime(2026, 11, 16, 7, 30, tzinfo=KST), datetime(2026, 11, 24, 0, 0, tzinfo=KST)
AFTER_MARKET_BEGAN = date(2026, 9, 14)
MINUTE = 60.0
PLAN = [
    ("ka20003", {"inds_cd": "001"}, 10 * MINUTE),
    ("ka20003", {"inds_cd": "101"}, 30 * MINUTE),
    ("ka20001", {"mrkt_tp": "0", "inds_cd": "001"}, 10 * MINUTE),
    ("ka20009", {"mrkt_tp": "0", "inds_cd": "001"}, 30 * MINUTE),
    ("ka20002", {"mrkt_tp": "0", "inds_cd": "001", "stex_tp": "1"}, 30 * MINUTE),  # three pages
    ("ka20002", {"mrkt_tp": "1", "inds_cd": "103", "stex_tp": "3"}, 15 * MINUTE),
    ("ka10051", {"mrkt_tp": "0", "amt_qty_tp": "0", "stex_tp": "3"}, 15 * MINUTE),
    ("ka10010", {"stk_cd": "005930"}, 5 * MINUTE),
]
TICKS_KEPT_S = 240 * 10
"""A walk over the time rows of ka20001 goes back twelve pages of twenty rows, ten seconds apart."""


def moment(day: int, clock: str) -> datetime:
    """A moment of November 2026."""
    return datetime.combine(date(2026, 11, day), time.fromisoformat(clock), KST)


@dataclass(frozen=True)
class Break:
    """A stretch in which nobody polled, or nobody could."""

    begins: datetime
    ends: datetime
    reason: str


STOPPED = Break(moment(17, "10:00"), moment(17, "13:10"), "stopped")
AWAY = Break(moment(19, "11:00"), moment(19, "11:40"), "broker")
SHORT = Break(moment(19, "14:00"), moment(19, "14:04"), "stopped")
KILLED = Break(moment(20, "14:50"), moment(23, "10:30"), "stopped")


async def week(world: World) -> None:
    """The week with its breaks."""
    (process,) = world.processes
    world.start()
    for stretch in (STOPPED, AWAY, SHORT, KILLED):
        await world.until(stretch.begins)
        world.away.broker = stretch is AWAY
        if stretch is KILLED:
            await process.kill()
        elif stretch is not AWAY:
            await process.stop()
        await world.until(stretch.ends)
        world.away.broker = False
        if stretch is not AWAY:
            process.start()
    await world.until(END)


@pytest.fixture(scope="module")
def world() -> World:
    """The week, lived once."""
    lived = World(start=START, plan=PLAN, calendar=Calendar(closures=frozenset({HOLIDAY})), seed=16)
    lived.run(week)
    return lived


# --- a second reading of the calendar and of what was served


def hours(day: date, *, exam_days: frozenset[date], late_days: frozenset[date]) -> tuple[datetime, datetime]:
    """Opening and close of the regular session."""
    opens = time(10) if day in exam_days | late_days else time(9)
    closes = time(16, 30) if day in exam_days else time(15, 30)
    return datetime.combine(day, opens, KST), datetime.combine(day, closes, KST)


@dataclass(frozen=True)
class Days:
    """The trading days of a stretch and their hours."""

    days: tuple[date, ...]
    exam_days: frozenset[date] = frozenset({EXAM_DAY})
    late_days: frozenset[date] = frozenset()

    def opens(self, day: date) -> datetime:
        return hours(day, exam_days=self.exam_days, late_days=self.late_days)[0]

    def trading_day(self, at: datetime) -> date | None:
        """The last day whose opening has passed."""
        return max((day for day in self.days if self.opens(day) <= at), default=None)

    def scheduled_s(self, target: Target, since: datetime, until: datetime) -> float:
        """How much of a stretch lies in a report's hours: indices settle ten minutes after the close, the rest moves
        until 20:00, but on KRX alone not before its after-market began.
        """
        total_s = 0.0
        both = target.request.get("stex_tp") == "3"
        for day in self.days:
            opens, closes = hours(day, exam_days=self.exam_days, late_days=self.late_days)
            evening = time(20) if both or day >= AFTER_MARKET_BEGAN else time(18)
            index = target.tr.code in {"ka20001", "ka20003", "ka20009"}
            ends = closes + timedelta(minutes=10) if index else datetime.combine(day, evening, KST)
            total_s += max(0.0, (min(ends, until) - max(opens, since)).total_seconds())
        return total_s


WEEK = Days(tuple(date(2026, 11, day) for day in (16, 17, 19, 20, 23)))


def walks(world: World, target: Target) -> list[list[Served]]:
    """The page walks of a target, each with its pages."""
    found: list[list[Served]] = []
    for served in world.ledger.served:
        if (served.api_id, served.request) == (target.tr.code, target.request):
            if served.cont_yn_in != "Y":
                found.append([])
            found[-1].append(served)
    return found


def good_polls(world: World, target: Target, days: Days) -> list[datetime]:
    """When whole answers came, but for those from before an opening, which nobody compares."""
    moments = [walk[-1].at_real for walk in walks(world, target)]
    return [at for at in moments if not any(day == at.date() and at < days.opens(day) for day in days.days)]


def gaps(world: World, target: Target) -> list[Mapping[str, Any]]:
    """The gaps of a target, windows included."""
    mine = [entry for entry in world.entries(target.tr.code) if entry.source == f"/kiwoom/{target}"]
    return [entry.data for entry in mine if entry.type == "sectorwire.gap"]


def near(text: str, at: datetime) -> bool:
    """Whether a time of the stream is a moment, but for the way of an answer."""
    return abs((datetime.fromisoformat(text) - at).total_seconds()) < 0.1


# --- what has to hold of any stretch


def check_days(world: World, days: Days) -> None:
    """A new day is never news: what differs from yesterday is a reset's baseline."""
    for entry in (entry for code in {target.tr.code for target in world.targets} for entry in world.entries(code)):
        if entry.row_kind in {"changed", "removed"}:
            since, until = (datetime.fromisoformat(entry.data[name]) for name in ("observed_from", "observed_at"))
            assert days.trading_day(since) == days.trading_day(until), f"{entry.id} spans an opening"
            assert entry.data["trading_day"] == str(days.trading_day(until)), entry.id


def check_gaps(world: World, days: Days) -> None:
    """More than two intervals of a report's hours without a good poll are one gap, and nothing else is."""
    for job in world.jobs:
        polls = good_polls(world, job.target, days)
        scheduled = {
            (since, until): days.scheduled_s(job.target, since, until) / job.every_s for since, until in pairwise(polls)
        }
        assert not [share for share in scheduled.values() if abs(share - 2) < 0.001], "too close to two to tell"
        expected = [stretch for stretch, share in scheduled.items() if share > 2]
        told = [gap for gap in gaps(world, job.target) if gap["reason"] != "window"]
        assert len(told) == len(expected), f"{job.target}: {told} instead of {expected}"
        for gap, (since, until) in zip(told, expected, strict=True):
            assert near(gap["from"], since), f"{job.target}: {gap} instead of {since}"
            assert near(gap["to"], until), f"{job.target}: {gap} instead of {until}"


def check_final(world: World) -> None:
    """The snapshot is what the market says at the moment of the last poll, asked of a market of its own."""
    market, last = Market(world.seed, world.calendar), {target: walks(world, target)[-1] for target in world.targets}
    for target in sorted(world.targets, key=lambda target: last[target][0].at_market):  # a market goes on cheaply
        stored, final = world.snapshot(target), final_tables(market, target, last[target])
        for table in target.tr.tables:
            mine = {name.partition("/")[2]: text for name, text in stored.items() if name.startswith(f"{table.name}/")}
            rows = {key: dumps(row) for key, row in final[table.name].items()}
            if isinstance(table, Append):  # a walk ends where the last one began, so the snapshot may be shorter
                assert len(mine) >= 20, f"{target} {table.name} has {len(mine)} rows"
                rows = {key: rows[key] for key in sorted(rows)[-len(mine) :]}
            assert mine == rows, f"{target} {table.name}"


def final_tables(market: Market, target: Target, last: list[Served]) -> dict[str, dict[str, Any]]:
    """Every table of a target, each page as of the moment it was served; further pages as of the last of these."""
    pages, position = list[Mapping[str, object]](), None
    at = [served.at_market for served in last]
    while True:
        page = answer(target.tr.code, market.at(at[min(len(pages), len(at) - 1)]), target.request, position)
        pages.append(page.elements)
        position = page.next_position
        if position is None:
            break
    reading = read_answer(target, pages)
    return {table.name: settle(table, {}, reading.rows[table.name]) for table in target.tr.tables}


# --- the week


def test_the_whole_week_happened(world: World):
    """Else everything below would hold of nothing."""
    resets = [
        entry.data["trading_day"]
        for entry in world.entries("ka20003")
        if entry.type == "sectorwire.reset" and entry.data["target"] == {"inds_cd": "001"}
    ]

    assert resets == [str(day) for day in WEEK.days]
    assert world.refusals == 0
    assert {len(walk) for walk in walks(world, world.targets[4])} == {3}
    assert min(len(world.entries(target.tr.code)) for target in world.targets) > 50


def test_the_stream_folded_is_the_snapshot_and_seq_has_no_hole(world: World):
    check(world)


def test_a_new_day_is_never_a_change(world: World):
    check_days(world, WEEK)


def test_a_gap_is_told_of_every_stretch_that_nobody_saw_and_of_no_other(world: World):
    check_gaps(world, WEEK)


@pytest.mark.parametrize("stretch", [STOPPED, AWAY, KILLED], ids=lambda stretch: stretch.reason)
def test_a_break_is_one_gap_of_every_target_that_it_cost_more_than_two_polls(world: World, stretch: Break):
    for job in world.jobs:
        if WEEK.scheduled_s(job.target, stretch.begins, stretch.ends) > 2 * job.every_s:
            covering = [
                gap["reason"]
                for gap in gaps(world, job.target)
                if datetime.fromisoformat(gap["from"]) <= stretch.begins
                and datetime.fromisoformat(gap["to"]) >= stretch.ends
                and gap["reason"] != "window"
            ]
            assert covering == [stretch.reason], str(job.target)


def test_a_break_that_cost_no_poll_is_no_gap(world: World):
    told = [gap for target in world.targets for gap in gaps(world, target)]

    assert not [gap for gap in told if gap["from"] < SHORT.begins.isoformat() < gap["to"]]


def test_rows_of_a_window_that_nobody_saw_are_told_as_well(world: World):
    """Time rows go forty minutes back: two breaks within a day were longer."""
    (quote,) = (target for target in world.targets if target.tr.code == "ka20001")
    lost = [gap for gap in gaps(world, quote) if gap["reason"] == "window"]
    polls = good_polls(world, quote, WEEK)
    expected = [
        (since, until)
        for since, until in pairwise(polls)
        if WEEK.trading_day(since) == WEEK.trading_day(until) and WEEK.scheduled_s(quote, since, until) > TICKS_KEPT_S
    ]

    assert [gap["table"] for gap in lost] == ["ticks"] * len(expected)
    assert all(near(gap["to"], until) for gap, (_, until) in zip(lost, expected, strict=True))
    assert len(expected) == 2
    others = [gap for target in world.targets if target is not quote for gap in gaps(world, target)]
    assert not [gap for gap in others if gap["reason"] == "window"]


def test_the_snapshot_is_what_the_market_says_in_the_end(world: World):
    check_final(world)


def test_nothing_is_compared_before_an_opening(world: World):
    """The poller started on Monday at 07:30 and asked at once; the day's first entries came after nine."""
    first = min((entry for target in world.targets for entry in world.entries(target.tr.code)), key=_time)

    assert first.time >= moment(16, "09:00")
    assert world.ledger.served[0].at_real < moment(16, "07:31")


def _time(entry: Entry) -> datetime:
    return entry.time


# --- a year


EXAM_DAYS_2026 = frozenset({date(2026, 11, 19)})
LATE_DAYS_2026 = frozenset({date(2026, 1, 2)})
SPARSE = [(code, request, 60 * MINUTE) for code, request, _ in PLAN if request != {"inds_cd": "101"}]


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("quarter", [1, 2, 3, 4])
def test_a_year_holds_what_a_week_holds(quarter: int):
    """Every day of 2026, in four worlds; once a month the poller is killed at noon and comes back after a day."""
    first = datetime(2026, 3 * quarter - 2, 1, 7, 30, tzinfo=KST)
    last = datetime(2026 + quarter // 4, 3 * quarter % 12 + 1, 1, tzinfo=KST)
    killed = [datetime(2026, month, 11, 12, 0, tzinfo=KST) for month in range(first.month, first.month + 3)]

    async def months(world: World) -> None:
        world.start()
        for moment_killed in killed:
            await world.until(moment_killed)
            await world.processes[0].kill()
            await world.until(moment_killed + timedelta(days=1))
            world.processes[0].start()
        await world.until(last)

    world = World(start=first, plan=SPARSE, seed=quarter)
    world.run(months)
    length = (last - first).days + 12
    all_days = [(first - timedelta(days=10)).date() + timedelta(days=number) for number in range(length)]
    trading = tuple(day for day in all_days if world.calendar.is_trading_day(day))

    days = Days(trading, EXAM_DAYS_2026, LATE_DAYS_2026)
    check(world)
    check_days(world, days)
    check_gaps(world, days)
    check_final(world)
