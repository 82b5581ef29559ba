"""Which day it is and what the market does, on every date and at every minute we know something about."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from time import tzset

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.session import (
    FLOW_HOURS,
    INDEX_HOURS,
    KST,
    LATE_OPENS,
    NXT_HOURS,
    STOCK_HOURS,
    UNIFIED_HOURS,
    USUAL,
    Calendar,
    Hours,
    Market,
    Moves,
    Session,
    before_opening_s,
    next_evening,
    polling_s,
    windows,
)

CALENDAR = Calendar()
MONDAY = date(2026, 11, 23)
FRIDAY_BEFORE = date(2026, 11, 20)
EXAM_THURSDAY = date(2026, 11, 19)
EVERY_MOVES = [INDEX_HOURS, FLOW_HOURS, STOCK_HOURS, NXT_HOURS, UNIFIED_HOURS]
MARKETS: tuple[Market, ...] = ("KRX", "NXT")
moments = st.datetimes(datetime(2025, 12, 1), datetime(2027, 11, 30), timezones=st.just(KST))  # noqa: DTZ001 - KST is added


def at(day: date, clock: str) -> datetime:
    return datetime.combine(day, time.fromisoformat(clock), KST)


# --- trading days


@pytest.mark.parametrize("day", ["2026-06-03", "2026-07-17", "2027-05-03", "2027-07-19"])
def test_the_new_holidays_are_closed(day: str):
    """Other calendar packages get these four wrong."""
    assert date.fromisoformat(day).weekday() < 5
    assert not CALENDAR.is_trading_day(date.fromisoformat(day))


@pytest.mark.parametrize(
    "day", ["2025-01-01", "2025-12-31", "2026-01-01", "2026-02-17", "2026-09-25", "2026-12-25", "2026-12-31"]
)
def test_old_holidays_and_the_last_day_of_the_year_are_closed(day: str):
    assert not CALENDAR.is_trading_day(date.fromisoformat(day))


@pytest.mark.parametrize("day", ["2026-11-21", "2026-11-22"])
def test_weekends_are_closed(day: str):
    assert not CALENDAR.is_trading_day(date.fromisoformat(day))


@pytest.mark.parametrize("day", ["2026-11-19", "2027-11-18", "2026-01-02", "2027-01-04", "2026-07-16", "2026-12-30"])
def test_days_that_only_look_special_are_trading_days(day: str):
    assert CALENDAR.is_trading_day(date.fromisoformat(day))


def test_a_closure_that_no_list_knows_can_be_added():
    calendar = Calendar(closures=frozenset({MONDAY}))

    assert not calendar.is_trading_day(MONDAY)
    assert calendar.session_at(at(MONDAY, "10:00")) == "closed"
    assert calendar.next_trading_day(FRIDAY_BEFORE) == MONDAY + timedelta(days=1)


def test_a_day_that_trades_though_the_lists_say_no_can_be_added():
    calendar = Calendar(open_days=frozenset({date(2026, 12, 31)}))

    assert calendar.is_trading_day(date(2026, 12, 31))
    assert not CALENDAR.is_trading_day(date(2026, 12, 31))


DAYS_PER_MONTH = {
    2025: [18, 20, 20, 22, 19, 19, 23, 20, 22, 18, 20, 21],
    2026: [21, 17, 21, 22, 18, 21, 22, 20, 20, 20, 21, 21],
    2027: [20, 18, 22, 22, 18, 22, 21, 21, 19, 19, 22, 21],
}
"""Weekdays less the holidays of the law, counted by hand against the lists of 2025 to 2027."""


@pytest.mark.parametrize("year", DAYS_PER_MONTH)
def test_every_month_has_its_number_of_trading_days(year: int):
    days = [date(year, 1, 1) + timedelta(days=n) for n in range(365)]

    counts = [sum(CALENDAR.is_trading_day(day) for day in days if day.month == month) for month in range(1, 13)]

    assert counts == DAYS_PER_MONTH[year]


# --- hours


@pytest.mark.parametrize("day", ["2025-11-13", "2026-11-19", "2027-11-18"])
def test_on_the_day_of_the_entrance_exam_everything_is_an_hour_later(day: str):
    assert CALENDAR.hours(date.fromisoformat(day)) == Hours(time(10), time(16, 30))


@pytest.mark.parametrize("day", ["2025-01-02", "2026-01-02", "2027-01-04"])
def test_the_first_trading_day_opens_an_hour_late_and_closes_as_usual(day: str):
    first = date.fromisoformat(day)

    assert CALENDAR.hours(first) == Hours(time(10), time(15, 30))
    assert CALENDAR.next_trading_day(date(first.year - 1, 12, 31)) == first


def test_every_late_opening_is_on_a_trading_day():
    assert all(CALENDAR.is_trading_day(day) for day in LATE_OPENS)
    assert CALENDAR.hours(MONDAY) == USUAL


def test_korea_is_nine_hours_ahead_of_utc():
    assert CALENDAR.opens_at(MONDAY) == datetime(2026, 11, 23, 0, 0, tzinfo=UTC)


# --- sessions

A_DAY = [
    ("00:00", "closed"),
    ("08:00", "pre"),
    ("09:00", "regular"),
    ("15:30", "closing"),
    ("15:40", "after"),
    ("20:00", "closed"),
]
AN_EXAM_DAY = [
    ("00:00", "closed"),
    ("09:00", "pre"),
    ("10:00", "regular"),
    ("16:30", "closing"),
    ("16:40", "after"),
    ("20:00", "closed"),
]
A_WEEKEND_DAY = [("00:00", "closed")]


def test_every_minute_of_a_week_is_in_exactly_the_session_that_the_hours_say():
    """Thursday is the entrance exam's; the borders themselves belong to what begins there."""
    week = [date(2026, 11, 16) + timedelta(days=n) for n in range(7)]
    for day in week:
        plan = A_WEEKEND_DAY if day.weekday() > 4 else AN_EXAM_DAY if day == EXAM_THURSDAY else A_DAY
        for minute in range(24 * 60):
            moment = at(day, "00:00") + timedelta(minutes=minute)
            expected = [session for begins, session in plan if at(day, begins) <= moment][-1]
            assert CALENDAR.session_at(moment) == expected, moment
            assert CALENDAR.session_at(moment.astimezone(UTC)) == expected, moment


