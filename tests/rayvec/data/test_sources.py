"""Sources, whatever the format: what they find, refuse before any work, cut and read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayvec.data.sources import Source, SourceConfig, Unit, UnitData, open_source
from rayvec.errors import MismatchError, StorageError, UserError

Records = list[dict[str, Any]]


def jsonl(records: Records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def delimited(records: Records, delimiter: str = ",") -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["id", "title", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue().encode()


def parquet(records: Records) -> bytes:
    buffer = io.BytesIO()
    schema = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
    pq.write_table(pa.Table.from_pylist(records, schema=schema), buffer, row_group_size=7)
    return buffer.getvalue()


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


FORMATS: dict[str, Callable[[Records], bytes]] = {
    "corpus.parquet": parquet,
    "corpus.jsonl": jsonl,
    "corpus.jsonl.gz": lambda records: gzip.compress(jsonl(records)),
    "corpus.jsonl.zst": lambda records: zst(jsonl(records)),
    "corpus.csv": delimited,
    "corpus.csv.gz": lambda records: gzip.compress(delimited(records)),
    "corpus.tsv": lambda records: delimited(records, "\t"),
}


def make(count: int) -> Records:
    return [{"id": f"d{i}", "title": f"Title {i}", "text": f'Text "{i}",\nwith é and\ttabs'} for i in range(count)]


def write(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def open_path(path: str | Path, **options: Any) -> Source:
    return open_source(SourceConfig(path=str(path), **options))


def read_all(source: Source, unit_rows: int = 4096) -> pa.Table:
    return pa.concat_tables([source.read(unit).table for unit in source.units(unit_rows)])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    records = make(40)
    table = read_all(open_path(write(tmp_path, name, FORMATS[name](records))), 9)
    assert table.select(["id", "title", "text"]).to_pylist() == records


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(list(FORMATS)),
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30), min_size=1, max_size=40
    ),
    unit_rows=st.integers(1, 50),
)
def test_units_cover_each_record_exactly_once(tmp_path: Path, name: str, texts: list[str], unit_rows: int) -> None:
    records = [{"id": f"d{i}", "title": "T", "text": text} for i, text in enumerate(texts)]
    source = open_path(write(tmp_path, name, FORMATS[name](records)))
    read = [source.read(unit) for unit in source.units(unit_rows)]
    kept = {row["id"]: row["text"] for part in read for row in part.table.to_pylist()}
    refused = [rejected.id for part in read for rejected in part.rejected]
    assert sorted([*kept, *refused]) == sorted(record["id"] for record in records)
    assert all(records[int(id_[1:])]["text"] == text for id_, text in kept.items())
    assert all(rejected.reason == "empty_text" for part in read for rejected in part.rejected)


@pytest.mark.parametrize("name", FORMATS)
def test_units_are_the_same_again_and_survive_json(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, FORMATS[name](make(30)))
    units = open_path(path).units(8)
    saved = json.loads(json.dumps([unit.to_json() for unit in open_path(path).units(8)]))
    assert [Unit.from_json(value) for value in saved] == units
    assert len(units) > 1
    assert len({unit.name for unit in units}) == len(units)


def test_a_source_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    source = open_path(write(tmp_path, "c.jsonl", jsonl(make(5))), payload="all")
    sent = pickle.loads(pickle.dumps(source))
    assert read_all(sent).equals(read_all(source))


def test_the_unit_names_change_with_what_they_cover(tmp_path: Path) -> None:
    path = write(tmp_path, "c.jsonl", jsonl(make(5)))
    before = open_path(path).units(10)[0].name
    write(tmp_path, "c.jsonl", jsonl(make(6)))
    assert open_path(path).units(10)[0].name != before


def test_a_file_that_changed_after_the_plan_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "c.jsonl", jsonl(make(5)))
    source = open_path(path)
    unit = source.units(10)[0]
    with Path(path).open("ab") as file:
        file.write(b'{"id":"x","text":"y"}\n')
    with pytest.raises(MismatchError, match="has changed since the run was planned"):
        source.read(unit)


def test_a_folder_is_read_recursively_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "c.jsonl", "_tmp/x.jsonl", ".y.jsonl", "README.unknown"):
        write(tmp_path, name, jsonl([{"id": name, "text": "t"}]))
    assert read_all(open_path(tmp_path))["id"].to_pylist() == ["a/1.jsonl", "b/2.jsonl", "c.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("*.jsonl", ["c"]), ("**/*.jsonl", ["a/1", "b/2", "c"]), ("[ab]/?.jsonl", ["a/1", "b/2"]), ("[!a]/*", ["b/2"])],
)
def test_glob_patterns(tmp_path: Path, pattern: str, found: list[str]) -> None:
    for name in ("b/2", "a/1", "c"):
        write(tmp_path, f"{name}.jsonl", jsonl([{"id": name, "text": "t"}]))
    assert read_all(open_path(tmp_path / pattern))["id"].to_pylist() == found


def test_a_uri_is_read_through_its_file_system(tmp_path: Path) -> None:
    path = write(tmp_path, "c.parquet", parquet(make(3)))
    assert len(read_all(open_path(f"file://{path}"))) == 3


def test_a_file_in_memory_is_read_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://sources/c.jsonl", "wb") as file:
        file.write(jsonl(make(3)))
    assert len(read_all(open_path("memory://sources/*.jsonl"))) == 3


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("c.parquet", b"PAR1 this is not parquet", {}, "c.parquet: not a readable Parquet file"),
        ("c.parquet", parquet(make(50))[:-30], {}, "c.parquet: not a readable Parquet file"),
        ("c.jsonl", bytes(range(256)) * 40, {}, "c.jsonl: not JSON lines"),
        ("c.json", b'[\n{"text": "a"}\n', {}, "c.json: not JSON: neither an object a line nor one array of objects"),
        ("c.jsonl", b"", {}, "holds no records"),
        ("c.jsonl", jsonl([{"id": "1", "words": "a"}]), {}, "it has 'id', 'words': name the text with --set"),
        (
            "c.jsonl",
            jsonl(make(1)),
            {"id_column": "key"},
            r"no column 'key' \(source.id_column\); it has 'id', 'title'",
        ),
        ("c.jsonl", jsonl(make(1)), {"payload": ["year"]}, "no column 'year'"),
        ("c.jsonl", jsonl([{"text": "a", "embedding": 1}]), {"payload": "all"}, "may not carry 'embedding'"),
        ("c.csv", b"id,body text\n1,a\n", {}, "it has 'id', 'body text'"),
        ("c.csv", b"id,id,text\n1,2,a\n", {}, "names 'id' more than once"),
        ("c.csv", b"id;text\n1;a\n", {}, "parted by with --set source.delimiter=';'"),
        ("c.csv", b"\xff\xfei\0d\0\n\0", {}, "it has 'id': name the text"),
        ("c.csv", b"id,text\n1,a\0\xff\n", {}, "not a UTF-8 text file; check source.path, or set source.encoding"),
        ("c.parquet", parquet(make(1)), {"encoding": "latin-1"}, "encoding is for kind csv or tsv"),
        ("c.txt", b"\x7fELF\0\0\xff\xff", {}, "not a UTF-8 text file"),
        ("c.parquet", parquet([{"id": "1", "text": "a"}]), {"text_columns": ["txt"]}, "no column 'txt'"),
        ("c.jsonl.gz", gzip.compress(jsonl(make(9)))[:-9], {}, "damaged after|cannot be decompressed"),
        ("c.csv.gz", b"not gzip", {}, "cannot be decompressed"),
        ("c.jsonl.bz2", b"x", {}, "c.jsonl.bz2: .bz2 is not read; unpack it, or pack it anew as .gz or .zst"),
        ("c.csv", b"id\ttext\n1\ta\n", {}, r"parted by with --set source.delimiter='\\t'"),
        ("c.docx", b"x", {}, "does not say what it is; name it with --set source.kind="),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_work(
    tmp_path: Path, name: str, data: bytes, options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, name, data)
    with pytest.raises(UserError, match=message) as caught:
        open_path(path, **options).units(10)
    assert "\n" not in str(caught.value)


def test_a_tab_is_taken_as_a_shell_hands_it_on(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", b"id\ttext\n1\ta\n")
    assert read_all(open_path(path, delimiter=r"\t"))["text"].to_pylist() == ["a"]


def test_one_name_is_a_list_of_one(tmp_path: Path) -> None:
    path = write(tmp_path, "c.jsonl", b'{"all": "a", "price": 1}\n')
    source = open_path(path, text_columns="all", payload="price")
    assert (source.layout.text, source.payload) == (("all",), ["price"])


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path, "C.JSONL.GZ", gzip.compress(jsonl(make(3))))
    assert len(read_all(open_path(path))) == 3


def test_a_folder_without_a_file_that_is_read_names_the_cure(tmp_path: Path) -> None:
    write(tmp_path, "a/main.py", b"print()\n")
    with pytest.raises(UserError, match=r"source\.kind=text reads others, such as code"):
        open_path(tmp_path / "a")
    assert len(read_all(open_path(tmp_path / "a", kind="text"))) == 1
    write(tmp_path, "b/c.jsonl.bz2", b"BZh")
    with pytest.raises(UserError, match="bz2 is not read"):
        open_path(tmp_path / "b")


@pytest.mark.parametrize(
    ("path", "message"), [("", "not set"), ("nowhere.jsonl", "does not exist"), ("*.x", "no file")]
)
def test_a_missing_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_path(path)


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", b"no")
    write(tmp_path, "b.parquet", parquet(make(2)))
    write(tmp_path, "c.parquet", b"no")
    with pytest.raises(UserError, match=r"a\.parquet: .*c\.parquet: .*on_bad_input=quarantine"):
        open_path(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_bad_files_can_be_quarantined(tmp_path: Path, name: str) -> None:
    good = name.replace("a", "b", 1)
    write(tmp_path, good, FORMATS[f"corpus{name[1:]}"](make(3)))
    write(tmp_path, name, b"neither one nor the other")
    source = open_path(tmp_path, on_bad_input="quarantine")
    read = [source.read(unit) for unit in source.units(10)]
    assert [rejected.reason for part in read for rejected in part.rejected] == ["damaged"]
    assert sum(len(part.table) for part in read) == 3


def test_files_of_several_kinds_need_a_choice(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", jsonl(make(1)))
    write(tmp_path, "b.csv", delimited(make(1)))
    with pytest.raises(UserError, match="several kinds"):
        open_path(tmp_path)


def test_of_a_folder_the_files_of_the_kind_are_taken(tmp_path: Path) -> None:
    """As folders of data sets are, that were cloned from a hub."""
    write(tmp_path, "data/a.jsonl", jsonl(make(2)))
    for name in ("README.md", "LICENSE", "data/b.csv"):
        write(tmp_path, name, b"no record")
    assert len(read_all(open_path(tmp_path, kind="jsonl"))) == 2
    write(tmp_path, "parts/part-00000", jsonl(make(3)))
    assert len(read_all(open_path(tmp_path / "parts", kind="jsonl"))) == 3


def test_an_option_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="lines is for kind text or auto, not jsonl"):
        SourceConfig.parse({"kind": "jsonl", "lines": True})


def test_lines_are_of_plain_text_whatever_its_name(tmp_path: Path) -> None:
    """WikiText's files end with .raw and .tokens; records are not taken for lines of text."""
    assert len(read_all(open_path(write(tmp_path, "wiki.train.raw", b"a\n\nb\n"), lines=True))) == 2
    path = write(tmp_path, "a.jsonl", jsonl(make(2)))
    with pytest.raises(UserError, match=r"^source\.lines is for plain text, and .*a\.jsonl is jsonl; .*lines=false"):
        open_path(path, lines=True)


