"""Before plus its diff is after, whatever the tables hold; and what each kind of table calls news."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.contract import Row, dumps
from poller.diff import (
    Change,
    apply,
    baseline,
    diff,
    missing_rows,
    settle,
    window_was_lost,
)
from poller.trs.base import Append, Document, Keyed, Table
from poller.trs.base import Row as Declared
from poller.trs.fields import Code, Level, Time

Lines = list[tuple[str, Row]]
WINDOW = 4


class Stock(Declared):
    code = Code("stk_cd", "종목코드")
    price = Level("cur_prc", "현재가")


class Tick(Declared):
    time = Time("tm_n", "시간n")
    price = Level("cur_prc_n", "현재가n")


STOCKS = Keyed("stocks", Stock, rows_at="stocks", key="code")
QUOTE = Document("quote", Stock)
TICKS = Append("ticks", Tick, rows_at="ticks", key="time", window=WINDOW)


def row(price: object, *, extra: str | None = None) -> Row:
    return {"name": "삼성전자", "price": price} | ({"extra": {"new": extra}} if extra else {})


def lines(**prices: object) -> Lines:
    """`lines(A=1, B=2)`: a row of that price under each key, a tick's key written `t090010`."""
    return [(key.removeprefix("t"), row(price)) for key, price in prices.items()]


def table_of(table: Table, **prices: object) -> dict[str, Row]:
    return settle(table, {}, lines(**prices))


def sentences(changes: Sequence[Change]) -> list[str]:
    """Changes as a person would tell them: `changed A price 1 -> 2`."""
    told = []
    for change in changes:
        was = "" if change.before is None else f" {change.before.get('price')}"
        now = "" if change.after is None else f" {change.after['price']}"
        told.append(f"{change.kind} {change.key}{was}{' ->' if was and now else ''}{now}")
    return told


# --- laws, on tables that are as awkward as the broker's

rows = st.builds(
    lambda price, name, extra: {"name": name, "price": price} | ({"extra": {"new": extra}} if extra else {}),
    st.sampled_from([None, 1, 2, Decimal("0.5")]),
    st.sampled_from(["A", "B"]),
    st.sampled_from([None, None, "x", "y"]),
)
stock_lines = st.lists(st.tuples(st.sampled_from(["005930", "000660", "0126Z0"]), rows), max_size=9)
tick_lines = st.lists(
    st.tuples(st.sampled_from([f"0900{n}0" for n in range(6)] + ["888888", "999999"]), rows), max_size=9
)
quote_lines = rows.map(lambda only: [("-", only)])
tables_and_lines = st.one_of(
    [
        st.tuples(st.just(table), lines_of, lines_of, lines_of)
        for table, lines_of in ((STOCKS, stock_lines), (QUOTE, quote_lines), (TICKS, tick_lines))
    ]
)
Case = tuple[Table, Lines, Lines, Lines]


@given(tables_and_lines)
def test_before_and_its_diff_are_after(case: Case):
    table, first, second, _ = case
    before = settle(table, {}, first)
    after = settle(table, before, second)

    assert apply(table, before, diff(table, before, after)) == after


@given(tables_and_lines)
def test_the_same_answer_again_is_no_news(case: Case):
    table, first, second, _ = case
    before = settle(table, settle(table, {}, first), second)

    assert settle(table, before, second) == before
    assert diff(table, before, before) == []


@given(tables_and_lines)
def test_two_diffs_in_a_row_lead_where_the_answers_led(case: Case):
    """A reader may fold many commits at once."""
    table, first, second, third = case
    start = settle(table, {}, first)
    middle = settle(table, start, second)
    end = settle(table, middle, third)

    assert apply(table, start, [*diff(table, start, middle), *diff(table, middle, end)]) == end


@given(tables_and_lines)
def test_baselines_alone_make_the_table(case: Case):
    table, first, _, _ = case
    settled = settle(table, {}, first)

    assert apply(table, {}, baseline(table, settled)) == settled


@given(tables_and_lines, st.randoms(use_true_random=False))
def test_the_order_of_rows_never_matters(case: Case, shuffler: random.Random):
    table, first, second, _ = case
    shuffled_first, shuffled_second = first[:], second[:]
    shuffler.shuffle(shuffled_first)
    shuffler.shuffle(shuffled_second)

    before = settle(table, {}, first)

    assert settle(table, {}, shuffled_first) == before
    assert settle(table, before, shuffled_second) == settle(table, before, second)


