"""The twins of the scripts go in, to be run by somebody; what of them was never run comes out, and what they answered.

The surprise: a twin is watched by a trace function of its own, which is there only while it runs, so this costs little,
and whoever else traces, as Hypothesis does while it explains a failure, goes on afterwards.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

from redis.exceptions import ResponseError

from tests import model_scripts
from tests.model_scripts import Script

SOURCE = Path(model_scripts.__file__)
Statement = tuple[int, int]
"""The lines that a statement stands on, of a block its head alone."""


class Reach:
    """What was run of the twins since it was made."""

    def __init__(self) -> None:
        self.lines: Counter[int] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()
        """How often each script said what, in few words."""

    def watched(self, script: Script) -> Script:
        """The same, being watched."""

        @wraps(script)
        def run(server: Any, keys: list[str], argv: list[str]) -> Any:
            before = sys.gettrace()
            sys.settrace(self._trace)
            answer: Any = None
            try:
                answer = script(server, keys, argv)
            except ResponseError as error:
                answer = str(error).partition(" ")[0]
                raise
            finally:
                sys.settrace(before)
                self.answers[script.__name__, in_few_words(answer)] += 1
            return answer

        return run

    def _trace(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != model_scripts.__file__:
            return None
        self.lines[frame.f_lineno] += 1
        return self._trace

    def never_run(self) -> list[str]:
        """The statements that nobody came to, as places in the file."""
        missed = [
            (first, name) for name, first, last in statements() if not any(map(self.lines.get, range(first, last + 1)))
        ]
        return [f"{SOURCE.name}:{line} in {name}" for line, name in missed]


def in_few_words(answer: Any) -> str:
    """What of an answer tells the ways through a script apart: the verdict, or whether there is anything.

    >>> in_few_words(("ok", 7)), in_few_words(3), in_few_words([["new", "g"], ["noted", "h"]]), in_few_words([])
    ('ok', '1 or more', 'new noted', 'nothing')
    """
    if isinstance(answer, list) and answer and isinstance(answer[0], list):
        return " ".join(sorted({one[0] for one in answer}))
    first = answer[0] if isinstance(answer, Sequence) and not isinstance(answer, str) and answer else answer
    if isinstance(first, int):
        return "1 or more" if first else "0"
    return first if isinstance(first, str) else "nothing"


def statements() -> Iterator[tuple[str, int, int]]:
    """Every statement within a function of the twins: the function's name, and its first and last line."""
    for function in ast.parse(SOURCE.read_text("utf-8")).body:
        if isinstance(function, ast.FunctionDef) and function.name != "_of":
            for statement in ast.walk(function):
                if isinstance(statement, ast.stmt) and statement not in {function, function.body[0]}:
                    body = getattr(statement, "body", None)
                    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
                    yield function.name, statement.lineno, last
