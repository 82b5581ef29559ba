"""Decisions reach receivers that fail in every way: signed, in order, and never again once they were taken.

Run as a program (`python -m tests.test_send REDIS_URL PORT`) it is the sender that the crash test kills.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from consumers.alert import delivery, outbox, send
from consumers.alert.delivery import Breaker, Job
from consumers.alert.endpoints import Endpoint
from consumers.alert.formats import FIRING, RESOLVED
from consumers.alert.outbox import Outbox
from consumers.alert.send import SendRole, dead_letters, list_endpoints, redrive
from consumers.alert.sign import key_of
from poller.contract import Keys, dumps
from poller.store import connect
from tests.model_store import ModelRedis, ModelServer
from tests.servers import RealServer

TR = "ka20003"
SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
TOKEN = "t0ken-in-the-path"
CHILD_POLL_S, CHILD_TOTAL_S, CHILD_MARGIN_S, CHILD_LEASE_S = 0.02, 0.3, 0.1, 0.4


@dataclass(frozen=True)
class Came:
    """One request as a receiver saw it."""

    id: str
    headers: dict[str, str]
    body: bytes
    path: str

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data


Answer = Callable[[Came, asyncio.StreamWriter], Any]


def says(status: int, *lines: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} X", "content-length: 2", *lines))
    return f"{head}\r\nok".encode()


def always(status: int, *lines: str) -> Answer:
    return lambda came, writer: writer.write(says(status, *lines))


class Receiver:
    """A small HTTP server on loopback that verifies every webhook and answers as it is told."""

    def __init__(self) -> None:
        self.came: list[Came] = []
        self.accepted: list[Came] = []
        self.answer: Answer = always(200)
        self.broken: list[Exception] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers["content-length"]))
                came = Came(headers["webhook-id"], headers, body, head[0].split()[1])
                self.note(came)
                watched: Any = Watched(writer, partial(self.accepted.append, came))
                result = self.answer(came, watched)
                if asyncio.iscoroutine(result):
                    await result
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def note(self, came: Came) -> None:
        self.came.append(came)
        if "webhook-signature" in came.headers:
            try:
                Webhook(SECRET).verify(came.body, came.headers)
            except Exception as error:  # noqa: BLE001 -- shown at the end, where the test looks
                self.broken.append(error)

    def has(self, requests: int) -> bool:
        return len(self.came) >= requests

    @property
    def ids(self) -> list[str]:
        return [came.id for came in self.accepted]


class Watched:
    """A writer that notices when a 2xx leaves."""

    def __init__(self, writer: asyncio.StreamWriter, accepted: Callable[[], object]) -> None:
        self._writer, self._accepted = writer, accepted

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 2"):
            self._accepted()
        self._writer.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
    assert receiver.broken == []


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.group.BLOCK_MS", 100)
    monkeypatch.setattr(send, "POLL_S", CHILD_POLL_S)
    monkeypatch.setattr(send, "RETRY_S", 0.05)
    monkeypatch.setattr(delivery, "SCHEDULE_S", (0.0, *[0.05] * 20))
    monkeypatch.setattr(delivery, "REFUSED_S", (0.05, 0.05))
    monkeypatch.setattr(delivery, "BREAKER_S", 0.1)
    monkeypatch.setattr(delivery, "BREAKER_MAX_S", 0.2)


def endpoint(port: int, name: str = "desk", **more: Any) -> Endpoint:
    url = SecretStr(f"http://127.0.0.1:{port}/{TOKEN}")
    mine = Endpoint(name, url, key=key_of(SECRET), networks=(ip_network("127.0.0.0/8"),), rate=1000)
    return replace(mine, **more)


def role(redis: Redis, *endpoints: Endpoint, name: str = "one") -> SendRole:
    return SendRole(redis, "test", [TR], endpoints, name)


async def decide(redis: Redis, alert: str, state: str = "firing", *, notify: Sequence[str] = ("desk",)) -> str:
    """One decision on one alert, as the rules write it."""
    data = {
        "id": f"{alert}/{state}", "rule": "kospi-falls", "title": "코스피 급락", "state": state, "tr": TR,
        "target": {"inds_cd": "001"}, "table": "indices", "key": alert, "text": f"▼ {alert}", "notify": list(notify),
    }  # fmt: skip
    entry: dict[Any, Any] = {
        "specversion": "1.0", "id": data["id"], "source": f"/kiwoom/{TR}?inds_cd=001",
        "type": FIRING if state == "firing" else RESOLVED, "subject": f"indices/{alert}",
        "time": "2026-11-23T09:00:01.123+09:00", "datacontenttype": "application/json", "data": dumps(data),
    }  # fmt: skip
    await redis.xadd(Keys("test").of(TR, "alerts"), entry)
    return str(data["id"])


@asynccontextmanager
async def working(one: SendRole) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    task = asyncio.create_task(one.run(stop))
    try:
        yield stop
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- any condition, not only an event's
            await asyncio.sleep(0.005)


async def until_idle(redis: Redis, *names: str) -> None:
    """Every decision is queued, and every delivery has found its end."""
    client: Any = redis
    async with asyncio.timeout(20):
        while True:
            groups = await client.xinfo_groups(Keys("test").of(TR, "alerts"))
            queued = groups and groups[0]["lag"] == 0 and groups[0]["pending"] == 0
            left = [await client.exists(f"test:send:{{{name}}}:jobs") for name in names]
            if queued and not any(left):
                return
            await asyncio.sleep(0.01)


async def test_a_decision_arrives_once_signed_and_as_promised(redis: Redis, receiver: Receiver):
    one = role(redis, endpoint(receiver.port))
    sent = await decide(redis, "001")
    async with working(one):
        await until(lambda: one.delivered == 1)

    (came,) = receiver.came
    body = json.loads(came.body)
    assert (came.id, body["type"], body["timestamp"]) == (sent, FIRING, "2026-11-23T09:00:01.123+09:00")
    assert (body["data"]["key"], "notify" in body["data"]) == ("001", False)
    assert came.headers["content-type"] == "application/json"
    assert "webhook-signature" in came.headers
    assert (one.failed, one.dead) == (0, 0)


async def test_each_alert_is_accepted_once_although_a_third_is_answered_503(redis: Redis, receiver: Receiver):
    turn = itertools.count(1)
    receiver.answer = lambda came, writer: writer.write(says(503 if next(turn) % 3 == 0 else 200))
    sent = [await decide(redis, f"{number:03}") for number in range(60)]
    one = role(redis, endpoint(receiver.port))
    async with working(one):
        await until_idle(redis, "desk")

    assert sorted(receiver.ids) == sorted(sent)
    assert len(receiver.came) > len(sent)
    assert len({came.body for came in receiver.came}) == len(sent), "a retry sends the same bytes"
    assert (one.delivered, one.dead) == (60, 0)
    assert one.failed == len(receiver.came) - 60


async def test_order_holds_within_an_alert_and_trouble_of_one_does_not_hold_up_others(redis: Redis, receiver: Receiver):
    tries: Counter[str] = Counter()

    def stubborn(came: Came, writer: asyncio.StreamWriter) -> None:
        tries[came.id] += 1
        writer.write(says(503 if came.id == "001/firing" and tries[came.id] < 4 else 200))

    receiver.answer = stubborn
    for alert in ("001", "002", "003"):
        await decide(redis, alert)
        await decide(redis, alert, "resolved")
    async with working(role(redis, endpoint(receiver.port))):
        await until_idle(redis, "desk")

    for alert in ("001", "002", "003"):
        assert [one for one in receiver.ids if one.startswith(alert)] == [f"{alert}/firing", f"{alert}/resolved"]
    assert receiver.ids.index("002/resolved") < receiver.ids.index("001/firing")


async def test_a_decision_that_is_handed_over_again_is_one_delivery(redis: Redis, receiver: Receiver):
    client: Any = redis
    one = role(redis, endpoint(receiver.port))
    await decide(redis, "001")
    async with working(one):
        await until_idle(redis, "desk")
    await client.xgroup_setid(Keys("test").of(TR, "alerts"), "send", "0")
    await decide(redis, "002")
    async with working(role(redis, endpoint(receiver.port))):
        await until_idle(redis, "desk")

    assert receiver.ids == ["001/firing", "002/firing"]


async def test_one_endpoints_trouble_is_its_own(redis: Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(send, "STOP_S", 0.1)
    receiver.answer = hang
    async with receiving() as other:
        one = role(redis, endpoint(receiver.port), endpoint(other.port, "phone"))
        sent = [await decide(redis, f"{number:03}", notify=["desk", "phone", "nobody"]) for number in range(20)]
        with capture_logs() as logs:
            async with working(one):
                await until(lambda: one.delivered == 20)

    assert sorted(other.ids) == sent
    assert receiver.ids == []
    assert [log["endpoint"] for log in logs if log["event"] == "endpoint.unknown"] == ["nobody"]


async def hang(came: Came, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip(came: Came, writer: asyncio.StreamWriter) -> None:
    """Each byte restarts a client's read timeout; only the total ends it."""
    for _ in range(1000):
        writer.write(b"H")
        await writer.drain()
        await asyncio.sleep(0.05)


