"""What groups gave up on goes in; lists of it, and orders to hand entries out again or to drop them, come out.

The surprise: handing out again is an order, not a copy. The entry keeps its fields and its `seq`, nothing is appended
to the stream it came from, and the group's own loop takes it before what is new (see `Membership`). It comes late:
what was published after it has been handled long ago, and for rules it is news as of now.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from consumers.blame import original
from poller.contract import STREAMS, Keys, printable

PAGE = 500
LAST_MS = 253_402_214_400_000
"""The last day that a date can be: an id may lie after it."""


class ParkedError(Exception):
    """No such report, group or entry; the message names the nearest."""


@dataclass(frozen=True)
class Parked:
    """One entry a group gave up on. `id` is where it is parked, `stream_id` where it stood in its stream.

    `fields` is for people: what was not UTF-8 is a question mark there. What is handed out again is what is parked.
    """

    tr: str
    group: str
    id: str
    stream_id: str
    why: str
    stack: str
    fields: dict[str, str]
    asked_for: bool

    @property
    def at(self) -> datetime:
        """When it was parked, by the server's clock, which is in the id."""
        return datetime.fromtimestamp(min(int(self.id.partition("-")[0]), LAST_MS) / 1000, UTC)

    def as_json(self) -> dict[str, Any]:
        """As `parked list --json` prints it."""
        return {
            "tr": self.tr,
            "group": self.group,
            "id": self.id,
            "stream_id": self.stream_id,
            "event_id": self.fields.get("id"),
            "why": self.why,
            "stack": self.stack or None,
            "asked_for": self.asked_for,
        }


class ParkingLot:
    """Everything that is parked under one prefix. Raises RedisError where the server does not answer."""

    def __init__(self, redis: Redis, prefix: str, trs: Iterable[str]) -> None:
        self._redis: Any = redis  # redis-py's types allow every shape of every protocol; ours is pinned
        self._keys, self._trs = Keys(prefix), sorted(trs)

    async def listed(self, tr: str | None = None, group: str | None = None) -> list[Parked]:
        """What is parked, oldest first in each group. Raises ParkedError where there is no such report or group."""
        trs = self._trs if tr is None else [_known(tr, self._trs, "report")]
        groups = {one: await self._groups(one) for one in self._trs}
        if group is not None:
            _known(group, {name for names in groups.values() for name in names}, "group")
        chosen = [(one, name) for one in trs for name in groups[one] if group in {None, name}]
        return [entry for one, name in chosen for entry in await self._of(one, name)]

    async def one(self, tr: str, group: str, entry_id: str) -> Parked:
        """One parked entry. Raises ParkedError where it is not there."""
        (found,) = await self._chosen(tr, group, [entry_id])
        return found

    async def redrive(self, tr: str, group: str, ids: Sequence[str] = ()) -> int:
        """Ask the group to handle entries again, all of them or those; returns how many were not asked for yet."""
        chosen = [one for one in await self._chosen(tr, group, ids) if not one.asked_for]
        if chosen:
            await self._redis.rpush(self._keys.of(tr, "redrive", group), *(one.id for one in chosen))
        return len(chosen)

    async def drop(self, tr: str, group: str, ids: Sequence[str] = ()) -> int:
        """Forget entries for ever, all of them or those; returns how many."""
        chosen = [one.id for one in await self._chosen(tr, group, ids)]
        return int(await self._redis.xdel(self._keys.of(tr, "parked", group), *chosen)) if chosen else 0

    async def active(self, tr: str, group: str) -> bool:
        """Whether a member of the group is at work there, as far as a lease can tell."""
        return bool(await self._redis.exists(self._keys.of(tr, "active", group)))

    async def _chosen(self, tr: str, group: str, ids: Sequence[str]) -> list[Parked]:
        there = {one.id: one for one in await self.listed(tr, group)}
        return [there[_known(one, there, "parked entry")] for one in ids] if ids else list(there.values())

    async def _of(self, tr: str, group: str) -> list[Parked]:
        key, after = self._keys.of(tr, "parked", group), "-"
        asked_for = set(await self._redis.lrange(self._keys.of(tr, "redrive", group), 0, -1))
        found: list[Parked] = []
        while page := await self._redis.xrange(key, after, "+", count=PAGE):
            for entry_id, fields in page:
                stream_id, why, stack = (fields.get(f"parked_{name}", "") for name in ("id", "why", "stack"))
                own = {printable(name): printable(text) for name, text in original(fields).items()}
                asked = entry_id in asked_for
                found.append(Parked(tr, group, entry_id, stream_id, why, stack, own, asked))
            after = f"({page[-1][0]}"
        return found

    async def _groups(self, tr: str) -> list[str]:
        """The groups of a TR's streams, and those that are gone and have left something parked."""
        head = self._keys.of(tr, "parked", "")
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", head) + "*"
        names = {key.removeprefix(head) async for key in self._redis.scan_iter(match=pattern, count=PAGE)}
        for part in STREAMS:
            try:
                names |= {group["name"] for group in await self._redis.xinfo_groups(self._keys.of(tr, part))}
            except ResponseError:  # no such stream yet
                continue
        return sorted(names)


def _known(name: str, known: Iterable[str], what: str) -> str:
    """The name, if it is one. Raises ParkedError with the nearest."""
    names = sorted(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, 1)
    there = f"known: {', '.join(names[:10])}" if names else "there is none"
    raise ParkedError(f"no {what} {name!r}; " + (f"did you mean {close[0]}?" if close else there))
