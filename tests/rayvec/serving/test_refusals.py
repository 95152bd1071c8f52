"""When a version that was refused is tried again."""

from __future__ import annotations

import time

import pytest

from rayvec.errors import VerificationError
from rayvec.failures import of_store
from rayvec.serving.refusals import NotYetError, Refusal


def test_a_damaged_version_is_not_tried_again_and_another_one_is() -> None:
    refusal = Refusal(0.0)
    assert refusal.note("v2", VerificationError("a checksum")) and not refusal.note(
        "v2", VerificationError("a checksum")
    )
    assert (refusal.allows("v2"), refusal.allows("v3"), refusal.told) == (False, True, "v2: a checksum")
    refusal.clear()
    assert (refusal.allows("v2"), refusal.told) == (True, None)


def test_a_failure_that_may_pass_is_tried_again_later_each_time() -> None:
    refusal = Refusal(0.05)
    waits = []
    for _ in range(3):
        refusal.note("v2", OSError("EIO"))
        begin = time.monotonic()
        while not refusal.allows("v2"):
            time.sleep(0.001)
        waits.append(time.monotonic() - begin)
    assert all(wait >= least - 0.01 for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True))
    assert refusal.told == "v2, which is tried again: EIO"


def test_who_asks_is_not_shown_what_the_client_of_a_store_says() -> None:
    refusal = Refusal(1.0)
    refusal.note(
        "CURRENT", of_store("s3://bucket/a/CURRENT", OSError("AWS Error NETWORK_CONNECTION: to 10.0.0.7:9000"))
    )
    assert refusal.told is not None and "10.0.0.7" in refusal.told
    assert refusal.shown is not None and "10.0.0.7" not in refusal.shown
    assert refusal.shown.startswith("CURRENT, which is tried again: CURRENT: the store cannot be reached")


def test_what_is_not_there_yet_is_tried_again_at_once_and_is_no_news() -> None:
    refusal = Refusal(60.0)
    assert not refusal.note("v2", NotYetError("parts 1"))
    assert refusal.allows("v2")


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("/data/index/versions/v8/shard-00000.faiss does not match", "shard-00000.faiss does not match"),
        ("read or/and write s3://bucket/a/v8.json: denied", "read or/and write v8.json: denied"),
        ("and '/data/v 8'", "and 'v 8'"),
    ],
)
def test_who_asks_is_not_shown_where_files_lie(reason: str, shown: str) -> None:
    refusal = Refusal(1.0)
    refusal.note("v8", VerificationError(reason))
    assert (refusal.told, refusal.shown) == (f"v8: {reason}", f"v8: {shown}")
