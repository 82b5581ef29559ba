"""Groups that nobody reads go in; a warning, and in the end their removal with what was lost, come out.

Nothing that a group needs is trimmed, so a group whose program is gone keeps every entry until the ceiling stops the
polling. After one retention without a reader it is abandoned, and that is said once; after `REMOVED_AFTER` retentions
it is removed, and trimming goes on. The surprises: when it was first seen so is noted on the server, so that pollers
may come and go meanwhile; and a full memory removes nobody sooner, since then polling pauses, and says for whom.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from redis.exceptions import RedisError

from poller.groups import OURS, REMOVED_AFTER
from poller.store import Store


class Told(NamedTuple):
    """What expire.lua says of one group that is abandoned, or was."""

    what: str
    group: str
    since_ms: str
    first: str
    last: str
    first_seq: str
    last_seq: str
    pending: int

    @property
    def since(self) -> datetime:
        """When it was first seen to be abandoned."""
        return datetime.fromtimestamp(int(self.since_ms) / 1000, UTC)

    @property
    def entries(self) -> int | None:
        """How many entries it needs, None where not all are ours."""
        numbered = self.first_seq.isdecimal() and self.last_seq.isdecimal()
        return int(self.last_seq) - int(self.first_seq) + 1 if numbered else None


class Expiry:
    """Looks after the groups on the streams of one server."""

    def __init__(self, store: Store) -> None:
        self._keys = store.keys
        self._script = store.redis.register_script((Path(__file__).parent / "expire.lua").read_text("utf-8"))
        self._abandoned: dict[str, list[str]] = {}
        self._refused = ""
        self._log = structlog.get_logger("poller")

    @property
    def abandoned(self) -> list[str]:
        """The groups nobody reads, each with its stream, as they were seen last."""
        return sorted(name for names in self._abandoned.values() for name in names)

    async def look(self, tr: str, part: str, retention_s: float) -> None:
        """See who is abandoned on one stream, and remove whose time is over. Trouble is said once, and ends nothing."""
        stream, retention_ms = self._keys.of(tr, part), int(retention_s * 1000)
        keys = [stream, self._keys.of(tr, "abandoned")]
        grace_ms = (REMOVED_AFTER - 1) * retention_ms
        args: list[str | int] = [part, retention_ms, grace_ms, self._keys.of(tr, "position", ""), *OURS]
        try:
            found: Any = await self._script(keys=keys, args=args)
        except (RedisError, OSError) as error:
            if str(error) != self._refused:
                self._log.warning("groups.unseen", stream=stream, error=str(error))
            self._refused = str(error)
            return
        told = [Told(*one) for one in found]
        self._abandoned[stream] = [f"{one.group} on {stream}" for one in told if one.what in {"new", "noted"}]
        for one in told:
            self._say(stream, one, grace_ms)

    def _say(self, stream: str, one: Told, grace_ms: int) -> None:
        log = self._log.bind(group=one.group, stream=stream)
        needs = {"first": one.first, "last": one.last, "entries": one.entries, "pending": one.pending}
        if one.what == "new":
            ends = datetime.fromtimestamp((int(one.since_ms) + grace_ms) / 1000, UTC)
            log.warning(
                "group.abandoned",
                why="nobody has read it for longer than the retention, and it keeps the stream from being trimmed",
                remedy=f"start its reader, or remove it: XGROUP DESTROY {stream} {one.group}",
                else_removed_at=ends.isoformat(timespec="seconds"),
                **needs,
            )
        elif one.what == "removed":
            log.error(
                "group.expired",
                why=f"nobody has read it for {REMOVED_AFTER} times the retention; these entries are lost to it",
                remedy=f"read them from the archive; to begin with what is left: XGROUP CREATE {stream} {one.group} 0",
                abandoned_since=one.since.isoformat(timespec="seconds"),
                **needs,
            )
        elif one.what == "returned":
            log.info("group.returned", abandoned_since=one.since.isoformat(timespec="seconds"))
