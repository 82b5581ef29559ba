"""The model server does what a real one does: the same operations on both, and everything compared after each."""

from __future__ import annotations

import ast
import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast
from unittest.mock import patch

import fakeredis
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

import consumers
import poller
from consumers.group import MAX_HANDED_OUT, Batch, Membership
from poller.auth import LET_GO, SWAP
from poller.catalogue import tr_named
from poller.commit import Commit, Draft, Known, state_of
from poller.contract import decode, dumps
from poller.store import LEASE_S, Stale, Store, StoreDown, StoreError
from poller.turnstile import LEAVE
from tests.conftest import MONDAY_NOON, HandClock
from tests.model_expiry_rules import ExpiryRules
from tests.model_group_rules import groups, nothing, script
from tests.model_groups import Group, Stream, shown
from tests.model_parties import ALERTING, ALERTS, CHANGES, GROUPS, QUARTER_MS, REPLICA, Operation, Party
from tests.model_queue_rules import QueueRules
from tests.model_reach import Reach
from tests.model_scripts import BY_TEXT
from tests.model_store import ModelRedis, ModelServer, ModelStore
from tests.servers import RealServer, client
from tests.virtual import VirtualClock, run

INDICES = tr_named("ka20003")
TARGETS = [INDICES.target({"inds_cd": code}) for code in ("001", "101")]
FIELDS = [field.name for table, fields in TARGETS[0].tables() for field in fields]
NOW_MS = 1_795_330_635_454
META = "test:{ka20003}:meta"

who = st.integers(0, 1)
which = st.integers(0, 1)
row_names = st.lists(st.sampled_from(["indices/001", "indices/002", "indices/003"]), unique=True)


def made(sector: int, epoch: int, before: int, *, rows: list[str], gone: list[str], clear: bool, mark: str) -> Commit:
    """A commit on a version, the next one if it has news; commits with another mark have another id."""
    version = before + 1 if rows else before
    known = Known(version=version, revision=1, digest=mark, last_good=MONDAY_NOON)
    drafts = tuple(Draft("sectorwire.row.changed", name, f'{{"key":"{name}","mark":"{mark}"}}') for name in rows)
    set_rows = dict.fromkeys(rows, dumps({**dict.fromkeys(FIELDS), "level": int(mark)}))
    return Commit(TARGETS[sector], epoch, before, version, drafts, clear, set_rows, tuple(gone), state_of(known), known)


