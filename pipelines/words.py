"""Measuring words: a linear probe on a frozen encoder's token states, for chunks, entities or parts of speech.

One process; memory holds the words' vectors, and the token states of some hundred sentences.
"""

from __future__ import annotations

import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, PositiveInt

from pipelines.report import Report
from rayvec import storage
from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.evaluation.word_level import Position, ProbeSettings

if TYPE_CHECKING:
    from rayvec.evaluation.scores import Score
    from rayvec.evaluation.tagged_files import Sentence, Split
    from rayvec.evaluation.word_level import WordVectors
    from rayvec.modeling.encoder import TextEncoder


def _not_the_word(column: int) -> int:
    if column == 0:
        raise ValueError("column 0 holds the word; the first tag is 1, the last is -1")
    return column


class WordsConfig(Config):
    """What to probe, on what, and where the result goes."""

    kind: Literal["words"] = "words"
    #: "tiny", a folder or URI of an encoder, or a Hugging Face id; it is not trained.
    encoder: str = "tiny"
    #: Tagged sentences: columns (.conll, .txt, gzipped or not), nltk's conll2000.zip or masc_tagged.zip.
    train: str = ""
    #: Left out where `train` holds both parts; else a fifth of its sentences, by their hash, is kept for testing.
    test: str = ""
    #: Which column is the tag: -1 is the last, 1 the first after the word.
    tag_column: Annotated[int, AfterValidator(_not_the_word)] = -1
    #: Where a sub-word's state is read: at its own place, or one before it, where MNTP predicts it. auto: previous for
    #: an encoder with MNTP among its stages, word for all others.
    position: Position | Literal["auto"] = "auto"
    probe: ProbeSettings = ProbeSettings()
    #: Read at most so many sentences of each side, spread over it. Of train never more than the steps can see.
    max_sentences: PositiveInt | None = None
    #: The report, as JSON; the table (.md) goes beside it.
    output: str = ""


def measure_words(config: WordsConfig) -> Report:
    """Measure how well a linear probe on a frozen encoder's states tags words, beside each word's usual tag.

    Both learn from the same sentences and are scored on the same words. Raises UserError when the data, the encoder
    or the settings do not fit.
    """
    from rayvec.evaluation.tag_scores import score
    from rayvec.evaluation.word_level import default_position, majority, train_probe, word_vectors

    if not config.output.endswith(".json"):
        raise UserError("output is required; give a file with --set output=FILE.json")
    started = time.monotonic()
    split = load_words(config)
    encoder = _encoder(config)
    position = default_position(encoder) if config.position == "auto" else config.position
    train, test = (word_vectors(encoder, sentences, position) for sentences in split)
    probe = train_probe(train, config.probe)
    scores = {
        "probe": score(test.tags, probe.predict(test.vectors_WD), test.offsets),
        "majority": score(test.tags, majority(train, test.words), test.offsets),
    }
    settings = {"position": position, "tag_column": config.tag_column, **config.probe.model_dump(mode="json")}
    report = {
        "data": PurePosixPath(config.test or config.train).name,
        "encoder": config.encoder,
        "fingerprint": encoder.fingerprint.short,
        "settings": settings,
        "tags": len(probe.tags),
        "train": _counts(split.train, train),
        "test": _counts(split.test, test),
        "systems": {name: found.to_json() for name, found in scores.items()},
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    storage.write_bytes(f"{config.output.removesuffix('.json')}.md", (render(report) + "\n").encode())
    storage.write_json(config.output, report)
    return report


def load_words(config: WordsConfig) -> Split:
    """The sentences to learn from and to be asked about, once the libraries that score them are there.

    Raises UserError.
    """
    from rayvec.evaluation.tag_scores import require_libraries
    from rayvec.evaluation.tagged_files import Split, load_split

    train, test = load_split(config.train, config.test, config.tag_column)
    require_libraries(tag for sentence in test for tag in sentence.tags)
    seen = config.probe.steps * config.probe.batch_size
    return Split(_spread(train, min(seen, config.max_sentences or seen)), _spread(test, config.max_sentences))


def probed(
    encoder: TextEncoder, split: Split, config: WordsConfig, metric: Literal["accuracy", "entity_f1"]
) -> tuple[Score, dict[str, float]]:
    """The probe's score on the test's words with draws of its sentences, and all that was counted.

    Raises UserError when entities are asked for and the tags mark none.
    """
    from rayvec.evaluation.scores import of_metric
    from rayvec.evaluation.tag_scores import are_bio, parts
    from rayvec.evaluation.word_level import default_position, train_probe, word_vectors

    position = default_position(encoder) if config.position == "auto" else config.position
    train, test = (word_vectors(encoder, sentences, position) for sentences in split)
    predicted = train_probe(train, config.probe).predict(test.vectors_WD)
    counted = {"accuracy": parts(test.tags, predicted, test.offsets, "accuracy")}
    if are_bio(test.tags):
        counted["entity_f1"] = parts(test.tags, predicted, test.offsets, "entity_f1")
    if metric not in counted:
        raise UserError(f"metric = {metric}: the tags of {config.test or config.train} mark no entities; use accuracy")
    values = {name: float(part_S.sum() / max(1.0, whole_S.sum())) for name, (part_S, whole_S) in counted.items()}
    part_S, whole_S = counted[metric]
    found = of_metric(lambda places: float(part_S[places].sum() / max(1.0, whole_S[places].sum())), len(part_S))
    return found, {
        "train_sentences": len(split.train),
        "words": len(test.words),
        "tags": len(set(train.tags)),
        **values,
    }


def _spread(sentences: list[Sentence], limit: int | None) -> list[Sentence]:
    """At most so many, at equal distances: sets are often ordered by subject."""
    if limit is None or len(sentences) <= limit:
        return sentences
    return [sentences[i * len(sentences) // limit] for i in range(limit)]


def _encoder(config: WordsConfig) -> TextEncoder:
    from rayvec.modeling.encoder import TextEncoder, load_encoder

    encoder = load_encoder(config.encoder)
    if not isinstance(encoder, TextEncoder):
        raise UserError(f"encoder = {config.encoder!r} has no token states to probe; give an encoder with a model")
    return encoder


def _counts(sentences: list[Sentence], found: WordVectors) -> dict[str, int]:
    """Sentences and words that were read, and the words among them that could not be used."""
    return {
        "sentences": len(sentences),
        "words": sum(len(sentence.words) for sentence in sentences),
        "words_cut": found.cut,
        "words_without_tokens": found.without_tokens,
    }


def render(report: Report) -> str:
    """The report as people read it: what was probed, and the table."""
    from rayvec.evaluation.report import markdown

    test, settings = report["test"], report["settings"]
    head = (
        f"{report['data']}: {report['tags']} tags, {report['train']['sentences']:,} sentences to learn from, "
        f"{test['sentences']:,} ({test['words']:,} words) to test; states read at: {settings['position']}"
    )
    left_out = test["words_cut"] + test["words_without_tokens"]
    note = [f"{left_out:,} words of the test are left out: cut by max_length, or without tokens"] if left_out else []
    rows = [[name, *_cells(row)] for name, row in report["systems"].items()]
    table = markdown(["system", "accuracy", "entity F1", "macro F1"], rows)
    return "\n".join([head, *note, "mean [95 % interval]", "", table])


def _cells(row: dict[str, Any]) -> list[str]:
    from rayvec.evaluation.statistics import Estimate

    entity_f1 = "" if row["entity_f1"] is None else str(Estimate(**row["entity_f1"]))
    return [str(Estimate(**row["accuracy"])), entity_f1, f"{row['macro_f1']:.3f}"]
