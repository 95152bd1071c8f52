"""The whole line in one go: python -m jobs.demo --recipe tiny.demo (what `make demo` runs)."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as `python jobs/demo.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.demo import DemoConfig, demo

command = job("demo", DemoConfig, demo)

if __name__ == "__main__":
    main(command)
