"""Groups that nobody reads, as rules of a state machine; `test_model_store` runs it.

The surprise: expire.lua goes by the server's clock, and so do the idle times of consumers; neither can be set. So the
first entries are old ones, with ids of their own, and it is the notes that are moved: into the past, as if time had
passed since, or into the future, as if whoever has just asked had asked before. A retention below nothing is one that
has passed for everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from poller import expiry
from tests.model_group_rules import POSITION, GroupRules, groups
from tests.model_groups import Stream
from tests.model_parties import CHANGES, GROUPS, QUARTER_MS, REPLICA, Party

EXPIRE = (Path(expiry.__file__).parent / "expire.lua").read_text("utf-8")
NOTED = "test:{ka20003}:abandoned"
POSITIONS = POSITION.removesuffix("one")


class Moment(NamedTuple):
    """How long before now the notes are said to have been made, None for what they say, and what has to pass then.

    All of them are far apart: between two servers that are asked one after the other lie milliseconds, and those must
    not decide anything.
    """

    noted_ms: int | None
    grace_ms: int


MOMENTS = {
    "at once": Moment(None, QUARTER_MS * 3 // 2),
    "in between": Moment(QUARTER_MS, QUARTER_MS * 3 // 2),
    "after the grace": Moment(3 * QUARTER_MS, QUARTER_MS * 3 // 2),
    "after the grace, asked for before": Moment(-QUARTER_MS, -QUARTER_MS * 3 // 2),
}


retentions_ms = st.sampled_from([-QUARTER_MS, -QUARTER_MS, -QUARTER_MS, QUARTER_MS])


def added(entry_id: str, fields: Mapping[str, str], one: Party) -> Awaitable[Any]:
    """XADD with an id of one's own."""
    answer: Awaitable[Any] = one.redis.xadd(CHANGES, fields, id=entry_id)
    return answer


class ExpiryRules(GroupRules):
    """Somebody looks after the groups, while they are read or not."""

    @initialize()
    def groups_read_from_the_start(self) -> None:
        """The first entries are old."""
        self.old_entries_come()
        super().groups_read_from_the_start()

    def old_entries_come(self) -> None:
        """Where nothing is newer."""
        began_ms = self.runner.run(self._now_ms()) - 3 * QUARTER_MS
        if self.model.stream(CHANGES).last < (began_ms, 0):
            for number, fields in enumerate(({"id": "old", "seq": "1"}, {"id": "older than our seq"})):
                self.same(partial(added, f"{began_ms}-{number}", fields))

    async def _now_ms(self) -> int:
        seconds, micros = await self.real.redis.time()
        return int(seconds * 1000 + micros // 1000)

    @rule(
        group=groups,
        begins=st.sampled_from(["", "", "stream", "group", "group", "read", "read", "none"]),
        first_ms=retentions_ms,
        times=st.lists(
            st.tuples(st.sampled_from(["", "", "", "read", "done"]), st.sampled_from(sorted(MOMENTS)), retentions_ms),
            min_size=2,
            max_size=4,
        ),
        ours=st.sampled_from(["", "", "", "", "", "one", "position"]),
    )
    def groups_are_looked_after(
        self, group: str, begins: str, first_ms: int, times: list[tuple[str, str, int]], ours: str
    ) -> None:
        """Several times, before and between which something may happen to one of them."""
        self._happens(group, begins)
        if ours == "position":
            self.same(lambda one: one.redis.set(POSITIONS + group, "0-0"))
        elif not self.model.refuses and POSITION in self.model.keys:
            self.same(lambda one: one.redis.delete(POSITION))
        for what, when, retention_ms in [("", "at once", first_ms), *times]:
            self._happens(group, what)
            self.look(when, retention_ms, ["alert", *([ours] if ours in GROUPS else [])])
        if ours == "position":
            self.same(lambda one: one.redis.delete(POSITIONS + group))

    def _happens(self, group: str, what: str) -> None:
        if what in {"stream", "none"}:
            self.same(lambda one: one.redis.delete(CHANGES))
        if what == "stream":
            self.old_entries_come()
        if what in {"stream", "group"}:
            self.same(lambda one: one.redis.xgroup_destroy(CHANGES, group))
            self.a_group_is_made(group, "0")
        elif what == "read":
            self.same(lambda one: one.redis.xreadgroup(group, "a", {CHANGES: ">"}, count=1))
        elif what == "done":
            (oldest,) = self.ids([0], group)
            self.same(lambda one: one.redis.xack(CHANGES, group, oldest))

    def look(self, when: str, retention_ms: int, ours: list[str]) -> None:
        """Run the script at a moment after the notes were made, and see that they are the same to a moment."""
        if self.old and not self._only_those_who_own():
            return
        moment = MOMENTS[when]
        if moment.noted_ms is not None:
            self._notes_were_made(moment.noted_ms)
        args = ["changes", retention_ms, moment.grace_ms, POSITIONS, *ours]

        async def told(one: Party) -> Any:
            found = await one.redis.register_script(EXPIRE)(keys=[CHANGES, NOTED], args=args)
            return [[*each[:2], each[2] if each[0] in {"returned", "removed"} else "", *each[3:]] for each in found]

        async def follows(one: Party) -> None:
            """Consumers are idle in another way to fakeredis, see `FAKE_DIFFERS`; its notes follow below."""
            for each in self.answer if isinstance(self.answer, list) else []:
                if each[0] == "removed":
                    await one.redis.xgroup_destroy(CHANGES, each[1])

        self.same(told, fake=follows)
        self.runner.run(self._notes_agree())

    def _only_those_who_own(self) -> bool:
        """See that there are no other consumers, since before 7.2 one that got nothing is none; False where one may be.

        See `OLD_DIFFERS`.
        """
        if self.model.refuses is REPLICA:
            return False
        held = self.model.keys.get(CHANGES)
        for group in held.groups if isinstance(held, Stream) else ():
            self.the_gone_are_dismissed(group, "", 0)
        return True

    def _notes_were_made(self, before_ms: int) -> None:
        since_ms = self.runner.run(self._now_ms()) - before_ms
        notes = {
            field: f"{since_ms} {note.partition(' ')[2]}" for field, note in sorted(self.model.hash(NOTED).items())
        }
        if notes and not self.model.refuses:
            self.same(lambda one: one.redis.hset(NOTED, mapping=notes))

    async def _notes_agree(self) -> None:
        """The same groups, as far, since about the same time; and from now on since the very same."""
        real, model = await self.real.redis.hgetall(NOTED), self.model.hash(NOTED)
        assert model.keys() == real.keys()
        for field, note in real.items():
            (since, far), (model_since, model_far) = note.split(" ", 1), model[field].split(" ", 1)
            assert far == model_far
            assert abs(int(since) - int(model_since)) < QUARTER_MS // 4
        if real:
            self.model.keys[NOTED] = real
        if self.fake is not None:
            await self.fake.redis.delete(NOTED)
            if real:
                await self.fake.redis.hset(NOTED, mapping=real)
