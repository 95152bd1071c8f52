"""The model card of what a stage has made: README.md beside it. Knows the run's folder; what it says is modeling's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayvec.modeling import manifest
from rayvec.modeling.card import Course, write_decoder_card, write_encoder_card
from rayvec.modeling.manifest import EncoderManifest
from rayvec.training.curves import first_values, last_values, read_metrics

METRICS, CURVES = "training/metrics.jsonl", "training/curves.png"


def write_card(folder: Path, training: Mapping[str, Any]) -> None:
    """Write the card of a finished stage into its folder; training: its configuration and last numbers.

    The curves are drawn from metrics.jsonl once the workers are done: where there are numbers, there will be a picture.
    """
    metrics = read_metrics(folder / METRICS)
    first, last = first_values(metrics), last_values(metrics)
    course = Course({name: (first[name], last[name]) for name in last}, CURVES if metrics else "")
    if (folder / manifest.FILE).exists():
        write_encoder_card(folder, EncoderManifest.read(folder), course)
    else:
        write_decoder_card(folder, training, course)
