"""A name to connect to goes in; a connection to an address that may be reached comes out, or Blocked.

The check is made when dialling, after the name was resolved, on all of its addresses, and the connection goes to an
address that was checked: what a name means later does not matter. TLS still checks the name. The surprises: Python's
`is_global` is true for addresses that carry a private one inside (NAT64, 6to4), so those are named here; and requests
go through the transport and not through httpx's client, which writes whole urls to the log, keeps cookies and can read
proxies from the environment.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore
import httpx

from consumers.alert.endpoints import Network

KEEP_ALIVE_S = 5.0
Address = IPv4Address | IPv6Address

NEVER: tuple[Network, ...] = (
    ip_network("169.254.0.0/16"),  # link-local, and where most clouds answer with credentials
    ip_network("fe80::/10"),
    ip_network("fd00:ec2::/32"),  # Amazon's metadata
    ip_network("fd20:ce::254/128"),  # Google's
    ip_network("100.100.100.200/32"),  # Alibaba's
    ip_network("168.63.129.16/32"),  # Azure's, in the middle of a public range
    ip_network("192.0.0.192/32"),  # Oracle's
    ip_network("224.0.0.0/4"),  # multicast: nobody there can answer
    ip_network("ff00::/8"),
    ip_network("255.255.255.255/32"),
)
PUBLIC_6 = IPv6Network("2000::/3")
CARRIERS = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")))
"""Ranges of IPv6 whose addresses hold one of IPv4, which is where the packets end up."""

NOT_PUBLIC: tuple[Network, ...] = (*CARRIERS, *map(ip_network, ("192.88.99.0/24", "3fff::/20", "5f00::/16")))


class Blocked(Exception):
    """An address may not be reached; the message says why and what would allow it."""


def refusal(address: str | Address, allowed: Iterable[Network] = ()) -> str | None:
    """Why an address may not be reached, or None where it may.

    >>> refusal("10.0.0.1")
    '10.0.0.1 is not globally routable; a receiver of your own needs allow_networks'
    >>> refusal("8.8.8.8")
    """
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    carried = list(_carried(ip))
    if any(one in network for one in (ip, *carried) for network in NEVER):
        return f"{ip} is link-local, multicast or a cloud's metadata, which is never allowed"
    if any(ip in network for network in allowed):
        return None
    public = ip.is_global and not ip.is_reserved and not any(ip in network for network in NOT_PUBLIC)
    if public and (isinstance(ip, IPv4Address) or (ip in PUBLIC_6 and not carried)):
        return None
    return f"{ip} is not globally routable; a receiver of your own needs allow_networks"


def _carried(ip: Address) -> Iterator[IPv4Address]:
    """The addresses of IPv4 inside one of IPv6."""
    if isinstance(ip, IPv4Address):
        return
    bits = int(ip)
    if ip.sixtofour:
        yield ip.sixtofour
    if ip.teredo:
        yield from ip.teredo
    tunnelled = (bits >> 32) & 0xFDFFFFFF == 0x5EFE  # ISATAP, whatever its network
    if tunnelled or any(ip in network for network in CARRIERS if network.prefixlen in {48, 96}):
        yield IPv4Address(bits & 0xFFFFFFFF)


class GuardedBackend(httpcore.AnyIOBackend):
    """Opens connections to addresses that may be reached, and to no others."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = allowed

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- the library's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check every address, connect to the first checked one that answers."""
        trouble: httpcore.ConnectError | httpcore.ConnectTimeout = httpcore.ConnectError("no address")
        for address in await self._checked(host, port):
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                trouble = error
        raise trouble

    async def _checked(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the name does not resolve") from error
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        for address in addresses:
            if reason := refusal(address, self._allowed):
                raise Blocked(reason)
        return addresses


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx's requests over guarded connections; one transport per endpoint, since each allows networks of its own."""

    def __init__(self, allowed: Sequence[Network] = (), *, connections: int = 8) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),  # SSL_CERT_FILE may name a CA of one's own
            max_connections=connections,
            keepalive_expiry=KEEP_ALIVE_S,
            retries=0,
            network_backend=GuardedBackend(allowed),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request on the wire. Raises Blocked, httpx.TimeoutException and httpx.TransportError."""
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        wire = httpcore.Request(
            request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions
        )
        with _as_httpx():
            answer = await self._pool.handle_async_request(wire)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Stream(answer.stream), request=request)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextmanager
def _as_httpx() -> Iterator[None]:
    """The transport's contract: its errors are httpx's, without the library's texts, which may hold the url."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TimeoutException("no answer in time") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise httpx.TransportError("no whole answer") from error


def trouble_words(error: BaseException) -> str:
    """What went wrong on the wire, from the kinds of errors and never from their texts."""
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return "no answer in time"
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        match one:
            case ssl.SSLCertVerificationError():
                return f"its certificate was refused: {one.verify_message}"
            case ssl.SSLError():
                return "TLS could not be agreed"
            case socket.gaierror() | UnicodeError():
                return "its name does not resolve"
            case ConnectionRefusedError():
                return "the connection was refused"
            case ConnectionResetError() | httpcore.RemoteProtocolError() | httpcore.ReadError() | httpcore.WriteError():
                return "the connection was cut"
            case _:
                continue
    return "the connection failed"
