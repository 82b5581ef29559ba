"""What a declaration of a TR has to say: request, tables, rows, keys, hours. The machinery asks for nothing else.

Pure: a seventh TR is one file in this folder; if it needed an `if` elsewhere, a field would be missing here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from poller.session import Moves
from poller.trs.fields import Field
from poller.trs.guards import Guard

Request = Mapping[str, str]


class BadRequest(ValueError):
    """Request values the broker would refuse, or answer with something else. The message says what to write."""


class Row:
    """A kind of row: its class attributes are the fields, in the order in which they appear everywhere."""

    fields: ClassVar[tuple[Field, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.fields = tuple(
            value for base in reversed(cls.__mro__) for value in vars(base).values() if isinstance(value, Field)
        )


@dataclass(frozen=True)
class Table:
    """One part of an answer with its own row type.

    `key` and `label` name fields: what identifies a row, and what a person calls it. `headline` names the fields a
    person wants to see first. `required` fields without a value mean that the answer is not whole. A row that fails
    one of the `guards` is marked as suspect, and stored and published all the same.
    """

    name: str
    row: type[Row]
    rows_at: str | None = None
    key: str | None = None
    label: str | None = None
    headline: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    window: int | None = None
    guards: tuple[Guard, ...] = ()

    mode: ClassVar[Literal["document", "keyed", "append"]]

    def fields(self, request: Request) -> tuple[Field, ...]:
        """The fields of the rows that this request brings, under the names that it gives them."""
        return tuple(declared.for_request(request) for declared in self.row.fields)


class Document(Table):
    """One row, made of the answer's own elements; its key is `-`."""

    mode = "document"


class Keyed(Table):
    """Rows that come, change and go, each known by its key."""

    mode = "keyed"


@dataclass(frozen=True)
class Append(Table):
    """A sliding window or growing list, newest first: new rows are appended, falling out of it means nothing.

    `window` is how many rows the snapshot keeps, the newest by key. `newest_is_trading_day` tells that the newest key
    is the trading day that the broker's answers belong to. Where a row is added every `row_every_s`, a page of
    `page_rows` reaches back only so far, and polls that are further apart take several.
    """

    newest_is_trading_day: bool = False
    row_every_s: float | None = None
    page_rows: int = 1

    mode = "append"


@dataclass(frozen=True)
class Element:
    """One element of a request.

    Either `values` lists what is allowed, with the Korean meaning, or `form` says it in words and `pattern` checks it.
    `hint` proposes the right value for a wrong one.
    """

    name: str
    korean: str
    values: Mapping[str, str] = field(default_factory=dict)
    form: str = ""
    pattern: str = ""
    required: bool = True
    hint: Callable[[str], str | None] = lambda given: None

    def check(self, given: object) -> str:
        """The value to send. Raises BadRequest with the right value, or the allowed ones, in its message."""
        text = str(given)
        proposal = text if self._allows(text) else self.hint(text)
        hint = f'; write {self.name} = "{proposal}"' if proposal and self._allows(proposal) else f"; {self._allowed()}"
        if not isinstance(given, str):
            raise BadRequest(f"{self.name} = {given} is not text{hint}")
        if not self._allows(text):
            raise BadRequest(f'{self.name} = "{text}" is not a {self.korean} of this TR{hint}')
        return text

    def _allows(self, text: str) -> bool:
        return text in self.values if self.values else re.fullmatch(self.pattern, text) is not None

    def _allowed(self) -> str:
        listed = ", ".join(f'"{value}" {meaning}' for value, meaning in self.values.items())
        return f"allowed: {listed or self.form}"


@dataclass(frozen=True)
class TR:
    """One report of the broker, as declared in its file.

    `moves` says when the report moves, `moves_for` when it does for a request that names another exchange.
    `complete` fills in elements that follow from others, and raises BadRequest where they contradict. `pages` is how
    many pages a whole answer usually takes, `max_pages` where a walk is given up. `revision` goes up with every change
    of fields, keys, modes or scales.
    """

    code: str
    name: str
    request: tuple[Element, ...]
    tables: tuple[Table, ...]
    moves: Moves
    revision: int
    path: str = "/api/dostk/sect"
    moves_for: Callable[[Request], Moves | None] = lambda request: None
    complete: Callable[[dict[str, object]], dict[str, object]] = dict
    pages: Callable[[Request], int] = lambda request: 1
    max_pages: int = 1
    target_label: Callable[[Request], str] = lambda request: ""

    def target(self, values: Mapping[str, object]) -> Target:
        """The target that these request values name, checked and completed.

        Raises BadRequest, naming the element, what was given and what to write.
        """
        known = {element.name: element for element in self.request}
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
                raise BadRequest(f"{self.code} has no request element {name!r}; {hint}")
        completed = self.complete(dict(values))
        missing = next(
            (element for element in self.request if element.required and element.name not in completed), None
        )
        if missing is not None:
            raise BadRequest(f"{self.code} needs {missing.name} ({missing.korean}); {missing._allowed()}")
        checked = {name: known[name].check(value) for name, value in completed.items()}
        return Target(self, tuple(sorted(checked.items())))


@dataclass(frozen=True)
class Target:
    """One set of request values for a TR. `str()` gives the name people see: `ka20003?inds_cd=001`."""

    tr: TR
    values: tuple[tuple[str, str], ...]

    @property
    def request(self) -> dict[str, str]:
        """The body to send."""
        return dict(self.values)

    @property
    def query(self) -> str:
        """The request as a sorted query string, which names the target in keys and entries."""
        return "&".join(f"{name}={value}" for name, value in self.values)

    @property
    def label(self) -> str:
        """What a person calls the target, such as its sector's name."""
        return self.tr.target_label(self.request) or self.query

    @property
    def moves(self) -> Moves:
        """When the report moves for this target."""
        return self.tr.moves_for(self.request) or self.tr.moves

    @property
    def pages(self) -> int:
        """How many pages a whole answer usually takes."""
        return self.tr.pages(self.request)

    def pages_at(self, every_s: float) -> int:
        """How many pages a poll takes so long after the last: a trail is walked back to the newest row that we have."""
        trails = [
            math.ceil((every_s / table.row_every_s + 1) / table.page_rows)
            for table in self.tr.tables
            if isinstance(table, Append) and table.row_every_s is not None
        ]
        return max([self.pages, *(min(pages, self.tr.max_pages) for pages in trails)])

    def __str__(self) -> str:
        return f"{self.tr.code}?{self.query}"

    def __hash__(self) -> int:
        return hash((self.tr.code, self.values))

    def tables(self) -> Iterator[tuple[Table, tuple[Field, ...]]]:
        """Each table with the fields this target's rows have."""
        return ((table, table.fields(self.request)) for table in self.tr.tables)
