"""Embedding real files on a real Ray: nothing lost, whatever the files hold; what was done is not done again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.embed import EmbedConfig, embed, plan_and_work, verify
from rayvec.data.embeddings import EmbeddingsDataset, vectors
from rayvec.errors import MismatchError, QuarantineExceededError, UserError
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.hash_encoder import HashEncoder

pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:ray\.")  # Ray warns of its own settings

GOOD = [
    {"id": f"d{i}", "title": f"Title {i}", "text": f"text number {i} " * (i % 7 + 1), "year": i} for i in range(300)
]
MEGABYTE = "many words in one text " * 45_000
BAD_LINES = [
    b'{"id": "broken", "text": \n',
    b'{"id": "latin", "text": "caf\xe9"}\n',
    b'{"id": "empty", "text": ""}\n',
    b'{"id": "white", "text": " \\u200b\\t "}\n',
    b'{"id": "d7", "text": "the id of another record"}\n',
    json.dumps({"id": "long", "text": MEGABYTE}).encode() + b"\n",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 good records with bad ones among them."""
    lines = [json.dumps(row).encode() + b"\n" for row in GOOD]
    for i, line in enumerate(BAD_LINES):
        lines.insert(40 * (i + 1), line)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def config(source: Path, output: Path, **values: Any) -> EmbedConfig:
    settings: dict[str, Any] = {"source": {"path": str(source), "payload": ["year"]}, "output": str(output)}
    return EmbedConfig.parse({"encoder": "hash", "unit_rows": 64, "max_quarantine": 0.05, **settings, **values})


@pytest.fixture(scope="module")
def done(
    ray_cluster: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EmbedConfig, dict[str, Any]]:
    """A finished run, and its report."""
    finished = config(corpus, tmp_path_factory.mktemp("runs") / "out")
    return finished, embed(finished)


Done = tuple[EmbedConfig, dict[str, Any]]


def rows(output: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for table in EmbeddingsDataset.open(output).iter_tables() for row in table.to_pylist()}


def lines(output: str) -> dict[str, str]:
    """Reason by id, or by position where a record has none."""
    files = sorted((Path(output) / "quarantine").iterdir())
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {line["id"] or str(line["position"]): line["reason"] for line in found}


def test_a_column_that_is_text_for_want_of_one_type_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"id": "a", "text": "x", "price": 3, "n": 1, "o": {}}, {"id": "b", "text": "y", "price": "4", "n": 0.5}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    zoned = pa.array([0], pa.timestamp("us", "UTC"))
    for name, seen in (("a", zoned), ("b", zoned.cast(pa.timestamp("us")))):
        pq.write_table(pa.table({"id": [name], "text": ["x"], "seen": seen}), tmp_path / f"{name}.parquet")
    for path, told in (("c.jsonl", "'price' has values of int and str"), ("*.parquet", "'seen' has values of time")):
        caplog.clear()
        values = {"source": {"path": str(tmp_path / path), "payload": "all"}, "encoder": "hash"}
        plan_and_work(EmbedConfig.parse(values), str(tmp_path / "out" / path[0]))
        (message,) = [record.message for record in caplog.records if record.name == "rayvec.embed"]
        assert told in message and "carried as text" in message


