"""A proxy before a real server that can hold a command or its reply, and then let it go or cut the line.

For what a network does at the worst moment: a commit that never arrived, one that arrived late, one whose reply was
lost. The client may be another process, which the test kills meanwhile.

    async with HoldingProxy(server.url) as proxy:
        proxy.hold_replies(b"ka20003")
        ...                              # a poller that was given proxy.url commits
        await proxy.wait_held()          # the server has done it, the poller does not know
        proxy.drop()                     # and never will; what it sends next passes

The surprise: a held command stays held when its client dies, and `release()` still delivers it: the late packet of a
dead poller, which fencing is for. A reply is matched to its command by counting, so pub/sub and `CLIENT REPLY OFF` are
not understood; nor is TLS.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

Match = Callable[[bytes], bool] | bytes
LONGEST_LINE = 2**20
AGGREGATES = {b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}  # how many values follow for each one that is counted


class Dropped(Exception):
    """The line is cut here."""


class Hold:
    """One order to hold what matches, from `hold_*()` to `release()` or `drop()`."""

    def __init__(self, match: Match) -> None:
        self.match = match
        self.over = asyncio.Event()
        self.cut = False

    def wants(self, command: bytes) -> bool:
        """A marker means a script call that contains it; a function sees every command as its bytes."""
        if callable(self.match):
            return self.match(command)
        name = command.split(b"\r\n", 3)[2:3]
        return bool(name) and name[0].upper() in (b"EVAL", b"EVALSHA") and self.match in command

    async def wait(self) -> None:
        await self.over.wait()
        if self.cut:
            raise Dropped


async def read_value(reader: asyncio.StreamReader) -> bytes:
    """Read one whole RESP 2 or 3 value (or inline command), byte for byte; EOFError at the end."""
    line = await reader.readuntil(b"\r\n")
    kind, count = line[:1], line[1:-2]
    if kind in (b"$", b"=", b"!") and count != b"-1":
        return line + await reader.readexactly(int(count) + 2)
    if kind in AGGREGATES and count != b"-1":
        parts = [await read_value(reader) for _ in range(int(count) * AGGREGATES[kind])]
        if kind == b"|":  # attributes stand before the value they are about
            parts.append(await read_value(reader))
        return line + b"".join(parts)
    return line


class HoldingProxy:
    """Listens on a free loopback port and talks to `upstream_url`, which may be a Unix socket."""

    url: str = ""

    def __init__(self, upstream_url: str) -> None:
        self.upstream = urlsplit(upstream_url)
        self.held_requests = 0
        self.held_replies = 0
        self.holding = 0
        """How many are being held now; those whose connection broke are not."""
        self.is_open = True
        """Whether new connections are let through, as to a server that is there."""
        self.tap: Callable[[bytes], None] | None = None
        """Is shown every command that passes."""
        self.done: list[tuple[bytes, bytes]] = []
        """Commands whose replies were held since the last order to hold something, and these."""
        self._request_hold: Hold | None = None
        self._reply_hold: Hold | None = None
        self._held = asyncio.Event()
        self._lines: set[asyncio.Task[None]] = set()

    def hold_requests(self, match: Match) -> None:
        """From now on keep every matching command from the server, and what its client sends after it."""
        self._request_hold, self.done = Hold(match), []

    def hold_replies(self, match: Match) -> None:
        """From now on let the server carry out every matching command, and keep its reply from the client."""
        self._reply_hold, self.done = Hold(match), []

    async def wait_held(self, timeout_s: float = 10) -> None:
        """Return when something is being held."""
        await asyncio.wait_for(self._held.wait(), timeout_s)

    def release(self) -> None:
        """Let everything held pass, and hold no more."""
        self._end_holds(cut=False)

    def drop(self) -> None:
        """Cut the connections on which something is held, for good, and hold no more: a retry passes."""
        self._end_holds(cut=True)

    def cut(self) -> None:
        """Break every connection there is now; new ones pass."""
        for line in list(self._lines):
            line.cancel()

    def _end_holds(self, *, cut: bool) -> None:
        for hold in filter(None, (self._request_hold, self._reply_hold)):
            hold.cut = cut
            hold.over.set()
        self._request_hold = self._reply_hold = None
        self._held.clear()

    async def _wait(self, hold: Hold) -> None:
        self.holding += 1
        try:
            await hold.wait()
        finally:
            self.holding -= 1

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client's connection to its end."""
        server_writer = None
        try:
            server_reader, server_writer = await self._connect()
            asked: deque[tuple[Hold, bytes] | None] = deque()
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._requests(reader, server_writer, asked))
                ways.create_task(self._replies(server_reader, writer, asked))
        except* (Dropped, OSError):
            pass  # dropped by the test, or the server is away: either way the client sees its connection end
        finally:
            for end in filter(None, (writer, server_writer)):
                end.close()

    async def _requests(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, asked: deque[tuple[Hold, bytes] | None]
    ) -> None:
        with suppress(EOFError, ConnectionError):
            while command := await read_value(reader):
                if self.tap:
                    self.tap(command)
                if (hold := self._request_hold) and hold.wants(command):
                    self.held_requests += 1
                    self._held.set()
                    await self._wait(hold)
                hold = self._reply_hold
                asked.append((hold, command) if hold and hold.wants(command) else None)
                server.write(command)
                await server.drain()
        with suppress(OSError):  # the server may be gone already
            server.write_eof()  # what was sent before the client's end is still carried out

    async def _replies(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: deque[tuple[Hold, bytes] | None]
    ) -> None:
        with suppress(EOFError, ConnectionError):
            while reply := await read_value(server):
                wanted = None if reply.startswith(b">") else asked.popleft()  # a push answers no command
                if wanted and not reply.startswith(b"-NOSCRIPT"):  # nothing was done; the client sends the script next
                    hold, command = wanted
                    self.held_replies += 1
                    self.done.append((command, reply))
                    if not hold.over.is_set():
                        self._held.set()
                    await self._wait(hold)
                if not writer.is_closing():
                    writer.write(reply)
                    with suppress(ConnectionError):  # a dead client must not stop us from reading the server to its end
                        await writer.drain()
        raise Dropped  # the server has hung up, so the client's side ends as well

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self.is_open:
            raise ConnectionRefusedError
        if self.upstream.scheme == "unix":
            return await asyncio.open_unix_connection(unquote(self.upstream.path), limit=LONGEST_LINE)
        return await asyncio.open_connection(self.upstream.hostname, self.upstream.port, limit=LONGEST_LINE)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.create_task(self._line(reader, writer))
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=LONGEST_LINE)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)
