"""ka10101 goes in, market by market; the list of sectors comes out, its file, and news of it for the streams.

The surprises: the list is no report of the plan, but it is declared and read like one, through the same gate and token;
and what a stream was last told of it stands in the state of one target beside that target's elements, written by the
same script as the entry, so a difference is told once, whoever leads and wherever it was interrupted.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from poller.broker import Broker
from poller.clock import Clock
from poller.commit import Commit, Draft, Known, iso, state_of, unchanged
from poller.contract import NOTICE_TYPE, dumps
from poller.diff import missing_rows
from poller.errors import BrokerError, NotWhole
from poller.gate import Deadline
from poller.keyring import KeyRing
from poller.rows import Page, read_answer
from poller.sectors import BUILT_IN, SectorList, market_of, use
from poller.session import INDEX_HOURS, Calendar, Session
from poller.trs.base import TR, Keyed, Row, Target
from poller.trs.fields import Code, Text
from poller.trs.requests import MARKET_OF_SECTOR, SECTOR

FILE_NAME = "sectors.json"
SUBJECT = "sectors"
"""Of the entries that tell of the list, and where a target's state has what was told."""

MAX_AGE = timedelta(days=7)
LATEST = timedelta(days=8)
"""A week old, it is read again when the market is shut; at this age at any hour."""

LOOK_EVERY_S = 5.0
RETRY_S = 3600.0
AFTER_ALL_OTHERS = Deadline(math.inf)


class ListedSector(Row):
    """One sector as the broker lists it. Alone among the answers its elements are in camelCase."""

    market = Text("marketCode", "시장구분코드")
    sector_code = Code("code", "업종코드")
    sector_name = Text("name", "업종명")
    group = Text("group", "그룹")


SECTOR_TABLE = Keyed("sectors", ListedSector, rows_at="list", key="sector_code", required=("sector_name",))
SECTOR_LIST = TR(
    code="ka10101",
    name="업종코드 리스트",
    path="/api/dostk/stkinfo",
    request=(MARKET_OF_SECTOR,),
    tables=(SECTOR_TABLE,),
    moves=INDEX_HOURS,
    revision=1,
    max_pages=3,
)


async def fetch_sectors(broker: Broker | KeyRing, before: SectorList, now: datetime) -> SectorList:
    """The list of every market as the broker has it now.

    Raises TryLater, NotWhole or GiveUp; NotWhole as well where a list lost so many that it is hardly true.
    """
    markets = {}
    for market in MARKET_OF_SECTOR.values:
        target = SECTOR_LIST.target({MARKET_OF_SECTOR.name: market})
        answer = await broker.fetch(target, deadline=AFTER_ALL_OTHERS)
        markets[market] = names_in(target, answer.pages)
        _check_loss(target, before, markets[market])
    return SectorList(markets, now)


def names_in(target: Target, pages: Iterable[Page]) -> dict[str, str]:
    """Code -> name in an answer, without what is no sector of that market. Raises NotWhole if that leaves nothing."""
    market, names, odd = target.request[MARKET_OF_SECTOR.name], dict[str, str](), dict[str, object]()
    for code, row in read_answer(target, tuple(pages)).rows[SECTOR_TABLE.name]:
        if market_of(code) == market and len(code) == 3 and code.isdigit():
            names[code] = str(row["sector_name"])
        else:
            odd[code] = row["sector_name"]
    if odd:
        structlog.get_logger("poller").warning("sectors.odd", target=str(target), left_out=odd)
    if not names:
        raise NotWhole(f"{target}: no sector in the list")
    return names


def _check_loss(target: Target, before: SectorList, names: dict[str, str]) -> None:
    """Against what the broker itself said before; the built-in list is too old to hold against it."""
    if before.read_at is None:
        return
    known = before.markets.get(target.request[MARKET_OF_SECTOR.name], {})
    missing = missing_rows(SECTOR_TABLE, {code: {} for code in known}, {code: {} for code in names})
    if missing:
        told = f"{len(missing)} of {len(known)} sectors are gone from the list, which is hardly true"
        raise NotWhole(f"{target}: {told}; if it is, delete {FILE_NAME} in [data] dir")


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    read_at: AwareDatetime
    markets: dict[str, dict[str, str]]


def load_sectors(data_dir: Path) -> SectorList:
    """The list that was last read from the broker, or the built-in one where there is none that can be used."""
    path = data_dir / FILE_NAME
    try:
        stored = _Stored.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return BUILT_IN
    except (OSError, ValidationError) as error:
        why = f"{path} cannot be used ({type(error).__name__}): the built-in list serves"
        structlog.get_logger("poller").warning("sectors.unreadable", why=why)
        return BUILT_IN
    return SectorList({**BUILT_IN.markets, **stored.markets}, stored.read_at)


def save_sectors(data_dir: Path, sectors: SectorList) -> None:
    """Keep a list that was read, all of it or nothing. Raises OSError."""
    read_at = iso(sectors.read_at) if sectors.read_at else None
    data_dir.mkdir(parents=True, exist_ok=True)
    temporary = data_dir / f".{FILE_NAME}.{os.getpid()}"
    temporary.write_text(dumps({"read_at": read_at, "markets": sectors.markets}), "utf-8")
    temporary.replace(data_dir / FILE_NAME)