def test_beir_field_names_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, "corpus.jsonl", jsonl([{"_id": "7", "title": "", "text": "a", "metadata": {}}]))
    row = read_all(open_path(path)).to_pylist()[0]
    assert row == {"id": "7", "title": None, "text": "a", "position": 1}


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl", "c.csv"])
def test_text_columns_are_joined_by_newlines(tmp_path: Path, name: str) -> None:
    records = [{"id": "1", "title": "T", "text": "body"}, {"id": "2", "title": "", "text": "b"}]
    path = write(tmp_path, name, FORMATS[f"corpus{name[1:]}"](records))
    assert read_all(open_path(path, text_columns=["title", "text"]))["text"].to_pylist() == ["T\nbody", "b"]


def text_only(name: str, count: int) -> bytes:
    records = [{"text": f"t{i}"} for i in range(count)]
    if name.endswith("parquet"):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records), buffer, row_group_size=5)
        return buffer.getvalue()
    return jsonl(records) if name.endswith("jsonl") else "\n".join(["text", *(r["text"] for r in records)]).encode()


@pytest.mark.parametrize(("name", "first"), [("c.parquet", 0), ("c.jsonl", 1), ("c.csv", 2)])
def test_records_without_ids_are_named_by_place(tmp_path: Path, name: str, first: int) -> None:
    write(tmp_path, f"sub/{name}", text_only(name, 12))
    table = read_all(open_path(tmp_path), 5)
    assert table["id"].to_pylist() == [f"sub/{name}:{first + i}" for i in range(12)]
    assert table["position"].to_pylist() == list(range(first, first + 12))


