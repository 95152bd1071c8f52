"""Documents written over HTTP, without Serve: what is answered, what is found, what lies on disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipelines._ray import worker_environment
from pipelines.update import UpdateConfig, update
from pipelines.versions import verify_index
from rayvec.errors import StorageError, UserError, VerificationError
from rayvec.indexing import drafts, versions
from rayvec.indexing.searcher import Index
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch
from rayvec.serving import commits, writer
from rayvec.serving.config import ServeConfig
from rayvec.serving.preflight import plan
from rayvec.serving.security import Keys, new_key, parse_line
from tests.artifacts import EMBEDDED, texts_for, write_index
from tests.services import COUNT, MODEL, Client, write_service_index

ENCODER = HashEncoder.parse(MODEL)


@pytest.fixture
def folder(index: Path, tmp_path: Path) -> Path:
    """An index of its own."""
    return Path(shutil.copytree(index, tmp_path / "mine"))


@pytest.fixture
def service(folder: Path) -> Iterator[Client]:
    client = Client(folder, writable=True)
    yield client
    client.close()


def document(id_: str, text: str = "a marmot whistles under the glacier", **more: Any) -> dict[str, Any]:
    return {"id": id_, "text": text, **more}


def put(service: Client, *documents: dict[str, Any], wait: bool = True) -> dict[str, Any]:
    answer = service.post("/v1/documents", documents=list(documents), wait=wait)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def found(service: Client, query: str, **options: Any) -> list[dict[str, Any]]:
    answer = service.post("/v1/search", query=query, **options)
    assert answer.status_code == 200, answer.text
    hits: list[dict[str, Any]] = answer.json()["results"][0]["hits"]
    return hits


def counts(answer: dict[str, Any]) -> dict[str, int]:
    return {name: answer[name] for name in ("added", "replaced", "unchanged", "deleted") if answer[name]}


def error(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()["error"]
    return answer.status_code, body["code"], body["param"]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_what_is_written_is_found_and_what_is_deleted_is_not(service: Client, mode: str) -> None:
    answer = put(service, document("m", title="Alps", payload={"line": 77}))
    assert (counts(answer), answer["live"], answer["index_version"]) == ({"added": 1}, True, "v2")
    hit = found(service, "marmot glacier", mode=mode, k=1)[0]
    assert (hit["id"], hit["title"], hit["payload"]) == ("m", "Alps", {"line": 77})
    assert put(service, document("m", "another text altogether"))["replaced"] == 1
    assert found(service, "another text altogether", mode=mode, k=1)[0]["id"] == "m"
    assert "whistles" not in str(found(service, "marmot whistles", mode=mode, k=COUNT))
    gone = service.ask("DELETE", "/v1/documents", json={"ids": ["m", "nobody"], "wait": True}).json()
    assert (counts(gone), gone["unknown_ids"]) == ({"deleted": 1}, ["nobody"])
    assert "m" not in [hit["id"] for hit in found(service, "another text altogether", mode=mode, k=COUNT)]


def test_the_vector_is_that_of_the_title_and_the_text_as_the_embed_job_makes_it(service: Client) -> None:
    put(service, document("m", "a text", title="A title"))
    [hit] = found(service, "A title a text", k=1, include=["vector"])
    np.testing.assert_allclose(hit["vector"], ENCODER.encode(["A title\na text"])[0], atol=1e-6)


def test_the_same_write_again_changes_nothing(service: Client, folder: Path) -> None:
    one = [document("m", payload={"line": 1}), document("doc-3", "new words")]
    first = put(service, *one)
    again = put(service, *one)
    assert (counts(first), counts(again)) == ({"added": 1, "replaced": 1}, {"unchanged": 2})
    assert first["index_version"] == again["index_version"] == "v2" == versions.current(folder)
    assert counts(put(service, one[0] | {"payload": {"line": 2}}, one[1])) == {"replaced": 1, "unchanged": 1}


def test_one_document_is_deleted_by_its_path_whatever_its_id(service: Client) -> None:
    put(service, document("a/b c"), wait=False)
    assert service.ask("DELETE", "/v1/documents/a%2Fb%20c?wait=true").json()["deleted"] == 1
    assert "a/b c" not in service.gateway.metrics.render().decode()


def test_many_small_writes_make_few_segments_and_keep_few_versions(service: Client, folder: Path) -> None:
    for number in range(21):
        put(service, document(f"m-{number}", f"marmot number{number}"), wait=number == 20)
    opened = Index.open(folder)
    assert [segment.rows for segment in opened.segments] == [COUNT, 16, 4, 1] and not len(opened.dropped)
    assert len(versions.list_versions(folder)) == 1 + commits.KEPT_VERSIONS
    assert "v1" in versions.list_versions(folder), "a version that a job made stays"
    assert {hit["id"] for hit in found(service, "marmot", k=21)} == {f"m-{i}" for i in range(21)}
    assert verify_index(str(folder))["faults"] == 0


def test_documents_that_were_replaced_or_deleted_do_not_come_back_when_deltas_are_merged(
    service: Client, folder: Path
) -> None:
    put(service, *(document(f"m-{i}", f"marmot number{i}") for i in range(4)))
    service.ask("DELETE", "/v1/documents", json={"ids": ["m-1", "doc-1"]})
    answer = put(
        service, document("m-2", "marmot of another kind"), document("m-9", "marmot"), document("m-8", "marmot")
    )
    assert counts(answer) == {"added": 2, "replaced": 1}
    opened = Index.open(folder)
    assert [segment.rows for segment in opened.segments] == [COUNT, 5] and len(opened.dropped) == 1
    ids = {hit["id"] for hit in found(service, "marmot", k=COUNT + 5, mode="dense")}
    assert ids == {f"doc-{i}" for i in range(COUNT) if i != 1} | {"m-0", "m-2", "m-3", "m-8", "m-9"}
    assert verify_index(str(folder))["documents"] == len(ids)


def test_an_open_version_is_not_pruned(service: Client, folder: Path) -> None:
    put(service, document("held"))
    opened = Index.open(folder)
    for number in range(commits.KEPT_VERSIONS + 3):
        put(service, document("m", f"text number{number}"), wait=False)
    assert "v2" in versions.list_versions(folder) and "v3" not in versions.list_versions(folder)
    row = next(row for row in range(opened.count) if opened.documents([row], ["id"])[0]["id"] == "held")
    assert opened.documents([row])[0]["text"].startswith("a marmot")
    del opened
    put(service, document("m", "the last text"))
    assert "v2" not in versions.list_versions(folder)


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), StorageError("x"), VerificationError("x")])
def test_what_is_on_disk_is_answered_though_old_versions_cannot_be_removed(
    service: Client, folder: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(versions, "remove", fails)
        for number in range(commits.KEPT_VERSIONS + 2):
            assert put(service, document("m", f"text number{number}"), wait=False)["index_version"] == f"v{number + 2}"
    put(service, document("m", "the last text"))
    assert len(versions.list_versions(folder)) == 1 + commits.KEPT_VERSIONS, "and the next write removes them"


def test_writes_at_once_become_few_versions_and_each_is_told_its_own(service: Client, folder: Path) -> None:
    async def write(number: int) -> dict[str, Any]:
        body = {"documents": [document(f"m-{number % 30}", f"marmot number{number}")]}
        answer = await service.http.post("/v1/documents", json=body)
        assert answer.status_code == 200
        return dict(answer.json())

    async def all_at_once() -> list[dict[str, Any]]:
        return await asyncio.gather(*(write(number) for number in range(32)))

    answers = service.runner.run(all_at_once())
    assert sum(answer["added"] for answer in answers) == 30 and sum(answer["replaced"] for answer in answers) == 2
    assert len({answer["index_version"] for answer in answers}) <= 3
    texts = {
        hit["id"]: hit["text"] for hit in found(service, "marmot", k=30, min_index_version=answers[-1]["index_version"])
    }
    assert texts == {f"m-{i}": f"marmot number{i + 30 if i < 2 else i}" for i in range(30)}


def test_a_version_that_is_never_done_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "STUCK_SECONDS", 0.05)
    release = threading.Event()

    class Slow(HashEncoder):
        def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
            release.wait(10)
            return super().encode_tokens(batch)

    client = Client(folder, encoder=Slow(64), writable=True)
    service: Any = client.gateway._writer

    async def run() -> int:
        await service.check_health()
        task = asyncio.create_task(client.http.post("/v1/documents", json={"documents": [document("m")]}))
        await asyncio.sleep(0.5)
        with pytest.raises(RuntimeError, match="one version has been in the making"):
            await service.check_health()
        release.set()
        return (await task).status_code

    assert client.runner.run(run()) == 200
    client.close()


def test_a_search_waits_for_the_version_it_asks_for(service: Client) -> None:
    version = put(service, document("m"), wait=False)["index_version"]
    assert found(service, "marmot", k=1, min_index_version=version)[0]["id"] == "m"


def test_a_version_that_does_not_come_is_503_and_one_that_is_none_422(
    service: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayvec.serving.retriever.REACH_SECONDS", 0.1)
    put(service, document("m"))
    versions.rollback(folder, "v1")
    service.runner.run(asyncio.sleep(0.3))
    answer = service.post("/v1/search", query="x", min_index_version="v2")
    assert (error(answer)[:2], answer.headers["retry-after"]) == ((503, "version_not_served"), "1")
    answer = service.post("/v1/search", query="x", min_index_version="v3")
    assert error(answer) == (422, "invalid_value", "min_index_version")


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"documents": [document("m", payload={"lime": 1})]}, "documents.0.payload.lime", "it has line"),
        ({"documents": [document("a"), document("m", payload={"line": "1"})]}, "documents.1.payload.line", "int32"),
        ({"documents": [document("m", payload={"line": 2**31})]}, "documents.0.payload.line", "int32"),
        ({"documents": [document("m", payload={"line": True})]}, "documents.0.payload.line", "int32"),
        ({"documents": [document("m"), document("m")]}, "documents", "earlier one"),
        ({"documents": [document("")]}, "documents.0.id", "at least 1"),
        ({"documents": [document("é" * 257)]}, "documents.0.id", "512 bytes"),
        ({"documents": [document("m", " \n ")]}, "documents.0.text", "empty"),
        ({"documents": [document("m", "​\xad")]}, "documents.0.text", "shows nothing"),
        ({"documents": [document("m", "x" * 100_001)]}, "documents.0.text", "100000"),
        ({"documents": []}, "documents", "at least 1"),
        ({"documents": [document("m")] * 257}, "documents", "256"),
        ({"documents": [{"id": "m"}]}, "documents.0.text", "required"),
    ],
)
def test_what_cannot_be_written_is_422_and_names_the_field(
    service: Client, folder: Path, body: dict[str, Any], param: str, said: str
) -> None:
    answer = service.post("/v1/documents", **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert said in answer.json()["error"]["message"]
    assert versions.list_versions(folder) == ["v1"]


def test_a_bad_write_does_not_take_others_of_its_version_with_it(service: Client) -> None:
    async def both() -> list[httpx.Response]:
        bodies = [{"documents": [document("m", payload={"line": value})]} for value in ("x", 1)]
        return await asyncio.gather(*(service.http.post("/v1/documents", json=body) for body in bodies))

    assert [answer.status_code for answer in service.runner.run(both())] == [422, 200]


def test_deletes_want_a_body_or_a_path(service: Client) -> None:
    assert service.ask("DELETE", "/v1/documents").status_code == 415
    assert service.ask("DELETE", "/v1/documents", json={"ids": []}).status_code == 422


def test_a_delete_of_everything_is_refused(service: Client) -> None:
    answer = service.ask("DELETE", "/v1/documents", json={"ids": [f"doc-{i}" for i in range(COUNT)]})
    assert error(answer)[:2] == (409, "index_would_be_empty")


def test_without_writable_it_is_403_and_says_what_to_do(index: Path) -> None:
    client = Client(index)
    for answer in (
        client.post("/v1/documents", documents=[document("m")]),
        client.ask("DELETE", "/v1/documents", json={"ids": ["m"]}),
        client.ask("DELETE", "/v1/documents/m"),
    ):
        assert error(answer)[:2] == (403, "read_only") and "writable=true" in answer.text
    client.close()


def test_a_key_needs_the_scope(folder: Path) -> None:
    made = {scope: new_key(scope, (scope,)) for scope in ("read", "write")}  # type: ignore[arg-type, dict-item]
    keys = [known for _, line in made.values() if (known := parse_line(line)) is not None]
    client = Client(folder, keys=Keys(keys), writable=True)
    for path, method in (("/v1/documents", "POST"), ("/v1/documents/doc-1", "DELETE")):
        body = {"json": {"documents": [document("m")]}} if method == "POST" else {}
        answers = [
            client.ask(method, path, headers={"authorization": f"Bearer {key}"}, **body) for key, _ in made.values()
        ]
        assert [answer.status_code for answer in answers] == [403, 200]
    reader, _ = made["read"]
    assert client.get("/v1/documents/doc-2", headers={"authorization": f"Bearer {reader}"}).status_code == 200
    client.close()


def test_the_list_of_models_names_the_version_that_is_live(service: Client) -> None:
    written = put(service, document("m"), wait=True)["index_version"]
    assert service.get("/v1/models").json()["data"][0]["index_version"] == written


def test_while_a_job_writes_the_index_it_is_503_with_the_time_to_wait(service: Client, folder: Path) -> None:
    with versions.writing(folder):
        answer = service.post("/v1/documents", documents=[document("m")])
    assert (error(answer)[:2], answer.headers["retry-after"]) == ((503, "index_busy"), str(writer.BUSY_SECONDS))
    assert put(service, document("m"))["added"] == 1


def test_an_index_built_anew_by_another_encoder_is_409(service: Client, folder: Path) -> None:
    other = HashEncoder.parse("hash:32")
    write_index(folder, other.encode(texts_for(8)), texts_for(8), made_by=other.fingerprint, encoder="hash:32")
    assert error(service.post("/v1/documents", documents=[document("m")]))[:2] == (409, "index_changed")


def embedded_otherwise(folder: Path, **settings: Any) -> None:
    """The live version again, as if a job had built it of embeddings made with other settings."""
    before = versions.version_folder(folder)
    manifest = versions.read_manifest(before)
    with drafts.new_version(folder) as draft:
        draft.take(before, manifest, manifest["files"])
        draft.commit({**versions.facts_of(manifest), "embedded": {**EMBEDDED, **settings}})


@pytest.mark.parametrize(
    "settings",
    [
        {"instruction": "Represent this:"},
        {"title": "ignore"},
        {"max_length": 3},
        {"long": "windows", "window_tokens": 4, "overlap_tokens": 0},
    ],
)
def test_an_index_built_anew_with_other_settings_of_the_same_encoder_is_409(
    service: Client, folder: Path, settings: dict[str, Any]
) -> None:
    embedded_otherwise(folder, **settings)
    answer = service.post("/v1/documents", documents=[document("m")])
    assert error(answer)[:2] == (409, "index_changed") and "start the service again" in answer.text
    assert versions.list_versions(folder) == ["v1", "v2"]


def test_settings_that_change_no_vector_stop_no_write(service: Client, folder: Path) -> None:
    embedded_otherwise(folder, unit_rows=7, precision="float32", max_length=ENCODER.fingerprint.max_length)
    assert counts(put(service, document("m"))) == {"added": 1}


def test_an_index_that_does_not_say_how_it_was_embedded_can_be_served(folder: Path) -> None:
    before = versions.version_folder(folder)
    manifest = versions.read_manifest(before)
    with drafts.new_version(folder) as draft:
        draft.take(before, manifest, manifest["files"])
        draft.commit({**versions.facts_of(manifest), "embedded": None})
    assert plan(ServeConfig.parse({"index": str(folder)})).instructions == {}


def test_writes_go_on_over_an_index_that_a_job_builds_anew(service: Client, folder: Path) -> None:
    put(service, document("m"))
    write_service_index(folder, count=COUNT - 4)
    assert counts(put(service, document("n"))) == {"added": 1}
    assert {hit["id"] for hit in found(service, "marmot", k=COUNT)} >= {"n"}
    assert service.get("/ready").json()["documents"] == COUNT - 3


def test_a_job_deletes_what_the_service_wrote_and_the_service_writes_on(service: Client, folder: Path) -> None:
    put(service, document("m"), document("n", "another"))
    assert update(UpdateConfig(index=str(folder), delete=("m",)))["deleted"] == 1
    assert counts(put(service, document("m"), document("n", "another"))) == {"added": 1, "unchanged": 1}
    assert versions.read_manifest(versions.version_folder(folder, "v3"))["by"] is None


def test_a_folder_that_may_not_be_written_is_told_apart_from_a_disk_that_failed() -> None:
    def problem(number: int) -> int:
        failure = StorageError("x")
        failure.__cause__ = OSError(number, "x") if number != 13 else PermissionError(13, "x")
        return writer._problem(failure).status_code

    assert [problem(number) for number in (13, 30, 28)] == [403, 403, 503]


# Writes a document and deletes one, again and again, each time with no room for files in another step of it.
FULL = """
import json, resource, sys
from rayvec.encoding.direct import work_of
from rayvec.indexing import documents, drafts, lexical, segments, shards, versions
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving import commits, writer
from rayvec.serving.changes import Change
from rayvec.serving.schemas import Document