def test_columns_that_are_left_behind_are_told(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, payload in enumerate(([], ["year"], "all")):
        with caplog.at_level("INFO", logger="rayvec.embed"):
            values = {"source": {"path": str(corpus), "payload": payload}, "encoder": "hash"}
            plan_and_work(EmbedConfig.parse(values), str(tmp_path / str(number)))
    (told,) = [record.message for record in caplog.records if record.name == "rayvec.embed"]
    assert told == "left behind: year; source.payload=all carries them, to be shown and filtered by"


def test_every_record_is_a_row_or_has_its_reason(done: Done) -> None:
    run, report = done
    assert rows(run.output).keys() == {row["id"] for row in GOOD} | {"long"}
    reasons = sorted(lines(run.output).values())
    assert reasons == ["duplicate", "empty_text", "empty_text", "invalid_json", "invalid_utf8"]
    assert report["inputs"] == len(GOOD) + len(BAD_LINES)


def test_each_row_has_the_vector_of_its_own_title_and_text(done: Done) -> None:
    there = rows(done[0].output)
    expected = HashEncoder().encode([f"{row['title']}\n{row['text']}" for row in GOOD])
    found = np.array([there[row["id"]]["embedding"] for row in GOOD], np.float32)
    np.testing.assert_array_equal(found, expected)


def test_the_payload_stays_with_its_record(done: Done) -> None:
    there = rows(done[0].output)
    assert [there[row["id"]]["year"] for row in GOOD] == [row["year"] for row in GOOD]
    assert EmbeddingsDataset.open(done[0].output).payload == ["year"]


def test_a_megabyte_is_cut_by_tokens_and_flagged_and_kept_whole(done: Done) -> None:
    row = rows(done[0].output)["long"]
    assert (row["truncated"], row["n_tokens"], row["text"]) == (True, 512, MEGABYTE)
    assert done[1]["truncated"] == 1


def test_the_first_of_equal_ids_is_kept(done: Done) -> None:
    assert rows(done[0].output)["d7"]["title"] == "Title 7"
    assert done[1]["duplicates"] == 1


def test_the_report_lies_beside_the_result(done: Done) -> None:
    run, report = done
    assert json.loads((Path(run.output) / "report.json").read_text()) == report
    assert (Path(run.output) / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert report["busy"].keys() == {"read", "tokenize", "encode", "write"} and report["padding"] == 0
    assert "--recipe hash.index" in report["next"]
    assert report["quarantined"] == {"empty_text": 2, "invalid_json": 1, "invalid_utf8": 1}
    assert report["embedded"] + sum(report["quarantined"].values()) + report["duplicates"] == report["inputs"]


def test_the_configuration_lies_beside_the_result(done: Done) -> None:
    assert EmbedConfig.from_yaml(Path(done[0].output) / "config.yaml") == done[0]


def test_what_was_written_verifies(done: Done) -> None:
    assert verify(done[0].output)["rows"] == len(GOOD) + 1


def test_a_run_that_is_done_is_not_done_again(done: Done) -> None:
    run, report = done
    again = embed(run)
    assert (again["units_resumed"], again["units"]) == (report["units"], report["units"])
    assert again["manifest_sha256"] == report["manifest_sha256"]


def test_only_units_that_are_missing_are_done(done: Done, tmp_path: Path) -> None:
    run, report = done
    record = sorted((Path(run.output) / "units").iterdir())[2]
    record.unlink()
    again = embed(run)
    assert again["units_resumed"] == report["units"] - 1
    assert again["manifest_sha256"] == report["manifest_sha256"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"encoder": "hash:32"}, "dim"),
        ({"dtype": "float16"}, "dtype"),
        ({"instruction": "find"}, "instruction"),
        ({"unit_rows": 32}, "unit_rows"),
        ({"source": {"payload": []}}, "source.payload"),
    ],
)
def test_another_run_on_the_same_output_is_refused(done: Done, values: dict[str, Any], named: str) -> None:
    with pytest.raises(MismatchError) as caught:
        embed(done[0].updated(values))
    assert named in str(caught.value)


def test_an_input_that_changed_is_refused(done: Done, corpus: Path) -> None:
    before = corpus.stat()
    os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(MismatchError, match=r"corpus.jsonl was modified since"):
        embed(done[0])
    os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_more_quarantined_than_allowed_is_published_and_told(done: Done) -> None:
    with pytest.raises(QuarantineExceededError, match=r"done and published, but 4 of 306 .*empty_text 2"):
        embed(done[0].replace(max_quarantine=0.01))
    assert verify(done[0].output)["faults"] == 0


