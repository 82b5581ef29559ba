"""Rules are checked when they are read, and decide what a person would: once, at the right moment, with the reason."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from consumers.alert.rules import (
    Decision,
    Rule,
    RuleError,
    RuleSettings,
    State,
    Tick,
    compile_rules,
    iso,
    next_due,
    retire,
    step,
    steps,
)
from poller.catalogue import described
from poller.contract import Entry, dumps, loads
from tests.builders import NOON

CATALOGUE = described()
SOURCE = "/kiwoom/ka20003?inds_cd=001"
FALLS = {"kind": "compare", "field": "change_pct", "op": "<=", "value": -2}
FALLS_WITH_CLEAR = {**FALLS, "clear": -1.5}
FOR_30_S: dict[str, Any] = {"for": "30s"}
BREAKS_UP = {"kind": "cross", "field": "level", "direction": "up", "level": 2600}
BREAKS = {**BREAKS_UP, "direction": "either"}


def settings(when: dict[str, Any] | None = None, **more: Any) -> RuleSettings:
    given_ = {"name": "falls", "tr": "ka20003", "when": when or FALLS, "notify": ["desk"], **more}
    return RuleSettings.model_validate(given_)


def rules(when: dict[str, Any] | None = None, **more: Any) -> list[Rule]:
    return compile_rules([settings(when, **more)], CATALOGUE, ["desk", "phone"])


def refused(when: dict[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(RuleError) as error:
        rules(when, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


def entry(kind: str, second: float, **data: Any) -> Entry:
    """One entry of the KOSPI's target, that many seconds after noon."""
    type_ = f"sectorwire.{kind}" if kind in {"reset", "gap"} else f"sectorwire.row.{kind}"
    base = {"tr": "ka20003", "target": {"inds_cd": "001"}, "label": "종합(KOSPI)", "session": "regular"}
    seen = {"observed_from": iso(at(second - 10)), "observed_at": iso(at(second)), "trading_day": "2026-11-23"}
    return Entry(
        id=f"ka20003?inds_cd=001#1.{int(second * 1000)}.1",
        source=SOURCE,
        type=type_,
        subject="-",
        time=at(second),
        seq=1,
        data={**base, **seen, **data},
    )


def row(second: float, pct: object = "0", level: object = "2393.33", *, kind: str = "changed", **more: Any) -> Entry:
    """KOSPI's row as it stood then; `pct` None means that the broker sent nothing."""
    after = {
        "sector_code": "001",
        "level": None if level is None else Decimal(str(level)),
        "change_pct": None if pct is None else Decimal(str(pct)),
        "direction": "down",
        "advancers": 100,
    }
    before = {"change_pct": Decimal("-0.5")} if kind == "changed" else None
    here = {"table": "indices", "key": "001", "before": before, "after": None if kind == "removed" else after}
    return entry(kind, second, **{**here, **more})


def reset(second: float) -> Entry:
    return entry("reset", second, reason="new_day")


def gap(since: float, until: float) -> Entry:
    return entry("gap", until, **{"from": iso(at(since)), "to": iso(at(until)), "polls_missed": 3, "reason": "broker"})


def decided(some: Sequence[Rule], *events: Entry | float, state: State | None = None) -> list[Decision]:
    """What is decided on these, a number being a tick at that second. The state is stored and read between any two."""
    state, found = state or {}, []
    for event in events:
        now = at(event) if isinstance(event, int | float) else event.time
        state, made = step(some, state, event if isinstance(event, Entry) else Tick(), now)
        state = loads(dumps(state))
        found += made
    return found


def seconds(one: Entry) -> float:
    return (one.time - NOON).total_seconds()


def told(decisions: Iterable[Decision]) -> list[tuple[str, float]]:
    """What happened, and at which second."""
    return [(one.transition, (one.time - NOON).total_seconds()) for one in decisions]


# --- a comparison -----------------------------------------------------------------------------------------------------


def test_an_alert_fires_when_its_condition_comes_true_and_resolves_when_it_ends():
    made = decided(rules(), row(1, -1), row(2, "-2.31"), row(3, -3), row(4, "-1.42"))

    assert told(made) == [("firing", 2), ("resolved", 4)]


