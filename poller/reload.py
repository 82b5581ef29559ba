"""A running poller and its configuration file go in; whatever plan the file holds, the poller polls by it.

Looked for every few seconds, and at once when asked (SIGHUP). The surprises: a file that cannot be used is refused with
one line, and the old plan goes on; and new content has to be there at two looks in a row, since an editor may be
half-way. The list of sectors is a part of the plan: a group such as `@kospi` is expanded anew when it changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from poller.clock import Clock
from poller.grid import Job
from poller.schedule import Poller
from poller.sector_list import FILE_NAME
from poller.settings import ConfigError, Settings
from poller.store import StoreDown, StoreError
from poller.trs.base import BadRequest, Target

LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class Plan:
    """A configuration that was read and found good. `apart` is what of it is read at a start only, by section."""

    settings: Settings
    jobs: tuple[Job, ...]
    apart: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Turnover:
    """What a new plan means for the old one: who starts, who ends, who goes on with another interval or priority."""

    added: tuple[Job, ...]
    removed: tuple[Target, ...]
    changed: tuple[Job, ...]


def turnover(old: Sequence[Job], new: Sequence[Job]) -> Turnover:
    """The difference of two plans."""
    before, after = ({job.target: job for job in jobs} for jobs in (old, new))
    return Turnover(
        added=tuple(job for target, job in after.items() if target not in before),
        removed=tuple(target for target in before if target not in after),
        changed=tuple(job for target, job in after.items() if target in before and before[target] != job),
    )


def fixed_changes(old: Settings, new: Settings) -> list[str]:
    """What differs that only a restart can change: everything but the plan, as `[section] name`."""
    return [
        f"[{section}] {name}"
        for section in Settings.model_fields
        if section != "poll"
        for name in type(getattr(old, section)).model_fields
        if getattr(getattr(old, section), name) != getattr(getattr(new, section), name)
    ]


@dataclass(frozen=True)
class Look:
    """A file as it was at one look; its content is read only where time or size differ from the look before."""

    modified_ns: int
    size: int
    digest: str

    @classmethod
    def at(cls, path: Path, before: Look | None) -> Look | None:
        """A look at a file now; None where there is none, as for a moment while an editor puts a new one there."""
        try:
            found = path.stat()
            if before and (before.modified_ns, before.size) == (found.st_mtime_ns, found.st_size):
                return before
            return cls(found.st_mtime_ns, found.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        except OSError:
            return None


class Reloader:
    """Keeps a poller to its configuration. `read` reads and proves a plan, and raises ConfigError or BadRequest."""

    def __init__(self, path: Path, read: Callable[[], Plan]) -> None:
        self._path, self._read = path, read
        seen = Look.at(path, None)  # before it is read: what is written meanwhile counts as new
        self.plan = read()
        self._apart = self.plan.apart
        self._files = (path, self.plan.settings.data.dir / FILE_NAME)
        self._seen = [seen, Look.at(self._files[1], None)]
        self._applied = self._digests()
        self._refused = ""
        self._woken, self._asked = asyncio.Event(), False
        self._log = structlog.get_logger("poller")

    def ask(self) -> None:
        """Reload now, whether or not the file has changed."""
        self._asked = True
        self._woken.set()

    async def run(
        self,
        poller: Poller,
        clock: Clock,
        stop: asyncio.Event,
        reload_keys: Callable[[], object] = lambda: None,
    ) -> None:
        """Look until `stop`. When asked, `reload_keys` as well."""
        stopping = asyncio.create_task(self._wake_with(stop))
        try:
            while not stop.is_set():
                await clock.wait(self._woken, LOOK_EVERY_S)
                self._woken.clear()
                asked, self._asked = self._asked, False
                if asked:
                    await self._reload_keys(reload_keys)
                if not stop.is_set() and (self._changed() or asked):
                    await self._reload(poller, asked=asked)
        finally:
            stopping.cancel()

    async def _wake_with(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._woken.set()

    async def _reload_keys(self, reload_keys: Callable[[], object]) -> None:
        try:
            outcome = reload_keys()
            if inspect.isawaitable(outcome):
                await outcome
        except ConfigError as error:
            self._log.warning("keys.refused", error=str(error), why="the old keys go on")
        except Exception:  # noqa: BLE001 -- whatever is wrong with new keys, the old ones go on
            self._log.exception("reload.crashed")

    def _digests(self) -> tuple[str, ...]:
        return tuple(look.digest if look else "" for look in self._seen)

    def _changed(self) -> bool:
        """Whether the files hold something new, and held the same at the last look."""
        before = self._digests()
        self._seen = [Look.at(path, seen) for path, seen in zip(self._files, self._seen, strict=True)]
        return self._seen[0] is not None and before == self._digests() != self._applied

    async def _reload(self, poller: Poller, *, asked: bool) -> None:
        self._applied = self._digests()
        try:
            plan, changes = await self._apply(poller)
        except (ConfigError, BadRequest, StoreError) as error:
            if asked or str(error) != self._refused:
                self._log.warning("reload.refused", error=str(error), why="the old plan goes on")
            self._refused = str(error)
            if isinstance(error, StoreDown):
                self._applied = ()  # the file is good: try again
            return
        except Exception:  # noqa: BLE001 -- whatever is wrong with a new plan, the old one goes on
            self._log.exception("reload.crashed")
            return
        self.plan, self._refused = plan, ""
        counts = {"added": len(changes.added), "removed": len(changes.removed), "changed": len(changes.changed)}
        self._log.info("reload.applied", **counts, targets=len(plan.jobs))
        self._tell_apart(plan)

    async def _apply(self, poller: Poller) -> tuple[Plan, Turnover]:
        plan = self._read()
        fixed = fixed_changes(self.plan.settings, plan.settings)
        if fixed:
            raise ConfigError(f"{self._path}: restart to change {', '.join(fixed)}")
        changes = turnover(self.plan.jobs, plan.jobs)
        await poller.replan(plan.jobs)
        return plan, changes

    def _tell_apart(self, plan: Plan) -> None:
        """Say once which sections changed that are not reloaded."""
        names = sorted({*plan.apart} | {*self._apart})
        differing = [name for name in names if plan.apart.get(name) != self._apart.get(name)]
        if differing:
            self._log.warning("reload.partial", sections=differing, why="only the plan was reloaded: restart for these")
        self._apart = plan.apart
