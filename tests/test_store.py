"""The one commit, leadership and trimming, on a real server: what Lua does there, no double knows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from poller.catalogue import tr_named
from poller.commit import Commit, Draft, Known, state_of
from poller.contract import decode
from poller.store import (
    Fenced,
    Lead,
    Restarted,
    Stale,
    Store,
    StoreDown,
    StoreFull,
    UnfitStore,
    connect,
    died_here,
    this_machine,
)
from tests.conftest import MONDAY_NOON
from tests.servers import RealServer, free_port

INDICES = tr_named("ka20003")
TARGET = INDICES.target({"inds_cd": "001"})
KEYS = {part: f"test:{{ka20003}}:{part}" for part in ("meta", "changes")}
SNAPSHOT, STATE = "test:{ka20003}:snapshot:inds_cd=001", "test:{ka20003}:state:inds_cd=001"
NOW_MS = 1_795_330_635_454


@pytest.fixture
async def store(redis: Redis) -> Store:
    """A store that leads."""
    made = Store(redis, "test")
    assert await made.take_lead((INDICES,), NOW_MS) == 0
    return made


def commit(epoch: int, version: int = 1, *, rows: dict[str, str] | None = None, **other: Any) -> Commit:
    """A commit of one row from the version before."""
    rows = {"indices/001": f'{{"level":{version}}}'} if rows is None else rows
    known = Known(version=version, revision=1, digest=f"digest {version}", last_good=MONDAY_NOON)
    drafts = tuple(Draft("sectorwire.row.changed", name, '{"tr":"ka20003"}') for name in rows)
    made = Commit(
        target=TARGET,
        epoch=epoch,
        version_before=version - 1,
        version=version,
        drafts=drafts,
        clear=False,
        set_rows=rows,
        delete_rows=(),
        state=state_of(known),
        known=known,
    )
    return replace(made, **other)


async def everything(redis: Redis) -> dict[str, Any]:
    """All that is stored, to see that nothing was touched."""
    client: Any = redis
    readers: dict[str, Callable[[str], Any]] = {"hash": client.hgetall, "stream": client.xrange, "string": client.get}
    return {key: await readers[await client.type(key)](key) for key in sorted(await client.keys("test:{*"))}


async def test_a_commit_writes_rows_entries_seq_and_state_together(redis: Redis, store: Store):
    seq = await store.commit(commit(store.epochs["ka20003"]), {"last_error": ""})

    stored = await everything(redis)
    ((_, fields),) = stored[KEYS["changes"]]
    entry = decode(fields)
    assert (seq, entry.seq, entry.id) == (1, 1, f"ka20003?inds_cd=001#{store.epochs['ka20003']}.1.1")
    assert stored[SNAPSHOT] == {"indices/001": '{"level":1}'}
    assert (stored[STATE]["version"], stored[STATE]["last_error"]) == ("1", "")
    assert stored[KEYS["meta"]]["seq"] == "1"


async def test_the_same_commit_again_publishes_nothing(redis: Redis, store: Store):
    """A reply may be lost after the script ran; asking again must not double the entries."""
    first = commit(store.epochs["ka20003"])
    await store.commit(first, {})
    before = await everything(redis)

    assert await store.commit(first, {}) == 1
    assert await everything(redis) == before


async def test_another_commit_of_the_same_version_is_stale(redis: Redis, store: Store):
    epoch = store.epochs["ka20003"]
    await store.commit(commit(epoch), {})
    other = commit(epoch)
    before = await everything(redis)
    with pytest.raises(Stale) as error:
        await store.commit(replace(other, known=replace(other.known, digest="another answer")), {})

    assert error.value.stored == 1
    assert await everything(redis) == before


async def test_a_leader_that_was_followed_is_refused(redis: Redis, store: Store):
    """It may wake up after a pause and still believe that it leads."""
    epoch = store.epochs["ka20003"]
    follower = Store(redis, "test")
    await redis.delete("test:leader")
    assert await follower.take_lead((INDICES,), NOW_MS) == 0
    before = await everything(redis)
    with pytest.raises(Fenced):
        await store.commit(commit(epoch), {})
    with pytest.raises(Fenced):
        await store.note(TARGET, {"last_error": "x"})

    assert await everything(redis) == before
    assert not await store.renew_lead()


async def test_an_epoch_of_the_same_leader_that_has_passed_is_refused(store: Store):
    old = store.epochs["ka20003"]
    await store.begin_epoch(INDICES, NOW_MS)
    with pytest.raises(Fenced) as error:
        await store.commit(commit(old), {})

    assert error.value.epoch == old


@pytest.mark.parametrize("key", [KEYS["meta"], KEYS["changes"], SNAPSHOT, STATE])
async def test_a_key_of_another_type_stops_the_commit_before_its_first_write(redis: Redis, store: Store, key: str):
    """Redis does not roll back: a wrong type found half-way would leave half a commit."""
    await redis.delete(key)
    await redis.set(key, "not ours")
    before = await everything(redis)
    with pytest.raises(UnfitStore, match=re.escape(f"the key {key} holds what is not ours")):
        await store.commit(commit(store.epochs["ka20003"]), {})

    assert await everything(redis) == before


@pytest.mark.parametrize("key", [SNAPSHOT, STATE])
async def test_a_key_of_another_type_is_named_where_it_is_read(redis: Redis, store: Store, key: str):
    await redis.set(key, "not ours")
    with pytest.raises(UnfitStore, match=re.escape(f"the key {key} holds what is not ours")):
        await store.load(TARGET)


async def test_a_full_server_stops_the_commit_before_its_first_write(redis: Redis, store: Store):
    before = await everything(redis)
    await redis.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreFull):
            await store.commit(commit(store.epochs["ka20003"]), {})
    finally:
        await redis.config_set("maxmemory", "0")

    assert await everything(redis) == before


async def test_a_reset_empties_the_snapshot_in_the_same_commit(redis: Redis, store: Store):
    epoch = store.epochs["ka20003"]
    await store.commit(commit(epoch, rows={"indices/001": "1", "indices/002": "2"}), {})
    await store.commit(commit(epoch, 2, rows={"indices/003": "3"}, clear=True), {})

    assert await redis.hgetall(SNAPSHOT) == {"indices/003": "3"}


async def test_five_thousand_changes_are_one_commit(redis: Redis, store: Store):
    """More values than Lua's stack holds, so the script works in pieces."""
    rows = {f"stocks/{number:06}": str(number) for number in range(5_000)}

    assert await store.commit(commit(store.epochs["ka20003"], rows=rows), {}) == 5_000
    gone = commit(store.epochs["ka20003"], 2, rows={}, delete_rows=tuple(rows))
    await store.commit(gone, {})
    assert await redis.exists(SNAPSHOT) == 0


