"""Raw answers on the disk: all of them, as they came, after kills and full disks, and never a secret."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from poller import recording
from poller.broker import Broker, Heard
from poller.budget import MARGIN_S, Limit
from poller.clock import Clock
from poller.errors import BrokerError, TryLater
from poller.gate import Gates
from poller.recording import RETRY_S, NoRecording, Recorder, read_recording
from poller.session import KST
from tests.builders import target
from tests.conftest import MONDAY_NOON, HandClock

INDICES = target("ka20003", inds_cd="001")
STOCKS = target("ka20002", inds_cd="001", stex_tp="1")
APP_KEY, SECRET_KEY, TOKEN = (f"{letter}{'x7Q-_' * 8}{letter}9" for letter in "AST")
OK = {"return_code": 0, "return_msg": "정상적으로 처리되었습니다"}


def heard(body: bytes = b"{}", *, walk: int = 1, page: int = 1, **more: Any) -> Heard:
    fields: dict[str, Any] = {"status": 200, "cont_yn": "N", "content_type": "application/json", **more}
    return Heard(INDICES, walk, MONDAY_NOON, page, "", body=body, **fields)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_comes_out_is_what_went_in(tmp_path: Path, clock: HandClock):
    """Every byte, also where they are no text; and a file that gunzip can read."""
    bodies = ['{"종목명": "전기/전자"}\n'.encode(), b"<html>\xff\xfe\x00</html>", b""]
    with Recorder(tmp_path, clock) as recorder:
        for number, body in enumerate(bodies):
            recorder.keep(heard(body, walk=number, status=500, next_key="k", cont_yn="Y"))
            clock.advance(0.25)
        recorder.keep(heard(walk=9, status=None, error="cannot be reached"))

    read = list(read_recording(tmp_path))
    with gzip.open(tmp_path / "2026-11-23.jsonl.gz") as file:
        first = json.loads(file.readline())

    assert [one.body for one in read] == [*bodies, b""]
    assert [one.walk for one in read] == [0, 1, 2, 9]
    assert (read[0].name, read[0].status, read[0].cont_yn, read[0].next_key) == ("ka20003?inds_cd=001", 500, "Y", "k")
    assert (read[3].status, read[3].error) == (None, "cannot be reached")
    assert read[1].at == MONDAY_NOON + timedelta(seconds=0.25)
    assert first["at"] == "2026-11-23T12:00:00.000+09:00"
    assert first["target"] == {"inds_cd": "001"}


def test_each_korean_day_has_a_file_and_each_start_a_part(tmp_path: Path, clock: HandClock):
    clock.moment = datetime(2026, 11, 23, 23, 59, 59, tzinfo=KST)
    with Recorder(tmp_path, clock) as recorder:
        recorder.keep(heard(b"1"))
        clock.advance(2)
        recorder.keep(heard(b"2"))
    for body in (b"3", b"4"):
        with Recorder(tmp_path, clock) as recorder:
            recorder.keep(heard(body))

    assert names(tmp_path) == [
        "2026-11-23.jsonl.gz",
        "2026-11-24.2.jsonl.gz",
        "2026-11-24.3.jsonl.gz",
        "2026-11-24.jsonl.gz",
    ]
    assert [one.body for one in read_recording(tmp_path)] == [b"1", b"2", b"3", b"4"]
    assert [one.body for one in read_recording(tmp_path, date(2026, 11, 23))] == [b"1"]


def test_parts_of_two_pollers_are_read_in_order_of_time(tmp_path: Path, clock: HandClock):
    """One that lost the lead and gets it back goes on in its own part."""
    with Recorder(tmp_path, clock) as one, Recorder(tmp_path, clock) as other:
        for number, recorder in enumerate([one, other, one, other]):
            recorder.keep(heard(str(number).encode()))
            clock.advance(1)

    assert [one.body for one in read_recording(tmp_path)] == [b"0", b"1", b"2", b"3"]


def test_a_kill_loses_nothing_that_was_kept(tmp_path: Path, logs: list[Any]):
    """SIGKILL, so nobody ends the file; the next start opens another part, and the reader says where one was cut."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom poller.clock import Clock\n"
        "from poller.recording import Recorder\nfrom tests.test_recording import heard\n"
        "with Recorder(Path(sys.argv[1]), Clock()) as recorder:\n"
        "    for number in range(50):\n        recorder.keep(heard(str(number).encode()))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    for _ in range(2):
        killed = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=False, cwd=Path(__file__).parents[1]
        )
        assert killed.returncode == -signal.SIGKILL

    recording = read_recording(tmp_path)

    assert sorted(int(one.body) for one in recording) == sorted([*range(50)] * 2)
    assert sorted(int(one.body) for one in recording) == sorted([*range(50)] * 2)
    assert [entry["event"] for entry in logs] == ["recording.cut"] * 2  # once each, however often it is read


