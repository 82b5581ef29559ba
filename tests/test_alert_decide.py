"""Each decision is written once, whoever dies and whoever comes second, on a real server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from structlog.testing import capture_logs

from consumers.alert import decide
from consumers.alert.decide import AlertRole, Decider
from consumers.alert.rules import Rule, RuleSettings, compile_rules, iso
from consumers.group import Batch, Delivery, LeaseLost, NotTheEntry
from poller.catalogue import described, tr_named
from poller.contract import Keys, decode, dumps, loads
from poller.grid import Job
from poller.store import Store, connect
from poller.upkeep import Trimmer, Upkeep
from tests.builders import NOON
from tests.servers import RealServer

CATALOGUE = described()
TR = "ka20003"
FALLS = {"kind": "compare", "field": "change_pct", "op": "<=", "value": -2}
FOR_30_S: dict[str, Any] = {"for": "30s"}
AWHILE: dict[str, Any] = {"name": "awhile", "for": "15s", "keep_firing_for": "5s"}
CHANGES, ALERTS, ALERTING = (Keys("test").of(TR, part) for part in ("changes", "alerts", "alerting"))
PREFIXES = itertools.count()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for the read that is under way, a timer for the next look."""
    monkeypatch.setattr("consumers.group.BLOCK_MS", 100)
    monkeypatch.setattr(decide, "TICK_S", 0.05)


def rules(when: dict[str, Any] | None = None, **more: Any) -> list[Rule]:
    one = {"name": "falls", "tr": TR, "when": when or FALLS, "notify": ["desk"], **more}
    return compile_rules([RuleSettings.model_validate(one)], CATALOGUE, ["desk", "phone"])


def fields(number: int, pct: object, key: str = "001") -> dict[str, str]:
    """What the poller would publish as its entry of that number, ten seconds after the one before."""
    seen = NOON + timedelta(seconds=10 * number)
    data = {
        "tr": TR,
        "target": {"inds_cd": "001"},
        "table": "indices",
        "key": key,
        "label": "종합(KOSPI)",
        "changed": ["change_pct"],
        "before": {"change_pct": Decimal(0)},
        "after": {"sector_code": key, "level": Decimal("2393.33"), "change_pct": Decimal(str(pct))},
        "observed_from": iso(seen - timedelta(seconds=10)),
        "observed_at": iso(seen),
        "trading_day": "2026-11-23",
        "session": "regular",
        "epoch": 1,
        "version": number,
    }
    return {
        "specversion": "1.0",
        "id": f"ka20003?inds_cd=001#1.{number}.1",
        "source": "/kiwoom/ka20003?inds_cd=001",
        "type": "sectorwire.row.changed",
        "subject": f"indices/{key}",
        "time": iso(seen),
        "seq": str(number),
        "datacontenttype": "application/json",
        "data": dumps(data),
    }


def delivery(number: int, pct: object, key: str = "001") -> Delivery:
    """The same, as the group hands it over."""
    sent = fields(number, pct, key)
    return Delivery(TR, f"{number}-0", sent, decode(sent))


async def handed(decider: Decider, batch: Batch) -> None:
    """Let a decider handle entries that are in its stream, as all are that a group hands over."""
    redis, changes = decider._redis, decider._keys[2]
    for one in batch:
        with suppress(ResponseError):  # it is there
            await redis.xadd(changes, one.fields, id=one.stream_id)
    await decider.handle(batch)


async def publish(redis: Redis, *pcts: object, first: int = 1) -> None:
    for number, pct in enumerate(pcts, first):
        sent: dict[Any, Any] = dict(fields(number, pct))
        await redis.xadd(CHANGES, sent, id=f"{number}-0")


async def alerts(redis: Redis, key: str = ALERTS) -> list[tuple[str, str]]:
    """What was decided: whether it fires or is over, and under which id."""
    client: Any = redis
    return [(one["type"].rpartition(".")[2], one["id"]) for _, one in await client.xrange(key)]


async def states(redis: Redis) -> list[str]:
    return [state for state, _ in await alerts(redis)]


def at(seconds: float) -> Callable[[], datetime]:
    return lambda: NOON + timedelta(seconds=seconds)


