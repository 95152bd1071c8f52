"""What Prometheus is told of a training run, beside Ray Train's own numbers: loss, learning rate, norm, speed, step.

Set by rank 0 with each logged line; exported by Ray's agent of its node as `ray_rayvec_train_…` as long as it runs.
`infra/grafana/training.json` draws them. Knows Ray's metrics. Knows no stage and no model.
"""

from __future__ import annotations

from ray.util.metrics import Gauge

from rayvec.training.loop import Progress
from rayvec.uris import in_ascii

GAUGES = {
    "loss": "Mean loss of the steps since the line before",
    "learning_rate": "Learning rate",
    "gradient_norm": "Norm of the gradient, before it is clipped",
    "tokens_per_second": "Tokens that rank 0 trains on in a second",
    "step": "Steps that are done",
}


class RunMetrics:
    """Gauges of one run. Ray must be running."""

    def __init__(self, output: str) -> None:
        self._gauges = {name: Gauge(f"rayvec_train_{name}", told, ("output",)) for name, told in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"output": in_ascii(output)})

    def set(self, progress: Progress) -> None:
        """The numbers of a logged line."""
        values = {**progress.metrics, "tokens_per_second": progress.tokens_per_second, "step": progress.step}
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(values[name])
