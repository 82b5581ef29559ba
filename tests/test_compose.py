"""The compose file is one, and what its services run is what runs outside a container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text("utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if name != "valkey"}


def test_the_file_is_what_the_compose_specification_says():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(ROOT / "docker-compose.yml")], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_one_process_runs_by_default_and_single_roles_on_request():
    by_default = [name for name, service in OURS.items() if "profiles" not in service]

    assert by_default == ["sectorwire"]
    assert OURS["sectorwire"]["command"] == ["run"]
    assert {name for name, service in OURS.items() if service.get("profiles") == ["roles"]} == {
        "poll",
        "alert",
        "archive",
    }


@pytest.mark.parametrize("name", OURS)
def test_what_a_service_runs_is_a_command_of_ours(name: str):
    """Without a configuration it says so and ends: the words are right."""
    command = [sys.executable, "-m", "sectorwire", *OURS[name]["command"], "--config", "nowhere.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert (done.returncode, "there is no nowhere.toml" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_restarted_stopped_gently_and_asked_for_its_health(name: str):
    service = OURS[name]

    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"] == "15s"
    assert service["healthcheck"]["test"] == ["CMD", "sectorwire", "status", "--check"]
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("secret", ["KIWOOM_APP_KEY", "KIWOOM_SECRET_KEY"])
def test_a_missing_secret_is_named_with_what_to_do(secret: str):
    """Compose prints what stands behind `:?` and starts nothing."""
    assert OURS["sectorwire"]["environment"][secret].startswith(f"${{{secret}:?put the ")


def test_the_server_keeps_its_data_and_evicts_nothing():
    valkey = COMPOSE["services"]["valkey"]
    options = dict(zip(valkey["command"][1::2], valkey["command"][2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert valkey["image"].split(":")[1][0].isdigit()  # pinned, not `latest`


def test_the_image_installs_the_lock_and_starts_the_command():
    lines = (ROOT / "Dockerfile").read_text("utf-8")

    assert "--require-hashes --requirement requirements.lock" in lines
    assert 'ENTRYPOINT ["sectorwire"]' in lines
    assert "USER sectorwire" in lines
