"""What a server, a plan and its state look like goes in; what is wrong with them, and the remedy of each, comes out.

`gather` asks, `findings` thinks and asks nobody, so each rule is a function of plain facts. The surprises: a provider
may forbid CONFIG, so whatever INFO tells as well is taken from there; and a group whose consumers are gone keeps
entries in memory for long, because nothing is trimmed that a group still needs.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from poller.budget import Share
from poller.catalogue import CATALOGUE
from poller.clock import Clock
from poller.contract import STREAMS, Keys
from poller.grid import Job, Timing
from poller.groups import GroupStatus
from poller.service import EVICTS_NOTHING, Bus, named, too_old, without_password
from poller.session import KST
from poller.settings import Settings
from poller.status import Status, read_status
from poller.upkeep import LOW_WATER

Severity = Literal["serious", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "note")

SKEW_S = 2.0
"""Clocks that differ by more make entry ids and `observed_at` tell different times."""

REPLICA_LAG_S = 10
SILENT_S = 60.0
"""A role asks its group every two seconds; one that has not for so long does not run."""

FAR_BEHIND = 10_000
PAGE = 500
NEARLY_FULL_PCT = 90.0
LITTLE_BYTES, HARDLY_ANY_BYTES = 10**9, 10**8

UNTRIED = ("dragonfly_version", "kvrocks_version", "garnet_version")
"""Servers that speak the protocol, and say so in INFO, but are not what the tests run against."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing, and what to do about it."""

    severity: Severity
    what: str
    remedy: str

    def as_json(self) -> dict[str, str]:
        """As `doctor --json` prints it."""
        return {"severity": self.severity, "what": self.what, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.what}\n         -> {self.remedy}"


@dataclass(frozen=True)
class Disk:
    """The room that is left where something is written."""

    what: str
    path: Path
    free_bytes: int


Roles = Mapping[tuple[str, str, str], str]
"""The command that reads a group, by TR, part (`changes` or `alerts`) and the group's name."""


@dataclass(frozen=True)
class Facts:
    """Everything that the rules look at. `info` joins sections of INFO; `config` is empty where CONFIG is forbidden.

    `parked` counts what groups gave up on, by TR and group; those that are gone since have left theirs.
    """

    url: str
    info: Mapping[str, Any]
    config: Mapping[str, str]
    ahead_s: float
    keys: Keys
    roles: Roles
    parked: Mapping[tuple[str, str], int]
    stream_bytes: int
    max_bytes: int
    retention_s: float
    disks: Sequence[Disk]
    plan: Sequence[Share]
    status: Status
    calendar: str


def findings(facts: Facts) -> list[Finding]:
    """Everything that is wrong, worst first. Pure."""
    return worst_first(finding for rule in RULES for finding in rule(facts))


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    """As they are told."""
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _server(facts: Facts) -> Iterator[Finding]:
    name, version = named(facts.info)
    if too_old(version):
        yield Finding("serious", f"{name} {version} is too old", "install Redis 7.0 or later, or Valkey")
    for other in UNTRIED:
        if other in facts.info:
            kind = other.removesuffix("_version")
            yield Finding(
                "note", f"the server is {kind}, which no test runs against", "use Redis or Valkey if in doubt"
            )


