"""Mining on a real, small Ray over a real index: the same negatives as going through every document by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines._mining import EncodePairs
from pipelines.mine import MineConfig, mine
from pipelines.update import UpdateConfig, update
from rayvec import storage
from rayvec.data.pairs import is_held_out
from rayvec.errors import ConcurrentWriterError, MismatchError, UserError, VerificationError
from rayvec.indexing import documents, drafts, versions
from rayvec.indexing.searcher import DOCUMENTS
from rayvec.lease import sole_writer
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.training.examples import iter_pairs
from rayvec.training.stages import PairSet
from tests.artifacts import table_of, write_embeddings, write_index

pytestmark = pytest.mark.usefixtures("ray_cluster")

ENCODER = HashEncoder(64)
COUNT, PAIRS = 300, 70
WORDS = np.array([f"word{i}" for i in range(50)])


def bags(count: int, least: int, most: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(least, most), replace=False)) for _ in range(count)]


TEXTS = bags(COUNT, 5, 10, seed=1)
TEXTS[200:220] = [text.upper() for text in TEXTS[100:120]]  # the same to a reader
VECTORS = ENCODER.encode(TEXTS)
#: Titles are made by `table_of`: every fifth document has none.
TITLES = [row["title"] for row in table_of(VECTORS, TEXTS).to_pylist()]
#: Four words of a document, which for two thirds of the pairs is the positive.
ABOUT = [(i, i + 100, 2 * i)[i % 3] for i in range(PAIRS)]
QUERIES = [" ".join(TEXTS[row].lower().split()[:4]) for row in ABOUT]
QUERIES[60:] = QUERIES[:10]  # ten queries have two positives
QUERIES[20] = TEXTS[20]


def pair(i: int) -> dict[str, str]:
    """A third each: a text that is nowhere else, the text of a document, a document's id."""
    forms = [{"positive": f"{QUERIES[i]} answer{i}"}, {"positive": TEXTS[ABOUT[i]]}, {"positive_id": f"doc-{ABOUT[i]}"}]
    return {"query": QUERIES[i], **forms[i % 3]}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_index(folder, VECTORS, TEXTS, pieces=2, made_by=ENCODER.fingerprint, encoder="hash:64")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(PAIRS)))
    return path


def config(index: Path, pairs: Path, output: Path, **values: Any) -> MineConfig:
    settings = {"index": str(index), "pairs": str(pairs), "output": str(output / "mined.jsonl")}
    return MineConfig.parse({"unit_rows": 16, "threads": 1, "rank_stop": 40, **settings, **values})


#: The rules of the run that most tests look at: few ranks, so that some pairs find fewer negatives than they should.
STRICT = {"negatives": 3, "rank_start": 2, "rank_stop": 10, "relative_margin": 0.65, "title": "ignore"}


@pytest.fixture(scope="module")
def done(
    ray_cluster: None, index: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MineConfig, dict[str, Any]]:
    """A finished run of three encoders, and its report."""
    chosen = config(index, pairs, tmp_path_factory.mktemp("done"), actors=3, **STRICT)
    return chosen, mine(chosen)


Done = tuple[MineConfig, dict[str, Any]]


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "mined.jsonl").read_text().splitlines()]


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def by_hand(share: float, negatives: int, rank_start: int, rank_stop: int) -> list[list[int]]:
    """The negatives of every pair, by comparing its query with every document, one rule after the other."""
    answers: dict[str, set[str]] = {}
    for i in range(PAIRS):
        id_ = pair(i).get("positive_id")
        text = TEXTS[int(id_.removeprefix("doc-"))] if id_ else pair(i)["positive"]
        answers.setdefault(QUERIES[i], set()).add(plain(text))
    result = []
    for i, query in enumerate(QUERIES):
        vector = ENCODER.encode([query])[0]
        scores = [round(float(np.dot(vector, other)), 5) for other in VECTORS]
        ranked = sorted(range(COUNT), key=lambda row: (-scores[row], row))[:rank_stop]
        id_ = pair(i).get("positive_id")
        if id_:
            row = int(id_.removeprefix("doc-"))
            anchor = scores[row] if row in ranked else -np.inf
        else:
            anchor = round(float(np.dot(vector, ENCODER.encode([pair(i)["positive"]])[0])), 5)
        limit = round(anchor - abs(anchor) * (1 - share), 5) if anchor > -np.inf else anchor
        taken: list[int] = []
        for row in ranked[rank_start:]:
            text = plain(TEXTS[row])
            fine = scores[row] <= limit and text not in answers[query] and text != plain(query)
            if fine and not is_held_out(f"doc-{row}") and text not in [plain(TEXTS[other]) for other in taken]:
                taken.append(row)
        result.append(taken[:negatives])
    return result


