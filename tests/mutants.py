"""The tests of the pure modules go in; which small faults they would let pass comes out.

mutmut changes the code named in `[tool.mutmut]` one spot at a time, and each time the tests must fail, or the types. It
runs on a copy under `build/`. A mutant may survive only where a comment on the changed line says why:
`# mutants: reason`. A comment whose mutants all died fails as well. The surprise: mutmut leaves alone properties and
what stands outside functions, such as tables and patterns.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutants"
COPIED = ("poller", "consumers", "tests", "sectorwire.py", "pyproject.toml", "README.md")
PROCESSES = 2
KILLED = {"killed", "timeout", "caught by type check"}
MARK = "# mutants: "


def mutmut(*arguments: str, shown: bool = False) -> str:
    """What mutmut prints; `run` is shown as it works instead. Raises CalledProcessError when mutmut cannot do it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    out = None if shown else subprocess.PIPE
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=COPY, env=os.environ | {"PATH": path}, stdout=out, text=True, check=True).stdout


def copy_tree(to: Path = COPY) -> None:
    """A fresh copy of what the tests need: nobody breaks the real code."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)


def statuses() -> dict[str, str]:
    """Every mutant and what became of it."""
    return dict(re.findall(r"^ +(\S+): (.+)$", mutmut("results", "--all", "true"), re.MULTILINE))


def marked_lines() -> set[str]:
    """The lines of the mutated modules that explain a survivor."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    modules = [(ROOT / path).read_text("utf-8") for path in config["tool"]["mutmut"]["only_mutate"]]
    return {line.strip() for module in modules for line in module.splitlines() if MARK in line}


def main() -> int:
    """Run every mutant and judge. Returns 1 when a survivor is not explained or an explanation is stale."""
    copy_tree()
    mutmut("run", "--max-children", str(PROCESSES), shown=True)
    became = statuses()
    stale, unexplained = marked_lines(), []
    survivors = [name for name, status in became.items() if status not in KILLED]
    for name in survivors:
        diff = mutmut("show", name)
        changed = {line.removeprefix("-").strip() for line in diff.splitlines() if re.match(r"-(?!--)", line)}
        stale -= changed
        if not changed or not all(MARK in line for line in changed):
            unexplained.append(diff)
    print(*unexplained, sep="\n")
    print(*(f"explains nothing, delete the comment: {line}" for line in sorted(stale)), sep="\n")
    counts = ", ".join(f"{count} {status}" for status, count in Counter(became.values()).most_common())
    print(f"{len(became)} mutants: {counts}; explained {len(survivors) - len(unexplained)}, not {len(unexplained)}")
    return 1 if unexplained or stale or not became else 0


if __name__ == "__main__":
    sys.exit(main())
