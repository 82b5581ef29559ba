"""Answers that could not be used go in, and stay as files a person can read, and this program too once it knows better.

The same fault is kept once. A file holds TR, target, time, the reason and the bodies as sent, and where a single row is
bad, which one. The surprise: a file also says whether its bodies could be read at all. Where they could, the trouble
was another (a page walk that broke), and reading them again proves nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from rich.table import Table
from rich.text import Text

from poller.catalogue import tr_named
from poller.commit import iso
from poller.contract import dumps
from poller.errors import NotWhole
from poller.rows import Unreadable, read_answer
from poller.trs.base import BadRequest, Target

MAX_FILES = 200
MAX_BYTES = 64_000_000
MAX_ANSWER_BYTES = 8_000_000
"""What is kept of one answer. A whole one of 60 pages takes some 3 MB."""

NOT_READABLE_FILE = "this file is none of ours any more: it cannot be read"


@dataclass(frozen=True)
class Kept:
    """One stored answer. `row` says which row is bad, where it is a single one."""

    path: Path
    tr: str
    target: str
    time: str
    reason: str
    row: Mapping[str, str] | None = None
    readable: bool = False
    cut: str = ""
    bodies: Sequence[str] = field(default=(), repr=False)

    @property
    def id(self) -> str:
        """What a person calls it: the last part of the file's name."""
        return self.path.stem.rpartition("-")[2]

    def summary(self) -> dict[str, Any]:
        """All but the bodies, for programs."""
        told = {"id": self.id, "time": self.time, "tr": self.tr, "target": self.target, "reason": self.reason}
        return {**told, "row": self.row, "bytes": self.path.stat().st_size, "file": str(self.path)}

    def described(self) -> str:
        """Everything, for a person: reason, where, and the bodies indented where they are JSON."""
        told = [f"{self.id}  {self.target}  {self.time}", f"reason: {self.reason}"]
        if self.row:
            told += [f"{name}: {self.row.get(name, '')}" for name in ("table", "key", "field", "element")]
        if self.cut:
            told.append(f"only a part of the answer was kept: {self.cut}")
        return "\n".join([*told, f"file: {self.path}", *map(_indented, self.bodies)])

    def still_bad(self) -> str | None:
        """Why the answer cannot be used with today's declarations either; None if it can be read now."""
        if self.cut:
            return f"only a part of it was kept ({self.cut}): delete {self.path} when you are done with it"
        if self.readable:
            return (
                f"its rows were readable before, the trouble was another: delete {self.path} when you are done with it"
            )
        try:
            pairs = dict(pair.partition("=")[::2] for pair in self.target.partition("?")[2].split("&"))
            return unreadable_because(tr_named(self.tr).target(pairs), [body.encode() for body in self.bodies])
        except BadRequest as error:
            return str(error)


def unreadable_because(target: Target, bodies: Sequence[bytes]) -> str | None:
    """Why the rows of these pages cannot all be read; None if they can."""
    if not bodies:
        return "it has no body"
    try:
        reading = read_answer(target, [orjson.loads(body) for body in bodies])
    except NotWhole as error:
        return str(error)
    except (ValueError, AttributeError, IndexError):
        return "its bodies are not pages of JSON"
    return next((told(bad) for bad in reading.unreadable), None)


def told(bad: Unreadable) -> str:
    """A value that cannot be read, in words."""
    return f"{bad.table}/{bad.key} {bad.field} ({bad.element}): {bad.reason}"


def one_of(stored: Sequence[Kept], name: str) -> Kept:
    """The answer of that id. Raises BadRequest with the nearest id there is."""
    found = {one.id: one for one in stored}
    if name not in found:
        close = difflib.get_close_matches(name, found, 1, cutoff=0.3)
        hint = f"did you mean {close[0]}?" if close else "`sectorwire quarantine list` shows what is there"
        raise BadRequest(f"nothing in the quarantine goes by {name!r}; {hint}")
    return found[name]


def quarantine_table(stored: Sequence[Kept]) -> Table:
    """What is stored, as lines for a person."""
    grid = Table("id", "time", "target", "reason", box=None)
    for one in stored:
        grid.add_row(*map(Text, (one.id, one.time[:19].replace("T", " "), one.target, one.reason)))
    return grid


def _indented(body: str) -> str:
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return body


class Quarantine:
    """The folder of bad answers under the data directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(
        self, target: Target, at: datetime, reason: str, bodies: Sequence[bytes], row: Unreadable | None = None
    ) -> Path | None:
        """Store an answer and why it could not be used; None if the same fault is there already.

        The oldest files go when there are more than 200, or more than 64 MB. Raises OSError where the disk refuses.
        """
        fault = hashlib.sha256(f"{target} {re.sub('[0-9]+', '#', reason)}".encode()).hexdigest()[:12]
        folder = self.directory / target.tr.code
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob(f"*-{fault}.json")):
            return None
        moment = iso(at)
        path = folder / f"{moment[:19].replace(':', '').replace('-', '')}-{fault}.json"
        texts, cut = _shortened(bodies)
        content = {
            "tr": target.tr.code,
            "target": str(target),
            "time": moment,
            "reason": reason,
            "row": asdict(row) if row else None,
            "readable": unreadable_because(target, bodies) is None,
            "cut": cut,
            "bodies": texts,
        }
        _write(path, folder / f"{fault}.part", dumps(content))
        self._trim()
        return path

    def kept(self) -> list[Kept]:
        """What is stored, newest first."""
        return [_kept(path) for path in self._newest_first()]

    def _newest_first(self) -> list[Path]:
        return sorted(self.directory.glob("*/*.json"), key=lambda file: file.name, reverse=True)

    def _trim(self) -> None:
        total = 0
        for number, path in enumerate(self._newest_first(), 1):
            with suppress(FileNotFoundError):  # another process trims as well
                total += path.stat().st_size
                if number > MAX_FILES or total > MAX_BYTES:
                    path.unlink()


def _shortened(bodies: Iterable[bytes]) -> tuple[list[str], str]:
    """The bodies as text, as much of them as may be kept, and what was left out in words."""
    texts, left, sent = [], MAX_ANSWER_BYTES, 0
    for body in bodies:
        sent += len(body)
        part = body[:left]
        left -= len(part)
        texts.append(part.decode(errors="backslashreplace" if part == body else "ignore"))
    return texts, f"{MAX_ANSWER_BYTES:,} of {sent:,} bytes" if sent > MAX_ANSWER_BYTES else ""


def _write(path: Path, temporary: Path, text: str) -> None:
    """All of the file or nothing."""
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def _kept(path: Path) -> Kept:
    try:
        content = orjson.loads(path.read_bytes())
        tr = content["target"].partition("?")[0]  # files of earlier versions do not hold it by itself
        row, readable, cut = content.get("row"), content.get("readable", False), content.get("cut", "")
        return Kept(
            path, tr, content["target"], content["time"], content["reason"], row, readable, cut, content["bodies"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Kept(path, path.parent.name, "", "", NOT_READABLE_FILE)
