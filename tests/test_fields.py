"""What the broker's texts mean: every number rule, with the texts that were seen and those we refuse to guess at."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.contract import dumps
from poller.trs.fields import (
    SATURATED,
    Amount,
    Change,
    Code,
    Count,
    Date,
    Direction,
    Field,
    Level,
    Percent,
    Quantity,
    Text,
    Time,
    UnreadableValue,
    Value,
    Variant,
    is_saturated,
    signed_number,
)

HUNDREDTHS = Decimal("0.01")
LEVEL = Level("cur_prc", "현재가", "points", 1)
CHANGE = Change("pred_pre", "전일대비", "points", 1)
SHARES = Quantity("trde_qty", "거래량", "shares", 1_000)
NUMBERS: list[Field] = [
    kind("cur_prc", "현재가", None, 1) for kind in (Level, Change, Percent, Amount, Quantity, Count)
]
EVERY_KIND: list[Field] = [*NUMBERS, *(kind("x", "이름") for kind in (Code, Text, Direction, Date, Time))]


def kind_of(field: Field) -> str:
    return field.kind


@pytest.mark.parametrize("field", EVERY_KIND, ids=kind_of)
@pytest.mark.parametrize("nothing", ["", "   ", None])
def test_empty_is_null_and_never_zero(field: Field, nothing: object):
    assert field.read(nothing) is None


@pytest.mark.parametrize("zero", ["0", "+0", "-0", "--0", "0.00", "-0.00", "00", ".0", 0])
def test_every_spelling_of_zero_is_the_same_zero(zero: object):
    value = CHANGE.read(zero)

    assert value == 0
    assert dumps(value) == "0"


@pytest.mark.parametrize("zero", ["0", "+0", "-0", "0.00", 0])
def test_a_level_of_zero_is_no_level(zero: object):
    """Neither an index nor a price can be 0; the broker writes it where nothing traded or nobody bids."""
    assert LEVEL.read(zero) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", "12"),
        ("+12", "12"),
        ("-12", "-12"),
        ("--123", "-123"),
        ("1,164", "1164"),
        ("+1,164,000", "1164000"),
        ("-1,164.50", "-1164.5"),
        (" 12 ", "12"),
        ("- 12", "-12"),
        ("0012", "12"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("0.50", "0.5"),
        ("-2393.33", "-2393.33"),
        ("999999999999999", "999999999999999"),
        ("0.123456789012345", "0.123456789012345"),
        ("12345678901234500000", "12345678901234500000"),
    ],
)
def test_a_number_is_read_with_its_sign(text: str, number: str):
    assert dumps(CHANGE.read(text)) == number
    assert signed_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        *("+-5", "-+5", "++5", "---5", "5-", "+", "-", "--"),
        *("5.", ".", "1.2.3", "1e5", "1E5", "0x10", "1_000", "NaN", "Infinity"),
        *("abc", "12원", "½", "١٢", "5%"),
    ],
)
@pytest.mark.parametrize("field", NUMBERS, ids=kind_of)
def test_what_was_never_seen_is_refused_and_named(field: Field, text: str):
    """A guess would end up in somebody's alert; a refusal ends up in the quarantine."""
    with pytest.raises(UnreadableValue) as refused:
        field.read(text)

    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["1234567890123456", "0.1234567890123456", "-1234567.890123456", "1000000000000001"])
def test_more_digits_than_a_double_holds_are_refused(text: str):
    with pytest.raises(UnreadableValue, match="15 significant digits"):
        CHANGE.read(text)


@pytest.mark.parametrize("raw", [True, False, 1.5, [], {}, b"12"], ids=repr)
@pytest.mark.parametrize("field", EVERY_KIND, ids=kind_of)
def test_what_is_neither_text_nor_a_whole_number_is_refused(field: Field, raw: object):
    with pytest.raises(UnreadableValue, match="neither text nor a whole number"):
        field.read(raw)


def test_a_whole_number_outside_quotes_is_read_as_if_quoted():
    assert (CHANGE.read(-5), SHARES.read(993), Code("inds_cd", "업종코드").read(101)) == (-5, 993_000, "101")


@pytest.mark.parametrize("text", ["2393.33", "+2393.33", "-2393.33", "--2393.33"])
def test_the_mark_of_a_level_is_dropped(text: str):
    """It tells only how that level stands to the previous close, which `direction` says as well."""
    assert LEVEL.read(text) == Decimal("2393.33")