def _eviction(facts: Facts) -> Iterator[Finding]:
    policy = facts.info.get("maxmemory_policy", EVICTS_NOTHING)
    if policy != EVICTS_NOTHING:
        yield Finding(
            "serious",
            f"maxmemory-policy is {policy}: a full server throws whole streams and snapshots away",
            f"{cli(facts.url)} CONFIG SET maxmemory-policy {EVICTS_NOTHING}, and the same in its configuration",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    ceiling, used = int(facts.info.get("maxmemory", 0)), int(facts.info.get("used_memory", 0))
    if 0 < ceiling < facts.max_bytes:
        yield Finding(
            "warning",
            f"the server's maxmemory is {_size(ceiling)}, [bus] max_bytes {_size(facts.max_bytes)}: it refuses writes "
            "before polling gives way",
            f'set [bus] max_bytes below {_size(ceiling)}, such as "{ceiling // 2 // 10**6}MB", or raise maxmemory',
        )
    if ceiling and 100 * used > NEARLY_FULL_PCT * ceiling:
        yield Finding(
            "warning",
            f"the server uses {_size(used)} of its maxmemory {_size(ceiling)}",
            "raise maxmemory, or lower [bus] retention and max_bytes",
        )
    share = facts.stream_bytes / facts.max_bytes
    if share >= LOW_WATER:
        yield Finding(
            "serious" if share >= 1 else "warning",
            f"the streams hold {_size(facts.stream_bytes)} of [bus] max_bytes {_size(facts.max_bytes)}: at the ceiling "
            "polling pauses",
            "see that every group reads (below), lower [bus] retention, or raise max_bytes",
        )


def _persistence(facts: Facts) -> Iterator[Finding]:
    info, append = facts.info, f"{cli(facts.url)} CONFIG SET appendonly yes, and the same in its configuration"
    if info.get("aof_enabled") == 0:
        snapshots = facts.config.get("save", "?")
        lost = "what was written since its last dump" if snapshots else "every entry, snapshot and position"
        yield Finding("warning", f"no append-only file: a restart of the server loses {lost}", append)
    elif facts.config.get("appendfsync") == "no":
        yield Finding(
            "warning",
            "appendfsync is no: a power cut loses what the system had not written, often half a minute",
            f"{cli(facts.url)} CONFIG SET appendfsync everysec, and the same in its configuration",
        )
    elif facts.config.get("appendfsync") == "everysec":
        yield Finding(
            "note",
            "appendfsync is everysec: a crash of the machine can lose up to a second; the poller then resets",
            "nothing, or appendfsync always at about half the speed",
        )
    for field, severity in WRITES.items():
        if info.get(field, "ok") != "ok":
            yield Finding(
                severity,
                f"{field} is {info[field]}: the server cannot write its files, and then refuses writes",
                "see its log and the space on its disk",
            )


WRITES: dict[str, Severity] = {
    "aof_last_write_status": "serious",
    "rdb_last_bgsave_status": "serious",
    "aof_last_bgrewrite_status": "warning",
}


def _replication(facts: Facts) -> Iterator[Finding]:
    info = facts.info
    if info.get("role") == "slave":
        leader = f"{info.get('master_host')}:{info.get('master_port')}"
        yield Finding(
            "serious",
            "the server is a replica: it refuses writes",
            f"set [bus] url or REDIS_URL to its primary, {leader}",
        )
    for number in range(int(info.get("connected_slaves", 0))):
        replica = info.get(f"slave{number}", {})
        lag_s, state = int(replica.get("lag", 0)), replica.get("state", "online")
        if state != "online" or lag_s > REPLICA_LAG_S:
            yield Finding(
                "warning",
                f"replica {replica.get('ip')}:{replica.get('port')} is {state} and {lag_s} s behind: a failover to it "
                "loses what it has not got",
                "see its log, and the network between the two",
            )


def _clock(facts: Facts) -> Iterator[Finding]:
    if abs(facts.ahead_s) > SKEW_S:
        way = "ahead of" if facts.ahead_s > 0 else "behind"
        yield Finding(
            "warning",
            f"the server's clock is {abs(facts.ahead_s):.1f} s {way} ours",
            "let both keep time by NTP: `timedatectl set-ntp true`, or chrony",
        )


def _groups(facts: Facts) -> Iterator[Finding]:
    for group in facts.status.groups:
        if group.lag != 0:
            yield from _lag(facts, group)


def _lag(facts: Facts, group: GroupStatus) -> Iterator[Finding]:
    role = facts.roles.get((group.tr, group.part, group.group), "")
    entries = "entries" if group.lag is None else f"{group.lag:,} entries"
    where = f"{group.tr}: group {group.group}"
    silent = "has no consumer" if group.idle_s is None else f"has not read for {_span(group.idle_s)}"
    if not role and (group.idle_s is None or group.idle_s > facts.retention_s):
        yield Finding(
            "warning",
            f"{where} {silent}, and no role here is its reader: {entries} are kept in memory for it",
            f"start its program; or if there is none: {cli(facts.url)} XGROUP DESTROY "
            f"{shlex.quote(facts.keys.of(group.tr, group.part))} {shlex.quote(group.group)}",
        )
    elif role and (group.idle_s is None or group.idle_s > SILENT_S):
        yield Finding(
            "warning",
            f"{where} {silent}, {entries} wait for it",
            f"start `sectorwire {role}` or `sectorwire run`",
        )
    elif group.lag is not None and group.lag > FAR_BEHIND:
        yield Finding(
            "warning",
            f"{where} is {entries} behind",
            "see its log; if it is merely slow, give it more time or processors",
        )


def _parked(facts: Facts) -> Iterator[Finding]:
    there = {(group.tr, group.group) for group in facts.status.groups}
    for (tr, name), count in facts.parked.items():
        show = f"`sectorwire parked list --tr {tr} --group {shlex.quote(name)}` shows why"
        if (tr, name) in there:
            then = f"{tr}: group {name} gave up on {count:,} entries and went on without them"
            yield Finding("warning", then, f"{show}; redrive or drop them")
        else:
            then = f"{tr}: group {name}, which is gone, had given up on {count:,} entries"
            yield Finding("warning", then, f"{show}; drop them, or redrive them and start its reader again")


def _disks(facts: Facts) -> Iterator[Finding]:
    for disk in facts.disks:
        if disk.free_bytes < LITTLE_BYTES:
            yield Finding(
                "serious" if disk.free_bytes < HARDLY_ANY_BYTES else "warning",
                f"{_size(disk.free_bytes)} are left for {disk.what} in {disk.path}",
                "make room, or choose another disk; old quarantine files and recordings may go",
            )


def _plan(facts: Facts) -> Iterator[Finding]:
    for share in facts.plan:
        if not share.fits:
            yield Finding("serious", f"the plan does not fit the limit of {share.name}", share.remedy())
        elif share.used_pct > NEARLY_FULL_PCT:
            yield Finding(
                "note",
                f"the plan uses {share.used_pct:.0f} % of the limit of {share.name}",
                "make some `every` longer before adding targets; `sectorwire check` shows the arithmetic",
            )


TROUBLES: dict[str, tuple[Severity, str]] = {
    "held": ("serious", "do what it says; the key is tried again every ten minutes, and on SIGHUP"),
    "stopped": ("serious", "see whether the report still exists; after an upgrade or a restart it is asked again"),
    "maintenance": ("note", "nothing: one request a minute looks whether it is over"),
}
USUAL_TROUBLE: tuple[Severity, str] = ("warning", "nothing at first, it is tried again; `check --online` asks now")


def _polling(facts: Facts) -> Iterator[Finding]:
    status = facts.status
    stale = [target for target in status.targets if target.stale]
    if status.leader is None:
        yield Finding("warning", "no poller leads: nothing is asked", "start `sectorwire run` or `sectorwire poll`")
    elif stale:
        remedy = f"the last error of the first: {stale[0].last_error or 'none'}; `sectorwire status` shows each"
        yield Finding("serious", status.verdict().partition(", last error")[0], remedy)
    for trouble in status.troubles:
        severity, remedy = TROUBLES.get(trouble.state, USUAL_TROUBLE)
        yield Finding(severity, str(trouble), remedy)
    for finding in dict.fromkeys(target.finding for target in status.targets if target.finding):
        what, _, remedy = finding.partition(": ")
        yield Finding("warning", what, remedy or "correct [schedule]")


def _forks(facts: Facts) -> Iterator[Finding]:
    for fork in facts.status.forks:
        yield Finding("note", str(fork), fork.remedy)


def _calendar(facts: Facts) -> Iterator[Finding]:
    if facts.calendar:
        what, _, remedy = facts.calendar.partition(": ")
        yield Finding("warning", what, remedy)


RULES = (
    _server, _eviction, _replication, _persistence, _memory, _polling, _plan, _groups, _parked, _disks, _clock,
    _calendar, _forks,
)  # fmt: skip
"""In the order in which findings of one severity are told."""


def cli(url: str) -> str:
    """The command that reaches the server; a password is left for REDISCLI_AUTH.

    >>> cli("redis://127.0.0.1:6379/0"), cli("unix:///run/valkey%2Bours.sock")
    ('redis-cli -u redis://127.0.0.1:6379/0', 'redis-cli -s /run/valkey+ours.sock')
    """
    if url.startswith("unix:"):
        return f"redis-cli -s {shlex.quote(unquote(urlsplit(url).path))}"
    return f"redis-cli -u {shlex.quote(url)}"


def _size(count: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((10**9, "GB"), (10**6, "MB")) if count >= unit), (10**3, "KB"))
    return f"{count / unit:.1f} {name}"


