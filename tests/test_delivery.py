"""What an attempt's outcome means: again, and when; or never, and why. No clock and no chance of its own."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.alert.delivery import (
    BREAKER_FAILURES,
    BREAKER_MAX_S,
    BREAKER_S,
    JITTER,
    RETRY_AFTER_MAX_S,
    SCHEDULE_S,
    Breaker,
    Job,
    Outcome,
    Pace,
    Verdict,
    answered,
    expired,
    judge,
    longest_wait_s,
)

NOW_S = 1_795_330_635.0
DAY_S = 86_400.0
TROUBLE = Outcome("trouble", "answered 503")
OK = Outcome("ok", "answered 200")


def job(life_s: float = DAY_S) -> Job:
    return Job("d#1", NOW_S, NOW_S + life_s)


def answer(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Outcome:
    return answered(status, headers or {}, body, "other.example", now_s=NOW_S)


def lived(outcome: Outcome, *, life_s: float = DAY_S, chance: float = 0.5) -> tuple[list[float], Verdict]:
    """The waits between attempts that all end the same, and the verdict on the last."""
    waits: list[float] = []
    one, now_s = job(life_s), NOW_S
    while True:
        verdict = judge(outcome, one, now_s=now_s, chance=chance)
        if verdict.next != "retry":
            return waits, verdict
        waits.append(verdict.due_s - now_s)
        one, now_s = verdict.job, verdict.due_s


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "ok") for status in (200, 201, 202, 204, 299)),
        *((status, "trouble") for status in (408, 425, 429, 500, 502, 503, 504, 599)),
        *((status, "refused") for status in (301, 302, 307, 400, 401, 403, 404, 405, 409, 413, 415, 422)),
        (410, "gone"),
    ],
)
def test_an_answer_is_success_trouble_a_no_or_a_farewell(status: int, kind: str):
    assert answer(status).kind == kind


def test_words_say_what_to_check():
    assert answer(401).words == "answered 401: check the secret or the token"
    assert answer(302).words == "answered 302, a redirect to other.example: redirects are never followed"


def test_trouble_is_tried_again_by_the_schedule_and_then_given_up():
    waits, end = lived(TROUBLE)

    assert waits == pytest.approx(SCHEDULE_S[1:], abs=1e-3)
    assert (end.next, end.words) == ("dead", "gave up after 8 attempts: answered 503")


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_is_a_fifth_to_either_side(chance: float):
    waits, _ = lived(TROUBLE, chance=chance)

    for wait_s, planned_s in zip(waits, SCHEDULE_S[1:], strict=True):
        assert planned_s * (1 - JITTER) - 1e-3 <= wait_s <= planned_s * (1 + JITTER) + 1e-3


def test_a_no_is_asked_twice_more():
    """A deployment answers 404 for a minute."""
    waits, end = lived(answer(404))

    assert waits == pytest.approx([30, 300], abs=1e-3)
    assert (end.next, end.job.attempts) == ("dead", 3)


def test_a_farewell_switches_the_endpoint_off_and_a_block_ends_the_delivery():
    assert judge(answer(410), job(), now_s=NOW_S, chance=0.5).next == "disable"
    assert judge(Outcome("blocked", "blocked"), job(), now_s=NOW_S, chance=0.5).next == "dead"
    assert judge(OK, job(), now_s=NOW_S, chance=0.5).next == "done"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("999999", RETRY_AFTER_MAX_S),
        ("Fri, 01 Jan 2100 00:00:00 GMT", RETRY_AFTER_MAX_S),
        ("Fri, 01 Jan 2010 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("Mon, 99 Nov 2026 09:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_an_hour_at_most(given: str, seconds: float | None):
    assert answer(503, {"retry-after": given}).retry_after_s == seconds


def test_a_date_is_counted_from_now():
    assert answer(429, {"retry-after": "Sun, 22 Nov 2026 06:58:05 GMT"}).retry_after_s == 1_795_330_685 - NOW_S


def test_the_chats_say_it_in_the_answer():
    assert answer(429, body=b'{"ok":false,"parameters":{"retry_after":31}}').retry_after_s == 31


def test_a_wish_to_wait_longer_is_honoured_and_a_shorter_one_is_not():
    longer = judge(answer(503, {"retry-after": "100"}), job(), now_s=NOW_S, chance=0.5)
    shorter = judge(answer(503, {"retry-after": "0"}), job(), now_s=NOW_S, chance=0.5)

    assert (longer.due_s - NOW_S, shorter.due_s - NOW_S) == (100, 2)


def test_what_is_too_old_is_not_sent():
    assert expired(job(60), now_s=NOW_S + 59) is None
    late = expired(job(60), now_s=NOW_S + 60)

    assert late
    assert (late.next, late.words) == ("dead", "expired after 0 attempts")


def test_a_wait_that_outlives_the_message_is_half_of_what_is_left():
    """Else an outage of a quarter of an hour would swallow a message that lives for half of one."""
    waits, end = lived(TROUBLE, life_s=1800)

    assert waits[:5] == pytest.approx([2, 10, 30, 120, 600], abs=1e-3)
    assert sum(waits) < 1800
    assert len(waits) == 7
    assert end.next == "dead"


def test_a_wish_to_wait_beyond_the_end_is_the_end():
    verdict = judge(answer(503, {"retry-after": "100"}), job(60), now_s=NOW_S, chance=0.5)

    assert (verdict.next, verdict.words) == ("dead", "expired after 1 attempt, last: answered 503")


def test_a_job_is_read_back_as_it_was_written():
    verdict = judge(TROUBLE, job(), now_s=NOW_S, chance=0.5)

    assert Job.loads(verdict.job.dumps()) == verdict.job


def test_what_a_newer_program_adds_is_passed_over():
    newer = json.dumps({**json.loads(job().dumps()), "newer": {"a": 1}})
    breaker = json.dumps({**json.loads(Breaker(opened=2).dumps()), "newer": 1})

    assert Job.loads(newer) == job()
    assert Breaker.loads(breaker) == Breaker(opened=2)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"id": "d#1", "decided_s": "soon", "expires_s": 1}'])
def test_what_is_no_job_is_a_value_error_and_nothing_else(text: str):
    with pytest.raises(ValueError, match="validation error"):
        Job.loads(text)


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([60.0, 1800.0, 10 * DAY_S]), st.booleans())
def test_no_delivery_is_put_off_for_longer_than_the_longest_wait(chance: float, life_s: float, asked: bool):
    outcome = answer(503, {"retry-after": "999999"}) if asked else TROUBLE
    waits, _ = lived(outcome, life_s=life_s, chance=chance)

    assert max(waits, default=0.0) < longest_wait_s() < 3 * 3600


# --- the breaker


def failed(breaker: Breaker, times: int, now_s: float) -> Breaker:
    for _ in range(times):
        breaker = breaker.after(TROUBLE, now_s)
    return breaker


def test_five_failures_in_a_row_open_the_breaker_for_half_a_minute():
    nearly = failed(Breaker(), BREAKER_FAILURES - 1, NOW_S)
    opened = failed(nearly, 1, NOW_S)

    assert nearly.may(NOW_S, 7) == "go"
    assert nearly.after(OK, NOW_S) == Breaker()
    assert (opened.may(NOW_S + BREAKER_S - 0.1, 0), opened.until_s()) == ("defer", NOW_S + BREAKER_S)
    assert opened.words(NOW_S) == "open for 30 s"


def test_a_half_open_breaker_lets_one_message_through_at_a_time():
    opened = failed(Breaker(), BREAKER_FAILURES, NOW_S)
    later_s = NOW_S + BREAKER_S

    assert (opened.may(later_s, 0), opened.may(later_s, 1)) == ("go", "wait")
    assert opened.after(OK, later_s) == Breaker()


def test_each_failed_probe_doubles_the_wait_up_to_five_minutes():
    breaker, now_s, waits = failed(Breaker(), BREAKER_FAILURES, NOW_S), NOW_S, []
    for _ in range(6):
        waits.append(breaker.until_s() - now_s)
        now_s = breaker.until_s()
        breaker = breaker.after(TROUBLE, now_s)

    assert waits == [30, 60, 120, 240, BREAKER_MAX_S, BREAKER_MAX_S]


def test_what_left_before_it_opened_does_not_open_it_further():
    opened = failed(Breaker(), BREAKER_FAILURES, NOW_S)

    assert failed(opened, 7, NOW_S + 1) == opened


def test_whoever_answers_no_is_there_and_a_block_says_nothing():
    nearly = failed(Breaker(), BREAKER_FAILURES - 1, NOW_S)

    assert nearly.after(answer(400), NOW_S) == Breaker()
    assert nearly.after(Outcome("blocked", "blocked"), NOW_S) == nearly


def test_too_many_requests_slow_down_the_whole_endpoint():
    slow = Breaker().after(answer(429, {"retry-after": "20"}), NOW_S)

    assert (slow.may(NOW_S + 19, 0), slow.may(NOW_S + 20, 3)) == ("defer", "go")
    assert Breaker.loads(slow.dumps()) == slow
    assert Breaker.loads(None) == Breaker()


@pytest.mark.parametrize("opened", [1, 2, 9])
def test_a_rest_longer_than_it_was_given_is_over(opened: int):
    """It was given on a clock that was set back since; else the endpoint would rest for as long as the step."""
    rest_s = min(BREAKER_S * 2 ** (opened - 1), BREAKER_MAX_S)
    breaker = Breaker(opened=opened, open_until_s=NOW_S + rest_s)

    assert breaker.may(NOW_S, 0) == "defer"
    assert breaker.may(NOW_S - 60, 0) == "go"
    assert breaker.words(NOW_S - 60) == "asking with one message"
    assert breaker.after(TROUBLE, NOW_S - 60).until_s() == NOW_S - 60 + min(2 * rest_s, BREAKER_MAX_S)


def test_a_wish_to_be_left_in_peace_for_longer_than_an_hour_is_over():
    slow = Breaker().after(answer(429, {"retry-after": "999999"}), NOW_S)

    assert slow.may(NOW_S, 0) == "defer"
    assert slow.may(NOW_S - 60, 0) == "go"
    assert slow.after(TROUBLE, NOW_S - 60).may(NOW_S - 60, 0) == "go"


def test_an_endpoint_may_be_down_for_weeks():
    """Every five minutes it is asked, and 2**1024 is no float."""
    breaker = Breaker(opened=2000, open_until_s=NOW_S)

    assert breaker.after(TROUBLE, NOW_S).until_s() == NOW_S + BREAKER_MAX_S


# --- the pace


@pytest.mark.parametrize("rate", [0.5, 1, 5, 30])
def test_no_second_sees_more_than_a_burst_and_the_rate(rate: float):
    pace, now_s, left = Pace(rate), NOW_S, []
    for _ in range(100):
        now_s += pace.wait_s(now_s)
        pace.take(now_s)
        left.append(now_s)

    burst = max(1.0, rate)
    assert all(late - early <= 1e-6 or late > early for early, late in pairwise(left))
    for start in left:
        assert sum(start <= one < start + 10 for one in left) <= burst + 10 * rate + 1
