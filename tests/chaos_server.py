"""A server that is killed, and of whose file the end is cut off, as a power cut would; what was lost is written down.

The surprise: nobody reaches it before it has been looked at, so that the loss is known to the entry. After its death it
is started on the whole file, to see what was published, and again on what is left.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests import checker
from tests.chaos_checker import Entries, Lost, order
from tests.chaos_plan import Fsync
from tests.holding_proxy import HoldingProxy
from tests.servers import RealServer

LOSABLE_S = 1.0
"""What `everysec` may lose."""

SAMPLE_S = 0.02
RECENT_MS = 10_000
"""What was written before that is on the disk for certain."""


class DoomedServer:
    """A server with all doors that lead to it."""

    def __init__(self, folder: Path, fsync: Fsync) -> None:
        folder.mkdir(parents=True)
        self._folder, self._server = folder, RealServer(folder, appendfsync=fsync)
        self.url = self._server.url
        self.is_up = False
        self.doors: list[HoldingProxy] = []
        self.lost: list[Lost] = []
        self._sizes: deque[tuple[float, Path, int]] = deque(maxlen=200)

    def start(self) -> None:
        self._server.start()
        self.direct: Any = checker.connect(self.url)
        self.is_up = True

    def end(self) -> None:
        self._server.kill()

    async def die(self, rng: random.Random, *, cut: bool) -> int:
        """Be killed and started again, with the end of the file cut off or not; how many entries that cost."""
        lost = 0
        self._set_doors(is_open=False)
        durable = self._durable()
        await asyncio.to_thread(self._server.kill)
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        if cut:
            lost = await asyncio.to_thread(self._cut_off, durable, rng)
        else:
            await asyncio.to_thread(self._server.start)
        self.direct.close()
        self.direct = checker.connect(self.url)
        self._set_doors(is_open=True)
        return lost

    def _set_doors(self, *, is_open: bool) -> None:
        self.is_up = is_open
        for door in self.doors:
            door.is_open = is_open

    async def watch_file(self) -> None:
        """Remember how long the file was a moment ago."""
        while True:
            with suppress(OSError, ValueError):
                path = self._newest_file()
                self._sizes.append((time.monotonic(), path, path.stat().st_size))
            await asyncio.sleep(SAMPLE_S)

    def _newest_file(self) -> Path:
        """The file to which the server appends."""
        files = (self._folder / "appendonlydir").glob("*.incr.aof")
        return max(files, key=lambda path: int(path.name.rsplit(".", 3)[1]))

    def _durable(self) -> tuple[Path, int]:
        """The file, and how much of it has to be on the disk by now."""
        path, then = self._newest_file(), time.monotonic() - LOSABLE_S
        return path, max((size for at, of, size in self._sizes if of == path and at <= then), default=0)

    def _cut_off(self, durable: tuple[Path, int], rng: random.Random) -> int:
        """Cut the end off the file of the dead server, write down what was in it, and start the server."""
        path, keep = durable
        size = path.stat().st_size
        self._server.start()
        before = self._recent()
        self._server.kill()
        os.truncate(path, rng.randint(min(keep, size), size))
        self._server.start()
        connection, lost = checker.connect(self.url), 0
        for (part, tr), entries in before.items():
            newest = connection.xrevrange(f"sectorwire:{{{tr}}}:{part}", count=1)
            kept = newest[0][0] if newest else "0-0"
            if gone := [one for one in entries if order(one[0]) > order(kept)]:
                self.lost.append(Lost(tr, part, kept, gone))
                lost += len(gone)
        connection.close()
        return lost

    def _recent(self) -> dict[tuple[str, str], Entries]:
        """The newest entries of every stream, by part and TR."""
        connection, since = checker.connect(self.url), int(time.time() * 1000) - RECENT_MS
        found = {
            (part, tr): list(connection.xrange(f"sectorwire:{{{tr}}}:{part}", since))
            for part in ("changes", "alerts")
            for tr in checker.catalogue()
        }
        connection.close()
        return found