def _span(seconds: float) -> str:
    unit_s, name = next(
        (
            (unit_s, name)
            for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes"))
            if seconds >= 2 * unit_s
        ),
        (1, "seconds"),
    )
    return f"{seconds / unit_s:.0f} {name}"


async def gather(
    settings: Settings,
    jobs: Sequence[Job],
    plan: Sequence[Share],
    bus: Bus,
    clock: Clock,
    *,
    roles: Roles,
    archive: Path | None,
) -> Facts:
    """Ask the server, the disks and the calendar; nothing is written. Raises redis.exceptions.RedisError."""
    calendar = settings.schedule.calendar
    timing = Timing(calendar, None if settings.schedule.sessions == "always" else calendar)
    now, keys, retention_s = clock.now(), Keys(settings.bus.prefix), settings.bus.retention
    places = {"[data] dir": settings.data.dir, **({"the archive": archive} if archive else {})}
    return Facts(
        url=without_password(bus.url),
        info=await _info(bus.redis),
        config=await _config(bus.redis),
        ahead_s=await _ahead_s(bus.redis, clock),
        keys=keys,
        roles=roles,
        parked=await _parked_in(bus.redis, keys),
        stream_bytes=await _stream_bytes(bus.redis, keys),
        max_bytes=settings.bus.max_bytes,
        retention_s=retention_s,
        disks=[await asyncio.to_thread(_disk, what, path) for what, path in places.items()],
        plan=plan,
        status=await read_status(bus.redis, keys.prefix, jobs, timing, now, bus.told, retention_s),
        calendar=calendar.late_opens_end(now.astimezone(KST).date()) or "",
    )


