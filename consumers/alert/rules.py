"""Rules as people write them go in and are checked once; then entries and ticks go in, and decisions come out.

Pure: time is an argument. How an alert lives, per rule, target, table and key:

    inactive --holds--> pending --for--> firing --holds no more--> recovering --keep_firing_for--> inactive
                          |                 ^----------holds again----------|
                          +--holds no more--> inactive

The surprises:

* Only news begins an alert. A baseline tells the engine where a row stands and nothing more: what holds at a reset may
  begin with the row's next change. A reset ends what fires, with the reason.
* Timers follow the entries: before an entry is looked at, its row's timers are run up to the entry's own time, and a
  timer acts at the moment it was due. So a tick that comes late, or never, changes no decision that an entry follows.
* The rows of an append table are one series, known as `-`: what counts is the newest row.
* After a gap no value is compared with one from before it; nothing crosses there.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict
from urllib.parse import parse_qs

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from consumers.alert import text
from consumers.alert.conditions import (
    DIRECTIONS,
    MAX_DEPTH,
    NUMERIC,
    Compare,
    Condition,
    Cross,
    Leaf,
    Memory,
    Not,
    Outcome,
    children,
    depth,
    feed,
    leaves,
    never,
    unlinked,
)
from consumers.durations import seconds
from poller.contract import (
    DOCUMENT_KEY,
    NOTICE_TYPE,
    Catalogue,
    Entry,
    FieldInfo,
    RequestInfo,
    TableInfo,
    TrInfo,
    dumps,
    loads,
)

KST = timezone(timedelta(hours=9))
ALERT_TYPE = "sectorwire.alert."

Phase = Literal["inactive", "pending", "firing", "recovering"]
Transition = Literal["firing", "resolved"]
SessionName = Literal["pre", "regular", "closing", "after", "closed"]


class RuleError(ValueError):
    """A rule is wrong; the message is one line that names the rule, the field and what to write."""


def _duration(given: object) -> timedelta:
    return given if isinstance(given, timedelta) else timedelta(seconds=seconds(given))


def _is_text(given: object) -> object:
    if isinstance(given, int | float):
        raise ValueError(f'{given!r} is not text; write it in quotes, such as "001"')  # noqa: TRY004 -- pydantic's protocol
    return given


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Quoted = Annotated[str, BeforeValidator(_is_text)]


class RuleSettings(BaseModel):
    """One `[[rule]]` of the configuration.

    `session` names the sessions in which an alert may begin; left out, it may in any, since who polls around the clock
    wants to hear of what is found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    title: str | None = None
    tr: str
    table: str | None = None
    target: dict[str, Quoted | list[Quoted]] = {}
    keys: Annotated[list[Quoted], Field(min_length=1)] | None = None
    when: Condition
    for_: Annotated[Duration, Field(alias="for")] = timedelta(0)
    keep_firing_for: Duration = timedelta(0)
    notify: list[str] = []
    session: list[SessionName] = []

    @field_validator("when")
    @classmethod
    def _not_too_deep(cls, when: Condition) -> Condition:
        if depth(when) > MAX_DEPTH:
            raise ValueError(f"conditions stand {depth(when)} deep inside each other, at most {MAX_DEPTH} may")
        return when


@dataclass(frozen=True)
class Rule:
    """A rule that was checked. `condition` changes when what it decides may change, and with nothing else."""

    name: str
    title: str
    tr: str
    table: TableInfo
    target: Mapping[str, tuple[str, ...]]
    keys: frozenset[str] | None
    when: Condition
    hold: timedelta
    keep: timedelta
    notify: tuple[str, ...]
    sessions: frozenset[str]
    fields: Mapping[str, FieldInfo]
    condition: str

    def covers(self, target: Mapping[str, str], table: str, key: str) -> bool:
        """Whether a row is this rule's to judge."""
        return (
            table == self.table.table
            and all(target.get(element) in allowed for element, allowed in self.target.items())
            and (self.keys is None or key in self.keys)
        )


