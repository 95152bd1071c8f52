"""Examples of each stage: texts and pairs, tokenized once into an example store that every worker maps into memory.

Runs on the driver's CPU, before workers start, so that bad data dies early. Knows sources, pairs and tokenizers. Knows
no weights, no loss.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rayvec import storage
from rayvec.data.examples import ExampleStore, ExampleWriter
from rayvec.data.mixing import FixedSizeBatches, TokenBudgetBatches
from rayvec.data.pair_files import read_pairs
from rayvec.data.pairs import is_held_out
from rayvec.data.source_config import SourceConfig
from rayvec.data.sources import open_source
from rayvec.data.units import REASONS, UnitData
from rayvec.errors import QuarantineExceededError, UserError
from rayvec.modeling.folder import open_encoder
from rayvec.modeling.tokens import TokenBatch
from rayvec.training.stages import Mntp, Pairs, PairSet, Pretrain, Supervised, Texts, TrainingConfig

LOG = logging.getLogger("rayvec.training")
CHUNK = 512
_SETTING = re.compile(rf"(?<![\w./])source\.(?=(?:{'|'.join(SourceConfig.model_fields)})\b)")
UNIT_ROWS = 4096
T = TypeVar("T")


class Example(NamedTuple):
    """A query, its positive and its hard negatives. id: the document, or the line of the file, it came from."""

    id: str
    texts: tuple[str, ...]


@dataclass
class Records:
    """What sources were found to hold: records in all, and those that are no documents, by reason."""

    count: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, unit: UnitData) -> None:
        """Another unit was read."""
        self.count += unit.table.num_rows + len(unit.rejected)
        self.refused.update(one.reason for one in unit.rejected)

    @property
    def told(self) -> str:
        """What is left out, in words; "" where nothing is."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.refused.items()))
        return reasons and f"{self.refused.total():,} of {self.count:,} records that are no documents ({reasons})"

    def require(self, share: float) -> None:
        """Raise QuarantineExceededError when more than a share is refused: what is left may be a choice of its own."""
        if self.refused.total() > share * self.count:
            ((reason, _),) = self.refused.most_common(1)
            why = _in_training(REASONS[reason])
            raise QuarantineExceededError(
                f"training would leave out {self.told}, more than data.max_quarantine = {share:g} allows; {reason}: "
                f"{why}; mend them, or raise data.max_quarantine"
            )


def iter_texts(data: Texts, cache: str, records: Records | None = None) -> Iterator[tuple[str, str]]:
    """(id, text) of the documents, without what is held out for evaluation and what is too short.

    records: counts what was read. At the end raises QuarantineExceededError when too much of it is no document.
    """
    records = Records() if records is None else records
    rows = (
        row
        for source in (data.source, *data.also)
        for table in _tables(source, cache, records)
        for row in _documents(table, titles=data.title == "prepend")
        if not (_keeps_out(data, source) and is_held_out(row[0]))
    )
    yield from itertools.islice((row for row in rows if len(row[1]) >= data.min_characters), data.max_documents)
    records.require(data.max_quarantine)


def _keeps_out(data: Texts, source: SourceConfig) -> bool:
    return source.kind == "pydocs" if data.exclude_held_out is None else data.exclude_held_out


def _documents(table: Any, *, titles: bool) -> Iterator[tuple[str, str]]:
    columns = (table.column(name).to_pylist() for name in ("id", "title", "text"))
    for id_, title, text in zip(*columns, strict=True):
        yield id_, f"{title}\n{text}" if titles and title else text


def _tables(config: SourceConfig, cache: str, records: Records) -> Iterator[Any]:
    try:
        source = open_source(config, cache)
        units = source.units(UNIT_ROWS)
    except UserError as error:
        raise UserError(_in_training(str(error))) from None
    for unit in units:
        data = source.read(unit)
        records.add(data)
        yield data.table


