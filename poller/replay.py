"""A recording goes in; the entries that a poller would have published from those answers come out. A day played again.

No broker, no Redis, no clock: the same walk of pages, the same decision as a live poll (`Watched.decide`), at the
recorded moments. The surprises: the recording is read twice, first to learn how many pages each walk has and how often
each target was asked; and a target begins with a reset, even if the live poller knew it from the day before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import cast

import structlog

from poller.broker import Answer, Broker, following_key, json_object
from poller.catalogue import tr_named
from poller.clock import Clock
from poller.commit import Commit, Known
from poller.contract import Entry, decode
from poller.errors import GiveUp, SignInAgain, SkipTarget, TryLater, raise_for_answer
from poller.grid import Job, Timing
from poller.poll import Desk, Watched
from poller.quarantine import Quarantine
from poller.recording import NoRecording, Recorded
from poller.rows import Page
from poller.store import Store
from poller.trs.base import Append, BadRequest, Keyed, Target

ASKED_ONCE_S = 60.0
"""The interval of a target that was asked only once, of which no distance can be taken."""

SHORTEST_S = 1.0


class _NoQuarantine(Quarantine):
    """What could not be read was put aside when it was live."""

    def __init__(self) -> None:
        super().__init__(Path())

    def keep(self, *told: object, **more: object) -> Path | None:  # noqa: ARG002 -- as it is called
        """Keep nothing."""
        return None


@dataclass
class Survey:
    """What a first reading tells: the begin, how many pages each walk has, and when each target was asked."""

    first_at: datetime | None = None
    pages: Counter[int] = field(default_factory=Counter)
    asked: dict[str, list[datetime]] = field(default_factory=lambda: defaultdict(list))

    def every_s(self, name: str) -> float:
        """The usual distance between two polls of a target, at least a second."""
        asked = self.asked[name]
        distances = [(later - earlier).total_seconds() for earlier, later in pairwise(asked)]
        return max(SHORTEST_S, median(distances)) if distances else ASKED_ONCE_S


def surveyed(recorded: Iterable[Recorded]) -> Survey:
    """The survey of a recording."""
    survey = Survey()
    for line in recorded:
        survey.first_at = survey.first_at or line.at
        survey.pages[line.walk] += 1
        if line.page == 1:
            survey.asked[line.name].append(line.at)
    return survey


def commits_of(recording: Iterable[Recorded], timing: Timing, jobs: Mapping[Target, Job]) -> Iterator[Commit]:
    """What each recorded poll would have written, in order of time; polls that brought nothing new are left out.

    `recording` is in order of time, and is read twice: an iterator alone will not do.
    `jobs` has the intervals where they are configured. The epoch is the millisecond of the first response, versions
    count from 1. Raises NoRecording where there is no response at all.
    """
    survey = surveyed(recording)
    if survey.first_at is None:
        raise NoRecording("the recording holds no whole line")
    epoch = round(survey.first_at.timestamp() * 1000)
    office, log = _Office(timing, jobs, survey), structlog.get_logger("replay")
    waiting: dict[int, list[Recorded]] = defaultdict(list)
    for line in recording:
        lines = waiting[line.walk]
        lines.append(line)
        if len(lines) < survey.pages[line.walk]:
            continue
        del waiting[line.walk]
        try:
            watched = office.watched(line)
        except BadRequest as error:
            log.warning("replay.skipped", target=line.name, error=str(error))
            continue
        commit = decided(watched, lines, epoch)
        if commit is not None and commit.drafts:
            yield commit


class _Office:
    """The targets met so far."""

    def __init__(self, timing: Timing, jobs: Mapping[Target, Job], survey: Survey) -> None:
        self._jobs, self._survey = jobs, survey
        # Deciding asks nobody and writes nothing, so there is neither a broker nor a store.
        self._desk = Desk(cast("Broker", None), cast("Store", None), timing, Clock(), _NoQuarantine())
        self._known: dict[str, Watched] = {}

    def watched(self, line: Recorded) -> Watched:
        """Where the target of a line stands. Raises BadRequest for one that today's declarations do not know."""
        if line.name not in self._known:
            target = tr_named(line.tr).target(line.target)
            job = self._jobs.get(target) or Job(target, self._survey.every_s(line.name))
            self._known[line.name] = Watched(job, self._desk)
        return self._known[line.name]


def decided(watched: Watched, lines: Sequence[Recorded], epoch: int) -> Commit | None:
    """What one walk of pages means for what is known of its target; None if it was no whole answer.

    The target's standing moves on as it does in a live poller.
    """
    known = watched.known or Known()
    try:
        answer = whole(watched.target, lines)
        commit = watched.decide(known, answer, (lines[0].asked_at, lines[-1].at), epoch)
    except TryLater:
        watched.gap_reason = "broker"
        return None
    except SignInAgain:  # the walk after a new token is another one; a live poll fails when that one is refused too
        watched.gap_reason = "broker" if watched.failures else watched.gap_reason
        watched.failures += 1
        return None
    except (SkipTarget, GiveUp):
        return None
    watched.known, watched.gap_reason, watched.failures = commit.known, "stopped", 0
    return commit


def whole(target: Target, lines: Sequence[Recorded]) -> Answer:
    """The answer that these pages make, judged as the broker's client judges it. Raises what it raises."""
    pages: list[Page] = []
    followed: list[str] = []

    def enough(_: Sequence[Page]) -> bool:
        return len(pages) == len(lines) and may_end_early(target)

    for number, line in enumerate(lines, 1):
        if line.page != number:
            raise TryLater(f"{target}: page {number} of a walk is missing in the recording")
        if line.status is None:
            raise TryLater(line.error)
        body = json_object(line.body)
        raise_for_answer(line.status, body, asked=str(target))
        pages.append(body or {})
        headers = {"cont-yn": line.cont_yn, "next-key": line.next_key}
        following = following_key(target, pages, followed, headers, enough)
        if following is None:
            return Answer(target, tuple(pages), tuple(line.body for line in lines[:number]))
        followed.append(following)
    raise TryLater(f"{target}: the recording ends in the middle of a walk")


def may_end_early(target: Target) -> bool:
    """Whether a walk may end though more follows: in a sliding window, once it reaches what the poller has."""
    tables = target.tr.tables
    return any(isinstance(table, Append) for table in tables) and not any(isinstance(table, Keyed) for table in tables)


def entries_of(commits: Iterable[Commit]) -> Iterator[list[Entry]]:
    """The entries of each commit, numbered as the stream numbers them."""
    seqs: Counter[str] = Counter()
    for commit in commits:
        tr = commit.target.tr.code
        fields = {"specversion": "1.0", "source": f"/kiwoom/{commit.target}", "datacontenttype": "application/json"}
        fields["time"] = commit.state["last_good"]
        entries = []
        for number, draft in enumerate(commit.drafts, 1):
            seqs[tr] += 1
            name = f"{commit.target}#{commit.epoch}.{commit.version}.{number}"
            mine = {"id": name, "type": draft.type, "subject": draft.subject, "seq": str(seqs[tr]), "data": draft.data}
            entries.append(decode(fields | mine))
        yield entries