class Series(TypedDict):
    """What is known of one row under one rule; plain data, so that it can be stored between two entries."""

    condition: str
    source: str
    phase: Phase
    memory: Memory
    blind: str  # what changed since before this moment was not seen in between; empty when nothing was missed
    newest: str  # of an append table: the key of the newest row
    since: str
    entry: str  # the id of the entry that began it
    due: str  # when pending fires, or recovering resolves
    facts: dict[str, Any]


State = dict[str, Series]
"""Every series that has something to remember, by its name."""


@dataclass(frozen=True)
class Tick:
    """Time went on and nothing came; everything that was published by then has been looked at."""


@dataclass(frozen=True)
class Decision:
    """An alert that begins or ends. Made again from the same entries, it has the same id."""

    id: str
    transition: Transition
    rule: str
    source: str
    subject: str
    time: datetime
    notify: tuple[str, ...]
    data: dict[str, Any]

    @property
    def type(self) -> str:
        """The event's type."""
        return ALERT_TYPE + self.transition


# --- checking ---------------------------------------------------------------------------------------------------------


def compile_rules(settings: Sequence[RuleSettings], catalogue: Catalogue, endpoints: Collection[str]) -> list[Rule]:
    """The rules, checked against what there is. Raises RuleError with what to write instead."""
    rules: dict[str, Rule] = {}
    for one in settings:
        if one.name in rules:
            raise RuleError(f'two rules are named "{one.name}": give each a name of its own')
        try:
            rules[one.name] = _compile(one, catalogue, endpoints)
        except RuleError as error:
            raise RuleError(f'rule "{one.name}": {error}') from None
    return list(rules.values())


def _compile(one: RuleSettings, catalogue: Catalogue, endpoints: Collection[str]) -> Rule:
    if one.tr not in catalogue:
        names = {**{code: code for code in catalogue}, **{info.name: code for code, info in catalogue.items()}}
        raise RuleError(f'tr = "{one.tr}": there is no such TR; {_nearest(one.tr, names)}')
    tr = catalogue[one.tr]
    table = _table(one, tr)
    target = {element: _target_values(tr, element, given) for element, given in one.target.items()}
    for name in one.notify:
        if name not in endpoints:
            hint = _nearest(name, {known: known for known in endpoints})
            raise RuleError(f'notify: there is no endpoint "{name}"; {hint}')
    if table.mode != "keyed" and one.keys not in (None, [DOCUMENT_KEY]):
        why = "has one row" if table.mode == "document" else "is one series, of which the newest row counts"
        raise RuleError(f'keys: table {table.table} {why}: leave keys out, or write ["{DOCUMENT_KEY}"]')
    fields = {}
    for where, leaf in _places(one.when):
        info = _field(f"{where}.field", leaf.field, tr, table, target)
        _check_leaf(where, leaf, info)
        fields[leaf.field] = info
    reason = never(one.when, lambda field: fields[field].kind)
    if reason:
        raise RuleError(f"when: this can never fire: {reason}")
    return Rule(
        name=one.name,
        title=one.title or one.name,
        tr=one.tr,
        table=table,
        target=target,
        keys=None if one.keys is None else frozenset(one.keys),
        when=one.when,
        hold=one.for_,
        keep=one.keep_firing_for,
        notify=tuple(dict.fromkeys(one.notify)),
        sessions=frozenset(one.session),
        fields=fields,
        condition=_fingerprint(one, table),
    )


def _fingerprint(one: RuleSettings, table: TableInfo) -> str:
    what = {
        "tr": one.tr,
        "table": table.table,
        "when": one.when.model_dump(),
        "for": str(one.for_.total_seconds()),
        "keep": str(one.keep_firing_for.total_seconds()),
        "session": sorted(one.session),
    }
    return hashlib.sha256(dumps(what).encode()).hexdigest()[:16]


def _table(one: RuleSettings, tr: TrInfo) -> TableInfo:
    tables = {table.table: table for table in tr.tables}
    if one.table is None:
        if len(tables) > 1:
            choice = " or ".join(f'table = "{name}"' for name in tables)
            raise RuleError(f"table is missing: {tr.tr} has several; write {choice}")
        return tr.tables[0]
    if one.table not in tables:
        hint = _nearest(one.table, {name: name for name in tables})
        raise RuleError(f'table = "{one.table}": {tr.tr} has no such table; {hint}')
    return tables[one.table]


