"""What a poll decided goes in; the one commit, and what is known of a target, come out of Redis.

The surprises: redis-py's default retries repeat writes, so every client here is given none, and only the commit is
repeated, by us, with an id that the script recognises; and a commit may be refused because another poller leads, or
because the server came back with an older state than it had confirmed.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, cast

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from poller.clock import pause
from poller.commit import Commit, Known, Tables, hold_of
from poller.contract import Keys, loads
from poller.trs.base import TR, Target

LEASE_S = 10.0
"""How long a leader that vanished keeps the others waiting; it is renewed at a third of this."""

RETRY_S = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)
"""Pauses before the tries of one commit."""

PASSING = ("BUSY ", "MISCONF ", "NOREPLICAS ")
"""Refusals that end without us: a script that takes long, a full disk at the server, replicas that are away."""

SCRIPTS = Path(__file__).parent


class StoreError(Exception):
    """The store did not do it. Each child says what to do."""


class StoreDown(StoreError):
    """The server does not answer: what was asked may or may not have been done. Wait, then load again."""


class StoreFull(StoreError):
    """The server is out of memory: it refuses a write before that begins."""

    def __init__(self) -> None:
        super().__init__("the server is out of memory: raise its maxmemory, or lower [bus] max_bytes and retention")


class Fenced(StoreError):
    """Another poller leads this TR, or began a new epoch since `epoch`: stop writing."""

    def __init__(self, what: object, epoch: int = 0) -> None:
        super().__init__(f"{what}: another poller leads")
        self.epoch = epoch


class Restarted(Fenced):
    """The server is not the one on which the epoch began, and may have lost what was read of it: begin a new epoch."""

    def __init__(self, what: object, epoch: int) -> None:
        StoreError.__init__(self, f"{what}: the server was started again, or is another one")
        self.epoch = epoch


class Stale(StoreError):
    """The stored version is another one than we built on: load again. Older means that the server lost its tail."""

    def __init__(self, target: Target, expected: int, stored: int) -> None:
        super().__init__(f"{target}: built on version {expected}, the server has {stored}")
        self.expected, self.stored = expected, stored


class UnfitStore(StoreError):
    """What is stored there is not ours, or newer than we are. The message says what to do."""


def connect(url: str, *, name: str = "sectorwire-poller", max_connections: int = 16) -> Redis:
    """A client whose retries, time-outs and protocol are ours, not the library's defaults (which repeat writes).

    Bytes that are not UTF-8 are read as lone surrogates, and written as what they were: one entry of another program
    must not end whoever reads the stream.

    Raises ValueError for a URL it cannot read.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=10,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=5.0,
        socket_connect_timeout=2.0,
        health_check_interval=15,
        protocol=2,
        decode_responses=True,
        encoding_errors="surrogateescape",
        client_name=name,
    )
    return Redis.from_pool(pool)  # which closes the pool with the client


@dataclass(frozen=True)
class Lead:
    """A poller's claim to lead: a token that only grows, and a nonce that tells this process from any other.

    The nonce names machine and process, so that a successor there need not wait for a dead one's lease.
    """

    token: int
    nonce: str

    def __str__(self) -> str:
        return f"{self.token}:{self.nonce}"


_ours: set[str] = set()
"""The nonces of this process: process ids repeat, in containers always, so the id alone does not tell a predecessor."""


def new_nonce() -> str:
    """Machine, process and chance: no two pollers ever share one."""
    nonce = f"{this_machine()}.{os.getpid()}.{secrets.token_hex(4)}"
    _ours.add(nonce)
    return nonce


def this_machine() -> str:
    """Where process ids mean something: a host and, on Linux, a namespace, since containers may share a host's name."""
    namespace = 0
    with suppress(OSError):
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    return f"{socket.gethostname()}.{namespace}"


def died_here(holder: str) -> bool:
    """Whether the holder of a lease was a process of this machine that is gone."""
    nonce = holder.partition(":")[2]
    machine, _, pid = nonce.rpartition(".")[0].rpartition(".")
    if machine != this_machine() or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return nonce not in _ours
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(int(pid))