def reset(came: Came, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hang, "no answer in time"),
        (drip, ""),
        (reset, "the connection was cut"),
        (always(500), "answered 500"),
        (always(302, "location: http://127.0.0.1:1/elsewhere"), "a redirect to 127.0.0.1"),
        (always(404), "answered 404"),
        (always(401), "check the secret"),
    ],
    ids=["hang", "drip", "reset", "500", "302", "404", "401"],
)
async def test_a_receiver_may_fail_in_any_way_and_then_recover(
    redis: Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, answer: Answer, words: str
):
    monkeypatch.setattr(send, "TOTAL_S", 0.3)
    tries: Counter[str] = Counter()

    def at_first(came: Came, writer: asyncio.StreamWriter) -> Any:
        tries[came.id] += 1
        return answer(came, writer) if tries[came.id] == 1 else writer.write(says(200))

    receiver.answer = at_first
    sent = await decide(redis, "001")
    one = role(redis, endpoint(receiver.port))
    with capture_logs() as logs:
        async with working(one):
            await until(lambda: one.delivered == 1)

    assert (receiver.ids, one.failed) == ([sent], 1)
    assert [log for log in logs if words in str(log.get("why", words))]


async def test_an_endless_answer_is_not_read_to_its_end(redis: Redis, receiver: Receiver):
    async def endless(came: Came, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65536)
            await writer.drain()

    receiver.answer = endless
    await decide(redis, "001")
    one = role(redis, endpoint(receiver.port))
    async with working(one):
        await until(lambda: one.delivered == 1)