def _target_values(tr: TrInfo, element: str, given: str | list[str]) -> tuple[str, ...]:
    known = {info.element: info for info in tr.request}
    if element not in known:
        names = {**{name: name for name in known}, **{info.korean: name for name, info in known.items()}}
        raise RuleError(f'target: {tr.tr} has no request element "{element}"; {_nearest(element, names)}')
    values = (given,) if isinstance(given, str) else tuple(given)
    allowed = known[element].values
    for value in values:
        if isinstance(allowed, dict) and value not in allowed:
            listed = ", ".join(f'"{one}" {meaning}' for one, meaning in allowed.items())
            raise RuleError(f'target.{element} = "{value}": allowed are {listed}')
    if not values:
        raise RuleError(f"target.{element} = []: this can never fire; name a value, or leave it out for all")
    return values


def _field(where: str, word: str, tr: TrInfo, table: TableInfo, target: Mapping[str, tuple[str, ...]]) -> FieldInfo:
    info = table.info(word)
    if info is None:
        raise RuleError(f'{where} = "{word}": {_other_name(word, tr, table)}')
    variants = [variant for variant in info.variants if variant["field"] == word]
    for variant in variants or info.variants:
        for element, value in variant["when"].items():
            request = next(one for one in tr.request if one.element == element)
            wanted = {value} if variants else set(request.values) - {value}
            if not set(target.get(element, ())) or not set(target[element]) <= wanted:
                raise RuleError(f'{where} = "{word}": only there with {_written(request, sorted(wanted))}')
    return info.model_copy(update={k: v for k, v in variants[0].items() if k != "when"}) if variants else info


def _written(request: RequestInfo, wanted: Sequence[str]) -> str:
    meaning = request.values.get(wanted[0], "") if isinstance(request.values, dict) else ""
    return f'target = {{ {request.element} = "{wanted[0]}" }} ({request.korean} {meaning})'


def _other_name(word: str, tr: TrInfo, table: TableInfo) -> str:
    """What a word that is no field of ours may have meant: the broker's element, a Korean label, a slip."""
    for info in table.fields:
        if word == info.element or _spelt(word) == _spelt(info.korean):
            return f"here it is called {info.field}"
    for other in tr.tables:
        if other.info(word):
            return f"it is a field of table {other.table}, not of {table.table}"
    names: dict[str, str] = {}
    for info in table.fields:
        names |= {_spelt(name): info.field for name in (info.korean, info.element) if name}
        names |= {name: name for name in (info.field, *(variant["field"] for variant in info.variants))}
    return f"table {table.table} has no such field; {_nearest(_spelt(word), names)}"


def _spelt(korean: str) -> str:
    """One spelling of 율 and 률, which the broker's document mixes."""
    return korean.replace("율", "률").replace(" ", "")


