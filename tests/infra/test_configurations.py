"""The rest of infra/: well-formed YAML, launcher files that Ray takes, a Serve file that Serve and rayvec take."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayvec.serving.config import ServeConfig, is_loopback
from tests.infra.test_docker import LAUNCHER, tool

ROOT = Path(__file__).resolve().parents[2]


def test_yamllint_finds_nothing() -> None:
    command = [tool("yamllint"), "--strict", "-c", str(ROOT / ".yamllint.yaml"), str(ROOT / "infra")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.stem)
def test_rays_launcher_takes_it(file: Path) -> None:
    """What `ray up` does before it asks the cloud for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(file.read_text(encoding="utf-8")))
    validate_config({**config, "cluster_synced_files": config.get("cluster_synced_files", [])})
    assert config["available_node_types"][config["head_node_type"]]["max_workers"] == 0


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.stem)
def test_launched_machines_ask_for_a_token_and_keep_the_job_api_to_themselves(file: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert "~/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.stem)
def test_launched_workers_may_use_a_bucket(file: Path) -> None:
    """Ray gives the head alone a role of its own."""
    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, kind in config["available_node_types"].items():
        if name != config["head_node_type"]:
            assert kind["node_config"].keys() & {"IamInstanceProfile", "serviceAccounts"}, name


def test_machines_of_aws_name_their_image() -> None:
    """Ray's own default has a driver of CUDA 11."""
    config = yaml.safe_load((ROOT / "infra" / "launcher" / "aws.yaml").read_text(encoding="utf-8"))
    assert all("ImageId" in kind["node_config"] for kind in config["available_node_types"].values())


def test_the_serve_file_is_one_that_serve_and_rayvec_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text(encoding="utf-8"))
    ServeDeploySchema.model_validate(values)
    (application,) = values["applications"]
    config = ServeConfig.parse(application["args"])
    assert (config.host, config.port) == (values["http_options"]["host"], values["http_options"]["port"])
    assert is_loopback(config.host) or config.keys
    assert values["http_options"]["request_timeout_s"] > config.limits.timeout_seconds


def test_the_runtime_environment_is_one_that_ray_takes_and_holds_no_secret() -> None:
    from ray.runtime_env import RuntimeEnv

    values = yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text(encoding="utf-8"))
    RuntimeEnv(**{**values, "working_dir": str(ROOT)})
    assert not [name for name in values["env_vars"] if any(part in name for part in ("KEY", "SECRET", "PASSWORD"))]


@pytest.mark.parametrize("file", sorted((ROOT / "infra" / "deepspeed").glob("*.json")), ids=lambda file: file.stem)
def test_deepspeed_takes_the_settings(file: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = json.loads(file.read_text(encoding="utf-8"))["zero_optimization"]
    known = set(DeepSpeedZeroConfig.model_fields) | {
        f.alias for f in DeepSpeedZeroConfig.model_fields.values() if f.alias
    }
    assert set(zero) <= known
    assert DeepSpeedZeroConfig(**zero).stage == int(file.stem[4])
