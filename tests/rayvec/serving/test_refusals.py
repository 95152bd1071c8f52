"""When a version that was refused is tried again."""

from __future__ import annotations

import time

from rayvec.errors import VerificationError
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


def test_what_is_not_there_yet_is_tried_again_at_once_and_is_no_news() -> None:
    refusal = Refusal(60.0)
    assert not refusal.note("v2", NotYetError("parts 1"))
    assert refusal.allows("v2")