@given(stock_lines, stock_lines)
def test_a_keyed_table_holds_the_rows_of_the_last_answer_and_no_other(first: Lines, second: Lines):
    """Repeats included: two equal rows of one code are two rows."""
    after = settle(STOCKS, settle(STOCKS, {}, first), second)

    assert Counter((key.partition("#")[0], known(line)) for key, line in after.items()) == Counter(
        (key, known(line)) for key, line in second
    )


@given(stock_lines, stock_lines)
def test_no_more_rows_are_news_than_differ(first: Lines, second: Lines):
    """Equal rows keep their key, so a change among five repeats is one change and not five."""
    before = settle(STOCKS, {}, first)
    was, now = (Counter((key, known(line)) for key, line in answer) for answer in (first, second))

    news = diff(STOCKS, before, settle(STOCKS, before, second))

    assert len(news) <= (was - now).total() + (now - was).total()


@given(tables_and_lines)
def test_unknown_elements_are_never_compared(case: Case):
    table, first, _, _ = case
    before = settle(table, {}, first)
    repainted = [(key, {**line, "extra": {"brand_new": "1"}}) for key, line in first]

    assert settle(table, before, repainted) == before


@given(stock_lines, st.data())
def test_rows_that_cannot_be_read_are_no_news(first: Lines, data: st.DataObject):
    """The others are equal, so whichever of them is unread, everything stays as it was."""
    before = settle(STOCKS, {}, first)
    lost = data.draw(st.sets(st.integers(0, max(0, len(first) - 1)), max_size=len(first)))
    readable = [line for place, line in enumerate(first) if place not in lost]
    unread = [key for place, (key, _) in enumerate(first) if place in lost]

    assert settle(STOCKS, before, readable, unread) == before


@given(tick_lines, tick_lines)
def test_a_window_keeps_the_newest_rows_and_never_grows(first: Lines, second: Lines):
    before = settle(TICKS, {}, first)
    after = settle(TICKS, before, second)

    assert len(after) <= WINDOW
    assert {change.kind for change in diff(TICKS, before, after)} <= {"appended", "changed"}
    if before and after:
        assert max(after) >= max(before)


@given(tables_and_lines)
@settings(max_examples=50)
def test_a_change_tells_only_what_differs(case: Case):
    table, first, second, _ = case
    before = settle(table, {}, first)

    for change in diff(table, before, settle(table, before, second)):
        if change.kind != "changed":
            assert change.changed == []
            continue
        assert change.before
        assert change.after
        assert all(change.before[name] != change.after[name] for name in change.changed)
        assert {**change.after, **change.before, "extra": None} == {**before[change.key], "extra": None}


def known(line: Row) -> str:
    return dumps({name: value for name, value in line.items() if name != "extra"})


# --- keyed tables


def test_rows_of_a_keyed_table_come_change_and_go():
    before = table_of(STOCKS, A=1, B=2, C=3)
    after = settle(STOCKS, before, lines(A=1, B=5, D=4))

    assert sentences(diff(STOCKS, before, after)) == ["changed B 2 -> 5", "removed C 3", "added D 4"]


def test_a_removed_row_is_told_whole_and_a_new_one_too():
    before, after = table_of(STOCKS, A=1), table_of(STOCKS, B=2)

    removed, added = diff(STOCKS, before, after)

    assert (removed.name, removed.before, removed.after) == ("stocks/A", row(1), None)
    assert (added.name, added.before, added.after) == ("stocks/B", None, row(2))


def test_a_baseline_names_its_row_and_has_no_before():
    assert baseline(STOCKS, table_of(STOCKS, B=2, A=1)) == [
        Change("baseline", "stocks", "A", None, row(1)),
        Change("baseline", "stocks", "B", None, row(2)),
    ]


def test_a_field_that_became_null_has_changed():
    before = table_of(STOCKS, A=1)

    (change,) = diff(STOCKS, before, settle(STOCKS, before, lines(A=None)))

    assert (change.before, change.after, change.changed) == ({"price": 1}, row(None), ["price"])
    assert change.name == "stocks/A"


def test_what_changed_is_named_in_the_order_of_the_row():
    before = {"A": {"price": 1, "name": "삼성전자"}}

    (change,) = diff(STOCKS, before, {"A": {"price": 2, "name": "삼성전자우"}})

    assert change.changed == ["price", "name"]


def test_equal_numbers_of_two_types_are_no_news():
    """What comes back from the store is an int, what was just read may be a Decimal."""
    before = table_of(STOCKS, A=6200)

    assert settle(STOCKS, before, lines(A=Decimal("6200.0"))) == before


