"""What the server holds about each target goes in; a table for people, and a verdict for health checks, come out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from redis.asyncio import Redis
from rich.table import Table
from rich.text import Text

from poller.catalogue import CATALOGUE
from poller.contract import EVERYTHING, Keys
from poller.grid import Job, Timing
from poller.groups import GroupStatus, read_groups, summary
from poller.session import KST

STALE_INTERVALS = 3
"""A target is stale after this many scheduled intervals without a good poll: one more than a declared gap takes."""

USUAL_RETENTION_S = 86_400.0
FORKS_SHOWN = timedelta(days=1)
"""How long `status` tells that the server had lost entries."""

AFTER_A_FORK = {
    "poller": "it published a reset and goes on in a new epoch",
    "alert": "it goes on from what the server has",
    "archive": "it keeps both histories, `sectorwire archive verify` proves it",
}
"""What each role does by itself about entries that the server had lost."""

GRACE_S = 15.0
"""A poll waits for its turn and takes its time: short intervals are given this much on top."""


@dataclass(frozen=True)
class TargetStatus:
    """One target as the state hash tells it."""

    target: str
    label: str
    every_s: float
    version: int
    last_good: datetime | None
    next_due: datetime | None
    last_error: str
    gap: str
    hold: str
    finding: str
    suspect: str
    missed_ticks: int
    stale: bool

    def as_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "target": self.target,
            "label": self.label,
            "every_s": self.every_s,
            "version": self.version,
            "last_good": self.last_good.isoformat() if self.last_good else None,
            "next_due": self.next_due.isoformat() if self.next_due else None,
            "last_error": self.last_error or None,
            "gap_since": self.gap or None,
            "held": bool(self.hold),
            "finding": self.finding or None,
            "suspect": json.loads(self.suspect) if self.suspect else {},
            "missed_ticks": self.missed_ticks,
            "stale": self.stale,
        }


@dataclass(frozen=True)
class Trouble:
    """A key, a report or the whole broker that is not well, as the leading poller wrote it down."""

    what: str
    state: str
    since: str
    why: str

    def as_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {"what": self.what, "state": self.state, "since": self.since, "why": self.why}

    def __str__(self) -> str:
        return f"{self.what}: {self.state} since {self.since}: {self.why}"


@dataclass(frozen=True)
class Fork:
    """The server came back with an older state than one of us had seen: who saw it, and what of.

    `had` and `has` are what that role had and found: versions, or positions in the stream. `lost` and `ranges` (epoch,
    first and last `seq`) only the archive can tell, which has what the server lost.
    """

    tr: str
    role: str
    at: datetime
    had: str
    has: str
    lost: int | None = None
    ranges: tuple[tuple[int | None, int, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        ranges = [{"epoch": epoch, "first_seq": first, "last_seq": last} for epoch, first, last in self.ranges]
        told = {"tr": self.tr, "role": self.role, "at": self.at.isoformat(), "had": self.had, "has": self.has}
        return {**told, "lost": self.lost, "ranges": ranges}

    @property
    def remedy(self) -> str:
        """What somebody should do about it, and why not more."""
        return f"nothing: {AFTER_A_FORK[self.role]}" if self.role in AFTER_A_FORK else "see the log of that role"

    def __str__(self) -> str:
        when = self.at.astimezone(KST).isoformat(" ", "seconds")
        lost = f"; {self.lost:,} entries are in the archive alone" if self.lost else ""
        return (
            f"{self.tr}: the server had lost entries, {self.role} saw at {when} (had {self.had}, has {self.has}){lost}"
        )


@dataclass(frozen=True)
class Status:
    """The whole pipeline at one moment. A fork that is over is not unwell."""

    server: str
    leader: str | None
    seq: dict[str, int]
    targets: list[TargetStatus]
    troubles: tuple[Trouble, ...] = ()
    groups: tuple[GroupStatus, ...] = ()
    forks: tuple[Fork, ...] = ()

    @property
    def well(self) -> bool:
        """Whether somebody leads and no target is stale."""
        return self.leader is not None and not any(target.stale for target in self.targets)

    def as_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "well": self.well,
            "server": self.server,
            "leader": self.leader,
            "seq": self.seq,
            "troubles": [trouble.as_json() for trouble in self.troubles],
            "groups": [group.as_json() for group in self.groups],
            "forks": [fork.as_json() for fork in self.forks],
            "targets": [target.as_json() for target in self.targets],
        }

    def verdict(self) -> str:
        """One line for a health check."""
        if self.leader is None:
            return "no poller leads: start `sectorwire poll`"
        stale = [target for target in self.targets if target.stale]
        if not stale:
            return f"well: {len(self.targets)} targets fresh"
        first = stale[0]
        why = f", last error: {first.last_error}" if first.last_error else ""
        return f"{len(stale)} of {len(self.targets)} targets stale, first {first.target}{why}"


async def read_status(
    redis: Redis,
    prefix: str,
    jobs: Sequence[Job],
    timing: Timing,
    now: datetime,
    server: str,
    retention_s: float = USUAL_RETENTION_S,
) -> Status:
    """Gather the state of every target, and how far every group has come, on reports outside the plan as well.

    Raises redis.exceptions.RedisError.
    """
    keys = Keys(prefix)
    codes = sorted({job.target.tr.code for job in jobs})
    pipeline = redis.pipeline(transaction=False)
    pipeline.get(keys.leader)
    pipeline.hgetall(keys.app_keys)
    for code in codes:
        pipeline.hmget(keys.of(code, "meta"), ["seq", "breaker", "stopped"])
    for code in codes:
        pipeline.hgetall(keys.of(code, "forks"))
    for job in jobs:
        pipeline.hgetall(keys.of(job.target.tr.code, "state", job.target.query))
    leader, app_keys, *answers = await pipeline.execute()
    read = sorted({*codes, *(tr.code for tr in CATALOGUE)})
    metas = dict(zip(codes, answers, strict=False))
    forks, states = answers[len(codes) : 2 * len(codes)], answers[2 * len(codes) :]
    return Status(
        server=server,
        leader=cast("str | None", leader),
        seq={code: int(seq or 0) for code, (seq, _, _) in metas.items()},
        targets=[_target(job, state, timing, now) for job, state in zip(jobs, states, strict=True)],
        troubles=(*_key_troubles(app_keys, now), *_tr_troubles(metas)),
        groups=tuple(await read_groups(redis, prefix, read, now=now, retention_s=retention_s)),
        forks=tuple(fork for code, marks in zip(codes, forks, strict=True) for fork in _forks(code, marks, now)),
    )


def _key_troubles(states: dict[str, str], now: datetime) -> Iterator[Trouble]:
    for name, text in sorted(states.items()):
        state = json.loads(text)
        over = "until" in state and datetime.fromisoformat(state["until"]) <= now
        if state["state"] != "live" and not over:
            what = "the broker" if name == EVERYTHING else f"app key {name}"
            yield Trouble(what, state["state"], state["since"], state["why"])


def _tr_troubles(metas: dict[str, list[str | None]]) -> Iterator[Trouble]:
    for code, (_, breaker, stopped) in metas.items():
        for opened in json.loads(breaker or "[]"):
            yield Trouble(f"{code} with app key {opened['key']}", "breaker open", opened["since"], opened["why"])
        if stopped:
            state = json.loads(stopped)
            yield Trouble(code, "stopped", state["since"], state["why"])


def _forks(code: str, marks: dict[str, str], now: datetime) -> Iterator[Fork]:
    """The forks that were seen lately, the first to see it first."""
    told = {role: json.loads(text) for role, text in marks.items()}
    for role in sorted(told, key=lambda one: str(told[one]["at"])):
        mark, at = told[role], datetime.fromisoformat(told[role]["at"])
        if at > now - FORKS_SHOWN:
            ranges = tuple((epoch, first, last) for epoch, first, last in mark.get("ranges", ()))
            yield Fork(code, role, at, mark["had"], mark["has"], mark.get("lost"), ranges)


def _target(job: Job, state: dict[str, str], timing: Timing, now: datetime) -> TargetStatus:
    last_good, next_due = _moment(state.get("last_good")), _moment(state.get("next_due"))
    missed = timing.scheduled_polls(job, last_good, now) - GRACE_S / job.every_s if last_good else 0.0
    return TargetStatus(
        target=str(job.target),
        label=job.target.label,
        every_s=job.every_s,
        version=int(state.get("version") or 0),
        last_good=last_good,
        next_due=next_due,
        last_error=state.get("last_error", ""),
        gap=state.get("gap", ""),
        hold=state.get("hold", ""),
        finding=state.get("finding", ""),
        suspect=state.get("suspect", ""),
        missed_ticks=int(state.get("missed_ticks") or 0),
        stale=last_good is None or missed > STALE_INTERVALS,
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def table(status: Status, now: datetime) -> Table:
    """The targets for a person's eyes."""
    leader = f"leader {status.leader}" if status.leader else "[red]no poller leads[/]"
    forks = [f"{fork} -> {fork.remedy}" for fork in status.forks]
    caption = Text("\n".join([status.verdict(), *map(str, status.troubles), *forks, *summary(status.groups)]))
    grid = Table(title=f"{status.server} · {leader}", title_justify="left", caption=caption, box=None)
    for name in ("target", "이름", "every", "last good", "next", "version", "seq", "trouble"):
        grid.add_column(name, no_wrap=name != "trouble", justify="right" if name in {"version", "seq"} else "left")
    for target in status.targets:
        age = f"{(now - target.last_good).total_seconds():.0f}s ago" if target.last_good else "never"
        following = f"{(target.next_due - now).total_seconds():+.0f}s" if target.next_due else "–"
        suspect = f"suspect: {target.suspect}" if target.suspect else ""
        trouble = target.last_error or target.finding or ("held" if target.hold else suspect)
        grid.add_row(
            target.target,
            target.label,
            f"{target.every_s:g}s",
            f"[red]{age}[/]" if target.stale else f"[green]{age}[/]",
            following,
            str(target.version),
            str(status.seq[target.target.partition("?")[0]]),
            trouble,
        )
    return grid
