"""Train one stage of the recipe: python -m jobs.train --recipe tiny.mntp --set output=DIR."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as `python jobs/train.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.plan import plan
from pipelines.train import TrainConfig, train

command = job("train", TrainConfig, train, plan=plan)

if __name__ == "__main__":
    main(command)