def test_the_values_of_new_elements_change_nothing_but_travel_with_news():
    before = {"A": row(1, extra="old")}

    quiet = settle(STOCKS, before, [("A", row(1, extra="new"))])
    loud = settle(STOCKS, before, [("A", row(2, extra="new"))])

    assert diff(STOCKS, before, quiet) == []
    assert diff(STOCKS, before, loud) == [Change("changed", "stocks", "A", {"price": 1}, row(2, extra="new"))]


def test_repeats_are_numbered_in_order_of_their_text():
    settled = settle(STOCKS, {}, [("A", row(3)), ("A", row(1)), ("A", row(2))])

    assert settled == {"A": row(1), "A#2": row(2), "A#3": row(3)}


def test_of_repeats_only_the_one_that_changed_is_news():
    before = settle(STOCKS, {}, [("A", row(1)), ("A", row(2)), ("A", row(3))])

    after = settle(STOCKS, before, [("A", row(3)), ("A", row(9)), ("A", row(1))])

    assert sentences(diff(STOCKS, before, after)) == ["changed A#2 2 -> 9"]


def test_the_last_of_several_repeats_keeps_its_number():
    """Else its going would look like a change of the others."""
    before = settle(STOCKS, {}, [("A", row(1)), ("A", row(2))])

    after = settle(STOCKS, before, lines(A=2))

    assert sentences(diff(STOCKS, before, after)) == ["removed A 1"]
    assert sentences(diff(STOCKS, after, settle(STOCKS, after, lines(A=2)))) == []


def test_a_new_repeat_takes_the_first_free_number():
    before = {"A#2": row(2)}

    after = settle(STOCKS, before, [("A", row(2)), ("A", row(5)), ("A", row(4))])

    assert after == {"A": row(4), "A#2": row(2), "A#3": row(5)}


def test_ten_repeats_are_in_the_order_of_their_numbers():
    """`A#10` stands before `A#2` in the alphabet, and not in a table."""
    before = settle(STOCKS, {}, [("A", row(n)) for n in range(10, 22)])

    after = settle(STOCKS, before, [("A", row(n)) for n in range(10, 22)])

    assert [before[f"A#{n}"]["price"] for n in (2, 10, 12)] == [11, 19, 21]
    assert after == before


def test_of_equal_repeats_those_with_the_highest_numbers_go():
    before = settle(STOCKS, {}, [("A", row(1))] * 12)

    after = settle(STOCKS, before, [("A", row(1))] * 9)

    assert sorted(before.keys() - after.keys()) == ["A#10", "A#11", "A#12"]


@pytest.mark.parametrize(("sent", "unread"), [(1, 0), (9, 0), (1, 1), (1, 8)])
def test_the_lowest_numbers_stay_however_the_store_orders_its_rows(sent: int, unread: int):
    """A snapshot comes from a hash, which has no order; what is told must not depend on it."""
    before = settle(STOCKS, {}, [("A", row(1))] * 12)
    stored = dict(sorted(before.items(), reverse=True))

    after = settle(STOCKS, stored, [("A", row(1))] * sent, unread_keys=["A"] * unread)

    assert after.keys() == {"A", *(f"A#{number}" for number in range(2, sent + unread + 1))}


def test_a_row_that_cannot_be_read_keeps_its_old_value():
    before = table_of(STOCKS, A=1, B=2)

    after = settle(STOCKS, before, lines(A=5), unread_keys=["B"])

    assert after == {"A": row(5), "B": row(2)}


def test_a_row_that_was_never_read_has_no_value_to_keep():
    assert settle(STOCKS, {}, lines(A=1), unread_keys=["B"]) == {"A": row(1)}


def test_an_unread_repeat_keeps_the_place_that_the_others_leave():
    before = settle(STOCKS, {}, [("A", row(1)), ("A", row(2))])

    assert settle(STOCKS, before, lines(A=2), unread_keys=["A"]) == before


# --- documents


def test_a_document_changes_field_by_field():
    before = settle(QUOTE, {}, [("-", row(1))])

    after = settle(QUOTE, before, [("-", row(2))])

    assert sentences(diff(QUOTE, before, after)) == ["changed - 1 -> 2"]


def test_a_document_that_cannot_be_read_keeps_its_old_value():
    before = settle(QUOTE, {}, [("-", row(1))])

    assert settle(QUOTE, before, [], unread_keys=["-"]) == before


def test_a_document_is_never_removed():
    assert diff(QUOTE, {"-": row(1)}, {}) == []


# --- append tables


def test_newer_rows_are_appended_and_those_that_slide_out_mean_nothing():
    before = table_of(TICKS, t090000=1, t090010=2, t090020=3, t090030=4)

    after = settle(TICKS, before, lines(t090050=6, t090040=5, t090030=4))

    assert sentences(diff(TICKS, before, after)) == ["appended 090040 5", "appended 090050 6"]
    assert sorted(after) == ["090020", "090030", "090040", "090050"]


