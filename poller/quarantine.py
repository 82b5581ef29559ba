"""Answers that could not be used go in, and stay as files a person can read; the same fault is kept once.

A file holds TR, target, time, the reason and the bodies as sent. Answers hold neither keys nor tokens, and requests
are not kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from poller.commit import iso
from poller.contract import dumps
from poller.trs.base import Target

MAX_FILES = 200
MAX_BODY_CHARS = 2_000_000


class Quarantine:
    """The folder of bad answers under the data directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, target: Target, at: datetime, reason: str, bodies: Iterable[bytes]) -> Path | None:
        """Store an answer and why it could not be used; None if the same fault is there already.

        The oldest files go when there are more than 200. Raises OSError where the disk refuses.
        """
        fault = hashlib.sha256(f"{target} {re.sub('[0-9]+', '#', reason)}".encode()).hexdigest()[:12]
        folder = self.directory / target.tr.code
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob(f"*-{fault}.json")):
            return None
        moment = iso(at)
        path = folder / f"{moment[:19].replace(':', '').replace('-', '')}-{fault}.json"
        texts = [body.decode(errors="backslashreplace")[:MAX_BODY_CHARS] for body in bodies]
        content = {"target": str(target), "time": moment, "reason": reason, "bodies": texts}
        temporary = path.with_suffix(".part")
        temporary.write_text(dumps(content), "utf-8")
        temporary.replace(path)
        for old in sorted(self.directory.glob("*/*.json"), key=lambda file: file.name)[:-MAX_FILES]:
            old.unlink(missing_ok=True)
        return path
