"""What `doctor` finds beyond polling: roles that could not start here, and endpoints that alerts do not reach."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from redis.asyncio import Redis

from consumers.alert.outbox import Outbox
from sectorwire import findings_of_roles

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
ENVIRON = {"KIWOOM_APP_KEY": "an-app-key", "KIWOOM_SECRET_KEY": "a-secret-key", "DESK_SECRET": SECRET}
CONFIG = """
[kiwoom]
environment = "mock"
[[poll]]
tr = "ka20003"
target = { inds_cd = "001" }
every = "10s"
[[endpoint]]
name = "desk"
url = "https://desk.example/hook"
secret_env = "DESK_SECRET"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "sectorwire.toml"
    file.write_text(CONFIG, "utf-8")
    return file


async def test_where_every_role_could_start_and_nothing_waits_nothing_is_found(redis: Redis, path: Path):
    assert await findings_of_roles(path, ENVIRON, redis, "test") == []


async def test_a_secret_that_is_not_set_here_is_found_with_its_name_and_stops_no_diagnosis(redis: Redis, path: Path):
    keys, secret = await findings_of_roles(path, {}, redis, "test")

    assert (keys.severity, secret.severity) == ("warning", "warning")
    assert "KIWOOM_APP_KEY is not set" in keys.what
    assert "DESK_SECRET" in secret.what
    assert "export it" in secret.remedy


async def test_an_endpoint_that_was_given_up_is_found_with_the_command_that_asks_it(redis: Redis, path: Path):
    await redis.hset(Outbox(redis, "test", "desk")._state, "disabled", "it answered 410 Gone")

    (found,) = await findings_of_roles(path, ENVIRON, redis, "test")

    assert found.what == "endpoint desk: 0 alerts wait, it answered 410 Gone"
    assert "sectorwire endpoints test desk" in found.remedy
