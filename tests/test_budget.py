"""No second at the server sees more requests than it allows, and a plan that cannot be kept says so with numbers."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.budget import (
    MARGIN_S,
    MOCK_PERIOD_S,
    REAL_LIMIT,
    RECOVERY_S,
    USUAL_LATENCY_S,
    Learned,
    Limit,
    Share,
    Window,
    named_limit,
    shares,
)
from tests.builders import target

# --- the window

LATE_S = 0.0
"""How late a timer fires; even one that is never late must not slip a request through."""

seconds = st.floats(0, 3, allow_nan=False)
requests = st.lists(st.tuples(seconds, st.floats(0, 5, allow_nan=False), st.floats(0, 1)), min_size=1, max_size=60)


def served_at(limit: Limit, wishes: list[tuple[float, float, float]]) -> list[float]:
    """Play requests through a window: (pause before the wish, latency, when in between the server counts it).

    The server's moments of them, in order. Requests overlap as far as the window lets them.
    """
    window, now_s = Window(limit, now_s=0.0), 0.0
    in_flight: list[float] = []
    counted: list[float] = []
    for pause_s, latency_s, place in wishes:
        now_s += pause_s
        while True:
            for answer_s in sorted(answer_s for answer_s in in_flight if answer_s <= now_s):
                window.answered(answer_s)
                in_flight.remove(answer_s)
            wait_s = window.take(now_s)
            if wait_s == 0:
                break
            now_s = min([now_s + wait_s + LATE_S, *in_flight])
        counted.append(now_s + place * latency_s)
        in_flight.append(now_s + latency_s)
    return sorted(counted)


@settings(max_examples=300)
@given(st.integers(1, 4), requests)
def test_no_second_at_the_server_sees_more_than_the_limit(allowed: int, wishes: list[tuple[float, float, float]]):
    """A request is counted anywhere between its sending and its answer; nobody here knows when."""
    counted = served_at(Limit(allowed), wishes)

    for number, moment in enumerate(counted):
        assert sum(moment <= other < moment + 1.0 for other in counted[number:]) <= allowed


@given(requests)
def test_the_mock_server_sees_one_request_at_a_time(wishes: list[tuple[float, float, float]]):
    counted = served_at(Limit(1, MOCK_PERIOD_S), wishes)

    assert all(later - earlier >= 1.2 - 1e-6 for earlier, later in pairwise(counted))


def test_a_window_is_full_at_the_start():
    """A poller that was restarted does not know what its predecessor just sent."""
    window = Window(Limit(2), now_s=100.0)

    assert window.take(100.0) == pytest.approx(1.0 + MARGIN_S)
    assert window.take(101.1) == 0
    assert window.take(101.1 + Limit(2).slot_s) == 0


def test_requests_keep_a_pace_that_late_timers_do_not_slow_down():
    """A plan is proved with evenly spread slots; a burst that takes all of them at once would make others wait."""
    window = Window(Limit(4), now_s=-2.0)
    waits, moment = [], 0.0
    for _ in range(3):
        assert window.take(moment) == 0
        waits.append(window.take(moment))
        moment += waits[-1] + 0.01

    assert waits == pytest.approx([0.29, 0.28, 0.28])


def test_a_slot_is_free_a_second_and_a_margin_after_its_answer_and_not_after_its_sending():
    window = Window(Limit(1), now_s=0.0)
    assert window.take(5.0) == 0
    assert window.take(9.0) == math.inf

    window.answered(10.0)

    assert window.take(10.5) == pytest.approx(0.6)
    assert window.take(11.1) == 0


def test_a_short_wait_takes_no_slot():
    window = Window(Limit(1), now_s=0.0)

    waits = [window.take(moment) for moment in (0.0, 0.5, 1.0)]

    assert waits == pytest.approx([1.1, 0.6, 0.1])
    assert window.take(1.1) == 0


# --- the plan

LIMITS = {"ka20003": Limit(1), "ka20002": Limit(4)}
INDICES = [target("ka20003", inds_cd=code) for code in ("001", "101")]
ALL_STOCKS = target("ka20002", inds_cd="001", stex_tp="1")


def test_each_tr_has_a_limit_of_its_own_on_the_real_server():
    plan = shares([(INDICES[0], 10.0), (INDICES[1], 5.0), (ALL_STOCKS, 60.0)], LIMITS)

    assert [(share.name, share.targets, share.requests_per_round) for share in plan] == [
        ("ka20002", 1, 25),
        ("ka20003", 2, 2),
    ]
    assert plan[1].needed_per_s == pytest.approx(0.3)
    assert plan[0].needed_per_s == pytest.approx(25 / 60)


@pytest.mark.parametrize(("every_s", "pages"), [(10.0, 1), (190.0, 1), (200.0, 2), (600.0, 4), (86_400.0, 12)])
def test_a_trail_of_ten_second_rows_takes_more_pages_the_less_often_it_is_asked(every_s: float, pages: int):
    """Twenty rows reach back 200 s; a plan that counted one page would be late without knowing why."""
    (share,) = shares([(target("ka20001", inds_cd="001"), every_s)], {"ka20001": Limit(4)})

    assert share.requests_per_round == pages


def test_the_mock_server_counts_everything_together():
    (share,) = shares([(INDICES[0], 10.0), (ALL_STOCKS, 60.0)], {"*": Limit(1, MOCK_PERIOD_S)})

    assert (share.name, share.targets, share.requests_per_round) == ("all TRs together", 2, 26)


def test_a_plan_that_fits_says_how_much_it_uses_and_how_old_a_row_gets():
    (share,) = shares([(INDICES[0], 10.0), (INDICES[1], 20.0)], LIMITS)

    assert share.fits
    assert share.used_pct == pytest.approx(100 * (1 / 8 + 1 / 17))
    assert share.worst_staleness_s == pytest.approx(20 + 3 * 1.16 + 0.06)


def test_a_plan_that_does_not_fit_says_what_would():
    (share,) = shares([(ALL_STOCKS, 5.0)], {"ka20002": Limit(1)})

    assert not share.fits
    assert share.remedy() == (
        "ka20002: 1 target needs 5.00 requests/s, 0.86 are allowed, and intervals count in whole requests of 1.16s: "
        "625 % of what the limit bears; make every `every` 5.9 times longer (the longest 30s)"
    )


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 300).map(float)), min_size=1, max_size=30))
def test_a_remedy_really_fits(members: list[tuple[int, float]]):
    share = Share("ka20001", Limit(2), tuple(members))
    told = share.remedy() if not share.fits else ""
    if not told:
        return
    factor = float(told.split("make every `every` ")[1].split(" times")[0])
    keep = int(told.split("or keep ")[1].split(" of")[0]) if "or keep" in told else 0
    lightest = sorted(members, key=lambda member: member[0] / member[1])

    assert Share("", Limit(2), tuple((pages, every_s * factor) for pages, every_s in members)).fits
    assert keep == 0 or Share("", Limit(2), tuple(lightest[:keep])).fits
    assert keep == len(members) - 1 or not Share("", Limit(2), tuple(lightest[: keep + 1])).fits


def test_an_interval_shorter_than_one_request_takes_cannot_be_kept():
    (share,) = shares([(INDICES[0], 1.0)], LIMITS)

    assert not share.fits
    assert "whole requests of 1.16s: not one is asked and answered within 1s; make" in share.remedy()
    assert "1.3 times longer" in share.remedy()


# --- learning


def test_what_a_refusal_names_is_learned_less_one_and_never_more_than_configured():
    learned = Learned.nothing(Limit(4))

    assert not learned.refused(named_limit("유량=5, API ID=ka10080"), 0.0)
    assert learned.refused(named_limit("유량=2, API ID=ka10080"), 5.0)
    assert learned.now == Limit(1)
    assert named_limit("HTTP 429") is None


def test_without_a_number_the_rate_halves_and_comes_back_slowly():
    learned, rates = Learned.nothing(Limit(4)), []
    for moment in (0.0, 10.0, 20.0):
        assert learned.refused(None, moment)
        rates.append(learned.now)
    assert not learned.recovered(20.0 + RECOVERY_S - 1)
    moment = 20.0
    while learned.now != learned.configured:
        moment += RECOVERY_S
        assert learned.recovered(moment)
        rates.append(learned.now)

    assert rates == [Limit(2), Limit(1), Limit(1, 2.0), Limit(1), Limit(2), Limit(3), Limit(4)]
    assert not learned.recovered(moment + RECOVERY_S)


def test_refusals_of_one_window_count_once():
    """Four were in flight under the same limit; halving four times would be an answer to one mistake."""
    learned = Learned.nothing(Limit(4))

    assert [learned.refused(None, moment) for moment in (0.0, 0.1, 0.2)] == [True, False, False]
    assert learned.now == Limit(2)


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 3)), max_size=20))
def test_a_limit_that_changes_in_flight_never_lets_more_through(changes: list[tuple[int, float]]):
    window, now_s, sent, in_flight = Window(Limit(4), now_s=0.0), 0.0, list[tuple[float, int]](), 0
    for requests_per_s, pause_s in changes:
        now_s += pause_s
        while window.take(now_s) == 0:
            sent.append((now_s, window.limit.requests))
            in_flight += 1
        if in_flight:
            window.answered(now_s)
            in_flight -= 1
        window.set(Limit(requests_per_s), now_s)

    for moment, allowed in sent:
        assert sum(moment <= other < moment + 1 for other, _ in sent) <= max(4, allowed)


# --- the proof

plans = st.lists(
    st.tuples(st.integers(1, 25), st.integers(2, 120).map(float), st.floats(0, 1)), min_size=1, max_size=12
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), plans, st.randoms(use_true_random=False))
def test_a_plan_that_fits_is_kept_to_the_last_deadline(
    allowed: int, plan: list[tuple[int, float, float]], rng: random.Random
):
    """Earliest deadline first over the window, any phases, any latency up to the usual one: no poll is late."""
    limit = Limit(allowed)
    while not Share("", limit, tuple((pages, every_s) for pages, every_s, _ in plan)).fits:
        plan = [(pages, every_s * 1.2, phase) for pages, every_s, phase in plan]
    window, now_s, end_s = Window(limit, now_s=-10.0), 0.0, 2.2 * max(every_s for _, every_s, _ in plan)
    releases = sorted(
        (phase * every_s + n * every_s, every_s, pages)
        for pages, every_s, phase in plan
        for n in range(int(end_s / every_s) + 1)
    )
    waiting: list[list[float]] = []  # deadline, pages left, free to ask from
    while releases or waiting:
        while releases and releases[0][0] <= now_s:
            released_s, every_s, pages = releases.pop(0)
            waiting.append([released_s + every_s, pages, released_s])
        ready = [walk for walk in waiting if walk[2] <= now_s]
        if ready and (wait_s := window.take(now_s)) == 0:
            walk = min(ready)
            latency_s = rng.uniform(0, USUAL_LATENCY_S)
            window.answered(now_s + latency_s)  # known at once here, which only the order of sending could notice
            walk[1] -= 1
            walk[2] = now_s + latency_s
            if walk[1] == 0:
                assert now_s + latency_s <= walk[0] + 1e-6
                waiting.remove(walk)
            continue
        moments = [walk[2] for walk in waiting if walk[2] > now_s] + [release[0] for release in releases[:1]]
        if ready:
            moments.append(now_s + wait_s)
        now_s = min(moments)


def test_what_may_be_kept_up_is_less_than_the_limit():
    """Margin and latency are paid by every request."""
    for allowed in range(1, REAL_LIMIT):
        assert Limit(allowed).sustained_per_s < allowed
