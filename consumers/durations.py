"""How the configuration writes a stretch of time. The poller has the same words; of it we know the contract alone."""

from __future__ import annotations

import re

UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(given: object) -> float:
    """Seconds in a text such as "30s", "1.5m" or "2h". Raises ValueError with what to write.

    >>> seconds("1.5m")
    90.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", given.strip()) if isinstance(given, str) else None
    if match is None:
        raise ValueError(f'{given!r} is not a duration; write a number with its unit, such as "30s", "5m" or "2h"')
    return float(match[1]) * UNIT_S[match[2]]
