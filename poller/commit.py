"""What we knew of a target and a whole answer go in; what one poll will write comes out.

Pure: `commit.lua` writes what is decided here. The surprises: an answer is compared with the last one only within a
trading day and a declaration, otherwise it is a reset; and a table that lost too much is held until a second answer
agrees, so that a broken answer never looks like delistings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime

from poller.contract import NOTICE_TYPE, ROW_TYPE, GapReason, ResetReason, Row, dumps, loads
from poller.diff import Change, baseline, diff, missing_rows, settle, window_was_lost
from poller.errors import NotWhole, SkipTarget
from poller.rows import Reading
from poller.session import KST, Session
from poller.suspects import SuspectRows, counted, suspect_rows
from poller.trs.base import Append, Keyed, Table, Target

MAX_CHANGES = 5_000
"""One poll is one script. 5,000 entries hold the server for some 30 ms, which other clients can bear."""

SHORT_MISS = 2
"""Up to so many scheduled intervals without a good poll are no gap: `observed_from` tells them."""

Tables = dict[str, dict[str, Row]]


SAME_KEYS: frozenset[ResetReason | None] = frozenset({"new_day", "rollback"})
"""Resets at which the keys of a table should be about those that were stored."""


COMPARABLE: frozenset[Session] = frozenset({"regular", "closing", "after"})
"""Before an opening it is still the last trading day, but the broker shows zeros: what runs since the open falls."""


@dataclass(frozen=True)
class Hold:
    """Rows that vanished in one answer, table by table, and are waiting for a second answer to agree.

    `observed_from` is the last poll before they vanished: if they are gone, they went after that.
    """

    since: datetime
    missing: dict[str, list[str]]
    observed_from: datetime | None = None


@dataclass(frozen=True)
class Known:
    """A target as it was last committed. `revision` 0 means never."""

    version: int = 0
    revision: int = 0
    trading_day: date | None = None
    digest: str = ""
    last_good: datetime | None = None
    hold: Hold | None = None
    elements: dict[str, list[str]] = field(default_factory=dict)
    rows: Tables = field(default_factory=dict)
    rolled_back: bool = False


@dataclass(frozen=True)
class Gap:
    """A stretch of scheduled time, or of a window, that nobody saw."""

    since: datetime
    until: datetime
    polls_missed: int
    reason: GapReason
    table: str | None = None

    def data(self) -> dict[str, object]:
        """As the contract has it."""
        told: dict[str, object] = {
            "from": iso(self.since),
            "to": iso(self.until),
            "polls_missed": self.polls_missed,
            "reason": self.reason,
        }
        return told if self.table is None else {**told, "table": self.table}


@dataclass(frozen=True)
class Seen:
    """A whole answer as read, and when and in whose reign it was seen."""

    reading: Reading
    digest: str
    observed_at: datetime
    trading_day: date
    session: Session
    epoch: int
    every_s: float
    gap: Gap | None = None


@dataclass(frozen=True)
class Draft:
    """One entry, but for what the script adds: id, seq and the attributes common to the commit."""

    type: str
    subject: str
    data: str


@dataclass(frozen=True)
class Commit:
    """What one poll writes, all or nothing: entries, rows set and deleted, and the target's new state."""

    target: Target
    epoch: int
    version_before: int
    version: int
    drafts: tuple[Draft, ...]
    clear: bool
    set_rows: dict[str, str]
    delete_rows: tuple[str, ...]
    state: dict[str, str]
    known: Known
    suspect_rows: SuspectRows = field(default_factory=dict)

    @property
    def suspects(self) -> Counter[str]:
        """How many of the published rows fail each guard."""
        return counted(self.suspect_rows)

    @property
    def changes(self) -> int:
        """How many of the entries are news: rows that came, changed or went."""
        return sum(draft.type.startswith(ROW_TYPE) and draft.type != ROW_TYPE + "baseline" for draft in self.drafts)

    @property
    def commit_id(self) -> str:
        """The same for every retry of one commit, and for no other."""
        return f"{self.epoch}.{self.version}.{self.known.digest[:16]}"


