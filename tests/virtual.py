"""A coroutine goes in; its result comes out, with a day of waiting done in no time.

The loop's time is virtual: it stands still while anything is ready, and then jumps to the next timer. `asyncio.sleep`,
`wait_for`, `timeout` and `call_later` follow by themselves, since all of them ask the loop for the time. The surprise:
what a thread would do is done at once, in the loop, because a thread lives in real time and in an order of its own.

`looptime` 0.9 does the same for pytest. This loop is used instead because that one spends 42 idle rounds of the loop
before each jump (20 times slower; without them still twice), and, when nothing can ever happen again, fails with
"Task does not support set_exception operation" instead of saying so.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar

from poller.clock import Clock

Result = TypeVar("Result")


class NothingCanHappen(RuntimeError):
    """Every task waits for something that no timer and nobody else will bring about."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: where another would sleep, its time moves on."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__(_Skipping(self))
        # A timer runs once it is less than this ahead. The usual nanosecond is lost in a float of more than 97 days,
        # and a timer that is due exactly now would never run: in real time the next moment helps, here none comes.
        self._clock_resolution = 1e-7

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_s

    def skip(self, seconds: float | None) -> None:
        """Let so much time pass; None means that no timer is set. Raises NothingCanHappen then."""
        if seconds is None:
            waiting = sorted(str(task.get_coro()) for task in asyncio.all_tasks(self))
            raise NothingCanHappen(f"nothing is ready and no timer is set at {self._virtual_s:.3f} s: {waiting}")
        self._virtual_s += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]  # as the base class, but done when it returns
        """Do a thread's work at once."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to whoever awaits the future
            done.set_exception(error)
        return done


class _Skipping(selectors.DefaultSelector):
    """Looks whether a socket is ready, never waits for one."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; if nothing is, virtual time passes instead."""
        ready = super().select(0)
        if not ready and timeout != 0:
            self._loop.skip(timeout)
        return ready


def run(coroutine: Coroutine[Any, Any, Result], loop: VirtualLoop | None = None) -> Result:
    """Run a coroutine to its end in virtual time, and close the loop. Raises what it raises, or NothingCanHappen."""
    with asyncio.Runner(loop_factory=VirtualLoop if loop is None else lambda: loop) as runner:
        return runner.run(coroutine)


class VirtualClock(Clock):
    """A loop's clock, of the one that runs if none is named: its time 0 is the moment `start`."""

    def __init__(self, start: datetime, loop: VirtualLoop | None = None) -> None:
        self.start, self._loop = start, loop

    def now(self) -> datetime:
        """The virtual moment."""
        return self.start + timedelta(seconds=self.monotonic_s())

    def monotonic_s(self) -> float:
        """The loop's time."""
        return (self._loop or asyncio.get_running_loop()).time()

    async def until(self, moment: datetime) -> None:
        """Sleep until a moment; one that has passed is no wait."""
        await asyncio.sleep(max(0.0, (moment - self.now()).total_seconds()))
