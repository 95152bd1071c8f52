"""What killed runs leave: temporary files that were not renamed in time. Knows no format."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from rayvec import uris

#: As storage.write_bytes names them.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def sweep(output: str, older_than_s: float) -> list[str]:
    """Remove the temporary files below a folder whose last write is so long ago that no worker can still be at them.

    Returns the names of those removed. Ages are told by the file system's own clock. An object store has none: there an
    upload that was broken off is not seen, and goes by the bucket's rule for incomplete uploads.
    """
    if not uris.is_local(output):
        return []
    folder = uris.local_path(output)
    old = [(path, path.stat().st_mtime) for path in folder.rglob(".*.tmp") if TEMPORARY.fullmatch(path.name)]
    if not old:
        return []
    now = _now(folder)
    gone = [path for path, modified in old if path.is_file() and now - modified > older_than_s]
    for path in gone:
        path.unlink(missing_ok=True)
    return sorted(path.name for path in gone)


def _now(folder: Path) -> float:
    """The file system's time, which on a mounted folder is another machine's: that of a file just written."""
    probe = folder / f".probe.{uuid.uuid4().hex[:8]}.tmp"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()
