"""Names go in; a random source comes out that is the same for the same names, in every process.

Pure. Strings seed it by their SHA-512, so unlike `hash()` they do not change with PYTHONHASHSEED.
"""

from __future__ import annotations

from random import Random


def chance(*names: object) -> Random:
    """The random source of these names.

    >>> chance(1, "005930").random() == chance(1, "005930").random()
    True
    """
    return Random(":".join(map(str, names)))  # noqa: S311 - it makes up a market, not a secret