def is_due(sectors: SectorList, now: datetime, calendar: Calendar) -> bool:
    """Whether to read the list again: never read, or a week old and the market shut, or older still."""
    if sectors.read_at is None:
        return True
    age = now - sectors.read_at
    shut = calendar.session_at(now) == "closed"
    return age >= (MAX_AGE if shut else LATEST)


class SectorKeeper:
    """Reads the list once a week while this poller leads, keeps it in its file and tells `hear`."""

    def __init__(
        self,
        broker: Broker | KeyRing,
        data_dir: Path,
        clock: Clock,
        calendar: Calendar,
        hear: Callable[[SectorList], None],
    ) -> None:
        self._broker, self._data_dir, self._clock, self._calendar, self._hear = (
            broker,
            data_dir,
            clock,
            calendar,
            hear,
        )
        self._not_before_s = -math.inf
        self._log = structlog.get_logger("poller")

    async def run(self, stop: asyncio.Event) -> None:
        """Look every few seconds whether the list is due. Trouble is only logged: an old list serves as well."""
        while not await self._clock.wait(stop, LOOK_EVERY_S):
            before = load_sectors(self._data_dir)
            wanted = self._broker.may_send() and self._clock.monotonic_s() >= self._not_before_s
            if wanted and is_due(before, self._clock.now(), self._calendar):
                await self._read(before)

    async def _read(self, before: SectorList) -> None:
        self._not_before_s = self._clock.monotonic_s() + RETRY_S
        try:
            sectors = await fetch_sectors(self._broker, before, self._clock.now())
            save_sectors(self._data_dir, sectors)
        except (BrokerError, OSError) as error:
            self._log.warning("sectors.failed", error=str(error), why="the list of before serves; an hour later again")
            return
        except Exception:  # noqa: BLE001 -- a list of names never stops the polling
            self._log.exception("sectors.crashed")
            return
        use(sectors)
        came, went = _differences(before, sectors)
        self._log.info("sectors.read", sectors=len(sectors.names), came=came, went=went)
        self._hear(sectors)


def _spelt(sectors: SectorList, market: str) -> list[str]:
    return [f"{code} {name}" for code, name in sorted(sectors.markets.get(market, {}).items())]


def _differences(before: SectorList, after: SectorList) -> tuple[list[str], list[str]]:
    old, new = ({one for market in listed.markets for one in _spelt(listed, market)} for listed in (before, after))
    return sorted(new - old), sorted(old - new)


class SectorNews:
    """Which targets of a plan carry the news of the list: one of each TR and market that is asked sector by sector.

    Reports of a whole market carry none: there a new sector is a row that is added.
    """

    def __init__(self) -> None:
        self._sectors: SectorList | None = None
        self._carriers: dict[tuple[str, str], Target] = {}
        self._told: set[tuple[str, str]] = set()

    def plan(self, targets: Iterable[Target]) -> None:
        """The targets that are polled from now on."""
        self._carriers = {}
        for target in sorted(targets, key=str):
            if SECTOR in target.tr.request:
                self._carriers.setdefault(_told_in(target), target)

    def hear(self, sectors: SectorList) -> None:
        """The list was read: whoever carries the news looks for differences with what its stream was told."""
        self._sectors, self._told = sectors, set()

    def untold(self, target: Target) -> SectorList | None:
        """The list, if this target has yet to compare it with what was told."""
        if self._sectors is None or SECTOR not in target.tr.request:
            return None
        part = _told_in(target)
        return self._sectors if part not in self._told and self._carriers.get(part) == target else None

    def told(self, target: Target) -> None:
        """The target has compared, and told what differs."""
        self._told.add(_told_in(target))


def _told_in(target: Target) -> tuple[str, str]:
    return target.tr.code, target.request[MARKET_OF_SECTOR.name]


def sector_commit(target: Target, known: Known, sectors: SectorList, session: Session, epoch: int) -> Commit | None:
    """What to write where the list of the target's market differs from what was last told; None where it does not.

    The first time it is compared with the built-in list, as elements are with their declaration. Rows, digest and the
    last good poll, whose time the entry bears, stay as they are; the version moves on by one.
    """
    if known.last_good is None or known.trading_day is None:
        return None
    market = target.request[MARKET_OF_SECTOR.name]
    now_listed = _spelt(sectors, market)
    old, new = set(known.elements.get(SUBJECT) or _spelt(BUILT_IN, market)), set(now_listed)
    if old == new:
        return None
    after = replace(known, version=known.version + 1, elements={**known.elements, SUBJECT: now_listed})
    data = {
        "tr": target.tr.code,
        "target": target.request,
        "label": f"{MARKET_OF_SECTOR.values[market]} 업종 목록",
        "appeared": {SUBJECT: sorted(new - old)} if new - old else {},
        "vanished": {SUBJECT: sorted(old - new)} if old - new else {},
        "observed_from": None,
        "observed_at": iso(known.last_good),
        "trading_day": known.trading_day.isoformat(),
        "session": session,
        "epoch": epoch,
        "version": after.version,
    }
    return replace(
        unchanged(target, known, known.last_good, epoch),
        version=after.version,
        drafts=(Draft(NOTICE_TYPE + "shape", SUBJECT, dumps(data)),),
        state=state_of(after),
        known=after,
    )