async def test_retry_after_is_honoured(redis: Redis, receiver: Receiver):
    at: list[float] = []

    def busy(came: Came, writer: asyncio.StreamWriter) -> None:
        at.append(time.monotonic())
        writer.write(says(503, "retry-after: 1") if len(at) == 1 else says(200))

    receiver.answer = busy
    await decide(redis, "001")
    async with working(role(redis, endpoint(receiver.port))):
        await until_idle(redis, "desk")

    assert at[1] - at[0] >= 0.99  # never sooner; how much later is the machine's affair


async def test_the_breaker_asks_with_one_message_and_nothing_is_lost(redis: Redis, receiver: Receiver):
    receiver.answer = always(503)
    sent = [await decide(redis, f"{number:03}") for number in range(30)]
    one = role(redis, endpoint(receiver.port))
    with capture_logs() as logs:
        async with working(one):
            await until(lambda: len(receiver.came) >= 12)
            receiver.answer = always(200)
            await until_idle(redis, "desk")
    (listed,) = await list_endpoints(redis, "test", [endpoint(receiver.port)])

    assert sorted(receiver.ids) == sorted(sent)
    assert [log["event"] for log in logs].count("endpoint.left_in_peace") >= 1
    assert one.failed < 30, "while it is open, deliveries are deferred and not failed"
    assert (listed.breaker, listed.standing.delivered, listed.standing.waiting) == ("closed", 30, 0)


