"""deploy/kubernetes: each object valid by Kubernetes' own schemas, and the objects fit each other and the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.gateway.settings import Settings
from tests.unit.deploy.support import check_command, documents, stages

VERSION = "1.33"
"""Of Kubernetes. preStop's sleep is on by default from 1.30."""
BY_HAND = {"first-key.yaml", "render.yaml"}
CUSTOM = {"RayJob"}
"""Kinds that Kubernetes' own schemas do not have: KubeRay's, held below to the fields of its ray.io/v1."""
RAY_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "preRunningDeadlineSeconds",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
RAY_CLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "rayVersion",
    "suspend",
    "upgradeStrategy",
    "workerGroupSpecs",
}
RAY_HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
RAY_WORKER = {
    "groupName",
    "idleTimeoutSeconds",
    "labels",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "rayStartParams",
    "replicas",
    "resources",
    "scaleStrategy",
    "suspend",
    "template",
}
SECRET = {"STILLMOTION_DATABASE_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "STILLMOTION_WEBHOOK_SECRET"}
"""What docs/operations.md puts into the Secret."""


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "deploy" / "kubernetes"


@pytest.fixture
def objects(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    files = [path for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"]
    every = [document for path in files for document in documents(path)]
    return {(document["kind"], document["metadata"]["name"]): document for document in every}


def pods(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod specs by the name of what makes them."""
    makers = ("Deployment", "StatefulSet", "Job")
    plain = {name: item["spec"]["template"]["spec"] for (kind, name), item in objects.items() if kind in makers}
    return plain | {name: group["template"]["spec"] for name, group in ray_groups(objects).items()}


def ray_groups(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The head's and the workers' groups of the RayJob."""
    cluster = objects["RayJob", "stillmotion-render"]["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def test_each_object_is_valid(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert len(objects) >= 12
    for (kind, _), item in objects.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(item, VERSION, strict=True)


def test_the_validator_refuses_what_is_wrong(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    budget = objects["PodDisruptionBudget", "stillmotion-gateway"]
    with pytest.raises(kubernetes_validate.ValidationError, match="minAvialable"):
        kubernetes_validate.validate(budget | {"spec": {"minAvialable": 1}}, VERSION, strict=True)


def test_the_kustomization_names_every_file_and_image(folder: Path, objects: Any) -> None:
    (told,) = documents(folder / "kustomization.yaml")
    there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(told["resources"]) == there - BY_HAND
    images = {f"{image['name']}:{image['newTag']}" for image in told["images"]}
    assert images == {container["image"] for pod in pods(objects).values() for container in pod["containers"]}


def test_images_are_the_dockerfiles_targets_and_their_ports(root: Path, objects: Any) -> None:
    targets = stages((root / "Dockerfile").read_text())
    for name, pod in pods(objects).items():
        for container in pod["containers"]:
            target = targets[container["image"].removeprefix("stillmotion-").partition(":")[0]]
            ports = {str(port["containerPort"]) for port in container.get("ports", [])}
            assert ports <= set(target.last("EXPOSE").split()), name
            if target.name == "engine":
                assert container["args"] == target.command("CMD")


def test_every_pod_is_unprivileged_and_bounded(root: Path, objects: Any) -> None:
    uid = int(stages((root / "Dockerfile").read_text())["gateway"].last("USER"))
    for pod in pods(objects).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == uid
        mounted = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container["volumeMounts"]} == mounted


def test_services_budgets_and_policies_select_pods_that_exist(objects: Any) -> None:
    made = [item["spec"]["template"] for item in objects.values() if "template" in item.get("spec", {})]
    labels = [template["metadata"]["labels"] for template in made]
    for (kind, name), item in objects.items():
        spec = item.get("spec", {})
        wanted = spec.get("podSelector", spec.get("selector"))
        if kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "StatefulSet"):
            wanted = wanted.get("matchLabels", wanted)
            assert sum(wanted.items() <= label.items() for label in labels) == 1, (kind, name)
    ports = {port["name"] for pod in pods(objects).values() for port in pod["containers"][0].get("ports", [])}
    for (kind, _), item in objects.items():
        if kind == "Service":
            assert {port["targetPort"] for port in item["spec"]["ports"]} <= ports


def test_the_gateway_is_told_settings_that_exist(root: Path, objects: Any) -> None:
    told = objects["ConfigMap", "stillmotion-gateway"]["data"]
    known = {f"STILLMOTION_{name.upper()}" for name in Settings.model_fields}
    assert set(told) <= known
    Settings(**{name.removeprefix("STILLMOTION_").lower(): value for name, value in told.items()})
    assert {name for name in SECRET if name.startswith("STILLMOTION")} <= known
    page = (root / "docs" / "operations.md").read_text()
    assert all(name in page for name in SECRET), "the page says what the Secret holds"
    pod = pods(objects)["stillmotion-gateway"]
    grace, sleep = float(told["STILLMOTION_GRACE_S"]), pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= grace + sleep + 15, "or Kubernetes cuts the jobs short"


def test_servers_have_a_gpu_and_time_to_stop(objects: Any) -> None:
    pod = pods(objects)["stillmotion-triton"]
    (container,) = pod["containers"]
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["nvidia.com/gpu"] == "1"
    exit_s = next(word.partition("=")[2] for word in container["args"] if word.startswith("--exit-timeout-secs"))
    assert pod["terminationGracePeriodSeconds"] > int(exit_s)


def test_probes_ask_paths_that_answer(objects: Any) -> None:
    gateway, triton = (pods(objects)[f"stillmotion-{name}"]["containers"][0] for name in ("gateway", "triton"))
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    assert {gateway[probe]["httpGet"]["path"] for probe in probes} == {"/health/live"}
    assert [triton[probe]["httpGet"]["path"] for probe in probes] == [
        "/v2/health/ready", "/v2/health/live", "/v2/health/ready",
    ]  # fmt: skip
    assert all(container[probe]["httpGet"]["port"] == "http" for container in (gateway, triton) for probe in probes)


def test_it_scales_on_a_metric_that_is_collected(root: Path, objects: Any) -> None:
    (metric,) = objects["HorizontalPodAutoscaler", "stillmotion-triton"]["spec"]["metrics"]
    name = metric["external"]["metric"]["name"]
    (rule,) = yaml.safe_load(objects["ConfigMap", "stillmotion-adapter-rules"]["data"]["config.yaml"])["externalRules"]
    assert rule["name"]["as"] == name == rule["seriesQuery"]
    assert set(re.findall(r"stillmotion_\w+", rule["metricsQuery"])) == {name}
    assert f'"{name}"' in (root / "serving" / "observe" / "metrics.py").read_text()


def test_the_ray_job_has_the_fields_of_its_kind(objects: Any) -> None:
    job = objects["RayJob", "stillmotion-render"]
    assert job["apiVersion"] == "ray.io/v1"
    cluster = job["spec"]["rayClusterSpec"]
    assert set(job["spec"]) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) <= RAY_HEAD
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= RAY_WORKER
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in ray_groups(objects).values():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "they are a command's words"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_ray_job_renders_with_a_command_that_exists(root: Path, objects: Any) -> None:
    spec = objects["RayJob", "stillmotion-render"]["spec"]
    program, *words = spec["entrypoint"].split()
    assert program == "stillmotion"
    options = check_command(words)
    assert options["ray_address"] == "auto", "or the driver would start a Ray of its own"
    assert str(options["out"]).startswith("s3:"), "workers have no disk in common"
    pinned = re.findall(r"^ray==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned == [spec["rayClusterSpec"]["rayVersion"]]
    groups = ray_groups(objects)
    assert groups["head"]["rayStartParams"]["num-cpus"] == "0"
    (worker,) = groups["gpu"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1", "a worker is an actor a GPU"
    keys = {variable["valueFrom"]["secretKeyRef"]["key"] for variable in worker["env"]}
    assert keys == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= SECRET