def _in_training(message: str) -> str:
    """A message of sources with its settings named as a stage has them.

    >>> _in_training("/a/source.path is empty; check source.path, or --set source.kind=text")
    '/a/source.path is empty; check data.source.path, or --set data.source.kind=text'
    """
    return _SETTING.sub("data.source.", message)


def iter_pairs(
    pairs: PairSet, hard_negatives: int, cache: str, left_out: Counter[str] | None = None
) -> Iterator[Example]:
    """The examples of a set; what is left out is counted by reason.

    Raises UserError when its files are missing, or at what is no pair unless such are to be skipped.
    """
    left_out = Counter() if left_out is None else left_out

    def skip(error: UserError) -> None:
        if pairs.on_bad_pair == "fail":
            raise error
        left_out["that are none"] += 1

    for line in read_pairs(pairs.path, cache, pairs.columns, skip):
        if line.positive is None:
            skip(UserError(f"{line.place}: the positive is a document's id; training takes its text, as positive"))
        elif len(line.negatives) < hard_negatives:
            left_out[f"with fewer than {hard_negatives} hard negatives"] += 1
        else:
            texts = (line.query, line.positive, *line.negatives[:hard_negatives])
            yield Example(line.place.rpartition("/")[2], texts)


def require_batches(config: TrainingConfig, folder: Path) -> None:
    """Raise UserError when the prepared examples do not make a batch: before workers start, and not in each of them."""
    if isinstance(config.stage, Pretrain):
        return
    store = ExampleStore(folder)
    if isinstance(config.stage, Mntp) or not len(store):
        TokenBudgetBatches(store.lengths(), config.batch_size * config.max_length, config.seed)
    else:
        FixedSizeBatches(store.sets, config.batch_size, config.seed)


def prepare_masked(config: TrainingConfig, folder: Path, cache: str) -> None:
    """MNTP: whole texts, long ones in pieces of max_length tokens; or all texts joined and cut (the reference)."""
    assert isinstance(config.stage, Mntp) and isinstance(config.data, Texts)
    tokenizer = open_encoder(config.start).tokenizer.tokenizer
    pieces = _pieces if config.stage.documents == "separate" else _joined
    records = Records()
    with ExampleWriter(folder, width=1) as writer:
        for ids, rows in pieces(tokenizer, iter_texts(config.data, cache, records), config.max_length):
            writer.add(ids, [TokenBatch.from_rows(rows)])
        writer.left_out |= _left_out(records)


