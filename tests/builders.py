"""Targets, answers and what was known of them, as short to write as a test needs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import settings

from poller.catalogue import tr_named
from poller.commit import Commit, Gap, Known, Seen, decide
from poller.contract import Row, dumps
from poller.rows import Reading, read_answer
from poller.session import KST, Session
from poller.trs.base import Target

# A machine that is busy with something else has found no fault: an example may take its time.
settings.register_profile("unhurried", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("unhurried")

TESTS = Path(__file__).parent
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=KST)
MONDAY, TUESDAY = NOON.date(), NOON.date() + timedelta(days=1)
EPOCH = 1795330635454
EVERY_S = 10.0

Answer = dict[str, Any]
"""An answer's body as JSON has it: `Any` is what `json.loads` gives."""


@dataclass(frozen=True)
class Recording:
    """What was asked, what came, and the rows it stands for, in the order of the answer and under bare keys."""

    code: str
    request: dict[str, str]
    answer: Answer
    rows: dict[str, list[tuple[str, Row]]]

    @property
    def target(self) -> Target:
        return target(self.code, **self.request)


def recording(code: str) -> Recording:
    content = golden(f"../recordings/{code}.json")
    rows = {table: [(key, row) for key, row in lines] for table, lines in content["rows"].items()}
    return Recording(code, content["request"], content["answer"], rows)


def golden(name: str) -> Any:
    """A file of `golden/`, fractions as Decimal."""
    return json.loads((TESTS / "golden" / name).read_text("utf-8"), parse_float=Decimal)


def target(code: str, **request: str) -> Target:
    return tr_named(code).target(request)


def read(asked: Target, *pages: Mapping[str, object]) -> Reading:
    """The reading of an answer of these pages."""
    return read_answer(asked, pages)


def seen(asked: Target, answer: Answer, later_s: float = 0.0, *, day: date = MONDAY, gap: Gap | None = None) -> Seen:
    """What a poll saw, so many seconds after noon; the digest stands for the bytes of the answer."""
    session: Session = "regular"
    at = datetime.combine(day, NOON.timetz()) + timedelta(seconds=later_s)
    return Seen(read(asked, answer), dumps(answer), at, day, session, EPOCH, EVERY_S, gap)


def after(asked: Target, *answers: Answer) -> Known:
    """What is known after these answers came, one every interval, the last one at noon."""
    known = Known()
    for number, answer in enumerate(answers, 1):
        known = decide(asked, known, seen(asked, answer, (number - len(answers)) * EVERY_S)).known
    return known


def told(commit: Commit) -> list[tuple[str, str]]:
    """Type and subject of every entry, without the common prefix."""
    return [(draft.type.removeprefix("sectorwire.").removeprefix("row."), draft.subject) for draft in commit.drafts]


def data_of(commit: Commit, number: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(commit.drafts[number].data, parse_float=Decimal)
    return content