def _is_zombie(pid: int) -> bool:
    """Whether a process is dead and its parent has not looked yet; where there is no /proc, nobody can tell."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"
    return False


class Store:
    """Snapshots, streams and leadership under one prefix."""

    def __init__(self, redis: Redis, prefix: str, *, on_lost: Callable[[], None] | None = None) -> None:
        self.redis, self.keys = redis, Keys(prefix)
        self.on_lost = on_lost
        self.nonce = new_nonce()
        self.rng = random.Random()  # noqa: S311 -- spreads retries, guards nothing
        self.lead: Lead | None = None
        self.is_full = False
        """Whether the server had no memory left when the lease was taken or renewed last."""
        self.epochs: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        """The latest epoch we have seen of each TR, whatever the server still knows."""
        self._scripts = {
            name: redis.register_script((SCRIPTS / f"{name}.lua").read_text("utf-8"))
            for name in ("commit", "note", "reign", "lease", "trim")
        }

    async def load(self, target: Target) -> Known:
        """What was last committed of a target.

        Raises StoreDown, or UnfitStore where the snapshot is a newer program's.
        """
        tr = target.tr.code
        state = await self._hash(self.keys.of(tr, "state", target.query))
        if int(state.get("revision") or 0) > target.tr.revision:
            raise _too_old(target.tr, state["revision"])
        rows = await self._hash(self.keys.of(tr, "snapshot", target.query))
        return known_of(target, state, rows)

    async def commit(self, commit: Commit, also: Mapping[str, str]) -> int:
        """Write one poll, all or nothing, and return the TR's `seq`. `also` are further fields of the state hash.

        A lost reply is asked again under the same commit id, which the script recognises, so nothing is published
        twice. Raises StoreDown, StoreFull, Fenced, Restarted, Stale or UnfitStore.
        """
        target = commit.target
        part = target.tr.code, target.query
        keys = [
            self.keys.of(part[0], "meta"),
            self.keys.of(part[0], "changes"),
            self.keys.of(part[0], "snapshot", part[1]),
            self.keys.of(part[0], "state", part[1]),
        ]
        arguments = _arguments(commit, str(self.lead), also)
        verdict, number = await self._insist(lambda: self._scripts["commit"](keys=keys, args=arguments))
        if verdict == "fenced":
            raise Fenced(target, commit.epoch)
        if verdict == "restarted":
            raise Restarted(target, commit.epoch)
        if verdict == "stale":
            raise Stale(target, commit.version_before, int(number))
        if verdict == "type":
            raise _foreign(keys[int(number) - 1])
        return int(number)

    async def note(self, target: Target, fields: Mapping[str, str]) -> None:
        """Write down an attempt that brought no answer, if we still lead. Raises StoreDown or Fenced."""
        tr = target.tr.code
        keys = [self.keys.of(tr, "meta"), self.keys.of(tr, "state", target.query)]
        arguments = [str(self.lead), *(text for pair in fields.items() for text in pair)]
        if await self._ask(self._scripts["note"](keys=keys, args=arguments)) == 0:
            raise Fenced(target)

    async def note_tr(self, tr: TR, fields: Mapping[str, str]) -> None:
        """Write down how a TR fares, beside its fence, if we still lead. Raises StoreDown or Fenced."""
        meta = self.keys.of(tr.code, "meta")
        arguments = [str(self.lead), *(text for pair in fields.items() for text in pair)]
        if await self._ask(self._scripts["note"](keys=[meta, meta], args=arguments)) == 0:
            raise Fenced(tr.code)

    async def note_keys(self, states: Mapping[str, str]) -> None:
        """Write down how each app key fares, in the place of what stands there. Raises StoreDown."""
        fields: dict[Any, Any] = {**states}
        async with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(self.keys.app_keys)
            pipeline.hset(self.keys.app_keys, mapping=fields)
            await self._ask(pipeline.execute())

    async def take_lead(self, trs: tuple[TR, ...], now_ms: int) -> float:
        """Try to lead; 0 if we do, else how many seconds the holder's lease still has.

        A holder that died on this machine is followed at once. Raises StoreDown, or UnfitStore where a newer program
        has led: it would read our rows, and we its, under names that mean something else.
        """
        token = 0
        for tr in trs:
            wanted = ["fence", "revision", "epoch"]
            fence, revision, epoch = await self._ask(self.redis.hmget(self.keys.of(tr.code, "meta"), wanted))
            self._latest[tr.code] = max(int(epoch or 0), self._latest.get(tr.code, 0))
            if int(revision or 0) > tr.revision:
                raise _too_old(tr, revision)
            token = max(token, int((fence or "0").partition(":")[0]))
        lead = Lead(token + 1, self.nonce)
        holder, left_ms = await self._lease(lead, replaces=str(self.lead or ""))
        if holder != str(lead) and died_here(holder):
            holder, left_ms = await self._lease(lead, replaces=holder)
        if holder != str(lead):
            return max(0.05, left_ms / 1000)
        self.lead = lead
        for tr in trs:
            await self.begin_epoch(tr, now_ms)
        return 0.0

    async def renew_lead(self) -> bool:
        """Keep the lead; False once it is another's. Raises StoreDown."""
        if self.lead is None:
            return False
        holder, _ = await self._lease(self.lead)
        return holder == str(self.lead)

    async def give_up_lead(self) -> None:
        """Let a successor follow at once; best effort, the lease runs out anyway."""
        if self.lead is not None:
            with suppress(StoreError):
                await self._lease(self.lead, life_s=0)
        self.lead = None

    async def begin_epoch(self, tr: TR, now_ms: int) -> int:
        """Put our fence into a TR and begin a new epoch there. Raises StoreDown, Fenced or UnfitStore."""
        lead = self.lead or Lead(0, self.nonce)
        script, key = self._scripts["reign"], self.keys.of(tr.code, "meta")
        # a server that lost its tail may have lost an epoch as well, and our clock may have stepped back meanwhile
        at_least = max(now_ms, self._latest.get(tr.code, 0) + 1)
        arguments = [str(lead.token), lead.nonce, str(at_least), str(tr.revision)]
        verdict, epoch = await self._insist(lambda: script(keys=[key], args=arguments))
        if verdict == "fenced":
            raise Fenced(tr.code)
        if verdict == "newer":
            raise _too_old(tr, epoch)
        if verdict == "evicts":
            raise UnfitStore(
                f"the server throws entries away when it is full (maxmemory-policy {epoch}): set it to noeviction in "
                "its configuration, or with CONFIG SET maxmemory-policy noeviction"
            )
        if verdict == "type":
            raise _foreign(key)
        self.epochs[tr.code] = self._latest[tr.code] = int(epoch)
        return int(epoch)

    async def trim(self, tr: TR, keep_from_ms: int, share: float = 1.0, *, part: str = "changes") -> tuple[int, int]:
        """Remove what no group needs and retention allows: (entries removed, bytes left). Raises StoreDown."""
        key = self.keys.of(tr.code, part)
        removed, size = await self._ask(self._scripts["trim"](keys=[key], args=[keep_from_ms, share]))
        return int(removed), int(size)

    async def _lease(self, lead: Lead, *, replaces: str = "", life_s: float = LEASE_S) -> tuple[str, int]:
        call = self._scripts["lease"](keys=[self.keys.leader], args=[str(lead), int(life_s * 1000), replaces])
        holder, left_ms, full = await self._ask(call)
        self.is_full = bool(full)
        return str(holder), int(left_ms)

    async def _hash(self, key: str) -> dict[str, str]:
        try:
            return dict(await self._ask(self.redis.hgetall(key)))
        except UnfitStore as error:
            if "WRONGTYPE" in str(error):
                raise _foreign(key) from error
            raise

    async def _ask(self, call: Awaitable[Any]) -> Any:  # whatever the command answers
        """One command, one try."""
        try:
            return await call
        except AuthenticationError as error:  # redis-py counts it among the connection errors
            raise UnfitStore(f"the server refused us ({error}): check user and password in REDIS_URL") from error
        except ResponseError as error:
            if isinstance(error, ReadOnlyError):  # it was the primary: a new connection may find the one that is
                with suppress(RedisConnectionError, OSError):
                    await self.redis.connection_pool.disconnect(inuse_connections=False)
            raise _refused(error) from error
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StoreDown(f"the server does not answer: {error}") from error

    async def _insist(self, call: Callable[[], Awaitable[Any]]) -> Any:  # whatever the script answers
        """A script that recognises a repeat, tried until it answers or the pauses run out."""
        for pause_s in RETRY_S:
            await pause(pause_s * self.rng.uniform(0.5, 1.0))
            try:
                return await self._ask(call())
            except StoreDown as error:
                lost = error
                await self.revive()
        raise lost

    async def revive(self) -> None:
        """Let whoever owns the server start it again; silence if that fails, the next try tells."""
        if self.on_lost is not None:
            with suppress(Exception):
                await asyncio.to_thread(self.on_lost)


