"""Who may ask while something is in trouble: one probe at a time, and everybody again once it is over."""

from __future__ import annotations

import math
import random
from datetime import datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.errors import GiveUp, NotWhole, SkipTarget, TryLater
from poller.session import KST
from poller.trouble import (
    MAINTENANCE_PROBE_S,
    OPENS_AFTER,
    Breaker,
    Latch,
    Maintenance,
    Window,
    answered,
)
from tests.builders import NOON

PLAN = {"ka20001", "ka20003", "ka10010"}


def breaker(every_s: float = 10.0) -> Breaker:
    return Breaker(every_s, random.Random(7))


def opened(every_s: float = 10.0) -> Breaker:
    one = breaker(every_s)
    assert [one.failed(NOON, 0.0, "HTTP 500") for _ in range(OPENS_AFTER)] == [False] * 4 + [True]
    return one


def probe(one: Breaker, now_s: float) -> bool:
    return one.latch.wait_s(now_s) == 0 and one.latch.enter()


# --- a report's breaker


def test_four_failures_are_each_request_s_own_and_the_fifth_opens():
    one = breaker()
    for _ in range(4):
        one.failed(NOON, 0.0, "HTTP 500")

    assert one.latch.wait_s(0.0) == 0
    assert one.failed(NOON, 0.0, "HTTP 500")
    assert one.latch.is_shut


def test_a_success_between_starts_the_count_again():
    one = breaker()
    for _ in range(4):
        one.failed(NOON, 0.0, "HTTP 500")
    one.succeeded()

    assert not one.failed(NOON, 0.0, "HTTP 500")


def test_while_a_probe_is_in_flight_everybody_else_waits_for_it():
    one = opened()

    assert probe(one, 1000.0)
    assert one.latch.wait_s(1000.0) == math.inf


def test_a_failed_probe_makes_the_next_one_wait_and_a_good_one_lets_everybody_pass():
    one = opened()
    probe(one, 1000.0)
    one.failed(NOON, 1000.0, "HTTP 500", hint_s=9.0, probe=True)
    one.latch.over()
    waits = one.latch.wait_s(1000.0)
    probe(one, 2000.0)
    closed = one.succeeded()
    one.latch.over()

    assert waits >= 9.0
    assert closed
    assert one.latch.wait_s(2000.0) == 0


def test_the_server_s_hint_comes_before_our_own_pause():
    one = breaker()
    for _ in range(OPENS_AFTER):
        one.failed(NOON, 0.0, "HTTP 503", hint_s=120.0)

    assert one.latch.wait_s(0.0) == 120.0


@pytest.mark.parametrize(("every_s", "longest_s"), [(1.0, 10.0), (10.0, 100.0), (600.0, 300.0)])
def test_a_pause_is_at_most_ten_intervals_or_five_minutes(every_s: float, longest_s: float):
    one = opened(every_s)
    waits = []
    for _ in range(50):
        one.latch.probe_at_s = 0.0
        probe(one, 0.0)
        one.failed(NOON, 0.0, "HTTP 500", probe=True)
        one.latch.over()
        waits.append(one.latch.wait_s(0.0))

    assert longest_s / 2 < max(waits) <= longest_s


def test_what_was_sent_before_it_opened_does_not_lengthen_the_pause():
    one = opened()
    wait_s = one.latch.wait_s(0.0)
    one.failed(NOON, 0.0, "HTTP 500", hint_s=1000.0)

    assert one.latch.wait_s(0.0) == wait_s


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "fail", "hint", "success", "nothing"]), st.floats(0, 400)), max_size=200
    ),
    st.randoms(use_true_random=False),
)
def test_there_is_never_more_than_one_probe_and_a_success_always_brings_everybody_back(steps, rng):
    """Requests end in any order, whenever they were sent; what is asked while it is shut is the only probe."""
    one, now_s, flying = Breaker(10.0, rng), 0.0, list[bool]()
    for step, later_s in steps:
        now_s += later_s
        if step == "ask":
            if one.latch.wait_s(now_s) == 0:
                flying.append(one.latch.enter())
        elif flying:
            was_probe = flying.pop(rng.randrange(len(flying)))
            if step == "success":
                one.succeeded()
            elif step != "nothing":
                one.failed(NOON, now_s, "HTTP 500", hint_s=30.0 if step == "hint" else 0.0, probe=was_probe)
            if was_probe:
                one.latch.over()
        assert sum(flying) <= 1

    for was_probe in flying:
        if was_probe:
            one.latch.over()
    now_s = max(now_s, one.latch.probe_at_s)
    assert one.latch.wait_s(now_s) == 0
    one.latch.enter()
    one.succeeded()
    one.latch.over()
    assert one.latch.wait_s(now_s) == 0
    assert not one.latch.is_shut


