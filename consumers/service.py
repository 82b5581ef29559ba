"""The consumers' part of the configuration goes in; their roles come out, checked and ready to run side by side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from consumers.alert.decide import AlertRole
from consumers.alert.endpoints import Endpoint, EndpointSettings, compile_endpoints
from consumers.alert.rules import Rule, RuleSettings, compile_rules
from consumers.alert.send import SendRole
from consumers.archive.settings import ArchiveSettings
from poller.contract import Catalogue

if TYPE_CHECKING:
    from consumers.archive.writer import ArchiveRole


class ConsumerSettings(BaseModel):
    """The sections of `sectorwire.toml` that are not the poller's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: list[RuleSettings] = []
    endpoint: list[EndpointSettings] = []
    archive: ArchiveSettings | None = None


@dataclass(frozen=True)
class Desk:
    """Rules and endpoints, checked against the catalogue and the environment."""

    rules: list[Rule]
    endpoints: list[Endpoint]
    archive: ArchiveSettings | None


def checked_desk(settings: ConsumerSettings, catalogue: Catalogue, environ: Mapping[str, str]) -> Desk:
    """Everything that can be wrong before the start. Raises RuleError or EndpointError with the remedy."""
    names = [endpoint.name for endpoint in settings.endpoint]
    rules = compile_rules(settings.rule, catalogue, names)
    return Desk(rules, compile_endpoints(settings.endpoint, environ), settings.archive)


@dataclass(frozen=True)
class Roles:
    """The roles of one process; those that have nothing to do are None."""

    alert: AlertRole | None
    send: SendRole | None
    archive: ArchiveRole | None

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, each role by itself."""
        async with asyncio.TaskGroup() as tasks:
            for role in (self.alert, self.send, self.archive):
                if role is not None:
                    tasks.create_task(role.run(stop))


def roles_of(
    desk: Desk, redis: Redis, prefix: str, catalogue: Catalogue, *, alerts: bool = True, archive: bool = True
) -> Roles:
    """The roles that the configuration asks for. The host's name is the consumer's, so a restart finds its backlog."""
    name = socket.gethostname()
    archiving = _archive_role(desk.archive, redis, prefix, catalogue, name) if archive and desk.archive else None
    decides = alerts and bool(desk.rules)
    trs = sorted({rule.tr for rule in desk.rules})
    return Roles(
        alert=AlertRole(redis, prefix, catalogue, desk.rules, name) if decides else None,
        send=SendRole(redis, prefix, trs, desk.endpoints, name) if decides and desk.endpoints else None,
        archive=archiving,
    )


def _archive_role(settings: ArchiveSettings, redis: Redis, prefix: str, catalogue: Catalogue, name: str) -> ArchiveRole:
    from consumers.archive.writer import ArchiveRole  # noqa: PLC0415 -- an extra of 130 MB, for those who archive

    return ArchiveRole(redis, prefix, catalogue, settings, name)