async def test_what_is_too_old_is_kept_as_dead_and_can_be_sent_again(redis: Redis, receiver: Receiver):
    receiver.answer = always(503)
    mine = endpoint(receiver.port, expires_after_s=0.3)
    await decide(redis, "001")
    await decide(redis, "001", "resolved")
    one = role(redis, mine)
    async with working(one):
        await until(lambda: one.dead == 2)
    letters = await dead_letters(redis, "test", "desk")
    receiver.answer = always(200)

    assert [letter.id for letter in letters] == ["001/resolved", "001/firing"]
    assert all(letter.why.startswith("expired after") for letter in letters)
    assert await redrive(redis, "test", endpoint(receiver.port)) == 2
    assert await redrive(redis, "test", endpoint(receiver.port)) == 0
    async with working(role(redis, mine)):
        await until_idle(redis, "desk")
    assert receiver.ids == ["001/firing", "001/resolved"]
    assert await dead_letters(redis, "test", "desk") == []


async def test_one_dead_letter_can_be_chosen(redis: Redis, receiver: Receiver):
    receiver.answer = always(400)
    for alert in ("001", "002"):
        await decide(redis, alert)
    one = role(redis, endpoint(receiver.port))
    async with working(one):
        await until(lambda: one.dead == 2)
        receiver.answer = always(200)
        assert await redrive(redis, "test", endpoint(receiver.port), ["002/firing"]) == 1
        await until(lambda: one.delivered == 1)

    assert receiver.ids == ["002/firing"]
    (letter,) = await dead_letters(redis, "test", "desk")
    assert (letter.id, letter.why, letter.attempts) == ("001/firing", "gave up after 3 attempts: answered 400", 3)


def _has_dead(one: SendRole, letters: int) -> bool:
    return one.dead == letters


async def test_dead_letters_that_are_too_many_are_dropped_loudly_and_counted(
    redis: Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox, "DEAD_KEPT", 3)
    receiver.answer = always(400)
    mine = endpoint(receiver.port, rate=100)
    one = role(redis, mine)
    with capture_logs() as logs:
        async with working(one):
            for number in range(6):
                await decide(redis, f"{number:03}")
                await until(partial(_has_dead, one, number + 1))
    (listed,) = await list_endpoints(redis, "test", [mine])
    kept = [letter.id for letter in await dead_letters(redis, "test", "desk")]

    assert kept == ["005/firing", "004/firing", "003/firing"]
    assert (listed.standing.dead, listed.standing.dead_kept, listed.standing.dropped) == (6, 3, 3)
    assert [log["endpoint"] for log in logs if log["event"] == "letters.dropped"] == ["desk"], "once, not for each"


async def test_a_farewell_switches_off_until_redriven(redis: Redis, receiver: Receiver):
    receiver.answer = always(410)
    mine = endpoint(receiver.port)
    one = role(redis, mine)
    await decide(redis, "001")
    async with working(one):
        await until(lambda: one.dead == 1)
        receiver.answer = always(200)
        await decide(redis, "002")
        await until(lambda: one.dead == 2)
        (listed,) = await list_endpoints(redis, "test", [mine])
        assert "wants no more" in listed.standing.disabled
        assert len(receiver.came) == 1
        assert await redrive(redis, "test", mine) == 2
        await until(lambda: one.delivered == 2)

    assert sorted(receiver.ids) == ["001/firing", "002/firing"]


