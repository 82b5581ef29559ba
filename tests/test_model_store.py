"""The model server does what a real one does: the same operations on both, and everything compared after each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis.exceptions import ConnectionError as RedisConnectionError

from poller.auth import LET_GO, SWAP
from poller.catalogue import tr_named
from poller.commit import Commit, Draft, Known, state_of
from poller.contract import decode, dumps
from poller.store import LEASE_S, Fenced, Stale, Store, StoreDown, StoreError, UnfitStore, connect
from tests.conftest import MONDAY_NOON, HandClock
from tests.model_store import Group, ModelRedis, ModelServer, ModelStore, Stream
from tests.servers import RealServer
from tests.virtual import VirtualClock, run

INDICES = tr_named("ka20003")
TARGETS = [INDICES.target({"inds_cd": code}) for code in ("001", "101")]
FIELDS = [field.name for table, fields in TARGETS[0].tables() for field in fields]
CHANGES = "test:{ka20003}:changes"
NOW_MS = 1_795_330_635_454

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


async def outcome(call: Awaitable[Any]) -> object:
    """What an operation says, or how it fails."""
    try:
        return await call
    except (Fenced, Stale, UnfitStore) as error:
        return type(error).__name__, str(error), vars(error)


class BothServers(RuleBasedStateMachine):
    """Two pollers on a real server, and their twins on a model server."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.real: Any = self.ask(self._connected(url))
        self.clock_ms = 0
        self.model = ModelServer(lambda: self.clock_ms)
        self.model.run_id = self.ask(self.real.info("server"))["run_id"]
        self.twins: list[tuple[Store, Store]] = []
        for nonce in ("one", "other"):
            store = Store(self.real, "test")
            store.nonce = nonce
            self.twins.append((store, ModelStore(ModelRedis(self.model), "test", nonce)))
        self.last: list[Commit | None] = [None, None]
        self.groups = 0

    async def _connected(self, url: str) -> object:
        client = connect(url)
        await client.flushall()
        return client

    def ask(self, call: Awaitable[Any]) -> Any:
        async def await_it() -> Any:
            return await call

        return self.runner.run(await_it())

    def both(self, poller: int, call: Callable[[Store], Awaitable[Any]]) -> Any:
        """The same on both servers, with the same result; the model's clock shows the real server's time."""
        real_store, model_store = self.twins[poller]
        real = self.ask(outcome(call(real_store)))
        self.clock_ms = self.ask(self._moment_ms())
        assert real == self.ask(outcome(call(model_store)))
        return real

    async def _moment_ms(self) -> int:
        """When the newest entry was added, or now, so that ids are equal and leases live as long."""
        seconds, micros = await self.real.time()
        newest = await self.real.xrevrange(CHANGES, count=1) if await self.real.type(CHANGES) == "stream" else []
        stream = self.model.keys.get(CHANGES)
        seen = stream.last if isinstance(stream, Stream) else (0, 0)
        added = tuple(map(int, newest[0][0].split("-"))) if newest else seen
        return int(added[0] if added > seen else seconds * 1000 + micros // 1000)

    @initialize()
    def somebody_leads(self) -> None:
        self.take_the_lead(0, 0)

    @property
    def leader(self) -> int:
        """Whose fence the TR holds, as far as it is one of ours."""
        fence = self.model.hash("test:{ka20003}:meta").get("fence")
        return int(str(self.twins[1][1].lead) == fence)

    @rule(poller=who, later_ms=st.integers(-5_000, 5_000))
    def take_the_lead(self, poller: int, later_ms: int) -> None:
        async def leads(store: Store) -> bool:
            return await store.take_lead((INDICES,), NOW_MS + later_ms) == 0

        self.both(poller, leads)

    @rule(poller=who)
    def renew_the_lead(self, poller: int) -> None:
        self.both(poller, lambda store: store.renew_lead())

    @rule(poller=who)
    def give_up_the_lead(self, poller: int) -> None:
        self.both(poller, lambda store: store.give_up_lead())

    @rule()
    def the_lease_runs_out(self) -> None:
        """So that the test need not wait for it; that it does so by itself in the model is another test."""
        self.ask(self.real.delete("test:leader"))
        self.model.delete("test:leader")

    @rule(poller=who, later_ms=st.integers(-5_000, 5_000))
    def begin_an_epoch(self, poller: int, later_ms: int) -> None:
        self.both(poller, lambda store: store.begin_epoch(INDICES, NOW_MS + later_ms))

    @rule(poller=who, place=st.integers(0, 9))
    def a_newer_program_leads(self, poller: int, place: int) -> None:
        """Rarely, because nobody leads after it."""
        if place < 9:
            return
        newer = replace(INDICES, revision=9)
        self.both(poller, lambda store: store.begin_epoch(newer, NOW_MS))

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
        epoch = self.twins[poller][0].epochs.get("ka20003", 0) + epoch_off
        commit = made(sector, epoch, before, rows=rows, gone=gone, clear=clear, mark=mark)
        self.last[poller] = commit
        self.both(poller, lambda store: store.commit(commit, {"last_error": mark}))

    @rule(
        sector=which,
        behind=st.sampled_from([0, 0, 1]),
        rows=row_names.filter(bool),
        mark=st.sampled_from("123"),
        clear=st.booleans(),
    )
    def commit_as_leader(self, sector: int, behind: int, rows: list[str], mark: str, clear: bool) -> None:
        """So that most examples have entries; `behind` is another commit of a version that is there."""
        if self.model.hash("test:{ka20003}:meta").get("fence") != str(self.twins[self.leader][1].lead):
            self.take_the_lead(0, 0)
        self.commit(follows=0, sector=sector, behind=behind, epoch_off=0, rows=rows, gone=[], clear=clear, mark=mark)

    @rule()
    def commit_again(self) -> None:
        """As after a lost reply."""
        poller = self.leader
        commit = self.last[poller]
        if commit is not None:
            self.both(poller, lambda store: store.commit(commit, {}))

    @rule(follows=st.sampled_from([0, 0, 1]), sector=which, text=st.sampled_from(["", "slow"]))
    def note(self, follows: int, sector: int, text: str) -> None:
        self.both(self.leader ^ follows, lambda store: store.note(TARGETS[sector], {"last_error": text, "gap": "x"}))

    @rule(poller=who, sector=which)
    def load(self, poller: int, sector: int) -> None:
        self.both(poller, lambda store: store.load(TARGETS[sector]))

    @rule(given_out=st.integers(0, 4), acknowledged=st.sets(st.integers(0, 3)))
    def a_group_reads(self, given_out: int, acknowledged: set[int]) -> None:
        """What it was not given and what it has not acknowledged outlives the trimming that follows."""
        stream = self.model.keys.get(CHANGES)
        if not isinstance(stream, Stream):
            return
        self.groups += 1
        given = stream.ids[:given_out]
        done = [entry_id for place, entry_id in enumerate(given) if place in acknowledged]
        pending = [entry_id for entry_id in given if entry_id not in done]
        stream.groups[str(self.groups)] = Group(given[-1] if given else (0, 0), pending)
        self.ask(self.real.xgroup_create(CHANGES, str(self.groups), "0"))
        if given:
            self.ask(self.real.xreadgroup(str(self.groups), "c", {CHANGES: ">"}, count=len(given)))
        if done:
            self.ask(self.real.xack(CHANGES, str(self.groups), *(f"{ms}-{number}" for ms, number in done)))
        self.trim(0, 1.0)

    @rule()
    def the_groups_are_done(self) -> None:
        stream = self.model.keys.get(CHANGES)
        for name in stream.groups if isinstance(stream, Stream) else ():
            self.ask(self.real.xgroup_destroy(CHANGES, name))
        if isinstance(stream, Stream):
            stream.groups.clear()

    @rule(place=st.integers(0, 9), share=st.sampled_from([1.0, 1.0, 0.5]))
    def trim(self, place: int, share: float) -> None:
        stream = self.model.keys.get(CHANGES)
        ids = stream.ids if isinstance(stream, Stream) else []
        keep_from_ms = ids[-1 - min(place, len(ids) - 1)][0] + 1 if ids else NOW_MS

        async def removed(store: Store) -> int:
            return (await store.trim(INDICES, keep_from_ms, share))[0]

        self.both(0, removed)

    @rule(script=st.sampled_from([LET_GO, SWAP]), failed=st.sampled_from(["", "1", "2"]), token=st.sampled_from("12"))
    def a_token_is_stored_or_its_lock_let_go(self, script: str, failed: str, token: str) -> None:
        """Here by its script alone: the rest of a token's life needs a broker."""
        key, arguments = "test:token:x", [failed, token, "ends", "", "600"]
        if script == LET_GO:
            key, arguments = "test:token:x:lock", [token]
            self.model.set(key, failed, px=600_000)
            self.ask(self.real.set(key, failed, px=600_000))
        twins = (self.real, ModelRedis(self.model))
        one, other = (self.ask(client.register_script(script)(keys=[key], args=arguments)) for client in twins)
        assert one == other

    @rule(part=st.sampled_from(["meta", "changes", "snapshot:inds_cd=001", "state:inds_cd=001"]), poller=who)
    def a_key_of_another_type_is_in_the_way(self, part: str, poller: int) -> None:
        key = f"test:{{ka20003}}:{part}"
        if key in self.model.keys:
            return
        self.ask(self.real.set(key, "not ours"))
        self.model.set(key, "not ours")
        commit = made(0, 1, 0, rows=["indices/001"], gone=[], clear=False, mark="1")
        self.both(poller, lambda store: store.commit(commit, {}))
        self.both(poller, lambda store: store.begin_epoch(INDICES, NOW_MS))
        self.ask(self.real.delete(key))
        self.model.delete(key)

    @invariant()
    def both_hold_the_same(self) -> None:
        assert self.ask(self._stored()) == {key: _plain(value) for key, value in self.model.keys.items()}

    async def _stored(self) -> dict[str, object]:
        readers = {"hash": self.real.hgetall, "stream": self.real.xrange, "string": self.real.get}
        keys = await self.real.keys("test:*")
        return {key: await readers[await self.real.type(key)](key) for key in keys}

    def teardown(self) -> None:
        self.ask(self.real.aclose())
        self.runner.close()


def _plain(value: object) -> object:
    """A value as a client reads it."""
    if isinstance(value, Stream):
        ids = [f"{ms}-{number}" for ms, number in value.ids]
        return list(zip(ids, value.entries, strict=True))
    return value


def hold_together(kind: Literal["valkey", "redis"], directory: Path, examples: int, say: Callable[[str], None]) -> None:
    """Run the machine on a server of that kind."""
    with RealServer(directory, kind=kind) as server:
        say(f"the model was held against {server.binary}")
        run_state_machine_as_test(
            cast("type[BothServers]", lambda: BothServers(server.url)),
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                derandomize=examples < 1_000,
                database=None,
            ),
        )


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_model_does_what_a_real_server_does(
    kind: Literal["valkey", "redis"], tmp_path: Path, record_property: Callable[[str, object], None]
):
    hold_together(kind, tmp_path, 100, lambda text: record_property("engine", text))


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_model_does_what_a_real_server_does_over_thousands_of_runs(
    kind: Literal["valkey", "redis"], tmp_path: Path, record_property: Callable[[str, object], None]
):
    hold_together(kind, tmp_path, 3_000, lambda text: record_property("engine", text))


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
