"""When a target is asked: on a grid that nothing moves, within its hours, and less often after failures."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.grid import BACKOFF_CAP_S, EPOCH_START, Job, Timing, backoff_s, next_tick
from poller.session import KST, Calendar
from tests.builders import target

CALENDAR = Calendar()
MARKET = Timing(CALENDAR, CALENDAR)
ALWAYS = Timing(CALENDAR, None)
INDICES = Job(target("ka20003", inds_cd="001"), 10.0)
SLOW = Job(target("ka20003", inds_cd="101"), 3600.0)
MICROSECOND = timedelta(microseconds=1)

intervals = st.integers(1, 86_400).map(float)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - UTC is added


def kst(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=KST)


@given(intervals, st.floats(0, 1, exclude_max=True), moments)
def test_the_next_tick_is_on_the_grid_and_less_than_an_interval_away(every_s: float, part: float, after: datetime):
    phase_s = part * every_s

    tick = next_tick(every_s, phase_s, after)

    assert timedelta(0) < tick - after <= timedelta(seconds=every_s) + MICROSECOND
    steps = ((tick - EPOCH_START).total_seconds() - phase_s) / every_s
    assert steps == pytest.approx(round(steps), abs=1e-5)


@given(intervals, moments)
def test_overrun_ticks_are_skipped_and_never_replayed(every_s: float, after: datetime):
    """However late we are, the next tick lies ahead, and on the same grid as the one we missed."""
    first = next_tick(every_s, 0.0, after)

    late = next_tick(every_s, 0.0, first + timedelta(seconds=7.5 * every_s))

    assert late == first + timedelta(seconds=8 * every_s)


def test_a_tick_is_not_its_own_successor():
    tick = next_tick(10, 0.0, kst("2026-11-23T12:00:01"))

    assert next_tick(10, 0.0, tick) == tick + timedelta(seconds=10)


def test_a_phase_is_the_targets_own_and_survives_a_restart():
    phases = {
        code: Job(target("ka20001", inds_cd=code), 10.0).phase_s for code in ("001", "002", "003", "101", "201", "701")
    }

    assert len(set(phases.values())) == len(phases)
    assert all(0 <= phase < 10 for phase in phases.values())
    assert Job(target("ka20003", inds_cd="001"), 10.0).phase_s == INDICES.phase_s == pytest.approx(9.2323, abs=1e-3)


@given(st.integers(1, 10_000), st.floats(1, 3600), st.integers())
def test_a_pause_after_failures_is_never_longer_than_its_cap(failures: int, every_s: float, seed: int):
    pause_s = backoff_s(failures, every_s, random.Random(seed))

    assert 0 <= pause_s <= min(10 * every_s, BACKOFF_CAP_S, 0.5 * 2.0 ** min(failures, 20))


def test_pauses_grow_with_the_failures_and_spread_over_their_whole_range():
    pauses = [[backoff_s(failures, 60.0, random.Random(seed)) for seed in range(200)] for failures in (1, 4, 8)]

    assert [max(of) > 0.9 * ceiling for of, ceiling in zip(pauses, (1, 8, 128), strict=True)] == [True] * 3
    assert [min(of) < 0.1 * ceiling for of, ceiling in zip(pauses, (1, 8, 128), strict=True)] == [True] * 3


@given(moments)
def test_a_poll_is_due_ahead_and_in_the_reports_hours(after: datetime):
    for job in (INDICES, SLOW):
        due = MARKET.due(job, after)
        opens, closes = job.target.moves.window(due.astimezone(KST).date(), CALENDAR)

        assert due > after - MICROSECOND
        assert opens <= due <= closes or due == job.target.moves.evening_at(due.astimezone(KST).date(), CALENDAR)


@pytest.mark.parametrize(
    ("after", "earliest", "latest"),
    [
        ("2026-11-23T12:00:00", "2026-11-23T12:00:00", "2026-11-23T12:00:10"),
        ("2026-11-23T07:00:00", "2026-11-23T09:00:00", "2026-11-23T09:00:10"),
        ("2026-11-23T18:10:00", "2026-11-24T09:00:00", "2026-11-24T09:00:10"),
        ("2026-11-20T19:00:00", "2026-11-23T09:00:00", "2026-11-23T09:00:10"),
        ("2026-11-18T19:00:00", "2026-11-19T10:00:00", "2026-11-19T10:00:10"),
        ("2026-12-30T19:00:00", "2027-01-04T10:00:00", "2027-01-04T10:00:10"),
    ],
)
def test_outside_its_hours_a_report_waits_for_the_opening(after: str, earliest: str, latest: str):
    assert kst(earliest) <= MARKET.due(INDICES, kst(after)) <= kst(latest)


def test_the_last_poll_of_a_day_is_at_the_end_of_the_hours():
    """What the market settled on is seen, however long the interval."""
    assert MARKET.due(SLOW, kst("2026-11-23T15:39:59")) == kst("2026-11-23T15:40:00")
    assert MARKET.due(INDICES, kst("2026-11-23T15:39:59.999")) == kst("2026-11-23T15:40:00")


def test_at_the_opening_every_target_is_asked_within_a_minute():
    for every_s in (10.0, 600.0, 3600.0):
        due = MARKET.due(Job(SLOW.target, every_s), kst("2026-11-20T19:00"))
        assert kst("2026-11-23T09:00:00") <= due <= kst("2026-11-23T09:01:00")


def test_around_the_clock_only_the_grid_counts():
    sunday = kst("2026-11-22T03:00:00")

    assert ALWAYS.due(INDICES, sunday) == next_tick(10.0, INDICES.phase_s, sunday)


def test_after_the_close_an_index_is_asked_once_more_in_the_evening():
    assert MARKET.due(INDICES, kst("2026-11-23T15:40:00")) == kst("2026-11-23T18:10:00")
    assert MARKET.due(INDICES, kst("2026-11-19T16:40:00")) == kst("2026-11-19T19:10:00")


NOW_AND_THEN = Job(INDICES.target, 10.0, off_hours_s=1800.0)


def test_off_hours_polls_fill_the_time_between_close_and_midnight_but_not_the_hours_before_an_opening():
    """What is served before an opening is never compared, so nobody asks for it."""
    saturday, monday = kst("2026-11-21T12:00:00"), kst("2026-11-23T00:00:00")

    assert MARKET.due(NOW_AND_THEN, saturday) <= saturday + timedelta(seconds=1800)
    assert kst("2026-11-23T09:00:00") <= MARKET.due(NOW_AND_THEN, monday) <= kst("2026-11-23T09:00:10")
    assert MARKET.due(NOW_AND_THEN, kst("2026-11-23T12:00:00")) <= kst("2026-11-23T12:00:10")


@given(moments)
def test_off_hours_or_not_the_hours_are_polled_alike(after: datetime):
    with_it, without = MARKET.due(NOW_AND_THEN, after), MARKET.due(INDICES, after)

    assert after < with_it <= without
    assert with_it == without or not MARKET.before_opening(INDICES, with_it)


def test_a_stock_on_nxt_is_asked_from_its_own_opening_on():
    nxt = Job(target("ka20002", inds_cd="013", stex_tp="2"), 60.0)
    unified = Job(target("ka20002", inds_cd="013", stex_tp="3"), 60.0)
    midnight = kst("2026-11-23T00:00:00")

    assert kst("2026-11-23T08:00:00") <= MARKET.due(nxt, midnight) <= kst("2026-11-23T08:01:00")
    assert kst("2026-11-23T09:00:00") <= MARKET.due(unified, midnight) <= kst("2026-11-23T09:01:00")
    assert MARKET.before_opening(unified, kst("2026-11-23T08:30:00"))
    assert not MARKET.before_opening(nxt, kst("2026-11-23T08:30:00"))


def test_only_hours_that_were_meant_to_be_polled_can_be_missed():
    friday, monday = kst("2026-11-20T15:39:00"), kst("2026-11-23T09:01:00")

    assert MARKET.scheduled_polls(INDICES, friday, monday) == 12
    assert ALWAYS.scheduled_polls(INDICES, friday, monday) == (monday - friday).total_seconds() / 10
    assert MARKET.scheduled_polls(INDICES, monday, friday) == 0
    assert MARKET.scheduled_polls(INDICES, kst("2026-11-23T13:00:00"), kst("2026-11-23T12:00:00")) == 0


def test_off_hours_count_by_their_own_interval():
    friday, monday = kst("2026-11-20T15:39:00"), kst("2026-11-23T09:01:00")
    closed_hours = (24 - 15 - 40 / 60) + 48  # to midnight, and the weekend

    assert MARKET.scheduled_polls(NOW_AND_THEN, friday, monday) == pytest.approx(12 + closed_hours * 2)


@given(intervals, st.floats(0, 1, exclude_max=True), moments)
def test_the_tick_after_a_tick_is_later(every_s: float, part: float, after: datetime):
    """Rounded to a microsecond a tick may be its own successor, and the target asked twice at once."""
    tick = next_tick(every_s, part * every_s, after)

    assert next_tick(every_s, part * every_s, tick) > tick


@pytest.mark.parametrize(
    ("late_s", "missed"), [(0, 0), (9.9, 0), (10, 1), (10.1, 1), (19.9, 1), (20.1, 2), (100.1, 10)]
)
def test_ticks_that_passed_while_a_poll_was_waited_for_are_counted(late_s: float, missed: int):
    due = MARKET.due(INDICES, kst("2026-11-23T12:00:00"))

    assert MARKET.missed_ticks(INDICES, due, due + timedelta(seconds=late_s)) == missed


def test_no_tick_is_missed_over_night():
    due = MARKET.due(SLOW, kst("2026-11-23T15:39:59"))

    assert MARKET.missed_ticks(SLOW, due, kst("2026-11-23T18:00:00")) == 0
