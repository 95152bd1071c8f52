"""What a person sees while a run is going."""

from __future__ import annotations

import io

from rayvec.encoding.progress import Progress
from rayvec.encoding.sink import Record
from rayvec.encoding.spent import Spent


def record(rows: int) -> Record:
    counts = dict.fromkeys(("bytes", "quarantined", "duplicates", "truncated"), 0)
    facts = {"sha256": "", "lengths": [], "lengths_truncated": [], "id_digest": "", "reasons": {}}
    return Record("u", "f", rows, rows, tokens=rows * 100, quarantine_sha256=None, **counts, **facts)  # type: ignore[arg-type]


SPENT = Spent(read=1, tokenize=2, encode=16, write=1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_speed_and_time_left_are_told_from_the_first_unit_on() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(3000, stream=stream, clock=clock)
    clock.now = 100  # the start
    progress.add(record(1000), SPENT)
    clock.now = 120
    progress.add(record(1000), SPENT)
    assert stream.getvalue().splitlines()[-1] == (
        "embedding  67% 2,000 of 3,000 records, 5,000 tokens/s, 0:20 left, read 5%, tokenize 10%, encode 80%, write 5%"
    )


def test_lines_that_are_no_news_are_left_out() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(3000, stream=stream, clock=clock)
    for _ in range(3):
        clock.now += 1
        progress.add(record(1000), SPENT)
    assert len(stream.getvalue().splitlines()) == 1


def test_a_terminal_sees_one_line_rewritten() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress(2000, stream=stream, clock=clock)
    for _ in range(2):
        clock.now += 1
        progress.add(record(1000), SPENT)
    progress.close()
    assert (stream.getvalue().count("\r"), stream.getvalue().count("\n")) == (2, 1)
    assert "█" * 24 in stream.getvalue()
