"""One poll for a person: the answer as a table, or everything that would follow from it. Nothing is committed."""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from poller.broker import Answer
from poller.clock import pause
from poller.commit import Commit, Known
from poller.contract import loads
from poller.errors import BrokerError, HeldBack, TryLater
from poller.grid import Job
from poller.poll import Desk, Watched
from poller.rows import Reading, read_answer
from poller.trs.base import Document, Target

TRIES = 3
SHOWN_EVENTS = 20
WIDE = 13
"""Above so many columns only the Korean labels head them: both would not fit any screen."""


async def ask_once(job: Job, desk: Desk) -> tuple[Known, Answer, Commit]:
    """What was known, the answer, and what a poller would write.

    Raises TryLater after three tries, NotWhole, SkipTarget, GiveUp, or the errors of the store.
    """
    watched = Watched(job, desk)
    known = await watched.load()
    for tries_left in reversed(range(TRIES)):
        asked_at = desk.clock.now()
        try:
            answer = await watched.ask(known, asked_at)
            return known, answer, watched.decide(known, answer, (asked_at, desk.clock.now()), epoch=0)
        except TryLater as error:
            if not tries_left or isinstance(error, HeldBack):  # a person would have to wait for minutes
                raise
            await pause(max(error.wait_s, 0.5))
    raise BrokerError("not reached: the last try returns or raises")


def rows_table(target: Target, answer: Answer) -> Group:
    """The rows under our names, one table each."""
    reading = read_answer(target, answer.pages)
    return Group(*_tables(target, reading))


def _tables(target: Target, reading: Reading) -> Iterable[Table]:
    for table, fields in target.tables():
        rows = reading.rows[table.name]
        grid = Table(title=f"{target} · {table.name} · {len(rows)} rows", title_justify="left", box=None)
        if isinstance(table, Document):
            for name in ("field", "이름", "value", "unit"):
                grid.add_column(name)
            for field in fields:
                grid.add_row(field.name, field.korean, _text(rows[0][1][field.name]), field.unit or "")
        else:
            wide = len(fields) > WIDE
            for field in fields:
                grid.add_column(field.korean if wide else f"{field.name}\n{field.korean}", overflow="fold")
            for _, row in rows:
                grid.add_row(*(_text(row[field.name]) for field in fields))
        yield grid


def _text(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def raw(answer: Answer) -> str:
    """The pages as the broker sent them, indented."""
    return "\n".join(orjson.dumps(page, option=orjson.OPT_INDENT_2).decode() for page in answer.pages)


def explain(console: Console, target: Target, known: Known, answer: Answer, commit: Commit) -> None:
    """Request, pages, checks, and the events that would be published."""
    reading = read_answer(target, answer.pages)
    console.print(Text(f"POST {target.tr.path}  api-id: {target.tr.code}  {target.tr.name}", "bold"))
    console.print_json(data=target.request)
    sizes = ", ".join(f"{len(body):,}" for body in answer.bodies)
    console.print(f"pages: {len(answer.pages)} ({sizes} bytes), digest {answer.digest[:16]}")
    for name, rows in reading.rows.items():
        console.print(f"table {name}: {len(rows)} rows, {len(reading.unread_keys[name])} unreadable")
    for bad in reading.unreadable:
        console.print(Text(f"  {bad.table}/{bad.key} {bad.field} ({bad.element}): {bad.reason}", "red"))
    for value in reading.saturated:
        console.print(Text(f"  {value} is a saturated number, read as null", "yellow"))
    last = f"version {known.version} of {known.last_good}" if known.revision else "never committed"
    console.print(f"compared with: {last}")
    if commit.known.hold:
        console.print(Text(f"held: too many rows are missing: {commit.known.hold.missing}", "yellow"))
    console.print(f"would publish {len(commit.drafts)} events" + (":" if commit.drafts else ""))
    for draft in commit.drafts[:SHOWN_EVENTS]:
        changed = loads(draft.data).get("changed") or ""
        console.print(f"  {draft.type:<28} {draft.subject:<20} {', '.join(changed)}", markup=False)
    if len(commit.drafts) > SHOWN_EVENTS:
        console.print(f"  … and {len(commit.drafts) - SHOWN_EVENTS} more")
    for subject, guards in commit.suspect_rows.items():
        console.print(Text(f"  suspect: {subject} fails {', '.join(guards)}", "yellow"))