@asynccontextmanager
async def running(redis: Redis, some: Sequence[Rule], name: str = "one", **more: Any) -> AsyncIterator[AlertRole]:
    role, stop = AlertRole(redis, "test", CATALOGUE, some, name, **more), asyncio.Event()
    working = asyncio.create_task(role.run(stop))
    try:
        yield role
    finally:
        stop.set()
        await working


async def until(redis: Redis, *expected: str) -> None:
    async with asyncio.timeout(20):
        while await states(redis) != list(expected):  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.01)


async def waiting(logs: Sequence[Any]) -> None:
    """Until the role has met the trouble and said so."""
    async with asyncio.timeout(20):
        while not any(log["event"] == "group.waiting" for log in logs):  # noqa: ASYNC110 -- a list tells nobody
            await asyncio.sleep(0.01)


async def test_changes_become_decisions(redis: Redis):
    await publish(redis, -1, "-2.31", -3)
    async with running(redis, rules(title="코스피 급락")) as role:
        await until(redis, "firing")
        await publish(redis, -1, first=4)
        await until(redis, "firing", "resolved")

    assert role.decided == 2
    client: Any = redis
    (_, firing), _ = await client.xrange(ALERTS)
    event = decode(firing)  # the attributes are those of every stream of ours
    assert (event.type, event.subject, event.seq) == ("sectorwire.alert.firing", "indices/001", 1)
    assert (event.source, event.time) == ("/kiwoom/ka20003?inds_cd=001", NOON + timedelta(seconds=20))
    assert (event.data["id"], event.data["title"], event.data["notify"]) == (event.id, "코스피 급락", ["desk"])
    assert event.data["text"] == "▼ 종합(KOSPI) 등락률 -2.31 % (기준 -2 %) · 지수 2,393.33 · 12:00:20"


async def test_without_rules_the_role_waits_for_its_end(redis: Redis):
    async with running(redis, []) as role:
        await asyncio.sleep(0.1)

    assert role.decided == 0


async def test_what_is_not_an_entry_of_ours_stops_nothing(redis: Redis):
    client: Any = redis
    await client.xadd(CHANGES, {"strange": "fields"}, id="1-0")
    await publish(redis, -3, first=2)
    async with running(redis, rules()):
        await until(redis, "firing")


async def test_a_restart_remembers_what_fires(redis: Redis):
    await publish(redis, -3)
    async with running(redis, rules()):
        await until(redis, "firing")
    await publish(redis, -4, -1, first=2)
    async with running(redis, rules()):
        await until(redis, "firing", "resolved")


async def test_a_batch_that_comes_again_decides_nothing_twice(redis: Redis):
    """The effect was written, the acknowledgement lost: to this process, and to the one that follows it."""
    batch = [delivery(1, -3), delivery(2, 0), delivery(3, -3)]
    decider = Decider(redis, "test", TR, rules())
    await handed(decider, batch)
    before = await alerts(redis)
    await handed(decider, batch)
    await handed(Decider(redis, "test", TR, rules()), [*batch, delivery(4, -5)])

    assert [state for state, _ in before] == ["firing", "resolved", "firing"]
    assert await alerts(redis) == before


