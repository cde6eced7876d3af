"""compose.yaml: valid by the Compose specification, and its services fit the images and the gateway's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compose_spec
import pytest

from serving.gateway.settings import Settings
from tests.unit.deploy.support import documents, stages


@pytest.fixture
def services(root: Path) -> dict[str, Any]:
    (document,) = documents(root / "compose.yaml")
    found: dict[str, Any] = document["services"]
    return found


def test_it_is_valid(root: Path) -> None:
    compose = compose_spec.PyCompose.from_yaml((root / "compose.yaml").read_text())
    compose.validate()
    assert set(compose.service_names()) == {"postgres", "triton", "gateway"}


def test_the_validator_refuses_what_is_wrong(root: Path) -> None:
    text = (root / "compose.yaml").read_text()
    with pytest.raises(ValueError, match="restrat"):
        compose_spec.PyCompose.from_yaml(text.replace("restart:", "restrat:"))


def test_services_are_built_from_the_two_targets(root: Path, services: dict[str, Any]) -> None:
    targets = stages((root / "Dockerfile").read_text())
    built = {name: service["build"]["target"] for name, service in services.items() if "build" in service}
    assert built == {"triton": "engine", "gateway": "gateway"}
    assert set(built.values()) <= set(targets)


def test_the_gateway_is_told_settings_that_exist(services: dict[str, Any]) -> None:
    gateway = services["gateway"]
    values = {name.removeprefix("STILLMOTION_").lower(): value for name, value in gateway["environment"].items()}
    settings = Settings(
        **{name: value.replace("${POSTGRES_PASSWORD:-stillmotion}", "x") for name, value in values.items()}
    )
    assert settings.database_url == "postgresql://stillmotion:x@postgres:5432/stillmotion"
    assert gateway["depends_on"] == {name: {"condition": "service_healthy"} for name in ("postgres", "triton")}


def test_nobody_outside_reaches_an_unkeyed_gateway(services: dict[str, Any]) -> None:
    assert services["gateway"]["environment"]["STILLMOTION_ALLOW_UNKEYED"] == "true"
    assert services["gateway"]["ports"] == ["127.0.0.1:8000:8000"]
    assert not [name for name in ("triton", "postgres") if services[name].get("ports")]
