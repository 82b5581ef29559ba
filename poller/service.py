"""Settings go in; a connected server, a broker and a poller come out, and are closed in the right order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from poller.broker import Broker, Pair
from poller.budget import MARGIN_S, Limit
from poller.clock import Clock
from poller.contract import Keys
from poller.embedded import EmbeddedServer, NoServer
from poller.gate import Gates
from poller.grid import Timing
from poller.keyring import KeyRing
from poller.poll import Desk
from poller.quarantine import Quarantine
from poller.session import Timetable
from poller.settings import ConfigError, Secrets, Settings
from poller.store import Store, StoreDown, UnfitStore, connect
from poller.turnstile import Turnstile

OLDEST_SERVER = (7, 0)
EVICTS_NOTHING = "noeviction"
"""The one maxmemory-policy under which a full server refuses writes, instead of throwing away what it holds."""

READERS = 64


@dataclass(frozen=True)
class Bus:
    """The connected server, ours or the one that was given."""

    redis: Redis
    embedded: EmbeddedServer | None
    told: str
    url: str

    @asynccontextmanager
    async def readers(self, name: str) -> AsyncIterator[Redis]:
        """A client of their own for those who block: each holds a connection for as long as it waits."""
        client = connect(self.url, name=name, max_connections=READERS)
        try:
            yield client
        finally:
            await client.aclose()

    def revive(self) -> None:
        """See that a server of our own runs again after it was lost."""
        if self.embedded is not None:
            self.embedded.ensure()


@asynccontextmanager
async def open_bus(settings: Settings, *, unfit_too: bool = False) -> AsyncIterator[Bus]:
    """Connect to the configured server, or to one of our own; with `unfit_too` even to one that cannot be worked with.

    Raises ConfigError where there is none or it refuses us, StoreDown where it does not answer, UnfitStore where it is
    too old or throws entries away, OSError where `[data] dir` cannot be used.
    """
    async with AsyncExitStack() as stack:
        url, embedded = settings.bus.url, None
        if url is None:
            embedded = EmbeddedServer(settings.data.dir.absolute())
            try:
                await asyncio.to_thread(embedded.start)
            except NoServer as error:
                raise ConfigError(str(error)) from error
            except OSError as error:
                if error.filename is not None:  # a disk's trouble, which `main` tells with the remedy
                    raise
                raise StoreDown(str(error)) from error
            stack.push_async_callback(asyncio.to_thread, embedded.stop, wait=True)
            url = embedded.url
        redis = connect(url)
        stack.push_async_callback(redis.aclose)
        told = await _probe(redis, url, unfit_too=unfit_too)
        yield Bus(redis, embedded, told, url)


async def _probe(redis: Redis, url: str, *, unfit_too: bool) -> str:
    """What answers there, in words."""
    where = without_password(url)
    try:
        info = {**await redis.info("server"), **await redis.info("memory")}
    except (AuthenticationError, NoPermissionError) as error:
        raise ConfigError(
            f"the server at {where} wants another user or password: correct REDIS_URL or [bus] url, "
            f"redis://USER:PASSWORD@HOST ({error})"
        ) from error
    except (RedisError, OSError) as error:
        raise StoreDown(
            f"no server answers at {where}: start it, or correct REDIS_URL or [bus] url ({error})"
        ) from error
    name, version = named(info)
    policy = info.get("maxmemory_policy", EVICTS_NOTHING)  # INFO tells it even where CONFIG is forbidden
    if too_old(version) and not unfit_too:
        raise UnfitStore(f"{name} {version} at {where} is too old: sectorwire needs 7.0 or later")
    if policy != EVICTS_NOTHING and not unfit_too:
        raise UnfitStore(
            f"{name} at {where} throws entries away when it is full (maxmemory-policy {policy}): set it to "
            f"{EVICTS_NOTHING} in its configuration, or with CONFIG SET maxmemory-policy {EVICTS_NOTHING}"
        )
    return f"{name} {version} at {where}"


def named(info: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and version of a server, by its INFO. Valkey tells a Redis version as well, for old clients.

    >>> named({"redis_version": "7.2.4", "valkey_version": "9.1.2"})
    ('valkey', '9.1.2')
    """
    name = "valkey" if "valkey_version" in info else "redis"
    return name, str(info.get(f"{name}_version"))


def too_old(version: str) -> bool:
    """Whether a server lacks what we need of streams.

    >>> too_old("6.2.14"), too_old("7.0.15")
    (True, False)
    """
    return tuple(map(int, version.split(".")[:2])) < OLDEST_SERVER


def without_password(url: str) -> str:
    """The address for people: no user, no password.

    >>> without_password("redis://me:secret@127.0.0.1:6379/0")
    'redis://127.0.0.1:6379/0'
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def turnstiles(redis: Redis, prefix: str, limits: Mapping[str, Limit]) -> Callable[[str], Turnstile]:
    """Makes the slot of a limit that processes share."""
    usual = Limit(1)
    return lambda name: Turnstile(redis, Keys(prefix).slot(name), limits.get(name, usual).per_s + MARGIN_S)


def rereading(key: Secrets) -> Callable[[], Pair]:
    """Gives a key pair as its files hold it now; where they cannot be used, as they last held it."""
    log = structlog.get_logger("poller").bind(key=key.name)
    last = [key]

    def again() -> Pair:
        try:
            last[0] = key.again()
        except ConfigError as error:
            log.warning("key.unreadable", error=str(error))
        return last[0].app_key, last[0].secret_key

    return again


@asynccontextmanager
async def open_desk(
    settings: Settings,
    keys: Sequence[Secrets],
    bus: Bus,
    *,
    timetable: Timetable | None = None,
    one_by_one: bool = False,
) -> AsyncIterator[Desk]:
    """Everything a poll works with. `timetable` tells the trading day where it is not KRX's own calendar.

    Each key has limits of its own on the real server; the mock server counts them together.

    With `one_by_one` a report is asked once a second at most, by all such commands together: what is left of the real
    server's five beside a poller that takes its four. On the mock server everybody shares the one slot there is.
    """
    clock, limits = Clock(), settings.kiwoom.limits
    if one_by_one:
        limits = {name: replace(limit, requests=1) for name, limit in limits.items()}
    shared = one_by_one or "*" in limits
    calendar = settings.schedule.calendar
    always = settings.schedule.sessions == "always"
    prefix = settings.bus.prefix

    def gates() -> Gates:
        return Gates(limits, clock, turnstiles(bus.redis, prefix, limits) if shared else None)

    common = gates() if "*" in limits else None
    url = settings.kiwoom.url
    brokers = {
        key.name: Broker(
            url, key.app_key, key.secret_key, gates=common or gates(), redis=bus.redis, prefix=prefix, clock=clock
        )
        for key in keys
    }
    for key in keys:
        brokers[key.name].reread = rereading(key)
    async with KeyRing(brokers, clock, windows=settings.kiwoom.windows, patient=not one_by_one) as broker:
        yield Desk(
            broker=broker,
            store=Store(bus.redis, prefix, on_lost=bus.revive),
            timing=Timing(timetable or calendar, None if always else calendar),
            clock=clock,
            quarantine=Quarantine(settings.data.dir / "quarantine"),
        )