def test_a_value_on_the_threshold_counts_exactly():
    """-2 in the file is not -2.0000000000000004 in the engine."""
    tight = rules({**FALLS, "value": -2.1})

    assert told(decided(tight, row(1, "-2.1"))) == [("firing", 1)]
    assert not decided(tight, row(1, "-2.09"))


def test_what_the_payload_and_the_text_say():
    firing, resolved = decided(rules(title="코스피 급락"), row(1, "-2.31"), row(20, "-1.4", 2411))

    assert firing.data == {
        "id": firing.id,
        "rule": "falls",
        "title": "코스피 급락",
        "state": "firing",
        "reason": None,
        "tr": "ka20003",
        "target": {"inds_cd": "001"},
        "table": "indices",
        "key": "001",
        "label": "종합(KOSPI)",
        "field": "change_pct",
        "field_ko": "등락률",
        "value": Decimal("-2.31"),
        "unit": "percent",
        "threshold": Decimal(-2),
        "previous": Decimal("-0.5"),
        "since": iso(at(1)),
        "observed_from": iso(at(-9)),
        "observed_at": iso(at(1)),
        "trading_day": "2026-11-23",
        "session": "regular",
        "text": "▼ 종합(KOSPI) 등락률 -2.31 % (기준 -2 %) · 지수 2,393.33 · 12:00:01",
    }
    assert (firing.type, firing.subject, firing.notify) == ("sectorwire.alert.firing", "indices/001", ("desk",))
    assert resolved.data["text"] == "✓ 해제 종합(KOSPI) 등락률 -1.40 % (기준 -2 %) · 지수 2,411.00 · 12:00:20"
    assert resolved.data["since"] == iso(at(1))
    assert firing.id != resolved.id


@pytest.mark.parametrize(
    ("when", "first", "then", "text"),
    [
        (
            BREAKS_UP,
            row(1, 1, 2590),
            row(2, "1.02", "2601.1"),
            "▲ 종합(KOSPI) 지수 2,601.10 (기준 2,600 상향 돌파) · 등락률 1.02 % · 12:00:02",
        ),
        (
            {"kind": "compare", "field": "advancers", "op": ">=", "value": 100},
            reset(0),
            row(2),
            "▲ 종합(KOSPI) 상승 100종목 (기준 100종목) · 지수 2,393.33 · 12:00:02",
        ),
        (
            {"kind": "compare", "field": "direction", "op": "==", "value": "down"},
            reset(0),
            row(2),
            "● 종합(KOSPI) 대비기호 하락 (기준 하락) · 지수 2,393.33 · 12:00:02",
        ),
    ],
)
def test_the_text_fits_what_it_is_about(when: dict[str, Any], first: Entry, then: Entry, text: str):
    assert [one.data["text"] for one in decided(rules(when), first, then)] == [text]


def test_a_missing_value_is_no_reason_to_fire_not_even_for_not():
    opposite = {"kind": "not", "of": {**FALLS, "op": ">", "value": -2}}

    assert not decided(rules(), row(1, None))
    assert not decided(rules(opposite), row(1, None))
    assert told(decided(rules(opposite), row(1, -3))) == [("firing", 1)]


def test_with_clear_a_value_around_its_threshold_makes_one_alert():
    values = [row(n, pct) for n, pct in enumerate(["-2.1", "-1.9", "-2.2", "-1.5", "-1.49", "-1.9", "-2"], 1)]

    assert told(decided(rules(FALLS_WITH_CLEAR), *values)) == [("firing", 1), ("resolved", 5), ("firing", 7)]


def test_each_row_has_an_alert_of_its_own():
    other = row(2, -3, key="002", label="대형주")
    made = decided(rules(), row(1, -3), other, row(3, 0))

    assert [(one.transition, one.data["key"]) for one in made] == [
        ("firing", "001"),
        ("firing", "002"),
        ("resolved", "001"),
    ]
    assert [one.data["key"] for one in decided(rules(keys=["002"]), row(1, -3), other)] == ["002"]
    assert not decided(rules(target={"inds_cd": "101"}), row(1, -3))


