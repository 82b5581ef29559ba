"""A request and a moment go in; a small made-up answer comes out, in the form that the TR declares.

For worlds of which thousands are lived: token, limits, faults and checks are the simulator's own, but there is no
market behind them. The surprise: every TR has as many pages as its declaration says; rows come, change and go by the
clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any, ClassVar

from poller.catalogue import tr_named
from poller.simulator.answers import Page
from poller.simulator.server import Simulator
from poller.trs.base import Append, Keyed, Table
from poller.trs.fields import Field

ROWS_A_PAGE = 2
TICKS_A_PAGE = 20
OLDEST_DAY = date(2026, 10, 1)

Element = dict[str, Any]


class LightBroker(Simulator):
    """The simulator with another market behind it; `tick_s` is the time between two rows of ka20001.

    `moves_every_s` is how long a value stays what it is.
    """

    tick_s: ClassVar[int] = 10
    moves_every_s: ClassVar[int] = 15

    def _page(self, api_id: str, body: dict[str, str], position: str | None, moment: datetime) -> Page:
        tr, number = tr_named(api_id), int(position or "1")
        pages = tr.target({name: value for name, value in body.items() if value}).pages
        slot, elements, more = int(moment.timestamp()) // self.moves_every_s, Element(), number < pages
        for table in tr.tables:
            if isinstance(table, Keyed):
                elements[table.rows_at or ""] = _members(table, slot, number)
            elif isinstance(table, Append):
                elements[table.rows_at or ""], more = self._window(table, slot, number, moment)
            else:
                elements |= line(table, "-", slot)
        return Page(elements, str(number + 1) if more else None)

    def _window(self, table: Append, slot: int, number: int, moment: datetime) -> tuple[list[Element], bool]:
        """A page of rows, newest first; only the newest still moves."""
        if table.newest_is_trading_day:
            days = [moment.date() - timedelta(days=back) for back in range(6 * (number - 1), 6 * number)]
            keys = [f"{day:%Y%m%d}" for day in days if day > OLDEST_DAY]
        else:
            newest = int(moment.timestamp()) // self.tick_s - TICKS_A_PAGE * (number - 1)
            begins = [newest - back for back in range(TICKS_A_PAGE)]
            rows = [datetime.fromtimestamp(begin * self.tick_s, moment.tzinfo) for begin in begins]
            keys = [f"{row:%H%M%S}" for row in rows if row.date() == moment.date() and row.hour >= 9]
        moves = [slot if number == 1 and place == 0 else 0 for place in range(len(keys))]
        return [line(table, key, move) for key, move in zip(keys, moves, strict=True)], bool(keys)


def _members(table: Keyed, slot: int, page: int) -> list[Element]:
    """The rows of one page of a keyed table: the first moves, the last comes and goes every two minutes."""
    codes = [f"{page * 10 + place:06}" for place in range(ROWS_A_PAGE)]
    present = codes if (slot // 8 + page) % 3 else codes[:-1]
    return [line(table, code, slot if code == codes[0] else slot // 20) for code in present]


def line(table: Table, key: str, move: int) -> Element:
    """One row's elements, the same for the same move."""
    return {name: text if isinstance(text, str) else text[move % len(text)] for name, text in _texts(table, key)}


@cache
def _texts(table: Table, key: str) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """Each element's text, or, of numbers, the texts it has in turn."""
    texts: list[tuple[str, str | tuple[str, ...]]] = []
    for place, field in enumerate(table.row.fields):
        if field.element is not None:
            text = key if field.name == table.key else WORDS.get(field.kind) or _numbers(field, place)
            texts.append((field.element, text))
    return tuple(texts)


WORDS: Mapping[str, str] = {"code": "005930", "text": "이름", "direction": "2", "date": "20261101", "time": "090000"}


def _numbers(field: Field, place: int) -> tuple[str, ...] | str:
    """Of every third column thirty numbers with the broker's marks, of the others one."""
    if place % 3:
        return str(1_000 + place)
    mark = "-+"[place % 2] if field.kind in {"level", "change", "percent"} else ""
    return tuple(f"{mark}{2_000 + 7 * step + place}" for step in range(30))
