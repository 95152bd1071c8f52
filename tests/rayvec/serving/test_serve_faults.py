"""Services of other shapes than one process a part, and what dies or goes away under them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from pipelines._ray import worker_environment
from rayvec import Client
from rayvec.errors import VerificationError
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.security import new_key
from tests.artifacts import texts_for, write_index
from tests.models import tiny_tokenizer
from tests.served import READY_SECONDS, Service, asking, check_drain, free_port, search, serving
from tests.services import COUNT, MODEL, write_service_index
from tests.services import Client as InProcess

pytestmark = pytest.mark.cluster

TEXT = "sort the list in place"


def test_a_kill_of_every_process_after_an_answer_loses_no_document(index: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(index, tmp_path / "index"))
    with serving(index, "writable=true") as service:
        with Client(service.address) as client:
            for number in range(3):
                answer = client.upsert([{"id": f"m-{number}", "text": f"marmot number{number}"}])
            client.delete(["doc-1"])
        service.kill_everything()
    after = InProcess(index, writable=True)
    found = after.post("/v1/search", query="marmot", k=COUNT + 3, mode="dense").json()["results"][0]["hits"]
    assert {hit["id"] for hit in found[:3]} == {"m-0", "m-1", "m-2"}
    assert "doc-1" not in {hit["id"] for hit in found} and len(found) == COUNT + 2
    assert after.post("/v1/documents", documents=[{"id": "m-3", "text": "marmot"}]).json()["added"] == 1
    assert int(answer.index_version[1:]) == 4
    after.close()


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of two parts of the vectors and two gateways."""
    index, texts, encoder = tmp_path_factory.mktemp("spread"), texts_for(60), HashEncoder.parse(MODEL)
    write_index(index, encoder.encode(texts), texts, pieces=2, made_by=encoder.fingerprint, encoder=MODEL)
    with serving(index, "replicas.parts=2", "limits.part_seconds=1", "replicas.gateway=2") as service:
        yield service


def test_a_killed_part_of_the_vectors_is_told_until_it_is_back(spread: Service) -> None:
    ask = {"query": TEXT, "mode": "dense", "k": 60}
    whole = search(spread, **ask).json()
    assert len(whole["results"][0]["hits"]) == 60 and whole["coverage"] == 1.0 and whole["missing_parts"] == []
    (part,) = spread.replicas("Vectors-1")
    part.kill()
    end, answers = time.monotonic() + 60, []
    while time.monotonic() < end and (not answers or answers[-1]["coverage"] < 1.0 or len(answers) < 5):
        answer = search(spread, **ask)
        assert answer.status_code == 200, answer.text
        answers.append(answer.json())
        whole_only = search(spread, **ask, allow_partial=False)
        assert whole_only.status_code in (200, 503)
    for answer in answers:
        missing = len(answer["missing_parts"])
        assert len(answer["results"][0]["hits"]) == 60 - 30 * missing
        assert answer["coverage"] == pytest.approx(1 - missing / 2, abs=1e-5)
    assert answers[-1]["coverage"] == 1.0 and answers[-1]["results"] == whole["results"]
    assert any(answer["missing_parts"] == [1] for answer in answers)


def test_the_client_goes_on_while_one_of_two_gateways_is_killed(spread: Service) -> None:
    before = spread.replicas("Gateway")
    assert len(before) == 2
    stop, answers = threading.Event(), []

    def ask() -> None:
        with Client(spread.address, retries=6) as client:
            while not stop.is_set():
                answers.append(client.search(TEXT, k=3).index_version)

    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(ask) for _ in range(4)]
        try:
            time.sleep(0.5)
            before[0].kill()
            seen, end = len(answers), time.monotonic() + 60
            while len(answers) < seen + 100 and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            stop.set()
        for one in done:
            one.result()
    assert len(answers) >= seen + 100


def test_two_gateways_finish_what_is_under_way(spread: Service) -> None:
    """The last test of the two: it takes the service down."""
    begin = time.monotonic()
    check_drain(spread)
    assert spread.process.wait(60) == 0
    assert time.monotonic() - begin < 25, "as a pod is given 30 s"