def test_the_negatives_are_those_found_by_hand(done: Done) -> None:
    found = lines(Path(done[0].output).parent)
    expected = by_hand(0.65, 3, 2, 10)
    assert [line["query"] for line in found] == QUERIES
    assert [line["negative_id"] for line in found] == [[f"doc-{row}" for row in rows] for rows in expected]
    assert [line["negative"] for line in found] == [[TEXTS[row] for row in rows] for rows in expected]
    assert [line["positive"] for line in found][:3] == [pair(0)["positive"], TEXTS[101], TEXTS[4]]
    for line, rows in zip(found, expected, strict=True):
        cosines = VECTORS[rows] @ ENCODER.encode([line["query"]])[0]
        assert line["negative_score"] == pytest.approx(cosines.tolist(), abs=2e-5)


def test_everything_is_counted(done: Done) -> None:
    report = done[1]
    sizes = [len(rows) for rows in by_hand(0.65, 3, 2, 10)]
    assert [report[name] for name in ("pairs", "queries", "lines", "negatives")] == [PAIRS, 60, PAIRS, sum(sizes)]
    counts = [sizes.count(3), sizes.count(2) + sizes.count(1), sizes.count(0)]
    assert min(counts) > 0  # or this test would say little
    assert [report["mined"], report["fewer"], report["without"]] == counts
    assert report["candidates"] == 10 * PAIRS
    assert report["candidates"] == sum(report["dropped"].values()) + report["negatives"] + report["not_taken"]
    assert report["dropped"]["rank"] == 2 * PAIRS
    assert all(report["dropped"][rule] for rule in ("positive", "relative_margin", "duplicate", "held_out"))
    found = lines(Path(done[0].output).parent)
    means = [np.mean([line["positive_score"] for line in found if line["positive_score"] is not None])]
    means.append(np.mean([score for line in found for score in line["negative_score"]]))
    assert list(report["mean_score"].values()) == pytest.approx(means, abs=1e-4)


def test_report_and_sample_lie_beside_it_and_nothing_else(done: Done) -> None:
    chosen, report = done
    folder = Path(chosen.output).parent
    names = ["mined.config.yaml", "mined.jsonl", "mined.report.json", "mined.sample.txt"]
    assert storage.list_names(folder) == names
    assert storage.read_json(folder / "mined.report.json") == report
    assert report["sha256"] == storage.sha256_file(folder / "mined.jsonl")
    assert MineConfig.from_yaml(folder / "mined.config.yaml") == chosen
    found = lines(folder)
    assert report["sample"] == [found[i] for i in (0, 14, 28, 42, 56)]
    assert (folder / "mined.sample.txt").read_text().startswith(f"query           {QUERIES[0]}\npositive ")


def test_the_same_bytes_from_one_encoder_and_from_three(done: Done, index: Path, pairs: Path, tmp_path: Path) -> None:
    mine(config(index, pairs, tmp_path, actors=1, **STRICT))
    assert (tmp_path / "mined.jsonl").read_bytes() == Path(done[0].output).read_bytes()


def test_the_random_choice_depends_on_the_query_alone(done: Done, index: Path, pairs: Path, tmp_path: Path) -> None:
    for rows, actors in ((7, 1), (1000, 3)):
        values = {**STRICT, "choose": "random", "negatives": 2, "unit_rows": rows, "actors": actors}
        mine(config(index, pairs, tmp_path / str(rows), **values))
    chosen = [[line["negative_id"] for line in lines(tmp_path / rows)] for rows in ("7", "1000")]
    assert chosen[0] == chosen[1]
    assert chosen[0] != [line["negative_id"][:2] for line in lines(Path(done[0].output).parent)]


