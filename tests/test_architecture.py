"""The arrows point one way, the pure parts are pure, and the README's map names what is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from consumers.service import ConsumerSettings
from poller.catalogue import CATALOGUE
from poller.contract import Entry, RowData
from poller.settings import Settings

ROOT = Path(__file__).parents[1]
PURE = [
    *(
        f"poller/{name}.py"
        for name in (
            "diff",
            "commit",
            "rows",
            "contract",
            "session",
            "budget",
            "grid",
            "errors",
            "suspects",
            "findings",
            "trouble",
            "routes",
        )
    ),
    *(f"poller/trs/{path.name}" for path in (ROOT / "poller" / "trs").glob("*.py")),
    *(f"consumers/alert/{name}.py" for name in ("conditions", "rules", "text", "sign", "formats", "delivery")),
    "consumers/archive/tables.py",
]
IMPURE = {"httpx", "redis", "time", "asyncio", "socket", "poller.clock", "poller.store", "poller.broker"}


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, as `package.module`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources("consumers"), ids=str)
def test_consumers_know_nothing_of_the_poller_but_its_contract(path: Path):
    known = {name for name in imported(path) if name.startswith("poller")}

    assert all(name == "poller.contract" or name.startswith("poller.contract.") for name in known)


@pytest.mark.parametrize("path", sources("poller"), ids=str)
def test_the_poller_never_imports_its_readers(path: Path):
    assert not [name for name in imported(path) if name.split(".")[0] == "consumers"]


def test_the_contract_needs_pydantic_and_the_standard_library_alone():
    """A reader that imports it loads no HTTP client and no Redis client."""
    roots = {name.split(".")[0] for name in imported(ROOT / "poller" / "contract.py")}

    assert roots <= sys.stdlib_module_names | {"pydantic"}


@pytest.mark.parametrize("path", PURE)
def test_the_pure_parts_read_no_clock_and_speak_to_nobody(path: str):
    names = set(imported(ROOT / path))

    assert not names & IMPURE
    assert not re.search(
        r"datetime\.now|date\.today|random\.(random|uniform|choice)\(", (ROOT / path).read_text("utf-8")
    )


@pytest.mark.parametrize(("package", "speakers"), [("poller", {"broker.py"}), ("consumers", {"send.py", "guard.py"})])
def test_http_is_spoken_in_one_place(package: str, speakers: set[str]):
    """One client for the life of the process: nobody else can open a second."""
    users = {path.name for path in sources(package) if "httpx" in set(imported(path))}

    assert users <= speakers


@pytest.mark.parametrize("package", ["poller", "poller/trs", "consumers", "poller/simulator"])
def test_a_package_imports_nothing_by_itself(package: str):
    assert not list(imported(ROOT / package / "__init__.py"))


def test_nothing_asks_which_tr_it_holds():
    """A seventh TR is one file: an `if` on a code elsewhere would be a field missing from the declaration."""
    codes = {tr.code for tr in CATALOGUE}
    allowed = {"demo.py", "starter.py"}  # plans, which name TRs as users do
    machinery = [
        path for path in sources("poller") + sources("consumers") if path.parent.name not in {"trs", "simulator"}
    ]
    literal = {
        (path.name, node.value)
        for path in machinery
        if path.name not in allowed
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in codes
    }

    assert not literal


def test_the_map_in_the_readme_names_every_file_and_no_other():
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = readme.split("## Map of the code")[1].split("```")[1]
    named = set(re.findall(r"[a-z_0-9]+\.(?:py|lua)", shown))
    there = {
        path.name
        for package in ("poller", "consumers")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".lua"} and path.name != "__init__.py" and path.parent.name != "simulator"
    }

    assert there - named == set()
    assert named - there == {"sectorwire.py", "test_pipeline.py", "test_architecture.py"}


def test_the_readme_names_every_report_and_every_setting():
    readme = (ROOT / "README.md").read_text("utf-8")
    for tr in CATALOGUE:
        assert f"| {tr.code} | {tr.name}" in readme
        assert all(f"`{table.name}` ({table.mode})" in readme for table in tr.tables)
    for section, info in (Settings.model_fields | ConsumerSettings.model_fields).items():
        model: Any = next(iter(get_args(info.annotation)), info.annotation)
        rows = "".join(re.findall(rf"^\| `\[+{section}\]+.*$", readme, re.MULTILINE))
        for name, setting in model.model_fields.items():
            assert re.search(rf"[` ]{setting.alias or name}`", rows), f"[{section}] {setting.alias or name}"


def test_the_commands_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = "".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    commands = set(re.findall(r"^sectorwire ([a-z]+)", blocks, re.MULTILINE))
    help_text = subprocess.run(
        [sys.executable, "-m", "sectorwire", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout

    assert commands
    assert all(re.search(rf"^  {command} ", help_text, re.MULTILINE) for command in commands)


def test_the_python_consumer_of_the_readme_reads_what_the_contract_promises():
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    example = ast.parse(next(block for block in blocks if "import redis" in block))
    read = {
        node.slice.value
        for node in ast.walk(example)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    }

    assert read <= {*Entry.model_fields, *RowData.model_fields}


def test_the_lock_names_no_host_and_covers_every_dependency():
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    wanted += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    locked = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))

    assert "://" not in lock
    assert {re.split(r"[\[<>=; ]", one)[0].lower() for one in wanted} <= locked


OWNERS_OF_TIME = {
    "poller/clock.py": "the poller's clock, and its sleep",
    "consumers/clock.py": "the consumers' clock, sleep and lots",
    "poller/embedded.py": "starts and stops a process of the machine, before any loop runs",
    "poller/embedded_watch.py": "a process of its own beside the server",
}
FORBIDDEN_CALLS = {
    **dict.fromkeys(("time", "random"), None),  # every function of theirs; a seeded random.Random is handed over
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "asyncio": {"sleep"},
}


@pytest.mark.parametrize("path", [*sources("poller"), *sources("consumers"), ROOT / "sectorwire.py"], ids=str)
def test_only_a_few_places_own_time_and_chance(path: Path):
    """Everything else is given a clock or a random source, which is what lets a day be simulated from one seed."""
    name = str(path.relative_to(ROOT))
    calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    found = {
        f"{call.value.id}.{call.attr}"
        for call in calls
        if isinstance(call, ast.Attribute)
        and isinstance(call.value, ast.Name)
        and call.value.id in FORBIDDEN_CALLS
        and (FORBIDDEN_CALLS[call.value.id] is None or call.attr in (FORBIDDEN_CALLS[call.value.id] or ()))
    }
    found -= {"random.Random", "time.fromisoformat"}  # a source that is handed over; the class of clock times

    assert not found or name in OWNERS_OF_TIME