def test_a_row_that_goes_takes_its_alert_along():
    made = decided(rules(), row(1, -3), row(2, kind="removed"), row(3, -3, kind="added"))

    assert told(made) == [("firing", 1), ("resolved", 2), ("firing", 3)]
    assert made[1].data["reason"] == "removed"
    assert "목록에서 빠짐" in made[1].data["text"]


def test_the_rows_of_a_growing_list_are_one_series():
    """A tick of 12:00:01 never changes again: what counts is the newest."""
    ticks = compile_rules([settings(tr="ka20001", table="ticks")], CATALOGUE, ["desk"])

    def tick(second: int, pct: object, key: str) -> Entry:
        appended = row(second, pct, kind="appended", table="ticks", key=key)
        return appended.model_copy(update={"data": {**appended.data, "tr": "ka20001"}})

    made = decided(
        ticks, tick(1, -3, "12:00:01"), tick(2, 0, "11:59:00"), tick(2, -4, "12:00:02"), tick(3, 0, "12:00:03")
    )

    assert told(made) == [("firing", 1), ("resolved", 3)]


# --- what is not news -------------------------------------------------------------------------------------------------


def test_a_baseline_never_fires_but_the_next_change_may():
    """What holds when we first look is no event; that it still holds when the row moves is worth a word."""
    assert not decided(rules(), reset(1), row(1, -3, kind="baseline"))
    assert told(decided(rules(), reset(1), row(1, -3, kind="baseline"), row(2, "-3.1"))) == [("firing", 2)]


def test_a_baseline_beyond_the_threshold_brings_no_second_threshold_into_force():
    made = decided(rules(FALLS_WITH_CLEAR), reset(1), row(1, -3, kind="baseline"), row(2, "-1.8"), row(3, "-2.1"))

    assert told(made) == [("firing", 3)]


def test_a_reset_ends_what_fires_and_says_why():
    made = decided(rules(), row(1, -3), reset(2), row(2, -3, kind="baseline"), row(3, "-3.1"))

    assert told(made) == [("firing", 1), ("resolved", 2), ("firing", 3)]
    assert made[1].data["reason"] == "reset"
    assert made[0].id != made[2].id


def test_a_reset_drops_what_was_pending():
    assert not decided(rules(**FOR_30_S), row(1, -3), reset(10), row(10, -3, kind="baseline"), 60)


def test_outside_the_sessions_a_rule_names_nothing_begins():
    regular = rules(FALLS_WITH_CLEAR, session=["regular"])

    assert not decided(regular, row(1, -3, session="after"))
    assert not decided(regular, row(1, -3, session="pre"), row(2, "-1.8"))
    assert told(decided(regular, row(1, -3), row(2, 0, session="after"))) == [("firing", 1), ("resolved", 2)]
    assert told(decided(rules(), row(1, -3, session="closed"))) == [("firing", 1)]


def test_what_crossed_outside_the_sessions_does_not_begin_with_them():
    late = [row(1, level=2590, session="pre"), row(2, level=2610, session="pre"), row(3, level=2620)]
    right = [row(1, level=2590, session="pre"), row(2, level=2610)]

    assert not decided(rules(BREAKS_UP, session=["regular"]), *late)
    assert told(decided(rules(BREAKS_UP, session=["regular"]), *right)) == [("firing", 2)]


# --- a crossing -------------------------------------------------------------------------------------------------------


def test_a_crossing_needs_a_value_from_before():
    assert not decided(rules(BREAKS_UP), row(1, level=2700))
    assert told(decided(rules(BREAKS_UP), row(1, level=2599), row(2, level=2600))) == [("firing", 2)]


def test_a_crossing_holds_until_the_value_is_back():
    made = decided(rules(BREAKS_UP), *(row(n, level=x) for n, x in enumerate([2590, 2610, 2650, 2600, 2599, 2601])))

    assert told(made) == [("firing", 1), ("resolved", 4), ("firing", 5)]


