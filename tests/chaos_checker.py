"""What a chaos run left behind goes in; what was lost, doubled or made up comes out, as sentences, or nothing.

Independent like `checker.py`, which looks at streams, snapshots and the ledger; this is about what was made of the
streams. It knows a plain Redis client, polars, the names of keys and the form of entries as the contract describes
them, and the few rules that the run was given, which it decides a second time in its own way.

The surprise is `Lost`: where the end of the server's file was cut off, what stood there was published, and somebody may
have archived or sent it. It may be there or not, but never twice and never as something else.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from tests import checker

Fields = Mapping[str, str]
Entries = list[tuple[str, Fields]]
"""Stream ids and what stands there, in order."""

SHOWN = 3


@dataclass(frozen=True)
class Rule:
    """A row fires while its number stands so to a value: `>=` or `<`."""

    name: str
    tr: str
    table: str
    field: str
    op: str
    value: str

    def holds(self, row: Mapping[str, Any]) -> bool:
        number: Decimal | None = row.get(self.field)
        if number is None:
            return False
        return number >= Decimal(self.value) if self.op == ">=" else number < Decimal(self.value)


@dataclass(frozen=True)
class Lost:
    """What one cut took from one stream: all that stood behind `kept`, the last entry that remained."""

    tr: str
    part: str
    kept: str
    entries: Entries


@dataclass
class Left:
    """Everything that there is to compare, read from where it stands."""

    changes: dict[str, Entries]
    alerts: dict[str, Entries]
    lost: list[Lost] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)

    def gone(self, part: str, tr: str) -> Entries:
        """What cuts took from a stream."""
        return [entry for one in self.lost if (one.part, one.tr) == (part, tr) for entry in one.entries]


def read(url: str, lost: Sequence[Lost]) -> Left:
    """Read the streams."""
    server = checker.connect(url)
    streams = {
        part: {tr: list(server.xrange(f"sectorwire:{{{tr}}}:{part}")) for tr in checker.catalogue()}
        for part in ("changes", "alerts")
    }
    parked = list(server.scan_iter("sectorwire:*:parked:*", count=1000))
    parked += [f"{key} holds {n}" for key in server.scan_iter("sectorwire:send:dead:*") if (n := server.xlen(key))]
    server.close()
    return Left(streams["changes"], streams["alerts"], list(lost), parked)


def some(found: Iterable[object]) -> str:
    """How many, and the first few."""
    listed = list(found)
    return f"{len(listed):,}, such as {listed[:SHOWN]}"


def twice(names: Iterable[Any]) -> list[Any]:
    return [name for name, times in Counter(names).items() if times > 1]


def order(stream_id: str) -> tuple[int, int]:
    ms, _, number = stream_id.partition("-")
    return int(ms), int(number)


def place(fields: Fields) -> tuple[int, int]:
    """Epoch and seq of an entry."""
    return int(fields["id"].rpartition("#")[2].partition(".")[0]), int(fields["seq"])


# --- the ledger ----------------------------------------------------------------------------------------------------


def since_resets(left: Left, ledger: Path) -> Path:
    """The ledger of each target from the walk on that led to its last reset, for `checker.check`.

    A walk through a sliding window is whole when it reaches back to the one before. At a reset there is none before: a
    server that lost a target's first commit is a first sight again, however much was served meanwhile.
    """
    resets = {
        fields["source"].removeprefix("/kiwoom/"): datetime.fromisoformat(fields["time"])
        for entries in left.changes.values()
        for _, fields in entries
        if fields["type"] == "sectorwire.reset"
    }
    kept: dict[str, list[str]] = defaultdict(list)
    for text in ledger.read_text("utf-8").splitlines():
        line = json.loads(text)
        target = f"{line['api_id']}?" + "&".join(f"{name}={value}" for name, value in sorted(line["body"].items()))
        slack = timedelta(milliseconds=1)  # the stream's times are cut to milliseconds
        is_before = target in resets and datetime.fromisoformat(line["at_real"]) <= resets[target] + slack
        if is_before and line["cont_yn_in"] != "Y" and line["status"] == 200:
            kept[target].clear()
        kept[target].append(text)
    trimmed = ledger.with_suffix(".since")
    trimmed.write_text("".join(f"{text}\n" for texts in kept.values() for text in texts), "utf-8")
    return trimmed


# --- histories -----------------------------------------------------------------------------------------------------


def check_histories(left: Left) -> Iterator[str]:
    """Whatever was ever published has a name of its own; after a cut a new epoch begins; nothing is parked."""
    for tr, present in left.changes.items():
        ever = [fields for _, fields in [*present, *left.gone("changes", tr)]]
        if again := twice(fields["id"] for fields in ever):
            yield f"{tr}: ids that stand for two entries: {some(again)}"
        if again := twice(place(fields) for fields in ever):
            yield f"{tr}: epoch and seq that stand for two entries: {some(again)}"
    for cut in left.lost:
        if cut.part != "changes" or not cut.entries:
            continue
        newest = max(place(fields)[0] for _, fields in cut.entries)
        after = [fields["id"] for one, fields in left.changes[cut.tr] if order(one) > order(cut.kept)]
        if old := [one for one in after if int(one.rpartition("#")[2].partition(".")[0]) <= newest]:
            yield f"{cut.tr}: published after a loss in an epoch that was lost: {some(old)}"
    if left.parked:
        yield f"parked or given up: {some(left.parked)}"


def check_commits(left: Left, *, refused: set[str], done: set[str]) -> Iterator[str]:
    """What came late, or never, is nowhere; what was done before its poller died is there, or was cut off."""
    ever = [
        fields["id"].rpartition(".")[0] + "."
        for tr, present in left.changes.items()
        for _, fields in [*present, *left.gone("changes", tr)]
    ]
    if published := refused.intersection(ever):
        yield f"commits of pollers that were dead are published: {some(sorted(published))}"
    if gone := done.difference(ever):
        yield f"commits that were done are gone: {some(sorted(gone))}"


# --- the archive ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archived:
    """One row of the archive."""

    table: str
    stream_id: str
    event_id: str
    epoch: int | None = None
    seq: int | None = None


@dataclass
class Archive:
    """All rows by TR, and the ranges of lost entries that forks name by TR: epoch, first and last seq."""

    rows: dict[str, list[Archived]]
    ranges: dict[str, list[tuple[int, int, int]]]
    forks: Counter[str]
    unreadable: int = 0


def read_archive(folder: Path) -> Archive:
    """Read the tables as any reader would."""
    found = Archive(defaultdict(list), defaultdict(list), Counter())
    columns = ("stream_id", "event_id", "epoch", "seq")
    for tr, described in checker.catalogue().items():
        for table in (one["table"] for one in described["tables"]):
            if (folder / tr / table).exists():
                rows = pl.read_delta(str(folder / tr / table)).select(columns).rows()
                found.rows[tr] += [Archived(table, *row) for row in rows]
    notices = pl.read_delta(str(folder / "notices"))
    for tr, op, data, *row in notices.select("tr", "op", "data", *columns).rows():
        if op == "fork":
            found.forks[tr] += 1
            found.ranges[tr] += [(epoch, first, last) for epoch, first, last in json.loads(data)["ranges"]]
        else:
            found.rows[tr].append(Archived("notices", *row))
    found.unreadable = pl.read_delta(str(folder / "unreadable")).height
    return found


def check_archive(left: Left, archive: Archive) -> Iterator[str]:
    """Each entry is archived once; beside them only what a cut took, if a fork names it."""
    if archive.unreadable:
        yield f"{archive.unreadable} entries could not be read by the archive"
    for tr, present in left.changes.items():
        rows, named = archive.rows[tr], archive.ranges[tr]
        archived, wanted = {row.event_id: row for row in rows}, {fields["id"]: one for one, fields in present}
        if again := twice(row.event_id for row in rows):
            yield f"{tr}: archived twice: {some(again)}"
        if missing := wanted.keys() - archived.keys():
            yield f"{tr}: not archived: {some(sorted(missing))}"
        for one, fields in present:
            row = archived.get(fields["id"])
            table = fields["subject"].partition("/")[0] if ".row." in fields["type"] else "notices"
            if row and (row.table, row.stream_id, row.seq) != (table, one, int(fields["seq"])):
                yield f"{tr}: {fields['id']} stands in the stream as {one}, {fields['seq']}, archived is {row}"
        gone = {fields["id"]: place(fields) for _, fields in left.gone("changes", tr)}
        extra = archived.keys() - wanted.keys()
        if unknown := extra - gone.keys():
            yield f"{tr}: archived and never published: {some(sorted(unknown))}"
        if untold := [one for one in extra & gone.keys() if not _in(gone[one], named)]:
            yield f"{tr}: lost by the server, archived, and in no fork: {some(sorted(untold))}"
        if denied := [fields["id"] for _, fields in present if _in(place(fields), named)]:
            yield f"{tr}: present, and a fork calls it lost: {some(denied)}"


def _in(where: tuple[int, int], ranges: Sequence[tuple[int, int, int]]) -> bool:
    return any(epoch == where[0] and first <= where[1] <= last for epoch, first, last in ranges)


# --- the alerts ----------------------------------------------------------------------------------------------------

Fact = tuple[str, str, str, str, str, str]
"""Rule, source, table, key, firing or resolved, since when."""


def decided(rule: Rule, entries: Entries) -> list[Fact]:
    """What a rule says of a stream, in order."""
    firing: dict[tuple[str, str], str] = {}
    facts: list[Fact] = []

    def end(source: str, key: str) -> None:
        if since := firing.pop((source, key), None):
            facts.append((rule.name, source, rule.table, key, "resolved", since))

    for _, fields in entries:
        source, kind = fields["source"], fields["type"].removeprefix("sectorwire.")
        if kind == "reset":
            for where in [where for where in firing if where[0] == source]:
                end(*where)
        table, _, key = fields["subject"].partition("/")
        if not kind.startswith("row.") or table != rule.table:
            continue
        after = json.loads(fields["data"], parse_float=Decimal, parse_int=Decimal)["after"]
        if after is None or not rule.holds(after):
            end(source, key)
        elif (source, key) not in firing and kind != "row.baseline":
            firing[source, key] = fields["time"]
            facts.append((rule.name, source, rule.table, key, "firing", fields["time"]))
    return facts


def fact_of(decision: Mapping[str, Any]) -> Fact:
    """What a decision says, wherever it is read."""
    query = "&".join(f"{name}={value}" for name, value in sorted(decision["target"].items()))
    source = f"/kiwoom/{decision['tr']}?{query}"
    return (
        decision["rule"],
        source,
        decision["table"],
        decision["key"],
        decision["state"],
        decision["since"],
    )


def by_alert(facts: Iterable[Fact]) -> dict[tuple[str, ...], list[Fact]]:
    found: dict[tuple[str, ...], list[Fact]] = defaultdict(list)
    for fact in facts:
        found[fact[:4]].append(fact)
    return found


def check_decisions(left: Left, rules: Sequence[Rule]) -> Iterator[str]:
    """Each change was decided once, as a second reading of the rules decides it, and in its order."""
    for tr, alerts in left.alerts.items():
        if again := twice(fields["id"] for _, fields in alerts):
            yield f"{tr}: decided twice: {some(again)}"
        seqs = [int(fields["seq"]) for _, fields in alerts]
        if seqs != list(range(1, len(seqs) + 1)):
            yield f"{tr}: the decisions' seq has a hole or a repeat"
        facts = [fact_of(json.loads(fields["data"])) for _, fields in alerts]
        for rule in (rule for rule in rules if rule.tr == tr):
            wanted = by_alert(decided(rule, left.changes[tr]))
            found = by_alert(fact for fact in facts if fact[0] == rule.name)
            for alert in wanted.keys() | found.keys():
                if found[alert] != wanted[alert]:
                    yield _difference(alert, found[alert], wanted[alert])


def _difference(alert: tuple[str, ...], found: list[Fact], wanted: list[Fact]) -> str:
    missing, made_up = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    if not missing and not made_up:
        return f"{alert}: decided in another order: {found}"
    return f"{alert}: {len(found)} decisions; missing {some(missing)}; too many {some(made_up)}"


# --- the webhooks --------------------------------------------------------------------------------------------------


def read_received(path: Path) -> list[dict[str, Any]]:
    """What the receiver wrote down, in order; a line that was cut off was never answered."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


