"""What the broker answered goes in, response by response; files that can be played again come out, and are read here.

One part per Korean day and process: `2026-11-23.jsonl.gz`, after a restart `2026-11-23.2.jsonl.gz`. The surprise: every
line is flushed through the compressor, so a process that is killed leaves a file without an end, yet whole up to the
line being written; and a part that could not be written to is never written to again, since what follows a hole in a
compressed file is lost.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
import structlog

from poller.broker import Heard
from poller.clock import Clock
from poller.commit import iso
from poller.session import KST
from poller.settings import ConfigError

RETRY_S = 60.0
"""How long a disk that refused is left alone."""

LEVEL = 6
GZIP = 31
"""zlib's name for its largest window with the header and the check sum of a gzip file."""

READ_BYTES = 1 << 16

_PART_NAME = re.compile(r"(\d{4}-\d\d-\d\d)(?:\.(\d+))?\.jsonl\.gz")


class NoRecording(ConfigError):
    """There is nothing to play; the message says where it was looked for."""


def target_name(tr: str, request: Mapping[str, object]) -> str:
    """A target as people see it.

    >>> target_name("ka20001", {"mrkt_tp": "0", "inds_cd": "001"})
    'ka20001?inds_cd=001&mrkt_tp=0'
    """
    return f"{tr}?" + "&".join(f"{name}={value}" for name, value in sorted(request.items()))


@dataclass(frozen=True)
class Recorded:
    """One response as it came, or in `error` why there was none. `walk` ties the pages of one answer together.

    `at` is when it came, `asked_at` when its walk began; `status` is None where there was no response.
    """

    at: datetime
    asked_at: datetime
    tr: str
    target: Mapping[str, str]
    walk: int
    page: int
    asked_key: str
    status: int | None
    cont_yn: str
    next_key: str
    content_type: str
    body: bytes
    error: str

    @property
    def name(self) -> str:
        """The target as people see it: `ka20003?inds_cd=001`."""
        return target_name(self.tr, self.target)


class _Part:
    """One open file."""

    def __init__(self, directory: Path, day: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = directory / (f"{day}.jsonl.gz" if number == 1 else f"{day}.{number}.jsonl.gz")
            with suppress(FileExistsError):  # another process may be at it: a part has one writer
                self._file = FileIO(path, "x")
                break
        self.path, self.day, self._whole_lines = path, day, 0
        self._packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)

    def append(self, line: bytes) -> None:
        """Write one line, and everything of it. Raises OSError; the part is of no further use then."""
        self._write(self._packer.compress(line) + self._packer.flush(zlib.Z_SYNC_FLUSH))
        self._whole_lines += 1

    def close(self) -> None:
        """End the file as gzip wants it."""
        with self._file:
            self._write(self._packer.flush(zlib.Z_FINISH))

    def abandon(self) -> None:
        """Leave the file as it is; one that never held a line is taken away."""
        with suppress(OSError):
            self._file.close()
            if not self._whole_lines:
                self.path.unlink()

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]


class Recorder:
    """Keeps what it is told. Use as a context manager.

    A disk that refuses is said once and tried again a minute later; polling never notices.
    """

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory, self._clock = directory, clock
        self._part: _Part | None = None
        self._missed = 0
        self._retry_at_s = 0.0
        self._log = structlog.get_logger("recording")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_part()

    def keep(self, heard: Heard) -> None:
        """Append one response under the present moment."""
        if self._missed and self._clock.monotonic_s() < self._retry_at_s:
            self._missed += 1
            return
        at = self._clock.now()
        try:
            self._part_of(at).append(_line(heard, at))
        except OSError as error:
            self._failed(error)
            return
        if self._missed:
            self._log.info("recording.recovered", missed=self._missed)
            self._missed = 0

    def _part_of(self, at: datetime) -> _Part:
        day = at.astimezone(KST).date().isoformat()
        if self._part is not None and self._part.day != day:
            self._end_part()
        if self._part is None:
            self._part = _Part(self._directory, day)
            self._log.info("recording.begun", file=str(self._part.path))
        return self._part

    def _failed(self, error: OSError) -> None:
        if self._part is not None:
            self._part.abandon()
            self._part = None
        if not self._missed:
            self._log.warning("recording.failed", error=str(error), again_in_s=RETRY_S)
        self._missed += 1
        self._retry_at_s = self._clock.monotonic_s() + RETRY_S

    def _end_part(self) -> None:
        if self._part is not None:
            with suppress(OSError):  # without its end it is read all the same
                self._part.close()
            self._part = None


