"""Nothing but the open internet is reached, whatever a name means when it is dialled; except what was allowed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.alert.endpoints import Network
from consumers.alert.guard import NEVER, Blocked, GuardedTransport, refusal, trouble_words

EVERYTHING: list[Network] = [ip_network("0.0.0.0/0"), ip_network("::/0")]
LOOPBACK: list[Network] = [ip_network("127.0.0.0/8")]


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2001:4860:4860::8888"])
def test_the_open_internet_is_reached(address: str):
    assert refusal(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "0.0.0.0", "240.0.0.1", "198.18.0.1",  # noqa: S104 -- refused here, not bound to
        "192.88.99.1", "192.0.2.1", "255.255.255.255", "224.0.0.1", "239.255.255.250", "169.254.169.254",
        "168.63.129.16", "100.100.100.200", "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808",
        "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fec0::1",
        "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1",
        "2606:4700::5efe:7f00:1",
    ],
)  # fmt: skip
def test_nothing_else_is(address: str):
    """Python's own `is_global` says yes to several of them: 64:ff9b::7f00:1, 2002:7f00:1::, ::127.0.0.1, fec0::1."""
    assert refusal(address)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::169.254.169.254",
        "fe80::1", "fd00:ec2::254", "168.63.129.16", "224.0.0.1", "ff02::1",
    ],
)  # fmt: skip
def test_metadata_and_multicast_are_never_allowed(address: str):
    assert "never allowed" in (refusal(address, EVERYTHING) or "")


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("127.0.0.0/8", "127.0.0.1"),
        ("10.0.0.0/8", "10.9.9.9"),
        ("10.0.0.0/8", "::ffff:10.9.9.9"),
        ("::1/128", "::1"),
        ("fc00::/7", "fd12::1"),
        ("64:ff9b::/96", "64:ff9b::808:808"),
    ],
)
def test_a_network_of_ones_own_may_be_opened(network: str, address: str):
    assert refusal(address, [ip_network(network)]) is None
    assert refusal(address, [ip_network("192.168.0.0/16")])


@given(st.ip_addresses(v=4))
def test_an_address_of_ipv4_is_refused_in_every_disguise(plain: Any):
    disguises = [f"::ffff:{plain}", f"::{plain}", f"64:ff9b::{plain}"]
    disguises += [str(ip_address((0x2002 << 112) | (int(plain) << 80)))]
    if refusal(plain):
        assert all(refusal(one) for one in disguises)
    if any(plain in network for network in NEVER):
        assert all(refusal(one, EVERYTHING) for one in disguises)


# --- at the dial


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers 302 and notes who came."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], came


async def get(url: str, allowed: list[Network]) -> httpx.Response:
    transport = GuardedTransport(allowed)
    try:
        answer = await transport.handle_async_request(httpx.Request("GET", url))
        await answer.aread()
        return answer
    finally:
        await transport.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_no_spelling_of_loopback_gets_through(host: str):
    async with listening() as (port, came):
        with pytest.raises(Blocked):
            await get(f"http://{host}:{port}/", [])

    assert came == []


async def test_what_is_allowed_is_reached_and_a_redirect_is_an_answer():
    async with listening() as (port, came):
        answer = await get(f"http://127.0.0.1:{port}/hook?x=1", LOOPBACK)

    assert (answer.status_code, len(came)) == (302, 1)
    assert came[0].startswith(b"GET /hook?x=1 HTTP/1.1\r\n")


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[int]:
    """Let every name mean these addresses; returns a list that grows with each question."""
    asked: list[int] = []

    async def getaddrinfo(self: Any, host: str, port: int, **options: Any) -> list[Any]:
        asked.append(port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


async def test_one_private_address_among_public_ones_blocks_the_name(monkeypatch: pytest.MonkeyPatch):
    names(monkeypatch, "8.8.8.8", "127.0.0.1")
    with pytest.raises(Blocked, match=r"127\.0\.0\.1"):
        await get("http://innocent.example:9/", [])


async def test_a_name_is_resolved_once_and_the_checked_address_is_dialled(monkeypatch: pytest.MonkeyPatch):
    """A second look would give a rebinding name the chance to mean something else."""
    async with listening() as (port, came):
        asked = names(monkeypatch, "127.0.0.1")
        answer = await get(f"http://mine.example:{port}/", LOOPBACK)

    assert (answer.status_code, asked) == (302, [port])
    assert f"host: mine.example:{port}".encode() in came[0].lower()


async def test_trouble_is_told_by_its_kind():
    with pytest.raises(httpx.TransportError) as nameless:
        await get("http://nowhere.invalid/secret-path", [])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(httpx.TransportError) as refused:
            await get(f"http://127.0.0.1:{unused.getsockname()[1]}/secret-path", LOOPBACK)

    assert trouble_words(nameless.value) == "its name does not resolve"
    assert trouble_words(refused.value) == "the connection was refused"
    assert trouble_words(TimeoutError()) == "no answer in time"


async def test_tls_that_cannot_be_agreed_is_told_as_such():
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 this is not TLS\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    async with server:
        with pytest.raises(httpx.TransportError) as refused:
            await get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", LOOPBACK)

    assert trouble_words(refused.value) == "TLS could not be agreed"


def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    async def reach() -> int:
        async with listening() as (port, _):
            return (await get(f"http://127.0.0.1:{port}/", LOOPBACK)).status_code

    assert asyncio.run(reach()) == 302