def test_one_process_answers_writes_and_follows_the_index_and_is_started_again(index: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(index, tmp_path / "index"))
    with serving(index, "replicas.together=true", "writable=true") as service:
        assert [len(service.replicas(name)) for name in ("Gateway", "QueryEncoder", "Retriever")] == [1, 0, 0]
        with Client(service.address, retries=6) as client:
            assert client.search(texts_for(COUNT)[3], k=1).results[0].hits[0].id == "doc-3"
            assert client.embed([TEXT]).tolist() == HashEncoder(64).encode([TEXT]).tolist()
            answer = client.upsert([{"id": "m-1", "text": "marmot"}], wait=True)
            assert (answer.added, answer.live, answer.index_version) == (1, True, "v2")
            with asking(service, 4) as answers:
                write_service_index(index, count=COUNT - 10)
                end = time.monotonic() + READY_SECONDS
                while client.ready().index_version != "v3" and time.monotonic() < end:
                    time.sleep(0.05)
            assert {one.status_code for one in answers} == {200}
            assert client.ready().documents == COUNT - 10
            (process,) = service.replicas("Gateway")
            process.kill()
            process.wait(10)
            while time.monotonic() < end:
                with suppress(httpx.HTTPError):
                    if search(service, query=TEXT, k=1).status_code == 200:
                        break
                time.sleep(0.2)
            assert client.search(TEXT, k=1).index_version == "v3"


