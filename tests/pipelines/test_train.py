"""The train pipeline and job: every recipe is valid without torch, stages follow one another, mistakes are one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pipelines.recipes import get_recipe, recipes
from pipelines.train import TrainConfig, collapse, train, zero_settings
from rayvec import storage
from rayvec.data.source_config import SourceConfig
from rayvec.errors import MismatchError, QuarantineExceededError, RayvecError, UserError
from rayvec.modeling.encoder import TextEncoder
from rayvec.training.curves import last_values, read_metrics
from rayvec.training.modules import MntpModule
from rayvec.training.pretraining import DecoderConfig
from rayvec.training.stages import MaskedSet, Mntp, Pretrain, PromptSettings, RetrievalSet, Texts
from tests.buckets import s3_server
from tests.models import tiny_llama
from tests.pipelines.test_llm2vec import beir
from tests.runs import LORA, adapter, config, write_inputs

torch.set_num_threads(1)
FAMILIES = (
    "gemma3",
    "llama2_7b",
    "llama3_1_8b",
    "llama3_8b",
    "mistral_7b",
    "qwen3_0_6b",
    "qwen3_4b",
    "qwen3_8b",
    "sheared_llama_1_3b",
    "smollm3",
)


DECODER = DecoderConfig(
    vocab_size=512, hidden_size=32, intermediate_size=48, layers=1, heads=2, key_value_heads=1, context=64
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("name", recipes(TrainConfig))
def test_every_recipe_survives_its_own_yaml(name: str) -> None:
    recipe = get_recipe(name, TrainConfig)
    assert TrainConfig.parse(recipe.model_dump(mode="json")) == recipe


def test_the_published_families_are_there() -> None:
    names = {f"{family}.{stage}" for family in FAMILIES for stage in ("mntp", "simcse", "supervised")}
    names |= {f"tiny.{stage}" for stage in ("pretrain", "mntp", "simcse", "supervised")}
    assert names <= recipes(TrainConfig).keys()


def test_the_published_numbers() -> None:
    mntp = get_recipe("mistral_7b.mntp", TrainConfig)
    assert (mntp.stage.kind, mntp.stage.probability, mntp.stage.masking) == ("mntp", 0.8, "all")  # type: ignore[union-attr]
    supervised = get_recipe("llama3_8b.supervised", TrainConfig)
    assert (supervised.batch_size, supervised.optimizer.warmup_steps) == (512, 300)
    assert len(supervised.data.sets) == 14  # type: ignore[union-attr]


def test_stages_follow_one_another(inputs: Path, tmp_path: Path) -> None:
    folders = {kind: tmp_path / kind for kind in ("pretrain", "mntp", "simcse", "supervised")}
    data = Texts(source=SourceConfig(path=str(inputs / "docs.jsonl")))
    train(config(inputs, folders["pretrain"], "pretrain", stage=Pretrain(decoder=DECODER), data=data, start=""))
    start = folders["pretrain"]
    for kind in ("mntp", "simcse", "supervised"):
        report = train(config(inputs, folders[kind], kind, start=str(start), steps=2))
        assert report["stage"] == kind
        start = folders[kind]
    encoder = TextEncoder.load(start)
    assert [adapter.stage for adapter in encoder.folder.manifest.adapters] == ["mntp", "simcse", "supervised"]
    assert encoder.encode(["a text", "another one"]).shape == (2, 32)
    for folder in folders.values():
        extras = {path.name for path in (folder / "training").iterdir()}
        assert {"config.yaml", "metrics.jsonl", "curves.png", "tensorboard", "checkpoints"} <= extras
        assert (folder / "report.json").exists()


def test_the_one_instruction_of_all_sets_is_stored_for_search(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "one", "supervised", steps=1)
    train(run)
    encoder = TextEncoder.load(tmp_path / "one")
    assert encoder.instructions == {"query": "find it"}
    (one,) = run.data.sets  # type: ignore[union-attr]
    several = run.data.replace(sets=(one, one.replace(name="other", instructions=())))
    train(run.replace(data=several, output=str(tmp_path / "several")))
    assert TextEncoder.load(tmp_path / "several").instructions == {}


def test_queries_are_asked_with_the_encoders_instruction_while_it_trains(inputs: Path, tmp_path: Path) -> None:
    own, none, given = (
        RetrievalSet(name=name, data=str(beir(tmp_path / name)), instruction=instruction)
        for name, instruction in (("own", None), ("none", ""), ("given", "find it"))
    )
    train(config(inputs, tmp_path / "run", "supervised", steps=1, evaluation=(own, none, given), max_length=64))
    found = last_values(read_metrics(tmp_path / "run" / "training" / "metrics.jsonl"))
    own_score, none_score, given_score = (found[f"eval/{name}/ndcg@10"] for name in ("own", "none", "given"))
    assert own_score == given_score != none_score


def test_prompts_of_a_stage_are_what_the_encoder_reads_with(inputs: Path, tmp_path: Path) -> None:
    prompts = PromptSettings(template="llama3", instructions={"query": "my own", "near": "find alike"})
    train(config(inputs, tmp_path / "a", "supervised", steps=1, prompts=prompts, max_length=96))
    first = TextEncoder.load(tmp_path / "a")
    assert first.folder.manifest.prompts.template == "llama3"
    assert first.instructions == {"query": "my own", "near": "find alike"}
    # The next stage keeps them but for what it is told.
    bare = PromptSettings(template="none", instructions={"near": "look for others"})
    train(config(inputs, tmp_path / "b", "simcse", steps=1, start=str(tmp_path / "a"), prompts=bare))
    second = TextEncoder.load(tmp_path / "b")
    assert second.folder.manifest.prompts.template == "none"
    assert second.instructions == {"query": "my own", "near": "look for others"}
    assert second.fingerprint.prompts != first.fingerprint.prompts


def test_masked_prediction_is_measured_on_texts_that_are_not_trained_on(inputs: Path, tmp_path: Path) -> None:
    lines = (inputs / "docs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("train", lines[:40]), ("valid", lines[40:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    measured = MaskedSet(name="valid", source=SourceConfig(path=str(tmp_path / "valid.jsonl")))
    run = config(
        inputs,
        tmp_path / "run",
        data=Texts(source=SourceConfig(path=str(tmp_path / "train.jsonl"))),
        evaluation=(measured,),
        steps=30,
        evaluate_every=10,
    )
    found = train(run)["evaluation"]
    (before, after), (guessed, better) = found["eval/valid/masked_loss"], found["eval/valid/masked_accuracy"]
    assert after < before - 0.5 and better > guessed
    assert "masked_loss" in (tmp_path / "run" / "README.md").read_text()
    with pytest.raises(ValueError, match="kind masked is for stage mntp"):
        config(inputs, tmp_path, "simcse", evaluation=(measured,))


def test_prompts_that_no_encoder_takes_are_refused() -> None:
    for wrong, told in (({"template": "latin"}, "unknown template"), ({"instruction_format": "x"}, "must hold")):
        with pytest.raises(UserError, match=told):
            PromptSettings.parse(wrong)


def test_a_finished_run_is_not_done_again(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "run", steps=1)
    first = train(run)
    assert "note" not in first
    assert train(run.replace(log_every=7))["note"] == "was done already"


def test_mistakes_are_one_line(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="output is required"):
        train(config(inputs, tmp_path).replace(output=""))
    with pytest.raises(UserError, match="start is required"):
        train(config(inputs, tmp_path, start=""))
    with pytest.raises(UserError, match=r"neither one of zero0, zero1, .*, zero3_offload nor a JSON file"):
        zero_settings("zero9")
    with pytest.raises(UserError, match=r"no model at .*nothing"):
        train(config(inputs, tmp_path / "a", start=str(tmp_path / "nothing")))
    missing = Texts(source=SourceConfig(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(UserError, match=r"none\.jsonl"):
        train(config(inputs, tmp_path / "b", data=missing))


def test_a_collapsed_simcse_is_told(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path, "simcse", batch_size=64)
    assert collapse(run, [{"step": 1, "loss": 2.0}]) is None
    assert "raise stage.attention_dropout" in str(collapse(run, [{"step": 1, "loss": 1e-3}]))


def test_the_job_takes_overrides() -> None:
    from jobs.train import command

    arguments = ["--recipe", "tiny.simcse", "--set", "stage.scale=10", "--set", "output=/x", "--dry-run"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "scale: 10.0" in result.output and "output: /x" in result.output


@pytest.mark.parametrize(
    ("kind", "message"), [("mntp", "there is no text to train on"), ("supervised", "fewer than batch_size 50")]
)
def test_settings_without_a_batch_die_early_and_do_not_stand_in_the_way(
    inputs: Path, tmp_path: Path, kind: str, message: str
) -> None:
    run = config(inputs, tmp_path / "run", kind)
    short = {"data": Texts(source=SourceConfig(path=str(inputs / "docs.jsonl")), min_characters=10**6)}
    wrong = run.replace(
        **(short if kind == "mntp" else {"batch_size": 50}), workers=2
    )  # Ray would take longer to start
    with pytest.raises(UserError, match=message):
        train(wrong)
    assert train(run)["steps"] == 4


@pytest.mark.parametrize(
    ("kind", "wrong"), [("mntp", {"mask_token": "nowhere"}), ("simcse", {"matryoshka": (4096,)})], ids=["mask", "size"]
)
def test_a_mistake_that_the_worker_finds_does_not_stand_in_the_way(
    inputs: Path, tmp_path: Path, kind: str, wrong: dict[str, Any]
) -> None:
    run = config(inputs, tmp_path / "run", kind)
    with pytest.raises(UserError):
        train(run.replace(stage=run.stage.replace(**wrong)))
    assert train(run)["steps"] == 4


@pytest.mark.parametrize("kind", ["mntp", "simcse", "pretrain"])
def test_records_that_are_no_documents_are_told_and_of_many_the_run_is_refused(
    inputs: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{text} {i}" for i, text in enumerate(["plain words, more of them", "café"] * 40)]
    (tmp_path / "latin.txt").write_bytes("\n".join(lines).encode("latin-1"))
    source = SourceConfig(path=str(tmp_path / "latin.txt"), lines=True)
    run = config(inputs, tmp_path / "run", kind, data=Texts(source=source), steps=1)
    if kind == "pretrain":
        run = run.replace(stage=Pretrain(decoder=DECODER), start="")
    with pytest.raises(QuarantineExceededError, match=r"40 of 80 records .*invalid_utf8 40.* data\.source\.encoding"):
        train(run)
    report = train(run.replace(data=run.data.replace(max_quarantine=0.5)))
    assert report["left_out"] == {"texts": "40 of 80 records that are no documents (invalid_utf8 40)"}
    assert "left out 40 of 80 records" in caplog.text
    right = run.data.replace(source=source.replace(encoding="latin-1"))
    assert "left_out" not in train(run.replace(data=right, output=str(tmp_path / "right")))


def _fail(*_: Any) -> Any:
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


def test_settings_that_memory_was_too_small_for_do_not_stand_in_the_way(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(inputs, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(MntpModule, "forward", _fail)
        with pytest.raises(RayvecError, match=r"out of memory: set stage.accumulate to 2"):
            train(run)
    assert train(run.replace(stage=run.stage.replace(accumulate=2)))["steps"] == 4


@contextlib.contextmanager
def _failing_after_three_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where memory becomes too small in the middle of a run."""
    forward, calls = MntpModule.forward, iter(range(99))
    with monkeypatch.context() as patch:
        patch.setattr(MntpModule, "forward", lambda *given: forward(*given) if next(calls) < 3 else _fail())
        yield


