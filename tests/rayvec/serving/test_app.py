"""What is checked before anything of Ray starts."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from rayvec.errors import MismatchError, RayvecError, UserError, VerificationError
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.prompts import Prompts
from rayvec.serving import proxy
from rayvec.serving.app import _deployment_error, build_app, deploy
from rayvec.serving.config import ServeConfig
from rayvec.serving.preflight import check_port, plan, with_whole_paths
from rayvec.serving.replicas import EncoderReplica
from rayvec.serving.security import new_key
from tests.artifacts import texts_for, write_index
from tests.models import save_model
from tests.services import COUNT, MODEL, write_service_index

ROOT = Path(__file__).resolve().parents[3]


def test_plan_takes_encoder_and_version_from_the_index(index: Path) -> None:
    made = plan(ServeConfig(index=str(index)))
    assert (made.version, made.count, made.encoder, made.model) == ("v1", COUNT, MODEL, MODEL)
    assert made.fingerprint == HashEncoder(64).fingerprint


def test_plan_takes_the_instructions_that_the_encoder_and_the_documents_have(tmp_path: Path) -> None:
    TextEncoder.from_decoder(
        save_model("llama", tmp_path / "base"), max_length=64, prompts=Prompts(instructions={"query": "Find it"})
    ).save(tmp_path / "encoder")
    encoder = TextEncoder.load(str(tmp_path / "encoder"))
    reference = str(tmp_path / "encoder")
    write_index(
        tmp_path / "index", encoder.encode(["a", "b"]), ["a", "b"], made_by=encoder.fingerprint, encoder=reference
    )
    assert plan(ServeConfig(index=str(tmp_path / "index"))).instructions == {"query": "Find it"}


def test_a_copy_of_the_encoder_computes_in_what_it_is_told_to(tmp_path: Path) -> None:
    encoder, texts = TextEncoder.load("tiny"), ["sort a list", "open a socket"]
    write_index(tmp_path, encoder.encode(texts), texts, made_by=encoder.fingerprint, encoder="tiny")

    def vectors(precision: str) -> np.ndarray:
        config = ServeConfig.parse({"index": str(tmp_path), "precision": precision})
        return asyncio.run(EncoderReplica(config, plan(config)).encode(texts)).vectors_BD

    exact, rough = vectors("float32"), vectors("int8")
    np.testing.assert_allclose(exact, encoder.encode(texts), atol=1e-5)
    assert 0.99 < (exact * rough).sum(1).min() < 0.999999


def test_a_copy_of_the_encoder_that_asks_for_no_gpu_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, texts = TextEncoder.load("tiny"), ["sort a list", "open a socket"]
    write_index(tmp_path, encoder.encode(texts), texts, made_by=encoder.fingerprint, encoder="tiny")
    config = ServeConfig.parse({"index": str(tmp_path)})
    with pytest.raises(UserError, match="device=cuda, and torch finds no GPU here"):
        EncoderReplica(ServeConfig.parse({"index": str(tmp_path), "replicas": {"encoder_gpus": 1}}), plan(config))
    asked: list[str] = []
    monkeypatch.setattr("rayvec.modeling.backbone.choose_device", lambda name: asked.append(name) or "cpu")
    EncoderReplica(config, plan(config))
    assert asked == ["cpu"]
    with pytest.raises(UserError, match=r"precision=int8 is for CPUs; set replicas.encoder_gpus=0"):
        ServeConfig.parse({"index": "i", "precision": "int8", "replicas": {"encoder_gpus": 1}})


def test_another_encoder_is_refused_by_the_field_that_differs(index: Path) -> None:
    with pytest.raises(MismatchError, match="weights"):
        plan(ServeConfig(index=str(index), encoder="hash:32"))


def test_an_index_made_by_another_encoder_is_refused(tmp_path: Path) -> None:
    encoder = HashEncoder(64)
    other = encoder.fingerprint.model_copy(update={"prompts": "query: "})
    write_index(tmp_path, encoder.encode(texts_for(4)), texts_for(4), made_by=other, encoder=MODEL)
    with pytest.raises(MismatchError, match="prompts"):
        plan(ServeConfig(index=str(tmp_path)))


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": {"together": True, "parts": 2}},
        {"replicas": {"together": True, "encoder_most": 4}},
        {"replicas": {"together": True, "gateway": 2}, "writable": True},
    ],
    ids=["parts", "encoders", "writers"],
)
def test_one_process_has_no_more_of_one_part(index: Path, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="together=true"):
        ServeConfig.parse({"index": str(index), **values})


def test_the_copies_that_a_write_waits_for_are_of_a_fixed_number() -> None:
    with pytest.raises(UserError, match=r"replicas\.retriever_most.*give replicas\.retriever=N"):
        ServeConfig.parse({"writable": True, "replicas": {"retriever_most": 2}})
    assert ServeConfig.parse({"writable": True, "replicas": {"retriever": 2, "retriever_most": 2}}).writable


def test_no_index_is_named() -> None:
    with pytest.raises(UserError, match="--set index=DIR"):
        plan(ServeConfig())


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index.*jobs\.index"):
        plan(ServeConfig(index=str(tmp_path)))


def test_an_unknown_version_names_those_there_are(index: Path) -> None:
    with pytest.raises(UserError, match=r"no version 'v7'; there are: v1"):
        plan(ServeConfig(index=str(index), index_version="v7"))


def test_a_changed_manifest_is_refused(index: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    (manifest,) = copy.glob("versions/v1/manifest.json")
    manifest.write_text(manifest.read_text().replace(f'"count": {COUNT}', '"count": 7'))
    with pytest.raises(VerificationError, match="seal"):
        plan(ServeConfig(index=str(copy)))


def test_the_version_pinned_is_the_one_served(tmp_path: Path) -> None:
    for count in (4, 8):
        write_service_index(tmp_path, count=count)
    assert plan(ServeConfig(index=str(tmp_path))).count == 8
    assert plan(ServeConfig(index=str(tmp_path), index_version="v1")).count == 4


def test_a_proxy_that_listens_everywhere_needs_keys(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(UserError, match="set keys="):
        plan(ServeConfig(index=str(index)))


def test_haproxy_on_a_ray_that_runs_already_is_chosen_by_its_nodes(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys.txt").write_text(new_key("alice")[1])
    config = ServeConfig(index=str(index), proxy="haproxy", keys=str(tmp_path / "keys.txt"))
    monkeypatch.delenv(proxy.ENABLE, raising=False)
    with pytest.raises(UserError, match=f"set {proxy.ENABLE}=1 in the environment of every node"):
        build_app(config)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    with pytest.raises(UserError, match="of every node"), proxy.chosen(config):
        pass
    monkeypatch.setenv(proxy.ENABLE, "1")
    with proxy.chosen(config):
        assert not proxy.FILES.keys() & os.environ.keys()


def test_haproxy_gets_ports_that_are_free_and_a_folder_that_is_ours(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    config = ServeConfig(index=str(index), proxy="haproxy", keys="keys.txt")
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setitem(proxy.PORTS, "RAY_SERVE_HAPROXY_STATS_PORT", taken.getsockname()[1])
        with proxy.chosen(config):
            assert os.environ[proxy.ENABLE] == "1"
            assert int(os.environ["RAY_SERVE_HAPROXY_STATS_PORT"]) not in (0, taken.getsockname()[1])
            folder = Path(os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(folder / "haproxy.cfg")])
    assert not psutil.pid_exists(left.pid) and not folder.exists()


def test_replicas_are_told_whole_paths_wherever_they_run(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index").symlink_to(index)
    monkeypatch.chdir(tmp_path)
    config = ServeConfig(index="index", keys="keys.txt")
    told = with_whole_paths(config)
    assert (told.index, told.keys) == (str(tmp_path / "index"), str(tmp_path / "keys.txt"))
    assert told == config.replace(index=told.index, keys=told.keys)
    assert with_whole_paths(ServeConfig(index="s3://bucket/index")).index == "s3://bucket/index"


def test_a_port_in_use_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
            check_port(ServeConfig(port=port))


def test_a_free_port_is_taken(index: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    check_port(ServeConfig(port=port))


def test_other_machines_are_let_in_only_with_keys() -> None:
    with pytest.raises(UserError, match=r"no API keys are set; make one with"):
        ServeConfig.parse({"host": "0.0.0.0"})


def test_the_configuration_file_for_clusters_is_one_that_serve_takes(index: Path) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build
    from ray.serve.schema import ServeDeploySchema

    text = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text(encoding="utf-8"))
    (application,) = ServeDeploySchema.model_validate(text).applications
    assert application.import_path == f"{deploy.__module__}:{deploy.__name__}"
    http = text["http_options"]
    assert (application.args["host"], application.args["port"]) == (http["host"], http["port"])
    built = build(deploy, {**application.args, "index": str(index)})
    assert built._bound_deployment.name == "Gateway"


def test_a_replicas_own_error_comes_through_as_itself() -> None:
    text = "Deploying application rayvec failed: ray::Retriever\nrayvec.errors.MismatchError: index and encoder differ"
    error = _deployment_error(text)
    assert (type(error), str(error)) == (MismatchError, "index and encoder differ")


def test_any_other_error_of_a_replica_is_one_line() -> None:
    error = _deployment_error("Deploying failed:\n  ImportError: no module named x\n")
    assert (type(error), "no module named x" in str(error), "\n" in str(error)) == (RayvecError, True, False)
