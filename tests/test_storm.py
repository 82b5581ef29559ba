"""Whatever befalls pollers, consumers and their server, in whatever order: nothing is lost and nothing comes twice.

A storm that breaks a promise is lived again with `SEED=1234 pytest tests/test_storm.py -k survive`.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.storm import TROUBLES, Storm
from tests.test_fault_seeds import chunks

SEEDS, SOAKED, CHUNK = 300, 10_000, 30


def lived(seed: int) -> Storm:
    """A storm from beginning to end; a promise that it breaks is an AssertionError, which says how to see it again."""
    storm = Storm(seed)
    try:
        storm.live()
        storm.check()
    except BaseException as error:
        error.add_note(f"to see it again: SEED={seed} .venv/bin/pytest tests/test_storm.py -k survive")
        raise
    return storm


@pytest.mark.parametrize("seeds", chunks(0, SEEDS, CHUNK))
def test_every_promise_survives_every_storm(seeds: range):
    happened = Counter[str]()
    for seed in seeds:
        storm = lived(seed)
        happened.update(storm.happened)
        happened["published"] += len(storm.server.past.ids)
        happened["lost by a server"] += len(storm.server.past.lost)

    if len(seeds) == CHUNK:  # else all of it would hold of nothing
        assert happened.keys() >= {trouble.__name__ for trouble in TROUBLES}
        assert happened["published"] > 50 * CHUNK
        assert happened["lost by a server"] > 5


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seeds", chunks(SEEDS, SOAKED, 1_000))
def test_every_promise_survives_ten_thousand_storms(seeds: range):
    for seed in seeds:
        lived(seed)
        if (seed + 1) % 100 == 0:
            print(f"{seed + 1 - SEEDS} of {SOAKED} storms survived", flush=True)  # noqa: T201 -- it takes an hour


@pytest.mark.parametrize("seed", [2198, 5230, 7728, 9400])
def test_a_storm_that_once_broke_a_promise_keeps_it_now(seed: int):
    """No fork was told: a server whose clock was behind wrote other entries under the ids of lost ones, or a trim had
    taken all that stood before them.
    """
    lived(seed)


def test_a_storm_is_the_same_when_it_is_lived_again():
    """Else one that broke a promise could not be looked at."""
    first, again = lived(7), lived(7)

    assert first.happened == again.happened
    assert first.server.past.ids == again.server.past.ids
    assert first.effects == again.effects
    assert [line.stream_id for line in first.disk.lines()] == [line.stream_id for line in again.disk.lines()]
