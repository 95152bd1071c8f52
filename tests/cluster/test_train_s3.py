"""A training run whose output is a bucket: a real S3 server, two workers, a driver that goes on with an empty disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.train import train
from rayvec import storage
from rayvec.modeling.encoder import TextEncoder
from rayvec.training.run_folder import RunFolder
from tests.buckets import s3_server
from tests.runs import config, write_inputs

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.cluster,
    pytest.mark.usefixtures("bucket", "ray_cluster"),  # in this order: workers inherit where the server is
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as uri:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield uri


def test_a_run_in_a_bucket_goes_on_from_its_checkpoint(bucket: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    run = config(inputs, tmp_path, workers=2).replace(output=f"{bucket}/run")
    train(run)
    whole = TextEncoder.load(run.output)
    names = storage.list_tree(run.output)
    assert {"rayvec.json", "report.json", "training/metrics.jsonl", "training/curves.png"} <= set(names)
    # As after a lost driver machine: nothing but checkpoints in the bucket, nothing on the disk.
    for name in names:
        if name.endswith(("rayvec.json", "report.json")) or _step(run.output, name) == 4:
            storage.delete(f"{run.output}/{name}")
    shutil.rmtree(RunFolder(run.output).local)
    assert train(run)["resumed_from_step"] == 2
    again = TextEncoder.load(run.output)
    assert again.fingerprint == whole.fingerprint


def _step(output: str, name: str) -> int:
    return int(storage.read_json(f"{output}/{name}")["step"]) if name.endswith("rank-0.json") else -1
