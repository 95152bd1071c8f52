"""Example store: tokenized training examples in a folder of flat files that every rank maps into memory.

    tokens.int32  offsets.int64  pools.int32   the texts, end to end, and their pooled spans
    examples.int64                             one row an example: numbers of its texts (query, positive, negatives, …)
    ids.arrow                                  one id an example: the document it came from
    store.json                                 width, sets and their weights, sizes; written last

Nothing needs the corpus in memory, on the writing or the reading side. Knows token ids. Knows no tokenizer, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa

from rayvec import storage
from rayvec.data.mixing import ExampleSet
from rayvec.errors import VerificationError
from rayvec.modeling.tokens import TokenBatch

FORMAT = "rayvec.examples/1"
_IDS = pa.schema([pa.field("id", pa.string(), nullable=False)])


class ExampleWriter:
    """Writes a store; `store.json` appears when the block ends well.

    Sets come one after another: `begin_set`, then `add` as often as wanted.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self.sets: list[ExampleSet] = []
        #: What of a set was left out, by its name, as words; kept for those who report it.
        self.left_out: dict[str, str] = {}
        self._texts = self._tokens = self._examples = 0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "store.json").unlink(missing_ok=True)
        names = ("tokens.int32", "offsets.int64", "pools.int32", "examples.int64")
        self._files: list[BinaryIO] = [(self.folder / name).open("wb") for name in names]
        self._files[1].write(np.zeros(1, np.int64).tobytes())
        self._ids = pa.ipc.new_file(str(self.folder / "ids.arrow"), _IDS)
        return self

    def begin_set(self, name: str, weight: float = 1.0) -> None:
        """What is added from here on belongs to this set."""
        self._end_set()
        self.sets.append(ExampleSet(name, self._examples, self._examples, weight))

    def add(self, ids: Sequence[str], columns: Sequence[TokenBatch]) -> None:
        """Add examples: one id each, and one TokenBatch a column (query, positive, negatives), all of equal length."""
        assert len(columns) == self.width and all(len(column) == len(ids) for column in columns)
        if not self.sets:
            self.begin_set("all")
        rows = self._texts + np.arange(len(ids) * self.width).reshape(self.width, len(ids)).T
        for column in columns:
            self._add_texts(column)
        self._files[3].write(np.ascontiguousarray(rows, np.int64).tobytes())
        self._ids.write_batch(pa.record_batch([pa.array(ids, pa.string())], schema=_IDS))
        self._examples += len(ids)

    @property
    def added(self) -> int:
        """Examples of the set so far."""
        return self._examples - self.sets[-1].start

    def _add_texts(self, texts: TokenBatch) -> None:
        tokens, offsets, pools, _ = self._files
        tokens.write(np.ascontiguousarray(texts.input_ids, np.int32).tobytes())
        offsets.write((self._tokens + np.cumsum(texts.lengths)).astype(np.int64).tobytes())
        pools.write(np.stack([texts.pool_start, texts.pool_end], axis=1).astype(np.int32).tobytes())
        self._texts += len(texts)
        self._tokens += len(texts.input_ids)

    def _end_set(self) -> None:
        if self.sets:
            last = self.sets[-1]
            self.sets[-1] = ExampleSet(last.name, last.start, self._examples, last.weight)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for file in self._files:
            file.close()
        self._ids.close()
        self._end_set()
        if error is None:
            storage.write_json(self.folder / "store.json", self._manifest())

    def _manifest(self) -> storage.JsonObject:
        sets = [{"name": s.name, "start": s.start, "stop": s.stop, "weight": s.weight} for s in self.sets]
        counts = {"texts": self._texts, "tokens": self._tokens, "examples": self._examples}
        return {"format": FORMAT, "width": self.width, **counts, "sets": sets, "left_out": self.left_out}


class ExampleStore:
    """An open store. Raises VerificationError when the folder holds no whole one."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "store.json").exists():
            raise VerificationError(f"{folder} holds no finished training examples; run the same command again")
        manifest = storage.read_json(folder / "store.json")
        self.width: int = manifest["width"]
        self.sets = [ExampleSet(**value) for value in manifest["sets"]]
        texts, tokens, examples = manifest["texts"], manifest["tokens"], manifest["examples"]
        self._tokens = _map(folder / "tokens.int32", np.int32, (tokens,))
        self._offsets = _map(folder / "offsets.int64", np.int64, (texts + 1,))
        self._pools = _map(folder / "pools.int32", np.int32, (texts, 2))
        self._examples = _map(folder / "examples.int64", np.int64, (examples, self.width))
        self._ids = pa.ipc.open_file(pa.memory_map(str(folder / "ids.arrow"))).read_all().column("id")

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return len(self._tokens)

    def lengths(self) -> np.ndarray:
        """Tokens of each example, all its texts together, int64 [n]."""
        return np.diff(self._offsets)[self._examples].sum(axis=1)

    def ids(self, examples: np.ndarray) -> list[str]:
        """The document ids of some examples."""
        return self._ids.take(pa.array(examples)).to_pylist()

    def texts(self, examples: np.ndarray, column: int = 0) -> TokenBatch:
        """One column of some examples, in the order given."""
        rows = self._examples[examples, column]
        pools = self._pools[rows]
        flat = [self._tokens[self._offsets[row] : self._offsets[row + 1]] for row in rows]
        return TokenBatch.from_rows(flat, pool=[(int(start), int(end)) for start, end in pools])


def _map(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not path.exists() or path.stat().st_size != expected:
        raise VerificationError(
            f"{path} has not the {expected} bytes its store.json says; remove the folder, run again"
        )
    if expected == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)
