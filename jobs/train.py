"""Train one stage of the recipe: python -m jobs.train --recipe tiny.mntp --set output=DIR."""

from __future__ import annotations

from jobs._cli import job, main
from pipelines.train import TrainConfig, train

command = job("train", TrainConfig, train)

if __name__ == "__main__":
    main(command)