def _pieces(
    tokenizer: Any, texts: Iterable[tuple[str, str]], max_length: int
) -> Iterator[tuple[list[str], list[list[int]]]]:
    for chunk in _chunks(texts):
        encoded = tokenizer(
            [text for _, text in chunk],
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        owners = encoded["overflow_to_sample_mapping"]
        kept = [(chunk[owner][0], row) for owner, row in zip(owners, encoded["input_ids"], strict=True) if len(row) > 1]
        if kept:
            yield [id_ for id_, _ in kept], [row for _, row in kept]


def _joined(
    tokenizer: Any, texts: Iterable[tuple[str, str]], max_length: int
) -> Iterator[tuple[list[str], list[list[int]]]]:
    rest: list[int] = []
    for chunk in _chunks(texts):
        encoded = tokenizer([text for _, text in chunk], return_attention_mask=False, verbose=False)
        rest += list(itertools.chain.from_iterable(encoded["input_ids"]))
        whole = len(rest) // max_length
        if whole:
            rows = [rest[i * max_length : (i + 1) * max_length] for i in range(whole)]
            yield [f"{chunk[0][0]}…"] * whole, rows
            rest = rest[whole * max_length :]


def prepare_texts(config: TrainingConfig, folder: Path, cache: str) -> None:
    """SimCSE: each text as the encoder reads it, cut to max_length tokens."""
    assert isinstance(config.data, Texts)
    tokenizer = _reading(config)
    records = Records()
    with ExampleWriter(folder, width=1) as writer:
        for chunk in _chunks(iter_texts(config.data, cache, records)):
            writer.add([id_ for id_, _ in chunk], [tokenizer.tokenize([text for _, text in chunk])])
        writer.left_out |= _left_out(records)


def _left_out(records: Records) -> dict[str, str]:
    """What of the texts is left out, for the report; it is logged too."""
    if not records.told:
        return {}
    LOG.warning("texts: left out %s", records.told)
    return {"texts": records.told}


def prepare_pairs(config: TrainingConfig, folder: Path, cache: str) -> None:
    """Supervised: a column of queries (with instruction), one of positives, one for each hard negative."""
    assert isinstance(config.stage, Supervised) and isinstance(config.data, Pairs)
    tokenizer = _reading(config)
    negatives = config.stage.hard_negatives
    with ExampleWriter(folder, width=2 + negatives) as writer:
        for pairs in config.data.sets:
            writer.begin_set(pairs.name, pairs.weight)
            left_out: Counter[str] = Counter()
            examples = itertools.islice(iter_pairs(pairs, negatives, cache, left_out), config.data.max_examples)
            # One chunk an instruction at a time; instructions take turns by chunk, and batches mix chunks.
            instructions = itertools.cycle(pairs.instructions or (None,))
            for chunk, instruction in zip(_chunks(examples, 64), instructions, strict=False):
                columns = list(zip(*(example.texts for example in chunk), strict=True))
                other = instruction if pairs.both_sides else None
                tokens = [
                    tokenizer.tokenize(column, instruction if i == 0 else other) for i, column in enumerate(columns)
                ]
                writer.add([example.id for example in chunk], tokens)
            _tell(pairs.name, left_out, writer)


def _tell(name: str, left_out: Counter[str], writer: ExampleWriter) -> None:
    """Say what of a set is left out, and keep it for the report. Raises UserError when nothing else is there."""
    told = ", ".join(f"{count:,} pairs {reason}" for reason, count in left_out.items())
    if told:
        LOG.warning("set %s: left out %s", name, told)
        writer.left_out[name] = told
    if not writer.added:
        raise UserError(
            f"set {name}: no pair to train on, left out: {told or 'none'}; mine negatives with jobs.mine, or do "
            "without by stage.hard_negatives=0"
        )


def _reading(config: TrainingConfig) -> Any:
    return open_encoder(config.start).with_settings(**config.readings, max_length=config.max_length).tokenizer


def _chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def prepare_stream(config: TrainingConfig, folder: Path, cache: str) -> None:
    """Pretraining: a tokenizer learned from the texts, the texts as one token stream, and first embeddings."""
    import numpy as np

    from rayvec.training import pretraining

    assert isinstance(config.stage, Pretrain) and isinstance(config.data, Texts)
    decoder, data = config.stage.decoder, config.data
    folder.mkdir(parents=True, exist_ok=True)
    records = Records()
    tokenizer = pretraining.train_tokenizer((text for _, text in iter_texts(data, cache, records)), decoder.vocab_size)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    texts = (text for _, text in iter_texts(data, cache))
    tokens = pretraining.write_token_stream(tokenizer, texts, folder / "stream.uint16")
    if tokens <= config.max_length:
        raise UserError(f"the texts hold {tokens} tokens, not one sequence of {config.max_length}; give more of them")
    if decoder.cooccurrence_window:
        stream = np.memmap(folder / "stream.uint16", dtype=np.uint16, mode="r")
        vectors = pretraining.cooccurrence_embeddings(
            stream, decoder.vocab_size, decoder.hidden_size, decoder.cooccurrence_window, config.seed
        )
        np.save(folder / "embeddings.npy", vectors)
    facts = {"format": "rayvec.stream/1", "tokens": tokens, "left_out": _left_out(records)}
    storage.write_json(folder / "store.json", facts)