NXT_DAY = [
    ("00:00", "closed"),
    ("08:00", "pre"),
    ("09:00:30", "regular"),
    ("15:20", "closing"),
    ("15:40", "after"),
    ("20:00", "closed"),
]
NXT_EXAM_DAY = [
    ("00:00", "closed"),
    ("10:00", "regular"),
    ("16:20", "closing"),
    ("16:30", "after"),
    ("20:00", "closed"),
]
NXT_FIRST_DAY = [
    ("00:00", "closed"),
    ("10:00", "regular"),
    ("15:20", "closing"),
    ("15:40", "after"),
    ("20:00", "closed"),
]


@pytest.mark.parametrize(
    ("day", "plan"), [(MONDAY, NXT_DAY), (EXAM_THURSDAY, NXT_EXAM_DAY), (date(2027, 1, 4), NXT_FIRST_DAY)]
)
def test_nxt_has_hours_of_its_own(day: date, plan: list[tuple[str, str]]):
    """An hour of pre-market that the late days do not have, and a main market that ends before KRX's auction."""
    for half_minute in range(24 * 120):
        moment = at(day, "00:00") + timedelta(seconds=30 * half_minute)
        expected = [session for begins, session in plan if at(day, begins) <= moment][-1]
        assert CALENDAR.session_at(moment, "NXT") == expected, moment


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize("year", DAYS_PER_MONTH)
def test_in_a_whole_year_sessions_follow_each_other_in_order_and_never_overlap(year: int, market: Market):
    """Every instant is in exactly one: the borders of a day rise, and begin and end with the closed market."""
    order: list[Session] = ["closed", "pre", "regular", "closing", "after"]
    for day in (date(year, 1, 1) + timedelta(days=n) for n in range(365)):
        midnight = at(day, "00:00")
        seen = [CALENDAR.session_at(midnight + timedelta(minutes=5 * n), market) for n in range(288)]
        changes = [now for before, now in zip(["", *seen], seen, strict=False) if before != now]
        if not CALENDAR.is_trading_day(day):
            assert changes == ["closed"], day
        else:
            late_nxt = market == "NXT" and day in LATE_OPENS
            assert changes == [*(word for word in order if not (late_nxt and word == "pre")), "closed"], day


