"""What the configuration says of the archive. Apart from the writer, so that reading it needs no Delta Lake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from consumers.durations import seconds


def _pause_s(given: object) -> object:
    """A text such as "5s" in seconds; numbers are seconds already."""
    return seconds(given) if isinstance(given, str) else given


class ArchiveSettings(BaseModel):
    """Where the archive is, and how often it writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    flush: Annotated[float, BeforeValidator(_pause_s), Field(ge=0, le=5)] = 5.0
    """The pause between two commits; what is new is archived at once, and what follows waits so long at most."""