async def test_a_server_that_forgot_its_scripts_is_told_again(redis: Redis, store: Store):
    """The script cache is volatile, and empty on a promoted replica."""
    await redis.script_flush()

    assert await store.commit(commit(store.epochs["ka20003"]), {}) == 1


async def test_epochs_only_grow_even_when_the_clock_does_not(redis: Redis, store: Store):
    first = store.epochs["ka20003"]

    assert first == NOW_MS
    assert await store.begin_epoch(INDICES, NOW_MS - 60_000) == first + 1


async def test_an_epoch_that_was_lost_with_the_servers_tail_never_comes_again(redis: Redis, store: Store):
    """The server forgot the reign, and the clock stepped back as well: only this process still knows the number."""
    lost = await store.begin_epoch(INDICES, NOW_MS + 10)
    await redis.hset(KEYS["meta"], "epoch", str(NOW_MS))

    assert await store.begin_epoch(INDICES, NOW_MS - 5_000) == lost + 1


async def test_a_standby_knows_the_epochs_it_saw_another_lead(redis: Redis, store: Store):
    standby = Store(redis, "test")
    await store.begin_epoch(INDICES, NOW_MS + 10)
    await standby.take_lead((INDICES,), NOW_MS)
    await redis.delete(KEYS["meta"], "test:leader")

    assert await standby.take_lead((INDICES,), NOW_MS - 5_000) == 0
    assert standby.epochs["ka20003"] == NOW_MS + 11