def test_steps_that_were_made_are_not_lost_to_other_settings(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(inputs, tmp_path / "run", stage=Mntp(lora=LORA.replace(dropout=0.2)))
    train(run.replace(output=str(tmp_path / "whole")))
    with _failing_after_three_steps(monkeypatch), pytest.raises(RayvecError, match="gradient_checkpointing=true"):
        train(run)
    with pytest.raises(MismatchError, match=r"stage.accumulate: 1 there, 2 asked for"):
        train(run.replace(stage=run.stage.replace(accumulate=2)))
    # What computes the same again may change, and gives the same to the bit.
    assert train(run.replace(gradient_checkpointing=True))["resumed_from_step"] == 2
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


def test_data_that_changed_is_noticed_but_for_examples_that_are_prepared(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    docs = tmp_path / "docs.jsonl"
    docs.write_bytes((inputs / "docs.jsonl").read_bytes())
    run = config(inputs, tmp_path / "run", data=Texts(source=SourceConfig(path=str(docs))))
    train(run.replace(output=str(tmp_path / "whole")))
    with _failing_after_three_steps(monkeypatch), pytest.raises(RayvecError, match="out of memory"):
        train(run)
    docs.write_text(docs.read_text() + '{"id": "new", "text": "A document that came later."}\n')
    assert train(run)["resumed_from_step"] == 2
    assert "goes on with the examples that it has prepared" in caplog.text
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")
    with pytest.raises(MismatchError, match="run holds a run on data that has changed since"):
        train(run)
    docs.unlink()  # what is gone cannot be compared
    assert train(run)["note"] == "was done already"


def test_another_run_is_refused_by_the_setting_that_differs(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "run")
    train(run)
    with pytest.raises(MismatchError, match=r"another run \(stage.probability: 0.2 there, 0.3 asked for\)"):
        train(run.replace(stage=run.stage.replace(probability=0.3)))


def test_the_same_folder_by_another_path_is_the_same_run(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(inputs, tmp_path / "run")
    train(run)
    monkeypatch.chdir(inputs)
    assert train(run.replace(start="base"))["note"] == "was done already"


@pytest.mark.parametrize("finished", [True, False])
def test_a_start_that_changed_is_another_run(inputs: Path, tmp_path: Path, finished: bool) -> None:
    base = tiny_llama(tmp_path / "base")
    run = config(inputs, tmp_path / "run", start=str(base))
    train(run)
    if not finished:
        (tmp_path / "run" / "report.json").unlink()
    tiny_llama(base, seed=1)
    with pytest.raises(MismatchError, match="from other weights than"):
        train(run)


def test_a_gpu_that_is_not_there_is_told(inputs: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="device=cuda, and torch finds no GPU here"):
        train(config(inputs, tmp_path / "run", device="cuda"))


def test_a_bucket_that_is_used_again_begins_anew(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch) as bucket:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        first = config(inputs, tmp_path, steps=8, checkpoint_every=1).replace(output=f"{bucket}/run")
        train(first)
        storage.delete_tree(first.output)
        second = config(inputs, tmp_path, "simcse").replace(output=first.output)
        assert train(second)["resumed_from_step"] == 0
        names = storage.list_tree(second.output)
        assert any(name.startswith("adapters/1-simcse/") for name in names)
        assert not any(name.startswith("adapters/1-mntp/") for name in names)
        # Interrupted before its result, on a machine that has the checkpoints of both: it goes on from its own.
        for name in ("report.json", "rayvec.json"):
            storage.delete(f"{second.output}/{name}")
        assert train(second)["resumed_from_step"] == 4
