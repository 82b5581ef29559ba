"""A table on a disk goes in; the commits that a power cut tore come out, and are set aside, so that the table is whole.

Delta never calls fsync; we do before anything is acknowledged. So a power cut may leave a log entry that is empty, half
there or missing, or whose data file is, and what was in it is handed out again: without it, the table is what it was
before, and is written to as if the commit had never been.

The surprise is that this is safe while others write: delta-rs (1.6, seen with strace) gives data files and log entries
their names when they are whole, log entries last, so as long as the machine runs everybody sees a commit whole or not
at all. What is torn was written before a power cut, and nobody who wrote it lives. Two that open a table after it take
turns by the lock of those who merge, and the second finds nothing. A checkpoint is made when all before it is on the
disk, so nothing before it is looked at: what is broken there is a broken disk, and `verify` says so. None is deleted.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from consumers.archive.disk import TIDYING, alone, sync

NEWEST = 10
"""So many of the newest log entries may not be on the disk: six archivers share a table, each with one or two."""

ASIDE = "_torn"
"""The folder of a table to which torn commits go. To Delta's readers, what begins with an underscore is no data."""

LOG_NAME = re.compile(r"(\d{20})\.[\w.-]+")
PARQUET = b"PAR1"
"""How a Parquet file begins and ends. Sizes tell less: a file may have all of it, and zeros where the power went."""


@dataclass(frozen=True)
class Torn:
    """What is torn at the end of a table.

    `versions` are the torn commit and all later ones, `broken` the files that are not whole, `positions` the lowest
    position that these commits have reached in each stream.
    """

    table: Path
    versions: tuple[int, ...]
    broken: tuple[str, ...]
    positions: dict[str, int]

    @property
    def told(self) -> str:
        """One line for a person."""
        which = f"the commits from version {self.versions[0]} on" if self.versions else "the checkpoint"
        return f"a power cut has torn {which} ({', '.join(self.broken) or 'the one before is missing'})"


@dataclass(frozen=True)
class _Commit:
    """A log entry. `actions` are None where it is not whole, and none where it is empty."""

    version: int
    actions: list[dict[str, Any]] | None

    @classmethod
    def read(cls, log: Path, version: int) -> _Commit:
        """Raises FileNotFoundError."""
        try:
            actions = [json.loads(line) for line in (log / _json(version)).read_bytes().splitlines()]
        except ValueError:
            return cls(version, None)
        return cls(version, actions if all(isinstance(one, dict) for one in actions) else None)

    def files(self, kind: str) -> list[str]:
        """The files it adds or removes."""
        found = [one[kind] for one in self.actions or [] if isinstance(one.get(kind), dict)]
        return [unquote(one["path"]) for one in found if "path" in one]


def find(table: Path) -> Torn | None:
    """What a power cut has torn in a table; None where it is whole, or where there is none."""
    while _log(table).is_dir():
        with suppress(FileNotFoundError):  # of the log, which is being tidied: it is looked at again
            return _find(table)
    return None


def _find(table: Path) -> Torn | None:
    log = _log(table)
    names = _names(log)
    checkpoints = {name: _version(name) for name in names if ".checkpoint." in name}
    half = [name for name in checkpoints if name.endswith(".parquet") and not _is_parquet(log / name)]
    durable = max((version for name, version in checkpoints.items() if name not in half), default=-1)
    newer = sorted(version for name in names if name == _json(version := _version(name)) and version > durable)
    commits = [_Commit.read(log, version) for version in newer[-NEWEST:]]
    follows = durable >= 0 and len(newer) <= NEWEST
    whole = _whole(table, commits, durable + 1 if follows or not commits else commits[0].version)
    torn = commits[len(whole) :]
    broken = [name for name in half if checkpoints[name] > durable]
    for one in torn:
        broken += _broken_files(table, one) if one.actions else [_json(one.version)]
    if not torn and not broken:
        return None
    return Torn(table, tuple(one.version for one in torn), tuple(broken), _positions(torn))