def iso(moment: datetime) -> str:
    """A moment as entries and state write it: Korean time, milliseconds.

    >>> from datetime import UTC
    >>> iso(datetime(2026, 11, 23, 0, 0, 1, 123456, UTC))
    '2026-11-23T09:00:01.123+09:00'
    """
    return moment.astimezone(KST).isoformat(timespec="milliseconds")


def decide(target: Target, known: Known, seen: Seen) -> Commit:
    """What to write after this answer.

    Raises NotWhole if a window came back empty, SkipTarget if the changes are more than one script may carry.
    """
    reason = _reset_reason(target, known, seen)
    before: Tables = {} if reason else known.rows
    after = {table.name: _settle(target, table, before, seen) for table in target.tr.tables}
    hold = _hold(target, known, before, after, seen, reason)
    notices = _notices(target, known, seen, before)
    if hold is not None:  # rows wait for a second answer; that nobody looked for a while is told at once
        gaps = tuple(notice for notice in notices if notice[0] == "gap")
        return _commit(target, known, seen, _Outcome(known.rows, hold, gaps, (), reset=False))
    changes = [
        change
        for table in target.tr.tables
        for change in (
            baseline(table, after[table.name]) if reason else diff(table, before.get(table.name, {}), after[table.name])
        )
    ]
    if len(changes) > MAX_CHANGES:
        raise SkipTarget(f"{target}: {len(changes)} changes in one poll, at most {MAX_CHANGES} fit into one commit")
    if reason:
        notices.append(("reset", "-", _reset_data(target, known, seen, after, reason)))
    return _commit(target, known, seen, _Outcome(after, None, tuple(notices), tuple(changes), reset=bool(reason)))


def unchanged(target: Target, known: Known, observed_at: datetime | None, epoch: int) -> Commit:
    """What to write after an answer equal to the last: that we looked, and when.

    After one that is not compared at all, `observed_at` is still the last good poll.
    """
    new = replace(known, last_good=observed_at)
    return Commit(
        target=target,
        epoch=epoch,
        version_before=known.version,
        version=known.version,
        drafts=(),
        clear=False,
        set_rows={},
        delete_rows=(),
        state=state_of(new),
        known=new,
    )


def is_unchanged(target: Target, known: Known, digest: str, trading_day: date) -> bool:
    """Whether an answer needs no comparison: the same bytes, on the same day, under the same declaration."""
    return (
        known.digest == digest
        and known.trading_day == trading_day
        and known.revision == target.tr.revision
        and known.hold is None
        and not known.rolled_back
    )


def gap_since(last_good: datetime, now: datetime, scheduled_polls: float, reason: GapReason) -> Gap | None:
    """The gap to declare now: more than two scheduled intervals without a good poll; closed hours do not count.

    >>> from datetime import UTC, timedelta
    >>> noon = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
    >>> gap = gap_since(noon, noon + timedelta(seconds=40), 4.0, "broker")
    >>> gap and gap.polls_missed
    3
    """
    if scheduled_polls <= SHORT_MISS:
        return None
    return Gap(last_good, now, max(1, round(scheduled_polls) - 1), reason)


@dataclass(frozen=True)
class _Outcome:
    after: Tables
    hold: Hold | None
    notices: tuple[tuple[str, str, Mapping[str, object]], ...]
    changes: tuple[Change, ...]
    reset: bool


def _reset_reason(target: Target, known: Known, seen: Seen) -> ResetReason | None:
    if known.revision == 0:
        return "first"
    if known.rolled_back:
        return "rollback"
    if known.revision != target.tr.revision:
        return "declaration"
    return "new_day" if known.trading_day != seen.trading_day else None


