"""Words of the command line go in; a namespace with what to call comes out, or one line that says what to write.

Knows no command: what each of them calls is handed over by `sectorwire.py`, and only names, options and help stand
here. The surprise: argparse prints its usage and ends the process where something is wrong; this raises instead.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

HELP = """\
watches the six sector (업종) reports of Kiwoom Securities and tells what changed

start
  demo        everything at once on a simulated market: the first thing to run
  init        write a commented sectorwire.toml
  check       prove that the plan fits the broker's limits; --online signs in and asks
  run         every role in one process
  poll        one role: ask the broker, publish what changed
  alert       one role: decide by the rules, send webhooks
  archive     one role: keep every entry in Delta Lake tables

look
  once        one poll, printed: once ka20003 inds_cd=001
  tail        changes as they come
  status      targets with their freshness
  catalogue   what each report holds; with a word, the fields that go by it
  schema      the stream's contract as an AsyncAPI document
  archive     status, sql, export, verify: questions asked of the archive

repair
  doctor      look for what usually goes wrong, with the remedy of each
  endpoints   list, test, dead, redrive: where alerts go, and what did not get there
  quarantine  list, show, retry: answers that could not be read
  parked      list, show, redrive, drop: entries that a group gave up on

develop
  simulate    the made-up market as a server of its own; --replay DIR a recorded day
  replay      a recorded day decided again: what would have been published