class Servers(ExpiryRules, QueueRules):
    """Two pollers, two groups and an endpoint on a real server, and their twins on the model and on fakeredis."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.last: list[Commit | None] = [None, None]
        self.asked = False
        """Whether anything was done since everything was compared."""

    async def _same(self, call: Operation, fake: Operation | None = None, *, fake_sorts: bool = False) -> Any:
        self.asked = True
        return await super()._same(call, fake, fake_sorts=fake_sorts)

    @invariant()
    def all_hold_the_same(self) -> None:
        """Every key, every entry, and every group with what is pending for whom, once anything was done."""
        if self.asked:
            super().all_hold_the_same()
        self.asked = False

    def both(self, poller: int, call: Callable[[Store], Awaitable[Any]]) -> Any:
        """The same by a poller's store everywhere, with the same result; but one that is refused would wait long."""
        if self.model.refuses is REPLICA:
            return None
        return self.same(lambda one: call(one.stores[poller]))

    def commits(self, poller: int, commit: Commit, also: Mapping[str, str]) -> None:
        """A commit by a poller's store everywhere; it writes nothing where the epoch began on another server.

        Which fakeredis does not see, so it is left out of that.
        """
        if self.model.refuses is not REPLICA:
            fake = nothing if self.is_another() else None
            self.same(lambda one: one.stores[poller].commit(commit, also), fake=fake)

    def is_another(self) -> bool:
        """Whether the epoch of the TR began on another server than this."""
        meta = self.model.keys.get(META)
        return bool(self.model.run_id and isinstance(meta, dict) and meta.get("server") != self.model.run_id)

    @initialize()
    def somebody_leads(self) -> None:
        self.take_the_lead(0, 0)

    @property
    def leader(self) -> int:
        """Whose fence the TR holds, as far as it is one of ours."""
        return int(str(self.twin.stores[1].lead) == self.model.hash(META).get("fence"))

    def leads(self) -> bool:
        """Whether it is one of ours."""
        return self.model.hash(META).get("fence") == str(self.twin.stores[self.leader].lead)

    @rule(poller=who, later_ms=st.integers(-5_000, 5_000))
    def take_the_lead(self, poller: int, later_ms: int) -> None:
        async def leads(store: Store) -> bool:
            return await store.take_lead((INDICES,), NOW_MS + later_ms) == 0

        self.both(poller, leads)

    @rule(poller=who)
    def renew_the_lead(self, poller: int) -> None:
        async def renewed(store: Store) -> tuple[bool, bool]:
            return await store.renew_lead(), store.is_full

        self.both(poller, renewed)

    @rule(poller=who)
    def give_up_the_lead(self, poller: int) -> None:
        self.both(poller, lambda store: store.give_up_lead())

    @rule()
    def the_lease_runs_out(self) -> None:
        """So that the test need not wait for it; that it does so by itself in the model is another test."""
        self.same(lambda one: one.redis.delete("test:leader"))

    @rule(poller=who, later_ms=st.integers(-5_000, 5_000))
    def begin_an_epoch(self, poller: int, later_ms: int) -> None:
        self.both(poller, lambda store: store.begin_epoch(INDICES, NOW_MS + later_ms))

    @rule(poller=who)
    def a_newer_program_leads(self, poller: int) -> None:
        """And nobody after it, until its revision is taken away by hand."""
        newer = replace(INDICES, revision=9)
        self.both(poller, lambda store: store.begin_epoch(newer, NOW_MS))
        self.both(poller, lambda store: store.begin_epoch(INDICES, NOW_MS))
        self.same(lambda one: one.redis.hset(META, "revision", INDICES.revision))

    @rule(
        follows=st.sampled_from([0, 0, 0, 1]),
        sector=which,
        behind=st.sampled_from([0, 0, 0, 0, 1, -1]),
        epoch_off=st.sampled_from([0, 0, 0, 0, 0, 1]),
        rows=row_names,
        gone=row_names,
        clear=st.booleans(),
        mark=st.sampled_from("123"),
    )
    def commit(
        self,
        follows: int,
        sector: int,
        behind: int,
        epoch_off: int,
        rows: list[str],
        gone: list[str],
        clear: bool,
        mark: str,
    ) -> None:
        poller = self.leader ^ follows
        state = self.model.hash(f"test:{{ka20003}}:state:{TARGETS[sector].query}")
        before = max(0, int(state.get("version", "0")) - behind)
        epoch = self.real.stores[poller].epochs.get("ka20003", 0) + epoch_off
        commit = made(sector, epoch, before, rows=rows, gone=gone, clear=clear, mark=mark)
        self.last[poller] = commit
        self.commits(poller, commit, {"last_error": mark})

    @rule(
        sector=which,
        behind=st.sampled_from([0, 0, 1]),
        rows=row_names.filter(bool),
        mark=st.sampled_from("123"),
        clear=st.booleans(),
        again=st.booleans(),
    )
    def commit_as_leader(
        self, sector: int, behind: int, rows: list[str], mark: str, clear: bool, again: bool = False
    ) -> None:
        """So that most examples have entries; `behind` is another commit of a version that is there."""
        if not self.leads():
            self.take_the_lead(0, 0)
        self.commit(follows=0, sector=sector, behind=behind, epoch_off=0, rows=rows, gone=[], clear=clear, mark=mark)
        if again:
            self.commit_again()

    @rule()
    def commit_again(self) -> None:
        """As after a lost reply."""
        poller = self.leader
        commit = self.last[poller]
        if commit is not None:
            self.commits(poller, commit, {})

    @rule(sector=which, then=st.sampled_from(["begin", "begin", "begin", "again", "nothing"]))
    def the_server_is_another_one(self, sector: int, then: str) -> None:
        """It was started again, or is a replica: then the epoch there names a server that is not this."""
        if not self.leads():
            self.take_the_lead(0, 0)
        self.same(lambda one: one.redis.hset(META, "server", "0123456789abcdef"))
        self.commit_as_leader(sector=sector, behind=0, rows=["indices/001"], mark="1", clear=False)
        if then == "begin":
            self.begin_an_epoch(self.leader, 0)
        if then != "nothing":
            self.commit_as_leader(sector=sector, behind=0, rows=["indices/001"], mark="1", clear=False)

    @rule(sector=which, begins=st.booleans())
    def nobody_may_ask_which_server_it_is(self, sector: int, begins: bool) -> None:
        """A user without the right to do so goes on without; and then may again."""
        run_id, self.model.run_id = self.model.run_id, ""
        self.runner.run(self.real.redis.execute_command("ACL", "SETUSER", "default", "-info"))
        try:
            if begins:
                self.begin_an_epoch(self.leader, 0)
            self.commit_as_leader(sector=sector, behind=0, rows=["indices/001"], mark="2", clear=False)
        finally:
            self.runner.run(self.real.redis.execute_command("ACL", "SETUSER", "default", "+info"))
            self.model.run_id = run_id
        self.commit_as_leader(sector=sector, behind=0, rows=["indices/001"], mark="3", clear=False)
        self.begin_an_epoch(self.leader, 0)

    @rule(follows=st.sampled_from([0, 0, 1]), sector=which, text=st.sampled_from(["", "slow"]))
    def note(self, follows: int, sector: int, text: str) -> None:
        self.both(self.leader ^ follows, lambda store: store.note(TARGETS[sector], {"last_error": text, "gap": "x"}))

    @rule(poller=who, sector=which)
    def load(self, poller: int, sector: int) -> None:
        self.both(poller, lambda store: store.load(TARGETS[sector]))

    @rule(group=groups, given_out=st.integers(1, 4), acknowledged=st.sets(st.integers(0, 3)))
    def a_group_reads(self, group: str, given_out: int, acknowledged: set[int]) -> None:
        """What it was not given and what it has not acknowledged outlives the trimming that follows."""
        read = self.same(lambda one: one.redis.xreadgroup(group, "c", {CHANGES: ">"}, count=given_out))
        given = [entry_id for entry_id, _ in read[0][1]] if isinstance(read, list) and read else []
        done = [entry_id for place, entry_id in enumerate(given) if place in acknowledged]
        if done:
            self.same(lambda one: one.redis.xack(CHANGES, group, *done))
        self.trim(0, 1.0)

    @rule(how=st.sampled_from(["read", "destroyed"]))
    def the_groups_are_done(self, how: str) -> None:
        for group in GROUPS:
            self._is_done(group, how)
        self.trim(0, 1.0)

    def _is_done(self, group: str, how: str) -> None:
        if how == "destroyed":
            self.same(lambda one: one.redis.xgroup_destroy(CHANGES, group))
            return
        self.same(lambda one: one.redis.xreadgroup(group, "c", {CHANGES: ">"}))
        pending = list(map(shown, self.model.stream(CHANGES).groups.get(group, Group()).pending))
        if pending:
            self.same(lambda one: one.redis.xack(CHANGES, group, *pending))

    @rule(place=st.integers(0, 9), share=st.sampled_from([1.0, 1.0, 0.5]))
    def trim(self, place: int, share: float) -> None:
        stream = self.model.keys.get(CHANGES)
        ids = stream.ids if isinstance(stream, Stream) else []
        keep_from_ms = ids[-1 - min(place, len(ids) - 1)][0] + 1 if ids else NOW_MS

        async def removed(one: Party) -> int:
            return (await one.stores[0].trim(INDICES, keep_from_ms, share))[0]

        async def trimmed_as_the_model(one: Party) -> None:
            if isinstance(self.model.keys.get(CHANGES), Stream):
                await one.redis.xtrim(CHANGES, maxlen=self.model.xlen(CHANGES), approximate=False)

        if self.model.refuses is not REPLICA:
            self.same(removed, fake=trimmed_as_the_model)

    @rule(
        script=st.sampled_from([LET_GO, LEAVE, SWAP]),
        failed=st.sampled_from(["", "1", "2"]),
        token=st.sampled_from("12"),
    )
    def a_token_is_stored_or_its_lock_or_a_slot_let_go(self, script: str, failed: str, token: str) -> None:
        """Here by its script alone: the rest of a token's life needs a broker."""
        key, arguments = "test:token:x", [failed, token, "ends", "", "600"]
        if script != SWAP:
            key, arguments = "test:token:x:lock", [token, "600000"]
            self.same(lambda one: one.redis.set(key, failed, px=600_000))
        self.same(lambda one: one.redis.register_script(script)(keys=[key], args=arguments))

    @rule(
        key=st.sampled_from(
            [META, CHANGES, *(f"test:{{ka20003}}:{part}:inds_cd=001" for part in ("snapshot", "state"))]
        ),
        poller=who,
    )
    def a_key_of_another_type_is_in_the_way(self, key: str, poller: int) -> None:
        """In the place of what was there."""
        self.same(lambda one: one.redis.delete(key))
        self.same(lambda one: one.redis.set(key, "not ours"))
        commit = made(0, 1, 0, rows=["indices/001"], gone=[], clear=False, mark="1")
        self.commits(poller, commit, {})
        self.both(poller, lambda store: store.begin_epoch(INDICES, NOW_MS))
        self.trim(0, 1.0)
        self.same(script("alert/decide", [ALERTING, ALERTS, CHANGES], [0, "0-0", 0, "", 0, 0, 0]))
        self.look("at once", QUARTER_MS, [])
        self.same(lambda one: one.redis.delete(key))

    def writes(self, group: str) -> list[Callable[[], None]]:
        """Those of pollers, of a queue, and of whoever looks after the groups, as well."""
        return [
            *super().writes(group),
            lambda: self.take_the_lead(self.leader, 0),
            lambda: self.renew_the_lead(self.leader),
            lambda: self.begin_an_epoch(self.leader, 0),
            lambda: self.commit_as_leader(sector=0, behind=0, rows=["indices/001"], mark="1", clear=False),
            lambda: self.commit_as_leader(sector=0, behind=0, rows=["indices/001"], mark="1", clear=True),
            lambda: self.a_token_is_stored_or_its_lock_or_a_slot_let_go(SWAP, "1", "2"),
            lambda: self.look("at once", -QUARTER_MS, []),
            lambda: self.look("at once", QUARTER_MS, []),
            lambda: self.decisions_are_queued("a1", [9], 9, forgets=True),
            lambda: self.a_delivery_is_begun("a1", 9),
            lambda: self.a_delivery_is_settled("a1", "dead", 9, []),
            lambda: self.a_dead_letter_is_sent_again(9),
        ]


