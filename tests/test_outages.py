"""What is shut after which request, and who tries it next."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from poller.catalogue import tr_named
from poller.errors import GiveUp, HeldBack, TryLater
from poller.grid import Job
from poller.outages import Leave, Outages
from poller.trouble import HELD_PROBE_S, OPENS_AFTER
from tests.conftest import MONDAY_NOON
from tests.virtual import VirtualClock, VirtualLoop

QUOTE = tr_named("ka20001").target({"inds_cd": "001"})
INDICES = tr_named("ka20003").target({"inds_cd": "001"})
BROKEN = TryLater("HTTP 503", maintenance=True)
TIMED_OUT = TryLater("no answer", everywhere=True)
REFUSED = GiveUp("[8050:refused]", code=8050, scope="key")


@pytest.fixture
def outages() -> Iterator[Outages]:
    loop = VirtualLoop()
    found = Outages(["a", "b"], VirtualClock(MONDAY_NOON, loop), (), random.Random(1), patient=True)
    found.plan([Job(QUOTE, 10.0), Job(INDICES, 10.0)])
    yield found
    loop.close()


def leave(outages: Outages, name: str = "a", at_s: float = 0.0) -> Leave:
    found = outages.leave(name, QUOTE, at_s)
    assert found is not None
    return found


def hold(outages: Outages, name: str = "a") -> None:
    asking = leave(outages, name)
    assert outages.key_refused(asking, REFUSED)
    outages.over(asking, asked=True)


def test_a_probe_that_never_left_is_repeated_and_one_that_was_refused_is_not(outages: Outages):
    """Else a poller that lost its lead in that moment would leave a key alone that nobody has tried."""
    hold(outages)
    outages.try_soon("a")
    outages.over(leave(outages), asked=False)

    assert outages.key_wait_s("a", 0.0) == 0
    outages.over(leave(outages), asked=True)
    assert outages.key_wait_s("a", 0.0) == HELD_PROBE_S


def test_while_a_key_is_tried_nobody_else_asks_with_it(outages: Outages):
    hold(outages)
    outages.try_soon("a")
    probe = leave(outages)

    assert outages.tries_key(probe)
    assert outages.leave("a", INDICES, 0.0) is None
    assert not outages.tries_key(leave(outages, "b"))


def test_a_report_that_failed_too_often_rests_and_is_tried_when_the_maintenance_is_over(outages: Outages):
    """It failed because of the maintenance that nobody had recognised yet, most likely."""
    for _ in range(OPENS_AFTER):
        outages.failed(leave(outages), TIMED_OUT)
    with pytest.raises(HeldBack, match="ka20001 failed a's last requests: no answer"):
        leave(outages)
    for target in (QUOTE, INDICES, INDICES):
        asking = outages.leave("b", target, 0.0)
        assert asking is not None
        outages.failed(asking, BROKEN)

    with pytest.raises(HeldBack, match="the broker is in maintenance"):
        leave(outages)
    outages.broker_spoke()
    assert len(leave(outages).probes) == 1


def test_a_request_may_try_a_key_and_a_report_at_once_and_opens_both(outages: Outages):
    for _ in range(OPENS_AFTER):
        outages.failed(leave(outages), TIMED_OUT)
    at_s = 2 * HELD_PROBE_S
    outages.key_refused(Leave("a", QUOTE.tr.code, leave(outages, "b").breaker, ()), REFUSED)
    probe = leave(outages, at_s=at_s)

    assert len(probe.probes) == 2
    assert outages.succeeded(probe)
    assert outages.breakers(QUOTE.tr.code) == ""
    assert outages.working == ["a", "b"]