def test_a_baseline_tells_where_the_value_comes_from():
    made = decided(rules(BREAKS_UP), reset(1), row(1, level=2590, kind="baseline"), row(2, level=2610))

    assert told(made) == [("firing", 2)]


def test_nothing_crosses_at_a_reset():
    made = decided(
        rules(BREAKS_UP), row(1, level=2590), reset(2), row(2, level=2610, kind="baseline"), row(3, level=2611)
    )

    assert not made


def test_nothing_crosses_in_a_gap_and_rows_that_did_not_move_in_it_cross_after_it():
    unseen = [row(1, level=2590), gap(1, 60), row(60, level=2610, observed_from=iso(at(1)))]
    late = [row(1, level=2590), gap(1, 60), row(70, level=2610, observed_from=iso(at(60)))]

    assert not decided(rules(BREAKS_UP), *unseen, row(70, level=2620))
    assert told(decided(rules(BREAKS_UP), *late)) == [("firing", 70)]


def test_a_crossing_back_is_news_where_either_direction_counts():
    made = decided(rules(BREAKS), row(1, level=2590), row(2, level=2610), row(3, level=2620), row(4, level=2580))

    assert told(made) == [("firing", 2), ("resolved", 4), ("firing", 4)]
    assert len({one.id for one in made}) == 3
    assert made[-1].data["text"].startswith("▼")


def test_a_missing_value_is_passed_over():
    made = decided(rules(BREAKS_UP), row(1, level=2590), row(2, level=None), row(3, level=2610))

    assert told(made) == [("firing", 3)]


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_condition_has_to_hold_for_as_long_as_it_says():
    patient = rules(**FOR_30_S)

    assert told(decided(patient, row(1, -3), 30, 31, 32)) == [("firing", 31)]
    assert not decided(patient, row(1, -3), row(20, 0), 60)


def test_a_late_tick_decides_at_the_moment_it_was_due():
    (late,) = decided(rules(**FOR_30_S), row(1, -3), 500)
    (right,) = decided(rules(**FOR_30_S), row(1, -3), 31)

    assert late == right
    assert late.data["text"].endswith("12:00:31")


def test_an_entry_finds_the_timers_run_up_to_its_own_time():
    made = decided(rules(**FOR_30_S), row(1, -3), row(60, 0))

    assert told(made) == [("firing", 31), ("resolved", 60)]


def test_an_alert_that_should_keep_firing_outlives_a_short_calm():
    calm = rules(keep_firing_for="1m")

    assert told(decided(calm, row(1, -3), row(10, 0), 50, row(60, -3), 200)) == [("firing", 1)]
    assert told(decided(calm, row(1, -3), row(10, 0), 69, 70)) == [("firing", 1), ("resolved", 70)]


def test_the_calm_is_counted_from_its_beginning():
    made = decided(rules(keep_firing_for="1m"), row(1, -3), row(10, 0), row(50, -1), 70)

    assert told(made) == [("firing", 1), ("resolved", 70)]


def test_a_timer_is_known_for_as_long_as_it_is_pending():
    state, _ = step(rules(**FOR_30_S), {}, row(1, -3), at(1))

    assert next_due(state) == at(31)
    assert next_due(step(rules(**FOR_30_S), state, Tick(), at(31))[0]) is None


# --- together ---------------------------------------------------------------------------------------------------------


def test_all_feeds_every_child():
    """A child that is not fed while another one is false would not know where its value comes from."""
    both = rules({"kind": "all", "of": [FALLS, BREAKS_UP]})

    assert told(decided(both, row(1, 0, 2590), row(2, 0, 2610), row(3, -3, 2610))) == [("firing", 3)]


def test_any_tells_of_the_child_that_holds():
    either = rules({"kind": "any", "of": [FALLS, BREAKS_UP]})
    firing, resolved = decided(either, row(1, 0, 2590), row(2, 0, 2610), row(3, 0, 2590))

    assert (firing.data["field"], resolved.data["field"]) == ("level", "level")


def test_not_is_the_opposite():
    made = decided(rules({"kind": "not", "of": FALLS}), row(1, -3), row(2, 0), row(3, -3))

    assert told(made) == [("firing", 2), ("resolved", 3)]