def test_a_revised_row_has_changed():
    """Today's day moves while the market is open, and a step may be corrected."""
    before = table_of(TICKS, t090000=1, t090010=2)

    after = settle(TICKS, before, lines(t090010=7, t090000=1))

    assert sentences(diff(TICKS, before, after)) == ["changed 090010 2 -> 7"]


def test_the_oldest_row_of_a_window_may_be_revised_like_any_other():
    before = table_of(TICKS, t090000=1, t090010=2)

    after = settle(TICKS, before, lines(t090010=2, t090000=7))

    assert sentences(diff(TICKS, before, after)) == ["changed 090000 1 -> 7"]


def test_rows_that_are_no_longer_sent_stay():
    before = table_of(TICKS, t090000=1, t090010=2)

    assert settle(TICKS, before, lines(t090010=2)) == before


def test_a_row_older_than_the_window_does_not_come_back():
    """A page walk reaches further back than the window; what slid out is not news."""
    before = table_of(TICKS, t090010=1, t090020=2)

    assert settle(TICKS, before, lines(t090020=2, t090010=1, t090000=9)) == before


def test_the_first_answer_may_be_longer_than_the_window():
    settled = table_of(TICKS, t090000=0, t090010=1, t090020=2, t090030=3, t090040=4, t090050=5)

    assert sorted(settled) == ["090020", "090030", "090040", "090050"]


def test_marker_rows_of_the_close_are_the_newest():
    """`888888` and `999999` are steps after the last clock time, and compare so."""
    before = table_of(TICKS, t153210=1, t153220=2)

    after = settle(TICKS, before, lines(t999999=9, t888888=8, t153220=2))

    assert sentences(diff(TICKS, before, after)) == ["appended 888888 8", "appended 999999 9"]


# --- what is too much to believe


@pytest.mark.parametrize(
    ("had", "lost", "doubted"),
    [
        (30, 10, False),
        (30, 11, True),
        (10, 9, False),
        (10, 10, True),
        (1, 1, True),
        (1, 0, False),
        (50, 10, False),
        (50, 11, True),
        (100, 20, False),
        (100, 21, True),
        (104, 20, False),
        (104, 21, True),
        (2500, 500, False),
        (2500, 501, True),
        (2500, 2500, True),
        (0, 0, False),
    ],
)
def test_losing_more_than_ten_rows_and_a_fifth_or_all_rows_is_doubted(had: int, lost: int, *, doubted: bool):
    before = {f"{number:06}": row(1) for number in range(had)}
    after = dict(list(before.items())[lost:])

    missing = missing_rows(STOCKS, before, after)

    assert missing == ([f"{number:06}" for number in range(lost)] if doubted else [])


def test_new_rows_do_not_make_up_for_lost_ones():
    before = {f"{number:06}": row(1) for number in range(30)}
    after = {f"{number + 500:06}": row(1) for number in range(30)}

    assert len(missing_rows(STOCKS, before, after)) == 30


@pytest.mark.parametrize("table", [QUOTE, TICKS], ids=["document", "append"])
def test_only_rows_of_a_keyed_table_can_be_missed(table: Table):
    assert missing_rows(table, {f"{number:06}": row(1) for number in range(30)}, {}) == []


@pytest.mark.parametrize(
    ("sent", "lost"),
    [
        ({"t090040": 1, "t090030": 1, "t090020": 1}, False),
        ({"t090020": 1}, False),
        ({"t090040": 1, "t090030": 1}, True),
        ({"t090010": 1}, True),
    ],
)
def test_a_window_is_lost_when_the_newest_row_we_had_is_not_in_it(sent: dict[str, int], *, lost: bool):
    before = table_of(TICKS, t090010=1, t090020=2)

    assert window_was_lost(TICKS, before, lines(**sent)) is lost


def test_a_row_that_was_sent_but_not_read_is_not_lost():
    before = table_of(TICKS, t090010=1, t090020=2)

    assert not window_was_lost(TICKS, before, lines(t090030=1), ["090020"])


def test_a_repeated_newest_row_is_found_under_the_key_it_was_sent_with():
    before = settle(TICKS, {}, [("090010", row(1)), ("090010", row(2))])

    assert not window_was_lost(TICKS, before, lines(t090020=3, t090010=1))


def test_nothing_is_lost_from_a_window_never_seen_nor_from_other_tables():
    assert not window_was_lost(TICKS, {}, lines(t090010=1))
    assert not window_was_lost(STOCKS, table_of(STOCKS, A=1), lines(B=1))