def _line(heard: Heard, at: datetime) -> bytes:
    """The response as a line of JSON; a body that is not UTF-8 as `body_base64`."""
    line: dict[str, Any] = {
        "at": iso(at),
        "asked_at": iso(heard.asked_at),
        "tr": heard.target.tr.code,
        "target": heard.target.request,
        "walk": heard.walk,
        "page": heard.page,
        "asked_key": heard.asked_key,
    }
    if heard.error:
        return orjson.dumps({**line, "error": heard.error}, option=orjson.OPT_APPEND_NEWLINE)
    line |= {
        "status": heard.status,
        "cont_yn": heard.cont_yn,
        "next_key": heard.next_key,
        "content_type": heard.content_type,
    }
    try:
        line["body"] = heard.body.decode()
    except UnicodeDecodeError:
        line["body_base64"] = base64.b64encode(heard.body).decode()
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def recorded_days(directory: Path) -> list[date]:
    """The days of which a directory holds recordings, oldest first. Raises NoRecording where there are none."""
    days = sorted(_parts(directory))
    if not days:
        raise NoRecording(f"{directory} holds no recording: `sectorwire poll --record {directory}` makes one")
    return days


class Recording:
    """Every response in order of time, as often as it is iterated over.

    A part that ends too early is read up to there, which is logged once.
    """

    def __init__(self, days: Iterable[Iterable[Path]]) -> None:
        self._days = days
        self._told: set[Path] = set()

    def __iter__(self) -> Iterator[Recorded]:
        for parts in self._days:
            yield from heapq.merge(*map(self._read_part, parts), key=lambda recorded: recorded.at)

    def _read_part(self, path: Path) -> Iterator[Recorded]:
        lines = 0
        try:
            for line in _lines(path):
                yield _recorded(line)
                lines += 1
        except (EOFError, zlib.error, ValueError, KeyError) as error:
            if path not in self._told:
                self._told.add(path)
                log = structlog.get_logger("recording")
                log.warning("recording.cut", file=str(path), lines_read=lines, why=str(error))


def read_recording(directory: Path, day: date | None = None) -> Recording:
    """What was recorded, or that of one Korean day. Raises NoRecording."""
    days = recorded_days(directory)
    if day is not None and day not in days:
        raise NoRecording(f"{directory} holds nothing of {day}: it has {', '.join(map(str, days))}")
    parts = _parts(directory)
    return Recording([parts[each] for each in (days if day is None else [day])])


def _parts(directory: Path) -> dict[date, list[Path]]:
    """The files of each day, in the order in which they were begun."""
    found: dict[date, list[tuple[int, Path]]] = {}
    for path in directory.glob("*.jsonl.gz"):
        match = _PART_NAME.fullmatch(path.name)
        if match:
            found.setdefault(date.fromisoformat(match[1]), []).append((int(match[2] or 1), path))
    return {day: [path for _, path in sorted(parts)] for day, parts in found.items()}


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a part. Raises EOFError or zlib.error where it ends too early."""
    unpacker, rest = zlib.decompressobj(GZIP), b""
    with path.open("rb") as file:
        while packed := file.read(READ_BYTES):
            *whole, rest = (rest + unpacker.decompress(packed)).split(b"\n")
            yield from whole
    if not unpacker.eof:
        raise EOFError("no end: its writer was killed, lost the disk, or still writes")


def _recorded(line: bytes) -> Recorded:
    """Raises ValueError or KeyError for what is not a line of ours."""
    content = orjson.loads(line)
    packed = content.get("body_base64")
    return Recorded(
        at=datetime.fromisoformat(content["at"]),
        asked_at=datetime.fromisoformat(content["asked_at"]),
        tr=content["tr"],
        target=content["target"],
        walk=content["walk"],
        page=content["page"],
        asked_key=content["asked_key"],
        status=content.get("status"),
        cont_yn=content.get("cont_yn", ""),
        next_key=content.get("next_key", ""),
        content_type=content.get("content_type", ""),
        body=base64.b64decode(packed) if packed else content.get("body", "").encode(),
        error=content.get("error", ""),
    )
