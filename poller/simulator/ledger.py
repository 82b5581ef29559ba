"""What was asked and what was served go in; one JSON line each comes out, on the disk before the answer leaves.

A test compares a client's stream with these lines. The surprise: what a client got may still differ from the last
line, because an answer can be lost on the way; no answer is ever served without its line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from poller.simulator.checks import Asked
from poller.simulator.replies import Reply


class Ledger:
    """An open ledger; without a path it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path else None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def note(self, asked: Asked, reply: Reply, *, at_real: datetime, at_market: datetime) -> None:
        """Write one line."""
        if self._file is None:
            return
        line: Mapping[str, Any] = {
            "at_real": at_real.isoformat(),
            "at_market": at_market.isoformat(),
            "api_id": asked.api_id,
            "body": asked.body,
            "cont_yn_in": asked.headers.get("cont-yn", ""),
            "next_key_in": asked.headers.get("next-key", ""),
            "status": reply.status,
            "fault": reply.fault,
            "cont_yn": reply.headers.get("cont-yn", ""),
            "next_key": reply.headers.get("next-key", ""),
            "answer": reply.answer,
        }
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
