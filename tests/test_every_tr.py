"""The battery: what holds for one TR holds for every TR of the catalogue, a seventh one included.

Each TR has a recording, `recordings/<code>.json`: what was asked, what the broker's document says came, and the rows
it stands for. `golden/` holds the vocabulary, and the revisions that went with the declarations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller import commands
from poller.catalogue import CATALOGUE, described, find, tr_named
from poller.contract import RESERVED, FieldInfo, TableInfo, dumps
from poller.diff import diff, settle
from poller.trs.base import TR, Append, Document, Keyed
from tests.builders import TESTS, golden, read, recording

CODES = [tr.code for tr in CATALOGUE]
REVISIONS = TESTS / "golden" / "revisions.json"


def tables() -> Iterator[tuple[str, TableInfo]]:
    """Every table of the catalogue under the name `ka20003.indices`."""
    for tr in described().values():
        for table in tr.tables:
            yield f"{tr.tr}.{table.table}", table


def names(field: FieldInfo) -> list[str]:
    return [field.field, *(variant["field"] for variant in field.variants)]


def test_every_tr_has_a_recording_and_every_recording_a_tr() -> None:
    assert sorted(path.stem for path in (TESTS / "recordings").iterdir()) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_recording_is_read_as_exactly_its_rows(code: str) -> None:
    """Compared as canonical JSON, so that order of fields, spelling of numbers and nulls are the contract's."""
    played = recording(code)

    reading = read(played.target, played.answer)

    assert {table: [(key, dumps(row)) for key, row in rows] for table, rows in reading.rows.items()} == {
        table: [(key, dumps(row)) for key, row in rows] for table, rows in played.rows.items()
    }
    assert not reading.unreadable
    assert not reading.saturated
    assert not any("extra" in row for rows in reading.rows.values() for _, row in rows)


@pytest.mark.parametrize("code", CODES)
def test_the_same_answer_twice_is_no_news(code: str) -> None:
    played = recording(code)
    for table in played.target.tr.tables:
        before = settle(table, {}, read(played.target, played.answer).rows[table.name])

        again = settle(table, before, read(played.target, played.answer).rows[table.name])

        assert again == before
        assert diff(table, before, again) == []


@pytest.mark.parametrize("code", CODES)
def test_every_row_has_its_key_and_every_key_its_field(code: str) -> None:
    played = recording(code)
    for table in played.target.tr.tables:
        keys = [key for key, _ in played.rows[table.name]]
        if isinstance(table, Document):
            assert keys == ["-"]
            assert table.key is None
        else:
            assert keys
            assert all(keys)
            assert table.key in [field.name for field in table.row.fields]


@pytest.mark.parametrize("code", CODES)
def test_what_a_table_names_is_among_its_fields(code: str) -> None:
    """Label, headline and required fields; a headline may be a variant's only through the field it varies."""
    for table in tr_named(code).tables:
        known = {field.name for field in table.row.fields}

        assert {*table.headline, *table.required, *filter(None, [table.label, table.key])} <= known


@pytest.mark.parametrize("code", CODES)
def test_only_append_tables_have_a_window(code: str) -> None:
    for table in tr_named(code).tables:
        assert (table.window is not None) == isinstance(table, Append)
        assert isinstance(table, Document | Keyed | Append)


@pytest.mark.parametrize("code", CODES)
def test_a_recorded_request_names_its_target(code: str) -> None:
    played = recording(code)

    assert played.target.request == played.request
    assert str(played.target) == f"{code}?" + "&".join(f"{n}={v}" for n, v in sorted(played.request.items()))
    assert played.target.label


@pytest.mark.parametrize(("name", "table"), list(tables()), ids=lambda given: given if isinstance(given, str) else "")
def test_no_field_is_called_like_a_column_beside_it(name: str, table: TableInfo) -> None:
    """In the archive the envelope's fields and the target's elements are columns of the same table."""
    requested = {element.name for tr in CATALOGUE for element in tr.request}
    mine = [own for field in table.fields for own in names(field)]

    assert not set(mine) & (RESERVED | requested)
    assert len(set(mine)) == len(mine)


def test_the_catalogue_says_what_the_vocabulary_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Names, elements, Korean labels, kinds, units and scales, in the order of the broker's document."""
    commands.catalogue(argparse.Namespace(json=True, word=None))

    assert vocabulary(json.loads(capsys.readouterr().out, parse_float=Decimal)) == golden("catalogue.json")


