"""Which FAISS index: "auto" picks one by the number and size of the vectors; an explicit factory string is checked.

Knows factory strings and arithmetic. Knows no FAISS: a configuration can be checked where FAISS is not installed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from rayvec.errors import UserError

Kind = Literal["flat", "ivf", "hnsw"]
AUTO = "auto"

#: The forms that we build, read and test; what FAISS could build besides is refused. (name, pattern, kind of search)
FORMS: tuple[tuple[str, str, Kind], ...] = (
    ("Flat", r"(?P<codec>Flat|SQ8|SQfp16)", "flat"),
    ("IVF<centroids>,Flat", r"IVF(?P<centroids>\d+)(_HNSW(?P<links>\d+))?,(?P<codec>Flat|SQ8|SQfp16)", "ivf"),
    ("HNSW<links>", r"HNSW(?P<links>\d+)([_,](?P<codec>Flat|SQ8|SQfp16))?", "hnsw"),
)
EXAMPLES = 'auto, "Flat", "SQ8", "IVF1024,Flat", "IVF1024,SQ8", "IVF4096_HNSW32,SQ8", "HNSW32", "HNSW32,SQ8"'

BYTES_A_VALUE = {"Flat": 4, "SQfp16": 2, "SQ8": 1}
#: Fewer training vectors than this for each centroid and k-means only memorises its sample (FAISS's own bound).
MIN_SAMPLES_A_CENTROID = 39
#: More training vectors than this for each centroid do not move the centroids (FAISS's own bound is 256).
SAMPLES_A_CENTROID = 128
SAMPLES_FOR_A_CODEC = 65_536
MOST_SAMPLE_BYTES = 8 << 30
MAX_LINKS = 256


@dataclass(frozen=True)
class Spec:
    """An index to be built: the factory string and what follows from it."""

    factory: str
    kind: Kind
    codec: str
    centroids: int
    links: int
    why: str

    @property
    def needs_training(self) -> bool:
        """Whether FAISS must see a sample before vectors can be added."""
        return self.kind == "ivf" or self.codec == "SQ8"

    def samples(self, count: int, dim: int) -> int:
        """How many vectors to train on; what fits in MOST_SAMPLE_BYTES, as long as each centroid has one."""
        if not self.needs_training:
            return 0
        wanted = max(self.centroids * SAMPLES_A_CENTROID, SAMPLES_FOR_A_CODEC if self.codec == "SQ8" else 0)
        return min(count, max(self.centroids, min(wanted, MOST_SAMPLE_BYTES // (4 * dim))))

    def bytes(self, count: int, dim: int) -> int:
        """About how large the index will be: codes, ids, links and centroids."""
        codes = count * dim * BYTES_A_VALUE[self.codec]
        links = count * (self.links * 2 * 4 + 8) if self.kind == "hnsw" else 0
        lists = count * 8 + self.centroids * dim * 4 if self.kind == "ivf" else 0
        return codes + links + lists


@dataclass(frozen=True)
class Rule:
    """One row of the table behind "auto": up to so many bytes of vectors, this form."""

    up_to_bytes: float
    template: str
    why: str


#: A core reads about 25 GB/s and multiplies a single query at memory speed: 64 MB are 3 ms, and no graph or list is so
#: much faster that an inexact answer is worth it. 8-bit codes quarter the memory at a recall of about 0.995.
AUTO_TABLE: tuple[Rule, ...] = (
    Rule(64e6, "Flat", "{size} of vectors are searched exactly in about {scan} ms a query on one core"),
    Rule(4e9, "IVF{centroids},Flat", "{size} of vectors are too many to scan for each query; {centroids} ≈ 4·√n lists"),
    Rule(math.inf, "IVF{centroids}_HNSW32,SQ8", "{size} of vectors: 8-bit codes take a quarter of the memory"),
)
SCAN_BYTES_A_MS = 25e6


def choose(factory: str, count: int, dim: int) -> Spec:
    """The index for so many vectors of this dimension.

    Raises UserError when the factory string is not one that we build, or cannot be built from so few vectors.
    """
    if count < 1:
        raise UserError("there are no vectors to index: the embeddings hold 0 rows; embed some documents first")
    if factory != AUTO:
        return _explicit(factory, count)
    size = count * dim * 4
    rule = next(rule for rule in AUTO_TABLE if size <= rule.up_to_bytes)
    centroids = usual_centroids(count)
    why = rule.why.format(size=human_bytes(size), scan=f"{size / SCAN_BYTES_A_MS:.1f}", centroids=centroids)
    return _parse(rule.template.format(centroids=centroids), why)


def usual_centroids(count: int) -> int:
    """About 4·√n, but never so many that a centroid has too few vectors to learn from."""
    return max(1, min(round(4 * math.sqrt(count)), count // MIN_SAMPLES_A_CENTROID))


def check_factory(factory: str) -> str:
    """The factory string, if it is one of the forms that we build. Raises UserError otherwise."""
    if factory != AUTO:
        _parse(factory, "")
    return factory


def _explicit(factory: str, count: int) -> Spec:
    spec = _parse(factory, "asked for")
    if spec.centroids > count:
        raise UserError(
            f"{factory!r} needs at least {spec.centroids} vectors, one for each centroid, and there are {count}; "
            f"about 4·√n is usual: IVF{usual_centroids(count)},{spec.codec}"
        )
    return spec


def _parse(factory: str, why: str) -> Spec:
    for _, pattern, kind in FORMS:
        match = re.fullmatch(pattern, factory)
        if match is None:
            continue
        fields = match.groupdict()
        spec = Spec(
            factory=factory,
            kind=kind,
            codec=fields.get("codec") or "Flat",
            centroids=int(fields.get("centroids") or 0),
            links=int(fields.get("links") or 0),
            why=why,
        )
        _check_numbers(spec)
        return spec
    hint = "; set dimensions=N for PCA" if "PCA" in factory else ""
    raise UserError(f"factory {factory!r} is not an index that rayvec builds; choose one of {EXAMPLES}{hint}")


def _check_numbers(spec: Spec) -> None:
    if spec.kind == "ivf" and spec.centroids < 1:
        raise UserError(f"{spec.factory!r} needs at least 1 centroid; about 4·√(number of vectors) is usual")
    if (spec.kind == "hnsw" or "_HNSW" in spec.factory) and not 2 <= spec.links <= MAX_LINKS:
        raise UserError(f"{spec.factory!r} has {spec.links} links a vector; choose 2 to {MAX_LINKS}, 32 is usual")


def human_bytes(size: float) -> str:
    """Bytes for people.

    >>> human_bytes(61_000_000)
    '61 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
