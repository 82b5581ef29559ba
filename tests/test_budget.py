"""No second at the server sees more requests than it allows, and a plan that cannot be kept says so with numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.budget import MARGIN_S, MOCK_PERIOD_S, REAL_LIMIT, Limit, Share, Window, shares
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
    assert window.take(101.1) == 0


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


def test_the_mock_server_counts_everything_together():
    (share,) = shares([(INDICES[0], 10.0), (ALL_STOCKS, 60.0)], {"*": Limit(1, MOCK_PERIOD_S)})

    assert (share.name, share.targets, share.requests_per_round) == ("all TRs together", 2, 26)


def test_a_plan_that_fits_says_how_much_it_uses_and_how_old_a_row_gets():
    (share,) = shares([(INDICES[0], 10.0), (INDICES[1], 20.0)], LIMITS)

    assert share.fits
    assert share.used_pct == pytest.approx(100 * 0.15 * 1.16)
    assert share.worst_staleness_s == pytest.approx(20 + 2 * 1.16)


def test_a_plan_that_does_not_fit_says_what_would():
    (share,) = shares([(ALL_STOCKS, 5.0)], {"ka20002": Limit(1)})

    assert not share.fits
    assert share.remedy() == (
        "ka20002: 1 targets need 5.00 requests/s, 0.86 are allowed; make every `every` 5.8 times longer "
        "(the longest 29s), or keep 1 of the targets"
    )


def test_a_remedy_really_fits():
    share = Share("ka20001", 30, 30, needed_per_s=6.0, allowed_per_s=0.86, longest_every_s=5.0)

    assert not share.fits
    assert "keep 4 of the targets" in share.remedy()
    assert 4 * share.needed_per_s / share.targets <= share.allowed_per_s


def test_what_may_be_kept_up_is_less_than_the_limit():
    """Margin and latency are paid by every request."""
    for allowed in range(1, REAL_LIMIT):
        assert Limit(allowed).sustained_per_s < allowed