Record = Callable[[str, object], None]


def hold_together(
    kind: Literal["valkey", "redis"], directory: Path, examples: int, record: Record, first_seed: int = 0
) -> None:
    """Run the machine on a server of that kind. What was compared, or why not, is printed when the tests are over.

    Where a line of a twin was not run by then, there are more examples; where it never is, that is a failure.
    """
    try:
        server = RealServer(directory, kind=kind)
    except pytest.skip.Exception as skipped:
        record("no engine", str(skipped))
        raise
    with server:
        for engine in (f"{_version(server)} ({server.binary})", "model", f"fakeredis {fakeredis.__version__}"):
            record("engine", engine)
        reach = Reach()
        with patch.dict(BY_TEXT, {text: reach.watched(twin) for text, twin in BY_TEXT.items()}):
            for number in range(4 * examples):
                if number < examples or reach.never_run():
                    one_example(server, first_seed + number)
    assert not reach.never_run(), "no rule comes to these lines, so nobody knows whether the model is right there"


def one_example(server: RealServer, number: int) -> None:
    """The simplest one, which does nothing, and one by chance.

    Of many in one run, six in seven are variations of another one (Hypothesis 6.170), and some rules are never tried.
    """
    run_state_machine_as_test(
        seed(number)(cast("type[Servers]", lambda: Servers(server.url))),
        settings=settings(
            max_examples=2,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def _version(server: RealServer) -> str:
    facts: Any = client(server.url).info("server")
    name = facts.get("server_name", "redis")
    return f"{name} {facts.get(f'{name}_version')}"


@pytest.mark.timeout(600)  # of which a failure takes most, until it is the shortest one
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_model_does_what_a_real_server_does(
    kind: Literal["valkey", "redis"], tmp_path: Path, record_property: Record
):
    hold_together(kind, tmp_path, 32, record_property)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_model_does_what_a_real_server_does_over_many_more_examples(
    kind: Literal["valkey", "redis"], tmp_path: Path, record_property: Record
):
    hold_together(kind, tmp_path, 1_500, record_property, random.randrange(2**32))


def scripts_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Every script in a package with the file it stands in: a .lua file, or a text in a .py file."""
    for path in folder.rglob("*.lua"):
        yield path.name, path.read_text("utf-8")
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and "redis.call(" in str(node.value):
                yield path.name, str(node.value)


def test_every_script_has_a_twin():
    """Whose lines are all compared with a real server, or else the comparison fails: so none is forgotten."""
    folders = [Path(package.__file__ or "").parent for package in (poller, consumers)]
    scripts = [script for folder in folders for script in scripts_of(folder)]

    assert [name for name, text in scripts if text not in BY_TEXT] == [], "write them into tests/model_scripts.py"
    assert len(scripts) == len(BY_TEXT)


def test_a_line_of_a_twin_that_nobody_runs_is_named():
    reach, server = Reach(), ModelServer(lambda: 0)
    let_go = reach.watched(BY_TEXT[LET_GO])
    let_go(server, ["nothing"], ["mine"])
    server.hset("hash", "x", "y")
    with pytest.raises(ResponseError):
        let_go(server, ["hash"], ["mine"])

    assert [place.partition(" in ")[2] for place in reach.never_run()].count("let_go") == 1
    assert reach.answers == {("let_go", "0"): 1, ("let_go", "WRONGTYPE"): 1}


# --- what needs a clock or trouble, which a real server does not give on demand


def test_a_lease_runs_out_by_the_servers_clock():
    clock = HandClock()
    server = ModelServer(lambda: int(clock.now().timestamp() * 1000))
    one, other = (ModelStore(ModelRedis(server), "test", nonce) for nonce in ("one", "other"))

    assert run(one.take_lead((INDICES,), NOW_MS)) == 0
    clock.advance(LEASE_S / 2)
    assert run(other.take_lead((INDICES,), NOW_MS)) == LEASE_S / 2
    clock.advance(LEASE_S / 2)
    assert run(other.take_lead((INDICES,), NOW_MS)) == 0
    assert not run(one.renew_lead())


def test_entry_ids_grow_even_where_the_clock_does_not():
    stream = Stream()
    for now_ms in (5, 5, 4, 6):
        stream.add(now_ms, {})

    assert stream.ids == [(5, 0), (5, 1), (5, 2), (6, 0)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_lost_request_or_reply_is_repeated_and_publishes_once(moment: str):
    async def commit_in_trouble() -> tuple[int, int]:
        clock = VirtualClock(MONDAY_NOON)
        server, left = ModelServer(lambda: int(clock.now().timestamp() * 1000)), [2]

        def trouble(told: str) -> None:
            if told == f"{moment} commit" and left[0]:
                left[0] -= 1
                raise RedisConnectionError("lost")

        store = ModelStore(ModelRedis(server, trouble), "test", "one")
        await store.take_lead((INDICES,), NOW_MS)
        commit = made(0, store.epochs["ka20003"], 0, rows=["indices/001"], gone=[], clear=False, mark="1")
        return await store.commit(commit, {}), len(server.entries(CHANGES))

    assert run(commit_in_trouble()) == (1, 1)


def test_a_server_that_stays_away_is_a_store_that_is_down():
    def trouble(moment: str) -> None:
        raise RedisConnectionError(moment)

    store = ModelStore(ModelRedis(ModelServer(lambda: 0), trouble), "test", "one")
    with pytest.raises(StoreDown, match="before hmget"):
        run(store.take_lead((INDICES,), NOW_MS))


def test_a_reader_waits_in_virtual_time_and_who_came_first_is_served_first():
    async def two_wait_and_one_entry_comes() -> tuple[object, object, float]:
        redis = ModelRedis(ModelServer(lambda: NOW_MS))
        await redis.xgroup_create("s", "g", "0", mkstream=True)
        waiting = [asyncio.create_task(redis.xreadgroup("g", name, {"s": ">"}, block=2_000)) for name in ("a", "b")]
        await asyncio.sleep(1.5)
        await redis.xadd("s", {"x": 1})
        first, other = await asyncio.gather(*waiting)
        return first, other, asyncio.get_running_loop().time()

    assert run(two_wait_and_one_entry_comes()) == ([["s", [(f"{NOW_MS}-0", {"x": "1"})]]], [], 2.0)


def test_a_server_that_starts_again_has_what_was_saved_and_neither_scripts_nor_connections():
    async def saved_and_restored() -> tuple[list[str], object]:
        server, told = ModelServer(lambda: NOW_MS), list[str]()
        redis = ModelRedis(server)
        await redis.xgroup_create("s", "g", "0", mkstream=True)
        await redis.xadd("s", {"x": 1})
        await redis.xreadgroup("g", "a", {"s": ">"})
        saved = server.copy()
        await redis.xack("s", "g", f"{NOW_MS}-0")
        await redis.xadd("s", {"x": 2})
        await redis.xreadgroup("g", "a", {"s": ">"})
        waiting = asyncio.create_task(redis.xreadgroup("g", "b", {"s": ">"}, block=2_000))
        await asyncio.sleep(1)
        server.restore(saved)
        with pytest.raises(RedisConnectionError):
            await waiting
        redis.trouble = told.append
        await redis.register_script(LET_GO)(keys=["lock"], args=["mine"])
        return told, (server.xlen("s"), server.xpending("s", "g")["pending"])

    asked_twice = ["before let_go", "after let_go", "before script_load", "after script_load"]
    assert run(saved_and_restored()) == ([*asked_twice, *asked_twice[:2]], (1, 1))


@pytest.mark.parametrize(("moment", "done"), [("before pipeline", 0), ("before set", 1), ("after set", 2)])
def test_a_pipeline_that_is_no_transaction_may_be_cut_in_two(moment: str, done: int):
    async def cut() -> int:
        def trouble(told: str) -> None:
            if told == moment:
                raise RedisConnectionError("cut")

        redis = ModelRedis(ModelServer(lambda: NOW_MS), trouble)
        pipeline = redis.pipeline(transaction=False)
        pipeline.rpush("list", 1)
        pipeline.set("text", 1)
        pipeline.delete("nothing")
        with pytest.raises(RedisConnectionError):
            await pipeline.execute()
        return len(redis.server.keys)

    assert run(cut()) == done


def test_a_member_of_a_group_works_on_the_model_as_it_is():
    async def reads(handled: list[str]) -> ModelServer:
        redis, stop = ModelRedis(ModelServer(lambda: NOW_MS)), asyncio.Event()

        async def handle(batch: Batch) -> None:
            handled.extend(one.fields["x"] for one in batch)
            if batch[0].fields["x"] == "bad":
                raise ValueError("bad")

        member = Membership(cast("Redis", redis), "test", "ka20003", "g", "one")
        working = asyncio.create_task(member.consume(handle, stop))
        for text in ("1", "bad", "2"):
            await redis.xadd(CHANGES, {"x": text})
            await asyncio.sleep(5)
        stop.set()
        await working
        return redis.server

    handled: list[str] = []
    server = run(reads(handled))

    assert handled == ["1", *["bad"] * MAX_HANDED_OUT, "2"]
    assert [fields["x"] for fields in server.entries("test:{ka20003}:parked:g")] == ["bad"]
    assert server.xpending(CHANGES, "g")["pending"] == 0


def test_an_entry_of_the_model_is_an_entry_of_the_contract():
    async def one_entry() -> ModelServer:
        server = ModelServer(lambda: NOW_MS)
        store = ModelStore(ModelRedis(server), "test", "one")
        await store.take_lead((INDICES,), NOW_MS)
        commit = made(0, NOW_MS, 0, rows=["indices/001"], gone=[], clear=False, mark="1")
        await store.commit(commit, {})
        return server

    (fields,) = run(one_entry()).entries(CHANGES)
    entry = decode(fields)

    assert (entry.seq, entry.id) == (1, f"ka20003?inds_cd=001#{NOW_MS}.1.1")
    assert re.fullmatch(r"2026-11-23T12:00:00\+09:00", entry.time.isoformat())
    assert issubclass(Stale, StoreError)
