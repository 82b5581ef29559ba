"""What an alert is about goes in; a line that a person reads on a phone comes out, in Korean.

Pure. The surprise: ▲ and ▼ say on which side of its threshold the value stands, whatever the index does meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from consumers.alert.conditions import Compare, Cross, Leaf
from poller.contract import FieldInfo, TableInfo, plain

HUNDRED_MILLION = Decimal(100_000_000)
UNITS = {"KRW": "원", "shares": "주", "stocks": "종목"}
DIRECTIONS = {"limit_up": "상한", "up": "상승", "flat": "보합", "down": "하락", "limit_down": "하한"}
REASONS = {"reset": "기준을 새로 잡음", "removed": "목록에서 빠짐", "rule_changed": "규칙이 바뀜"}


def figure(value: Any, info: FieldInfo) -> str:
    """A value as people write it.

    >>> percent = FieldInfo(field="change_pct", element=None, korean="등락률", kind="percent", unit="percent",
    ...                     scale=1, variants=[])
    >>> figure(Decimal("-2.3"), percent)
    '-2.30 %'
    """
    if isinstance(value, int | Decimal):
        if info.kind == "percent":
            return f"{value:.2f} %"
        if info.unit == "points":
            return f"{value:,.2f}"
    return bound(value, info)


def bound(value: Any, info: FieldInfo) -> str:
    """A threshold, as exactly as it was given: `-2 %`, `2,600`, `1,500억`."""
    if value is None:
        return "값 없음"
    if not isinstance(value, int | Decimal):
        return DIRECTIONS.get(value, value) if info.kind == "direction" else str(value)
    number = Decimal(value)
    if info.kind == "percent":
        return f"{_grouped(number)} %"
    if info.kind == "amount" and abs(number) >= HUNDRED_MILLION:
        return f"{_grouped((number / HUNDRED_MILLION).quantize(Decimal('0.01')))}억"
    return f"{_grouped(number)}{UNITS.get(info.unit or '', '')}"


def _grouped(number: Decimal) -> str:
    return f"{Decimal(plain(number)):,f}"


def mark(value: Any, leaf: Leaf) -> str:
    """The side of the threshold that a value is on; on the threshold itself, the side it was watched from."""
    against = leaf.level if isinstance(leaf, Cross) else leaf.value
    if isinstance(value, int | Decimal) and isinstance(against, Decimal):
        if value != against:
            return "▲" if value > against else "▼"
        if (isinstance(leaf, Cross) and leaf.direction == "up") or (isinstance(leaf, Compare) and ">" in leaf.op):
            return "▲"
        if (isinstance(leaf, Cross) and leaf.direction == "down") or (isinstance(leaf, Compare) and "<" in leaf.op):
            return "▼"
    return "●"


def body(label: str, row: Mapping[str, Any], leaf: Leaf, info: FieldInfo, table: TableInfo) -> str:
    """What is so: the row's name, the value, what it was measured by, and where the row stands besides."""
    if isinstance(leaf, Cross):
        way = {"up": "상향 ", "down": "하향 ", "either": ""}[leaf.direction]
        against = f"{bound(leaf.level, info)} {way}돌파"
    else:
        against = bound(leaf.value, info)
    said = f"{label} {_name(info)} {figure(row.get(info.field), info)} (기준 {against})"
    beside = _beside(info, row, table)
    return said if beside is None else f"{said} · {_name(beside)} {figure(row[beside.field], beside)}"


def _name(info: FieldInfo) -> str:
    """The field's label; the broker calls an index's level a price, which nobody else does."""
    return (
        "지수" if info.kind == "level" and info.unit == "points" and info.korean.startswith("현재가") else info.korean
    )


def _beside(told: FieldInfo, row: Mapping[str, Any], table: TableInfo) -> FieldInfo | None:
    """What else to say: how high the row stands, or by how much it moved where that was told."""
    wanted = "percent" if told.kind == "level" else "level"
    for name in table.headline:
        info = table.info(name)
        if info and info.field == name and info.kind == wanted and row.get(name) is not None:
            return info
    return None


def firing(mark: str, body: str, at: datetime) -> str:
    """The line of an alert that begins."""
    return f"{mark} {body} · {at:%H:%M:%S}"


def resolved(body: str, at: datetime, reason: str) -> str:
    """The line of an alert that ends, with the reason unless its condition simply ended."""
    why = f" · {REASONS[reason]}" if reason in REASONS else ""
    return f"✓ 해제 {body}{why} · {at:%H:%M:%S}"
