"""Measure retrieval: python -m jobs.measure --recipe tiny.measure --set data=FOLDER --set output=FILE.json.

Tags of words: python -m jobs.measure --recipe tiny.words --set train=FILE --set test=FILE --set output=FILE.json.
The paper's systems side by side: python -m jobs.measure --recipe ablation --set output=FILE.json.
MTEB: python -m jobs.measure --suite mteb-paper-15 --set output=FILE.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

# Run as `python jobs/measure.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines.measure import MeasureConfig, measure, render
from pipelines.report import Report
from pipelines.suite import SuiteConfig, measure_suite
from pipelines.suite import render as render_suite
from pipelines.table import TableConfig, measure_table
from pipelines.table import render as render_table
from pipelines.words import WordsConfig, measure_words
from pipelines.words import render as render_words


def run(config: MeasureConfig) -> Report:
    """Measure retrieval on a folder in BEIR's layout or a named suite, with intervals and p-values."""
    report = measure(config)
    click.echo(render(report))
    return {name: value for name, value in report.items() if name not in ("systems", "comparisons")}


def run_words(config: WordsConfig) -> Report:
    """Measure what a linear probe reads of tagged words in a frozen encoder's states (chunks, entities, POS)."""
    report = measure_words(config)
    click.echo(render_words(report))
    return {name: value for name, value in report.items() if name != "systems"}


def run_table(config: TableConfig) -> Report:
    """Measure systems on tasks of all kinds, with intervals, costs and whether an expected order holds."""
    report = measure_table(config)
    click.echo(render_table(report))
    return {name: report[name] for name in ("title", "encoder", "seconds", "output")}


def run_suite(config: SuiteConfig) -> Report:
    """Measure an encoder on tasks of MTEB by name, or on a suite of the paper, beside the paper's rows."""
    report = measure_suite(config)
    click.echo(render_suite(report))
    return {name: report[name] for name in ("suite", "average", "seconds", "output")}


command = job(
    "measure",
    MeasureConfig,
    run,
    (WordsConfig, run_words),
    (TableConfig, run_table),
    (SuiteConfig, run_suite),
    shortcuts={"suite": ("mteb", "suite")},
)

if __name__ == "__main__":
    main(command)