def _settle(target: Target, table: Table, before: Tables, seen: Seen) -> dict[str, Row]:
    lines, stored = seen.reading.rows[table.name], before.get(table.name, {})
    if isinstance(table, Append) and stored and not lines and not seen.reading.unread_keys[table.name]:
        raise NotWhole(f"{target}: {table.rows_at} came back empty, it had {len(stored)} rows: an empty success")
    return settle(table, stored, lines, seen.reading.unread_keys[table.name] if stored else ())


def _hold(
    target: Target, known: Known, before: Tables, after: Tables, seen: Seen, reason: ResetReason | None
) -> Hold | None:
    """The hold this answer leads to, or None if it may be published.

    At a new day the rows are not compared, but a table that lost half of them overnight is doubted all the same.
    """
    compared = known.rows if reason in SAME_KEYS else before
    missing = {
        table.name: missing_rows(table, compared.get(table.name, {}), after[table.name]) for table in target.tr.tables
    }
    if reason is not None:  # with nothing to compare it with, an empty table is as doubtful
        missing |= {t.name: ["*"] for t in target.tr.tables if isinstance(t, Keyed) and not after[t.name]}
    missing = {name: keys for name, keys in missing.items() if keys}
    if not missing:
        return None
    if known.hold is None or known.hold.missing != missing:
        observed_from = known.hold.observed_from if known.hold else known.last_good
        return Hold(seen.observed_at, missing, observed_from)
    confirmed = (seen.observed_at - known.hold.since).total_seconds() >= seen.every_s
    return None if confirmed else known.hold


def _notices(target: Target, known: Known, seen: Seen, before: Tables) -> list[tuple[str, str, Mapping[str, object]]]:
    notices: list[tuple[str, str, Mapping[str, object]]] = []
    if seen.gap is not None:
        notices.append(("gap", "-", seen.gap.data()))
    for table in target.tr.tables:
        reading, stored = seen.reading, before.get(table.name, {})
        if window_was_lost(table, stored, reading.rows[table.name], reading.unread_keys[table.name]):
            since = known.last_good or seen.observed_at
            notices.append(("gap", table.name, Gap(since, seen.observed_at, 0, "window", table.name).data()))
    shape = _shape(target, known, seen)
    if shape is not None:
        notices.append(("shape", "-", shape))
    return notices


def _shape(target: Target, known: Known, seen: Seen) -> dict[str, object] | None:
    """Elements that came or went since the last answer; at first sight, since the declaration."""
    appeared, vanished = {}, {}
    for table in target.tr.tables:
        names = set(seen.reading.elements[table.name])
        if not names:
            continue
        declared = [field.element for field in table.row.fields if field.element is not None]
        expected = set(known.elements.get(table.name, declared))
        appeared[table.name], vanished[table.name] = sorted(names - expected), sorted(expected - names)
    changed = any(appeared.values()) or any(vanished.values())
    return {"appeared": _filled(appeared), "vanished": _filled(vanished)} if changed else None


def _filled(names: dict[str, list[str]]) -> dict[str, list[str]]:
    return {table: listed for table, listed in names.items() if listed}


def _reset_data(target: Target, known: Known, seen: Seen, after: Tables, reason: ResetReason) -> dict[str, object]:
    if reason != "new_day":
        return {"reason": reason}
    keyed = [table.name for table in target.tr.tables if isinstance(table, Keyed)]
    was, unread = {name: known.rows.get(name, {}).keys() for name in keyed}, seen.reading.unread_keys
    return {
        "reason": reason,
        "joined": {name: sorted(after[name].keys() - was[name]) for name in keyed},
        "left": {name: sorted(was[name] - after[name].keys() - {*unread[name]}) for name in keyed},
    }