# --- edits ------------------------------------------------------------------------------------------------------------


def test_a_new_title_or_endpoint_keeps_what_fires_and_a_new_condition_ends_it():
    state, _ = step(rules(), {}, row(1, -3), at(1))
    renamed, deeper = rules(title="급락", notify=["phone"]), rules({**FALLS, "value": -2.5})

    assert retire(renamed, state, at(2)) == (state, [])
    (resolved,) = decided(renamed, row(3, 0), state=state)
    assert (resolved.data["title"], resolved.notify) == ("급락", ("phone",))
    (ended_by_reset,) = decided(renamed, reset(3), state=state)
    assert (ended_by_reset.data["title"], ended_by_reset.notify) == ("급락", ("phone",))

    for edited in (deeper, [], rules(keys=["002"]), rules(target={"inds_cd": "101"})):
        kept, (ended,) = retire(edited, state, at(2))
        assert not kept
        assert (ended.transition, ended.data["reason"], ended.notify) == ("resolved", "rule_changed", ("desk",))
    assert told(decided(deeper, row(3, "-3.1"), state=state)) == [("resolved", 3), ("firing", 3)]


# --- laws -------------------------------------------------------------------------------------------------------------

PERCENTS = st.sampled_from([None, "-3", "-2", "-1.8", "-1.5", "-1", "0"])
LEVELS = st.sampled_from([None, 2590, 2600, 2610])
HAPPENINGS = st.lists(
    st.tuples(st.sampled_from(["changed"] * 6 + ["removed", "reset", "gap"]), PERCENTS, LEVELS), max_size=25
)
MANY_RULES = compile_rules(
    [
        settings(name="falls"),
        settings(FALLS_WITH_CLEAR, name="clear"),
        settings(BREAKS, name="breaks"),
        settings({"kind": "all", "of": [{"kind": "not", "of": FALLS_WITH_CLEAR}, BREAKS_UP]}, name="all"),
        settings(FALLS, name="for", **{**FOR_30_S, "for": "25s"}),
        settings(
            {"kind": "any", "of": [FALLS, BREAKS]}, name="both", keep_firing_for="15s", **{**FOR_30_S, "for": "10s"}
        ),
    ],
    CATALOGUE,
    ["desk"],
)
TIMELESS = [rule for rule in MANY_RULES if not rule.hold and not rule.keep]


def story(happenings: Iterable[tuple[str, Any, Any]]) -> list[Entry]:
    """A stream of one row that could have been: one happening every ten seconds."""
    entries: list[Entry] = []
    there = False
    for number, (kind, pct, level) in enumerate(happenings, 1):
        second = number * 10
        if kind == "reset":
            entries += [reset(second), row(second, pct, level, kind="baseline")]
        elif kind == "gap":
            entries += [gap(second - 30, second), row(second, pct, level, observed_from=iso(at(second - 30)))]
        elif kind == "removed" and there:
            entries.append(row(second, kind="removed"))
        else:
            entries.append(row(second, pct, level, kind="changed" if there else "added"))
        there = entries[-1].row_kind != "removed"
    return entries


@given(HAPPENINGS, st.lists(st.floats(0, 10), max_size=25))
def test_a_tick_that_does_not_run_ahead_of_the_news_changes_nothing(happenings: Any, delays: list[float]):
    entries = story(happenings)
    events: list[Entry | float] = []
    for number, one in enumerate(entries):
        earliest = seconds(entries[number - 1]) if number else 0.0
        events += [*(min(earliest + delay, seconds(one)) for delay in delays[number : number + 1]), one]
    end = 10_000

    assert by_alert(decided(MANY_RULES, *events, end)) == by_alert(decided(MANY_RULES, *entries, end))


@given(HAPPENINGS, st.lists(st.floats(0, 100_000), max_size=10))
def test_no_tick_whenever_it_comes_changes_a_rule_without_durations(happenings: Any, ticks: list[float]):
    entries = story(happenings)
    mixed: list[Entry | float] = []
    for number, one in enumerate(entries):
        mixed += [*ticks[number : number + 1], one]

    assert decided(TIMELESS, *mixed) == decided(TIMELESS, *entries)


