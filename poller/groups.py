"""The server's consumer groups go in; how far each has come, and who holds trimming back for nobody, come out.

Lag is counted in our own `seq`: the newest one less that of the last entry which the group has done with everything
before it. The server's own `lag` counts what was handed out as done, and is null after any deletion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from poller.contract import STREAMS, Keys

OURS = ("alert", "archive", "send")
"""The groups of our own roles. Others that keep a position in the server are ours as well."""

GONE = ("NOGROUP", "no such key")
"""What the server says of a group, or of its stream, that went away between two questions."""

REMOVED_AFTER = 7
"""A group that nobody has read for so many times the retention is removed: a week, if nothing else is configured."""


@dataclass(frozen=True)
class GroupStatus:
    """One group on one stream. `lag` is None where the next entry has no `seq`, so is not ours.

    `idle_s` is how long no consumer has asked for anything, None where there is none. `abandoned`: it needs entries
    older than the retention, nobody has read for as long, and it is not one of ours, whose position we keep.
    """

    tr: str
    part: str
    group: str
    lag: int | None
    pending: int
    parked: int
    idle_s: float | None
    abandoned: bool

    def as_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "tr": self.tr,
            "stream": self.part,
            "group": self.group,
            "lag": self.lag,
            "pending": self.pending,
            "parked": self.parked,
            "idle_s": self.idle_s,
            "abandoned": self.abandoned,
        }

    def trouble(self) -> str:
        """What somebody should do about it, or nothing."""
        if self.abandoned:
            return (
                f"group {self.group} on {self.tr} is abandoned and keeps {self.part} from being trimmed: start its "
                f"reader, or remove it with XGROUP DESTROY; after {REMOVED_AFTER} times the retention it is removed"
            )
        return ""


async def read_groups(
    redis: Redis, prefix: str, trs: Sequence[str], *, now: datetime, retention_s: float
) -> list[GroupStatus]:
    """Every group on the streams of these TRs. Raises RedisError where the server does not answer."""
    client: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
    keys, found = Keys(prefix), []
    for tr in trs:
        for part in STREAMS:
            try:
                groups = await client.xinfo_groups(keys.of(tr, part))
            except ResponseError:  # no such stream yet
                continue
            for group in groups:
                try:
                    found.append(await _status(client, keys, tr, part, group, now=now, retention_s=retention_s))
                except ResponseError as error:
                    if not any(gone in str(error) for gone in GONE):
                        raise
    return found


async def _status(
    client: Any, keys: Keys, tr: str, part: str, group: dict[str, Any], *, now: datetime, retention_s: float
) -> GroupStatus:
    """One group that the server has listed. Raises ResponseError with one of `GONE` if it is not there any more."""
    stream, name = keys.of(tr, part), group["name"]
    ask = client.pipeline(transaction=False)
    ask.hget(keys.of(tr, STREAMS[part]), "seq")
    ask.xpending_range(stream, name, "-", "+", 1)
    ask.xinfo_consumers(stream, name)
    ask.xlen(keys.of(tr, "parked", name))
    ask.exists(keys.of(tr, "position", name))
    seq, oldest, consumers, parked, kept = await ask.execute()
    first = oldest[0]["message_id"] if oldest else f"({group['last-delivered-id']}"
    undone = await client.xrange(stream, first, "+", count=1)
    idle_s = min((one["idle"] / 1000 for one in consumers), default=None)
    return GroupStatus(
        tr=tr,
        part=part,
        group=name,
        lag=_lag(int(seq or 0), undone),
        pending=int(group["pending"]),
        parked=int(parked),
        idle_s=idle_s,
        abandoned=not (kept or name in OURS)
        and _age_s(undone, now) > retention_s
        and (idle_s is None or idle_s > retention_s),
    )


def _lag(seq: int, undone: list[tuple[str, dict[str, str]]]) -> int | None:
    if not undone:
        return 0
    first = undone[0][1].get("seq", "")
    return max(0, seq - int(first) + 1) if first.isdecimal() else None


def _age_s(undone: list[tuple[str, dict[str, str]]], now: datetime) -> float:
    """How old the first entry is that the group still needs."""
    return now.timestamp() - int(undone[0][0].partition("-")[0]) / 1000 if undone else 0.0


def summary(groups: Sequence[GroupStatus]) -> list[str]:
    """One line for each group, over all its streams, and one for each trouble."""
    lines = []
    for name in sorted({one.group for one in groups}):
        mine = [one for one in groups if one.group == name]
        behind = ", ".join(f"{one.tr} {'?' if one.lag is None else one.lag}" for one in mine if one.lag != 0)
        parked = sum(one.parked for one in mine)
        there = f", {parked} parked: see `sectorwire parked list`" if parked else ""
        lines.append(f"group {name}: " + (f"behind by {behind}" if behind else "has read everything") + there)
    return lines + [one.trouble() for one in groups if one.trouble()]