@pytest.mark.parametrize("unit_rows", [2, 1000])
@pytest.mark.parametrize(("before", "indent"), [("", None), ("", 2), ("\n", None), ("\ufeff", 0)])
def test_a_json_array_is_read_by_its_items(tmp_path: Path, before: str, indent: int | None, unit_rows: int) -> None:
    path = write(tmp_path, "c.json", (before + json.dumps([*make(5), 7], indent=indent)).encode())
    source = open_path(path)
    read = UnitData.joined([source.read(unit) for unit in source.units(unit_rows)])
    assert read.table["id"].to_pylist() == [f"d{i}" for i in range(5)]
    assert read.table["position"].to_pylist() == [1, 2, 3, 4, 5]
    assert [(refused.reason, refused.position) for refused in read.rejected] == [("invalid_json", 6)]


def test_files_of_one_object_each_beside_json_lines_are_read(tmp_path: Path) -> None:
    for i, record in enumerate(make(3)):
        write(tmp_path, f"{i}.json", json.dumps(record, indent=2).encode())
    write(tmp_path, "3.json", jsonl(make(5)[3:]))
    source = open_path(tmp_path)
    units = source.units(100)
    assert [len(unit.files) for unit in units] == [3, 0]
    assert [id_ for unit in units for id_ in source.read(unit).table["id"].to_pylist()] == [f"d{i}" for i in range(5)]


