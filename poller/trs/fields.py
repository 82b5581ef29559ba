"""The broker's text goes in; a value in base units, or nothing, comes out. Every number rule is written here, once.

Pure. The surprise: the mark before a level is not its sign. "-2393.33" is a level of 2393.33 that stands below the
previous close, so levels drop the mark while changes, percentages and net quantities keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import ClassVar

Value = None | int | Decimal | str
Row = dict[str, object]
"""One line of a table under our names: fields to values, and `extra` for elements we do not know."""

SATURATED = frozenset({2147483647, 4294967295})
"""The largest numbers a 32-bit counter holds: seen in sister TRs where the true figure no longer fitted."""

MAX_DIGITS = 15
"""What a double holds exactly, so that readers in any language see our numbers unrounded."""

_NUMBER = re.compile(r"(--|[+-]?)([0-9]*\.?[0-9]+)")
_EXCHANGE_SUFFIX = re.compile(r"_(AL|NX)$")
_CODE = re.compile(r"[0-9A-Za-z]+")


class UnreadableValue(ValueError):
    """A text we refuse to guess at. The message names the text and what was expected."""


@dataclass(frozen=True)
class Variant:
    """What a field becomes when the request says so: the same element under another name and unit."""

    when: Mapping[str, str]
    field: Field

    def applies(self, request: Mapping[str, str]) -> bool:
        """Whether this request asks for the variant."""
        return all(request.get(element) == value for element, value in self.when.items())


@dataclass(frozen=True)
class Field:
    """One column: our name for it, the broker's element and label, unit, and the factor that leads to the unit.

    `name` is filled in from the attribute the field is assigned to. A derived field has no element: `formula` tells
    people what it is made of, `derive` makes it from the fields of the row above it.
    """

    element: str | None
    korean: str
    unit: str | None = None
    scale: int | Decimal | None = None
    variants: tuple[Variant, ...] = ()
    formula: str | None = None
    derive: Callable[[Mapping[str, Value]], Value] | None = None
    name: str = ""

    kind: ClassVar[str]

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            object.__setattr__(self, "name", name)

    def read(self, raw: object) -> Value:
        """The value of what the broker sent. Empty is null for every kind.

        Raises UnreadableValue where the text is none of the forms ever seen.
        """
        if raw is None:
            return None
        if isinstance(raw, bool) or not isinstance(raw, str | int):
            raise UnreadableValue(f"{raw!r} is neither text nor a whole number")
        text = str(raw).strip()
        return self._read(text) if text else None

    def _read(self, text: str) -> Value:
        raise NotImplementedError

    def for_request(self, request: Mapping[str, str]) -> Field:
        """The field itself, or the variant that the request asks for."""
        return next((variant.field for variant in self.variants if variant.applies(request)), self)


class _Number(Field):
    """A number in base units: `read("+1,164")` of a field in thousands is 1164000."""

    def _read(self, text: str) -> Value:
        number = signed_number(text)
        return None if abs(number) in SATURATED else self._in_unit(number)

    def _in_unit(self, number: Decimal) -> int | Decimal:
        scaled = number * (1 if self.scale is None else self.scale)
        return int(scaled) if scaled == scaled.to_integral_value() else scaled.normalize()


class Level(_Number):
    """A level or price: the mark tells only the direction, and 0 means that there is none."""

    kind = "level"

    def _in_unit(self, number: Decimal) -> int | Decimal:
        return super()._in_unit(abs(number))

    def _read(self, text: str) -> Value:
        return super()._read(text) or None


class Change(_Number):
    """A difference against the previous close; the sign is real."""

    kind = "change"


class Percent(_Number):
    """A percentage; the sign is real."""

    kind = "percent"


class Amount(_Number):
    """Money; the sign is real."""

    kind = "amount"


class Quantity(_Number):
    """A number of shares or the like; the sign is real."""

    kind = "quantity"


class Count(_Number):
    """A number of things counted, such as stocks."""

    kind = "count"


class Code(Field):
    """An identifier, kept as text: stock codes hold letters (0126Z0). The exchange suffix is cut, the target has it."""

    kind = "code"

    def _read(self, text: str) -> Value:
        code = _EXCHANGE_SUFFIX.sub("", text)
        if not _CODE.fullmatch(code):
            raise UnreadableValue(f"{text!r} is not a code of letters and digits")
        return code


class Text(Field):
    """Text as sent, such as a Korean name."""

    kind = "text"

    def _read(self, text: str) -> Value:
        return text


class Direction(Field):
    """Up, down, flat or at a limit; the broker's code 0 means that nothing traded."""

    kind = "direction"
    WORDS: ClassVar[Mapping[str, str | None]] = {
        "0": None,
        "1": "limit_up",
        "2": "up",
        "3": "flat",
        "4": "limit_down",
        "5": "down",
    }

    def _read(self, text: str) -> Value:
        if text not in self.WORDS:
            raise UnreadableValue(f"{text!r} is not one of the direction codes 0 to 5")
        return self.WORDS[text]


class Date(Field):
    """A day, `YYYYMMDD` there and `2026-11-23` here."""

    kind = "date"

    def _read(self, text: str) -> Value:
        if not re.fullmatch(r"[0-9]{8}", text):
            raise UnreadableValue(f"{text!r} is not a date of the form YYYYMMDD")
        try:
            return date(int(text[:4]), int(text[4:6]), int(text[6:])).isoformat()
        except ValueError as error:
            raise UnreadableValue(f"{text!r} is not a day of any calendar") from error


class Time(Field):
    """A Korean clock time, `HHMMSS` there and `14:30:00` here. The marker rows of the close have none."""

    kind = "time"
    MARKERS: ClassVar[frozenset[str]] = frozenset({"888888", "999999"})

    def _read(self, text: str) -> Value:
        if text in self.MARKERS:
            return None
        if not re.fullmatch(r"[0-9]{6}", text):
            raise UnreadableValue(f"{text!r} is not a time of the form HHMMSS")
        try:
            return time(int(text[:2]), int(text[2:4]), int(text[4:])).isoformat()
        except ValueError as error:
            raise UnreadableValue(f"{text!r} is not a time of day") from error


def signed_number(text: str) -> Decimal:
    """The number in a broker's text, its sign kept: commas and blanks go, `--5` is −5 (recorded in sister TRs).

    Raises UnreadableValue for `+-5`, letters, exponents and more digits than a double holds.

    >>> signed_number("+1,164"), signed_number("--123"), signed_number("-0") == 0
    (Decimal('1164'), Decimal('-123'), True)
    """
    match = _NUMBER.fullmatch(text.replace(",", "").replace(" ", ""))
    if match is None:
        raise UnreadableValue(f"{text!r} is not a number")
    number = Decimal(match[2])
    if len(str(number).replace(".", "").strip("0")) > MAX_DIGITS:
        raise UnreadableValue(f"{text!r} has more than {MAX_DIGITS} significant digits")
    return -number if match[1].startswith("-") else number


def is_saturated(field: Field, raw: object) -> bool:
    """Whether a readable number was cut off at what a 32-bit counter holds, and so reads as null.

    >>> is_saturated(Quantity("trde_qty", "거래량"), "-2147483647")
    True
    """
    if not isinstance(field, _Number) or not isinstance(raw, str | int) or not str(raw).strip():
        return False
    return abs(signed_number(str(raw))) in SATURATED
