"""The Kubernetes manifests: Kubernetes' schemas, KubeRay's fields, hardened pods, configurations that are ours."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

import rayvec
from pipelines._ray import ENVIRONMENT
from rayvec.serving import proxy
from rayvec.serving.config import ServeConfig

kubernetes = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed; `make setup` does"
)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text(encoding="utf-8"))
VERSION = "1.34.0"


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(FOLDER.glob("*.yaml")):
        for value in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            yield f"{file.stem}-{value['kind']}-{value['metadata']['name']}", value


OBJECTS = dict(objects())
RAY = {name: value for name, value in OBJECTS.items() if value["apiVersion"] == "ray.io/v1"}


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in RAY.items():
        spec = value["spec"]
        yield name, spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of every manifest, by where it stands."""
    for name, spec in clusters():
        yield f"{name}-head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}-{group['groupName']}", group["template"]
        if "submitterPodTemplate" in RAY[name]["spec"]:
            yield f"{name}-submitter", RAY[name]["spec"]["submitterPodTemplate"]


CLUSTERS, PODS = dict(clusters()), dict(pods())


def named(values: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("value", values.values(), ids=values.keys())


@named({name: value for name, value in OBJECTS.items() if name not in RAY})
def test_kubernetes_own_kinds_follow_its_schema(value: dict[str, Any]) -> None:
    kubernetes.validate(value, VERSION, strict=True)


@named(RAY)
def test_rays_kinds_have_fields_that_kuberay_knows(value: dict[str, Any]) -> None:
    jsonschema.validate(value, SCHEMA)


def test_the_block_for_a_head_that_may_be_lost_is_one_that_kuberay_takes() -> None:
    text = (FOLDER / "service.yaml").read_text(encoding="utf-8")
    start = text.index("    # gcsFaultToleranceOptions:")
    end = text.index("    headGroupSpec:", start)
    with_it = text[:start] + re.sub("(?m)^    # ", "    ", text[start:end]) + text[end:]
    value = yaml.safe_load(with_it)
    assert value["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"].keys() == {"redisAddress", "redisPassword"}
    jsonschema.validate(value, SCHEMA)


def test_a_misspelled_field_is_refused() -> None:
    value = json.loads(json.dumps(next(iter(RAY.values()))))
    value["spec"]["headGroupSpecs"] = value["spec"].pop("headGroupSpec")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, SCHEMA)


@named(PODS)
def test_pods_follow_kubernetes_schema(value: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **value["metadata"]}, "spec": value["spec"]}
    kubernetes.validate(pod, VERSION, strict=True)


@named(PODS)
def test_pods_pass_the_restricted_standard(value: dict[str, Any]) -> None:
    """Kubernetes' Pod Security Standard `restricted`, which the namespace enforces."""
    spec = value["spec"]
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] == 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert {kind for volume in spec["volumes"] for kind in volume} <= {
        "name", "emptyDir", "persistentVolumeClaim", "secret",
    }  # fmt: skip
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}


@named(PODS)
def test_pods_have_limits_and_places_to_write(value: dict[str, Any]) -> None:
    spec = value["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"]["requests"].keys()
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) <= volumes.keys()
        assert "sizeLimit" in volumes[mounts["/tmp"]]["emptyDir"]
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        if container["name"].startswith("ray-") and container["name"] != "ray-job-submitter":
            shared = volumes[mounts["/dev/shm"]]["emptyDir"]
            assert shared["medium"] == "Memory"
            assert _bytes(shared["sizeLimit"]) < _bytes(container["resources"]["limits"]["memory"])
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def _bytes(quantity: str) -> int:
    units = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
    return int(quantity[:-2]) * units[quantity[-2:]]


@named(PODS)
def test_images_are_of_this_version(value: dict[str, Any]) -> None:
    for container in value["spec"]["containers"]:
        assert container["image"] in (f"rayvec:{rayvec.__version__}-cpu", f"rayvec:{rayvec.__version__}-cuda")
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert (gpus is not None) == container["image"].endswith("-cuda")