async def test_a_server_that_was_started_again_takes_nothing_more_of_the_old_epoch(tmp_path: Path):
    """It may have lost an entry that was read, though nobody was told that it is written.

    What takes that entry's place has the version and the `seq` it had, so it needs another epoch.
    """
    with RealServer(tmp_path) as server:
        async with connect(server.url) as redis:
            store = Store(redis, "test")
            await store.take_lead((INDICES,), NOW_MS)
            await store.commit(commit(NOW_MS), {})
            server.stop()
            server.start()

            with pytest.raises(Restarted):
                await store.commit(commit(NOW_MS, 2), {})
            epoch = await store.begin_epoch(INDICES, NOW_MS)
            assert await store.commit(commit(epoch, 2), {}) == 2


async def test_who_may_not_ask_a_server_who_it_is_commits_all_the_same(tmp_path: Path):
    with RealServer(tmp_path) as server:
        async with connect(server.url) as redis:
            await redis.acl_setuser("default", commands=["+@all", "-info"])
            store = Store(redis, "test")
            await store.take_lead((INDICES,), NOW_MS)

            assert await store.commit(commit(NOW_MS), {}) == 1


async def test_an_older_poller_does_not_lead(redis: Redis, store: Store):
    """It would take a newer program's rows for its own; the lead stays free for whoever can read them."""
    newer = replace(INDICES, revision=INDICES.revision + 1)
    await store.begin_epoch(newer, NOW_MS)
    await store.give_up_lead()

    with pytest.raises(UnfitStore, match="revision 2 of its declaration, this program knows 1: upgrade sectorwire"):
        await Store(redis, "test").take_lead((INDICES,), NOW_MS)
    assert await redis.get("test:leader") is None
    with pytest.raises(UnfitStore, match="upgrade sectorwire"):
        await store.begin_epoch(INDICES, NOW_MS)


async def test_a_newer_poller_leads_and_is_remembered(redis: Redis, store: Store):
    await store.give_up_lead()
    newer = replace(INDICES, revision=INDICES.revision + 1)

    assert await Store(redis, "test").take_lead((newer,), NOW_MS) == 0
    assert await redis.hget(KEYS["meta"], "revision") == "2"


async def test_only_one_poller_leads_and_the_next_has_a_higher_token(redis: Redis, store: Store):
    follower = Store(redis, "test")
    wait_s = await follower.take_lead((INDICES,), NOW_MS)
    await store.give_up_lead()

    assert 0 < wait_s <= 10
    assert await follower.take_lead((INDICES,), NOW_MS) == 0
    assert follower.lead is not None
    assert follower.lead.token == 2


async def test_a_leader_killed_on_this_machine_is_followed_at_once(redis: Redis):
    """Its lease would last ten seconds more, and nobody polls meanwhile."""
    gone = f"7:{this_machine()}.{2**22 + 1}.abcdef01"
    await redis.set("test:leader", gone, px=10_000)

    assert await Store(redis, "test").take_lead((INDICES,), NOW_MS) == 0


def test_a_holder_is_dead_only_if_it_was_here():
    here, parent = this_machine(), os.getppid()

    assert died_here(f"7:{here}.{2**22 + 1}.ab")
    assert died_here(f"7:{here}.{os.getpid()}.ab")  # a predecessor with our own process id, as in containers
    assert not died_here(f"7:{here}.{parent}.ab")
    assert not died_here("7:elsewhere.example.1.ab")
    assert not died_here("7:nonsense")


async def test_giving_up_the_lead_leaves_another_leader_alone(redis: Redis, store: Store):
    await redis.set("test:leader", "9:another")
    await store.give_up_lead()

    assert await redis.get("test:leader") == "9:another"


async def test_a_server_that_is_gone_is_a_store_that_is_down():
    client = connect(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreDown):
        await Store(client, "test").load(TARGET)
    await client.aclose()


async def test_a_snapshot_of_a_newer_program_is_not_read(redis: Redis, store: Store):
    state: dict[Any, Any] = {"version": "1", "revision": "99"}
    await redis.hset(STATE, mapping=state)
    with pytest.raises(UnfitStore, match="upgrade"):
        await store.load(TARGET)


def test_a_lead_names_its_token_first():
    assert str(Lead(3, "host.1.ab")) == "3:host.1.ab"