def test_equal_ids_are_an_error_where_they_are_asked_to_be(done: Done) -> None:
    with pytest.raises(UserError, match="1 records have the id of an earlier one; see quarantine/0000"):
        embed(done[0].replace(duplicates="error"))


def test_windows_of_long_documents_are_rows(ray_cluster: None, corpus: Path, tmp_path: Path) -> None:
    run = config(corpus, tmp_path / "out", long="windows", window_tokens=8, overlap_tokens=2, max_quarantine=1)
    report = embed(run)
    assert report["embedded"] + sum(report["quarantined"].values()) + report["duplicates"] == report["inputs"]
    there = rows(run.output)
    texts = {row["id"]: row["text"] for row in [*GOOD, {"id": "long", "text": MEGABYTE}]}
    assert report["rows"] == len(there) > 37_000 and {row["parent_id"] for row in there.values()} == texts.keys()
    assert all(row["text"] == texts[row["parent_id"]][row["char_start"] : row["char_end"]] for row in there.values())
    assert verify(run.output)["faults"] == 0
    again = embed(run)
    assert (again["units_resumed"], again["manifest_sha256"]) == (report["units"], report["manifest_sha256"])
    with pytest.raises(MismatchError, match="window_tokens is 9 now, and was 8"):
        embed(run.replace(window_tokens=9))


def test_small_files_that_differ_in_types_are_one_unit_and_nothing_is_lost(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, years in (("a", [1.5, 2.5]), ("b", [2**60 + 1, 4])):
        table = {"id": [f"{name}1", "same"], "text": [f"text {name}", f"more {name}"], "year": years}
        pq.write_table(pa.table(table), tmp_path / "in" / f"{name}.parquet")
    report = embed(config(tmp_path / "in", tmp_path / "out", max_quarantine=1))
    assert (report["embedded"], report["units"], report["files"]) == (3, 1, 2)
    assert (report["nulled"], report["duplicates"]) == ({"year": 1}, 1)
    [line] = [json.loads(line) for line in next((tmp_path / "out/quarantine").iterdir()).read_text().splitlines()]
    assert (line["source"], line["position"]) == (f"{tmp_path}/in/b.parquet", 1)
    assert (line["kept"]["source"], line["kept"]["position"]) == (f"{tmp_path}/in/a.parquet", 1)
    years = {id_: row["year"] for id_, row in rows(str(tmp_path / "out")).items()}
    assert years == {"a1": 1.5, "same": 2.5, "b1": None}


def test_payload_values_that_are_lost_are_told_and_end_with_an_error(
    ray_cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The last records stand where none of the samples is taken.
    texts = [{"id": i, "text": f"t {i % 9}", "year": 1 if i < 4200 else "no year"} for i in range(4212)]
    texts[-1]["brand"] = "b"
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in texts))
    run = config(tmp_path / "c.jsonl", tmp_path / "out", unit_rows=5000, max_quarantine=0.001)
    run = run.updated({"source": {"payload": "all"}})
    with pytest.raises(QuarantineExceededError, match="12 of 4,212 values of the payload column 'year' do not fit"):
        embed(run)
    assert "12 of 4,212 values do not fit its type and are null" in caplog.text
    assert "brand 1; embed into another output with --set 'source.payload=[…]'" in caplog.text
    report = embed(run.replace(max_quarantine=0.01))
    assert (report["nulled"], report["values"]) == ({"year": 12}, {"year": 4212})
    assert report["began_later"] == {"brand": 1}