@pytest.mark.parametrize("field", [field for field in NUMBERS if field.kind != "level"], ids=kind_of)
def test_the_sign_of_everything_else_is_real(field: Field):
    assert field.read("-5") == -5


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        (Level("cur_prc", "현재가", "points", HUNDREDTHS), "+265381", "2653.81"),
        (Level("cur_prc", "현재가", "points", HUNDREDTHS), "-265381", "2653.81"),
        (Change("pred_pre", "전일대비", "points", HUNDREDTHS), "+9030", "90.3"),
        (Percent("flu_rt", "등락율", "percent", HUNDREDTHS), "352", "3.52"),
        (Percent("flu_rt", "등락율", "percent", HUNDREDTHS), "-7", "-0.07"),
        (Percent("flu_rt", "등락율", "percent", HUNDREDTHS), "400", "4"),
        (SHARES, "993", "993000"),
        (Amount("trde_prica", "거래대금", "KRW", 1_000_000), "46494", "46494000000"),
        (Amount("frgnr_netprps", "외국인순매수", "KRW", 100_000_000), "-622", "-62200000000"),
        (SHARES, "0.5", "500"),
    ],
)
def test_a_number_is_brought_to_its_base_unit(field: Field, text: str, value: str):
    assert dumps(field.read(text)) == value


def test_a_field_without_a_scale_is_in_its_unit_already():
    assert Percent("flu_rt", "등락률", "percent").read("-2.31") == Decimal("-2.31")


def test_a_whole_number_is_shown_without_an_exponent():
    """A person reads 993000 in a table, not 9.93E+5."""
    assert str(SHARES.read("993")) == "993000"


@pytest.mark.parametrize("text", ["2147483647", "4294967295", "+2147483647", "-2147483647", "--4294967295"])
@pytest.mark.parametrize("field", NUMBERS, ids=kind_of)
def test_a_saturated_counter_is_null_and_told_apart_from_an_empty_one(field: Field, text: str):
    """The largest 32-bit numbers stand where the true figure did not fit."""
    assert field.read(text) is None
    assert is_saturated(field, text)
    assert not is_saturated(field, "")


@pytest.mark.parametrize("text", ["2147483646", "4294967296", "2147483648"])
def test_a_neighbour_of_a_saturated_value_is_a_number(text: str):
    assert CHANGE.read(text) == int(text)
    assert not is_saturated(CHANGE, text)


def test_a_saturated_number_is_told_before_it_is_scaled():
    assert SHARES.read("2147483647") is None


def test_a_text_that_looks_saturated_is_text():
    assert Text("stk_nm", "종목명").read("2147483647") == "2147483647"
    assert not is_saturated(Text("stk_nm", "종목명"), "2147483647")


@pytest.mark.parametrize(
    ("code", "word"),
    [("1", "limit_up"), ("2", "up"), ("3", "flat"), ("4", "limit_down"), ("5", "down"), ("0", None), ("", None)],
)
def test_a_direction_code_is_a_word(code: str, word: str | None):
    assert Direction("pre_sig", "대비기호").read(code) == word


@pytest.mark.parametrize("code", ["6", "9", "-1", "up", "22", "+2"])
def test_an_unknown_direction_code_is_refused(code: str):
    with pytest.raises(UnreadableValue, match="direction codes 0 to 5"):
        Direction("pre_sig", "대비기호").read(code)


@pytest.mark.parametrize(("text", "day"), [("20241122", "2024-11-22"), ("20240229", "2024-02-29")])
def test_a_date_is_written_with_hyphens(text: str, day: str):
    assert Date("dt_n", "일자n").read(text) == day


@pytest.mark.parametrize(
    "text", ["20230229", "20241301", "00000000", "2024-11-22", "241122", "202411221", "yyyymmdd", "２０２４１１２２"]
)
def test_what_is_no_day_is_refused_and_named(text: str):
    with pytest.raises(UnreadableValue, match=f"'{text}' is not a da(te|y) of"):
        Date("dt_n", "일자n").read(text)


@pytest.mark.parametrize(("text", "time"), [("143000", "14:30:00"), ("090010", "09:00:10"), ("000000", "00:00:00")])
def test_a_time_is_written_with_colons(text: str, time: str):
    assert Time("tm_n", "시간n").read(text) == time


@pytest.mark.parametrize("marker", ["999999", "888888"])
def test_the_marker_rows_of_the_close_have_no_time(marker: str):
    """They are real steps without a clock time; the row stays, its key is the marker."""
    assert Time("tm_n", "시간n").read(marker) is None


