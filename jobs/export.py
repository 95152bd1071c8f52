"""Export an encoder: python -m jobs.export --recipe tiny.export --set encoder=DIR --set output=DIR."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as `python jobs/export.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.export import ExportConfig, export

command = job("export", ExportConfig, export)

if __name__ == "__main__":
    main(command)