def write_slow_index(folder: Path) -> None:
    """An index of a few documents whose encoder takes long for a request as large as allowed."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from rayvec.modeling.encoder import TextEncoder

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaModel(LlamaConfig(**sizes, vocab_size=512, max_position_embeddings=512)).save_pretrained(folder / "base")
    tiny_tokenizer(folder / "base")
    encoder = TextEncoder.from_decoder(folder / "base", max_length=512, device="cpu")
    encoder.save(folder / "encoder", merged=True)
    texts = texts_for(4)
    vectors = encoder.encode(texts)
    write_index(folder / "index", vectors, texts, made_by=encoder.fingerprint, encoder=str(folder / "encoder"))


ABANDONED = 12
IDLE = r"rayvec_requests_in_flight\{.*\} 0\.0"


@pytest.mark.parametrize(
    "settings", [[], pytest.param(["replicas.together=true"], marks=pytest.mark.nightly)], ids=["apart", "together"]
)
def test_what_clients_that_went_away_asked_is_not_encoded(tmp_path: Path, settings: list[str]) -> None:
    write_slow_index(tmp_path)
    texts = ["read the file line by line; " * 200] * 24
    body = {"model": "encoder", "input": texts}
    with serving(tmp_path / "index", "query_cache_mb=0", *settings) as service:
        url = f"{service.address}/v1/embeddings"

        def leave(_: int) -> None:
            with suppress(httpx.ReadTimeout):
                httpx.post(url, json=body, timeout=httpx.Timeout(60, read=alone / 4))
                pytest.fail("it was answered before the client went away")

        begin = time.monotonic()
        assert httpx.post(url, json=body, timeout=60).status_code == 200
        alone = time.monotonic() - begin
        with ThreadPoolExecutor(ABANDONED) as threads:
            list(threads.map(leave, range(ABANDONED)))
        begin = time.monotonic()
        assert search(service, query=TEXT, k=1, mode="dense").status_code == 200
        waited = time.monotonic() - begin
        assert waited < ABANDONED / 2 * alone, "only what was being encoded when its client left"
        end = time.monotonic() + 10
        while not re.search(IDLE, httpx.get(f"{service.address}/metrics").text):
            assert time.monotonic() < end, "the places of those that left are not free again"
            time.sleep(0.1)


def test_a_damaged_index_is_refused_when_the_service_starts(index: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(index, tmp_path / "index"))
    shard = index / "versions" / "v1" / "shard-00000.faiss"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    command = [sys.executable, "-m", "jobs.serve", "--recipe", "hash.serve", "--set", f"index={index}"]
    done = subprocess.run(
        [*command, "--set", f"port={free_port()}"],
        env={**os.environ, **worker_environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == VerificationError.exit_status
    [error] = [line for line in done.stderr.splitlines() if "(raylet)" not in line]
    assert error.startswith("error: ") and "shard-00000.faiss" in error


@pytest.mark.nightly
@pytest.mark.parametrize("deployment", ["QueryEncoder", "Retriever"])
def test_a_part_that_hangs_is_told_and_replaced(index: Path, deployment: str) -> None:
    with serving(index, "limits.timeout_seconds=2", "query_cache_mb=0") as service:
        [stuck] = service.replicas(deployment)
        stuck.suspend()
        answer = search(service, query=TEXT, k=1)
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert httpx.get(f"{service.address}/health", timeout=5).status_code == 200
        end = time.monotonic() + 240  # Serve asks every 10 s, waits 30, and believes the third time
        while search(service, query=TEXT, k=1).status_code != 200:
            assert time.monotonic() < end, "it is not replaced"
            time.sleep(1)
        assert {one.pid for one in service.replicas(deployment)} - {stuck.pid}, "another process answers"


@pytest.mark.nightly
def test_what_is_past_its_deadline_is_not_encoded_in_another_process(tmp_path: Path) -> None:
    write_slow_index(tmp_path)
    body = {"model": "encoder", "input": ["read the file line by line; " * 200] * 48}
    settings = ("query_cache_mb=0", "limits.timeout_seconds=1", "limits.batch_tokens=1024")
    with serving(tmp_path / "index", *settings) as service:

        def ask(_: int) -> int:
            return httpx.post(f"{service.address}/v1/embeddings", json=body, timeout=60).status_code

        with ThreadPoolExecutor(ABANDONED) as threads:
            assert list(threads.map(ask, range(ABANDONED))) == [503] * ABANDONED
        # At most the second try: what was left of the twelve would have kept the encoder busy for many seconds.
        assert 200 in [search(service, query=TEXT, k=1, mode="dense").status_code for _ in range(2)]


def haproxies() -> set[int]:
    return {one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == "haproxy"}


@pytest.mark.nightly
def test_haproxy_asks_for_a_key_bears_slow_clients_and_leaves_nothing(index: Path, tmp_path: Path) -> None:
    key, line = new_key("alice")
    (tmp_path / "keys.txt").write_text(line)
    before = haproxies()
    with serving(index, "proxy=haproxy", f"keys={tmp_path / 'keys.txt'}") as service, ExitStack() as held:
        assert search(service, query=TEXT).status_code == 401
        for _ in range(300):
            half = held.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            half.sendall(b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: appl")
        with Client(service.address, api_key=key) as client:
            assert client.search(texts_for(COUNT)[3], k=1).results[0].hits[0].id == "doc-3"
            assert len(httpx.get(f"{service.address}/health").headers.get_list("x-request-id")) == 1
            check_a_killed_proxy_is_started_again(service, "haproxy")
            begin = time.monotonic()
            service.process.send_signal(signal.SIGTERM)  # HAProxy is told of new servers just now: the worst moment
            assert service.process.wait(60) == 0
            assert time.monotonic() - begin < 25, "as a pod is given 30 s"
    assert haproxies() == before
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", service.port)) != 0


def check_a_killed_proxy_is_started_again(service: Service, name: str) -> None:
    """Meanwhile nobody answers; the parts behind it are as they were."""
    below = psutil.Process(service.process.pid).children(recursive=True)
    (proxy,) = [one for one in below if name in one.name() or name in "".join(one.cmdline()[:1])]
    replicas = {one.pid for one in service.replicas("")}
    proxy.kill()
    end, status = time.monotonic() + READY_SECONDS, 0
    while status != httpx.codes.OK:
        assert time.monotonic() < end, f"no {name} was started"
        time.sleep(0.2)
        with suppress(httpx.HTTPError):
            status = httpx.get(f"{service.address}/ready", timeout=5).status_code
    assert {one.pid for one in service.replicas("")} == replicas


@pytest.mark.nightly
def test_serves_own_proxy_is_started_again(index: Path) -> None:
    with serving(index) as service:
        check_a_killed_proxy_is_started_again(service, "ray::ProxyActor")
        assert search(service, query=TEXT).status_code == httpx.codes.OK


@pytest.mark.nightly
def test_copies_come_with_requests(index: Path) -> None:
    scaling = ["replicas.encoder_most=2", "replicas.retriever_most=2", "replicas.target_requests=1"]
    with serving(index, *scaling) as service:
        parts = ("QueryEncoder", "Retriever")
        assert [len(service.replicas(part)) for part in parts] == [1, 1]
        with asking(service, 12) as answers:
            end = time.monotonic() + READY_SECONDS
            while max(len(service.replicas(part)) for part in parts) < 2:
                assert time.monotonic() < end, "no copy was started"
                time.sleep(0.5)
        assert {answer.status_code for answer in answers} == {200}
