"""The TRs we know, in one tuple; nothing is discovered by magic. And the same as plain data, for readers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from decimal import Decimal

from poller.contract import Catalogue, FieldInfo, RequestInfo, TableInfo, TrInfo
from poller.trs.base import TR, BadRequest, Element, Table
from poller.trs.fields import Field
from poller.trs.investor_flows import INVESTOR_FLOWS
from poller.trs.program_trading import PROGRAM_TRADING
from poller.trs.sector_days import SECTOR_DAYS
from poller.trs.sector_indices import SECTOR_INDICES
from poller.trs.sector_quotes import SECTOR_QUOTES
from poller.trs.sector_stocks import SECTOR_STOCKS

CATALOGUE: tuple[TR, ...] = (
    PROGRAM_TRADING,
    INVESTOR_FLOWS,
    SECTOR_QUOTES,
    SECTOR_STOCKS,
    SECTOR_INDICES,
    SECTOR_DAYS,
)


def tr_named(code: str) -> TR:
    """The TR of that code. Raises BadRequest with the nearest one we know."""
    known = {tr.code: tr for tr in CATALOGUE}
    if code not in known:
        close = difflib.get_close_matches(code, known, 1)
        raise BadRequest(f"no TR {code!r}; {f'did you mean {close[0]}?' if close else 'known: ' + ', '.join(known)}")
    return known[code]


def described() -> Catalogue:
    """Every TR as plain data, by code."""
    return {tr.code: _tr_info(tr) for tr in CATALOGUE}


def _tr_info(tr: TR) -> TrInfo:
    return TrInfo(
        tr=tr.code,
        name=tr.name,
        path=tr.path,
        request=[_request_info(element) for element in tr.request],
        tables=[_table_info(table) for table in tr.tables],
    )


def _request_info(element: Element) -> RequestInfo:
    values = dict(element.values) or element.form
    return RequestInfo(element=element.name, korean=element.korean, required=element.required, values=values)


def _table_info(table: Table) -> TableInfo:
    return TableInfo(
        table=table.name,
        mode=table.mode,
        key=[table.key] if table.key else [],
        window=table.window,
        element=table.rows_at,
        fields=[_field_info(field) for field in table.row.fields],
        headline=list(table.headline),
        guards={guard.name: guard.meaning for guard in table.guards},
    )


def _field_info(field: Field) -> FieldInfo:
    return FieldInfo(
        field=field.name,
        element=field.element,
        korean=field.korean,
        kind=field.kind,
        unit=field.unit,
        scale=_plain_scale(field.scale),
        variants=[
            {
                "when": dict(variant.when),
                "field": variant.field.name,
                "kind": variant.field.kind,
                "unit": variant.field.unit,
                "scale": _plain_scale(variant.field.scale),
            }
            for variant in field.variants
        ],
        derived=field.formula,
    )


def _plain_scale(scale: int | Decimal | None) -> int | float | None:
    return float(scale) if isinstance(scale, Decimal) else scale


def matches(info: FieldInfo, word: str) -> bool:
    """Whether a field goes by this word: its name or a variant's, its element, or a part of its Korean label."""
    names = [info.field, info.element or "", *(variant["field"] for variant in info.variants)]
    return word.lower() in [name.lower() for name in names] or _spelt(word) in _spelt(info.korean)


def _spelt(korean: str) -> str:
    """One spelling of 율 and 률: the broker's document writes 등락율 in one report and 등락률 in the others."""
    return korean.replace("율", "률")


def nearly_matches(info: FieldInfo, word: str) -> bool:
    """Whether the word is a part of one of the field's names."""
    return any(word.lower() in name.lower() for name in (info.field, info.element or ""))


def find(catalogue: Catalogue, word: str) -> Iterator[tuple[TrInfo, TableInfo, FieldInfo]]:
    """The fields that go by a word; if none does exactly, those of which it is a part."""
    everywhere = [(tr, table, info) for tr in catalogue.values() for table in tr.tables for info in table.fields]
    exact = [found for found in everywhere if matches(found[2], word)]
    return iter(exact or [found for found in everywhere if nearly_matches(found[2], word)])
