"""Mine hard negatives: python -m jobs.mine --recipe tiny.mine --set index=DIR --set pairs=FILE --set output=FILE."""

from __future__ import annotations

import sys
from pathlib import Path

import click

# Run as `python jobs/mine.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.mine import MineConfig, mine, render_sample
from pipelines.report import Report


def run(config: MineConfig) -> Report:
    """Mine hard negatives for pairs: search an index, and keep what is near the query but not an answer."""
    report = mine(config)
    click.echo(render_sample(report) + "\n")
    return {name: value for name, value in report.items() if name not in ("sample", "rules")}


command = job("mine", MineConfig, run)

if __name__ == "__main__":
    main(command)
