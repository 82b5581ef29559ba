"""A data directory goes in; the address of a real server of our own comes out, when no address was given.

The surprise: no user owns the server. A detached watcher (`embedded_watch.py`) runs it for as long as any process holds
`users.lock` shared. The kernel drops the locks of the dead, so a killed user counts as gone, and neither watcher nor
server outlives the last one. Everything lives in DATA_DIR/server, readable by nobody else:

    users.lock    shared by every user; the watcher gets it alone when nobody is left
    watcher.lock  held by the watcher; it inherits the lock from the user that started it, so there is never a second
    server.lock   held by the server itself: two never open the same files, even if a watcher was killed
    address       where the running server answers; gone while there is none
    server.json   who wrote the append-only file, and the last TCP port; not read while a server runs
    server.log    what server and watcher say, never the user's terminal
"""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from poller.embedded_binary import NoServer, choose

if sys.platform != "win32":
    import fcntl  # there is none on Windows, where start() says what to do instead

__all__ = ["EmbeddedServer", "NoServer"]

USERS, WATCHER, SERVER = "users.lock", "watcher.lock", "server.lock"
ADDRESS, LOG, SOCKET = "address", "server.log", "valkey.sock"

START_S = 10.0  # for a server that says nothing; one that is loading its file may take as long as that takes
# The watcher outlives the user that started it, so it gets no secrets from its environment.
ENVIRONMENT = ("PATH", "HOME", "TZ", "LANG", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")


def open_lock(path: Path) -> int:
    """Open a lock file. Programs we start do not inherit it (PEP 446), so none keeps a lock by accident."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def locked(lock: int, *, shared: bool = False) -> bool:
    """Take a lock if it can be had now."""
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def address_of(directory: Path, port: int) -> str:
    """A URL that redis-py understands: the socket of the directory, or a port where its path is too long."""
    return f"redis://127.0.0.1:{port}/0" if port else f"unix://{quote(str(directory / SOCKET))}"


def say(url: str, *commands: str) -> list[bytes]:
    """Send a server some commands, the last of which makes it hang up, and return the lines it answered."""
    parts = urlsplit(url)
    unix = parts.scheme == "unix"
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as line:
        line.settimeout(1)
        line.connect(unquote(parts.path) if unix else (parts.hostname, parts.port))
        line.sendall("".join(f"{command}\r\n" for command in commands).encode())
        return b"".join(iter(lambda: line.recv(4096), b"")).split(b"\r\n")


def ping(url: str, directory: Path) -> str:
    """What the server of this directory says to PING: "+PONG", "-LOADING ...", or "" for nothing.

    A port that the server had before a crash may be somebody else's today, hence the question for its directory.
    """
    with suppress(OSError):
        lines, ours = say(url, "CONFIG GET dir", "PING", "QUIT"), os.fsencode(directory)
        if ours in lines[:-1]:
            return lines[lines.index(ours) + 1].decode(errors="replace")
    return ""


class EmbeddedServer:
    """A user's hold on the server of one data directory: start() takes it, stop() or the death of the process ends it.

    `url` stays what it is. Only where it is a TCP port, the watcher was killed with its server and the port was taken
    meanwhile, it is another one after `ensure()`. Blocking; call it through `asyncio.to_thread`.
    """

    url: str = ""

    def __init__(self, data_dir: Path) -> None:
        self.directory = data_dir.resolve() / "server"
        self._hold: int | None = None

    def start(self) -> None:
        """Take the hold and return when the server answers; NoServer or OSError says why it does not."""
        if sys.platform == "win32":
            raise NoServer("no embedded server on Windows: run sectorwire in WSL, or set REDIS_URL")
        if self._hold is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            self._hold = open_lock(self.directory / USERS)
            _users.add(self)
        try:
            self._take_hold(self._hold)
            self.ensure()
        except BaseException:
            self.stop()
            raise

    def ensure(self) -> None:
        """Return when the server answers, having started a watcher if none runs; 0.3 ms when all is well."""
        if self._hold is None:
            raise OSError(f"nothing holds the server in {self.directory}: it was let go, or never started")
        deadline, pause = time.monotonic() + START_S, 0.01
        while True:
            self._see_that_a_watcher_runs()
            with suppress(FileNotFoundError):  # no address until the server is about to start
                url = (self.directory / ADDRESS).read_text()
                answer = ping(url, self.directory)
                if answer == "+PONG":
                    self.url = url
                    return
                if answer.startswith("-LOADING"):
                    deadline = time.monotonic() + START_S
            if time.monotonic() > deadline:
                raise OSError(f"the server in {self.directory} does not answer: {self._last_words()}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.3)

    def stop(self, *, wait: bool = False) -> None:
        """Let go. The last one out makes the watcher end the server; `wait` returns when it has ended (at most 10 s).

        Waiting matters where our own end kills everything, as it does for the first process of a container.
        """
        if self._hold is None:
            return
        os.close(self._hold)
        self._hold = None
        _users.discard(self)
        deadline = time.monotonic() + START_S
        while wait and not self._ended() and not self._others() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _take_hold(self, lock: int) -> None:
        deadline = time.monotonic() + START_S
        while not locked(lock, shared=True):  # a watcher is ending the server of the users before us
            if time.monotonic() > deadline:
                raise OSError(f"the server in {self.directory} does not end: {self._last_words()}")
            time.sleep(0.01)

    def _see_that_a_watcher_runs(self) -> None:
        lock = open_lock(self.directory / WATCHER)
        try:
            if not locked(lock):
                return  # somebody watches, or is starting a watcher at this moment
            choose(self.directory)  # the watcher chooses again; here it is for the error, which our user should see
            (self.directory / ADDRESS).unlink(missing_ok=True)  # a server without a watcher is about to be replaced
            self._start_watcher(lock)
        finally:
            os.close(lock)

    def _start_watcher(self, lock: int) -> None:
        command = [sys.executable, "-m", "poller.embedded_watch", str(self.directory), str(lock)]
        with (self.directory / LOG).open("ab") as log:
            done = subprocess.run(  # noqa: S603 - our own interpreter and module
                command,
                cwd=Path(__file__).parents[1],  # where `poller` is found, installed or not
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C in the user's terminal must not reach it
                check=False,
            )
        if done.returncode > 0:  # below zero it was killed, and the next round starts another
            raise OSError(f"the watcher in {self.directory} does not start: {self._last_words()}")

    def _ended(self) -> bool:
        lock = open_lock(self.directory / SERVER)
        try:
            return locked(lock, shared=True)
        finally:
            os.close(lock)

    def _others(self) -> bool:
        """Whether somebody else uses the server; a lock that can be had neither alone nor shared is the watcher's."""
        lock = open_lock(self.directory / USERS)
        try:
            return not locked(lock) and locked(lock, shared=True)
        finally:
            os.close(lock)

    def _last_words(self) -> str:
        log = self.directory / LOG
        said = log.read_text(errors="replace").split("\n") if log.exists() else []
        return next((line.strip() for line in reversed(said) if line.strip()), f"{log} is empty")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


_users: set[EmbeddedServer] = set()


def _let_go_in_a_fork() -> None:
    """A child that never becomes another program would keep its parent's hold for as long as it lives."""
    for user in list(_users):
        user.stop()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go_in_a_fork)
