"""Decisions go in; webhooks come out, signed, in order per alert, again and again until somebody took them.

`SendRole.run` is the whole story: one member per TR puts decisions into the queues of their endpoints, and one sender
per endpoint takes out what is due. The surprise: a receiver may see one webhook-id twice, where we died between its
answer and writing it down; nothing else is ever sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

import httpx
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from consumers import clock
from consumers.alert.delivery import Breaker, Job, Outcome, Pace, Verdict, answered, expired, judge
from consumers.alert.endpoints import Endpoint
from consumers.alert.formats import read, render, trial
from consumers.alert.guard import Blocked, GuardedTransport, trouble_words
from consumers.alert.outbox import Claimed, DeadLetter, End, Outbox, Standing
from consumers.alert.sign import headers
from consumers.group import Batch, Delivery, Membership

GROUP = "send"
TOTAL_S = 15.0
CONNECT_S, READ_S = 3.0, 10.0
MARGIN_S = 2.0
"""An attempt is over this long before another sender may take its delivery."""

ANSWER_BYTES = 16 * 1024
LEASE_S = 10.0
POLL_S = 0.25
RETRY_S = 0.5
STOP_S, HAND_BACK_S = 4.0, 1.0
IN_FLIGHT = 8
STEP_S = 1.0
"""A clock that went back by more was set."""

KST = timezone(timedelta(hours=9))


class Courier:
    """Takes one body to one endpoint, and says what came of it in words that hold no secret."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport = GuardedTransport(endpoint.networks, connections=IN_FLIGHT)

    async def post(self, decision_id: str, body: bytes, *, now_s: float) -> Outcome:
        """One attempt, of `TOTAL_S` at most. It is the answer's status that counts, however long its body is."""
        try:
            async with asyncio.timeout(TOTAL_S):
                return await self._post(decision_id, body, now_s)
        except Blocked as error:
            return Outcome("blocked", f"blocked: {error}")
        except httpx.InvalidURL:
            return Outcome("blocked", "blocked: its url cannot be read")
        except (TimeoutError, httpx.TransportError, OSError) as error:
            return Outcome("trouble", trouble_words(error))

    async def _post(self, decision_id: str, body: bytes, now_s: float) -> Outcome:
        request = httpx.Request(
            "POST",
            self._endpoint.url.get_secret_value(),
            headers={
                "content-type": "application/json",
                "user-agent": "sectorwire",
                "accept-encoding": "identity",
                **headers(self._endpoint.key, decision_id, int(now_s), body),
            },
            content=body,
            extensions={"timeout": {"connect": CONNECT_S, "read": READ_S, "write": READ_S, "pool": READ_S}},
        )
        answer = await self._transport.handle_async_request(request)
        try:
            told = await _beginning(answer)
        finally:
            await answer.aclose()
        location = _host(answer.headers.get("location", ""))
        return answered(answer.status_code, answer.headers, told, location, now_s=now_s)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


async def _beginning(answer: httpx.Response) -> bytes:
    """The first bytes of an answer, the rest being nobody's business; whatever came before it was cut."""
    told = b""
    with suppress(httpx.TransportError):  # the status has arrived, and that is the answer
        async for part in answer.aiter_raw():
            told += part
            if len(told) >= ANSWER_BYTES:
                break
    return told[:ANSWER_BYTES]


def _host(location: str) -> str | None:
    try:
        return urlsplit(location).hostname
    except ValueError:
        return None


