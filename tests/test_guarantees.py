"""docs/guarantees.md names tests that exist and covers every promise; and the one failure that no other test has."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from poller.catalogue import described
from poller.contract import decode, fold, loads
from poller.schedule import Poller
from poller.status import read_status
from poller.store import connect
from tests.conftest import FastClock, desk_for
from tests.servers import RealServer, client
from tests.test_schedule import KEEP_ALL, KOSPI, OK, Office, run_until

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]*)`", PAGE)))


def names_in(path: Path) -> set[str]:
    """The tests of a file as pytest names them, `file::name` or `file::Class::name`."""
    file = path.relative_to(ROOT).as_posix()

    def named(body: list[ast.stmt], within: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                yield from named(node.body, f"{within}::{node.name}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{within}::{node.name}"

    return set(named(ast.parse(path.read_text("utf-8")).body, file))


EXISTING = {name for path in (ROOT / "tests").glob("test_*.py") for name in names_in(path)}


def flat(text: str) -> str:
    return " ".join(text.split())


def promises() -> list[str]:
    """What each point of the README's list says before its first full stop, colon or semicolon."""
    section = (ROOT / "README.md").read_text("utf-8").split("## What is promised, and what is not")[1]
    promised = section.split("\nNot promised:")[0]
    points = re.findall(r"^\* (.*?)(?=^\* |\Z)", promised, re.MULTILINE | re.DOTALL)
    return [re.split(r"[.:;](?:\s|$)", flat(point))[0] for point in points]


def test_the_page_names_tests():
    assert len(NAMED) > 50


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_the_page_names_exists(name: str):
    assert name in EXISTING


@pytest.mark.parametrize("promise", promises())
def test_every_promise_of_the_readme_is_in_the_page_with_a_test(promise: str):
    row = next((line for line in PAGE.splitlines() if line.startswith(f"| {promise} |")), None)

    assert row is not None, f"docs/guarantees.md has no row | {promise} | … |"
    assert "::" in row


def test_every_failure_has_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.endswith("| shown by |")]

    assert [row for row in rows if "`tests/" not in row] == []


async def test_a_server_that_lost_its_tail_is_answered_with_a_reset_in_a_new_epoch(tmp_path: Path):
    """The append-only file ends after the second commit, though five were confirmed: a crash of the machine."""
    (tmp_path / "server").mkdir()
    with RealServer(tmp_path / "server", appendfsync="always") as server:
        confirmed: list[Any] = []
        kept_bytes: list[int] = []

        def losing_the_tail_at_the_sixth(asked: int) -> httpx.Response:
            (log,) = (tmp_path / "server").glob("**/*.incr.aof")
            if asked == 3:
                kept_bytes.append(log.stat().st_size)
            if asked == 6:
                with client(server.url) as reader:
                    confirmed.extend(reader.xrange("test:{ka20003}:changes"))
                server.kill()
                os.truncate(log, kept_bytes[0])
                server.start()
            row = {"stk_cd": "001", "stk_nm": "종합", "cur_prc": str(1000 + asked)}
            return httpx.Response(200, json={**OK, "all_inds_idex": [row]})

        office, redis = Office(), connect(server.url)
        office.special[str(KOSPI.target)] = losing_the_tail_at_the_sixth
        async with desk_for(redis, office, FastClock(), tmp_path) as desk:
            await run_until(Poller([KOSPI], desk, KEEP_ALL), lambda: office.asked.get(str(KOSPI.target), 0) >= 9)
        stream: Any = await redis.xrange("test:{ka20003}:changes")
        snapshot: Any = await redis.hgetall("test:{ka20003}:snapshot:inds_cd=001")
        status = await read_status(redis, "test", [KOSPI], desk.timing, desk.clock.now(), "")
        await redis.aclose()

    entries = [decode(fields) for _, fields in stream]
    known = {fields[b"id"].decode() for _, fields in confirmed}
    kept = [entry for entry in entries if entry.id in known]
    after = [entry for entry in entries[len(kept) :] if entry.type != "sectorwire.gap"]  # told where a poll took long
    assert 0 < len(kept) < len(known), "the server lost nothing, or everything"
    assert [entry.type for entry in after][:2] == ["sectorwire.reset", "sectorwire.row.baseline"]
    assert after[0].data["reason"] == "rollback"
    assert {entry.data["epoch"] for entry in after}.isdisjoint(entry.data["epoch"] for entry in kept)
    (fork,) = status.forks
    version = kept[-1].data["version"]
    assert (fork.role, fork.has) == ("poller", f"version {version} of {KOSPI.target}")
    assert fork.had > f"version {version}"
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert fold(entries, described())[str(KOSPI.target)] == {name: loads(row) for name, row in snapshot.items()}
