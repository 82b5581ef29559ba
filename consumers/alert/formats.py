"""A decision goes in; the bytes that an endpoint is sent come out, in the shape that it reads.

Pure, and done once per delivery: every retry sends the same bytes. The surprise: the names of the endpoints a decision
goes to stay with us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from consumers.alert.endpoints import Endpoint
from poller.contract import dumps, loads

FIRING, RESOLVED, TEST = (f"sectorwire.alert.{state}" for state in ("firing", "resolved", "test"))
TELEGRAM_CHARS, SLACK_CHARS, DISCORD_CHARS = 4096, 35_000, 2000
SAME_ALERT = ("rule", "tr", "target", "table", "key")


@dataclass(frozen=True)
class Decision:
    """What the rules decided: an alert began to fire, or it is over."""

    id: str
    type: str
    time: str
    data: Mapping[str, Any]
    notify: tuple[str, ...]

    @property
    def lane(self) -> str:
        """Decisions on one alert share a lane and are sent in order; lanes are independent of each other."""
        return sha256(dumps([self.data.get(part) for part in SAME_ALERT]).encode()).hexdigest()[:16]


def read(fields: Mapping[str, str]) -> Decision:
    """The decision in a stream entry's fields. Raises ValueError where there is none."""
    try:
        data = loads(fields["data"])
        notify = tuple(map(str, data.pop("notify", None) or ()))
        return Decision(fields["id"], fields["type"], fields["time"], data, notify)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"this entry is not a decision: {type(error).__name__} {error}") from error


def render(decision: Decision, endpoint: Endpoint) -> str:
    """The body that this endpoint reads, to be sent as UTF-8."""
    text = _text(decision)
    match endpoint.format:
        case "standard":
            return dumps({"type": decision.type, "timestamp": decision.time, "data": decision.data})
        case "telegram":
            quiet = {"is_disabled": True}
            shown = _cut(text, TELEGRAM_CHARS)
            return dumps({"chat_id": endpoint.chat_id, "text": shown, "link_preview_options": quiet})
        case "slack":
            return dumps({"text": _slack(_cut(text, SLACK_CHARS))})
        case "discord":
            return dumps({"content": _cut(text, DISCORD_CHARS), "allowed_mentions": {"parse": []}})


def trial(endpoint: str, *, id_: str, time: str) -> Decision:
    """A message that is marked as a test and means nothing."""
    data = {"id": id_, "test": True, "state": "test", "title": "sectorwire", "text": f"시험 알림 · {endpoint}"}
    return Decision(id_, TEST, time, data, (endpoint,))


def _text(decision: Decision) -> str:
    """The title, and what happened: for people."""
    title, text = (
        str(decision.data.get("title") or decision.data.get("rule") or ""),
        str(decision.data.get("text") or ""),
    )
    over = " · 해제" if decision.type == RESOLVED and not text else ""  # the text says so itself
    return "\n".join(line for line in (f"{title}{over}" if title else "", text) if line)


def _cut(text: str, chars: int) -> str:
    """As many UTF-16 units as a chat takes, which is how chats count.

    >>> _cut("가나다라", 3)
    '가나…'
    """
    if len(text.encode("utf-16-le")) // 2 <= chars:
        return text
    return text.encode("utf-16-le")[: (chars - 1) * 2].decode("utf-16-le", "ignore") + "…"


def _slack(text: str) -> str:
    """Slack reads three characters as marks of its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
