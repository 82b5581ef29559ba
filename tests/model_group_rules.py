"""What consumers do to a stream and its groups, as rules of a state machine; `test_model_store` runs it.

They use the product's scripts and pipelines as they are, and its commands with arguments that the product may come to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from redis.exceptions import ResponseError

from consumers import group as consumers_group
from tests.model_groups import MAX_NUMBER, Group, parsed, shown
from tests.model_parties import (
    ALERTING,
    ALERTS,
    CHANGES,
    FULL,
    GROUPS,
    PARKED,
    QUARTER_MS,
    REPLICA,
    Operation,
    Parties,
    Party,
)

SCRIPTS = Path(consumers_group.__file__).parent
ACTIVE, FAILING, POSITION, REDRIVE = (
    f"test:{{ka20003}}:{part}:one" for part in ("active", "failing", "position", "redrive")
)
LIFE_MS = 600_000
IDLE_MS = 2 * QUARTER_MS + QUARTER_MS // 2

groups = st.sampled_from(GROUPS)
consumers = st.sampled_from("aaabc")
counts = st.integers(1, 3)
places = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 5, 7]), min_size=1, max_size=3, unique=True)
idle_times = st.sampled_from([0, 0, 0, QUARTER_MS, 2 * IDLE_MS])


def script(name: str, keys: list[str], args: list[Any]) -> Operation:
    """A script of the consumers, as it stands in its file."""
    text = (SCRIPTS / f"{name}.lua").read_text("utf-8")
    return lambda party: party.redis.register_script(text)(keys=keys, args=args)


async def nothing(one: Party) -> None:
    """Leave fakeredis out of it."""


class GroupRules(Parties):
    """Two groups with up to three consumers each, on the stream that a poller writes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.without = 0
        """For how many more rules a group that was destroyed stays away."""

    @initialize()
    def groups_read_from_the_start(self) -> None:
        self.entries_come(2)
        for group in GROUPS:
            self.there(group)

    def there(self, group: str) -> Group:
        """The group as the model has it, made again where it has been away for a while."""
        if group not in self.model.stream(CHANGES).groups:
            self.without -= 1
            if self.without < 0:
                self.a_group_is_made(group, "0")
        return self.model.stream(CHANGES).groups.get(group, Group())

    def ids(self, chosen: list[int], group: str) -> list[str]:
        """What is pending in the group, whatever else is in the stream or in the other group, and what never was."""
        if not self.there(group).pending and 0 in chosen and self.model.refuses is None:
            self.new_ones_are_read(group, "b", 2)
        known = list(self.there(group).pending)[:4]
        stream = self.model.stream(CHANGES)
        others = [entry_id for one in stream.groups.values() for entry_id in one.pending]
        known += [entry_id for entry_id in [*stream.ids, *others, (1, 1)] if entry_id not in known]
        return list(dict.fromkeys(shown(known[place % len(known)]) for place in chosen))

    @rule(group=groups, at=st.sampled_from(["0", "0", "0", "$"]), mkstream=st.sampled_from([True, True, True, False]))
    def a_group_is_made(self, group: str, at: str, mkstream: bool = True) -> None:
        self.same(lambda one: one.redis.xgroup_create(CHANGES, group, at, mkstream=mkstream))

    @rule(group=groups, how=st.sampled_from(["group", "group", "stream", "none", "none"]))
    def a_group_is_destroyed(self, group: str, how: str) -> None:
        """And the rules find it missing for a while."""
        self.without = 3
        if how == "group":
            self.same(lambda one: one.redis.xgroup_destroy(CHANGES, group))
        elif how == "stream":
            self.same(lambda one: one.redis.delete(CHANGES))
            self.the_rules_decide(group, 0, None, "x", tick=True, series=["x"], gone=[], decided=1)

    @rule(number=counts)
    def entries_come(self, number: int) -> None:
        for _ in range(number):
            self.same(lambda one: one.redis.xadd(CHANGES, {"id": "x", "seq": "7"}))

    @rule(group=groups, consumer=consumers, count=counts)
    def new_ones_are_read(self, group: str, consumer: str, count: int) -> None:
        """Mostly there are some."""
        if self.there(group).last_delivered == self.model.stream(CHANGES).last and count < 3:
            self.entries_come(count)
        self.same(lambda one: one.redis.xreadgroup(group, consumer, {CHANGES: ">"}, count=count))

    @rule(group=groups, consumer=consumers, count=counts, place=st.sampled_from([None, None, 0, 1, 2]))
    def old_ones_are_read_again(self, group: str, consumer: str, count: int, place: int | None) -> None:
        stream = self.model.stream(CHANGES)
        if any(stream.find(entry_id) is None for entry_id, _ in self.there(group).owned_by(consumer)):
            self.fake = None
        after = "0" if place is None else self.ids([place], group)[0]
        self.same(lambda one: one.redis.xreadgroup(group, consumer, {CHANGES: after}, count=count))

    def done_with(self, group: str, ids: list[str], other: str = "") -> list[Any]:
        """What done.lua is given: in order, and with the ids that the entries have of themselves, or others."""
        ordered = sorted(ids, key=parsed)
        own = [(self.model.stream(CHANGES).find(parsed(one)) or {}).get("id", "") for one in ordered]
        return [group, len(ordered), *ordered, *(name + other for name in own)]

    @rule(group=groups, chosen=places, by_script=st.booleans(), other=st.sampled_from(["", "", "", "?"]))
    def some_are_done(self, group: str, chosen: list[int], by_script: bool, other: str = "") -> None:
        ids = self.ids(chosen, group)
        if by_script:
            self.same(script("done", [CHANGES, POSITION, FAILING], self.done_with(group, ids, other)))
        else:
            self.same(lambda one: one.redis.xack(CHANGES, group, *ids))

    @rule(
        group=groups,
        consumer=st.sampled_from([None, "a", "b", "nobody"]),
        after=st.sampled_from(["-", "-", "id", "(id"]),
        place=st.integers(0, 5),
        count=counts,
        idle_ms=st.sampled_from([None, 0, QUARTER_MS, 2 * IDLE_MS]),
    )
    def somebody_looks_at_what_is_pending(
        self, group: str, consumer: str | None, after: str, place: int, count: int, idle_ms: int | None
    ) -> None:
        first = after.replace("id", self.ids([place], group)[0])
        self.same(lambda one: one.redis.xpending(CHANGES, group))
        self.same(
            lambda one: one.redis.xpending_range(CHANGES, group, first, "+", count, consumer, idle_ms),
            fake=nothing if idle_ms else None,
        )

    @rule(
        group=groups,
        claims=st.lists(
            st.tuples(consumers, idle_times, st.sampled_from([0, IDLE_MS]), st.sampled_from([None, None, 1, 3, 8])),
            min_size=2,
            max_size=2,
        ),
        chosen=places,
        justid=st.booleans(),
        lost=st.sampled_from([False, False, True]),
    )
    def some_are_claimed(
        self,
        group: str,
        claims: list[tuple[str, int, int, int | None]],
        chosen: list[int],
        justid: bool,
        lost: bool = False,
    ) -> None:
        """Twice, so that what the first says of idle times and counts is there for the second."""
        ids = self.ids([0, *chosen], group)
        if lost:
            self.same(lambda one: one.redis.xdel(CHANGES, ids[0]))
        for consumer, least_ms, idle_ms, times in claims:
            more = {"idle": idle_ms, "justid": justid, **({} if times is None else {"retrycount": times})}
            self._claim(group, consumer, least_ms, ids, more)

    def _claim(self, group: str, consumer: str, least_ms: int, ids: list[str], more: dict[str, Any]) -> None:
        async def at_once(one: Party) -> Any:
            """What was idle for long enough, which fakeredis cannot tell, and what is gone."""
            there = {shown(entry_id) for entry_id in self.model.stream(CHANGES).ids}
            taken = [one if isinstance(one, str) else one[0] for one in self.answer]
            taken += [entry_id for entry_id in ids if entry_id not in there]
            return await one.redis.xclaim(CHANGES, group, consumer, 0, taken or ["1-1"], **more)

        failed = group not in self.model.stream(CHANGES).groups or self.model.refuses
        self.same(
            lambda one: one.redis.xclaim(CHANGES, group, consumer, least_ms, ids, **more),
            fake=at_once if least_ms and not failed else None,
            fake_sorts=True,
        )

    @rule(group=groups, chosen=places, most=st.integers(1, 4))
    def hand_outs_are_forgiven(self, group: str, chosen: list[int], most: int) -> None:
        self.same(script("forgive", [CHANGES], [group, most, *self.ids(chosen, group)]))

    @rule(group=groups, place=st.integers(0, 7), again=st.booleans())
    def one_is_parked(self, group: str, place: int, again: bool) -> None:
        (entry_id,) = self.ids([place], group)
        self.same(lambda one: one.redis.hset(FAILING, entry_id, "a stack"))
        self.same(lambda one: one.redis.hget(FAILING, entry_id))
        self.same(script("park", [CHANGES, PARKED[group], FAILING], [group, entry_id, "why", "a stack"]))
        newest = self.same(lambda one: one.redis.xrevrange(PARKED[group], count=1))
        if again:
            parked_at = newest[0][0] if newest else "5-5"
            self.same(script("repark", [PARKED[group]], [parked_at, "why again", "another stack"]))

    @rule(group=groups, asking=consumers, idle_ms=idle_times)
    def the_gone_are_dismissed(self, group: str, asking: str, idle_ms: int) -> None:
        dismissed = script("dismiss", [CHANGES], [group, asking, idle_ms])

        async def dismiss(one: Party) -> Any:
            removed = await dismissed(one)
            return None if self.old else removed  # which has fewer consumers, see `OLD_DIFFERS`

        async def dismiss_the_same(one: Party) -> None:
            """Others are idle to fakeredis, see `FAKE_DIFFERS`."""
            left = self.model.stream(CHANGES).groups.get(group, Group()).consumers
            for there in await one.redis.xinfo_consumers(CHANGES, group):
                if there["name"] not in left:
                    await one.redis.xgroup_delconsumer(CHANGES, group, there["name"])

        self.same(dismiss, fake=dismiss_the_same if idle_ms else None)

    @rule(group=groups, consumer=consumers)
    def a_consumer_is_removed(self, group: str, consumer: str) -> None:
        self.same(lambda one: one.redis.xgroup_delconsumer(CHANGES, group, consumer))

    @rule(
        group=groups,
        chosen=places,
        how=st.sampled_from(["delete", "delete", "length", "from"]),
        length=st.integers(0, 6),
    )
    def entries_are_lost(self, group: str, chosen: list[int], how: str, length: int) -> None:
        ids = self.ids(chosen, group)
        if how == "delete":
            self.same(lambda one: one.redis.xdel(CHANGES, *ids))
        elif how == "length":
            self.same(lambda one: one.redis.xtrim(CHANGES, maxlen=length, approximate=False))
        else:
            self.same(lambda one: one.redis.xtrim(CHANGES, minid=ids[0], approximate=False))

    @rule(
        group=groups,
        first=st.integers(0, 7),
        last=st.integers(0, 7),
        marks=st.sampled_from(["", "(", "(("]),
        count=counts,
    )
    def somebody_reads_a_range(self, group: str, first: int, last: int, marks: str, count: int) -> None:
        low, high = (
            mark + self.ids([place], group)[0]
            for mark, place in zip((marks[:1], marks[1:]), (first, last), strict=True)
        )
        self.same(lambda one: one.redis.xrange(CHANGES, low, high, count=count))
        self.same(lambda one: one.redis.xrevrange(CHANGES, high, low, count=count))
        self.same(lambda one: one.redis.xlen(CHANGES))

    @rule(group=groups, consumer=consumers, chosen=places)
    def a_member_asks_for_the_next(self, group: str, consumer: str, chosen: list[int]) -> None:
        """The pipeline of `Membership._next`, which waits where nothing is new."""
        arguments = self.done_with(group, self.ids(chosen, group))

        def together(one: Party, block: int | None = 1) -> Awaitable[Any]:
            ask = one.redis.pipeline(transaction=False)
            ask.eval((SCRIPTS / "done.lua").read_text("utf-8"), 3, CHANGES, POSITION, FAILING, *arguments)
            ask.xreadgroup(group, consumer, {CHANGES: ">"}, count=2, block=block)
            ask.xpending_range(CHANGES, group, "-", "+", 1)
            ask.exists(REDRIVE)
            answers: Awaitable[Any] = ask.execute(raise_on_error=False)
            return answers

        self.same(together)

    @rule(group=groups, place=st.integers(0, 5), anew=st.sampled_from([False, False, True]))
    def the_archive_compares_its_position(self, group: str, place: int, anew: bool) -> None:
        (position,) = self.ids([place], group)

        def look(one: Party) -> Awaitable[Any]:
            ask = one.redis.pipeline(transaction=True)
            ask.xinfo_stream(CHANGES)
            ask.xrange(CHANGES, position, position)
            answers: Awaitable[Any] = ask.execute(raise_on_error=False)
            return answers

        def begin_anew(one: Party) -> Awaitable[Any]:
            ask = one.redis.pipeline(transaction=True)
            ask.xgroup_destroy(CHANGES, group)
            ask.xgroup_create(CHANGES, group, "0", mkstream=True)
            ask.delete(POSITION)
            answers: Awaitable[Any] = ask.execute()
            return answers

        self.same(look)
        if anew:
            self.same(begin_anew)

    @rule(texts=st.lists(st.sampled_from("123"), min_size=1, max_size=3), count=st.integers(0, 1), first=st.booleans())
    def parked_ones_are_asked_for(self, texts: list[str], count: int, first: bool) -> None:
        self.same(lambda one: (one.redis.lpush if first else one.redis.rpush)(REDRIVE, *texts))
        self.same(lambda one: one.redis.lrem(REDRIVE, count, texts[0]))
        self.same(lambda one: one.redis.lindex(REDRIVE, 0))
        self.same(lambda one: one.redis.lpop(REDRIVE))

    @rule(mine=st.sampled_from("ab"), life_ms=st.sampled_from([0, LIFE_MS, LIFE_MS]), for_ever=st.booleans())
    def a_member_wants_the_lease(self, mine: str, life_ms: int, for_ever: bool = False) -> None:
        async def left_s(one: Party) -> float:
            left_ms: int = await one.redis.pttl(ACTIVE)
            return round(left_ms / LIFE_MS)  # what passed between two servers does not count

        self.same(script("hold", [ACTIVE], [mine, life_ms]))
        self.same(lambda one: one.redis.get(ACTIVE))
        self.same(left_s)
        if for_ever:
            self.same(lambda one: one.redis.set(ACTIVE, mine))
            self.same(left_s)

    @rule(
        group=groups,
        behind=st.sampled_from([0, 0, 0, 1]),
        place=st.sampled_from([None, None, 0, 1, 7, 99, 99]),
        entry=st.sampled_from(["", "x", "y"]),
        tick=st.sampled_from([False, False, True]),
        series=st.lists(st.sampled_from("xyz"), unique=True),
        gone=st.lists(st.sampled_from("xyz"), unique=True),
        decided=st.integers(0, 3),
    )
    def the_rules_decide(
        self,
        group: str,
        behind: int,
        place: int | None,
        entry: str,
        tick: bool,
        series: list[str],
        gone: list[str],
        decided: int,
    ) -> None:
        """On an entry that is the last, an older one or a lost one, which may be another by now, or (99) is none."""
        version = int(self.model.hash(ALERTING).get("version", "0")) - behind
        at = shown(self.model.stream(CHANGES).last) if place is None else self.ids([place], group)[0]
        if place == 99:
            at = f"{self.model.stream(CHANGES).last[0]}-{MAX_NUMBER}"
        one_decision = ["id", "source", "type", "subject", "time", "{}"]
        lists = [[text for name in series for text in (f"series:{name}", "{}")], [f"series:{name}" for name in gone]]
        arguments: list[Any] = [version, at, int(tick), entry]
        for texts in (*lists, one_decision * decided):
            arguments += [len(texts), *texts]
        self.same(script("alert/decide", [ALERTING, ALERTS, CHANGES], arguments))

    @rule(group=groups, then=st.sampled_from(["entries", "entries", "destroy", "delete"]))
    def two_wait_and_something_happens(self, group: str, then: str) -> None:
        """Both wait in a read that blocks, and who came first is served first."""
        self.without = 0
        self.there(group)
        self.same(lambda one: one.redis.xreadgroup(group, "a", {CHANGES: ">"}))
        what: dict[str, list[Operation]] = {
            "entries": [lambda one: one.redis.xadd(CHANGES, {"raw": "x"})] * 2,
            "destroy": [lambda one: one.redis.xgroup_destroy(CHANGES, group)],
            "delete": [lambda one: one.redis.delete(CHANGES)],
        }
        self.while_they_wait(CHANGES, group, "ab", what[then])

    @rule(
        error=st.sampled_from([FULL, REPLICA, None, None, None]),
        chosen=st.lists(st.integers(0, 99), min_size=6, max_size=6),
        group=groups,
    )
    def the_server_refuses_writes(self, error: ResponseError | None, chosen: list[int], group: str) -> None:
        """Rarely, for it ends the example for fakeredis."""
        if error is None:
            return
        tried = self.writes(group)
        self.refuse(error)
        for place in chosen:
            tried[place % len(tried)]()
        self.refuse(None)

    def writes(self, group: str) -> list[Callable[[], None]]:
        """What is tried on a server that takes no writes."""
        return [
            lambda: self.entries_come(1),
            lambda: self.new_ones_are_read(group, "a", 3),
            lambda: self.old_ones_are_read_again(group, "a", 1, None),
            lambda: self.some_are_done(group, [0], by_script=True),
            lambda: self.some_are_done(group, [0], by_script=False),
            lambda: self.some_are_claimed(group, [("b", 0, 0, None)], [0], justid=True),
            lambda: self.hand_outs_are_forgiven(group, [0], 2),
            lambda: self.one_is_parked(group, 0, again=True),
            lambda: self.a_member_asks_for_the_next(group, "c", [0]),
            lambda: self.the_archive_compares_its_position(group, 0, anew=True),
            lambda: self.a_member_wants_the_lease("a", LIFE_MS),
            lambda: self.the_rules_decide(group, 0, None, "", tick=False, series=["x"], gone=["y"], decided=1),
        ]
