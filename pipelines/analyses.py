"""The paper's looks inside: how much the mask's removal changes a model, and whether a beginning knows its end."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from pipelines._corpus import Spread, tables
from pipelines._systems import SystemConfig, open_system
from pipelines.report import Report
from rayvec import storage
from rayvec.config import Config
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError

if TYPE_CHECKING:
    from rayvec.evaluation.prefix_test import PrefixResult
    from rayvec.modeling.encoder import TextEncoder


class MaskMapConfig(Config):
    """Which model on which texts, and where the map goes."""

    kind: Literal["mask_map"] = "mask_map"
    #: A decoder, or an encoder after so many stages; the map is most telling of an untrained base (stages=0).
    system: SystemConfig = SystemConfig(name="base", encoder="tiny", stages=0)
    source: SourceConfig = SourceConfig(kind="pydocs")
    #: Texts, spread over the source; those of fewer than 20 tokens are left out.
    texts: PositiveInt = 200
    #: The report, as JSON; the map (.png) goes beside it.
    output: str = ""
    cache: str = ""


class PrefixConfig(Config):
    """Which systems, on which triples, and where the result goes."""

    kind: Literal["prefix_test"] = "prefix_test"
    #: What systems without an encoder of their own are made of.
    encoder: str = "tiny"
    systems: tuple[SystemConfig, ...] = Field((), max_length=20)
    #: jsonl of prefix, text, same and other; by default the triples that rayvec brings.
    triples: str = ""
    #: The report, as JSON; table (.md) and plot (.png) go beside it.
    output: str = ""


#: Shorter texts have too few places to tell their parts apart.
MIN_TOKENS = 20


def measure_mask(config: MaskMapConfig) -> Report:
    """Compare a model's states under the causal mask and without it, by layer and place. Raises UserError."""
    import numpy as np

    from rayvec.evaluation.mask_map import draw_map, mask_map

    started = time.monotonic()
    _require_output(config.output)
    encoder = _text_encoder(config.system, "tiny")
    stem = config.output.removesuffix(".json")
    batch = encoder.tokenize(_texts(config.source, config.texts, config.cache or f"{stem}.cache"))
    long_enough = np.flatnonzero(batch.lengths >= MIN_TOKENS)
    if not len(long_enough):
        raise UserError(f"none of the texts has {MIN_TOKENS} tokens; give longer ones")
    found = mask_map(encoder, batch.select(long_enough))
    layers = found.layers
    report = {
        "system": config.system.model_dump(mode="json"),
        "fingerprint": encoder.fingerprint.short,
        "texts": len(long_enough),
        **found.to_json(),
        "lowest": {"layer": int(np.argmin(layers)), "cosine": float(layers.min())},
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    title = f"{config.system.name}: states with and without the causal mask, {len(long_enough):,} texts"
    draw_map(found, title, f"{stem}.png")
    storage.write_json(config.output, report)
    return report


def render_map(report: Report) -> str:
    """The mean cosines by layer, as Markdown."""
    from rayvec.evaluation.report import markdown

    rows = [
        [str(layer), f"{cosine:.3f}", f"{row[0]:.3f}", f"{row[-1]:.3f}", f"{unrelated:.3f}"]
        for layer, (cosine, row, unrelated) in enumerate(
            zip(report["layers"], report["cosines"], report["unrelated"], strict=True)
        )
    ]
    head = f"{report['system']['name']}: cosine of causal and bidirectional states, {report['texts']:,} texts"
    columns = ["layer", "mean", "first tenth", "last tenth", "tokens of different texts"]
    return f"{head}\n\n{markdown(columns, rows)}"


def measure_prefixes(config: PrefixConfig) -> Report:
    """Ask whether the pooled beginning of a text already knows how the text goes on. Raises UserError."""
    from rayvec.evaluation.prefix_test import prefix_test, read_triples

    started = time.monotonic()
    _require_output(config.output)
    if not config.systems:
        raise UserError("systems are required; start from a recipe (tiny.prefix_test), or give them by --config")
    triples = read_triples(config.triples)
    found = {s.name: prefix_test(_text_encoder(s, config.encoder), triples) for s in config.systems}
    report = {
        "triples": len(triples),
        "systems": {
            name: {"wins": result.wins.to_json(), "gap": result.gap.to_json(), "same": float(result.same_N.mean())}
            for name, result in found.items()
        },
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    stem = config.output.removesuffix(".json")
    storage.write_bytes(f"{stem}.md", (render_prefixes(report) + "\n").encode())
    _draw_prefixes(found, f"{stem}.png")
    storage.write_json(config.output, report)
    return report


def render_prefixes(report: Report) -> str:
    """How often the same sense is nearer, and by how much."""
    from rayvec.evaluation.report import markdown, p_value
    from rayvec.evaluation.statistics import Estimate

    rows = [
        [name, str(Estimate(**row["wins"])), f"{row['gap']['difference']:+.4f}", p_value(row["gap"]["p_value"])]
        for name, row in report["systems"].items()
    ]
    head = f"{report['triples']} triples; share in which the same sense is nearer (.5 is chance) [95 % interval]"
    return f"{head}\n\n{markdown(['system', 'same is nearer', 'cosine to same - to other', 'p'], rows)}"


def _draw_prefixes(found: dict[str, PrefixResult], uri: str) -> None:
    """Write a PNG: a dot a triple, a panel a system; above the diagonal the same sense is nearer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 3.1 * rows + 0.4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    low = min(0.95, *(float(min(result.same_N.min(), result.other_N.min())) for result in found.values()))
    for axes, (name, result) in zip(panels, found.items(), strict=False):
        axes.plot([low, 1], [low, 1], color="#999999", linewidth=0.8)
        axes.plot(result.other_N, result.same_N, "o", markersize=4, color="#0072B2", alpha=0.75)
        axes.set_title(f"{name}: {result.wins.mean:.2f}", fontsize=9)
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.set_xlabel("cosine to the other sense", fontsize=8)
        axes.set_ylabel("cosine to the same sense", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    storage.write_bytes(uri, buffer.getvalue())


def _require_output(output: str) -> None:
    if not output.endswith(".json"):
        raise UserError("output is required; give a file with --set output=FILE.json")


def _text_encoder(system: SystemConfig, default: str) -> TextEncoder:
    from rayvec.modeling.encoder import TextEncoder

    encoder: Any = open_system(system, default) if system.has_vectors else None
    if not isinstance(encoder, TextEncoder):
        raise UserError(f"{system.name} has no model whose states could be looked at; give an encoder with one")
    return encoder


def _texts(source: SourceConfig, limit: int, cache: str) -> list[str]:
    """So many texts, spread over the source."""
    chosen: Spread[str] = Spread(limit)
    for table in tables(source, cache):
        for text in table["text"].to_pylist():
            chosen.add(text)
    return chosen.picked()