STEPS = {
    "embeddings": (commits, "publish_part"), "vectors": (shards, "fill"), "documents": (documents, "write"),
    "words": (lexical.Lexical, "save"), "dropped": (segments, "save_rows"), "manifest": (drafts.Draft, "commit"),
    "history": (versions, "record"),
}
encoder, usual = HashEncoder.parse("hash:64"), resource.getrlimit(resource.RLIMIT_FSIZE)
settings = writer.settings_of(sys.argv[1])
work = work_of(settings, "hash:64", encoder.fingerprint)
committer = commits.Committer(sys.argv[1], work, settings, encoder, encoder)

def write(number, step):
    [written] = committer.commit([Change([Document(id=step, text=f"a marmot of {step}")], [f"doc-{number}"])])
    return written.version

def full(step):
    place, name = STEPS[step]
    real = getattr(place, name)
    def limited(*values, **named):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, usual[1]))
        try:
            return real(*values, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    setattr(place, name, limited)
    return lambda: setattr(place, name, real)

told = {}
for number, step in enumerate(STEPS):
    restore = full(step)
    try:
        first = write(number, step)
    except Exception as error:
        first = type(error).__name__, str(error)
    restore()
    told[step] = [first, write(number, step)]
print(json.dumps(told))
"""


def test_without_room_a_write_is_refused_as_storage_and_the_next_one_is_made(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder)],
        env={**os.environ, **worker_environment()}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # The history is written when the version is live, and made up for by the next write.
    assert told.pop("history") == ["v8", "v8"]
    for number, (step, (first, then)) in enumerate(told.items()):
        assert first[0] == "StorageError" and "no space left" in first[1], (step, first)
        assert then == f"v{number + 2}", step
    assert verify_index(str(folder))["faults"] == 0
    opened = Index.open(folder)
    ids = {row["id"] for row in opened.documents(opened.dense(ENCODER.encode(["marmot"]), COUNT).rows[0], ["id"])}
    assert ids == {*told, "history", *(f"doc-{row}" for row in range(len(told) + 1, COUNT))}
    assert not list((folder / "versions").glob(".*"))


def test_what_would_not_be_seen_or_cannot_be_embedded_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="index_version"):
        ServeConfig.parse({"index": str(folder), "writable": True, "index_version": "v1"})
    manifest = versions.read_manifest(versions.version_folder(folder))
    assert manifest["embedded"] == EMBEDDED
    with drafts.new_version(folder) as draft:
        before = versions.version_folder(folder)
        draft.take(before, manifest, manifest["files"])
        draft.commit({**versions.facts_of(manifest), "embedded": None})
    with pytest.raises(UserError, match="how its documents were embedded"):
        plan(ServeConfig.parse({"index": str(folder), "writable": True}))


@pytest.mark.parametrize(
    ("factory", "dimensions"), [("IVF4,SQ8", None), ("HNSW8", None), ("RR64,IVF4,RaBitQ,RFlat", None), ("Flat", 16)]
)
def test_vectors_come_from_every_kind_and_every_segment(tmp_path: Path, factory: str, dimensions: int | None) -> None:
    texts = texts_for(200)
    vectors = ENCODER.encode(texts)
    write_index(tmp_path, vectors, texts, factory, 2, dimensions, {}, made_by=ENCODER.fingerprint, encoder=MODEL)
    client = Client(tmp_path, writable=True)
    put(client, document("m", "marmot"))
    hits = found(client, "marmot list socket", k=201, include=["vector"], mode="dense")
    given = {hit["id"]: np.array(hit["vector"]) for hit in hits}
    client.close()
    opened = Index.open(tmp_path)
    made = {f"doc-{i}": vector for i, vector in enumerate(vectors)} | {"m": ENCODER.encode(["marmot"])[0]}
    assert given.keys() == made.keys()
    for id_, vector in made.items():
        expected = opened.prepared(vector[None])[0]
        assert given[id_].shape == (dimensions or 64,)
        assert given[id_] @ expected / np.linalg.norm(expected) > 0.99, id_


def test_more_numbers_than_an_answer_may_carry_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayvec.serving.search.MAX_VALUES", 640)
    assert len(found(client, "list", k=10, include=["vector"])) == 10
    answer = client.post("/v1/search", query="list", k=11, include=["vector"])
    assert error(answer) == (422, "invalid_value", "include")


def test_the_index_is_listed(service: Client) -> None:
    put(service, document("m"))
    [listed] = service.get("/v1/indexes").json()["data"]
    told = ("id", "version", "documents", "dimensions", "metric", "kind", "modes", "writable", "segments", "model")
    assert [listed[name] for name in told] == [
        *("mine", "v2", COUNT + 1, 64, "cosine", "Flat", ["hybrid", "dense", "lexical"], True, 2, MODEL),
    ]
    assert {one["name"]: (one["type"], one["filterable"]) for one in listed["columns"]} == {
        "id": ("string", True), "title": ("string", True), "text": ("string", False), "line": ("int32", True),
    }  # fmt: skip
    assert listed["fingerprint"] == ENCODER.fingerprint.short and listed["proof"]["target"] == 0.95


def test_recall_is_measured_again_when_enough_has_changed(tmp_path: Path) -> None:
    texts = texts_for(400)
    vectors = ENCODER.encode(texts)
    write_index(tmp_path, vectors, texts, "IVF8,SQ8", search={"nprobe": 8}, made_by=ENCODER.fingerprint, encoder=MODEL)
    client = Client(tmp_path, writable=True)
    unproved = []
    for number in range(5):
        put(client, document(f"m-{number}", f"marmot number{number}"))
        [listed] = client.get("/v1/indexes").json()["data"]
        unproved.append(listed["proof"]["unproved_rows"])
    client.close()
    assert unproved == [1, 2, 3, 4, 0], "1 % of 400 rows may change"
    assert listed["proof"]["recall"] >= 0.95 and listed["proof"]["queries"] and listed["advice"] is None


def test_writes_are_counted(service: Client) -> None:
    put(service, document("m"), document("doc-1", "new"))
    metrics = service.get("/metrics").text
    replica = f'replica="{service.gateway.metrics._replica}"'
    assert f'rayvec_written_documents_total{{outcome="added",{replica}}} 1.0' in metrics
    assert f'rayvec_write_stage_seconds_count{{{replica},stage="publish"}} 1.0' in metrics
    assert f'rayvec_requests_total{{{replica},route="/v1/documents",status="200"}} 1.0' in metrics
