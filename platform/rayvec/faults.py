"""Places where a test may end the process as `kill -9` would; nothing happens unless RAYVEC_FAULT names one."""

from __future__ import annotations

import os

NAMES = (
    *("after_part", "before_record", "after_record", "before_replace", "before_manifest", "after_manifest"),  # embed
    *("after_segment", "after_links", "before_seal", "before_rename", "before_current", "after_current"),  # index
)
_passed: dict[str, int] = {}


def failpoint(name: str) -> None:
    """End the process when RAYVEC_FAULT is `name`, or at the nth passage when it is `name:n`."""
    assert name in NAMES, name
    wanted, _, number = os.environ.get("RAYVEC_FAULT", "").partition(":")
    if wanted == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] >= int(number or 1):
            os._exit(137)
