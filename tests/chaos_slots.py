"""A command goes in; a process of a role comes out, that can be killed, caught in the act, stopped and replaced."""

from __future__ import annotations

import asyncio
import base64
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from tests.chaos_plan import COMMIT, COMMITTED, Moment
from tests.chaos_server import DoomedServer
from tests.holding_proxy import HoldingProxy
from tests.test_acceptance import KEYS, clean_environment

ROOT = Path(__file__).parents[1]
STOP_S = 10.0
FRESH_S = 2.0
"""A command that was held for longer may have been given up by its client."""

SECRET = "whsec_" + base64.b64encode(b"the secret of the chaos run").decode()


class InVain(AssertionError):
    """Something that has to happen did not."""


async def until(condition: Callable[[], object], what: str | Callable[[], str], deadline_s: float = 30.0) -> None:
    """Return once the condition holds; a server that is away makes it false. Raises InVain with what was waited for."""
    end = time.monotonic() + deadline_s
    while True:
        with suppress(redis.RedisError):
            if condition():
                return
        if time.monotonic() > end:
            raise InVain(f"waited {deadline_s:g} s in vain for {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0.02)


class Process:
    """One process whose words go through a pipe to a log, so that a limit on its files does not silence it."""

    def __init__(self, folder: Path, log: Path, command: Sequence[str], environ: Mapping[str, str]) -> None:
        with log.open("ab") as out:
            self._scribe = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=out, start_new_session=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env={**clean_environment(), "PYTHONPATH": str(ROOT), **environ},
            stdin=subprocess.DEVNULL,
            stdout=self._scribe.stdin,
            stderr=self._scribe.stdin,
        )
        assert self._scribe.stdin
        self._scribe.stdin.close()
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def status(self) -> int:
        """How it ended; negative where a signal ended it."""
        return self._process.returncode or 0

    def send(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    def kill(self) -> None:
        """End it as the kernel would, and fetch it and its last words."""
        self._process.kill()
        self._process.wait(10)
        self._scribe.wait(10)

    async def stop(self, name: str) -> None:
        """Ask it to end; it has to do so well, and within the time that is promised."""
        self.send(signal.SIGTERM)
        await until(lambda: self.ended, f"{name} to stop", STOP_S)
        if self.status:
            raise InVain(f"{name} was asked to stop and ended with {self.status}")


class Slot:
    """A place for one process of a role, which is filled again after its death; each process has its own proxy."""

    def __init__(
        self, folder: Path, server: DoomedServer, lane: str, name: str, command: Callable[[str], Sequence[str]]
    ) -> None:
        """`command` makes the arguments, of the address at which the process finds the server."""
        self.lane, self.name, self.log = lane, name, folder / f"{name}.log"
        self.watched: HoldingProxy | None = None
        self.caught: list[tuple[float, bytes]] = []
        self.wanted = False
        self.lock = asyncio.Lock()
        self.by_itself: list[int] = []
        self.process: Process | None = None
        self.proxies: list[HoldingProxy] = []
        self._folder, self._server, self._command = folder, server, command
        self._holders: set[bytes] = set()

    @property
    def proxy(self) -> HoldingProxy:
        """That of the process which is there now."""
        return self.proxies[-1]

    @property
    def living(self) -> Process:
        assert self.process, f"{self.name} was never started"
        return self.process

    async def fill(self) -> None:
        """Start a process, unless there is one."""
        async with self.lock:
            if self.process and not self.process.ended:
                return
            if self.process:
                self.process.kill()  # fetches what is left of it
            proxy = HoldingProxy(self._server.url)
            self._server.doors.append(proxy)
            proxy.is_open, proxy.tap = self._server.is_up, self._hear
            await proxy.__aenter__()
            self.proxies.append(proxy)
            self._holders.clear()
            environ = {**KEYS, "CHAOS_HOOK_SECRET": SECRET, "REDIS_URL": proxy.url}
            self.process = Process(self._folder, self.log, self._command(proxy.url), environ)
            self.wanted = True

    def kill(self) -> None:
        self.wanted = False
        self.living.kill()

    async def stop(self) -> None:
        """Ask the process to end; nobody follows."""
        self.wanted = False
        await self.living.stop(self.name)

    def _hear(self, command: bytes) -> None:
        """Learn under which names this process holds leases."""
        if b":active" in command:
            self._holders.update(re.findall(rb"\r\n([^\r\n]+\.[0-9a-f]{8})\r\n", command))

    def end_leases(self, direct: Any) -> None:
        """Let the leases of the process that died here end now instead of in some seconds."""
        for key in direct.scan_iter("sectorwire:*:active*", count=1000):
            for holder in self._holders:
                direct.eval(
                    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end", 1, key, holder
                )

    def watch(self, moment: Moment) -> None:
        """Hold the next command that fits the moment, or its reply."""
        if self.watched is self.proxies[-1]:
            return
        self.watched, self.moment, caught = self.proxy, moment, self.caught
        caught.clear()

        def fits(command: bytes) -> bool:
            wanted = all(re.search(mark, command) for mark in moment.marks)
            if wanted:
                caught.append((time.monotonic(), command))
            return wanted

        hold = self.proxy.hold_requests if moment.side == "request" else self.proxy.hold_replies
        hold(fits)

    @property
    def is_fresh(self) -> bool:
        """Whether its client still waits for what is held; a commit whose reply is held must not be a refused one."""
        refused = self.moment.marks == COMMIT and any(not reply.startswith(COMMITTED) for _, reply in self.proxy.done)
        return not refused and time.monotonic() - self.caught[0][0] < FRESH_S

    def let_go(self) -> None:
        """Hold nothing more; what is held goes on."""
        if self.watched:
            self.watched.release()
        self.watched = None
