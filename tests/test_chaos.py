"""A short cut of the chaos run, and the proof that its checker sees what it is there for.

The whole of it is `make chaos`. Here a dozen kills hit one world, on a server that loses its newest second as well; and
the checker is shown small worlds in which one thing is wrong.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests import chaos_checker
from tests.chaos import judged, live, told
from tests.chaos_checker import Archive, Archived, Entries, Fields, Left, Lost, Rule
from tests.chaos_plan import CUT_OFF, LANES, plan

One = tuple[str, Fields]
TR = "ka20003"
SOURCE = f"/kiwoom/{TR}?inds_cd=001"
RULE = Rule("below 0", TR, "indices", "change_pct", "<", "0")


@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform != "linux", reason="the full disk is a limit that is set on a running process")
async def test_a_dozen_kills_of_real_processes_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    report = await live(tmp_path, "everysec", kills=12, seed=1)

    told(report, "everysec")
    assert judged([report], 12) == []
    assert report.kills == 12
    assert report.held.total() == 6


def test_half_of_the_kills_are_in_mid_commit_and_the_seed_says_which() -> None:
    lanes = plan(100, "everysec", random.Random(7))
    kills = [blow for blows in lanes.values() for blow in blows if blow.is_kill]
    sides = Counter((blow.lane, blow.moment.side) for blow in kills if blow.moment)

    assert len(kills) == 100
    assert sides.total() == 50
    assert min(sides["poller", "request"], sides["poller", "reply"]) >= 5
    assert lanes.keys() == set(LANES)
    assert {blow.how for blows in lanes.values() for blow in blows} == {"kill", "stop", "cut", "full"}
    assert plan(100, "everysec", random.Random(7)) == lanes != plan(100, "everysec", random.Random(8))


def test_only_a_server_that_may_lose_its_last_second_has_it_cut_off() -> None:
    def cuts(lanes: dict[str, list[Any]]) -> int:
        return sum(blow.words == CUT_OFF for blow in lanes["server"])

    assert cuts(plan(100, "everysec", random.Random(1))) > 5
    assert cuts(plan(100, "always", random.Random(1))) == 0


# --- what the checker sees -----------------------------------------------------------------------------------------


def entry(number: int, pct: str, *, epoch: int = 1, kind: str = "row.changed") -> One:
    """The so-manieth entry of a stream about one row."""
    told_of = {
        "id": f"{TR}?inds_cd=001#{epoch}.{number}.1",
        "source": SOURCE,
        "type": f"sectorwire.{kind}",
        "subject": "indices/001",
        "time": f"2026-11-23T09:00:{number:02}.000+09:00",
        "seq": str(number),
        "data": f'{{"after": {{"change_pct": {pct}}}}}',
    }
    return f"{1000 + number}-0", told_of


def decision(number: int, state: str, since: int) -> One:
    """The so-manieth decision on that row."""
    data: dict[str, Any] = {
        "id": f"{number:032}",
        "rule": RULE.name,
        "tr": TR,
        "target": {"inds_cd": "001"},
        "table": "indices",
        "key": "001",
        "state": state,
        "since": f"2026-11-23T09:00:{since:02}.000+09:00",
        "notify": ["hook"],
    }
    return f"{2000 + number}-0", {"id": data["id"], "seq": str(number), "data": json.dumps(data)}


def webhook(of: One) -> dict[str, Any]:
    return {"id": of[1]["id"], "body": json.dumps({"data": json.loads(of[1]["data"])})}


def row(of: One) -> Archived:
    epoch, seq = chaos_checker.place(of[1])
    return Archived("indices", of[0], of[1]["id"], epoch, seq)


def handled(entries: Iterable[One]) -> list[tuple[str, str, str]]:
    return [(TR, one, fields["id"]) for one, fields in entries]


class Small:
    """A world in which all is well: four entries, then two that were lost, then two of another epoch."""

    def __init__(self) -> None:
        old: Entries = [entry(1, "1", kind="row.baseline"), entry(2, "-1"), entry(3, "-2"), entry(4, "1")]
        lost: Entries = [entry(5, "-1"), entry(6, "-3")]
        new: Entries = [(f"{3000 + number}-0", entry(number, pct, epoch=2)[1]) for number, pct in ((5, "2"), (6, "-1"))]
        alerts: Entries = [decision(1, "firing", 2), decision(2, "resolved", 2), decision(4, "firing", 6)]
        alerts = [(one, {**fields, "seq": str(n)}) for n, (one, fields) in enumerate(alerts, 1)]
        gone = decision(3, "firing", 5)
        self.left = Left(
            {TR: [*old, *new]},
            {TR: alerts},
            [Lost(TR, "changes", "1004-0", lost), Lost(TR, "alerts", "2002-0", [gone])],
        )
        self.archive = Archive({TR: [row(one) for one in [*old, *lost, *new]]}, {TR: [(1, 5, 6)]}, Counter({TR: 1}))
        self.received = [webhook(one) for one in [alerts[0], alerts[0], alerts[1], gone, alerts[2]]]
        self.effects = handled([*old, *lost, *new, old[0]])
        self.refused, self.done = {f"{TR}?inds_cd=001#1.9."}, {f"{TR}?inds_cd=001#1.6."}

    def problems(self) -> list[str]:
        return [
            *chaos_checker.check_histories(self.left),
            *chaos_checker.check_commits(self.left, refused=self.refused, done=self.done),
            *chaos_checker.check_archive(self.left, self.archive),
            *chaos_checker.check_decisions(self.left, [RULE]),
            *chaos_checker.check_webhooks(self.left, self.received),
            *chaos_checker.check_effects(self.left, self.effects),
        ]


def test_of_a_world_in_which_all_is_well_the_checker_says_nothing() -> None:
    assert Small().problems() == []


def published_in_the_old_epoch(world: Small) -> None:
    entries = world.left.changes[TR]
    entries[-1] = (entries[-1][0], entry(7, "-1")[1])


def a_seq_twice(world: Small) -> None:
    one, fields = world.left.changes[TR][1]
    world.left.changes[TR][1] = (one, {**fields, "seq": "1"})


def published_by_the_dead(world: Small) -> None:
    world.refused.add(f"{TR}?inds_cd=001#1.4.")


def done_and_gone(world: Small) -> None:
    world.done.add(f"{TR}?inds_cd=001#1.7.")


def parked(world: Small) -> None:
    world.left.parked.append("sectorwire:{ka20003}:parked:alert")


def not_archived(world: Small) -> None:
    del world.archive.rows[TR][0]


def archived_twice(world: Small) -> None:
    world.archive.rows[TR].append(world.archive.rows[TR][0])


def archived_from_nowhere(world: Small) -> None:
    world.archive.rows[TR].append(row(entry(9, "1")))


def no_fork(world: Small) -> None:
    world.archive.ranges[TR].clear()


def a_fork_of_what_is_there(world: Small) -> None:
    world.archive.ranges[TR].append((2, 5, 5))


def archived_elsewhere(world: Small) -> None:
    world.archive.rows[TR][0] = Archived("notices", *list(vars(world.archive.rows[TR][0]).values())[1:])


def not_decided(world: Small) -> None:
    world.left.changes[TR].append(("4000-0", entry(7, "1", epoch=2)[1]))
    world.archive.rows[TR].append(row(world.left.changes[TR][-1]))
    world.effects.append((TR, "4000-0", world.left.changes[TR][-1][1]["id"]))


def decided_twice(world: Small) -> None:
    _, fields = world.left.alerts[TR][0]
    world.left.alerts[TR].append(("5000-0", {**fields, "seq": "4"}))


def not_received(world: Small) -> None:
    world.received.pop()


def received_in_another_order(world: Small) -> None:
    world.received.insert(0, world.received.pop())


def told_under_two_ids(world: Small) -> None:
    world.received.append({**world.received[0], "id": "f" * 32})


def not_handled(world: Small) -> None:
    world.effects = [one for one in world.effects if one[1] != "1002-0"]


def handled_from_nowhere(world: Small) -> None:
    world.effects.append((TR, "1-0", "made up"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (published_in_the_old_epoch, "in an epoch that was lost"),
        (a_seq_twice, "epoch and seq that stand for two entries"),
        (published_by_the_dead, "of pollers that were dead are published"),
        (done_and_gone, "that were done are gone"),
        (parked, "parked or given up"),
        (not_archived, "not archived"),
        (archived_twice, "archived twice"),
        (archived_from_nowhere, "archived and never published"),
        (no_fork, "in no fork"),
        (a_fork_of_what_is_there, "a fork calls it lost"),
        (archived_elsewhere, "archived is"),
        (not_decided, "missing 1"),
        (decided_twice, "decided twice"),
        (not_received, "never received"),
        (received_in_another_order, "in another order than decided"),
        (told_under_two_ids, "under two ids"),
        (not_handled, "acknowledged, and never handled"),
        (handled_from_nowhere, "handled, and never published"),
    ],
)
def test_the_checker_sees_each_harm(harm: Callable[[Small], None], words: str) -> None:
    world = deepcopy(Small())
    harm(world)

    assert any(words in problem for problem in world.problems()), world.problems()