def check_webhooks(left: Left, received: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each decision has arrived, in order per alert; what came again has the same id; nothing else came."""
    if broken := [one for one in received if "broken" in one]:
        yield f"webhooks that are not signed rightly: {some(broken)}"
    arrived: dict[str, Fact] = {}
    for one in received:
        fact = fact_of(json.loads(one["body"])["data"])
        if arrived.setdefault(one["id"], fact) != fact:
            yield f"webhook {one['id']} says {fact} and said {arrived[one['id']]}"
    if again := twice(arrived.values()):
        yield f"the same told under two ids: {some(again)}"
    told: dict[str, Fact] = {}
    for _, fields in (entry for alerts in left.alerts.values() for entry in alerts):
        decision = json.loads(fields["data"])
        if decision["notify"]:
            told[decision["id"]] = fact_of(decision)
    gone = {json.loads(fields["data"])["id"] for tr in left.alerts for _, fields in left.gone("alerts", tr)}
    if missing := told.keys() - arrived.keys():
        yield f"decided, and never received: {some(sorted(missing))}"
    if made_up := arrived.keys() - told.keys() - gone:
        yield f"received, and never decided: {some((one, arrived[one]) for one in sorted(made_up))}"
    in_streams = by_alert(told.values())
    for alert, facts in by_alert(fact for one, fact in arrived.items() if told.get(one) == fact).items():
        if facts != [fact for fact in in_streams[alert] if fact in set(facts)]:
            yield f"{alert}: received in another order than decided: {facts}"


# --- the plain group -----------------------------------------------------------------------------------------------


def read_effects(paths: Iterable[Path]) -> list[tuple[str, str, str]]:
    """What the members wrote down before they acknowledged it: TR, stream id, id."""
    lines = [line.split() for path in paths for line in path.read_text("utf-8").splitlines(keepends=True)]
    return [(line[0], line[1], line[2]) for line in lines if len(line) == 3]


def check_effects(left: Left, effects: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Each entry was handled, now that all are acknowledged; and nothing else was."""
    handled = set(effects)
    present = {(tr, one, fields["id"]) for tr, entries in left.changes.items() for one, fields in entries}
    gone = {(tr, one, fields["id"]) for tr in left.changes for one, fields in left.gone("changes", tr)}
    if missing := present - handled:
        yield f"acknowledged, and never handled: {some(sorted(missing))}"
    if made_up := handled - present - gone:
        yield f"handled, and never published: {some(sorted(made_up))}"