@given(HAPPENINGS, st.sets(st.integers(0, 30)))
def test_batches_of_any_size_decide_the_same(happenings: Any, cuts: set[int]):
    entries = story(happenings)
    state: State = {}
    found: list[Decision] = []
    edges = [0, *sorted(cut for cut in cuts if cut < len(entries)), len(entries)]
    for first, last in itertools.pairwise(edges):
        state, made = steps(MANY_RULES, state, entries[first:last], NOON)
        found += made

    assert found == decided(MANY_RULES, *entries)


@given(HAPPENINGS)
def test_every_alert_fires_and_resolves_in_turn_each_under_an_id_of_its_own(happenings: Any):
    made = decided(MANY_RULES, *story(happenings), 10_000)

    assert len({one.id for one in made}) == len(made)
    for alert in by_alert(made).values():
        expected = ["firing", "resolved"] * len(alert)
        assert [one.transition for one in alert] == expected[: len(alert)]


@given(HAPPENINGS)
def test_only_news_makes_a_rule_without_durations_fire(happenings: Any):
    entries = story(happenings)
    news = {one.time for one in entries if one.row_kind in {"added", "changed"}}

    assert {one.time for one in decided(TIMELESS, *entries) if one.transition == "firing"} <= news


def by_alert(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    found: dict[str, list[Decision]] = {}
    for one in decisions:
        found.setdefault(one.rule, []).append(one)
    return found


# --- checking ---------------------------------------------------------------------------------------------------------


def test_the_rule_of_the_design_is_read_from_toml():
    one = tomllib.loads("""
        name = "kospi-falls"
        title = "코스피 급락"
        tr = "ka20003"
        keys = ["001"]
        when = { kind = "compare", field = "change_pct", op = "<=", value = -2, clear = -1.5 }
        for = "30s"
        notify = ["desk"]
    """)
    (rule,) = compile_rules([RuleSettings.model_validate(one)], CATALOGUE, ["desk"])

    assert (rule.name, rule.hold, rule.keys) == ("kospi-falls", timedelta(seconds=30), frozenset({"001"}))


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({"tr": "ka2003"}, "did you mean ka20003?"),
        ({"tr": "ka20001"}, 'write table = "quote" or table = "ticks"'),
        ({"tr": "ka20001", "table": "tick"}, "did you mean ticks?"),
        ({"when": {**FALLS, "field": "flu_rt"}}, 'when.field = "flu_rt": here it is called change_pct'),
        ({"when": {**FALLS, "field": "등락률"}}, "here it is called change_pct"),
        ({"when": {**FALLS, "field": "등락율"}}, "here it is called change_pct"),
        ({"when": {**FALLS, "field": "chnge_pct"}}, "did you mean change_pct?"),
        ({"when": {**FALLS, "field": "high"}, "tr": "ka20001", "table": "ticks"}, "a field of table quote"),
        ({"when": {"kind": "all", "of": [BREAKS, {**FALLS, "field": "cur_prc"}]}}, "when.of[1].field"),
        ({"when": {**FALLS, "value": "-2"}}, "change_pct is a number; write it without quotes"),
        ({"when": {**FALLS, "field": "direction"}}, "direction is a direction; only == and != compare it"),
        ({"when": {**FALLS, "field": "sector_name", "op": "=="}}, "write it in quotes"),
        ({"when": {**FALLS, "field": "direction", "op": "==", "value": "하락"}}, "did you mean down?"),
        ({"when": {**FALLS, "clear": -2.5}}, 'when.clear = -2.5: with op = "<=" it belongs above value = -2'),
        ({"when": {**FALLS, "op": ">=", "clear": -1}}, "belongs below"),
        ({"when": {**FALLS, "op": "==", "clear": -1}}, "no second threshold"),
        ({"when": {**BREAKS, "field": "sector_name"}}, "crosses nothing"),
        ({"notify": ["dsk"]}, "did you mean desk?"),
        ({"target": {"ind_cd": "001"}}, "did you mean inds_cd?"),
        ({"target": {"inds_cd": "002"}}, '"001" 종합(KOSPI)'),
        ({"tr": "ka20001", "table": "quote", "keys": ["001"]}, "table quote has one row"),
        ({"tr": "ka20001", "table": "ticks", "keys": ["12:00:00"]}, "one series"),
    ],
)
def test_what_is_wrong_is_said_with_the_right_word(more: dict[str, Any], hint: str):
    message = refused(**more)

    assert message.startswith('rule "falls": ')
    assert hint in message


