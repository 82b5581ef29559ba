"""The document that other languages read the contract from: sound in itself, and true of what we publish."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from poller.asyncapi import asyncapi
from poller.catalogue import CATALOGUE, described
from poller.commit import Gap, Known, decide
from poller.contract import GapData, ResetData, RowData, ShapeData
from tests.builders import NOON, Answer, after, golden, recording, seen

DOCUMENT: dict[str, Any] = json.loads(json.dumps(asyncapi(described(), "sectorwire", "1.2.3")))
CODES = [tr.code for tr in CATALOGUE]


def references(part: object) -> Iterator[str]:
    """Every `$ref` of the document."""
    if isinstance(part, dict):
        yield from (value for name, value in part.items() if name == "$ref")
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def resolve(reference: str) -> Any:
    """What a `$ref` points to. Raises KeyError."""
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def check(schema: dict[str, Any], value: object) -> None:
    """Raises ValidationError where a value does not fit a schema of the document."""
    validator = jsonschema.Draft202012Validator({**DOCUMENT, **schema})
    validator.check_schema(schema)
    validator.validate(value)


def floats(value: object) -> Any:
    """A value as readers without decimals have it."""
    return json.loads(json.dumps(value, default=float))


def messages(code: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["channels"][code]["messages"]
    return found


def test_every_reference_leads_somewhere():
    found = set(references(DOCUMENT))

    assert "#/components/schemas/Entry" in found
    assert all(reference.startswith("#/") and resolve(reference) for reference in found)


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["schemas"]))
def test_every_schema_is_one(name: str):
    jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


@pytest.mark.parametrize("code", CODES)
def test_every_tr_is_a_channel_with_its_streams_key(code: str):
    channel = DOCUMENT["channels"][code]

    assert channel["address"] == f"sectorwire:{{{code}}}:changes"
    assert resolve(DOCUMENT["operations"][f"receive-{code}"]["channel"]["$ref"]) is channel
    assert {"reset", "gap", "shape"} <= channel["messages"].keys()


def test_the_prefix_and_the_version_are_the_installations():
    document = asyncapi(described(), "desk-7", "9.9.9")

    assert document["channels"]["ka20003"]["address"] == "desk-7:{ka20003}:changes"
    assert document["info"]["version"] == "9.9.9"


@pytest.mark.parametrize("code", CODES)
def test_the_recorded_rows_fit_their_schemas(code: str):
    played = recording(code)
    for table, rows in played.rows.items():
        for _, row in rows:
            check({"$ref": f"#/components/schemas/{code}.{table}"}, floats(row))


@pytest.mark.parametrize("code", CODES)
def test_a_schema_lists_every_field_with_its_label_and_unit(code: str):
    for table in described()[code].tables:
        properties = resolve(f"#/components/schemas/{code}.{table.table}")["properties"]
        for field in table.fields:
            assert field.korean in properties[field.field]["description"]
            assert (field.unit or "") in properties[field.field]["description"]
            assert all(variant["field"] in properties for variant in field.variants)


@pytest.mark.parametrize(
    ("field", "value"), [("level", "5"), ("level", 0), ("level", -5), ("direction", "sideways"), ("advancers", 1.5)]
)
def test_a_row_that_we_would_never_publish_does_not_fit(field: str, value: object):
    row = floats(recording("ka20003").rows["indices"][0][1])

    with pytest.raises(jsonschema.ValidationError):
        check({"$ref": "#/components/schemas/ka20003.indices"}, {**row, field: value})


def test_the_golden_entry_fits_the_entry_and_its_message():
    entry = floats(golden("entry.json"))

    check({"$ref": "#/components/schemas/Entry"}, entry)
    check(messages("ka20003")["indices.changed"]["payload"], entry["data"])


@pytest.mark.parametrize("code", CODES)
def test_everything_a_first_answer_publishes_has_a_message_it_fits(code: str):
    played = recording(code)
    commit = decide(played.target, Known(), seen(played.target, played.answer))

    assert commit.drafts
    for draft in commit.drafts:
        kind = draft.type.removeprefix("sectorwire.").removeprefix("row.")
        message = messages(code)[kind if kind == "reset" else f"{draft.subject.partition('/')[0]}.{kind}"]
        assert message["name"] == draft.type
        check(message["payload"], json.loads(draft.data))


def test_notices_fit_their_messages():
    played = recording("ka20003")
    answer: Answer = {**played.answer, "all_inds_idex": [{**played.answer["all_inds_idex"][0], "new_thing": "7"}]}
    gap = Gap(NOON, NOON, 3, "stopped")

    commit = decide(played.target, after(played.target, played.answer), seen(played.target, answer, gap=gap))

    for kind, draft in zip(("gap", "shape", "indices.removed", "indices.removed"), commit.drafts, strict=True):
        check(messages("ka20003")[kind]["payload"], json.loads(draft.data))


def test_the_types_read_what_the_schemas_describe():
    data = golden("entry.json")["data"]
    common = {name: data[name] for name in RowData.model_fields if name in data and name not in ("changed", "before")}

    assert RowData.model_validate(data).changed == ["level"]
    assert ResetData.model_validate({**common, "reason": "first"}).joined == {}
    assert (
        GapData.model_validate(
            {**common, "from": data["observed_from"], "to": data["observed_at"], "polls_missed": 3, "reason": "window"}
        ).from_.hour
        == 12
    )
    assert ShapeData.model_validate({**common, "appeared": {}, "vanished": {"indices": ["wght"]}}).vanished