sectorwire COMMAND --help explains each. Errors are one line; --debug adds the traceback.
Exit status: 0 well, 1 failed while running, 2 wrong usage or configuration.
"""


class UsageError(Exception):
    """The command line is wrong; the message says what to write."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest word that would have been right."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, with the word that was meant."""
        unknown = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            option = re.match(r"argument (--[a-z-]+): ", message)
            known = re.findall(r"[a-z]+", unknown[2])
            what = f"{option[1]} takes {' or '.join(known)}, not" if option else "no command"
            message = f"{what} {unknown[1]!r}{nearest(unknown[1], known)}"
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def refuse(self, unknown: str) -> NoReturn:
        """Say that an option or a word is not known here."""
        options = [option for action in self._actions for option in action.option_strings]
        self.error(
            f"unknown {'option' if unknown.startswith('-') else 'argument'} {unknown}{nearest(unknown, options)}"
        )


def nearest(wrong: str, known: Sequence[str]) -> str:
    """A suggestion to append to a message, or nothing."""
    close = difflib.get_close_matches(wrong.partition("=")[0], known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def parser(calls: Mapping[str, object]) -> Parser:
    """The whole command line; `calls` has what each command calls, by its name."""
    whole = Parser(prog="sectorwire", usage="sectorwire COMMAND [options]", add_help=False)
    whole.add_argument("--help", "-h", action="store_true")
    whole.add_argument("--version", action="version", version=f"sectorwire {version('sectorwire')}")
    group = whole.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, about: str, *, config: bool = True) -> argparse.ArgumentParser:
        sub = group.add_parser(name, prog=f"sectorwire {name}", help=about, description=about, allow_abbrev=False)
        sub.set_defaults(call=calls[name], parser=sub)
        sub.add_argument("--debug", action="store_true", help="logs in detail, errors with their traceback")
        if config:
            sub.add_argument("--config", metavar="FILE", help="default: SECTORWIRE_CONFIG, or sectorwire.toml here")
        return sub

    _start_options(
        command("demo", "everything at once on a simulated market and a server of its own", config=False),
        command("init", "write a commented configuration for the mock server"),
        command("check", "prove that the plan fits the broker's limits, and that rules and endpoints are right"),
    )
    _record_option(command("poll", "poll, and publish changes to the streams, until Ctrl-C or SIGTERM"))
    _look_options(
        command("once", "one poll, printed; nothing is published"),
        command("tail", "changes as they come"),
        command("status", "targets with their freshness"),
    )
    _record_option(command("run", "every role in one process, until Ctrl-C or SIGTERM"))
    command("alert", "decide and send alerts, until Ctrl-C or SIGTERM")
    _archive_options(command("archive", "archive until Ctrl-C or SIGTERM, or answer a question asked of it"))
    command("doctor", "look for what usually goes wrong; status 1 if something serious is found").add_argument(
        "--json", action="store_true", help="for programs"
    )
    _endpoint_options(command("endpoints", "how things stand with the endpoints of alerts"))
    _reference_options(
        command("catalogue", "what each report holds", config=False),
        command("schema", "the stream's contract as an AsyncAPI document", config=False),
    )
    _quarantine_options(command("quarantine", "answers that could not be read"))
    _parked_options(command("parked", "entries that a group gave up on, and why"))
    _simulate_options(command("simulate", "the made-up market as a server", config=False))
    _replay_options(command("replay", "a recorded day decided again: what would have been published"))
    return whole


def _start_options(
    demo: argparse.ArgumentParser, init: argparse.ArgumentParser, check: argparse.ArgumentParser
) -> None:
    demo.add_argument("--seconds", type=_positive, metavar="N", help="end after N seconds with a summary")
    demo.add_argument("--data", type=Path, default=Path("data/demo"), metavar="DIR", help="default: data/demo")
    demo.add_argument("--all", action="store_true", help="print every change, not only the largest of each poll")
    init.add_argument("--real", action="store_true", help="for the real server")
    init.add_argument("--force", action="store_true", help="overwrite a file that exists")
    check.add_argument("--online", action="store_true", help="sign in, and ask one target of each TR")


def _record_option(role: argparse.ArgumentParser) -> None:
    role.add_argument("--record", type=Path, metavar="DIR", help="keep every answer there, in a file for each day")


def _look_options(
    once: argparse.ArgumentParser, tail: argparse.ArgumentParser, status: argparse.ArgumentParser
) -> None:
    once.add_argument("tr", metavar="TR", help="such as ka20003")
    once.add_argument("values", nargs="*", metavar="element=value", help="such as inds_cd=001")
    shape = once.add_mutually_exclusive_group()
    shape.add_argument("--explain", action="store_true", help="request, pages, checks, and the events it would publish")
    shape.add_argument("--raw", action="store_true", help="the answer as the broker sent it")
    tail.add_argument("trs", nargs="*", metavar="TR", help="only these reports")
    tail.add_argument("--from-start", action="store_true", help="begin with the oldest entry there is")
    tail.add_argument("--top", type=_count, metavar="N", help="of each poll only the N largest moves")
    tail.add_argument("--seconds", type=_positive, metavar="N", help="end after N seconds")
    tail.add_argument("--json", action="store_true", help="one entry a line")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="live, until Ctrl-C")
    how.add_argument("--check", action="store_true", help="one line; status 1 if nobody leads or a target is stale")
    how.add_argument("--json", action="store_true", help="for programs")


def _reference_options(catalogue: argparse.ArgumentParser, schema: argparse.ArgumentParser) -> None:
    catalogue.add_argument("word", nargs="?", metavar="WORD", help="a TR, or a field by name, element or Korean label")
    catalogue.add_argument("--json", action="store_true", help="for programs")
    schema.add_argument("--prefix", default="sectorwire", help="of the keys; default: sectorwire")
    schema.add_argument("--json", action="store_true", help="which it is anyway")


def _archive_options(archive: argparse.ArgumentParser) -> None:
    asked = archive.add_subparsers(dest="question", metavar="QUESTION", parser_class=Parser)
    _part(asked, "status", "tables, rows, positions, lag")
    _part(asked, "verify", "prove that archive, streams and snapshots agree")
    _part(asked, "sql", "ask over tables such as ka20003_indices").add_argument("query", metavar="SQL")
    export = _part(asked, "export", "write a table to one file")
    export.add_argument("table", metavar="TABLE", help="such as ka20003_indices")
    export.add_argument("out", type=Path, metavar="FILE")
    export.add_argument("--format", choices=("parquet", "csv"), default="parquet")


def _endpoint_options(endpoints: argparse.ArgumentParser) -> None:
    actions = endpoints.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    _part(actions, "list", "waiting, delivered, dead, and whether they answer")
    for name, about in (
        ("test", "send a message that is marked as a test"),
        ("dead", "what was given up, and why"),
        ("redrive", "send what was given up again"),
    ):
        action = _part(actions, name, about)
        action.add_argument("name", metavar="ENDPOINT")
        if name == "redrive":
            action.add_argument("ids", nargs="*", default=[], metavar="ID", help="default: all of them")


def _quarantine_options(quarantine: argparse.ArgumentParser) -> None:
    actions = quarantine.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    _part(actions, "list", "what is there, newest first").add_argument(
        "--json", action="store_true", default=False, help="for programs"
    )
    _part(actions, "show", "one answer, with why and where").add_argument("id", metavar="ID")
    retry = _part(actions, "retry", "read again with today's declarations; what can be read now is removed")
    retry.add_argument("ids", nargs="*", default=[], metavar="ID", help="default: all of them")


def _parked_options(parked: argparse.ArgumentParser) -> None:
    actions = parked.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    listing = _part(actions, "list", "what is parked, oldest first")
    listing.add_argument("--tr", default=None, metavar="TR", help="only of this report")
    listing.add_argument("--group", default=None, metavar="GROUP", help="only of this group, such as alert")
    listing.add_argument("--json", action="store_true", default=False, help="for programs")
    for name, about, ids in (
        ("show", "one entry, with the stack of its last error", None),
        ("redrive", "let the group handle entries again, as they are and before what is new", "*"),
        ("drop", "forget entries for ever", "*"),
    ):
        action = _part(actions, name, about)
        action.add_argument("tr", metavar="TR")
        action.add_argument("group", metavar="GROUP")
        action.add_argument("ids", nargs=ids or 1, default=[], metavar="ID", help="as `parked list` prints it")
        if name == "drop":
            action.add_argument("--all", action="store_true", default=False, help="instead of ids: all of the group")


def _replay_options(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("dir", type=Path, metavar="DIR", help="where `sectorwire poll --record DIR` wrote")
    replay.add_argument("--day", type=_day, metavar="DAY", help="only this day, such as 2026-11-23")
    replay.add_argument("--top", type=_count, metavar="N", help="of each poll only the N largest moves")
    replay.add_argument("--json", action="store_true", help="one entry a line")


def _part(parts: argparse._SubParsersAction[Parser], name: str, about: str) -> Parser:
    """One part of a command; it takes what every command takes, so `archive sql --config x` works as well."""
    part = parts.add_parser(name, help=about, description=about, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    part.set_defaults(parser=part)
    part.add_argument("--debug", action="store_true", help="logs in detail, errors with their traceback")
    part.add_argument("--config", metavar="FILE", help="default: SECTORWIRE_CONFIG, or sectorwire.toml here")
    return part


def _simulate_options(simulate: argparse.ArgumentParser) -> None:
    add = simulate.add_argument
    add("--port", type=_port, default=9100, help="default: 9100; 0 takes a free one")
    add("--seed", type=_whole, default=1, help="another market; default: 1")
    add("--speed", type=_positive, default=1.0, metavar="X", help="market time runs X times as fast")
    add("--start", metavar="TIME", help="market time at the start, such as 2026-11-23T10:00")
    add("--skip-closed", action="store_true", help="jump from each close to the next opening")
    add("--faults", type=_share, default=0.0, metavar="P", help="share of requests that meet a fault, 0 to 1")
    add("--limit", type=_count, default=5, metavar="N", help="requests a second per TR; default: 5")
    add("--mock", action="store_true", help="one request a second over everything, as the mock server")
    add("--check-keys", action="store_true", help="accept only the pair in KIWOOM_APP_KEY and KIWOOM_SECRET_KEY")
    add("--ledger", type=Path, metavar="FILE", help="write down every answer that was served")
    add("--replay", type=Path, metavar="DIR", help="serve a recorded day, by default the oldest there, else --start's")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    if re.fullmatch(r"-?\d+", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 0 to 65535")
    return int(text)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2026-11-23") from None


def _positive(text: str) -> float:
    number = _float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _share(text: str) -> float:
    number = _float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return number


def _float(text: str) -> float:
    """A number; what is none is not in any range either."""
    try:
        return float(text)
    except ValueError:
        return math.nan