def _nearest(word: str, names: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(word, names, 1)
    if close:
        return f"did you mean {names[close[0]]}?"
    known = ", ".join(dict.fromkeys(names.values()))
    return f"known: {known}" if known else "there are none yet"


def _places(condition: Condition, where: str = "when") -> Iterator[tuple[str, Leaf]]:
    """Every leaf, with its place as the file has it: `when.of[1]`."""
    if isinstance(condition, Compare | Cross):
        yield where, condition
    for number, child in enumerate(children(condition)):
        yield from _places(child, f"{where}.of" if isinstance(condition, Not) else f"{where}.of[{number}]")


def _check_leaf(where: str, leaf: Leaf, info: FieldInfo) -> None:
    if isinstance(leaf, Cross):
        if info.kind not in NUMERIC:
            raise RuleError(f"{where}: {leaf.field} is a {info.kind} and crosses nothing; compare it with ==")
        return
    if info.kind in NUMERIC:
        if isinstance(leaf.value, str):
            raise RuleError(f'{where}.value = "{leaf.value}": {leaf.field} is a number; write it without quotes')
        _check_clear(where, leaf, leaf.value)
        return
    if leaf.op not in ("==", "!="):
        raise RuleError(f'{where}.op = "{leaf.op}": {leaf.field} is a {info.kind}; only == and != compare it')
    if not isinstance(leaf.value, str):
        raise RuleError(f"{where}.value = {leaf.value}: {leaf.field} is a {info.kind}; write it in quotes")
    if leaf.clear is not None:
        raise RuleError(f"{where}.clear: {leaf.field} is a {info.kind}, which has no second threshold")
    if info.kind == "direction" and leaf.value not in DIRECTIONS:
        words = {**{word: word for word in DIRECTIONS}, **{text.DIRECTIONS[word]: word for word in DIRECTIONS}}
        raise RuleError(f'{where}.value = "{leaf.value}": no such direction; {_nearest(leaf.value, words)}')


def _check_clear(where: str, leaf: Compare, value: Decimal) -> None:
    if leaf.clear is None:
        return
    if leaf.op in ("==", "!="):
        raise RuleError(f'{where}.clear: op = "{leaf.op}" has no second threshold; clear goes with < <= > >=')
    above = leaf.op.startswith("<")
    if (leaf.clear <= value) if above else (leaf.clear >= value):
        side = "above" if above else "below"
        raise RuleError(f'{where}.clear = {leaf.clear}: with op = "{leaf.op}" it belongs {side} value = {value}')


# --- deciding ---------------------------------------------------------------------------------------------------------


def step(rules: Sequence[Rule], state: State, event: Entry | Tick, now: datetime) -> tuple[State, list[Decision]]:
    """The state after one event, and what was decided. A tick goes by `now`, an entry by its own time."""
    return steps(rules, state, [event], now)


def steps(
    rules: Sequence[Rule], state: State, events: Iterable[Entry | Tick], now: datetime
) -> tuple[State, list[Decision]]:
    """Many steps in one, which copies the state once."""
    after, decisions = dict(state), []
    for event in events:
        if isinstance(event, Tick):
            decisions += _tick(rules, after, now)
        elif event.row_kind is not None:
            for rule in rules:
                if rule.tr == event.data["tr"]:
                    decisions += _row(rule, after, event)
        elif event.type == NOTICE_TYPE + "reset":
            decisions += _reset(rules, after, event)
        elif event.type == NOTICE_TYPE + "gap":
            _gap(after, event)
    return after, decisions


def retire(rules: Sequence[Rule], state: State, now: datetime) -> tuple[State, list[Decision]]:
    """The state without what no rule answers for any more: a condition was edited, a rule or a key taken out.

    What fires there ends with the reason, so that nobody waits for its end for ever.
    """
    known = {rule.name: rule for rule in rules}
    after, decisions = dict(state), []
    for name, series in state.items():
        rule_name, _, table, key = loads(name)
        rule, query = known.get(rule_name), series["source"].partition("?")[2]
        target = {element: values[0] for element, values in parse_qs(query, keep_blank_values=True).items()}
        if rule is None or rule.condition != series["condition"] or not rule.covers(target, table, key):
            decisions += _end(None, name, series, now, "rule_changed")
            del after[name]
    return after, decisions


def next_due(state: State) -> datetime | None:
    """When the next timer runs out; None while none is pending."""
    due = [series["due"] for series in state.values() if series["due"]]
    return min(map(datetime.fromisoformat, due), default=None)


def _tick(rules: Sequence[Rule], state: State, now: datetime) -> list[Decision]:
    known, decisions = {rule.name: rule for rule in rules}, []
    for name, series in list(state.items()):
        if series["due"]:
            rule = known.get(loads(name)[0])
            if rule is not None and rule.condition == series["condition"]:
                ran, decided = _run_timer(rule, name, series, now)
                _put(state, name, ran)
                decisions += decided
    return decisions


def _reset(rules: Sequence[Rule], state: State, entry: Entry) -> list[Decision]:
    """The target starts afresh: what was remembered of it goes, and what fires ends."""
    known, decisions = {rule.name: rule for rule in rules}, []
    for name, series in list(state.items()):
        if series["source"] == entry.source:
            rule = known.get(loads(name)[0])
            ran, decided = _run_timer(rule, name, series, entry.time)
            decisions += [*decided, *_end(rule, name, ran, entry.time, "reset")]
            del state[name]
    return decisions


def _gap(state: State, entry: Entry) -> None:
    """Nobody saw what was between, so nothing crosses there."""
    missed = entry.data.get("table")
    for name, series in list(state.items()):
        if series["source"] == entry.source and missed in (None, loads(name)[2]):
            state[name] = {**series, "blind": entry.data["to"]}


def _row(rule: Rule, state: State, entry: Entry) -> list[Decision]:
    data = entry.data
    key = DOCUMENT_KEY if rule.table.mode == "append" else data["key"]
    if not rule.covers(data["target"], data["table"], key):
        return []
    name = dumps([rule.name, entry.source, data["table"], key])
    series, decisions = state.get(name) or _fresh(rule, entry), []
    if series["condition"] != rule.condition:
        decisions, series = _end(None, name, series, entry.time, "rule_changed"), _fresh(rule, entry)
    if rule.table.mode == "append":
        if data["after"] is None or data["key"] < series["newest"]:
            return decisions
        series = {**series, "newest": data["key"]}
    series, decided = _run_timer(rule, name, series, entry.time)
    decisions += decided
    if data["after"] is None:
        state.pop(name, None)
        return decisions + _end(rule, name, series, entry.time, "removed")
    series = _sighted(series, data["observed_from"])
    news = entry.row_kind != "baseline" and (not rule.sessions or data["session"] in rule.sessions)
    outcome, memory = feed(rule.when, data["after"], series["memory"], news=news)
    series, decided = _turn(rule, name, {**series, "memory": memory}, outcome, entry, news=news)
    _put(state, name, series)
    return decisions + decided


def _fresh(rule: Rule, entry: Entry) -> Series:
    return {
        "condition": rule.condition,
        "source": entry.source,
        "phase": "inactive",
        "memory": {},
        "blind": "",
        "newest": "",
        "since": "",
        "entry": "",
        "due": "",
        "facts": {},
    }


def _put(state: State, name: str, series: Series) -> None:
    """Keep what has something to remember; the rest is as good as never seen."""
    if series["phase"] == "inactive" and not series["memory"] and not series["newest"]:
        state.pop(name, None)
    else:
        state[name] = series


def _sighted(series: Series, observed_from: str | None) -> Series:
    """The series as the next row may be compared with it: without its values where nobody looked in between."""
    if not series["blind"]:
        return series
    if observed_from is None or datetime.fromisoformat(observed_from) < datetime.fromisoformat(series["blind"]):
        return {**series, "memory": unlinked(series["memory"])}
    return {**series, "blind": ""}


def _run_timer(rule: Rule | None, name: str, series: Series, until: datetime) -> tuple[Series, list[Decision]]:
    """What a timer brought about by then, at the moment it was due."""
    if not series["due"] or datetime.fromisoformat(series["due"]) > until:
        return series, []
    at = datetime.fromisoformat(series["due"])
    if series["phase"] == "pending":
        return {**series, "phase": "firing", "due": ""}, [_decision(rule, name, series, "firing", at)]
    return _idle(series), [_decision(rule, name, series, "resolved", at, "cleared")]


def _idle(series: Series) -> Series:
    return {**series, "phase": "inactive", "since": "", "entry": "", "due": "", "facts": {}}


def _turn(
    rule: Rule, name: str, series: Series, outcome: Outcome, entry: Entry, *, news: bool
) -> tuple[Series, list[Decision]]:
    """One row's step through the phases."""
    active = series["phase"] in ("firing", "recovering")
    if series["phase"] == "inactive" and not (outcome.holds and news):
        return series, []
    leaf = outcome.leaf if outcome.holds else series["facts"]["leaf"]
    told: Series = {**series, "facts": _facts(rule, leaf, entry)}
    if not outcome.holds:
        return _lapse(rule, name, told, entry) if active else (_idle(series), [])
    if outcome.again or series["phase"] == "inactive":
        ended = _end(rule, name, told, entry.time, "cleared")
        began, decisions = _begin(rule, name, told, entry)
        return began, ended + decisions
    return ({**told, "phase": "firing", "due": ""} if active else told), []


def _begin(rule: Rule, name: str, told: Series, entry: Entry) -> tuple[Series, list[Decision]]:
    began: Series = {**told, "since": iso(entry.time), "entry": entry.id}
    if rule.hold:
        return {**began, "phase": "pending", "due": iso(entry.time + rule.hold)}, []
    return {**began, "phase": "firing", "due": ""}, [_decision(rule, name, began, "firing", entry.time)]


def _lapse(rule: Rule, name: str, told: Series, entry: Entry) -> tuple[Series, list[Decision]]:
    """What fires holds no more: it ends, at once or after a while."""
    if told["phase"] == "recovering":
        return told, []
    if rule.keep:
        return {**told, "phase": "recovering", "due": iso(entry.time + rule.keep)}, []
    return _idle(told), _end(rule, name, told, entry.time, "cleared")


def _end(rule: Rule | None, name: str, series: Series, at: datetime, reason: str) -> list[Decision]:
    if series["phase"] not in ("firing", "recovering"):
        return []
    return [_decision(rule, name, series, "resolved", at, reason)]


def _facts(rule: Rule, path: str, entry: Entry) -> dict[str, Any]:
    """What an alert says of its row, and what it needs to say it later, even when its rule is gone."""
    data, row = entry.data, entry.data["after"]
    leaf = dict(leaves(rule.when))[path]
    info = rule.fields[leaf.field]
    value, before = row.get(leaf.field), data.get("before") or {}
    appeared = entry.row_kind != "changed"
    return {
        "tr": data["tr"],
        "target": data["target"],
        "label": data["label"],
        "field": leaf.field,
        "field_ko": info.korean,
        "value": value,
        "unit": info.unit,
        "threshold": leaf.level if isinstance(leaf, Cross) else leaf.value,
        "previous": None if appeared else before.get(leaf.field, value),
        "observed_from": data["observed_from"],
        "observed_at": data["observed_at"],
        "trading_day": data["trading_day"],
        "session": data["session"],
        "leaf": path,
        "title": rule.title,
        "notify": list(rule.notify),
        "mark": text.mark(value, leaf),
        "body": text.body(data["label"], row, leaf, info, rule.table),
    }


def _decision(
    rule: Rule | None, name: str, series: Series, transition: Transition, at: datetime, reason: str | None = None
) -> Decision:
    rule_name, source, table, key = loads(name)
    facts, local = series["facts"], at.astimezone(KST)
    began = [rule_name, series["condition"], source, table, key, series["since"], series["entry"], transition]
    decision_id = hashlib.sha256(dumps(began).encode()).hexdigest()[:32]
    line = (
        text.firing(facts["mark"], facts["body"], local)
        if transition == "firing"
        else text.resolved(facts["body"], local, reason or "")
    )
    said = ("field", "field_ko", "value", "unit", "threshold", "previous")
    seen = ("observed_from", "observed_at", "trading_day", "session")
    data = {
        "id": decision_id,
        "rule": rule_name,
        "title": rule.title if rule else facts["title"],
        "state": transition,
        "reason": reason,
        "tr": facts["tr"],
        "target": facts["target"],
        "table": table,
        "key": key,
        "label": facts["label"],
        **{fact: facts[fact] for fact in said},
        "since": series["since"],
        **{fact: facts[fact] for fact in seen},
        "text": line,
    }
    notify = rule.notify if rule else tuple(facts["notify"])
    return Decision(decision_id, transition, rule_name, source, f"{table}/{key}", at, notify, data)


def iso(moment: datetime) -> str:
    """A moment as entries write it: Korean time, milliseconds."""
    return moment.astimezone(KST).isoformat(timespec="milliseconds")