def test_a_broken_json_array_is_quarantined_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, "a.json", json.dumps(make(2)).encode()[:-1])
    write(tmp_path, "b.json", json.dumps(make(2)).encode())
    with pytest.raises(UserError, match=r"a\.json: not JSON: neither an object a line nor one array"):
        open_path(tmp_path)
    source = open_path(tmp_path, on_bad_input="quarantine")
    read = [source.read(unit) for unit in source.units(10)]
    assert [refused.reason for data in read for refused in data.rejected] == ["damaged"]
    assert sum(len(data.table) for data in read) == 2


def test_a_broken_first_line_makes_no_json_document(tmp_path: Path) -> None:
    path = write(tmp_path, "c.jsonl", b'{"id": "x", "text":\n' + jsonl(make(2)))
    source = open_path(path)
    (unit,) = source.units(10)
    assert [refused.reason for refused in source.read(unit).rejected] == ["invalid_json"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.csv", "corpus.tsv", "corpus.jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
def test_other_encodings_are_read(tmp_path: Path, name: str, encoding: str) -> None:
    data = FORMATS[name](make(40))
    text = (gzip.decompress(data) if name.endswith("gz") else data).decode().encode(encoding)
    path = write(tmp_path, name, gzip.compress(text) if name.endswith("gz") else text)
    source = open_path(path, encoding="latin-1" if encoding == "latin-1" else None)
    assert read_all(source, 3).select(["id", "title", "text"]).to_pylist() == make(40)


def test_text_of_another_encoding_is_read_whole_and_by_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "c.txt", "é\nü".encode("utf-16-le"))
    for lines, texts in ((False, ["é\nü"]), (True, ["é", "ü"])):
        assert read_all(open_path(path, encoding="utf-16-le", lines=lines))["text"].to_pylist() == texts


def test_bytes_that_are_no_text_in_the_encoding_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "c.txt", b"\xff\xfe" + "good\nbad \ud800\n".encode("utf-16-le", "surrogatepass") + b"x")
    source = open_path(path, lines=True)
    (unit,) = source.units(10)
    assert source.read(unit).table["text"].to_pylist() == ["good"]
    assert [refused.reason for refused in source.read(unit).rejected] == ["invalid_utf8"] * 2


def test_an_encoding_that_is_none_is_refused() -> None:
    for name in ("utf-7x", "hex"):
        with pytest.raises(UserError, match=f"no encoding '{name}'"):
            SourceConfig.parse({"encoding": name})


