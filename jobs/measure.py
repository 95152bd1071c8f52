"""Measure retrieval: python -m jobs.measure --recipe tiny.measure --set data=FOLDER --set output=FILE.json."""

from __future__ import annotations

import sys
from pathlib import Path

import click

# Run as `python jobs/measure.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.measure import MeasureConfig, measure, render
from pipelines.report import Report


def run(config: MeasureConfig) -> Report:
    """Measure retrieval on a folder in BEIR's layout or a named suite, with intervals and p-values."""
    report = measure(config)
    click.echo(render(report))
    return {name: value for name, value in report.items() if name not in ("systems", "comparisons")}


command = job("measure", MeasureConfig, run)

if __name__ == "__main__":
    main(command)
