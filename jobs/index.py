"""Build a search index: python -m jobs.index --recipe hash.index --set embeddings=DIR --set output=DIR."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as `python jobs/index.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.index import IndexConfig, index

command = job("index", IndexConfig, index)

if __name__ == "__main__":
    main(command)