async def test_a_replica_that_took_over_and_would_evict_is_refused(tmp_path: Path):
    """What the start found out was another server's."""
    with RealServer(tmp_path, options=["--maxmemory-policy", "allkeys-lru"]) as server:
        client = connect(server.url)
        follower = Store(client, "test")
        with pytest.raises(UnfitStore, match=r"maxmemory-policy allkeys-lru\): set it to noeviction"):
            await follower.take_lead((INDICES,), 1)
        await client.config_set("maxmemory-policy", "noeviction")

        assert await follower.take_lead((INDICES,), 1) == 0
        await client.aclose()


class TestTrimming:
    """Below what any group needs, within retention, and further only at the ceiling."""

    @pytest.fixture
    async def ids(self, redis: Redis) -> list[str]:
        """Ten entries, a second apart, from second 1 to 10."""
        return [str(await redis.xadd(KEYS["changes"], {"n": n}, id=f"{n}000-0")) for n in range(1, 11)]

    async def left(self, redis: Redis) -> list[int]:
        found: Any = await redis.xrange(KEYS["changes"])
        return [int(entry_id.partition("000-")[0]) for entry_id, _ in found]

    async def test_without_groups_retention_decides(self, redis: Redis, store: Store, ids: list[str]):
        removed, size = await store.trim(INDICES, 6_000)

        assert (await self.left(redis), removed) == ([6, 7, 8, 9, 10], 5)
        assert size > 0

    async def test_what_a_group_was_not_given_stays(self, redis: Redis, store: Store, ids: list[str]):
        await redis.xgroup_create(KEYS["changes"], "slow", ids[2])
        await store.trim(INDICES, 100_000)

        assert await self.left(redis) == [3, 4, 5, 6, 7, 8, 9, 10]

    async def test_what_a_group_was_given_and_has_not_acknowledged_stays(
        self, redis: Redis, store: Store, ids: list[str]
    ):
        client: Any = redis
        await client.xgroup_create(KEYS["changes"], "busy", "0")
        await client.xreadgroup("busy", "one", {KEYS["changes"]: ">"}, count=10)
        await client.xack(KEYS["changes"], "busy", *ids[:4], *ids[5:])
        await store.trim(INDICES, 100_000)

        assert await self.left(redis) == [5, 6, 7, 8, 9, 10]

    async def test_the_slowest_group_decides(self, redis: Redis, store: Store, ids: list[str]):
        await redis.xgroup_create(KEYS["changes"], "fast", ids[9])
        await redis.xgroup_create(KEYS["changes"], "slow", ids[6])
        await store.trim(INDICES, 100_000)

        assert (await self.left(redis))[0] == 7

    async def test_at_the_ceiling_retention_shrinks_but_groups_do_not(self, redis: Redis, store: Store, ids: list[str]):
        await store.trim(INDICES, 0, share=0.5)
        half = await self.left(redis)
        await redis.xgroup_create(KEYS["changes"], "slow", ids[half[0]])
        await store.trim(INDICES, 0, share=0.1)

        assert half[0] in {5, 6}
        assert (await self.left(redis))[0] == half[0] + 1

    async def test_where_all_ids_share_a_millisecond_their_numbers_decide(self, redis: Redis, store: Store):
        """The server's clock was ahead and was set right: until it is there again, all ids have its latest."""
        ahead = "9000000000000"
        await redis.xadd(KEYS["changes"], {"n": 0}, id=f"{ahead}-1")
        for n in range(1, 100):
            await redis.xadd(KEYS["changes"], {"n": n})
        removed, _ = await store.trim(INDICES, 0, share=0.25)
        left: Any = await redis.xrange(KEYS["changes"])

        assert (removed, left[0][0]) == (74, f"{ahead}-75")

    async def test_a_stream_that_is_not_there_needs_nothing(self, store: Store):
        assert await store.trim(INDICES, 0) == (0, 0)


async def test_the_same_holds_on_a_server_with_a_socket(tmp_path: Any):
    """The embedded server listens on one, and a URL with a socket takes another way through redis-py."""
    with RealServer(tmp_path, unix_socket=True) as server:
        client = connect(server.url)
        store = Store(client, "test")
        assert await store.take_lead((INDICES,), int(datetime.now(UTC).timestamp() * 1000)) == 0
        assert await store.commit(commit(store.epochs["ka20003"]), {}) == 1
        await client.aclose()
