"""The catalogue for people, as tables, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from poller.contract import Catalogue, FieldInfo, TableInfo, TrInfo


def as_json(tr: TrInfo) -> dict[str, object]:
    """One TR as `catalogue --json` prints it; only fields that are derived say of what."""
    content = tr.model_dump()
    for table in content["tables"]:
        for field in table["fields"]:
            if field["derived"] is None:
                del field["derived"]
    return content


def print_catalogue(console: Console, known: Catalogue) -> None:
    """Every TR with its request elements and tables, and the guards that mark a row as suspect."""
    for tr in known.values():
        console.print(f"\n[bold]{tr.tr}[/] {tr.name}  POST {tr.path}")
        for request in tr.request:
            values = request.values
            allowed = values if isinstance(values, str) else ", ".join(f"{v} {name}" for v, name in values.items())
            needed = "" if request.required else " (optional)"
            console.print(f"  {request.element} {request.korean}{needed}: {allowed}", highlight=False)
        for table in tr.tables:
            console.print(f"  [bold]{table.table}[/] ({_mode(table)})")
            console.print(fields_table(("", info) for info in table.fields))
            for name, meaning in table.guards.items():
                console.print(f"  guard {name}: {meaning}", highlight=False)


def _mode(table: TableInfo) -> str:
    key = f", key {', '.join(table.key)}" if table.key else ""
    window = f", the newest {table.window} rows" if table.window else ""
    return f"{table.mode}{key}{window}"


def fields_table(fields: Iterable[tuple[str, FieldInfo]]) -> Table:
    """Fields, each with where it is, and its variants on lines of their own."""
    grid = Table(box=None, padding=(0, 1))
    for name in ("table", "field", "element", "이름", "kind", "unit", "scale"):
        grid.add_column(name, no_wrap=name in {"table", "field", "kind"})
    for where, info in fields:
        element = info.element or f"derived: {info.derived}"
        scale = "" if info.scale is None else f"{info.scale:g}" if info.scale < 1 else f"{info.scale:,}"
        grid.add_row(where, info.field, element, info.korean, info.kind, info.unit or "", scale)
        for variant in info.variants:
            when = " ".join(f"{name}={value}" for name, value in variant["when"].items())
            scale = "" if variant["scale"] is None else f"{variant['scale']:,}"
            grid.add_row("", variant["field"], f"with {when}", "", variant["kind"], variant["unit"] or "", scale)
    return grid
