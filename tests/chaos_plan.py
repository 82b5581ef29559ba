"""So many kills and a seed go in; what goes wrong comes out, in order, for each role and for the server.

Half of the kills catch a process between an effect and its acknowledgement, in all the ways there are, in turn; the
other half comes at any moment. What is caught is recognised by marks in the bytes of its command.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

Fsync = Literal["always", "everysec"]


@dataclass(frozen=True)
class Moment:
    """A moment in which a process is caught: its command with these marks, or the reply to it, is held."""

    lane: str
    words: str
    side: Literal["request", "reply"]
    marks: tuple[bytes, ...]


COMMIT = (rb"\$7\r\nEVALSHA\r\n", rb":snapshot:", rb"\r\nsectorwire\.r")
COMMITTED = b"*2\r\n$2\r\nok\r\n"
DECIDE = (rb":alerting\r\n", rb"\r\nsectorwire\.alert\.")
ENQUEUE = (rb"send:\{hook\}:seen\r\n",)
SETTLE = (rb"send:\{hook\}:claims\r\n", rb"\r\ndone\r\n")


def acknowledging(group: str) -> tuple[bytes, ...]:
    """An acknowledgement of a group, by itself or in a script."""
    name = group.encode()
    return (rb"XACK|:position:" + name, rb"\r\n" + name + rb"\r\n|:position:" + name, rb"\r\n\d+-\d+\r\n")


@dataclass(frozen=True)
class Blow:
    """One thing that goes wrong. `late` lets the held command of a dead process arrive when another has taken over."""

    lane: str
    words: str
    how: Literal["kill", "stop", "cut", "full"]
    moment: Moment | None = None
    late: bool = False

    @property
    def is_kill(self) -> bool:
        return self.how == "kill"


def _mid(lane: str, what: str, side: Literal["request", "reply"], marks: tuple[bytes, ...], then: str = "") -> Blow:
    words = f"killed, {what} {side} held{then}"
    return Blow(lane, words, "kill", Moment(lane, words, side, marks), late="late" in then)


NEVER, LATE = ", never delivered", ", delivered late"
MID_COMMIT = (
    _mid("poller", "commit", "reply", COMMIT),
    _mid("poller", "commit", "request", COMMIT, NEVER),
    _mid("archive", "acknowledgement's", "request", acknowledging("archive"), NEVER),
    _mid("alert", "decision's", "reply", DECIDE),
    _mid("member", "acknowledgement's", "request", acknowledging("plain"), NEVER),
    _mid("poller", "commit", "request", COMMIT, LATE),
    _mid("alert", "webhook accepted and its end's", "request", SETTLE, NEVER),
    _mid("archive", "acknowledgement's", "reply", acknowledging("archive")),
    _mid("poller", "commit", "reply", COMMIT),
    _mid("member", "acknowledgement's", "reply", acknowledging("plain")),
    _mid("alert", "decision's", "request", DECIDE, NEVER),
    _mid("poller", "commit", "request", COMMIT, NEVER),
    _mid("alert", "webhook queued and the", "reply", ENQUEUE),
    _mid("archive", "acknowledgement's", "request", acknowledging("archive"), LATE),
    _mid("poller", "commit", "reply", COMMIT),
    _mid("alert", "decision's", "request", DECIDE, LATE),
    _mid("member", "acknowledgement's", "request", acknowledging("plain"), LATE),
)
ANY = "killed at any moment"
CUT_OFF = "killed, the end of its file cut off"
AT_ANY_MOMENT = (
    Blow("server", ANY, "kill"),
    Blow("poller", ANY, "kill"),
    Blow("alert", ANY, "kill"),
    Blow("server", CUT_OFF, "kill"),
    Blow("archive", ANY, "kill"),
    Blow("member", ANY, "kill"),
    Blow("poller", ANY, "kill"),
    Blow("server", CUT_OFF, "kill"),
    Blow("receiver", ANY, "kill"),
    Blow("server", ANY, "kill"),
    Blow("alert", ANY, "kill"),
    Blow("member", ANY, "kill"),
)
STOPS = {"archive": acknowledging("archive"), "poller": COMMIT, "alert": DECIDE, "member": acknowledging("plain")}
LANES = ("poller", "alert", "archive", "member", "receiver", "server")


def plan(kills: int, fsync: Fsync, rng: random.Random) -> dict[str, list[Blow]]:
    """What happens to each lane, in order: so many kills, half of them in mid-commit, and other trouble in between."""
    blows = [*islice(cycle(MID_COMMIT), kills // 2), *islice(cycle(AT_ANY_MOMENT), kills - kills // 2)]
    if fsync == "always":  # what has been confirmed is on the disk
        blows = [Blow("server", ANY, "kill") if blow.words == CUT_OFF else blow for blow in blows]
    for lane, marks in islice(cycle(STOPS.items()), max(1, kills // 12)):
        blows.append(Blow(lane, "stopped for longer than a lease", "stop", Moment(lane, "", "request", marks)))
    for number, (lane, marks) in enumerate(islice(cycle(STOPS.items()), 1, 1 + max(1, kills // 12))):
        if (number + number // len(STOPS)) % 2:
            blows.append(Blow(lane, "connections cut", "cut"))
        else:
            blows.append(Blow(lane, "connections cut, a reply held", "cut", Moment(lane, "", "reply", marks)))
    blows += [Blow("archive", "disk full", "full")] * max(1, kills // 25)
    lanes = {lane: [blow for blow in blows if blow.lane == lane] for lane in LANES}
    for of_lane in lanes.values():
        rng.shuffle(of_lane)
    return lanes
