"""Build a search index: python -m jobs.index --recipe hash.index --set embeddings=DIR --set output=DIR.

Which one, measured before: python -m jobs.index --advise --recipe hash.index --set embeddings=DIR --set output=DIR.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

# Run as `python jobs/index.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.advise import AdviseConfig, advise, render
from pipelines.index import IndexConfig, index
from pipelines.report import Report


def run_advise(config: AdviseConfig) -> Report:
    """Advise on dimensions and index: measure a grid of both on a sample, and recommend the cheapest that is good."""
    report = advise(config)
    click.echo(render(report) + "\n")
    return {name: report[name] for name in ("vectors", "sample", "seconds", "output", "next")}


command = job("index", IndexConfig, index, (AdviseConfig, run_advise))

if __name__ == "__main__":
    main(command)
