"""A recorded day goes in; a broker that gives its answers again, as if it were live, comes out.

Tokens, header checks and limits are the simulator's; the answers are the recorded ones, errors and broken bodies too.
The surprises: the recording is read as market time goes on, so a day of any size fits; and the next-keys that leave
here are made up, because the broker gives the same ones again and again, and a walk must not slip into another one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from poller.broker import json_object
from poller.catalogue import tr_named
from poller.clock import Clock
from poller.recording import NoRecording, Recorded, target_name
from poller.replay import may_end_early
from poller.simulator.checks import Asked, Refusal, input_error, wrong
from poller.simulator.faults import Fault
from poller.simulator.ledger import Ledger
from poller.simulator.replies import Reply
from poller.simulator.server import Simulator, SimulatorSettings
from poller.trs.base import BadRequest

LOOK_AHEAD = timedelta(minutes=2)
"""How far the recording is read ahead: the later pages of a walk are asked for at once, however long it took then."""

WALKS_KEPT = 4
"""Of each target, counted from the newest: a client may be in the middle of one that is no longer the newest."""


@dataclass
class RecordedWalk:
    """The pages of one recorded answer."""

    number: int
    begun: datetime
    pages: dict[int, Recorded] = field(default_factory=dict)

    def key_after(self, page: Recorded) -> str:
        """The made-up next-key of a page; a key that the broker repeated within the walk is repeated here too."""
        first = min(other.page for other in self.pages.values() if other.next_key == page.next_key)
        return f"{self.number}.{first}"


class Tape:
    """A recording that runs along with market time. Raises NoRecording where there is none."""

    def __init__(self, recording: Iterable[Recorded]) -> None:
        self._recording = recording
        self._coming: Iterator[Recorded] = iter(recording)
        first = next(self._coming, None)
        if first is None:
            raise NoRecording("the recording holds no whole line")
        self._next: Recorded | None = first
        self.ends_at = self.begins_at = first.at
        self._walks: dict[str, deque[RecordedWalk]] = defaultdict(deque)
        self._first: dict[str, RecordedWalk | None] = {}
        self._turn = Lock()  # a long search must hold up no event loop, so threads come here

    def page(self, name: str, key: str, moment: datetime) -> tuple[RecordedWalk, Recorded]:
        """The page that a request gets at this moment, and its walk. Raises Refusal where nothing was recorded."""
        with self._turn:
            self._advance(moment)
            walk = self._walk_of(name, key) if key else self._newest(name, moment)
        number = int(key.partition(".")[2]) + 1 if key else 1
        if number not in walk.pages:
            raise _unexpected(f"the recording of this walk ends with page {number - 1}")
        return walk, walk.pages[number]

    def over(self, moment: datetime) -> bool:
        """Whether nothing new comes any more."""
        with self._turn:
            self._advance(moment)
            return self._next is None and moment >= self.ends_at

    def _advance(self, moment: datetime) -> None:
        """Read what is recorded until shortly after this moment."""
        while self._next is not None and self._next.at <= moment + LOOK_AHEAD:
            self._add(self._next, moment)
            self.ends_at = self._next.at
            self._next = next(self._coming, None)

    def _add(self, line: Recorded, moment: datetime) -> None:
        walks = self._walks[line.name]
        known = next((walk for walk in walks if walk.number == line.walk), None)
        if known is None:
            known = RecordedWalk(line.walk, line.at)
            walks.append(known)
            while len(walks) > WALKS_KEPT and walks[WALKS_KEPT].begun <= moment:
                walks.popleft()
        known.pages[line.page] = line

    def _newest(self, name: str, moment: datetime) -> RecordedWalk:
        begun = [walk for walk in self._walks.get(name, ()) if walk.begun <= moment]
        return begun[-1] if begun else self._first_of(name)

    def _first_of(self, name: str) -> RecordedWalk:
        """The first walk of a target that has none yet at this moment."""
        if name not in self._first:
            self._first[name] = self._search(name)
        found = self._first[name]
        if found is None:
            recorded = ", ".join(sorted({line.name for line in self._recording}))
            raise input_error(1511, f"{name} is not in this recording, which holds {recorded}")
        return found

    def _search(self, name: str) -> RecordedWalk | None:
        walk: RecordedWalk | None = None
        for line in self._recording:
            if line.name == name:
                walk = walk or RecordedWalk(line.walk, line.at)
                if line.walk == walk.number:
                    walk.pages[line.page] = line
            if walk is not None and line.at > walk.begun + LOOK_AHEAD:
                break
        return walk

    def _walk_of(self, name: str, key: str) -> RecordedWalk:
        known: list[RecordedWalk | None] = [*self._walks.get(name, ()), self._first.get(name)]
        for walk in known:
            if walk is not None and key.partition(".")[0] == str(walk.number):
                return walk
        raise _unexpected(f"next-key {key} belongs to a walk that has passed")


def _unexpected(detail: str) -> Refusal:
    """1999: a client comes back later, with a walk of its own from the first page."""
    return Refusal(f"예기치 못한 에러가 발생하였습니다[1999:{detail}]", return_code=1)


class ReplaySimulator(Simulator):
    """The simulator with a tape instead of a market."""

    def __init__(
        self, tape: Tape, settings: SimulatorSettings, ledger: Ledger, time: Clock | None = None, **more: Any
    ) -> None:
        super().__init__(settings, ledger, time, **more)
        self.tape = tape

    def catch_up(self) -> None:
        """Bring the tape to the present."""
        self.tape.over(self.market_now())

    async def _answer(self, asked: Asked, fault: Fault | None) -> tuple[Reply, datetime]:  # noqa: ARG002 -- none is drawn
        if asked.body is None:
            raise wrong("body", "JSON 형식이 아닙니다")
        key = asked.headers.get("next-key", "") if asked.headers.get("cont-yn", "") == "Y" else ""
        moment, name = self.market_now(), target_name(asked.api_id, asked.body)
        walk, page = await asyncio.to_thread(self.tape.page, name, key, moment)
        return _reply(walk, page), moment


def _reply(walk: RecordedWalk, page: Recorded) -> Reply:
    """The recorded answer; where there was none, a connection that is dropped."""
    if page.status is None:
        return Reply(None, None, "drop")
    headers = {"cont-yn": page.cont_yn, "next-key": walk.key_after(page) if page.next_key else ""}
    if page.cont_yn.upper() == "Y" and page.page + 1 not in walk.pages and _may_end(page):
        headers = {"cont-yn": "N", "next-key": ""}  # the recorded poller had all it needed
    return Reply(
        json_object(page.body), page.status, headers=headers, exact=(page.body, page.content_type or "text/plain")
    )


def _may_end(page: Recorded) -> bool:
    try:
        return may_end_early(tr_named(page.tr).target(page.target))
    except BadRequest:
        return False