def test_a_part_that_is_cut_anywhere_gives_its_whole_lines(tmp_path: Path, clock: HandClock):
    with Recorder(tmp_path, clock) as recorder:
        for number in range(20):
            recorder.keep(heard(os.urandom(40), walk=number))
    path = tmp_path / "2026-11-23.jsonl.gz"
    content, last = path.read_bytes(), -1

    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with capture_logs() as logs:
            walks = [one.walk for one in read_recording(tmp_path)]
        assert walks == [*range(len(walks))]
        assert len(walks) >= last
        assert [entry["event"] for entry in logs] == ["recording.cut"]
        last = len(walks)

    assert last >= 19


def test_garbage_after_a_hole_in_the_disk_ends_the_part(tmp_path: Path, clock: HandClock, logs: list[Any]):
    with Recorder(tmp_path, clock) as recorder:
        recorder.keep(heard())
    path = tmp_path / "2026-11-23.jsonl.gz"
    path.write_bytes(bytes(len(path.read_bytes())))

    assert list(read_recording(tmp_path)) == []
    assert [entry["event"] for entry in logs if entry["event"] == "recording.cut"] == ["recording.cut"]


def test_a_full_disk_is_said_once_and_polling_goes_on(
    tmp_path: Path, clock: HandClock, logs: list[Any], monkeypatch: pytest.MonkeyPatch
):
    """Half a line is written when the disk is full, so the part is left alone and another one is begun."""

    class FullDisk(FileIO):
        def write(self, content: Any) -> int:
            super().write(bytes(content)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    with Recorder(tmp_path, clock) as recorder:
        recorder.keep(heard(b"before", walk=1))
        assert recorder._part is not None
        recorder._part._file.close()
        monkeypatch.setattr(recorder._part, "_file", FullDisk(tmp_path / "2026-11-23.jsonl.gz", "a"))
        monkeypatch.setattr(recording, "FileIO", FullDisk)
        for _ in range(5):
            recorder.keep(heard(b"lost"))
            clock.advance(RETRY_S / 2)
        monkeypatch.undo()
        clock.advance(RETRY_S)
        recorder.keep(heard(b"after", walk=2))

    said = [entry for entry in logs if entry["event"] in {"recording.failed", "recording.recovered"}]
    assert [entry["event"] for entry in said] == ["recording.failed", "recording.recovered"]
    assert "No space left" in said[0]["error"]
    assert said[1]["missed"] == 5
    assert [one.body for one in read_recording(tmp_path)] == [b"before", b"after"]
    assert names(tmp_path) == ["2026-11-23.2.jsonl.gz", "2026-11-23.jsonl.gz"]


def test_an_empty_directory_says_how_to_make_a_recording(tmp_path: Path, clock: HandClock):
    with pytest.raises(NoRecording, match="--record"):
        read_recording(tmp_path)
    with Recorder(tmp_path, clock) as recorder:
        recorder.keep(heard())
    with pytest.raises(NoRecording, match="it has 2026-11-23"):
        read_recording(tmp_path, date(2026, 11, 24))


def recorded_broker(redis: Redis, *answers: httpx.Response | Exception) -> Broker:
    """A broker with keys as long as Kiwoom's, which plays these answers."""
    coming = list(answers)

    def play(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/oauth2/token":
            return httpx.Response(200, json={"token": TOKEN, "expires_dt": "20991231235959", **OK})
        answer = coming.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    keys = SecretStr(APP_KEY), SecretStr(SECRET_KEY)
    gates = Gates({"*": Limit(50, per_s=-MARGIN_S)}, Clock())
    transport = httpx.MockTransport(play)
    return Broker("http://broker", *keys, gates=gates, redis=redis, prefix="p", clock=Clock(), transport=transport)


async def test_every_response_of_a_report_is_kept_and_no_token_call(
    fake_redis: Redis, clock: HandClock, tmp_path: Path
):
    """Errors, HTML and broken bodies too; a connection that failed as a note."""
    dead = {"return_code": 3, "return_msg": "인증에 실패했습니다[8005:Token이 유효하지 않습니다]"}
    answers: list[httpx.Response | Exception] = [
        httpx.Response(200, json={"inds_stkpc": [{"stk_cd": "1"}], **OK}, headers={"cont-yn": "Y", "next-key": "a"}),
        httpx.Response(200, json={"inds_stkpc": [{"stk_cd": "2"}], **OK}, headers={"cont-yn": "N"}),
        httpx.Response(503, html="<html>점검 중</html>"),
        httpx.Response(200, content=b'{"cut'),
        httpx.Response(200, json=dead),
        httpx.Response(200, json=dead),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("too slow"),
    ]
    broker = recorded_broker(fake_redis, *answers)
    async with broker:
        with Recorder(tmp_path, clock) as recorder:
            broker.record = recorder.keep
            await broker.fetch(STOCKS)
            for _ in range(5):
                with pytest.raises(BrokerError):
                    await broker.fetch(STOCKS)
            broker.may_send = lambda: False
            with pytest.raises(TryLater, match="nothing is asked"):
                await broker.fetch(STOCKS)

    read = list(read_recording(tmp_path))
    assert [one.status for one in read] == [200, 200, 503, 200, 200, 200, None, None]
    assert [one.walk - read[0].walk for one in read] == [0, 0, 1, 2, 3, 4, 5, 6]
    assert [(one.page, one.asked_key, one.next_key) for one in read[:2]] == [(1, "", "a"), (2, "a", "")]
    assert [one.body for one in read[:6]] == [one.content for one in answers if isinstance(one, httpx.Response)]
    assert ["cannot be reached" in read[6].error, "too slow" in read[7].error] == [True, True]


async def test_no_secret_reaches_the_disk(fake_redis: Redis, clock: HandClock, tmp_path: Path):
    """Not even from a broker that repeats what it was sent in an error page."""
    echo = f"<html>bad request: Bearer {TOKEN}, {APP_KEY}, {SECRET_KEY}</html>"
    plain = httpx.Response(200, json={"all_inds_idex": [{"stk_cd": "001"}], **OK})
    broker = recorded_broker(fake_redis, plain, httpx.Response(400, html=echo))
    async with broker:
        with Recorder(tmp_path, clock) as recorder:
            broker.record = recorder.keep
            await broker.fetch(INDICES)
            with pytest.raises(TryLater):
                await broker.fetch(INDICES)

    content = gzip.decompress((tmp_path / "2026-11-23.jsonl.gz").read_bytes()).decode()
    assert content.count("\n") == 2
    assert "bad request: Bearer ***, ***, ***" in content
    for secret in (APP_KEY, SECRET_KEY, TOKEN):
        assert secret not in content
    assert "authorization" not in content.lower()
