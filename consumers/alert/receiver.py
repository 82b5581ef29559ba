"""A small receiver for the demo: webhooks come in over loopback, are verified, and are handed to a callback.

It shows the half of the work that is yours: check the signature over the exact bytes, and remember ids, because a
webhook may come twice. A real receiver uses one of the Standard Webhooks packages.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from consumers.alert.sign import key_of, signature

MAX_BODY_BYTES = 256 * 1024
READ_S = 10.0

OnAlert = Callable[[dict[str, Any]], None]


@asynccontextmanager
async def receiving(secret: str, on_alert: OnAlert) -> AsyncIterator[str]:
    """Listen on a free port; yields the address to send to. Each webhook-id reaches `on_alert` once."""
    key, seen = key_of(secret), set[str]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status = "400 Bad Request"
        try:
            async with asyncio.timeout(READ_S):
                headers, body = await _request(reader)
            if _is_signed(key, headers, body):
                status = "204 No Content"
                if headers["webhook-id"] not in seen:
                    seen.add(headers["webhook-id"])
                    on_alert(json.loads(body))
        except (asyncio.IncompleteReadError, TimeoutError, ValueError, KeyError, ConnectionError):
            pass  # whatever it was, it was no webhook
        finally:
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"


async def _request(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    """Headers in lower case, and the body. Raises ValueError where it is too long."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    length = int(headers.get("content-length", 0))
    if length > MAX_BODY_BYTES:
        raise ValueError("too long")
    return headers, await reader.readexactly(length)


def _is_signed(key: bytes, headers: dict[str, str], body: bytes) -> bool:
    expected = signature(key, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    return any(hmac.compare_digest(expected, sent) for sent in headers["webhook-signature"].split())