def _commit(target: Target, known: Known, seen: Seen, outcome: _Outcome) -> Commit:
    news = bool(outcome.notices or outcome.changes)
    version = known.version + 1 if news else known.version
    held = outcome.hold is not None
    new = Known(
        version=version,
        revision=known.revision if held else target.tr.revision,
        trading_day=known.trading_day if held else seen.trading_day,
        digest="" if held else seen.digest,
        last_good=seen.observed_at,
        hold=outcome.hold,
        elements=known.elements if held else known.elements | _filled(seen.reading.elements),
        rows={table: rows for table, rows in outcome.after.items() if rows},
        rolled_back=known.rolled_back and held,
    )
    set_rows = {change.name: dumps(change.after) for change in outcome.changes if change.after is not None}
    comparable = not outcome.reset and seen.session in COMPARABLE
    suspects = suspect_rows(target, outcome.changes, seen.reading, known.rows if comparable else {}, outcome.after)
    state = state_of(new)
    if outcome.changes:
        state["suspect"] = dumps(counted(suspects)) if suspects else ""
    return Commit(
        target=target,
        epoch=seen.epoch,
        version_before=known.version,
        version=version,
        drafts=tuple(_drafts(target, known, seen, outcome, version, set_rows, suspects)),
        clear=outcome.reset,
        set_rows={} if held else set_rows,
        delete_rows=() if outcome.reset or held else tuple(_gone(known.rows, outcome.after)),
        state=state,
        known=new,
        suspect_rows=suspects,
    )


def _gone(before: Tables, after: Tables) -> list[str]:
    """Rows removed, and rows that slid out of a window."""
    return [f"{table}/{key}" for table, rows in before.items() for key in rows if key not in after.get(table, {})]


def state_of(known: Known) -> dict[str, str]:
    """The fields of the state hash that a commit writes."""
    hold = known.hold
    return {
        "version": str(known.version),
        "revision": str(known.revision),
        "trading_day": known.trading_day.isoformat() if known.trading_day else "",
        "digest": known.digest,
        "last_good": iso(known.last_good) if known.last_good else "",
        "hold": dumps(_hold_data(hold)) if hold else "",
        "elements": dumps(known.elements),
    }


def _hold_data(hold: Hold) -> dict[str, object]:
    observed_from = iso(hold.observed_from) if hold.observed_from else None
    return {"since": iso(hold.since), "missing": hold.missing, "observed_from": observed_from}


def hold_of(text: str) -> Hold | None:
    """The hold in a state hash, which `state_of` wrote."""
    if not text:
        return None
    data = loads(text)
    observed_from = datetime.fromisoformat(data["observed_from"]) if data["observed_from"] else None
    return Hold(datetime.fromisoformat(data["since"]), data["missing"], observed_from)


def _drafts(
    target: Target,
    known: Known,
    seen: Seen,
    outcome: _Outcome,
    version: int,
    set_rows: Mapping[str, str],
    suspects: SuspectRows,
) -> list[Draft]:
    about: dict[str, object] = {"tr": target.tr.code, "target": target.request}
    observed_from = known.hold.observed_from if known.hold else known.last_good
    seen_at: dict[str, object] = {
        "observed_from": iso(observed_from) if observed_from else None,
        "observed_at": iso(seen.observed_at),
        "trading_day": seen.trading_day.isoformat(),
        "session": seen.session,
        "epoch": seen.epoch,
        "version": version,
    }
    head, tail = dumps(about)[:-1], dumps(seen_at)[1:]
    labels = {table.name: table.label for table in target.tr.tables}
    drafts = [
        Draft(NOTICE_TYPE + kind, subject, dumps({**about, "label": target.label, **told, **seen_at}))
        for kind, subject, told in outcome.notices
    ]
    for change in outcome.changes:
        row = change.after or change.before or {}
        label = row.get(labels[change.table] or "") or target.label
        told = dumps(
            {
                "table": change.table,
                "key": change.key,
                "label": label,
                "changed": change.changed,
                "before": change.before,
            }
        )
        after = set_rows.get(change.name, "null")  # the row's text is made once, for the hash and for the entry
        failed = suspects.get(change.name)
        end = f'{tail[:-1]},"suspect":{dumps(failed)}}}' if failed else tail
        drafts.append(Draft(ROW_TYPE + change.kind, change.name, f'{head},{told[1:-1]},"after":{after},{end}'))
    return drafts