@pytest.mark.parametrize("text", ["777777", "240000", "096000", "14:30:00", "1430", "14300", "0143000", "１４３０００"])
def test_what_is_no_time_of_day_is_refused_and_named(text: str):
    with pytest.raises(UnreadableValue, match=f"'{text}' is not a time of"):
        Time("tm_n", "시간n").read(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("001", "001"),
        ("001_AL", "001"),
        ("001_NX", "001"),
        ("0126Z0", "0126Z0"),
        ("0126Z0_AL", "0126Z0"),
        (" 005930 ", "005930"),
    ],
)
def test_a_code_is_text_without_its_exchange(text: str, code: str):
    """Letters occur, so a code is never a number; the exchange is in the target."""
    assert Code("stk_cd", "종목코드").read(text) == code


@pytest.mark.parametrize(
    "text", ["KRX:039490", "005930_XX", "005930_ALX", "005930#2", "005/930", "_AL", "005 930", "삼성전자"]
)
def test_what_is_no_code_is_refused(text: str):
    """`#` and `/` would be taken for parts of a key."""
    with pytest.raises(UnreadableValue, match="not a code"):
        Code("stk_cd", "종목코드").read(text)


def test_text_stays_as_it_was_sent_but_for_blanks_around_it():
    assert Text("stk_nm", "종목명").read(" KOSDAQ MID 300 ") == "KOSDAQ MID 300"


def test_a_field_takes_its_name_from_where_it_stands():
    class Line:
        level = Level("cur_prc", "현재가")

    assert Line.level.name == "level"


def test_a_variant_applies_to_requests_that_ask_for_it():
    shares = Quantity("frgnr_netprps", "외국인순매수", "shares", 1_000, name="foreigner_net_shares")
    won = Amount("frgnr_netprps", "외국인순매수", "KRW", 100_000_000, (Variant({"amt_qty_tp": "1"}, shares),))

    assert won.for_request({"amt_qty_tp": "1", "mrkt_tp": "0"}) is shares
    assert won.for_request({"amt_qty_tp": "0"}) is won
    assert won.for_request({}) is won


# --- laws

DIGITS = 15
numbers = st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places),
    st.integers(min_value=0, max_value=10**DIGITS - 1),
    st.integers(min_value=0, max_value=4),
).filter(lambda number: number not in SATURATED)


@st.composite
def spelling(draw: st.DrawFn, number: Decimal) -> str:
    """One of the ways in which the broker may write a number that is not negative."""
    whole, _, part = format(number, "f").partition(".")
    if draw(st.booleans()):
        whole = f"{int(whole):,}"
    text = "0" * draw(st.integers(0, 3)) + whole + (f".{part}" if part else "")
    if part and not number % 1 and draw(st.booleans()):
        text = text.partition(".")[0]
    if "." in text:
        text += "0" * draw(st.integers(0, 2))
    blanks = st.sampled_from(["", " ", "  "])
    return draw(blanks) + draw(st.sampled_from(["", "+"])) + text + draw(blanks)


@given(numbers.flatmap(lambda number: st.tuples(st.just(number), spelling(number), spelling(number))))
def test_spellings_of_one_number_are_one_number(given_number: tuple[Decimal, str, str]):
    number, one, other = given_number

    assert dumps(CHANGE.read(one)) == dumps(CHANGE.read(other)) == dumps(number)


@given(numbers.flatmap(lambda number: st.tuples(st.just(number), spelling(number))))
def test_a_minus_sign_once_or_twice_makes_it_negative(given_number: tuple[Decimal, str]):
    number, text = given_number
    bare = text.strip().lstrip("+")

    assert CHANGE.read(f"-{bare}") == CHANGE.read(f"--{bare}") == -number
    assert LEVEL.read(f"-{bare}") == LEVEL.read(bare) == (number or None)


@given(numbers)
def test_what_is_read_survives_the_stream_through_a_double(number: Decimal):
    """Readers in any language may parse JSON numbers as doubles."""
    value: Value = SHARES.read(format(number, "f"))
    text = dumps(value)

    assert "E" not in text.upper()
    assert Decimal(repr(float(text))) == Decimal(text)


@given(st.text(max_size=12))
def test_a_text_is_a_number_or_refused_but_never_an_accident(text: str):
    for field in EVERY_KIND:
        try:
            field.read(text)
        except UnreadableValue:
            continue


@pytest.mark.parametrize("text", ["4294967295", "4,294,967,295", "-2147483647", " 2147483647 "])
def test_a_saturated_number_is_told_however_it_is_written(text: str):
    assert is_saturated(Quantity("trde_qty", "거래량"), text)