@named(CLUSTERS)
def test_nothing_runs_without_a_token(value: dict[str, Any]) -> None:
    import ray

    assert value["authOptions"] == {"mode": "token", "secretName": "rayvec-ray-token"}
    assert value["rayVersion"] == ray.__version__
    assert value["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert value["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@named(CLUSTERS)
def test_groups_begin_within_their_bounds(value: dict[str, Any]) -> None:
    for group in value["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        if group["minReplicas"] < group["maxReplicas"]:
            assert value["enableInTreeAutoscaling"] is True
            assert group["template"]["spec"]["restartPolicy"] == "Never"  # what autoscaler v2 asks for


def test_every_secret_and_claim_that_is_named_is_made() -> None:
    text = (FOLDER / "secrets.example.sh").read_text(encoding="utf-8")
    made = set(re.findall(r"(?m)^put (\S+)", text))
    asked = {spec["authOptions"]["secretName"] for spec in CLUSTERS.values()}
    claims = set()
    for pod in PODS.values():
        for volume in pod["spec"]["volumes"]:
            asked |= {volume["secret"]["secretName"]} if "secret" in volume else set()
            claims |= {volume["persistentVolumeClaim"]["claimName"]} if "persistentVolumeClaim" in volume else set()
    assert asked == made
    assert claims == {
        value["metadata"]["name"] for value in OBJECTS.values() if value["kind"] == "PersistentVolumeClaim"
    }


def test_the_secrets_can_be_made_again(tmp_path: Path) -> None:
    """kubectl, stood in for: `create` refuses what is there, unless it only prints it."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\ncase "$*" in *--dry-run=client*) echo "$6";; "apply -f -") cat >> "$MADE";; *) exit 1;; esac\n'
    )
    kubectl.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MADE": str(tmp_path / "made"), "PYTHONPATH": str(ROOT / "platform")}
    command = ["bash", str(FOLDER / "secrets.example.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text().split() == ["rayvec-api-keys", "rayvec-ray-token"]
    assert done.stdout.count("rv-") == 2


def test_a_drain_leaves_a_pod_that_answers() -> None:
    """Pods of a RayCluster have no controller that says how many there should be, as `maxUnavailable` needs."""
    (budget,) = [value for value in OBJECTS.values() if value["kind"] == "PodDisruptionBudget"]
    (group,) = CLUSTERS["service-RayService-rayvec-service"]["workerGroupSpecs"]
    assert "maxUnavailable" not in budget["spec"]
    assert budget["spec"]["minAvailable"] < group["replicas"]
    assert budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"] == "worker"


def test_no_secret_lies_in_a_manifest() -> None:
    assert "Secret" not in {value["kind"] for value in OBJECTS.values()}
    for pod in PODS.values():
        for container in pod["spec"]["containers"]:
            assert not [e["name"] for e in container["env"] if re.search("TOKEN|KEY|SECRET|PASSWORD", e["name"])]


def test_the_policy_reaches_every_pod_and_opens_one_port_to_clients() -> None:
    policies = [value for value in OBJECTS.values() if value["kind"] == "NetworkPolicy"]
    (closed,) = [value for value in policies if value["spec"]["podSelector"] == {}]
    assert closed["spec"]["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in closed["spec"]
    (opened,) = [value for value in policies if value is not closed]
    wanted = opened["spec"]["podSelector"]["matchLabels"]
    for pod in PODS.values():
        assert wanted.items() <= pod["metadata"]["labels"].items()
    clients = [rule for rule in opened["spec"]["ingress"] if "rayvec-client" in json.dumps(rule)]
    assert [port["port"] for rule in clients for port in rule["ports"]] == [8000]


def test_the_services_configuration_is_one_that_serve_and_rayvec_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    (service,) = [value for value in RAY.values() if value["kind"] == "RayService"]
    values = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(values)
    (application,) = values["applications"]
    config = ServeConfig.parse(application["args"])
    assert (config.host, config.port) == (values["http_options"]["host"], values["http_options"]["port"])
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    for pod in (group, service["spec"]["rayClusterConfig"]["headGroupSpec"]):
        (container,) = pod["template"]["spec"]["containers"]
        settings = {one["name"]: one["value"] for one in container["env"] if one["name"].startswith("RAY_SERVE_")}
        assert config.proxy == "haproxy" and proxy.ENABLE in settings
        assert settings.items() <= (proxy.SETTINGS | ENVIRONMENT).items()
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert config.replicas.encoder * config.replicas.encoder_cpus <= group["replicas"] * cpus
    mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
    for path in (config.index, config.keys):
        assert any(str(path).startswith(mount["mountPath"]) for mount in mounts)


def test_the_jobs_command_resolves() -> None:
    from jobs.llm2vec import command

    (job,) = [value for value in RAY.values() if value["kind"] == "RayJob"]
    python, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "/app/jobs/llm2vec.py")
    result = CliRunner().invoke(command, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "output: /data/llama3" in result.output
    assert "pairs: /data/pairs.jsonl" in result.output