class Sender:
    """Takes what is due out of the queue of one endpoint. Its trouble is its own."""

    def __init__(self, outbox: Outbox, endpoint: Endpoint, now: Callable[[], float]) -> None:
        self.delivered = self.failed = self.dead = 0
        self._outbox, self._endpoint, self._now = outbox, endpoint, now
        self._courier = Courier(endpoint)
        self._pace = Pace(endpoint.rate)
        self._breaker = Breaker()
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._posting = 0
        self._troubled = False
        self._held_until_s = self._renew_at_s = 0.0
        self._ahead_s = float("-inf")
        """How far the time of day was ahead of the seconds that never go back, when it was looked at last."""
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("send").bind(endpoint=endpoint.name)

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`; then finish what is in flight, or hand it back."""
        trouble = False
        try:
            while not stop.is_set():
                nap_s = POLL_S
                try:
                    if await self._active():
                        await self._follow_the_clock()
                        nap_s = await self._start_due()
                    if trouble:
                        self._log.info("send.recovered")
                    trouble = False
                except (RedisError, OSError) as error:
                    if not trouble:
                        self._log.warning("send.waiting", error=type(error).__name__)
                    trouble, nap_s = True, RETRY_S
                await self._nap(nap_s)
        finally:
            await self._finish()

    async def _active(self) -> bool:
        """Whether this is the one active sender of the endpoint; the breaker comes with the place."""
        clock_s = clock.monotonic_s()
        if clock_s < self._renew_at_s:
            return clock_s < self._held_until_s
        held = await self._outbox.hold(LEASE_S)
        if held and clock_s >= self._held_until_s:
            self._breaker = await self._outbox.breaker()
        self._renew_at_s = clock_s + (LEASE_S / 3 if held else RETRY_S)
        self._held_until_s = clock_s + LEASE_S if held else 0.0
        return held

    async def _follow_the_clock(self) -> None:
        """See that a clock that was set back keeps nothing waiting for as long as the step.

        What is put off has a time of day, which senders share; one that starts later knows only what cannot be.
        """
        now_s = self._now()
        ahead_s = now_s - clock.monotonic_s()
        back_s = self._ahead_s - ahead_s
        if back_s > STEP_S:
            self._log.warning("clock.set_back", by_s=round(back_s))
            with suppress(ResponseError):  # a full server: then it waits
                await self._outbox.bring_forward(back_s, now_s=now_s)
            self._breaker = self._breaker.moved(back_s)
        self._ahead_s = ahead_s

    async def _start_due(self) -> float:
        """Begin what is due, as far as pace and breaker allow; returns how long to wait."""
        lanes, disabled = await self._outbox.due(self._now(), IN_FLIGHT)
        begun = 0
        for lane in lanes:
            now_s = self._now()
            may = self._breaker.may(now_s, self._posting)
            if may == "wait" or len(self._in_flight) >= IN_FLIGHT:
                return POLL_S
            if may == "go" and (wait_s := self._pace.wait_s(clock.monotonic_s())):
                return min(wait_s, POLL_S)
            if lane in self._in_flight:
                continue
            claimed = await self._outbox.begin(lane, now_s=now_s, until_s=now_s + TOTAL_S + MARGIN_S)
            if claimed is None:
                continue
            begun += 1
            if disabled:
                words = f"the endpoint is switched off since it {disabled}; redrive switches it on again"
                await self._settle(claimed, Verdict("dead", claimed.job, words))
            elif claimed.unreadable:
                await self._settle(claimed, Verdict("dead", claimed.job, claimed.unreadable))
            elif end := expired(claimed.job, now_s=now_s):
                await self._settle(claimed, end)
            elif may == "defer":
                due_s = min(self._breaker.at(now_s).until_s(), claimed.job.expires_s)
                await self._outbox.settle(claimed, "again", claimed.job, now_s=now_s, due_s=due_s)
            else:
                self._pace.take(clock.monotonic_s())
                self._posting += 1
                self._in_flight[lane] = asyncio.create_task(self._deliver(claimed))
        return 0.0 if begun else POLL_S

    async def _deliver(self, claimed: Claimed) -> None:
        """One attempt, and its end written down, however long that takes."""
        end: tuple[Verdict, Outcome] | None = None
        try:
            end = await self._attempt(claimed)
            await self._settle_surely(claimed, *end)
        except asyncio.CancelledError:
            with suppress(RedisError, OSError):  # else it comes back by itself, when its time is over
                if end:
                    await self._settle(claimed, *end)
                else:
                    now_s = self._now()
                    await self._outbox.settle(claimed, "again", claimed.job, now_s=now_s, due_s=now_s)
            raise
        finally:
            del self._in_flight[claimed.lane]
            self._wake.set()

    async def _attempt(self, claimed: Claimed) -> tuple[Verdict, Outcome]:
        try:
            outcome = await self._courier.post(claimed.job.id, claimed.body.encode(), now_s=self._now())
        except Exception as error:  # noqa: BLE001 -- one delivery's; without a traceback, which would show the url
            self._log.error("attempt.broken", decision=claimed.job.id, error=type(error).__name__)
            outcome = Outcome("trouble", f"an error of our own: {type(error).__name__}")
        finally:
            self._posting -= 1
        now_s = self._now()
        self.failed += not outcome.ok
        self._breaker = self._breaker_after(outcome, now_s)
        return judge(outcome, claimed.job, now_s=now_s, chance=clock.lot()), outcome

    def _breaker_after(self, outcome: Outcome, now_s: float) -> Breaker:
        """The breaker, and a line when trouble begins, when it goes on for long, and when it ends."""
        breaker = self._breaker.after(outcome, now_s)
        if outcome.kind == "trouble" and not self._troubled:
            self._log.warning("endpoint.troubled", why=outcome.words)
        elif outcome.ok and self._troubled:
            self._log.info("endpoint.recovered")
        if breaker.opened > self._breaker.opened:
            open_s = round(breaker.open_until_s - now_s)
            say = self._log.debug if self._breaker.opened else self._log.warning
            say("endpoint.left_in_peace", why=outcome.words, for_s=open_s)
        self._troubled = outcome.kind == "trouble"
        return breaker

    async def _settle_surely(self, claimed: Claimed, verdict: Verdict, outcome: Outcome) -> None:
        """A receiver's answer must not be forgotten because the server is away for a while."""
        while True:
            try:
                return await self._settle(claimed, verdict, outcome)
            except (RedisError, OSError):
                await clock.pause(RETRY_S)

    async def _settle(self, claimed: Claimed, verdict: Verdict, outcome: Outcome | None = None) -> None:
        now_s = self._now()
        state = {"breaker": self._breaker.dumps()}
        if outcome:
            state |= {"last": outcome.words, "last_ms": str(int(now_s * 1000))}
        if verdict.next == "disable":
            state["disabled"] = verdict.words
        ends: dict[str, End] = {"done": "done", "retry": "again"}
        end = ends.get(verdict.next, "dead")
        mine = await self._outbox.settle(
            claimed, end, verdict.job, now_s=now_s, due_s=verdict.due_s, why=verdict.words, state=state
        )
        if mine:
            self._say(claimed, verdict)

    def _say(self, claimed: Claimed, verdict: Verdict) -> None:
        facts = {"decision": claimed.job.id, "attempts": verdict.job.attempts}
        self.delivered += verdict.next == "done"
        self.dead += verdict.next in {"dead", "disable"}
        match verdict.next:
            case "done":
                self._log.info("alert.delivered", **facts)
            case "retry":
                self._log.debug("alert.delayed", why=verdict.words, **facts)
            case "dead":
                self._log.error("alert.given_up", why=verdict.words, **facts)
            case "disable":
                self._log.error("endpoint.switched_off", why=verdict.words, **facts)

    async def _nap(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _finish(self) -> None:
        """What is in flight ends within `STOP_S`, or is handed back."""
        tasks = set(self._in_flight.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=HAND_BACK_S)
        with suppress(RedisError, OSError):
            await self._outbox.let_go()
        await self._courier.aclose()


class SendRole:
    """Sends what was decided. `name` is this process's and stays the same over restarts."""

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        trs: Iterable[str],
        endpoints: Sequence[Endpoint],
        name: str,
        *,
        now: Callable[[], float] = clock.now_s,
    ) -> None:
        self._now = now
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._outboxes = {one: Outbox(redis, prefix, one, name) for one in self._endpoints}
        self._members = [Membership(redis, prefix, tr, GROUP, name, part="alerts", alone=True) for tr in trs]
        self._senders = {one.name: Sender(self._outboxes[one.name], one, now) for one in self._endpoints.values()}
        self._unknown: set[str] = set()
        self._log = structlog.get_logger("send")

    @property
    def delivered(self) -> int:
        """Deliveries that were taken."""
        return sum(sender.delivered for sender in self._senders.values())

    @property
    def failed(self) -> int:
        """Attempts that were not."""
        return sum(sender.failed for sender in self._senders.values())

    @property
    def dead(self) -> int:
        """Deliveries that were given up."""
        return sum(sender.dead for sender in self._senders.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Queue and send until `stop`; what is in flight then is finished or handed back within five seconds."""
        async with asyncio.TaskGroup() as group:
            for member in self._members:
                group.create_task(member.consume(self._enqueue, stop))
            for sender in self._senders.values():
                group.create_task(sender.run(stop))

    async def _enqueue(self, batch: Batch) -> None:
        """Queue each decision for each of its endpoints; one that comes again changes nothing."""
        for delivery in batch:
            decision = read(delivery.fields)
            decided_s = _written_s(delivery)
            for name in decision.notify:
                endpoint = self._endpoints.get(name)
                if endpoint is None:
                    self._say_unknown(name)
                    continue
                job = Job(decision.id, decided_s, decided_s + endpoint.expires_after_s)
                body = render(decision, endpoint)
                outbox = self._outboxes[name]
                if await outbox.enqueue(decision.lane, delivery.stream_id, job, body, now_s=self._now()):
                    self._senders[name].wake()

    def _say_unknown(self, name: str) -> None:
        if name not in self._unknown:
            self._unknown.add(name)
            self._log.error(
                "endpoint.unknown", endpoint=name, why="a rule notifies it, and no [[endpoint]] has the name"
            )


def _written_s(delivery: Delivery) -> float:
    """When a decision was written, by the server's clock: a market may be a made-up one, with a time of its own."""
    return int(delivery.stream_id.partition("-")[0]) / 1000


@dataclass(frozen=True)
class EndpointStatus:
    """One line of `endpoints list`: where it goes as far as people may see, and how things stand."""

    name: str
    format: str
    host: str
    breaker: str
    standing: Standing


async def list_endpoints(redis: Redis, prefix: str, endpoints: Iterable[Endpoint]) -> list[EndpointStatus]:
    """How things stand with each endpoint."""
    listed = []
    for endpoint in endpoints:
        standing = await Outbox(redis, prefix, endpoint.name).standing()
        words = standing.breaker.words(clock.now_s())
        listed.append(EndpointStatus(endpoint.name, endpoint.format, endpoint.host, words, standing))
    return listed


async def test_endpoint(endpoint: Endpoint) -> Outcome:
    """Send a message that is marked as a test, by the way every alert takes, and say what came of it."""
    now_s = clock.now_s()
    written = datetime.fromtimestamp(now_s, KST).isoformat(timespec="milliseconds")
    decision = trial(endpoint.name, id_=f"test-{int(now_s * 1000)}", time=written)
    courier = Courier(endpoint)
    try:
        return await courier.post(decision.id, render(decision, endpoint).encode(), now_s=now_s)
    finally:
        await courier.aclose()


async def dead_letters(redis: Redis, prefix: str, endpoint: str, *, count: int = 100) -> list[DeadLetter]:
    """What was given up for one endpoint, the newest first."""
    return await Outbox(redis, prefix, endpoint).dead_letters(count)


async def redrive(redis: Redis, prefix: str, endpoint: Endpoint, ids: Sequence[str] | None = None) -> int:
    """Send dead letters again, all or those with these ids, with a fresh life; returns how many.

    An endpoint that was switched off by a 410 is switched on again, also where nothing is dead.
    """
    now_s = clock.now_s()
    outbox = Outbox(redis, prefix, endpoint.name)
    return await outbox.redrive(ids, expires_s=now_s + endpoint.expires_after_s, now_s=now_s)