def test_the_supervised_stage_reads_the_result(index: Path, pairs: Path, tmp_path: Path) -> None:
    report = mine(config(index, pairs, tmp_path, incomplete="drop", negatives=2))
    found = lines(tmp_path)
    assert len(found) == report["mined"] == report["lines"] < PAIRS
    examples = list(iter_pairs(PairSet(name="mined", path=str(tmp_path / "mined.jsonl")), 2, ""))
    assert [example.texts for example in examples] == [
        (line["query"], line["positive"], *line["negative"]) for line in found
    ]
    # Titles stand before the texts, where there are any.
    row = int(found[0]["negative_id"][0].removeprefix("doc-"))
    assert found[0]["negative"][0] == (f"{TITLES[row]}\n{TEXTS[row]}" if TITLES[row] else TEXTS[row])


def test_scores_of_a_reduced_index_are_compared_in_its_own_space(tmp_path: Path) -> None:
    write_index(tmp_path / "i", VECTORS, TEXTS, dimensions=16, made_by=ENCODER.fingerprint, encoder="hash:64")
    given = [{"query": QUERIES[i], "positive": TEXTS[i]} for i in range(20)]
    given += [{"query": QUERIES[i], "positive_id": f"doc-{i}"} for i in range(20)]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(line) + "\n" for line in given))
    mine(config(tmp_path / "i", tmp_path / "both.jsonl", tmp_path, rank_stop=300))
    scores = [line["positive_score"] for line in lines(tmp_path)]
    assert scores[:20] == pytest.approx(scores[20:], abs=2e-5)
    full = [float(VECTORS[i] @ ENCODER.encode([QUERIES[i]])[0]) for i in range(20)]
    assert scores[:20] != pytest.approx(full, abs=0.01)


def test_a_run_that_fails_leaves_what_was_there(index: Path, tmp_path: Path) -> None:
    (tmp_path / "mined.jsonl").write_text("the result of before\n")
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text('{"query": "word1", "positive": "word2"}\n{"query": "word3", "positive_id": "doc-9999"}\n')
    with pytest.raises(UserError, match=r"1 pairs give positive_id alone.*'doc-9999'"):
        mine(config(index, unknown, tmp_path))
    assert storage.list_names(tmp_path) == ["mined.jsonl", "unknown.jsonl"]
    assert (tmp_path / "mined.jsonl").read_text() == "the result of before\n"


def test_what_a_killed_run_left_is_cleared_away(done: Done, tmp_path: Path) -> None:
    left = tmp_path / ".mined.jsonl.mining" / "work" / "parts" / "000009.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("half a li")
    report = mine(done[0].replace(output=str(tmp_path / "mined.jsonl")))
    assert report["sha256"] == done[1]["sha256"]
    assert len(storage.list_names(tmp_path)) == 4