async def test_a_delivery_in_hand_is_nobody_elses(redis: Redis):
    """Until its attempt must be over; then it is the next one's, and the first may not write down how it ended."""
    one, two = Outbox(redis, "test", "desk", "one"), Outbox(redis, "test", "desk", "two")
    job = Job("d#1", 1000.0, 5000.0)
    assert await one.enqueue("lane", "1-1", job, "{}", now_s=1000)
    assert await one.hold(60)
    assert not await two.hold(60)

    assert await two.begin("lane", now_s=1000, until_s=1017) is None
    first = await one.begin("lane", now_s=1000, until_s=1017)
    assert await one.begin("lane", now_s=1016, until_s=1033) is None
    second = await one.begin("lane", now_s=1017, until_s=1034)

    assert first
    assert second
    assert not await one.settle(first, "again", job, now_s=1018, due_s=1018)
    assert await one.begin("lane", now_s=1019, until_s=1036) is None
    assert await one.settle(second, "done", job, now_s=1020)
    assert (await one.standing()).waiting == 0


async def test_who_lets_go_leaves_the_place_free_at_once_and_takes_none():
    frozen = ModelServer(lambda: 1_795_330_635_454)
    redis: Any = ModelRedis(frozen)
    one, two = Outbox(redis, "test", "desk", "one"), Outbox(redis, "test", "desk", "two")
    assert await one.hold(60)
    await one.let_go()
    await one.let_go()

    assert await two.hold(60)


async def test_a_delivery_put_off_by_a_clock_that_was_set_back_is_due(redis: Redis):
    queue, job = Outbox(redis, "test", "desk", "one"), Job("d#1", 1000.0, 1_000_000.0)
    wait_s = delivery.longest_wait_s()
    assert await queue.enqueue("lane", "1-1", job, "{}", now_s=100_000)
    assert await queue.hold(60)
    claimed = await queue.begin("lane", now_s=100_000, until_s=100_017)
    assert claimed
    assert await queue.settle(claimed, "again", job, now_s=100_001, due_s=100_000 + wait_s)

    assert await queue.due(100_000, 8) == ([], "")
    assert await queue.begin("lane", now_s=100_000, until_s=100_017) is None
    assert await queue.due(99_999, 8) == (["lane"], "")
    assert await queue.begin("lane", now_s=99_999, until_s=100_016)


async def test_what_is_put_off_waits_no_longer_on_a_clock_that_was_set_back(redis: Redis):
    queue, job = Outbox(redis, "test", "desk"), Job("d#1", 1000.0, 5000.0)
    await queue.enqueue("lane", "1-1", job, "{}", now_s=1010)
    await queue.enqueue("due", "1-2", replace(job, id="d#2"), "{}", now_s=390)
    await queue.bring_forward(600, now_s=400)

    assert await queue.due(409.9, 8) == (["due"], "")
    assert await queue.due(410, 8) == (["due", "lane"], "")
    assert Breaker(opened=1, open_until_s=1010.0).moved(600).until_s() == 410


@pytest.mark.parametrize("step_s", [600.0, 9 * 3600.0])
async def test_a_clock_set_back_holds_up_no_webhook(redis: Redis, receiver: Receiver, step_s: float):
    """Neither what is decided later nor what waited its turn, or to be tried again."""
    ahead_s = [step_s]
    mine = endpoint(receiver.port, rate=10.0, expires_after_s=86400.0)
    one = SendRole(redis, "test", [TR], [mine], "one", now=lambda: time.time() + ahead_s[0])
    receiver.answer = lambda came, writer: writer.write(says(200 if len(receiver.came) > 2 else 503))
    sent = [await decide(redis, f"{number:03}") for number in range(20)]
    async with working(one):
        await until(lambda: one.delivered > 4)
        ahead_s[0] = 0.0
        sent.append(await decide(redis, "020"))
        await until(lambda: one.delivered == 21)
    receiver.broken.clear()  # what was signed before had a time in the future

    assert sorted(receiver.ids) == sent


