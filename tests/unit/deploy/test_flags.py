"""What the image, Compose and Kubernetes start: a command line `stillmotion` accepts, with addresses that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.deploy.support import check_command, documents, stages


@pytest.fixture
def objects(root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    files = [path for path in (root / "deploy" / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml"]
    every = [document for path in files for document in documents(path)]
    return {(document["kind"], document["metadata"]["name"]): document for document in every}


def test_the_images_own_command(root: Path) -> None:
    stage = stages((root / "Dockerfile").read_text())["gateway"]
    assert stage.command("ENTRYPOINT") == ["stillmotion"]
    told = check_command(stage.command("CMD"))
    assert told["engine"].value == "triton"
    assert told["triton_url"] == ["triton:8001"]


def test_compose_names_a_service(root: Path) -> None:
    (document,) = documents(root / "compose.yaml")
    services = document["services"]
    (url,) = check_command(services["gateway"]["command"])["triton_url"]
    host, _, port = url.partition(":")
    assert host in services
    assert port == "8001"


def test_the_job_that_makes_the_first_key(objects: Any) -> None:
    (container,) = objects["Job", "stillmotion-first-key"]["spec"]["template"]["spec"]["containers"]
    assert check_command(container["args"])["operator"] is True


def test_the_gateway_knows_every_server_that_may_be_started(objects: Any) -> None:
    scaler = objects["HorizontalPodAutoscaler", "stillmotion-triton"]["spec"]
    target = scaler["scaleTargetRef"]
    servers = objects[target["kind"], target["name"]]["spec"]
    assert "replicas" not in servers, "applying it again would undo what the autoscaler did"
    service = objects["Service", servers["serviceName"]]
    grpc = next(port["port"] for port in service["spec"]["ports"] if port["name"] == "grpc")
    wanted = [f"{target['name']}-{i}.{servers['serviceName']}:{grpc}" for i in range(scaler["maxReplicas"])]
    (container,) = objects["Deployment", "stillmotion-gateway"]["spec"]["template"]["spec"]["containers"]
    assert check_command(container["args"])["triton_url"] == wanted
