"""Benchmarks at their smallest: each runs through and proves equal results. How fast is no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from benchmarks import (
    embed_pipeline,
    embedding_store,
    encoding_cpu,
    gradient_cache,
    harness,
    index_pca,
    index_scale,
    mntp_head,
    readings,
    simcse_packing,
)
from rayvec.data.embeddings import read_part

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
# What a bare GPU machine may lack.
BLOCKED = ("ray", "deepspeed", "faiss", "pydantic")


def run(command: click.Command, folder: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(command, [*arguments, "--rounds", "1", "--json", str(folder / "found.json")])
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def test_the_masked_head_gives_the_model_s_own_loss(tmp_path: Path) -> None:
    shape = ("--hidden", "64", "--layers", "2", "--vocabulary", "4096", "--texts", "4", "--length", "64")
    found = run(mntp_head.main, tmp_path, *shape)
    assert found["tokens"] == 256 and 20 < found["masked"] < 90
    assert found["agreement"]["loss_difference"] < 1e-5 and found["agreement"]["gradient_difference"] < 1e-4
    assert set(found["time_ratio"]) == {"wall", "cpu"}


def test_packed_sentences_train_as_padded_ones(tmp_path: Path) -> None:
    found = run(simcse_packing.main, tmp_path, "--hidden", "64", "--layers", "2", "--texts", "6", "--longest", "64")
    tokens = found["tokens"]
    assert tokens["padded"] == 2 * 6 * 64 and tokens["ours"] < tokens["longest"] <= tokens["padded"]
    for values in found["agreement"].values():
        assert values["loss_ours"] > 0.1 and values["gradient_difference"] < 1e-4


def test_gradcache_gives_the_big_batch_s_gradients(tmp_path: Path) -> None:
    found = run(gradient_cache.main, tmp_path, "--hidden", "64", "--layers", "1", "--small", "4", "--big", "12")
    assert found["gradient_difference"] < 1e-4
    assert found["tokens"]["big"] == found["tokens"]["cached"] > found["tokens"]["small"]


def test_a_vector_s_cost_is_told_for_each_size(tmp_path: Path) -> None:
    small = ("--count", "100000", "--count", "50000", "--dim", "8", "--factory", "IVF64,SQ8")
    result = CliRunner().invoke(index_scale.main, [*small, "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["vectors"] for row in found["rows"]] == [50_000, 100_000]
    assert all(row["recall"] >= 0.9 and row["bytes"] < 20 for row in found["rows"])


def test_pca_s_moments_are_exact_before_they_are_timed(tmp_path: Path) -> None:
    found = run(index_pca.main, tmp_path, "--rows", "2000", "--dim", "32", "--kept", "8")
    assert found["error"] < 1e-5 and set(found["of_reading"]) == {"moments", "apply"}


def run_bare(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """A GPU benchmark on this CPU, in a process that cannot import what a bare machine lacks."""
    blocked = "".join(f"sys.modules[{module!r}] = None; " for module in BLOCKED)
    code = f"import sys; {blocked}from benchmarks.{name} import main; main()"
    file = folder / "found.json"
    arguments = ("--tiny", "--device", "cpu", "--rounds", "1", "--json", str(file), *arguments)
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_gpu_training_needs_torch_transformers_and_peft_alone(tmp_path: Path) -> None:
    found = run_bare("gpu_training", tmp_path, "--steps", "1")
    names = [(row["stage"], row["attention"]) for row in found["variants"]]
    assert names == [
        ("mntp", "transformers' sdpa"),
        ("mntp", "by_length"),
        ("mntp", "by_length"),
        ("simcse", "transformers' sdpa"),
        ("simcse", "transformers' sdpa"),
        ("simcse", "by_length"),
        ("simcse", "by_length"),
    ]
    assert all(row["tokens_per_second"] > 0 for row in found["variants"])


def test_gpu_encoding_needs_torch_and_transformers_alone(tmp_path: Path) -> None:
    rows = run_bare("gpu_encoding", tmp_path)["variants"]
    assert [row["variant"] for row in rows][:3] == ["arrival", "sorted", "packed 8192"]
    assert min(row["cosine"] for row in rows) > 0.9999


def test_encoders_on_a_cpu_give_the_same_vectors(tmp_path: Path) -> None:
    shape = ("--hidden", "64", "--layers", "1", "--texts", "34", "--mean", "12", "--longest", "48")
    found = run(encoding_cpu.main, tmp_path, *shape)
    assert min(found["cosine"][name] for name in ("arrival", "st")) > 0.9999 and 0.995 < found["cosine"]["int8"] < 1
    assert max(found["batch_difference"].values()) <= 1e-5
    assert 34 * 4 < found["tokens"] < 34 * 48


def test_a_part_holds_what_a_default_file_holds(tmp_path: Path) -> None:
    found = run(embedding_store.main, tmp_path, "--rows", "300", "--dim", "64")
    assert found["vector_bytes"] == 300 * 64 * 2 < found["file_bytes"]["part"]
    assert set(found["time_ratio"]) == {"write", "read"}


def test_the_loop_beside_the_pipeline_reads_and_writes_all(tmp_path: Path) -> None:
    corpus, parts = tmp_path / "corpus.parquet", tmp_path / "parts"
    parts.mkdir()
    embed_pipeline.write_corpus(corpus, 250, 20.0)
    written, encoded = (embed_pipeline.loop(corpus, "hash:16", 100, where) for where in (parts, None))
    assert written["tokens"] == encoded["tokens"] > 250 * 4
    tables = [read_part(str(parts / f"{number}.parquet")) for number in range(3)]
    assert [table.num_rows for table in tables] == [100, 100, 50] and len(list(parts.iterdir())) == 3


def test_committed_units_are_known_again(tmp_path: Path) -> None:
    assert embed_pipeline.resume(tmp_path, 12)["units"] == 12
    assert len(list((tmp_path / "units").iterdir())) == 12


def test_memory_is_that_of_the_process_below(tmp_path: Path) -> None:
    code = "import time; held = b'1' * 60_000_000; time.sleep(1.5)"
    child = subprocess.Popen([sys.executable, "-c", code])
    with embed_pipeline.memory_of(child.pid) as peaks:
        child.wait()
    assert 58_000 < peaks["driver"] < 150_000 and peaks["workers"] == 0


def test_results_that_differ_end_a_benchmark() -> None:
    with pytest.raises(SystemExit, match="results differ"):
        readings.require_agreement({"loss_difference": 2e-5, "gradient_difference": 0.0})


def test_the_peak_holds_what_was_freed_again() -> None:
    peak = harness.peak_above(lambda: torch.ones(25_000_000).sum())
    assert 90e6 < peak < 180e6


def test_variants_alternate_and_every_second_round_goes_backwards() -> None:
    seen: list[str] = []
    timings = harness.alternate({name: lambda n=name: seen.append(n) for name in "ab"}, rounds=2)  # type: ignore[misc]
    assert seen == ["a", "b", "a", "b", "b", "a"]
    assert len(timings["a"].wall) == 2
