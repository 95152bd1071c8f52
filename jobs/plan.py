"""Plan capacity: python -m jobs.plan --set documents=100000000 --set encoder=… --set device=H200."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as `python jobs/plan.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.capacity import CapacityConfig, capacity

command = job("plan", CapacityConfig, capacity)

if __name__ == "__main__":
    main(command)
