"""Measure retrieval: python -m jobs.measure --recipe tiny.measure --set data=FOLDER --set output=FILE.json.

The paper's systems side by side: --recipe ablation; MTEB: --suite mteb-paper-15; did training help on a corpus of one's
own: --recipe adaptation; words: --recipe words; looks inside: --recipe mask_map, prefix_test, pooling, masking_sweep,
sample_efficiency. Each with --set output=FILE.json; --help lists them all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

# Run as `python jobs/measure.py`, a script's own folder comes first on the path, not the checkout's root.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from jobs._cli import job, main
from pipelines import adaptation, analyses, experiments, measure, suite, table, words
from pipelines.report import Report

Run = Callable[[Any], Report]


def printing(measured: Run, render: Callable[[Report], str]) -> Run:
    """The pipeline, its tables printed; what is left for the summary is what is no table."""

    @wraps(measured)
    def run(config: Any) -> Report:
        report = measured(config)
        click.echo(render(report))
        return {name: value for name, value in report.items() if not isinstance(value, dict | list)}

    return run


command = job(
    "measure",
    measure.MeasureConfig,
    printing(measure.measure, measure.render),
    (words.WordsConfig, printing(words.measure_words, words.render)),
    (table.TableConfig, printing(table.measure_table, table.render)),
    (suite.SuiteConfig, printing(suite.measure_suite, suite.render)),
    (adaptation.AdaptationConfig, printing(adaptation.report_adaptation, adaptation.render)),
    (analyses.MaskMapConfig, printing(analyses.measure_mask, analyses.render_map)),
    (analyses.PrefixConfig, printing(analyses.measure_prefixes, analyses.render_prefixes)),
    (experiments.PoolingConfig, printing(experiments.measure_poolings, experiments.render_poolings)),
    (experiments.MaskingConfig, printing(experiments.sweep_masking, experiments.render_masking)),
    (experiments.EfficiencyConfig, printing(experiments.measure_efficiency, experiments.render_efficiency)),
    shortcuts={"suite": ("mteb", "suite")},
)

if __name__ == "__main__":
    main(command)
