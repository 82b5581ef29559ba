"""Answers that could not be used stay for a person to look at, each fault once, and never more than fit."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from poller.quarantine import MAX_BODY_CHARS, MAX_FILES, Quarantine
from tests.builders import NOON, target

INDICES = target("ka20003", inds_cd="001")
REASON = "indices/013 level (cur_prc): 'abc' is not a number"


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    return Quarantine(tmp_path / "quarantine")


def letters(number: int) -> str:
    """A reason without digits, for digits do not tell faults apart."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def test_an_answer_is_kept_with_why_and_when_and_as_it_was_sent(quarantine: Quarantine):
    path = quarantine.keep(INDICES, NOON, REASON, ['{"종목명": 1}'.encode(), b"<html>\xff</html>"])

    assert path is not None
    assert path.parent == quarantine.directory / "ka20003"
    assert path.name.startswith("20261123T120000-")
    assert json.loads(path.read_text("utf-8")) == {
        "target": "ka20003?inds_cd=001",
        "time": "2026-11-23T12:00:00.000+09:00",
        "reason": REASON,
        "bodies": ['{"종목명": 1}', "<html>\\xff</html>"],
    }


def test_the_same_fault_is_kept_once(quarantine: Quarantine):
    """A broker that sends the same nonsense every ten seconds does not fill the disk."""
    first = quarantine.keep(INDICES, NOON, REASON, [b"1"])

    again = quarantine.keep(INDICES, NOON + timedelta(hours=1), REASON.replace("013", "014"), [b"2"])

    assert first is not None
    assert again is None
    assert list(quarantine.directory.rglob("*.*")) == [first]


def test_another_fault_or_another_target_is_kept_too(quarantine: Quarantine):
    paths = {
        quarantine.keep(INDICES, NOON, REASON, []),
        quarantine.keep(INDICES, NOON, REASON.replace("level", "change"), []),
        quarantine.keep(target("ka20002", inds_cd="001", stex_tp="1"), NOON, REASON, []),
    }

    assert len(paths) == 3
    assert None not in paths


def test_the_oldest_files_go_first(quarantine: Quarantine):
    """Over all TRs together, by the moment in the name and not by their folder."""
    older = target("ka20009", inds_cd="001")
    first = quarantine.keep(older, NOON, "the oldest", [])
    for number in range(MAX_FILES):
        quarantine.keep(INDICES, NOON + timedelta(seconds=1 + number), letters(number), [])

    kept = sorted(path.name for path in quarantine.directory.rglob("*.json"))

    assert len(kept) == MAX_FILES
    assert first is not None
    assert not first.exists()


def test_a_fault_that_went_is_kept_when_it_comes_again(quarantine: Quarantine):
    first = quarantine.keep(INDICES, NOON, REASON, [])
    assert first is not None
    first.unlink()

    assert quarantine.keep(INDICES, NOON, REASON, []) == first


def test_an_endless_answer_is_cut(quarantine: Quarantine):
    path = quarantine.keep(INDICES, NOON, REASON, [b"x" * (MAX_BODY_CHARS + 5)])

    assert path is not None
    assert len(json.loads(path.read_text("utf-8"))["bodies"][0]) == MAX_BODY_CHARS


def test_a_disk_that_refuses_is_told(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match="file"):
        Quarantine(tmp_path / "file").keep(INDICES, NOON, REASON, [])
