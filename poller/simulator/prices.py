"""KRX's rules for stock prices: the steps a price can take, and how far it may go in a day.

Pure. Prices are won, as integers.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

# Up to which price which step holds, since January 2023.
STEPS_KRW = ((2_000, 1), (5_000, 5), (20_000, 10), (50_000, 50), (200_000, 100), (500_000, 500))
LARGEST_STEP_KRW = 1_000
_BORDERS = [below for below, _ in STEPS_KRW]
_STEPS = [step for _, step in STEPS_KRW] + [LARGEST_STEP_KRW]


def step_krw(price: float) -> int:
    """The price step at `price`.

    >>> step_krw(1_999), step_krw(2_000), step_krw(68_100), step_krw(900_000)
    (1, 5, 100, 1000)
    """
    return _STEPS[bisect_right(_BORDERS, price)]


def to_step(price: float) -> int:
    """The nearest price that can be traded.

    >>> to_step(68_149.0), to_step(0.2)
    (68100, 1)
    """
    step = step_krw(price)
    return max(step, round(price / step) * step)


@lru_cache(maxsize=2_000)
def limits(base: int) -> tuple[int, int]:
    """The lowest and the highest price of a day: 30 % either way, on a price step.

    >>> limits(67_500)
    (47250, 87700)
    """
    lowest, highest = -(-base * 7 // 10), base * 13 // 10
    low_step, high_step = step_krw(lowest), step_krw(highest)
    return -(-lowest // low_step) * low_step, highest // high_step * high_step
