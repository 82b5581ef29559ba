"""Numbers go in; the broker's way of writing them comes out.

Pure. The surprise: the mark before a level is not a sign. It says on which side of the previous close that level is.
"""

from __future__ import annotations


def points(hundredths: int) -> str:
    """Hundredths, written as a decimal.

    >>> points(239333), points(-5), points(0)
    ('2393.33', '-0.05', '0.00')
    """
    sign = "-" if hundredths < 0 else ""
    return f"{sign}{abs(hundredths) // 100}.{abs(hundredths) % 100:02d}"


def mark(value: int, base: int) -> str:
    """The side of `base` a value is on."""
    return "+" if value > base else "-" if value < base else ""


def marked_points(hundredths: int, base: int) -> str:
    """An index level with its mark; nothing there is 0.

    >>> marked_points(239333, 267296), marked_points(0, 267296)
    ('-2393.33', '0')
    """
    return mark(hundredths, base) + points(hundredths) if hundredths else "0"


def marked(price: int, base: int) -> str:
    """A price in won with its mark.

    >>> marked(68100, 67500), marked(67500, 67500), marked(0, 67500)
    ('+68100', '67500', '0')
    """
    return f"{mark(price, base)}{price}" if price else "0"


def plus(text: str) -> str:
    """A number that carries a real sign, which the broker writes also when it is positive.

    >>> plus("25.56"), plus("-0.10"), plus("0.00")
    ('+25.56', '-0.10', '0.00')
    """
    return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


def flow(amount: int, *, seller: bool) -> str:
    """A net amount; of zero the broker keeps the side it was on before rounding.

    >>> flow(255, seller=False), flow(0, seller=False), flow(0, seller=True)
    ('+255', '+0', '-0')
    """
    return f"{amount:+d}" if amount else "-0" if seller else "+0"


def per_cent(part: int, whole: int) -> int:
    """`part` of `whole` in hundredths of a percent, halves away from zero.

    >>> per_cent(-27963, 267296), per_cent(330, 960)
    (-1046, 3438)
    """
    if not whole:
        return 0
    size = (20_000 * abs(part) + whole) // (2 * whole)
    return size if part >= 0 else -size