def test_another_encoding_is_named_as_the_cure(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes("id,text\n1,café\n2,thé\n".encode("latin-1"))
    run = config(tmp_path / "c.csv", tmp_path / "out").updated({"source": {"payload": []}})
    with pytest.raises(QuarantineExceededError, match=r"source\.encoding=latin-1"):
        embed(run)
    lines = [json.loads(line) for line in next((tmp_path / "out/quarantine").iterdir()).read_text().splitlines()]
    assert all("source.encoding" in line["detail"] for line in lines)


def test_half_precision_and_several_encoders_at_once(ray_cluster: None, corpus: Path, tmp_path: Path) -> None:
    run = config(corpus, tmp_path / "out", dtype="float16", actors=2, keep_text=False, title="ignore")
    embed(run)
    tables = list(EmbeddingsDataset.open(run.output).iter_tables())
    there = {id_: v for table in tables for id_, v in zip(table["id"].to_pylist(), vectors(table), strict=True)}
    expected = HashEncoder().encode([row["text"] for row in GOOD]).astype(np.float16)
    np.testing.assert_array_equal(np.stack([there[row["id"]] for row in GOOD]), expected)


def test_less_of_a_text_in_fewer_dimensions_and_bytes_is_still_of_the_same_encoder(
    ray_cluster: None, corpus: Path, tmp_path: Path
) -> None:
    run = config(corpus, tmp_path / "out", max_length=8, dimensions=32, dtype="int8")
    embed(run)
    dataset = EmbeddingsDataset.open(run.output)
    assert (dataset.dim, dataset.fingerprint) == (32, HashEncoder().fingerprint)
    there = rows(run.output)
    short = [row for row in GOOD if not there[row["id"]]["truncated"]]
    assert 0 < len(short) < len(GOOD) and max(row["n_tokens"] for row in there.values()) == 8
    whole = HashEncoder().encode([f"{row['title']}\n{row['text']}" for row in short])[:, :32]
    found = np.array([there[row["id"]]["embedding"] for row in short]) * 1.0
    cosines = (found * whole).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(whole, axis=1)
    assert cosines.min() > 0.999
    assert verify(run.output)["faults"] == 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"min_actors": 3, "actors": 2}, "min_actors must be at most actors = 2"),
        ({"accelerator_type": "H100"}, "set num_gpus=1 too"),
        ({"precision": "int8", "num_gpus": 1}, "precision=int8 is for encoders on CPUs; set num_gpus=0"),
        ({"long": "windows", "overlap_tokens": 100}, "overlap_tokens must be less than window_tokens = 100"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    corpus: Path, tmp_path: Path, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        config(corpus, tmp_path / "out", **values)


def test_a_gpu_that_the_cluster_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from pipelines.embed import _pool

    there = {"CPU": 16.0, "GPU": 4.0, "accelerator_type:A100": 1.0, "accelerator_type:L4": 1.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert _pool(EmbedConfig(num_gpus=1, accelerator_type="L4")).accelerator_type == "L4"
    with pytest.raises(UserError, match="accelerator_type = H100 is not in the cluster, which has: A100, L4"):
        _pool(EmbedConfig(num_gpus=1, accelerator_type="H100"))


def test_encoders_that_ask_for_no_gpu_take_none(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray hides a machine's GPUs from no actor."""
    asked: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("rayvec.modeling.backbone.choose_device", lambda name: asked.append(name) or "cpu")
        _, work = plan_and_work(config(corpus, tmp_path, encoder="tiny"), str(tmp_path / "out"))
        work.load_encoder("tiny")
    assert asked == ["cpu"]
    _, work = plan_and_work(config(corpus, tmp_path, encoder="tiny", num_gpus=1), str(tmp_path / "other"))
    with pytest.raises(UserError, match="device=cuda, and torch finds no GPU here"):
        work.load_encoder("tiny")


@pytest.mark.parametrize(
    ("encoder", "num_gpus", "told"),
    [("tiny", 0, ["the encoders run on CPUs, and the cluster has 4 GPUs; use them with --set num_gpus=1"]),
     ("tiny", 1, []), ("hash:16", 0, [])],
)  # fmt: skip
def test_gpus_that_stand_by_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, encoder: str, num_gpus: float, told: list[str]
) -> None:
    import ray

    from pipelines.embed import _pool

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 4.0})
    monkeypatch.setattr("pipelines.embed.largest_node_cpus", lambda: 16.0)
    _pool(EmbedConfig(encoder=encoder, num_gpus=num_gpus))
    assert [record.message for record in caplog.records if record.name == "rayvec.ray"] == told


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"dimensions": 65}, "dimensions = 65: the encoder's vectors have 64"),
        ({"dtype": "binary", "dimensions": 12}, "there are 12; set dimensions to 8"),
        ({"dtype": "binary", "dimensions": 7}, "there are 7; set dimensions to 8"),
        ({"max_length": 3, "instruction": "one two three"}, "leaves none for the text"),
        ({"output": ""}, "output is required"),
        ({"encoder": ""}, "encoder is required"),
        ({"source": {"path": "/nowhere/at/all.jsonl"}}, "/nowhere/at/all.jsonl"),
        ({"encoder": "hash:x"}, "HashEncoder"),
        ({"long": "windows", "window_tokens": 512}, "window_tokens = 512 and the 1 tokens around"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    corpus: Path, tmp_path: Path, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        embed(config(corpus, tmp_path / "out").updated(values))


def test_a_text_encoder_takes_the_place_of_the_hash_encoder(ray_cluster: None, corpus: Path, tmp_path: Path) -> None:
    from rayvec import TextEncoder
    from tests.models import tiny_llama

    TextEncoder.from_decoder(tiny_llama(tmp_path / "base"), max_length=64).save(tmp_path / "encoder")
    run = config(corpus, tmp_path / "out", encoder=str(tmp_path / "encoder"), instruction="Find it:")
    embed(run)
    there = rows(run.output)
    encoder = TextEncoder.load(tmp_path / "encoder")
    assert EmbeddingsDataset.open(run.output).fingerprint == encoder.fingerprint
    expected = encoder.encode([f"{row['title']}\n{row['text']}" for row in GOOD], "Find it:")
    found = np.array([there[row["id"]]["embedding"] for row in GOOD], np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_int8_is_near_and_verifies_as_int8(ray_cluster: None, tmp_path: Path) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in GOOD[:20]))
    run = config(source, tmp_path / "out", encoder="tiny", precision="int8")
    embed(run)
    assert verify(run.output)["reencoded"] == 1
    plain = TextEncoder.load("tiny").encode([f"{row['title']}\n{row['text']}" for row in GOOD[:20]])
    found = rows(run.output)
    made = np.array([found[row["id"]]["embedding"] for row in GOOD[:20]])
    cosine = (made * plain).sum(axis=1)
    assert cosine.min() > 0.995 and cosine.max() < 0.999999, "as float32 would be"
    with pytest.raises(MismatchError, match="precision"):
        embed(run.replace(precision="auto"))


def test_a_run_that_is_certain_to_pass_its_limit_stops_and_can_go_on(ray_cluster: None, tmp_path: Path) -> None:
    texts = [{"id": f"d{i}", "text": f"record {i}" if i >= 10 else ""} for i in range(400)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps(row) for row in texts))
    run = config(tmp_path / "corpus.jsonl", tmp_path / "out", unit_rows=10, max_quarantine=0.01)
    run = run.updated({"source": {"payload": []}})
    with pytest.raises(QuarantineExceededError, match=r"stopped with \d+ units to do: 10 of at most .*empty_text 10"):
        embed(run)
    committed = len(list((tmp_path / "out" / "units").iterdir()))
    assert committed > 0 and not (tmp_path / "out" / "CURRENT").exists()
    with pytest.raises(QuarantineExceededError, match="stopped with"):  # and is not begun again while that is so
        embed(run)
    report = embed(run.replace(max_quarantine=0.03))
    assert (report["embedded"], report["quarantined"]) == (390, {"empty_text": 10})
    assert report["units_resumed"] >= committed