def _too_old(tr: TR, revision: str) -> UnfitStore:
    return UnfitStore(
        f"{tr.code} was written with revision {revision} of its declaration, this program knows {tr.revision}: "
        f"upgrade sectorwire"
    )


def _foreign(key: str) -> UnfitStore:
    return UnfitStore(f"the key {key} holds what is not ours: rename or delete it, or set another [bus] prefix")


def _refused(error: ResponseError) -> StoreError:
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return StoreFull()
    if isinstance(error, (ReadOnlyError, ClusterDownError, TryAgainError)) or text.startswith(PASSING):
        return StoreDown(f"the server does not do it now: {text}")
    return UnfitStore(f"the server refused: {text}")


def _arguments(commit: Commit, fence: str, also: Mapping[str, str]) -> list[str]:
    state = [text for pair in {**commit.state, **also}.items() for text in pair]
    rows = [text for pair in commit.set_rows.items() for text in pair]
    entries = [text for draft in commit.drafts for text in (draft.type, draft.subject, draft.data)]
    lists = [text for listed in (state, rows, commit.delete_rows, entries) for text in (str(len(listed)), *listed)]
    return [
        fence,
        str(commit.epoch),
        str(commit.version_before),
        str(commit.version),
        commit.commit_id,
        f"{commit.target}#{commit.epoch}.{commit.version}.",
        f"/kiwoom/{commit.target}",
        commit.state["last_good"],
        "1" if commit.clear else "0",
        *lists,
    ]


