"""Files go in; that they are safe from a power cut comes out, and that nobody else is at them.

The surprise: a disk may hang, and Python waits at its end for the threads of `asyncio.to_thread`. So what waits for a
disk is done in threads of our own: they have `LEAVE_S` more, then the process ends, and they leave what a killed one
leaves.
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

TIDYING = "_tidying.lock"
"""Held while files are merged: where two merge the same files, Delta lets both commit, and their rows are there twice
(delta-rs 1.6, seen by the chaos run). Held as well while a torn commit is set aside. To Delta's readers, what begins
with an underscore is no data."""

THREAD = "archive"
"""What our threads are called."""

LEAVE_S = 2.0
"""How long a process that is at its end waits for a disk: with what a stop takes, less than ten seconds."""

P = ParamSpec("P")
T = TypeVar("T")


def sync(files: Iterable[Path], *directories: Path) -> None:
    """Put files, then the directories that name them, on the disk."""
    for path in (*files, *directories):
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def alone(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether nobody else is at it, in this process or another; with `wait`, only then. Who is killed at it lets go."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            nobody_else = True
        except BlockingIOError:
            nobody_else = False
        yield nobody_else
    finally:
        os.close(lock)


async def in_thread(work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """As `asyncio.to_thread`, in a thread for which the end of the process waits no longer than `LEAVE_S`."""
    return await asyncio.get_running_loop().run_in_executor(_Daemons(), lambda: work(*args, **more))


class _Daemons(Executor):
    """A thread for each call."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        threading.Thread(target=_work, args=(done, lambda: fn(*args, **kwargs)), name=THREAD, daemon=True).start()
        return done


def _work(done: Future[Any], work: Callable[[], Any]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 -- whatever it is, it belongs to whoever awaits the future
        done.set_exception(error)
    else:
        done.set_result(result)


@atexit.register
def _leave() -> None:
    """End the process without a thread that waits for a disk, and fail.

    Not as Python does: it takes itself to pieces under the thread, and where Delta comes back to that, it crashes (8 of
    12 ends with a write under way, delta-rs 1.6).
    """
    waiting = [thread for thread in threading.enumerate() if thread.name == THREAD]
    for thread in waiting:
        thread.join(LEAVE_S / len(waiting))
    if any(thread.is_alive() for thread in waiting):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
