"""`[[endpoint]]` sections and the environment go in; places to send to come out, or one line that says what to change.

The surprise: a url may be as secret as a password (a bot's token stands in it), so it is kept like one. People see the
host and no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from consumers.alert.sign import key_of
from consumers.durations import seconds

Format = Literal["standard", "telegram", "slack", "discord"]
Network = IPv4Network | IPv6Network
RATE: dict[Format, float] = {"standard": 5, "telegram": 1, "slack": 1, "discord": 5}
"""Requests per second where nothing is said; the chats' are what they themselves allow to one channel."""

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


class EndpointError(ValueError):
    """An endpoint cannot be sent to as it is configured; the message is one line with the remedy."""


class EndpointSettings(BaseModel):
    """One place that alerts are sent to, as written in `sectorwire.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    url: SecretStr | None = None
    url_env: str | None = None
    secret_env: str | None = None
    format: Format = "standard"
    chat_id: str | int | None = None
    allow_http: bool = False
    allow_networks: tuple[Network, ...] = ()
    expires_after: Annotated[float, BeforeValidator(seconds), Field(gt=0)] = 1800.0
    rate: Annotated[float, Field(gt=0, le=100)] | None = None


@dataclass(frozen=True)
class Endpoint:
    """One place that alerts are sent to, checked. `repr` shows nothing that opens a door."""

    name: str
    url: SecretStr = field(repr=False)
    key: bytes | None = field(default=None, repr=False)
    format: Format = "standard"
    chat_id: str | int | None = field(default=None, repr=False)
    networks: tuple[Network, ...] = ()
    expires_after_s: float = 1800.0
    rate: float = 5.0

    @property
    def host(self) -> str:
        """Where it is, as far as people may see."""
        return urlsplit(self.url.get_secret_value()).hostname or "?"


def compile_endpoints(settings: Iterable[EndpointSettings], environ: Mapping[str, str]) -> list[Endpoint]:
    """The endpoints, in the order given. Raises EndpointError for the first that cannot be sent to."""
    endpoints = [_compiled(one, environ) for one in settings]
    names = [endpoint.name for endpoint in endpoints]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise EndpointError(f"endpoint {twice}: the name is used twice; give every [[endpoint]] a name of its own")
    return endpoints


def _compiled(settings: EndpointSettings, environ: Mapping[str, str]) -> Endpoint:
    if settings.format == "telegram" and settings.chat_id is None:
        raise EndpointError(f'endpoint {settings.name}: format "telegram" needs chat_id, the chat the bot writes to')
    return Endpoint(
        name=settings.name,
        url=SecretStr(_url(settings, environ)),
        key=_key(settings, environ),
        format=settings.format,
        chat_id=settings.chat_id,
        networks=settings.allow_networks,
        expires_after_s=settings.expires_after,
        rate=settings.rate or RATE[settings.format],
    )


def _url(settings: EndpointSettings, environ: Mapping[str, str]) -> str:
    """The url, which no message repeats: it may hold a token."""
    name = settings.name
    if (settings.url is None) == (settings.url_env is None):
        raise EndpointError(f"endpoint {name}: give either url, or url_env where the url itself is secret")
    if settings.url is not None:
        given, where = settings.url.get_secret_value(), "url"
    else:
        given, where = (
            _from(environ, settings.url_env or "", name, "url_env", "the url"),
            f"the url in {settings.url_env}",
        )
    try:
        parts = urlsplit(given)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise EndpointError(f"endpoint {name}: {where} cannot be read; write https://HOST/PATH") from None
    if parts.scheme not in {"https", "http"} or not host or re.search(r"[\s\x00-\x1f]", given):
        raise EndpointError(f"endpoint {name}: {where} is not a web address; write https://HOST/PATH")
    if parts.scheme == "http" and not settings.allow_http:
        raise EndpointError(
            f"endpoint {name}: {where} is http; use https, or set allow_http = true for one of your own"
        )
    if parts.username is not None or parts.password is not None:
        raise EndpointError(f"endpoint {name}: {where} holds a user name; take it out, webhooks are signed instead")
    return given


def _key(settings: EndpointSettings, environ: Mapping[str, str]) -> bytes | None:
    if settings.secret_env is None:
        if settings.format == "standard":
            raise EndpointError(
                f"endpoint {settings.name}: secret_env is missing; name the environment variable that holds the secret"
            )
        return None
    secret = _from(environ, settings.secret_env, settings.name, "secret_env", "a secret whsec_…")
    try:
        return key_of(secret)
    except ValueError as error:
        raise EndpointError(
            f"endpoint {settings.name}: the secret in {settings.secret_env} {error}; "
            "a Standard Webhooks secret is whsec_ and the base64 of 24 to 64 bytes"
        ) from None


def _from(environ: Mapping[str, str], variable: str, name: str, setting: str, what: str) -> str:
    if not VARIABLE.fullmatch(variable):  # perhaps the secret itself, so it is not repeated
        raise EndpointError(
            f'endpoint {name}: {setting} is not the name of an environment variable; write it like "DESK_SECRET"'
        )
    value = environ.get(variable, "").strip()
    if not value:
        raise EndpointError(f"endpoint {name}: {setting} names {variable}, which is not set; export it with {what}")
    return value