async def test_a_breaker_that_a_clock_opened_for_hours_is_tried_when_it_was_set_back(
    redis: Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    """What a sender wrote down before that, which is not there any more."""
    monkeypatch.setattr(delivery, "BREAKER_S", 30.0)
    far = Breaker(opened=1, open_until_s=time.time() + 600)
    client: Any = redis
    await client.hset("test:send:{desk}:state", "breaker", far.dumps())
    await decide(redis, "001")
    one = role(redis, endpoint(receiver.port))
    async with working(one):
        await until(lambda: one.delivered == 1)


@pytest.mark.parametrize(
    "spoil",
    [
        ("hset", "test:send:{desk}:jobs", "a#1", "{"),
        ("hset", "test:send:{desk}:jobs", "a#1", '{"another": "shape"}'),
        ("hdel", "test:send:{desk}:jobs", "a#1"),
        ("hdel", "test:send:{desk}:bodies", "a#1"),
        ("zadd", "test:send:{desk}:order", "0", "a:!strange"),
    ],
    ids=["cut", "shape", "no job", "no body", "place"],
)
async def test_what_cannot_be_read_is_a_dead_letter_and_stops_nobody(
    redis: Redis, receiver: Receiver, spoil: tuple[str, ...]
):
    queue, now_s = Outbox(redis, "test", "desk", "one"), time.time()
    for lane in ("a", "b"):
        await queue.enqueue(lane, "1-1", Job(f"{lane}#1", now_s, now_s + 1000), "{}", now_s=now_s)
    client: Any = redis
    await client.execute_command(*spoil)
    one = role(redis, endpoint(receiver.port))
    with capture_logs() as logs:
        async with working(one):
            await until(lambda: one.dead == 1 and "b#1" in receiver.ids)
    (letter,) = await dead_letters(redis, "test", "desk")
    assert await redrive(redis, "test", endpoint(receiver.port)) == 1

    assert [log["why"] for log in logs if log["event"] == "alert.given_up"] == [letter.why]
    assert letter.why.startswith(("what the queue holds of it cannot be read", "the queue has lost its text"))
    if letter.body:
        async with working(role(redis, endpoint(receiver.port))):
            await until(lambda: letter.id in receiver.ids)


async def test_a_breaker_that_cannot_be_read_is_a_closed_one(redis: Redis, receiver: Receiver):
    client: Any = redis
    await client.hset("test:send:{desk}:state", "breaker", '{"opened": "wide"}')
    await decide(redis, "001")
    one = role(redis, endpoint(receiver.port))
    with capture_logs() as logs:
        (listed,) = await list_endpoints(redis, "test", [endpoint(receiver.port)])
        async with working(one):
            await until(lambda: one.delivered == 1)

    assert listed.breaker == "closed"
    assert {log["event"] for log in logs if log["log_level"] == "warning"} == {"breaker.unreadable"}


async def test_a_full_server_is_sent_empty(redis: Redis, receiver: Receiver):
    """What leaves frees memory: decisions their stream, deliveries their queue; and the dead can be sent again."""
    queue, now_s = Outbox(redis, "test", "desk", "nobody"), time.time()
    await cast("Any", redis).xgroup_create(Keys("test").of(TR, "alerts"), "send", "0", mkstream=True)
    for number in range(5):
        await decide(redis, f"{number:03}")
    await queue.enqueue("lane", "1-1", Job("old#1", now_s, now_s + 1000), "{}", now_s=now_s)
    receiver.answer = lambda came, writer: writer.write(says(400 if came.id == "old#1" else 200))
    one = role(redis, endpoint(receiver.port))
    try:
        await redis.config_set("maxmemory", "1")
        with pytest.raises(OutOfMemoryError):
            await decide(redis, "099")
        async with working(one):
            await until(lambda: (one.delivered, one.dead) == (5, 1))
            receiver.answer = always(200)
            assert await redrive(redis, "test", endpoint(receiver.port)) == 1
            await until(lambda: one.delivered == 6)
            await until_idle(redis, "desk")
    finally:
        await redis.config_set("maxmemory", "0")

    assert sorted(receiver.ids) == [*(f"{number:03}/firing" for number in range(5)), "old#1"]


async def test_an_open_breaker_defers_what_is_due(redis: Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delivery, "BREAKER_S", 3600.0)
    monkeypatch.setattr(delivery, "BREAKER_MAX_S", 3600.0)
    receiver.answer = always(503)
    for number in range(30):
        await decide(redis, f"{number:03}")
    one, outbox = role(redis, endpoint(receiver.port)), Outbox(redis, "test", "desk")
    async with working(one):
        async with asyncio.timeout(20):
            while (await outbox.standing()).waiting < 30 or (await outbox.due(time.time() + 60, 1))[0]:  # noqa: ASYNC110 -- the server knows, no event does
                await asyncio.sleep(0.01)
        standing = await outbox.standing()

    assert len(receiver.came) < delivery.BREAKER_FAILURES + send.IN_FLIGHT
    assert (standing.waiting, standing.dead, one.dead) == (30, 0, 0)


async def test_a_half_open_breaker_sends_one_message_at_a_time(redis: Redis, receiver: Receiver):
    """And the breaker is found as another sender left it."""
    inside: list[str] = []
    most = 0

    async def crowded(came: Came, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        inside.append(came.id)
        most = max(most, len(inside))
        await asyncio.sleep(0.05)
        inside.remove(came.id)
        writer.write(says(503))

    receiver.answer = crowded
    client: Any = redis
    await client.hset("test:send:{desk}:state", "breaker", Breaker(opened=1, open_until_s=1.0).dumps())
    for number in range(10):
        await decide(redis, f"{number:03}")
    async with working(role(redis, endpoint(receiver.port))):
        await until(lambda: receiver.has(4))

    assert most == 1


async def test_what_was_decided_too_long_ago_is_not_sent_at_all(redis: Redis, receiver: Receiver):
    await decide(redis, "001")
    later = SendRole(redis, "test", [TR], [endpoint(receiver.port)], "one", now=lambda: time.time() + 7200)
    async with working(later):
        await until(lambda: later.dead == 1)

    assert receiver.came == []
    (letter,) = await dead_letters(redis, "test", "desk")
    assert letter.why == "expired after 0 attempts"


async def test_what_may_not_be_reached_is_dead_at_once_with_the_remedy(redis: Redis, receiver: Receiver):
    one = role(redis, endpoint(receiver.port, networks=()))
    await decide(redis, "001")
    async with working(one):
        await until(lambda: one.dead == 1)

    (letter,) = await dead_letters(redis, "test", "desk")
    assert "allow_networks" in letter.why
    assert receiver.came == []


async def test_a_test_message_goes_the_way_of_every_alert(receiver: Receiver):
    well = await send.test_endpoint(endpoint(receiver.port))
    receiver.answer = always(403)
    badly = await send.test_endpoint(endpoint(receiver.port))

    assert (well.ok, well.words) == (True, "answered 200")
    assert (badly.ok, badly.words) == (False, "answered 403: check the secret or the token")
    assert receiver.came[0].data["test"] is True
    assert json.loads(receiver.came[0].body)["type"] == "sectorwire.alert.test"


async def test_a_stop_hands_back_what_is_in_flight(redis: Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(send, "STOP_S", 0.1)
    receiver.answer = hang
    await decide(redis, "001")
    one = role(redis, endpoint(receiver.port))
    async with working(one):
        await until(lambda: receiver.came)
    assert (await Outbox(redis, "test", "desk").due(time.time(), 1))[0], "at once, not when the attempt would be over"
    receiver.answer = always(200)
    async with working(role(redis, endpoint(receiver.port), name="two")) as stop:
        await until(lambda: receiver.ids == ["001/firing"])
        stop.set()

    assert (one.delivered, one.failed, one.dead) == (0, 0, 0)


async def test_two_roles_at_once_send_nothing_twice(redis: Redis, receiver: Receiver):
    mine = endpoint(receiver.port)
    first, second = role(redis, mine), role(redis, mine, name="two")
    sent = [await decide(redis, f"{number:03}") for number in range(40)]
    async with working(first), working(second):
        await until_idle(redis, "desk")

    assert sorted(came.id for came in receiver.came) == sorted(sent)
    assert first.delivered + second.delivered == 40


async def test_an_answer_is_not_forgotten_while_the_server_is_away(receiver: Receiver, tmp_path: Path):
    """It was taken, so sending it again because Redis could not be told would be our fault alone."""
    free = asyncio.Event()

    async def late(came: Came, writer: asyncio.StreamWriter) -> None:
        await free.wait()
        writer.write(says(200))

    receiver.answer = late
    with RealServer(tmp_path, appendfsync="always") as server:
        redis = connect(server.url)
        sent = await decide(redis, "001")
        one = role(redis, endpoint(receiver.port))
        async with working(one):
            await until(lambda: receiver.came)
            server.kill()
            free.set()
            await until(lambda: receiver.ids)
            server.start()
            await until(lambda: one.delivered == 1)
            sent_later = await decide(redis, "002")
            await until(lambda: one.delivered == 2)
        await redis.aclose()

    assert [came.id for came in receiver.came] == [sent, sent_later]


async def test_no_secret_is_in_a_log_a_key_or_an_entry(
    redis: Redis, receiver: Receiver, caplog: pytest.LogCaptureFixture
):
    """The http client's own log would write whole urls at the level INFO."""
    caplog.set_level(logging.DEBUG)
    receiver.answer = always(500)
    mine = endpoint(receiver.port, expires_after_s=0.5)
    await decide(redis, "001")
    one = role(redis, mine)
    with capture_logs() as logs:
        async with working(one):
            await until(lambda: one.dead == 1)
    client: Any = redis
    shown = repr(logs) + caplog.text + repr(await dead_letters(redis, "test", "desk"))
    shown += repr(await list_endpoints(redis, "test", [mine])) + repr(mine)
    for key in await client.keys("test:send:*"):
        match await client.type(key):
            case "hash":
                shown += repr(await client.hgetall(key))
            case "zset":
                shown += repr(await client.zrange(key, 0, -1))
            case "stream":
                shown += repr(await client.xrange(key))

    assert "001/firing" in shown
    assert receiver.came[0].path == f"/{TOKEN}"
    assert not [secret for secret in (TOKEN, SECRET, repr(key_of(SECRET))) if secret in shown]


async def test_a_sender_killed_again_and_again_loses_nothing_and_repeats_only_the_same_id(
    redis: Redis, receiver: Receiver, real_server: Any
):
    chance = random.Random(7)

    async def slow(came: Came, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(says(503 if chance.random() < 0.3 else 200))

    receiver.answer = slow
    sent = []
    for number in range(60):
        sent.append(await decide(redis, f"{number:03}"))
        sent.append(await decide(redis, f"{number:03}", "resolved"))
    kills = 5
    for life in range(kills + 1):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.test_send", real_server.url, str(receiver.port),
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        try:
            if life < kills:
                await until(partial(receiver.has, len(receiver.came) + chance.randint(5, 25)))
            else:
                await until_idle(redis, "desk")
        finally:
            child.kill()
            await child.wait()

    assert set(receiver.ids) == set(sent)
    assert len(receiver.ids) <= len(sent) + kills * send.IN_FLIGHT
    firsts = list(dict.fromkeys(receiver.ids))
    for number in range(60):
        mine = [one for one in firsts if one.startswith(f"{number:03}/")]
        assert mine == [f"{number:03}/firing", f"{number:03}/resolved"]


async def _child(url: str, port: int) -> None:
    """A sender with short waits, until it is killed."""
    send.POLL_S, send.TOTAL_S, send.MARGIN_S, send.LEASE_S = CHILD_POLL_S, CHILD_TOTAL_S, CHILD_MARGIN_S, CHILD_LEASE_S
    delivery.SCHEDULE_S = (0.0, *[0.05] * 20)
    delivery.BREAKER_S = delivery.BREAKER_MAX_S = 0.1
    import consumers.group  # noqa: PLC0415 -- only the child shortens it so

    consumers.group.BLOCK_MS, consumers.group.LEASE_S = 100, CHILD_LEASE_S
    await role(connect(url), endpoint(port)).run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(_child(sys.argv[1], int(sys.argv[2])))