def test_nobody_waits_for_less_than_a_moment_can_tell():
    """A datetime has microseconds: in virtual time, a wait of a nanosecond came back at the same moment for ever."""
    latch = Latch()
    latch.shut(NOON, "HTTP 500", 100.0)

    assert latch.wait_s(100.0 - 1e-9) == 0
    assert latch.wait_s(99.9) > 0


def test_an_open_latch_has_no_probe():
    assert not Latch().enter()


# --- maintenance


def test_pages_of_html_for_two_reports_are_maintenance_at_the_third():
    state = Maintenance()
    found = [state.suspected(tr, PLAN, NOON, 0.0, "html") for tr in ("ka20001", "ka20003", "ka20003")]

    assert found == [False, False, True]
    assert state.latch.wait_s(0.0) == MAINTENANCE_PROBE_S


def test_one_report_s_pages_are_its_own_trouble_unless_it_is_the_only_one():
    state, alone = Maintenance(), Maintenance()

    assert not any(state.suspected("ka20003", PLAN, NOON, 0.0, "html") for _ in range(9))
    assert [alone.suspected("ka20003", {"ka20003"}, NOON, 0.0, "html") for _ in range(3)] == [False, False, True]


def test_an_answer_between_forgets_what_was_suspected():
    state = Maintenance()
    state.suspected("ka20001", PLAN, NOON, 0.0, "html")
    state.suspected("ka20003", PLAN, NOON, 0.0, "html")
    state.answered()

    assert not state.suspected("ka20003", PLAN, NOON, 0.0, "html")


def test_the_first_answer_ends_it():
    state = Maintenance()
    for tr in ("ka20001", "ka20003", "ka20003"):
        state.suspected(tr, PLAN, NOON, 0.0, "html")

    assert state.answered()
    assert state.latch.wait_s(0.0) == 0
    assert not state.answered()


@pytest.mark.parametrize(
    ("error", "spoke"),
    [
        (TryLater("HTTP 200 without JSON", maintenance=True), False),
        (TryLater("시스템 점검 [8009:…]", code=8009, maintenance=True), False),
        (TryLater("ReadTimeout"), False),
        (TryLater("unexpected", code=1999), False),
        (TryLater("quota", code=1700, refused=True), True),
        (TryLater("the token is dead", code=8005), True),
        (NotWhole("page 2 is empty"), True),
        (SkipTarget("no such stock", code=1902), True),
        (GiveUp("this address is not registered", code=8050, scope="key"), True),
    ],
    ids=str,
)
def test_a_refusal_shows_that_the_api_works_and_silence_does_not(error, spoke: bool):
    assert answered(error) is spoke


# --- daily windows


@pytest.mark.parametrize(
    ("window", "clock", "left_s"),
    [
        (Window(time(5, 50), time(6, 10)), "05:49:59", 0),
        (Window(time(5, 50), time(6, 10)), "05:50:00", 1200),
        (Window(time(5, 50), time(6, 10)), "06:09:59", 1),
        (Window(time(5, 50), time(6, 10)), "06:10:00", 0),
        (Window(time(23, 50), time(0, 10)), "23:55:00", 900),
        (Window(time(23, 50), time(0, 10)), "00:00:00", 600),
        (Window(time(23, 50), time(0, 10)), "12:00:00", 0),
    ],
)
def test_a_daily_window_is_korean_time_and_may_lead_over_midnight(window: Window, clock: str, left_s: float):
    moment = datetime.combine(NOON.date(), time.fromisoformat(clock), KST)

    assert window.left_s(moment) == left_s


@given(st.times(), st.times(), st.integers(0, 86_399))
def test_at_the_end_of_a_window_it_is_over(begins: time, ends: time, second: int):
    window = Window(begins.replace(tzinfo=None), ends.replace(tzinfo=None))
    moment = NOON.replace(hour=0) + timedelta(seconds=second)
    left_s = window.left_s(moment)

    assert 0 <= left_s <= 86_400
    assert left_s == 0 or begins == ends or window.left_s(moment + timedelta(seconds=left_s)) == 0