def test_several_paths_are_one_source(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "c/1"):
        write(tmp_path, f"{name}.jsonl", jsonl([{"text": name}]))
    paths = (str(tmp_path / "b"), str(tmp_path / "a/*.jsonl"), str(tmp_path / "a/1.jsonl"))
    table = read_all(open_source(SourceConfig(path=paths)))
    assert table["id"].to_pylist() == ["b/1.jsonl:1", "a/1.jsonl:1", "a/2.jsonl:1"]


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_small_files_share_a_unit_and_their_records_keep_their_places(tmp_path: Path, name: str) -> None:
    good, bad = (b"text\n", b"\n") if name == "csv" else (b"", b'{"text": ""}\n')
    for i in range(5):
        line = f"t{i}".encode() if name == "csv" else json.dumps({"text": f"t{i}"}).encode()
        write(tmp_path, f"{i}.{name}", good + line + b"\n" + (bad if name == "jsonl" else b'" "\n'))
    source = open_path(tmp_path)
    units = source.units(4)
    assert [len(unit.files) for unit in units] == [2, 2, 0]
    assert [unit.rows_estimate for unit in units] == [4, 4, 2]
    assert units == open_path(tmp_path).units(4)
    first = 2 if name == "csv" else 1
    read = [(unit, source.read(unit)) for unit in units]
    assert [id_ for _, data in read for id_ in data.table["id"].to_pylist()] == [
        f"{i}.{name}:{first}" for i in range(5)
    ]
    places = [unit.place(refused.position) for unit, data in read for refused in data.rejected]
    assert places == [(f"{tmp_path}/{i}.{name}", first + 1) for i in range(5)]


@pytest.mark.parametrize(
    ("name", "data", "options", "place"),
    [
        ("c.jsonl", b'{"text": "a"}', {}, True),
        ("c.jsonl", b'{"text": "a"}', {"make_ids": "content"}, False),
        ("c.jsonl", b'{"id": 1, "text": "a"}', {}, False),
        ("c.jsonl", b'{"id": 1, "text": "a"}', {"missing_id": "make"}, True),
        ("c.txt", b"a", {}, True),
        ("c.txt", b"a", {"make_ids": "content"}, False),
        ("c.txt", b"a", {"lines": True}, True),
    ],
)
def test_it_tells_what_names_in_ids_are_relative_to(
    tmp_path: Path, name: str, data: bytes, options: dict[str, Any], place: bool
) -> None:
    source = open_path(write(tmp_path, name, data), **options)
    assert source.names_by_place == (str(tmp_path) if place else None)
    assert (read_all(source)["id"][0].as_py().startswith(name)) is (place and "missing_id" not in options)


def test_pydocs_are_collected_once_and_then_read_as_parquet(tmp_path: Path) -> None:
    config = SourceConfig(kind="pydocs", packages=("pyyaml",), min_characters=20)
    source = open_source(config, str(tmp_path))
    again = open_source(config, str(tmp_path))
    assert again.inputs() == source.inputs()
    table = read_all(source)
    assert table.column_names == ["id", "title", "text", "package", "version", "kind", "file", "line", "position"]
    assert "yaml.load" in table["id"].to_pylist()


@contextmanager
def no_more_files() -> Iterator[None]:
    """A process that may open none beside those that are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", [*FORMATS, "corpus.txt"])
def test_too_many_open_files_are_no_damage(tmp_path: Path, name: str) -> None:
    record = {"id": "a", "title": "", "text": "some words"}
    (tmp_path / name).write_bytes(FORMATS[name]([record]) if name in FORMATS else b"some words")
    source = open_source(SourceConfig(path=str(tmp_path / name)))
    [unit] = source.units(10)
    with no_more_files(), pytest.raises(StorageError, match=rf"^reading \S*{name} failed .*; raise `ulimit -n`"):
        source.read(unit)


def test_what_an_fsspec_package_raises_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """As hf:// and https:// do: errors of classes of their own, without a number."""
    with MemoryFileSystem().open("/faults/corpus.parquet", "wb") as file:
        file.write(parquet([{"id": "a", "title": "", "text": "some words"}]))
    source = open_source(SourceConfig(path="memory://faults/corpus.parquet"))
    [unit] = source.units(10)

    def too_slow(*_: Any, **__: Any) -> None:
        raise FSTimeoutError

    monkeypatch.setattr(MemoryFileSystem, "_open", too_slow)
    with pytest.raises(StorageError, match=r"^memory://\S*corpus.parquet: the store failed; run the same"):
        source.read(unit)