def test_the_evening_grew_longer_with_the_after_market_of_2026():
    friday, monday = date(2026, 9, 11), date(2026, 9, 14)

    assert [CALENDAR.session_at(at(day, "18:30")) for day in (friday, monday)] == ["closed", "after"]
    assert [CALENDAR.session_at(at(day, "18:30"), "NXT") for day in (friday, monday)] == ["after", "after"]
    assert STOCK_HOURS.window(friday, CALENDAR)[1] == at(friday, "18:00")


@pytest.mark.parametrize(
    ("today", "warned"), [("2027-10-31", False), ("2027-11-01", True), ("2027-12-31", True), ("2028-03-01", True)]
)
def test_the_end_of_the_late_openings_is_told_sixty_days_before(today: str, *, warned: bool):
    told = CALENDAR.late_opens_end(date.fromisoformat(today))

    assert (told is not None) == warned
    assert not told or ("2027-12-31" in told and "2028-01-03" in told and "[schedule]" in told)


def test_who_adds_the_next_late_openings_is_not_warned():
    calendar = Calendar(late_opens={**LATE_OPENS, date(2028, 1, 3): Hours(time(10), time(15, 30))})

    assert calendar.late_opens_end(date(2027, 12, 1)) is None
    assert calendar.opens_at(date(2028, 1, 3)) == at(date(2028, 1, 3), "10:00")


@pytest.mark.parametrize(
    ("clock", "session"),
    [("08:59:59.999999", "pre"), ("15:29:59.999999", "regular"), ("15:39:59.999999", "closing"), ("19:59:59", "after")],
)
def test_the_last_moment_before_a_border_belongs_to_what_ends(clock: str, session: str):
    assert CALENDAR.session_at(at(MONDAY, clock)) == session


def test_the_first_trading_day_has_its_hour_before_the_opening():
    first = date(2027, 1, 4)

    sessions = [CALENDAR.session_at(at(first, clock)) for clock in ("08:59", "09:00", "10:00", "15:30")]

    assert sessions == ["closed", "pre", "regular", "closing"]


# --- the trading day


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (at(MONDAY, "08:59:59.999"), FRIDAY_BEFORE),
        (at(MONDAY, "09:00"), MONDAY),
        (at(MONDAY, "23:59"), MONDAY),
        (at(MONDAY + timedelta(days=1), "00:00"), MONDAY),
        (at(date(2026, 11, 22), "12:00"), FRIDAY_BEFORE),
        (at(EXAM_THURSDAY, "09:59"), date(2026, 11, 18)),
        (at(EXAM_THURSDAY, "10:00"), EXAM_THURSDAY),
        (at(date(2027, 1, 4), "09:30"), date(2026, 12, 30)),
        (at(date(2027, 1, 4), "10:00"), date(2027, 1, 4)),
        (at(date(2026, 7, 17), "12:00"), date(2026, 7, 16)),
        (at(date(2026, 2, 18), "12:00"), date(2026, 2, 13)),
    ],
)
def test_the_trading_day_turns_at_the_opening(moment: datetime, day: date):
    """What the broker serves before it are yesterday's rows, or zeros."""
    assert CALENDAR.trading_day_at(moment) == day
    assert CALENDAR.trading_day_at(moment.astimezone(UTC)) == day


@given(moments, st.sampled_from(MARKETS))
def test_a_trading_day_is_one_that_opened_and_no_later_one_did(moment: datetime, market: Market):
    day = CALENDAR.trading_day_at(moment, market)

    assert CALENDAR.is_trading_day(day)
    assert CALENDAR.opens_at(day, market) <= moment < CALENDAR.opens_at(CALENDAR.next_trading_day(day), market)


