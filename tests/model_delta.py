"""What the archiver writes goes in; what a disk would hold comes out, also after the power has gone.

`ModelTable` is the archiver's own table with Delta Lake below it made up: commits with marks, handles that know the
table as it was when they looked, conflicts between two that set the same mark. What decides whether a line is written
is the product's. The surprises: what was not synced is gone when the power goes, but not when the process dies; and
`trouble` may strike before, within and after each write, as a killed process or a full disk would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError

from consumers.archive import fork, writer
from consumers.archive.tables import NOTICES, SEQ_BITS, Column, Line, packed
from consumers.archive.writer import ArchiveTable


@dataclass
class Written:
    """One commit of a table: its lines, and how far they come in each stream."""

    lines: list[Line]
    marks: dict[str, int]


@dataclass
class Disk:
    """All tables of an archive. `synced` is how many commits of each are safe from a loss of power."""

    tables: dict[str, list[Written]] = field(default_factory=dict)
    synced: dict[str, int] = field(default_factory=dict)
    durable: set[str] = field(default_factory=set)
    """The ids of all entries in commits that are safe."""

    def sync(self, name: str, commits: int) -> None:
        """Make the first so many commits of a table safe."""
        for commit in self.tables[name][self.synced[name] : commits]:
            self.durable |= {str(line.cells["event_id"]) for line in commit.lines}
        self.synced[name] = max(commits, self.synced[name])

    def lose_power(self) -> None:
        """What was never synced is gone."""
        for name, commits in self.tables.items():
            del commits[self.synced[name] :]

    def lines(self) -> list[Line]:
        """Every line of every table, forks included."""
        return [line for commits in self.tables.values() for commit in commits for line in commit.lines]


class ModelDelta:
    """One process's handle of one table: it knows the commits that were there when it looked."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.name = name
        self.commits = disk.tables.setdefault(name, [])
        disk.synced.setdefault(name, 0)
        self.known = len(self.commits)

    def version(self) -> int:
        """The newest commit this handle knows."""
        return self.known

    def transaction_version(self, mark: str) -> int | None:
        """How far this handle knows the table to be in a stream."""
        found = [commit.marks[mark] for commit in self.commits[: self.known] if mark in commit.marks]
        return found[-1] if found else None

    def lines(self) -> list[Line]:
        """What this handle sees."""
        return [line for commit in self.commits[: self.known] for line in commit.lines]

    def add(self, lines: list[Line], marks: dict[str, int]) -> None:
        """Commit. Raises CommitFailedError where another handle has set one of the marks since this one looked."""
        if any(marks.keys() & commit.marks.keys() for commit in self.commits[self.known :]):
            raise CommitFailedError("a concurrent transaction has set the same mark")
        self.commits.append(Written(lines, marks))
        self.known = len(self.commits)


class ModelTable(ArchiveTable):
    """The archiver's table on a made-up disk. `trouble` is told what is about to happen, and may raise."""

    def __init__(
        self,
        root: Path,
        name: str,
        stream: str,
        columns: Sequence[Column],
        *,
        disk: Disk,
        trouble: Callable[[str], None],
    ) -> None:
        trouble("open")
        self._disk, self._trouble = disk, trouble
        self._path, self._stream, self._history = root / name, stream, stream
        self.columns, self._grows, self._small_files = [*columns], False, 0
        self._handle = ModelDelta(disk, name)
        self.delta = self._delta = cast("DeltaTable", self._handle)
        self._make_durable()

    def tidy_if_due(self) -> None:
        """Files are not made up."""

    def _present(self, lines: Sequence[Line]) -> set[str]:
        wanted = {line.identity for line in lines}
        return {line.identity for line in self._handle.lines() if line.identity in wanted}

    def _make_durable(self) -> None:
        self._trouble("sync")
        self._disk.sync(self._handle.name, self._handle.known)


class ModelParts(fork.Parts):
    """What fork detection asks of all tables, answered from their lines."""

    def __init__(self, tables: Mapping[str, Any], tr: str) -> None:
        self._lines = [line for delta in tables.values() for line in delta.lines() if line.cells.get("tr", tr) == tr]
        self._notices = [line for line in tables[NOTICES].lines() if line.cells["op"] == fork.FORK]

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """The forks, which is all that is asked of us in words. Raises AssertionError for another question."""
        assert f"op = '{fork.FORK}'" in sql, sql
        return [{"data": line.cells["data"]} for line in self._notices]

    def between(self, first: str, last: str) -> set[str]:
        """The ids of the entries between the milliseconds of two stream ids."""
        low, high = packed(first) >> SEQ_BITS, packed(last) >> SEQ_BITS
        return {str(line.cells["event_id"]) for line in self._lines if low <= line.position >> SEQ_BITS <= high}

    def seq_at(self, position: int) -> int | None:
        """The highest `seq` that was archived from a place of the stream."""
        seqs = [line.cells.get("seq") for line in self._lines if line.position == position]
        return max((seq for seq in seqs if isinstance(seq, int)), default=None)

    def before(self, seq: int, known: str) -> int:
        """The position of the last entry with a lower `seq` that is in no known fork."""
        del known  # the same forks, as a condition in SQL
        return max((line.position for line, _, one in self._present() if one < seq), default=0)

    def lost(self, since: int, known: str) -> tuple[int, tuple[tuple[int | None, int, int], ...]]:
        """How many entries stand after a position and are in no known fork, and their ranges by epoch."""
        del known  # the same forks, as a condition in SQL
        found: dict[Any, list[int]] = {}
        for line, epoch, seq in self._present():
            if line.position > since:
                found.setdefault(epoch, []).append(seq)
        ranges = tuple((epoch, min(seqs), max(seqs)) for epoch, seqs in sorted(found.items()))
        return sum(map(len, found.values())), ranges

    def _present(self) -> Iterator[tuple[Line, Any, int]]:
        """What is in no known fork, with its epoch and its `seq`."""
        told = [span for one in fork.known_forks(self.ask, "") for span in one.ranges]
        for line in self._lines:
            seq, epoch = line.cells.get("seq"), line.cells.get("epoch")
            if line.cells["op"] == fork.FORK or not isinstance(seq, int):
                continue
            if not any(epoch == one and low <= seq <= high for one, low, high in told):
                yield line, epoch, seq


@contextmanager
def on_disk(disk: Disk, trouble: Callable[[str], None]) -> Iterator[None]:
    """Every archiver made within writes to this disk."""

    def write(delta: ModelDelta, lines: list[Line], *, commit_properties: CommitProperties, **_: Any) -> None:
        trouble("write")
        delta.add(lines, {mark.app_id: mark.version for mark in commit_properties.app_transactions or []})
        trouble("written")

    with (
        patch.object(writer, "ArchiveTable", partial(ModelTable, disk=disk, trouble=trouble)),
        patch.object(writer, "write_deltalake", write),
        patch.object(writer, "arrow", lambda _, lines: list(lines)),
        patch.object(fork, "Parts", ModelParts),
    ):
        yield