def vocabulary(catalogue: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the vocabulary fixes of a TR: not its path and windows, nor what derived fields are called in Korean."""
    return [
        {
            "tr": tr["tr"],
            "name": tr["name"],
            "request": [
                {
                    "element": element["element"],
                    "korean": element["korean"],
                    "values": list(element["values"]) if isinstance(element["values"], dict) else None,
                }
                for element in tr["request"]
            ],
            "tables": [
                {
                    **{name: table[name] for name in ("table", "mode", "key", "element")},
                    "fields": [
                        {n: v for n, v in field.items() if n != "derived" and (field["element"] or n != "korean")}
                        for field in table["fields"]
                    ],
                }
                for table in tr["tables"]
            ],
        }
        for tr in catalogue
    ]


def test_only_fields_without_an_element_are_derived_and_say_of_what() -> None:
    for _, table in tables():
        for field in table.fields:
            assert (field.element is None) == bool(field.derived)


def test_one_concept_has_one_name_and_one_kind_in_every_table() -> None:
    kinds: dict[str, set[str]] = {}
    where: dict[str, list[str]] = {}
    for name, table in tables():
        for field in table.fields:
            kinds.setdefault(field.field, set()).add(field.kind)
            where.setdefault(field.field, []).append(name)

    assert {field: found for field, found in kinds.items() if len(found) > 1} == {}
    for word, shared in golden("shared_words.json").items():
        assert kinds[word] == {shared["kind"]}
        assert where[word] == shared["where"]


@pytest.mark.parametrize("word", ["flu_rt", "등락률", "등락율", "change_pct"])
def test_a_field_is_found_by_each_of_its_names(word: str) -> None:
    found = {f"{tr.tr}.{table.table}" for tr, table, info in find(described(), word) if info.field == "change_pct"}

    assert {"ka10051.flows", "ka20003.indices"} <= found


def test_quantities_are_exact() -> None:
    """A binary float would make 0.1 + 0.2 news."""
    for code in CODES:
        played = recording(code)
        for rows in read(played.target, played.answer).rows.values():
            assert not any(isinstance(value, float) for _, row in rows for value in row.values())


# --- repeated keys: ka20002's own example lists one code five times


def test_repeated_keys_lose_nothing() -> None:
    played = recording("ka20002")
    (table,) = played.target.tr.tables

    settled = settle(table, {}, read(played.target, played.answer).rows["stocks"])

    assert sorted(settled) == ["005930", "005930#2", "005930#3", "005930#4", "005930#5"]
    assert sorted(map(dumps, settled.values())) == sorted(dumps(row) for _, row in played.rows["stocks"])
    in_order = [dumps(settled[key]) for key in sorted(settled)]
    assert in_order == sorted(in_order)


@settings(max_examples=60)
@given(st.permutations(range(5)), st.permutations(range(5)))
def test_repeated_keys_never_flap_in_whatever_order_they_come(first: list[int], second: list[int]) -> None:
    played = recording("ka20002")
    (table,) = played.target.tr.tables
    lines = read(played.target, played.answer).rows["stocks"]

    before = settle(table, {}, [lines[place] for place in first])

    assert diff(table, before, settle(table, before, [lines[place] for place in second])) == []
    assert before == settle(table, {}, lines)


# --- the revision guard


def fingerprint(tr: TR) -> str:
    """A hash over all that makes a stored row differ: fields, keys, modes, scales and windows."""
    told = [
        {
            "table": table.table,
            "mode": table.mode,
            "key": table.key,
            "window": table.window,
            "fields": [field.model_dump(exclude={"korean"}) for field in table.fields],
        }
        for table in described()[tr.code].tables
    ]
    return hashlib.sha256(json.dumps(told, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def revisions() -> dict[str, dict[str, Any]]:
    return {tr.code: {"revision": tr.revision, "fingerprint": fingerprint(tr)} for tr in CATALOGUE}


@pytest.mark.parametrize("code", CODES)
def test_a_changed_declaration_has_a_new_revision(code: str) -> None:
    """The revision is how a poller learns that what it stored was made under another declaration."""
    known, now = json.loads(REVISIONS.read_text("utf-8")).get(code), revisions()[code]

    assert now == known, (
        f"{code}: fields, keys, modes, scales or windows changed. Raise `revision` in its file under poller/trs, then "
        "run `python -m tests.test_every_tr` to write tests/golden/revisions.json anew"
    )


def write_revisions() -> str | None:
    """Write the golden file anew; what is wrong where a declaration changed under its old revision."""
    known = json.loads(REVISIONS.read_text("utf-8")) if REVISIONS.exists() else {}
    for code, now in revisions().items():
        was = known.get(code, {"revision": 0, "fingerprint": ""})
        if now["fingerprint"] != was["fingerprint"] and now["revision"] <= was["revision"]:
            return f"{code} changed: raise its revision above {was['revision']} first"
    lines = ",\n".join(f'  "{code}": {json.dumps(now)}' for code, now in revisions().items())
    REVISIONS.write_text(f"{{\n{lines}\n}}\n", "utf-8")
    return None


def test_every_revision_is_a_number_from_one_on() -> None:
    assert all(tr.revision >= 1 for tr in CATALOGUE)
    assert all(re.fullmatch(r"ka[0-9]{5}", tr.code) for tr in CATALOGUE)


if __name__ == "__main__":
    sys.exit(write_revisions())