def test_another_run_on_the_same_output_is_refused(index: Path, pairs: Path, tmp_path: Path) -> None:
    with sole_writer(str(tmp_path / ".mined.jsonl.mining")), pytest.raises(ConcurrentWriterError):
        mine(config(index, pairs, tmp_path))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"index": ""}, UserError, "index is required"),
        ({"pairs": "nowhere.jsonl"}, UserError, "no pairs at nowhere"),
        ({"output": "folder"}, UserError, r"--set output=FILE\.jsonl"),
        ({"output": "s3://bucket/mined.jsonl"}, UserError, "local or mounted"),
        ({"encoder": "hash:32"}, MismatchError, "the encoder: 32"),
        ({"actors": 99}, UserError, "actors = 99 do not fit"),
    ],
)
def test_what_cannot_be_mined_is_refused_with_the_cure(
    index: Path, pairs: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        mine(config(index, pairs, tmp_path).replace(**changes))
    assert storage.list_names(tmp_path) == []


def test_an_empty_file_of_pairs_is_refused(index: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no pairs are there"):
        mine(config(index, tmp_path / "none.jsonl", tmp_path))


def test_a_damaged_index_is_not_mined(index: Path, pairs: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(index, tmp_path / "index"))
    path = damaged / "versions" / "v1" / "documents.parquet"
    path.write_bytes(path.read_bytes().replace(b"word", b"wurd", 1))
    with pytest.raises(VerificationError, match=r"documents\.parquet"):
        mine(config(damaged, pairs, tmp_path))


def test_an_index_without_texts_is_refused_with_the_cure(index: Path, pairs: Path, tmp_path: Path) -> None:
    first = versions.version_folder(index)
    facts = versions.read_manifest(first)
    with drafts.new_version(tmp_path / "i") as draft:
        shutil.copytree(first, draft.folder, dirs_exist_ok=True)
        (draft.folder / versions.MANIFEST).unlink()
        table = pq.read_table(first / DOCUMENTS).drop_columns("text")
        documents.write(table.to_batches(), table.schema, COUNT, draft.folder / DOCUMENTS)
        draft.commit({name: value for name, value in facts.items() if name not in ("version", "files", "sha256")})
    with pytest.raises(UserError, match="keep_text=true"):
        mine(config(tmp_path / "i", pairs, tmp_path))


def test_windows_are_judged_by_their_documents(tmp_path: Path) -> None:
    """Each document twice: as it is, and its words in the other order, so that both windows rank alike."""
    texts = [text for whole in TEXTS[:100] for text in (whole, " ".join(whole.split()[::-1]))]
    vectors = ENCODER.encode(texts)
    ids, parents = [f"doc-{i // 2}#{i % 2}" for i in range(200)], [f"doc-{i // 2}" for i in range(200)]
    write_index(
        tmp_path / "i", vectors, texts, made_by=ENCODER.fingerprint, encoder="hash:64", ids=ids,
        extra={"parent_id": pa.array(parents)},
    )  # fmt: skip
    given = [{"query": QUERIES[i], "positive_id": f"doc-{i}"} for i in range(0, 60, 3)]
    given += [{**line, "positive": "elsewhere"} for line in given]
    (tmp_path / "windows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in given))
    loose = {"rank_stop": 60, "relative_margin": None, "title": "ignore"}
    report = mine(config(tmp_path / "i", tmp_path / "windows.jsonl", tmp_path, **loose))
    found = lines(tmp_path)
    assert report["negatives"] == 4 * len(found) == 160
    for line in found:
        taken = [id_.partition("#")[0] for id_ in line["negative_id"]]
        assert line["positive_id"] not in taken and len(set(taken)) == 4
        assert not any(is_held_out(id_) for id_ in taken)
    # Of the positive that is given by its id, the window that answers best.
    for line in found[:20]:
        row = int(line["positive_id"].removeprefix("doc-"))
        best = max(float(ENCODER.encode([line["query"]])[0] @ vectors[2 * row + window]) for window in (0, 1))
        assert line["positive_score"] == pytest.approx(best, abs=2e-5)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"query": QUERIES[0], "positive": TEXTS[0]}))
    with pytest.raises(UserError, match=r"1 pairs have no positive_id, .* holds windows .* give positive_id"):
        mine(config(tmp_path / "i", tmp_path / "texts.jsonl", tmp_path / "refused"))


def test_an_updated_index_is_mined_as_one_built_whole(index: Path, pairs: Path, tmp_path: Path) -> None:
    updated, gone = tmp_path / "updated", 10  # documents that were there and are deleted, each beside its double
    first = write_index(
        updated, np.concatenate([VECTORS[:250], VECTORS[:gone]]), [*TEXTS[:250], *TEXTS[:gone]],
        made_by=ENCODER.fingerprint, encoder="hash:64",
    )  # fmt: skip
    assert first["count"] == 260
    rest = write_embeddings(
        tmp_path / "rest", VECTORS[250:], TEXTS[250:], ids=[f"doc-{i}" for i in range(250, COUNT)], first_row=250,
        made_by=ENCODER.fingerprint,
    )  # fmt: skip
    report = update(UpdateConfig(index=str(updated), embeddings=str(rest), delete=()))
    # The new rows have the ids doc-250…259 of the doubles, which they replace.
    assert (report["replaced"], report["documents"]) == (gone, COUNT)
    for name, folder in (("of-whole", index), ("of-updated", updated)):
        (tmp_path / name).mkdir()
        mine(config(folder, pairs, tmp_path / name, **STRICT))
    assert lines(tmp_path / "of-updated") == lines(tmp_path / "of-whole")


def test_encoders_that_ask_for_no_gpu_take_none(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.load("tiny")
    task: Any = SimpleNamespace(encoder="tiny", fingerprint=encoder.fingerprint)
    with pytest.raises(UserError, match="device=cuda, and torch finds no GPU here"):
        next(EncodePairs(task, None, "cuda")(pa.table({"unit": [0]})))
    asked: list[str] = []
    monkeypatch.setattr("rayvec.modeling.backbone.choose_device", lambda name: asked.append(name) or "cpu")
    EncodePairs(task, None)
    assert asked == ["cpu"]