async def _info(redis: Redis) -> dict[str, Any]:
    """The sections of INFO that the rules read, joined."""
    joined: dict[str, Any] = {}
    for section in ("server", "memory", "persistence", "replication"):
        joined |= await redis.info(section)
    return joined


async def _config(redis: Redis) -> dict[str, str]:
    """What INFO does not tell, where the server lets us ask."""
    try:
        told = [await redis.config_get(name) for name in ("appendfsync", "save")]
    except ResponseError:  # renamed or forbidden, as managed servers have it
        return {}
    return {str(name): str(value) for one in told for name, value in one.items()}


async def _ahead_s(redis: Redis, clock: Clock) -> float:
    """By how much the server's clock is ahead of ours, the way there and back halved."""
    before = clock.now()
    seconds, micros = await redis.time()
    after = clock.now()
    return seconds + micros / 1e6 - (before.timestamp() + after.timestamp()) / 2


async def _parked_in(redis: Redis, keys: Keys) -> dict[tuple[str, str], int]:
    """How much is parked, by TR and group. By the keys, since a group that is gone is listed nowhere."""
    found = {}
    async for key in redis.scan_iter(match="*:parked:*", count=PAGE, _type="STREAM"):
        for tr in CATALOGUE:
            head = keys.of(tr.code, "parked", "")
            if key.startswith(head):
                found[tr.code, key.removeprefix(head)] = await redis.xlen(key)
    return {place: count for place, count in sorted(found.items()) if count}


async def _stream_bytes(redis: Redis, keys: Keys) -> int:
    """What the streams hold together, those of reports outside the plan as well."""
    sizes = [await redis.memory_usage(keys.of(tr.code, part)) for tr in CATALOGUE for part in STREAMS]
    return sum(size or 0 for size in sizes)


def _disk(what: str, path: Path) -> Disk:
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return Disk(what, path, shutil.disk_usage(there).free)