@pytest.mark.parametrize(
    ("moment", "krx", "nxt"),
    [
        (at(MONDAY, "00:00"), True, True),
        (at(MONDAY, "07:59:59"), True, True),
        (at(MONDAY, "08:00"), True, False),
        (at(MONDAY, "09:00"), False, False),
        (at(MONDAY, "23:59"), False, False),
        (at(date(2026, 11, 22), "08:00"), False, False),
        (at(EXAM_THURSDAY, "09:59"), True, True),
        (at(EXAM_THURSDAY, "10:00"), False, False),
    ],
)
def test_from_midnight_to_the_opening_a_trading_day_has_not_begun(moment: datetime, *, krx: bool, nxt: bool):
    assert [CALENDAR.before_opening(moment, market) for market in MARKETS] == [krx, nxt]


# --- polling hours


@pytest.mark.parametrize(
    ("moves", "day", "opens", "closes"),
    [
        (INDEX_HOURS, MONDAY, "09:00", "15:40"),
        (FLOW_HOURS, MONDAY, "09:00", "18:10"),
        (STOCK_HOURS, MONDAY, "09:00", "20:00"),
        (INDEX_HOURS, EXAM_THURSDAY, "10:00", "16:40"),
        (FLOW_HOURS, EXAM_THURSDAY, "10:00", "19:10"),
        (STOCK_HOURS, EXAM_THURSDAY, "10:00", "20:00"),
        (INDEX_HOURS, date(2027, 1, 4), "10:00", "15:40"),
        (NXT_HOURS, MONDAY, "08:00", "20:00"),
        (NXT_HOURS, EXAM_THURSDAY, "10:00", "20:00"),
        (NXT_HOURS, date(2026, 9, 11), "08:00", "20:00"),
        (UNIFIED_HOURS, MONDAY, "09:00", "20:00"),
        (UNIFIED_HOURS, date(2026, 9, 11), "09:00", "20:00"),
    ],
)
def test_a_report_is_asked_while_it_moves(moves: Moves, day: date, opens: str, closes: str):
    assert moves.window(day, CALENDAR) == (at(day, opens), at(day, closes))


@pytest.mark.parametrize("moves", EVERY_MOVES, ids=lambda moves: moves.label)
def test_a_label_says_the_usual_hours(moves: Moves):
    opens, closes = moves.window(MONDAY, CALENDAR)
    evening = moves.evening_at(MONDAY, CALENDAR)

    assert moves.label == f"{opens:%H:%M}-{closes:%H:%M}" + (f", {evening:%H:%M}" if evening else "")


def test_what_settles_late_is_asked_once_in_the_evening():
    """The marker rows of ka20001 may change until 18:00."""
    assert next_evening(INDEX_HOURS, CALENDAR, at(MONDAY, "12:00")) == at(MONDAY, "18:10")
    assert next_evening(INDEX_HOURS, CALENDAR, at(MONDAY, "18:10")) == at(date(2026, 11, 24), "18:10")
    assert next_evening(INDEX_HOURS, CALENDAR, at(date(2026, 11, 18), "20:00")) == at(EXAM_THURSDAY, "19:10")
    assert next_evening(FLOW_HOURS, CALENDAR, at(MONDAY, "12:00")) is None


def test_the_next_window_skips_nights_weekends_and_holidays():
    def next_opening(moment: datetime) -> datetime:
        return next(windows(INDEX_HOURS, CALENDAR, moment))[0]

    assert next_opening(at(MONDAY, "12:00")) == at(MONDAY, "09:00")
    assert next_opening(at(MONDAY, "15:40")) == at(date(2026, 11, 24), "09:00")
    assert next_opening(at(FRIDAY_BEFORE, "18:00")) == at(MONDAY, "09:00")
    assert next_opening(at(date(2026, 7, 16), "18:00")) == at(date(2026, 7, 20), "09:00")
    assert next_opening(at(date(2026, 12, 30), "18:00")) == at(date(2027, 1, 4), "10:00")


