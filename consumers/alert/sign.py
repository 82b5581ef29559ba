"""A secret, an id, a moment and the bytes to send go in; the headers of Standard Webhooks come out.

Pure. The surprise: what is signed are the exact bytes on the wire, so whoever sends must not write the body again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from urllib.parse import quote

SECRET_PREFIX = "whsec_"  # noqa: S105 -- the public mark before every secret, not one of them
SECRET_BYTES = range(24, 65)
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def key_of(secret: str) -> bytes:
    """The signing key in a secret. Raises ValueError, which never holds the secret."""
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"does not begin with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"is not base64 after {SECRET_PREFIX}") from None
    if len(key) not in SECRET_BYTES:
        raise ValueError(f"holds {len(key)} bytes instead of 24 to 64")
    return key


def header_id(decision_id: str) -> str:
    """The id as a header can carry it: Korean and blanks are percent-encoded, and nothing else.

    >>> header_id("kospi-falls/001 급#1")
    'kospi-falls/001%20%EA%B8%89#1'
    """
    return quote(decision_id, safe=PRINTABLE)


def signature(key: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, time and body.

    >>> signature(b"k" * 24, "msg_1", 1795330635, b"{}")
    'v1,VMpuaQZEmrBBeNqxPQ4/gR9e2JUM14VdnAqv3XumQH0='
    """
    signed = f"{webhook_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers(key: bytes | None, decision_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers of Standard Webhooks; without a key the first two."""
    webhook_id = header_id(decision_id)
    unsigned = {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp_s)}
    return unsigned if key is None else {**unsigned, "webhook-signature": signature(key, webhook_id, timestamp_s, body)}
