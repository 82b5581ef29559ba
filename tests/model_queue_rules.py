"""What senders do to the queue of an endpoint, as rules of a state machine; `test_model_store` runs it.

They use the product's scripts as they are. All times are arguments of those, so the rules move them, and nobody waits.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.model_group_rules import LIFE_MS, script
from tests.model_groups import Stream
from tests.model_parties import Parties, Party
from tests.model_sorted import SortedSet, members

SENDER, SEEN, ORDER, DUE, JOBS, BODIES, CLAIMS, STATE = (
    f"test:send:{{desk}}:{part}" for part in ("active", "seen", "order", "due", "jobs", "bodies", "claims", "state")
)
DEAD = "test:send:dead:{desk}"
QUEUES = (SEEN, ORDER, DUE)
NOW_MS = 1_795_330_635_454

lanes = st.sampled_from(["a1", "a1", "a2"])
times = st.integers(0, 3)


def place_of(lane: str, number: int) -> str:
    """Where a delivery stands in the order; its decision is named by lane and number alone, so it may come again."""
    return f"{lane}:{number:020}-{number:010}:{lane}#{number}"


class QueueRules(Parties):
    """One endpoint with two lanes, and two senders."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.claims = 0
        self.claimed: dict[str, tuple[str, str]] = {}
        """What was begun last in each lane: the claim, and the place of the delivery."""

    @rule(
        lane=lanes,
        numbers=st.lists(times, min_size=1, max_size=3),
        at=times,
        forgets=st.sampled_from([False, False, True]),
    )
    def decisions_are_queued(self, lane: str, numbers: list[int], at: int, forgets: bool = False) -> None:
        """Perhaps once more, which the queue knows unless it forgets what it has seen before."""
        for number in numbers:
            place, now_ms = place_of(lane, number), NOW_MS + at
            args = [place.split(":", 2)[2], lane, place, f"job {number}", f"body {number}", now_ms, now_ms * forgets]
            self.same(script("alert/enqueue", [SEEN, ORDER, DUE, JOBS, BODIES], args))

    @rule(lane=lanes, at=times, sender=st.sampled_from(["one", "one", "one", "other"]))
    def a_delivery_is_begun(self, lane: str, at: int, sender: str = "one") -> None:
        """By whoever is active, mostly the one; what is not due, or not there, is not."""
        self.same(script("hold", [SENDER], ["one", LIFE_MS]))
        self.claims += 1
        args = [sender, lane, NOW_MS + at, NOW_MS + at + 1, str(self.claims), NOW_MS + at + 1]
        found = self.same(script("alert/begin", [SENDER, ORDER, DUE, JOBS, BODIES, CLAIMS], args))
        if isinstance(found, list) and found:
            self.claimed[lane] = str(self.claims), found[0]

    @rule(lane=lanes, at=times)
    def a_lane_without_deliveries_is_due(self, lane: str, at: int) -> None:
        """Which the scripts never leave, but a server that lost the other key of the two."""
        self.decisions_are_queued(lane, [0], 0, forgets=True)
        self.same(lambda one: one.redis.delete(ORDER))
        self.a_delivery_is_begun(lane, at)

    @rule(
        lane=lanes,
        what=st.sampled_from(["done", "dead", "dead", "again"]),
        at=times,
        state=st.sampled_from([[], ["breaker", "{}"]]),
        late=st.sampled_from([False, False, False, True]),
        kept=st.sampled_from([1, 2, 1000]),
    )
    def a_delivery_is_settled(
        self, lane: str, what: str, at: int, state: list[str], late: bool = False, kept: int = 1000
    ) -> None:
        """Mostly one that is in hand."""
        if not late and self.model.hget(CLAIMS, lane) is None and not self.model.refuses:
            if not any(member.startswith(lane) for member in members(self.model, ORDER)):
                self.decisions_are_queued(lane, [at, at + 1], at, forgets=True)
            self.a_delivery_is_begun(lane, 9)
        claim, place = self.claimed.get(lane, ("", place_of(lane, 0)))
        decision = place.split(":", 2)[2]
        args = [lane, "" if late else claim, place, decision, what, NOW_MS + at, NOW_MS + at + 1, "job", "why", kept]
        self.same(script("alert/settle", [ORDER, DUE, JOBS, BODIES, CLAIMS, DEAD, STATE], [*args, *state]))

    @rule(at=times)
    def a_dead_letter_is_sent_again(self, at: int) -> None:
        """And then once more, when it is gone. Mostly there is one."""
        if not self.model.xlen(DEAD) and at and not self.model.refuses:
            self.a_delivery_is_settled("a1", "dead", at, [])
        found = self.same(lambda one: one.redis.xrange(DEAD, count=1))
        letter, one = found[0] if found else ("5-5", {})
        lane, place = one.get("lane", "a1"), one.get("place", place_of("a1", 0))
        args = [letter, place.split(":", 2)[2], lane, place, "job", one.get("body", ""), NOW_MS + at]
        for _ in range(2):
            self.same(script("alert/redrive", [DEAD, ORDER, DUE, JOBS, BODIES], args))

    # --- what is there

    async def _moment_ms(self) -> int:
        """That of a new dead letter, which stands in no stream that the others know."""
        now_ms = await super()._moment_ms()
        held = self.model.keys.get(DEAD)
        seen = held.last if isinstance(held, Stream) else (0, 0)
        if self.claimed:
            for letter, _ in await self.real.redis.xrevrange(DEAD, count=1):
                ms, number = map(int, letter.split("-"))
                return ms if (ms, number) > seen else now_ms
        return now_ms

    async def _held(self, party: Party, kinds: dict[str, type]) -> Any:
        """Sorted sets as well."""
        held = await super()._held(party, {key: kind for key, kind in kinds.items() if kind is not SortedSet})
        for key in QUEUES:
            if key in kinds:
                held.append(await self._scores(party, key))
        return held

    async def _scores(self, party: Party, key: str) -> dict[str, float]:
        if party is self.twin:
            return {member: float(score) for member, score in members(self.model, key).items()}
        return dict(await party.redis.zrange(key, 0, -1, withscores=True))
