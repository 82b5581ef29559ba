"""What the broker decided to say goes in; bytes on the wire come out, or as many of them as a fault lets through.

The surprise: a dropped connection needs the transport, which ASGI hides. The server puts it into the request's state.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from poller.simulator.checks import Refusal
from poller.simulator.faults import Fault

MAINTENANCE_PAGE = (
    "<!DOCTYPE html><html><head><title>시스템 점검 안내</title></head>"
    "<body><h1>시스템 점검중입니다</h1><p>이용에 불편을 드려 죄송합니다.</p></body></html>"
)
JSON_TYPE = "application/json;charset=UTF-8"


@dataclass
class Reply:
    """One answer. `answer` is None where the client gets no whole JSON, `status` None where it gets no status."""

    answer: dict[str, Any] | None
    status: int | None = 200
    fault: Fault | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_body: bytes = b""
    exact: tuple[bytes, str] | None = None  # body and content type of a recorded answer, whatever `answer` says


def refused(refusal: Refusal, fault: Fault | None) -> Reply:
    """The reply to a request that is not answered."""
    return Reply({"return_code": refusal.return_code, "return_msg": str(refusal)}, refusal.status, fault)


def spoiled(reply: Reply) -> Reply:
    """The reply as its fault leaves it."""
    if reply.fault == "http_500":
        return Reply(None, 500, reply.fault)
    if reply.fault == "html":
        return Reply(None, 200, reply.fault)
    if reply.fault == "drop":
        return Reply(None, None, reply.fault)
    if reply.fault in {"cut_json", "drop_in_body"}:
        whole = encoded(reply.answer)
        return Reply(None, 200, reply.fault, reply.headers, cut_body=whole[: len(whole) // 2])
    return reply


def response(reply: Reply) -> Response:
    """What Starlette sends."""
    if reply.fault == "http_500":
        return Response("Internal Server Error", 500, media_type="text/plain")
    if reply.fault == "html":
        return Response(MAINTENANCE_PAGE, 200, media_type="text/html")
    if reply.fault in {"drop", "drop_in_body"}:
        return Dropped(reply.cut_body, headers=reply.headers)
    if reply.exact is not None:
        return Response(reply.exact[0], reply.status or 200, {**reply.headers, "content-type": reply.exact[1]})
    body = reply.cut_body or encoded(reply.answer)
    return Response(body, reply.status or 200, {**reply.headers, "content-type": JSON_TYPE})


def encoded(answer: dict[str, Any] | None) -> bytes:
    """JSON as the broker writes it: Korean letters as they are."""
    return json.dumps(answer, ensure_ascii=False).encode()


class Dropped(Response):
    """A connection that ends before the answer has begun, or, if there is a body, in the middle of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is, then hang up."""
        transport: asyncio.Transport = scope["state"]["transport"]
        if self.body:
            headers = [*self.raw_headers, (b"content-type", JSON_TYPE.encode())]
            promised = [(name, value) for name, value in headers if name != b"content-length"]
            promised.append((b"content-length", str(2 * len(self.body)).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": promised})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            transport.close()
        else:
            transport.abort()
        # The server takes a response that ends early for a mistake, unless it knows that nobody is listening.
        while (await receive())["type"] != "http.disconnect":
            pass
