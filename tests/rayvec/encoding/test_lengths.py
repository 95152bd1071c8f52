"""Lengths counted in classes, and drawn."""

from __future__ import annotations

import numpy as np

from rayvec.encoding.lengths import ENDS, added, counted, histogram


def test_each_length_is_counted_once_in_its_class() -> None:
    lengths = np.arange(1, 3000)
    counts = counted(lengths)
    assert sum(counts) == len(lengths)
    assert counts[ENDS.index(512)] == 512 - 362 == sum((lengths > 362) & (lengths <= 512))


def test_what_is_longer_than_all_classes_is_in_the_last() -> None:
    assert counted(np.array([1 << 40]))[-1] == 1 and len(counted(np.array([1 << 40]))) == len(ENDS)


def test_counts_of_parts_add_up_to_those_of_all() -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 1000)
    assert added([counted(lengths[:300]), counted(lengths[300:]), []]) == counted(lengths)


def test_the_histogram_is_a_png_whatever_there_is() -> None:
    for counts, cut in (([], []), ([0, 3], []), ([0, 3, 9], [0, 0, 4])):
        assert histogram(counts, cut).startswith(b"\x89PNG")


def test_rows_that_were_cut_are_drawn_in_another_colour() -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    from rayvec.encoding.lengths import CUT_COLOUR

    def red(data: bytes) -> int:
        import io

        pixels = imread(io.BytesIO(data))[:, :, :3]
        return int((np.abs(pixels - np.array(to_rgb(CUT_COLOUR))).max(axis=2) < 0.01).sum())

    few, many = red(histogram([1, 8, 9], [0, 0, 2])), red(histogram([1, 8, 9], [0, 0, 8]))
    assert red(histogram([1, 8, 9], [])) == 0 < few < many / 2
