"""The two processes of the chaos run that are no commands of ours: a member of a plain group, and a receiver.

    python -m tests.chaos_roles member URL NAME FILE
    python -m tests.chaos_roles receiver PORT FILE

Both write a line to their file and see it on the disk before they acknowledge or answer, so that what is not in the
file was never acknowledged, whoever was killed when.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from standardwebhooks import Webhook, WebhookVerificationError

from consumers import group
from consumers.group import Batch, Membership
from poller.store import connect

GROUP = "plain"
TRS = ("ka20001", "ka20003", "ka10051", "ka10010", "ka20009", "ka20002")
MIN_IDLE_MS = 4_000
"""A minute in earnest; here nobody has that long."""


class Notes:
    """A file that only grows; a line is on the disk when `note` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, lines: str) -> None:
        os.write(self._file, lines.encode())
        os.fsync(self._file)


async def member(url: str, name: str, path: Path) -> None:
    """Take part in the group on every stream; several do, and none is alone."""
    group.MIN_IDLE_MS = MIN_IDLE_MS
    notes, stop = Notes(path), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def handle(batch: Batch) -> None:
        notes.note("".join(f"{one.tr} {one.stream_id} {one.fields['id']}\n" for one in batch))

    redis = connect(url, name="chaos-member")
    async with asyncio.TaskGroup() as together:
        for tr in TRS:
            together.create_task(Membership(redis, "sectorwire", tr, GROUP, name, alone=False).consume(handle, stop))
    await redis.aclose()


async def receiver(port: int, path: Path) -> None:
    """Take webhooks, and say so when they are written down."""
    webhook, notes, stop = Webhook(os.environ["CHAOS_HOOK_SECRET"]), Notes(path), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def answer(headers: dict[str, str], body: bytes) -> str:
        told = {"id": headers.get("webhook-id", ""), "body": body.decode()}
        try:
            webhook.verify(body, headers)
        except WebhookVerificationError as error:
            notes.note(json.dumps({**told, "broken": str(error)}) + "\n")
            return "400 Bad Request"
        notes.note(json.dumps(told) + "\n")
        return "204 No Content"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            status = answer(headers, await reader.readexactly(int(headers["content-length"])))
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
            await writer.drain()
        except (EOFError, ConnectionError):
            pass  # a sender that dies in the middle has sent nothing
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        await stop.wait()


if __name__ == "__main__":
    if sys.argv[1] == "member":
        asyncio.run(member(sys.argv[2], sys.argv[3], Path(sys.argv[4])))
    else:
        asyncio.run(receiver(int(sys.argv[2]), Path(sys.argv[3])))