def test_won_and_shares_are_told_apart_by_the_target():
    won = {"kind": "compare", "field": "foreigner_net_krw", "op": ">=", "value": 150_000_000_000}
    shares = {**won, "field": "foreigner_net_shares", "value": 1000}

    assert 'target = { amt_qty_tp = "0" }' in refused(won, tr="ka10051")
    assert 'target = { amt_qty_tp = "1" }' in refused(shares, tr="ka10051", target={"amt_qty_tp": "0"})
    (rule,) = rules(shares, tr="ka10051", target={"amt_qty_tp": "1"})
    assert rule.fields["foreigner_net_shares"].unit == "shares"
    assert rules(won, tr="ka10051", target={"amt_qty_tp": "0", "mrkt_tp": ["0", "1"]})


@pytest.mark.parametrize(
    "when",
    [
        {"kind": "compare", "field": "level", "op": "<", "value": 0},
        {"kind": "compare", "field": "level", "op": "==", "value": 0},
        {"kind": "compare", "field": "advancers", "op": "<", "value": 0},
        {"kind": "compare", "field": "advancers", "op": "==", "value": 1.5},
        {"kind": "cross", "field": "level", "direction": "down", "level": 0},
        {"kind": "cross", "field": "advancers", "direction": "up", "level": 0},
        {"kind": "not", "of": {"kind": "compare", "field": "level", "op": ">", "value": 0}},
        {"kind": "all", "of": [FALLS, {**FALLS, "op": ">", "value": 1}]},
        {"kind": "all", "of": [FALLS, {"kind": "not", "of": FALLS}]},
        {"kind": "all", "of": [BREAKS_UP, {"kind": "compare", "field": "level", "op": "<", "value": 2600}]},
        {
            "kind": "all",
            "of": [{"kind": "compare", "field": "direction", "op": "==", "value": word} for word in ("up", "down")],
        },
    ],
)
def test_a_rule_that_can_never_fire_is_refused(when: dict[str, Any]):
    assert "this can never fire" in refused(when)


@pytest.mark.parametrize(
    "when",
    [
        {"kind": "compare", "field": "advancers", "op": "<=", "value": 0},
        {"kind": "compare", "field": "change_pct", "op": "==", "value": 1.5},
        {"kind": "cross", "field": "advancers", "direction": "down", "level": 0},
        {"kind": "cross", "field": "change", "direction": "either", "level": 0},
        {"kind": "all", "of": [FALLS_WITH_CLEAR, {**FALLS, "op": ">", "value": -1.8}]},
        {"kind": "all", "of": [FALLS, {**FALLS, "op": "<", "value": -1}]},
        {"kind": "any", "of": [FALLS, {**FALLS, "op": ">", "value": 1}]},
    ],
)
def test_a_rule_that_may_fire_is_not(when: dict[str, Any]):
    assert rules(when)


def test_two_rules_of_one_name_would_share_their_state():
    with pytest.raises(RuleError, match='two rules are named "falls"'):
        compile_rules([settings(), settings()], CATALOGUE, ["desk"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"for": "30"},
        {"for": 30},
        {"keys": [1]},
        {"keys": []},
        {"colour": "red"},
        {"when": {**FALLS, "value": True}},
        {"when": {**FALLS, "value": float("nan")}},
        {"when": {**FALLS, "op": "=<"}},
        {"when": {"kind": "all", "of": []}},
        {"when": {"kind": "all", "of": [FALLS] * 17}},
        {"when": {"kind": "not", "of": {"kind": "not", "of": {"kind": "not", "of": {"kind": "not", "of": FALLS}}}}},
        {"session": ["lunch"]},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        settings(**wrong)
