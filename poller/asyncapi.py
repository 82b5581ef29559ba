"""The contract as an AsyncAPI 3 document, generated from the types and the catalogue, so it cannot drift from them."""

from __future__ import annotations

from typing import Any

from poller.contract import Catalogue, Entry, FieldInfo, GapData, Keys, ResetData, RowData, ShapeData, TableInfo, TrInfo

JSON_TYPES: dict[str, dict[str, Any]] = {
    "code": {"type": "string"},
    "text": {"type": "string"},
    "direction": {"enum": ["limit_up", "up", "flat", "limit_down", "down"]},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}:[0-9]{2}$"},
    "count": {"type": "integer"},
    "level": {"type": "number", "exclusiveMinimum": 0},
}


def asyncapi(catalogue: Catalogue, prefix: str, version: str) -> dict[str, Any]:
    """The whole document, as plain data."""
    schemas: dict[str, Any] = {}
    for model in (Entry, RowData, ResetData, GapData, ShapeData):
        own = model.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
        schemas |= own.pop("$defs", {}) | {model.__name__: own}
    schemas |= {_row_name(tr, table): _row_schema(table) for tr in catalogue.values() for table in tr.tables}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "sectorwire",
            "version": version,
            "description": "Changes in Kiwoom's six sector reports: one Redis stream per TR, one CloudEvents 1.0 event "
            "per entry, its attributes as fields, `data` as JSON text.",
        },
        "defaultContentType": "application/json",
        "channels": {tr.tr: _channel(tr, prefix) for tr in catalogue.values()},
        "operations": {
            f"receive-{code}": {"action": "send", "channel": {"$ref": f"#/channels/{code}"}} for code in catalogue
        },
        "components": {"schemas": schemas},
    }


def _channel(tr: TrInfo, prefix: str) -> dict[str, Any]:
    rows = {f"{table.table}.{kind}": _message(tr, table, kind) for table in tr.tables for kind in _kinds(table)}
    notices = {
        name: {"name": f"sectorwire.{name}", "headers": _ref("Entry"), "payload": _ref(model)}
        for name, model in (("reset", "ResetData"), ("gap", "GapData"), ("shape", "ShapeData"))
    }
    return {"address": Keys(prefix).of(tr.tr, "changes"), "title": tr.name, "messages": rows | notices}


def _kinds(table: TableInfo) -> tuple[str, ...]:
    return {
        "document": ("baseline", "changed"),
        "keyed": ("baseline", "added", "changed", "removed"),
        "append": ("baseline", "appended", "changed"),
    }[table.mode]


def _message(tr: TrInfo, table: TableInfo, kind: str) -> dict[str, Any]:
    row = {"properties": {"after": {"type": "null"} if kind == "removed" else _ref(_row_name(tr, table))}}
    payload = {"allOf": [_ref("RowData"), row]}
    return {"name": f"sectorwire.row.{kind}", "headers": _ref("Entry"), "payload": payload}


def _row_schema(table: TableInfo) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for field in table.fields:
        properties[field.field] = _property(field, field.kind, field.unit)
        for variant in field.variants:
            properties[variant["field"]] = _property(field, variant["kind"], variant["unit"])
    extra = {"type": "object", "description": "elements not in the catalogue, as sent; never compared"}
    return {"type": "object", "properties": {**properties, "extra": extra}}


def _property(field: FieldInfo, kind: str, unit: str | None) -> dict[str, Any]:
    plain = JSON_TYPES.get(kind, {"type": "number"})
    source = f"element {field.element}" if field.element else f"derived: {field.derived}"
    told = f"{field.korean}; {kind}{f' in {unit}' if unit else ''}; {source}"
    return {"anyOf": [plain, {"type": "null"}], "description": told}


def _row_name(tr: TrInfo, table: TableInfo) -> str:
    return f"{tr.tr}.{table.table}"


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
