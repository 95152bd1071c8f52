"""Streams: lines of any length in bounded memory, and cuts at line starts."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rayvec.data import streams
from rayvec.data.streams import CHUNK, LINES_AT_PLACE, MAX_COMPRESSED_UNITS, PLACES, DamagedError, lines, scan, spread


def save(folder: Path, data: bytes, name: str = "f.txt") -> str:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.binary(max_size=6).filter(lambda piece: b"\n" not in piece), max_size=30),
    ended=st.booleans(),
    unit_lines=st.integers(1, 7),
    unit_bytes=st.integers(1, 40),
    step=st.integers(1, 9),
)
def test_cuts_cover_every_line_once(
    tmp_path: Path, pieces: list[bytes], ended: bool, unit_lines: int, unit_bytes: int, step: int
) -> None:
    data = b"\n".join(pieces) + (b"\n" if ended else b"")
    assume(not data.startswith((b"\xff\xfe", b"\xfe\xff")))  # which would be UTF-16
    assume(data != streams.BOM)  # a blank line, and no record
    path = save(tmp_path, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", step)
        cuts = scan(path, unit_lines, unit_bytes).cuts
        read = [line for cut in cuts for line in lines(path, cut.start, cut.stop, 100)]
    expected = data.removeprefix(streams.BOM).split(b"\n")
    expected = expected[:-1] if not expected[-1] else expected
    assert [line.data for line in read] == expected
    assert sum(cut.lines for cut in cuts) == len(read)
    assert all(cut.lines <= unit_lines for cut in cuts)
    assert [data.count(b"\n", 0, cut.start) + 1 for cut in cuts] == [cut.first_line for cut in cuts]


def test_offsets_lead_to_the_lines(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfone\ntwo\r\n\nlast"
    found = list(lines(save(tmp_path, data), 0, None, 100))
    assert [(line.offset, line.data) for line in found] == [(0, b"one"), (7, b"two\r"), (12, b""), (13, b"last")]


@pytest.mark.parametrize("name", ["f.txt", "f.txt.gz"])
@pytest.mark.parametrize("count", [2, 1500, 300_000])
def test_lines_from_places_all_over_a_file_are_whole_and_few(tmp_path: Path, name: str, count: int) -> None:
    rest = [f"line {number}".encode() for number in range(count)]
    path = save(tmp_path, b"first\n" + b"\n".join(rest) + b"\n", name)
    found = list(spread(path, len(b"first\n"), 100))
    numbers = [int(line.split()[1]) for line in found]
    assert numbers == sorted(set(numbers)) and set(found) <= set(rest)
    assert len(found) <= 2 * PLACES * LINES_AT_PLACE and found == list(spread(path, len(b"first\n"), 100))
    assert numbers[0] == 0 and numbers[-1] >= count * 0.9 - 1
    if count < PLACES * LINES_AT_PLACE:
        assert found == rest


def test_what_stands_behind_damage_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(random.Random(0).randbytes(1 << 18).hex().encode())[:-9])
    assert list(spread(str(tmp_path / "f.gz"), 0, 100)) == []


def test_a_line_over_the_limit_is_passed_by_without_being_held(tmp_path: Path) -> None:
    path = save(tmp_path, b"a\n" + b"\0" * (40 * CHUNK) + b"\nb\n", "f.txt.gz")
    tracemalloc.start()
    found = list(lines(path, 0, None, CHUNK))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line.size, line.data) for line in found] == [(1, b"a"), (40 * CHUNK, None), (1, b"b")]
    assert peak < 8 * CHUNK


def test_a_gzip_of_several_members_is_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "f.txt.gz"
    path.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"c\nd\n"))
    assert [line.data for line in lines(str(path), 0, None, 9)] == [b"a", b"bc", b"d"]


def test_a_compressed_file_is_cut_into_few_units(tmp_path: Path) -> None:
    cuts = scan(save(tmp_path, b"x\n" * 1000, "f.txt.gz"), 2, 1 << 20).cuts
    assert len(cuts) <= MAX_COMPRESSED_UNITS
    assert sum(cut.lines for cut in cuts) == 1000


def test_damage_is_met_by_the_scan_and_by_the_reader_of_the_last_cut(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % (i * 7919 % 100003) for i in range(200_000))
    path = tmp_path / "f.txt.gz"
    path.write_bytes(gzip.compress(data)[:-5000])
    found = scan(str(path), 50_000, 1 << 30)
    assert found.damage is not None
    whole = [line.data for cut in found.cuts[:-1] for line in lines(str(path), cut.start, cut.stop, 100)]
    with pytest.raises(DamagedError):
        whole.extend(line.data for line in lines(str(path), found.cuts[-1].start, found.cuts[-1].stop, 100))
    assert whole == data.split(b"\n")[: len(whole)]
    assert len(whole) > 150_000
