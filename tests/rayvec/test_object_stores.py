"""Object stores: one writer of many wins, by the store's own word; and refusals are one line with a cure.

On a real S3 server, and on fsspec's memory for the stores that go through fsspec.
"""

from __future__ import annotations

import gzip
import io
import sys
import threading
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from rayvec import storage
from rayvec.data.embeddings import read_part
from rayvec.data.source_config import SourceConfig
from rayvec.data.sources import open_source
from rayvec.errors import StorageError, UserError
from tests.buckets import s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as uri:
        yield uri


def race(uri: str) -> list[int]:
    """Which of eight writers at once were told that they wrote."""
    barrier, won = threading.Barrier(8), []

    def put(i: int) -> None:
        barrier.wait()
        if storage.put_if_absent(uri, str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_put_if_absent_lets_exactly_one_of_many_win_on_s3(bucket: str) -> None:
    [winner] = race(f"{bucket}/race/v1.json")
    assert storage.read_bytes(f"{bucket}/race/v1.json") == str(winner).encode()


def test_put_if_absent_is_exclusive_through_fsspec() -> None:
    assert storage.put_if_absent("memory://put/v1", b"first")
    assert not storage.put_if_absent("memory://put/v1", b"second")
    assert storage.read_bytes("memory://put/v1") == b"first"


def test_a_store_without_conditional_writes_is_refused() -> None:
    with pytest.raises(UserError, match=r"no write-if-absent for hdfs://.* s3://, gs://"):
        storage.put_if_absent("hdfs://host/v1", b"")


def test_without_boto3_the_cure_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayvec import object_stores

    object_stores._s3_client.cache_clear()
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"pip install 'rayvec\[s3\]'"):
        storage.put_if_absent(f"{bucket}/v2", b"")


class Meddler:
    """A file system whose first reader meets another client, between the request for the size and that for the bytes.

    (pyarrow's own do both inside one call to Python, so nothing can be put between them from outside.)
    """

    def __init__(self, fs: pafs.FileSystem, meddle: Callable[[], None]) -> None:
        self.fs, self.meddle = fs, meddle

    def __getattr__(self, name: str) -> object:
        return getattr(self.fs, name)

    def open_input_stream(self, path: str, **options: object) -> pa.NativeFile:
        stream = self.fs.open_input_stream(path, **options)
        self.meddle()
        self.meddle = lambda: None
        return stream


def meddled(monkeypatch: pytest.MonkeyPatch, uri: str, meddle: Callable[[], None]) -> None:
    fs, path = storage.filesystem(uri)
    meddler = Meddler(fs, meddle)
    monkeypatch.setattr(storage, "filesystem", lambda _: (meddler, path))


def test_an_object_that_goes_while_it_is_read_is_not_found(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{bucket}/short.json"
    storage.write_json(uri, {"a": 1})
    fs, path = storage.filesystem(uri)
    meddled(monkeypatch, uri, lambda: fs.delete_file(path))
    with pytest.raises(FileNotFoundError, match=r"short\.json"):
        storage.read_json(uri)


def test_an_object_that_grows_while_it_is_read_is_read_whole(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{bucket}/grows.json"
    storage.write_json(uri, {"beats": 9})
    more = {"beats": 1000}

    def grow() -> None:
        with fs.open_output_stream(path) as stream:
            stream.write(storage.to_json(more))

    fs, path = storage.filesystem(uri)
    meddled(monkeypatch, uri, grow)
    assert storage.read_json(uri) == more


@pytest.mark.parametrize("key", ["a b.txt", "50%41.txt", "what?.txt", "a#b.txt", "é.txt", "[1].txt"])
def test_a_key_is_taken_as_it_stands(bucket: str, key: str) -> None:
    storage.write_bytes(f"{bucket}/keys/{key}", key.encode())
    assert storage.read_bytes(f"{bucket}/keys/{key}") == key.encode()
    assert storage.list_tree(f"{bucket}/keys")[key] == len(key.encode())
    storage.delete(f"{bucket}/keys/{key}")


@pytest.mark.parametrize(
    "act",
    [
        lambda uri: storage.write_bytes(uri, b""),
        lambda uri: storage.put_if_absent(uri, b""),
        lambda uri: storage.make_folder(uri),
    ],
    ids=["write_bytes", "put_if_absent", "make_folder"],
)
def test_a_missing_bucket_is_told_in_one_line(bucket: str, act: Callable[[str], object]) -> None:
    with pytest.raises(StorageError, match=r"^s3://nowhere/out/x: there is no such bucket; create it") as caught:
        act("s3://nowhere/out/x")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 5


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the store is where nobody listens."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.mark.parametrize(
    "act",
    [
        read_part,
        lambda uri: storage.put_if_absent(uri, b""),
        lambda uri: open_source(SourceConfig(path=uri)),
    ],
    ids=["read_part", "put_if_absent", "open_source"],
)
def test_a_store_that_is_away_is_told_in_one_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch, act: Callable[[str], object]
) -> None:
    refuse(monkeypatch)
    with pytest.raises(StorageError, match=r"^s3://bucket/x\S*: the store cannot be reached; check the network"):
        act("s3://bucket/x")


@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "corpus.parquet"])
def test_a_lost_network_quarantines_nothing(bucket: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"], "text": ["some words"]}), buffer)
    data = {
        "corpus.jsonl.gz": gzip.compress(b'{"id": "a", "text": "some words"}\n'),
        "corpus.parquet": buffer.getvalue(),
    }
    storage.write_bytes(f"{bucket}/{name}", data[name])
    source = open_source(SourceConfig(path=f"{bucket}/{name}", on_bad_input="quarantine"))
    [unit] = source.units(10)
    assert source.read(unit).table["text"].to_pylist() == ["some words"]
    monkeypatch.setattr("rayvec.data.sources.check_unchanged", lambda *_: None)
    refuse(monkeypatch)
    with pytest.raises(StorageError, match="cannot be reached"):
        source.read(unit)


@pytest.mark.parametrize("path", ["in/a.jsonl", "in", "in/", "in/*.jsonl", "in/**/b.jsonl"])
def test_sources_in_a_bucket(bucket: str, path: str) -> None:
    for name in ("in/a.jsonl", "in/deep/b.jsonl", "in/_marker.jsonl"):
        storage.write_bytes(f"{bucket}/{name}", b'{"id": "x", "text": "some words"}\n')
    found = {file.uri.removeprefix(bucket) for file in open_source(SourceConfig(path=f"{bucket}/{path}")).inputs()}
    a, b = "/in/a.jsonl", "/in/deep/b.jsonl"
    assert found == {"in": {a, b}, "in/": {a, b}, "in/**/b.jsonl": {b}}.get(path, {a})


def test_access_denied_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto takes every key; so a server that refuses all, and says so as S3 does."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

    class Refusing(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        for act in (storage.put_if_absent, storage.write_bytes):
            with pytest.raises(StorageError, match=r"^s3://bucket/x: the store refuses access; check its credentials"):
                act("s3://bucket/x", b"data")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
