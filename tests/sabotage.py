"""Each protection is taken out of a copy of the program; which tests notice comes out, and whether any does not.

    .venv/bin/python -m tests.sabotage           # all of them
    .venv/bin/python -m tests.sabotage fence     # those whose name has that word

Each is broken twice where a script has it: in the Lua, which the tests on real servers notice, and in the simulated
server's reading of it, which the storms notice. The surprise: a protection that moved is an error here as well, since
a break that changes nothing would look like a test that sleeps.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.mutants import ROOT, copy_tree

COPY = ROOT / "build" / "sabotage"
STORMS = "tests/test_storm.py"
NOTICED, SLEPT = 1, 0
"""What pytest ends with when a test fails, and when all pass. Anything else proves nothing."""


@dataclass(frozen=True)
class Break:
    """One way to take a protection out: in a file, this text becomes that one; and the tests that should notice."""

    protection: str
    what: str
    file: str
    old: str
    new: str
    tests: str


BREAKS = (
    Break(
        "fence",
        "a poller that no longer leads may commit",
        "poller/commit.lua",
        "if reign[1] ~= fence or reign[2] ~= epoch then",
        "if false then",
        "tests/test_store.py",
    ),
    Break(
        "fence",
        "the same on the simulated server",
        "tests/model_scripts.py",
        'if (reign.get("fence"), reign.get("epoch")) != (fence, epoch):',
        "if False:",
        STORMS,
    ),
    Break(
        "version",
        "a commit may be built on an older version than is stored",
        "poller/commit.lua",
        "if version ~= version_before then",
        "if false then",
        "tests/test_store.py",
    ),
    Break(
        "version",
        "the same on the simulated server",
        "tests/model_scripts.py",
        "    if version != before:\n        if version == after",
        "    if False:\n        if version == after",
        STORMS,
    ),
    Break(
        "ack order",
        "entries are acknowledged before they are handled",
        "consumers/group.py",
        "            if batch:\n                yield batch\n                done = batch\n",
        "            if batch:\n                await self._acknowledge(batch)\n                yield batch\n",
        f"tests/test_group.py {STORMS}",
    ),
    Break(
        "reclaim",
        "what the dead had in hand stays theirs",
        "consumers/place.py",
        "            if theirs:\n                taken",
        "            if False:\n                taken",
        f"tests/test_group.py {STORMS}",
    ),
    Break(
        "trim bound",
        "what groups still need is trimmed like the rest",
        "poller/trim.lua",
        "  if earlier(needed, keep_from) then",
        "  if false then",
        "tests/test_store.py",
    ),
    Break(
        "trim bound",
        "the same on the simulated server",
        "tests/model_scripts.py",
        "        keep_from = min([keep_from, group.last_delivered, *list(group.pending)[:1]])",
        "        pass",
        STORMS,
    ),
    Break(
        "epoch",
        "a new leader goes on in the old epoch",
        "poller/reign.lua",
        "local epoch = math.max(tonumber(ARGV[3]), tonumber(reign[2] or '0') + 1)",
        "local epoch = tonumber(reign[2] or ARGV[3])",
        "tests/test_store.py",
    ),
    Break(
        "epoch",
        "the same on the simulated server",
        "tests/model_scripts.py",
        'epoch = str(max(int(now_ms), int(stored.get("epoch", "0")) + 1))',
        'epoch = stored.get("epoch", now_ms)',
        STORMS,
    ),
    Break(
        "epoch",
        "a server that was started again takes more of the old epoch",
        "tests/model_scripts.py",
        'if server.run_id and reign.get("server") != server.run_id:',
        "if False:",
        STORMS,
    ),
    Break(
        "commit id",
        "whatever has the same version is taken for the same commit",
        "poller/commit.lua",
        "if version == version_after and stored[2] == commit_id then",
        "if version == version_after then",
        "tests/test_store.py",
    ),
    Break(
        "commit id",
        "a repeat of a commit whose reply was lost is not recognised, and writes again",
        "poller/commit.lua",
        "    return {'again', seq}\n  end\n  return {'stale', tonumber(version)}\n",
        "  else\n    return {'stale', tonumber(version)}\n  end\n",
        "tests/test_store.py",
    ),
    Break(
        "fsync",
        "the archive acknowledges what is not on the disk yet",
        "consumers/archive/writer.py",
        "        self._grows = False\n        self._make_durable()\n",
        "        self._grows = False\n",
        f"{STORMS} tests/test_archive.py",
    ),
    Break(
        "fsync",
        "a commit that a power cut tore is taken for whole",
        "consumers/archive/writer.py",
        "found = [one for name in mine if (one := torn.find(root / name))]",
        "found: list[torn.Torn] = []",
        "tests/test_archive_torn.py",
    ),
    Break(
        "hold",
        "a loss too large to believe is believed",
        "poller/commit.py",
        "    if hold is not None:  # rows wait for a second answer",
        "    if False:  # rows wait for a second answer",
        "tests/test_commit.py",
    ),
    Break(
        "hold",
        "two members of a group are active at a time",
        "consumers/hold.lua",
        "if holder and holder ~= ARGV[1] then",
        "if false then",
        "tests/test_group.py",
    ),
    Break(
        "group position",
        "a group that the server lost is made again at the end of the stream",
        "consumers/place.py",
        "        position = await self._left_off()\n",
        '        position = "$"\n',
        f"tests/test_group.py {STORMS}",
    ),
    Break(
        "group position",
        "the position is the last entry that was done, not the last before which all are",
        "consumers/done.lua",
        "    if facts['pending'] > 0 then",
        "    if false then",
        "tests/test_group.py",
    ),
)


def broken(one: Break) -> None:
    """Take a protection out of the copy. Raises SystemExit where the text that names it is not there, or not alone."""
    path = COPY / one.file
    text = path.read_text("utf-8")
    if text.count(one.old) != 1:
        raise SystemExit(f"{one.file} has the text of {one.protection!r} {text.count(one.old)} times: {one.old!r}")
    path.write_text(text.replace(one.old, one.new), "utf-8")


def noticed_by(one: Break) -> tuple[int, str]:
    """What pytest ends with in the copy, and the first test that failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not soak",
        "-p",
        "no:cacheprovider",
        *one.tests.split(),
    ]
    environment = os.environ | {"PYTHONPATH": str(COPY), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^FAILED (.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode not in {NOTICED, SLEPT}:
        print(run.stdout[-3_000:], run.stderr[-1_000:], sep="\n")
    return run.returncode, failed[1] if failed else ""


def main(words: list[str]) -> int:
    """Break one after the other. Returns 1 if a break was not noticed, or the tests could not be run; 2 for a word that
    names none.
    """
    chosen = [one for one in BREAKS if not words or any(word in one.protection for word in words)]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.protection for one in BREAKS))
        print(f"no protection is called {' or '.join(words)}; there are: {known}", file=sys.stderr)
        return 2
    slept = []
    for one in chosen:
        began = time.monotonic()
        copy_tree(COPY)
        broken(one)
        status, test = noticed_by(one)
        told = f"noticed by {test}" if status == NOTICED else "NOT NOTICED" if status == SLEPT else "tests did not run"
        print(f"{one.protection:14} {one.what}\n{'':14} {told} ({time.monotonic() - began:.0f} s)", flush=True)
        slept += [one] if status != NOTICED else []
    names = dict.fromkeys(one.protection for one in chosen)
    print(
        f"{len(names)} protections broken in {len(chosen)} ways: {len(chosen) - len(slept)} noticed, {len(slept)} not"
    )
    return 1 if slept or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