async def test_an_answer_lost_on_its_way_back_is_recognised(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    decider = Decider(redis, "test", TR, rules())
    write = decider._write

    async def written_but_unheard(**given: Any) -> Any:
        await write(**given)
        raise ConnectionError

    monkeypatch.setattr(decider, "_write", written_but_unheard)
    with pytest.raises(ConnectionError):
        await handed(decider, [delivery(1, -3)])
    monkeypatch.setattr(decider, "_write", write)
    await handed(decider, [delivery(1, -3)])
    await handed(decider, [delivery(2, 0)])

    assert await states(redis) == ["firing", "resolved"]


async def test_what_the_server_lost_before_it_was_decided_on_is_decided_nowhere(redis: Redis):
    """The client has made another connection without a word; what it had read is gone, or another stands there."""
    decider, client = Decider(redis, "test", TR, rules()), cast("Any", redis)
    await handed(decider, [delivery(1, 0)])

    with pytest.raises(LeaseLost, match="lost what was read"):
        await decider.handle([delivery(2, -3)])
    await client.xadd(CHANGES, {"id": "another"}, id="2-0")
    with pytest.raises(LeaseLost, match="lost what was read"):
        await decider.handle([delivery(2, -3)])

    assert await states(redis) == []
    assert await client.hget(ALERTING, "position") == "1-0"


@pytest.mark.parametrize("gone", ["trimmed", "deleted"])
async def test_what_was_removed_from_the_stream_meanwhile_is_decided_on(redis: Redis, gone: str):
    """Somebody did that on purpose, and it was published: that is no loss."""
    client: Any = redis
    await publish(redis, 0, -3, 0)
    if gone == "trimmed":
        await client.xtrim(CHANGES, minid="3-0", approximate=False)
    else:
        await client.xdel(CHANGES, "2-0")
    await Decider(redis, "test", TR, rules()).handle([delivery(1, 0), delivery(2, -3)])

    assert await states(redis) == ["firing"]


async def test_decisions_that_nobody_has_read_stay_however_many_there_are(redis: Redis):
    """The stream has a length all the same: what every group has read is trimmed like the changes, or better."""
    client: Any = redis
    await client.xgroup_create(ALERTS, "send", "0", mkstream=True)
    many = "for ms = 1, 110000 do redis.call('XADD', KEYS[1], string.format('%.0f-0', ARGV[1] + ms), 'id', 'x') end"
    now_ms = int(time.time() * 1000)
    await client.eval(many, 1, ALERTS, now_ms - 200_000)
    tr = tr_named(TR)
    job = Job(tr.target({"inds_cd": "001"}), 1.0)
    trimmer = Trimmer(Store(redis, "test"), [tr], [job], Upkeep(86_400, 1_000_000))

    await handed(Decider(redis, "test", TR, rules()), [delivery(1, -3)])
    await trimmer.trim(now_ms)
    assert (await client.xlen(ALERTS), trimmer.pauses(job)) == (110_001, True)

    await client.xgroup_setid(ALERTS, "send", "$")
    await trimmer.trim(now_ms)
    assert 1 < await client.xlen(ALERTS) < 110_000
    assert not trimmer.pauses(job)


async def test_a_full_server_is_read_down_trimmed_and_takes_entries_again(redis: Redis):
    """What is not decided on yet is what fills it: were that refused, nothing could be trimmed."""
    client: Any = redis
    await client.xgroup_create(CHANGES, "alert", "0", mkstream=True)
    for number in range(1, 201):
        await client.xadd(CHANGES, {**fields(number, -3 if number % 2 else 0), "pad": "x" * 40_000}, id=f"{number}-0")
    used = (await client.info("memory"))["used_memory"]
    try:
        await client.config_set("maxmemory", used - 2_000_000)
        with pytest.raises(OutOfMemoryError):
            await client.xadd(CHANGES, fields(201, 0), id="201-0")
        async with running(redis, rules()) as role, asyncio.timeout(20):
            while not await _read_down(client):  # noqa: ASYNC110 -- the server tells nobody
                await asyncio.sleep(0.01)
        await Store(redis, "test").trim(tr_named(TR), 1_000)
        await client.xadd(CHANGES, fields(201, 0), id="201-0")
    finally:
        await client.config_set("maxmemory", 0)

    assert await states(redis) == ["firing", "resolved"] * 100
    assert role.decided == 200


async def _read_down(client: Any) -> bool:
    (group,) = await client.xinfo_groups(CHANGES)
    return bool(group["last-delivered-id"] == "200-0" and group["pending"] == 0)


async def test_a_timer_waits_for_a_full_server(redis: Redis):
    """It reads nothing, so it would only take more."""
    client: Any = redis
    decider = Decider(redis, "test", TR, rules(**FOR_30_S), now=at(100))
    await handed(decider, [delivery(1, -3)])
    try:
        await client.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            await decider.tick()
    finally:
        await client.config_set("maxmemory", 0)
    assert await states(redis) == []

    await Decider(redis, "test", TR, rules(**FOR_30_S), now=at(100)).tick()
    assert await states(redis) == ["firing"]


async def test_a_rival_cannot_write_over_newer_state(redis: Redis):
    """A member that lost its lease in mid-batch still has the state of before in its hands."""
    slow, quick = Decider(redis, "test", TR, rules()), Decider(redis, "test", TR, rules())
    await handed(slow, [delivery(1, 0)])
    await handed(quick, [delivery(2, -3)])
    await handed(slow, [delivery(2, -3)])
    await handed(quick, [delivery(3, 0)])
    await handed(slow, [delivery(3, 0), delivery(4, -3)])

    assert await states(redis) == ["firing", "resolved", "firing"]


async def test_two_that_write_at_the_same_time_write_one_after_the_other(redis: Redis):
    both = [Decider(redis, "test", TR, rules()) for _ in range(2)]
    batches = [[delivery(n, -3 if n % 2 else 0)] for n in range(1, 31)]
    for batch in batches:
        await asyncio.gather(*(handed(one, batch) for one in both))

    assert await states(redis) == ["firing", "resolved"] * 15
    assert sum(one.decided for one in both) == 30


async def test_who_is_overtaken_again_and_again_leaves_it_to_the_other(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    decider = Decider(redis, "test", TR, rules())
    write = decider._write

    async def overtaken(**given: Any) -> Any:
        client: Any = redis
        await client.hincrby(ALERTING, "version", 1)
        return await write(**given)

    monkeypatch.setattr(decider, "_write", overtaken)
    with pytest.raises(LeaseLost):
        await handed(decider, [delivery(1, -3)])
    assert await states(redis) == []


async def test_two_processes_decide_once_and_the_second_follows_the_first(redis: Redis):
    async with running(redis, rules(), "second") as second:
        async with running(redis, rules(), "first") as first:
            await publish(redis, -3, 0)
            await until(redis, "firing", "resolved")
        await publish(redis, -3, first=3)
        await until(redis, "firing", "resolved", "firing")

    assert first.decided + second.decided == 3


async def test_a_timer_runs_out_without_entries(redis: Redis):
    clock = {"now": NOON}
    await publish(redis, -3)
    async with running(redis, rules(**FOR_30_S), now=lambda: clock["now"]):
        async with asyncio.timeout(20):
            while not await redis.exists(ALERTING):  # noqa: ASYNC110 -- the server tells nobody
                await asyncio.sleep(0.01)
        clock["now"] = NOON + timedelta(seconds=39)
        await asyncio.sleep(0.2)
        assert await states(redis) == []
        clock["now"] = NOON + timedelta(seconds=45)
        await until(redis, "firing")

    client: Any = redis
    ((_, firing),) = await client.xrange(ALERTS)
    assert firing["time"] == iso(NOON + timedelta(seconds=40))


async def test_a_timer_survives_its_process_and_needs_no_entry(redis: Redis):
    await handed(Decider(redis, "test", TR, rules(**FOR_30_S)), [delivery(1, -3)])
    follower = Decider(redis, "test", TR, rules(**FOR_30_S), now=at(100))
    await follower.tick()
    await follower.tick()

    assert await states(redis) == ["firing"]


async def test_a_timer_waits_for_news_that_nobody_has_looked_at(redis: Redis):
    """Behind by a minute, the clock would say that it held for 30 s; the entry on its way says that it did not."""
    patient = rules(**FOR_30_S)
    decider = Decider(redis, "test", TR, patient, now=at(100))
    await publish(redis, -3, 0)
    await handed(decider, [delivery(1, -3)])
    await decider.tick()
    assert await states(redis) == []

    await handed(decider, [delivery(2, 0)])
    await decider.tick()
    assert await states(redis) == []


async def test_two_that_run_one_timer_decide_once(redis: Redis):
    await publish(redis, -3)
    both = [Decider(redis, "test", TR, rules(**FOR_30_S), now=at(100)) for _ in range(2)]
    await handed(both[0], [delivery(1, -3)])
    await asyncio.gather(*(one.tick() for one in both))
    await both[1].tick()

    assert await states(redis) == ["firing"]


async def test_an_edited_condition_ends_what_fired_under_the_old_one(redis: Redis):
    await handed(Decider(redis, "test", TR, rules()), [delivery(1, -3)])
    await handed(Decider(redis, "test", TR, rules(title="새 이름")), [delivery(2, "-3.1")])
    assert await states(redis) == ["firing"]

    await handed(Decider(redis, "test", TR, rules({**FALLS, "value": -5})), [delivery(3, "-3.2")])
    client: Any = redis
    _, (_, ended) = await client.xrange(ALERTS)
    assert (ended["type"], loads(ended["data"])["reason"]) == ("sectorwire.alert.resolved", "rule_changed")
    assert not [name for name in await client.hkeys(ALERTING) if name.startswith("series:")]


async def test_a_key_of_a_wrong_type_is_trouble_to_wait_for(redis: Redis):
    client: Any = redis
    await client.set(ALERTS, "something else")
    await publish(redis, -3)
    with capture_logs() as logs:
        async with running(redis, rules()):
            await waiting(logs)
            await client.delete(ALERTS)
            await until(redis, "firing")


PCTS = st.lists(st.sampled_from(["-3", "-2", "-1.8", "-1.5", "0"]), min_size=1, max_size=12)
CRASHES = st.lists(st.sampled_from(["well", "again", "restart", "rival"]), max_size=12)
SPLITS = st.lists(st.integers(1, 4), max_size=12)


@settings(max_examples=40)
@given(PCTS, SPLITS, CRASHES)
def test_any_batches_with_crashes_between_write_and_ack_decide_the_same_each_once(
    real_server: RealServer, pcts: list[str], splits: list[int], crashes: list[str]
):
    some = [*rules({**FALLS, "clear": -1.5}), *rules(**AWHILE)]
    deliveries = [delivery(number, pct) for number, pct in enumerate(pcts, 1)]

    async def both() -> None:
        redis = connect(real_server.url)
        with_trouble, undisturbed = f"t{next(PREFIXES)}", f"t{next(PREFIXES)}"
        calm = Decider(redis, undisturbed, TR, some)
        for one in deliveries:
            await handed(calm, [one])
        await crash_along(redis, with_trouble, some, deliveries)
        found = [await alerts(redis, Keys(prefix).of(TR, "alerts")) for prefix in (with_trouble, undisturbed)]
        await redis.aclose()
        assert found[0] == found[1]
        assert len(set(found[0])) == len(found[0])

    async def crash_along(redis: Redis, prefix: str, some: Sequence[Rule], left: Batch) -> None:
        active, other = Decider(redis, prefix, TR, some), Decider(redis, prefix, TR, some)
        sizes, ends = itertools.chain(splits, itertools.repeat(2)), itertools.chain(crashes, itertools.repeat("well"))
        while left:
            size = next(sizes)
            await handed(active, left[:size])
            match next(ends):
                case "again":
                    await handed(active, left[:size])
                case "restart":
                    active = Decider(redis, prefix, TR, some)
                    await handed(active, left[:size])
                case "rival":
                    active, other = other, active
                    with suppress(LeaseLost):
                        await handed(active, left[: size + 1])
            left = left[size:]

    asyncio.run(both())


async def test_what_was_parked_is_decided_on_when_it_is_handed_out_again(redis: Redis):
    """Its place in the stream was passed long ago; the position stays where it is."""
    decider = Decider(redis, "test", TR, rules(), now=at(60))
    await handed(decider, [delivery(1, 0), delivery(3, 0)])
    parked = replace(delivery(2, -3), redriven=True)
    await handed(decider, [parked])
    client: Any = redis

    assert await states(redis) == ["firing"]
    assert await client.hget(ALERTING, "position") == "3-0"

    await handed(decider, [delivery(2, -3)])
    assert await states(redis) == ["firing"]


async def test_a_state_that_cannot_be_read_ends_no_role(redis: Redis):
    client: Any = redis
    await client.hset(ALERTING, "version", "x")
    await publish(redis, -3)
    with capture_logs() as logs:
        async with running(redis, rules()):
            await waiting(logs)
            await client.delete(ALERTING)
            await until(redis, "firing")


@pytest.mark.parametrize("stored", [{"series:falls": "{"}, {"version": "x"}])
async def test_a_state_that_cannot_be_read_is_no_entry_s_fault(redis: Redis, stored: dict[str, str]):
    fields: dict[Any, Any] = dict(stored)
    await redis.hset(ALERTING, mapping=fields)
    with pytest.raises(NotTheEntry, match=r"cannot read the state in test:\{ka20003\}:alerting, delete it"):
        await handed(Decider(redis, "test", TR, rules(), now=at(60)), [delivery(1, -3)])


async def test_rules_that_cannot_go_on_are_no_entry_s_fault(redis: Redis, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise KeyError("since")

    monkeypatch.setattr(decide, "retire", broken)
    with pytest.raises(NotTheEntry):
        await handed(Decider(redis, "test", TR, rules(), now=at(60)), [delivery(1, -3)])