@pytest.mark.parametrize(
    ("start", "end", "minutes"),
    [
        (at(MONDAY, "09:00"), at(MONDAY, "15:40"), 400),
        (at(MONDAY, "12:00"), at(MONDAY, "12:00"), 0),
        (at(MONDAY, "12:00"), at(MONDAY, "12:01"), 1),
        (at(MONDAY, "07:00"), at(MONDAY, "09:10"), 10),
        (at(MONDAY, "15:30"), at(MONDAY, "23:00"), 10),
        (at(MONDAY, "16:00"), at(MONDAY, "23:00"), 0),
        (at(MONDAY, "15:39"), at(date(2026, 11, 24), "09:01"), 2),
        (at(FRIDAY_BEFORE, "15:39"), at(MONDAY, "09:01"), 2),
        (at(FRIDAY_BEFORE, "12:00"), at(MONDAY, "12:00"), 220 + 180),
        (at(date(2026, 11, 16), "00:00"), at(MONDAY, "00:00"), 5 * 400),
        (at(date(2026, 7, 16), "15:39"), at(date(2026, 7, 20), "09:01"), 2),
        (at(EXAM_THURSDAY, "09:00"), at(EXAM_THURSDAY, "10:01"), 1),
    ],
)
def test_closed_hours_do_not_count(start: datetime, end: datetime, minutes: int):
    assert polling_s(INDEX_HOURS, CALENDAR, start, end) == minutes * 60


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        (at(FRIDAY_BEFORE, "12:00"), at(MONDAY, "12:00"), 9),
        (at(FRIDAY_BEFORE, "03:00"), at(FRIDAY_BEFORE, "05:00"), 2),
        (at(FRIDAY_BEFORE, "08:00"), at(MONDAY, "01:00"), 2),
        (at(MONDAY, "12:00"), at(MONDAY, "13:00"), 0),
        (at(EXAM_THURSDAY, "00:00"), at(FRIDAY_BEFORE, "00:00"), 10),
    ],
)
def test_the_hours_before_an_opening_are_counted(start: datetime, end: datetime, hours: int):
    assert before_opening_s("KRX", CALENDAR, start, end) == hours * 3600


def test_the_hours_before_an_opening_are_those_of_the_market_itself():
    """NXT opens an hour earlier, but on the day of the exam with KRX."""
    wednesday, friday = at(date(2026, 11, 18), "00:00"), at(FRIDAY_BEFORE, "00:00")

    assert [before_opening_s(market, CALENDAR, wednesday, friday) / 3600 for market in MARKETS] == [9 + 10, 8 + 10]


@given(st.lists(moments, min_size=3, max_size=3).map(sorted), st.sampled_from(EVERY_MOVES))
def test_polling_time_adds_up(three: list[datetime], moves: Moves):
    first, middle, last = three

    def between(start: datetime, end: datetime) -> float:
        return polling_s(moves, CALENDAR, start, end)

    assert between(first, middle) + between(middle, last) == pytest.approx(between(first, last), abs=1e-3)
    assert 0 <= between(first, last) <= (last - first).total_seconds()


@pytest.fixture(params=["UTC", "America/Los_Angeles", "Pacific/Kiritimati"])
def far_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine stands in another time zone for the length of a test."""
    monkeypatch.setenv("TZ", request.param)
    tzset()
    yield
    monkeypatch.undo()
    tzset()


@pytest.mark.usefixtures("far_away")
def test_the_time_zone_of_the_machine_means_nothing():
    """On Kiritimati it is already tomorrow while Korea's evening trades."""
    evening = at(MONDAY, "19:30")

    assert next(windows(STOCK_HOURS, CALENDAR, evening)) == (at(MONDAY, "09:00"), at(MONDAY, "20:00"))
    assert (CALENDAR.trading_day_at(evening), CALENDAR.session_at(evening)) == (MONDAY, "after")
    assert CALENDAR.before_opening(at(MONDAY, "08:59"))
