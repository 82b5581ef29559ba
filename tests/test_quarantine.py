"""Answers that could not be used stay for a person, each fault once, no more than fit, until they can be read."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from poller import quarantine as module
from poller.broker import Answer
from poller.commit import Known
from poller.grid import Job
from poller.poll import Watched
from poller.quarantine import MAX_ANSWER_BYTES, MAX_FILES, Quarantine, one_of
from poller.rows import Unreadable
from poller.trs.base import BadRequest
from tests.builders import NOON, recording, target
from tests.conftest import HandClock, desk_for

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
        "tr": "ka20003",
        "target": "ka20003?inds_cd=001",
        "time": "2026-11-23T12:00:00.000+09:00",
        "reason": REASON,
        "row": None,
        "readable": False,
        "cut": "",
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


def test_an_endless_answer_is_cut_and_says_so(quarantine: Quarantine):
    """What stands there is not what was sent, so reading it again would prove nothing."""
    path = quarantine.keep(INDICES, NOON, REASON, [b"x" * (MAX_ANSWER_BYTES + 5), b"y" * 5])

    assert path is not None
    content = json.loads(path.read_text("utf-8"))
    assert [len(body) for body in content["bodies"]] == [MAX_ANSWER_BYTES, 0]
    assert content["cut"] == "8,000,000 of 8,000,010 bytes"
    assert "only a part" in (quarantine.kept()[0].still_bad() or "")


def test_all_files_together_stay_below_a_size(quarantine: Quarantine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    for number in range(10):
        quarantine.keep(INDICES, NOON + timedelta(seconds=number), letters(number), [b"x" * 3_000])

    assert [one.reason for one in quarantine.kept()] == ["j", "i", "h"]


def test_a_disk_that_refuses_is_told(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match="file"):
        Quarantine(tmp_path / "file").keep(INDICES, NOON, REASON, [])


def bad_row(quarantine: Quarantine, text: str) -> Path | None:
    """Keep the recorded answer of ka20003 with this level in its first row."""
    known = recording("ka20003")
    known.answer["all_inds_idex"][0]["cur_prc"] = text
    bad = Unreadable("indices", "001", "level", "cur_prc", f"{text!r} is not a number")
    return quarantine.keep(known.target, NOON, module.told(bad), [json.dumps(known.answer).encode()], bad)


def test_a_single_bad_row_is_named(quarantine: Quarantine):
    bad_row(quarantine, "+-5")

    (one,) = quarantine.kept()
    assert one.summary()["row"] == {
        "table": "indices",
        "key": "001",
        "field": "level",
        "element": "cur_prc",
        "reason": "'+-5' is not a number",
    }
    assert "key: 001\nfield: level\nelement: cur_prc" in one.described()
    assert '"cur_prc": "+-5"' in one.described()


def test_an_answer_is_read_again_with_today_s_declarations(quarantine: Quarantine):
    """The second stands for an answer that was put aside by a program which did not know its form."""
    bad_row(quarantine, "+-5")
    path = bad_row(quarantine, "odd")
    assert path is not None
    path.write_text(path.read_text("utf-8").replace("odd", "+5"), "utf-8")

    why = {one.reason[-20:]: one.still_bad() for one in quarantine.kept()}

    assert "001 level (cur_prc)" in str(why.pop("'+-5' is not a number"[-20:]))
    assert [*why.values()] == [None]


def test_a_walk_that_broke_is_not_mended_by_reading_its_pages(quarantine: Quarantine):
    known = recording("ka20003")
    quarantine.keep(known.target, NOON, "page 2 repeats its next-key", [json.dumps(known.answer).encode()])

    assert "the trouble was another" in (quarantine.kept()[0].still_bad() or "")


def test_a_file_of_an_earlier_version_or_of_nobody_is_listed(quarantine: Quarantine):
    folder = quarantine.directory / "ka20003"
    folder.mkdir(parents=True)
    old = {"target": "ka20003?inds_cd=001", "time": "2026-11-23T12:00:00.000+09:00", "reason": "x", "bodies": ["{}"]}
    (folder / "20261123T120000-aaaaaaaaaaaa.json").write_text(json.dumps(old))
    (folder / "20261123T120001-bbbbbbbbbbbb.json").write_text("not ours")

    nobody, earlier = quarantine.kept()

    assert "cannot be read" in nobody.reason
    assert "has no list all_inds_idex" in (earlier.still_bad() or "")
    assert nobody.still_bad()


def test_an_unknown_id_is_answered_with_the_nearest(quarantine: Quarantine):
    bad_row(quarantine, "+-5")
    (one,) = quarantine.kept()

    assert one_of(quarantine.kept(), one.id) == one
    with pytest.raises(BadRequest, match=f"did you mean {one.id}"):
        one_of(quarantine.kept(), one.id[:-1])
    with pytest.raises(BadRequest, match="quarantine list"):
        one_of([], "x")


async def test_a_poll_names_the_row_it_could_not_read(fake_redis: Redis, clock: HandClock, tmp_path: Path):
    known = recording("ka20003")
    row = known.answer["all_inds_idex"][0]
    rows = [dict(row, stk_cd=f"{code:03}", cur_prc="+-5" if code == 7 else "+5") for code in range(1, 41)]
    body = json.dumps({**known.answer, "all_inds_idex": rows}).encode()
    async with desk_for(fake_redis, lambda request: httpx.Response(500), clock, tmp_path) as desk:
        watched = Watched(Job(known.target, 10.0), desk)
        answer = Answer(known.target, (json.loads(body),), (body,))
        watched.decide(Known(), answer, (clock.now(), clock.now()), epoch=1)

    (one,) = Quarantine(tmp_path).kept()
    assert one.row is not None
    assert (one.row["table"], one.row["key"], one.row["element"]) == ("indices", "007", "cur_prc")