def set_aside(table: Path) -> Torn | None:
    """Move torn commits, and whatever came after them, into a folder beside the log; None where nothing is torn.

    Raises OSError where that cannot be done, and where the table would not be what it was before.
    """
    with alone(table / TIDYING, wait=True):
        torn = find(table)
        if torn is None:
            return None
        _check_what_was_before(table, torn)
        (table / ASIDE).mkdir(exist_ok=True)
        log, first = _log(table), min(torn.versions, default="checkpoint")
        folder = Path(tempfile.mkdtemp(prefix=f"{first}-", dir=table / ASIDE))
        _keep_data(table, torn, folder)
        for name in _to_move(log, torn):
            (log / name).rename(folder / name)
        sync(folder.iterdir(), folder, folder.parent, log, table)
        return torn


def _to_move(log: Path, torn: Torn) -> list[str]:
    """Names of the log, in an order that leaves a table to be mended wherever it ends: a hint to a checkpoint first,
    the oldest entry last.
    """
    late = [
        name
        for name in sorted(_names(log), reverse=True)
        if name in torn.broken or (torn.versions and _version(name) >= torn.versions[0])
    ]
    points = any(".checkpoint." in name for name in late) and (log / "_last_checkpoint").exists()
    return ["_last_checkpoint", *late] if points else late


def _check_what_was_before(table: Path, torn: Torn) -> None:
    """Raise OSError where there would be no whole table without what is torn: a broken disk, or somebody's hand."""
    log = _log(table)
    commits = [_Commit.read(log, version) for version in torn.versions]
    added = {name for one in commits for name in one.files("add")}
    removed = {name for one in commits for name in one.files("remove")} - added
    gone = sorted(name for name in removed if not is_whole(table / name))
    left = set(_names(log)).difference(_to_move(log, torn))
    begins_again = torn.versions[:1] == (0,)
    if not begins_again and _json(0) not in left and not any(".checkpoint." in name for name in left):
        gone.append("every whole checkpoint")
    if gone:
        raise OSError(
            f"{table}: {torn.told}; what they had replaced is gone as well: {', '.join(gone)}. "
            f"Put these back from a copy, or move the folder {table} away to begin another"
        )


def _keep_data(table: Path, torn: Torn, folder: Path) -> None:
    """Give the files that torn commits add a second name: a later `vacuum` takes the first."""
    for version in torn.versions:
        for name in _Commit.read(_log(table), version).files("add"):
            with suppress(OSError):  # missing, or a disk that knows no second names
                os.link(table / name, folder / name.replace("/", "_"))


def _whole(table: Path, commits: Sequence[_Commit], expected: int) -> list[_Commit]:
    """The commits before the first that is torn. Without the later ones, a file that they removed counts again."""
    whole: list[_Commit] = []
    for one in commits:
        if one.actions is None or one.version != expected + len(whole):
            break
        whole.append(one)
    while True:
        while whole and not whole[-1].actions:  # to Delta a commit of nothing; with others after it, it is one
            whole.pop()
        removed = {name for one in whole for name in one.files("remove")}
        bad = [n for n, one in enumerate(whole) if not removed.issuperset(_broken_files(table, one))]
        if not bad:
            return whole
        del whole[bad[0] :]


def _broken_files(table: Path, commit: _Commit) -> list[str]:
    """The data files of a commit that are not as they were written."""
    return [name for name in commit.files("add") if not is_whole(table / name)]


def _positions(commits: Iterable[_Commit]) -> dict[str, int]:
    found: dict[str, int] = {}
    for mark in (one["txn"] for commit in commits for one in commit.actions or [] if "txn" in one):
        stream = mark["appId"].partition("~")[0]  # after a fork, positions are counted anew under another name
        found[stream] = min(mark["version"], found.get(stream, mark["version"]))
    return found


def is_whole(file: Path) -> bool:
    """Whether a data file is there and has both ends."""
    with suppress(FileNotFoundError):
        return _is_parquet(file)
    return False


def _is_parquet(file: Path) -> bool:
    """Whether a file has both ends. Raises FileNotFoundError."""
    with file.open("rb") as opened:
        start, length = opened.read(4), opened.seek(0, os.SEEK_END)
        opened.seek(max(0, length - 4))
        return start == opened.read(4) == PARQUET


def _log(table: Path) -> Path:
    return table / "_delta_log"


def _names(log: Path) -> list[str]:
    """What the log has of any version: entries, checkpoints, and what other writers put beside them."""
    return [name for name in os.listdir(log) if LOG_NAME.fullmatch(name)]


def _json(version: int) -> str:
    return f"{version:020}.json"


def _version(name: str) -> int:
    return int(name[:20])
