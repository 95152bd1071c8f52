"""Vectors of texts, kept: made once for each encoder, instruction and list of texts, here or by workers over Ray.

What is kept lies under the encoder's fingerprint and the arithmetic it was made in, so a changed encoder never meets
another's vectors, nor one of int8 those of float32. With every list goes what it cost to make: the tokens computed and
the seconds spent.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines._ray import room_for
from rayvec import storage, uris
from rayvec.errors import UserError

if TYPE_CHECKING:
    from rayvec.modeling.encoder import Encoder

Vectors = npt.NDArray[np.float32]
#: Texts encoded at once: what one worker is given, and after which progress is told.
CHUNK = 1024


@dataclass
class Cost:
    """What encoding took: wall and processor seconds, of all workers together."""

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add(self, other: Cost) -> None:
        """Count another's too."""
        self.texts += other.texts
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds

    def to_json(self) -> dict[str, float]:
        """A JSON object."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


Encoded = tuple[Vectors, Cost]


def encode_chunk(encoder: Encoder, texts: Sequence[str], instruction: str | None) -> Encoded:
    """Vectors of some texts, and what they cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    batch = encoder.tokenize(texts, instruction)
    vectors_ND = encoder.encode_tokens(batch)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    return vectors_ND, Cost(len(texts), int(batch.lengths.sum()), *spent)


class KeptVectors:
    """Vectors of one encoder: `vectors(texts, instruction)`.

    folder: where they are kept; "" keeps nothing. pool: workers that encode in place of this process.
    """

    def __init__(self, encoder: Encoder, name: str, folder: str, pool: Pool | None = None) -> None:
        self.encoder, self.name = encoder, name
        #: Of the different lists that were asked for, each once, whether made now or kept from before.
        self.cost = Cost()
        self._counted: set[str] = set()
        self._pool = pool
        self._folder = ""
        if folder:
            how = arithmetic(encoder) if pool is None else pool.arithmetic()
            self._folder = uris.join(folder, "-".join(filter(None, [encoder.fingerprint.short, how])))

    def __call__(self, texts: Sequence[str], instruction: str | None = None) -> Vectors:
        """Vectors float32 [n, D] of the texts, each read after the instruction."""
        if not texts:
            return np.empty((0, self.encoder.dim), np.float32)
        name = _name(texts, instruction)
        vectors_ND, cost = self._kept(name) or self._made(name, texts, instruction)
        if name not in self._counted:
            self._counted.add(name)
            self.cost.add(cost)
        return vectors_ND

    def _kept(self, name: str) -> Encoded | None:
        if not self._folder:
            return None
        place = uris.join(self._folder, name)
        # The cost is written last: where it is there, the vectors are whole.
        if storage.size(f"{place}.json") < 0:
            return None
        cost = Cost(**storage.read_json(f"{place}.json"))
        return np.load(io.BytesIO(storage.read_bytes(f"{place}.npy")), allow_pickle=False), cost

    def _made(self, name: str, texts: Sequence[str], instruction: str | None) -> Encoded:
        chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
        work: Iterable[Encoded] = (
            (encode_chunk(self.encoder, chunk, instruction) for chunk in chunks)
            if self._pool is None
            else self._pool.map(chunks, instruction)
        )
        parts, cost = [], Cost()
        for vectors_ND, spent in work:
            parts.append(vectors_ND)
            cost.add(spent)
            if len(chunks) > 1:
                sys.stderr.write(f"{self.name}: {cost.texts:,} of {len(texts):,} texts\n")
        vectors = np.concatenate(parts)
        if self._folder:
            buffer = io.BytesIO()
            np.save(buffer, vectors, allow_pickle=False)
            place = uris.join(self._folder, name)
            storage.write_bytes(f"{place}.npy", buffer.getvalue())
            storage.write_json(f"{place}.json", asdict(cost))
        return vectors, cost


def arithmetic(encoder: Encoder) -> str:
    """In which numbers an encoder computes, and on what: "int8-cpu"; "" of one that computes the same everywhere."""
    return str(getattr(encoder, "arithmetic", ""))


def _name(texts: Sequence[str], instruction: str | None) -> str:
    """A name that other texts, or another instruction, do not have."""
    lengths = ",".join(str(len(text)) for text in texts)
    content = "\x1f".join([instruction or "", lengths, *texts])
    return storage.sha256_bytes(content.encode("utf-8", "surrogatepass"))[:24]


class Pool:
    """Ray actors that each hold the encoder; chunks go to whichever is free, results come in order.

    Raises UserError for more of them than the cluster has room for: they would be waited for for ever.
    """

    def __init__(self, make: Callable[[], Encoder], workers: int) -> None:
        import ray
        from ray.util.actor_pool import ActorPool

        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        if workers > (room := room_for({"CPU": 1.0, "GPU": float(gpus)})):
            each = "a CPU and a GPU" if gpus else "a CPU"
            raise UserError(
                f"workers = {workers} need {each} each, and the cluster has room for {room}; set workers={room}"
            )
        remote = ray.remote(num_cpus=1, num_gpus=gpus)(_Worker)
        self._actors: list[Any] = [remote.remote(make) for _ in range(workers)]
        self._pool = ActorPool(self._actors)
        self._under_way = 0

    @property
    def ahead(self) -> int:
        """How many chunks are under way when every worker has one and finds another."""
        return 2 * len(self._actors)

    def submit(self, texts: Sequence[str], instruction: str | None) -> None:
        """Have a chunk encoded; see `results`."""
        self._pool.submit(lambda actor, item: actor.encode.remote(*item), (list(texts), instruction))
        self._under_way += 1

    def results(self, left: int = 0) -> Iterator[Encoded]:
        """What came of the chunks in the order in which they were submitted, until only so many are left under way."""
        while self._under_way > left:
            self._under_way -= 1
            yield self._pool.get_next()

    def map(self, chunks: Iterable[Sequence[str]], instruction: str | None) -> Iterator[Encoded]:
        """What the encoder makes of each chunk."""
        for chunk in chunks:
            self.submit(chunk, instruction)
            yield from self.results(self.ahead)
        yield from self.results()

    def arithmetic(self) -> str:
        """In which numbers the workers compute, and on what: on GPUs perhaps, where the driver has none."""
        import ray

        return str(ray.get(self._actors[0].arithmetic.remote()))

    def close(self) -> None:
        """Give the workers back."""
        import ray

        for actor in self._actors:
            ray.kill(actor)


@contextlib.contextmanager
def workers(make: Callable[[], Encoder], count: int) -> Iterator[Pool | None]:
    """So many workers, given back after the block; None where there are to be none, and this process encodes.

    make: names what is on disk by absolute paths, since workers run in folders of their own.
    """
    if not count:
        yield None
        return
    from pipelines._ray import ray_session

    with ray_session():
        pool = Pool(make, count)
        try:
            yield pool
        finally:
            pool.close()


class _Worker:
    def __init__(self, make: Callable[[], Encoder]) -> None:
        self.encoder: Any = make()

    def arithmetic(self) -> str:
        return arithmetic(self.encoder)

    def encode(self, texts: list[str], instruction: str | None) -> Encoded:
        return encode_chunk(self.encoder, texts, instruction)