UNKNOWN_SHAPE = -1
"""The revision of a snapshot that this program cannot read: no declaration's, so the next answer is a reset."""


def known_of(target: Target, state: Mapping[str, str], rows: Mapping[str, str]) -> Known:
    """What the state hash and the snapshot hash of a target say.

    A snapshot whose rows do not have this declaration's fields is not half-read: it counts as another declaration's.
    """
    revision = int(state.get("revision") or 0)
    tables = _tables_of(target, rows) if revision == target.tr.revision else {}
    if tables is None:
        structlog.get_logger("poller").warning("snapshot.unreadable", target=str(target), rows=len(rows))
        tables, revision = {}, UNKNOWN_SHAPE
    return Known(
        version=int(state.get("version") or 0),
        revision=revision,
        trading_day=date.fromisoformat(state["trading_day"]) if state.get("trading_day") else None,
        digest=state.get("digest", ""),
        last_good=datetime.fromisoformat(state["last_good"]) if state.get("last_good") else None,
        hold=hold_of(state.get("hold", "")),
        elements=cast("dict[str, list[str]]", loads(state.get("elements") or "{}")),
        rows=tables,
    )


def _tables_of(target: Target, rows: Mapping[str, str]) -> Tables | None:
    """The rows by table and key, or None where they are not of this declaration."""
    names = {table.name: {field.name for field in fields} for table, fields in target.tables()}
    tables: Tables = {}
    for name, text in rows.items():
        table, _, key = name.partition("/")
        try:
            row = loads(text)
        except ValueError:
            return None
        if not isinstance(row, dict) or row.keys() - {"extra"} != names.get(table):
            return None
        tables.setdefault(table, {})[key] = row
    return tables
