"""The forms of index that we build: factory strings taken apart, and what follows from each.

A factory string is `[rotation,]kind[,codec][,refinement]`, FAISS's own words throughout. What FAISS could build besides
is refused: it would not take a selector, lose its metric on the way, or never be read back.

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

SCALARS = r"Flat|SQ4|SQ6|SQ8|SQfp16|SQbf16"
#: Around every form: a rotation before it, and stored vectors that its first answers are compared with after it.
ROTATION = r"((?P<rotation>OPQ|RR)(?P<blocks>\d+)(_(?P<rotated>\d+))?,)?"
REFINEMENT = r"(,(?P<refine>RFlat|Refine\((Flat|SQ8|SQfp16)\)))?"

#: The forms that we build, read and test. (name, pattern, kind of search)
#: Product codes and fast scan stand in lists only: FAISS's flat kinds of them take no selector, so that a deleted
#: document would come back. Graphs over product codes are left out: FAISS builds them for another metric.
FORMS: tuple[tuple[str, str, Kind], ...] = (
    ("SQ8", rf"(?P<codec>{SCALARS}|RaBitQ[2-9]?)", "flat"),
    (
        "IVF<centroids>,SQ8",
        rf"IVF(?P<centroids>\d+)(_HNSW(?P<links>\d+))?,(?P<codec>{SCALARS}|PQ\d+(x4fsr?)?|RaBitQ(fs)?[2-9]?)",
        "ivf",
    ),
    ("HNSW<links>", rf"HNSW(?P<links>\d+)([_,](?P<codec>{SCALARS}))?", "hnsw"),
)
EXAMPLES = (
    'auto, "Flat", "SQ8", "IVF1024,Flat", "IVF4096_HNSW32,SQ8", "HNSW32,SQ8", "IVF4096_HNSW32,PQ64x4fs,RFlat", '
    '"OPQ64_256,IVF4096,PQ64x4fs,Refine(SQ8)", "RR256,IVF4096,RaBitQ,Refine(SQfp16)", "RR256,IVF4096,RaBitQ4"'
)

BITS_A_VALUE = {"Flat": 32, "SQfp16": 16, "SQbf16": 16, "SQ8": 8, "SQ6": 6, "SQ4": 4}
#: Codecs that FAISS can use before it has seen a vector.
UNTRAINED = ("Flat", "SQfp16", "SQbf16")
#: Fewer training vectors than this for each centroid and k-means only memorises its sample (FAISS's own bound).
MIN_SAMPLES_A_CENTROID = 39
#: More training vectors than this for each centroid, and more rounds of k-means over them, cost time (clustering is
#: most of a build) and find no more. Over 118,151 arXiv abstracts, of 1375 lists 16 hold .751 of the ten nearest and 64
#: hold .964; with 64 vectors and FAISS's own 10 rounds .752 and .962, with 256 vectors .758 and .961.
SAMPLES_A_CENTROID = 48
KMEANS_ROUNDS = 6
#: Codewords, and rotations that suit them, are learnt from so many; of values the least and the greatest are enough.
SAMPLES_FOR_CODEWORDS = 65_536
SAMPLES_FOR_RANGES = 16_384
MOST_SAMPLE_BYTES = 8 << 30
MAX_LINKS = 256


@dataclass(frozen=True)
class Spec:
    """An index to be built: the factory string and what follows from it."""

    factory: str
    kind: Kind
    codec: str
    centroids: int = 0
    links: int = 0
    why: str = ""
    rotation: str = ""
    blocks: int = 0
    rotated: int = 0
    refine: str = ""

    @property
    def needs_training(self) -> bool:
        """Whether FAISS must see a sample before vectors can be added."""
        return self.kind == "ivf" or bool(self.rotation) or not {self.codec, self.refine or "Flat"} <= set(UNTRAINED)

    @property
    def bits(self) -> int:
        """Bits a sub-quantizer of a product code, or a dimension of a RaBitQ code, takes; 0 for other codecs."""
        if self.codec.startswith("PQ"):
            return 4 if "x4" in self.codec else 8
        return int(self.codec[-1]) if self.codec[-1].isdigit() and self.rabitq else int(self.rabitq)

    @property
    def rabitq(self) -> bool:
        """Whether the codes are RaBitQ's."""
        return self.codec.startswith("RaBitQ")

    @property
    def fast_scan(self) -> bool:
        """Whether codes lie in blocks of 32, for SIMD."""
        return "fs" in self.codec

    @property
    def subquantizers(self) -> int:
        """Of a product code; 0 for other codecs."""
        match = re.match(r"PQ(\d+)", self.codec)
        return int(match[1]) if match else 0

    def dim_codes(self, dim: int) -> int:
        """Dimensions of what is encoded, after the rotation."""
        return self.rotated or dim

    def code_bytes(self, dim: int) -> float:
        """Bytes of one vector's code."""
        inner = self.dim_codes(dim)
        if self.subquantizers:
            # Fast scan takes sub-quantizers in pairs.
            return self.subquantizers if self.bits == 8 else math.ceil(self.subquantizers / 2)
        if self.rabitq:
            plane = math.ceil(inner / 8)
            # Two factors beside one bit a dimension; three and two more beside the bits above it.
            return plane + 8 if self.bits == 1 else plane + 12 + math.ceil(inner * (self.bits - 1) / 8) + 8
        return math.ceil(inner * BITS_A_VALUE[self.codec] / 8)

    def samples(self, count: int, dim: int) -> int:
        """How many vectors to train on; what fits in MOST_SAMPLE_BYTES, as long as each centroid has one."""
        if not self.needs_training:
            return 0
        wanted = max(self.centroids * SAMPLES_A_CENTROID, self._samples_for_codes())
        return min(count, max(self.centroids, min(wanted, MOST_SAMPLE_BYTES // (4 * dim))))

    def _samples_for_codes(self) -> int:
        if self.subquantizers or self.rotation == "OPQ":
            return SAMPLES_FOR_CODEWORDS
        coded = self.rotation or not {self.codec, self.refine or "Flat"} <= set(UNTRAINED)
        return SAMPLES_FOR_RANGES if coded else 0


def parse(factory: str, why: str = "") -> Spec:
    """Take a factory string apart. Raises UserError, with examples, when it is not of a form that we build."""
    for _, pattern, kind in FORMS:
        match = re.fullmatch(ROTATION + pattern + REFINEMENT, factory)
        if match is not None:
            spec = _spec(factory, kind, match.groupdict(), why)
            _check_numbers(spec)
            return spec
    raise UserError(f"factory {factory!r} is not an index that rayvec builds; choose one of {EXAMPLES}{_hint(factory)}")


def _spec(factory: str, kind: Kind, fields: dict[str, str | None], why: str) -> Spec:
    refine = fields["refine"] or ""
    random = fields["rotation"] == "RR"
    return Spec(
        factory=factory,
        kind=kind,
        codec=fields.get("codec") or "Flat",
        centroids=int(fields.get("centroids") or 0),
        links=int(fields.get("links") or 0),
        why=why,
        rotation=fields["rotation"] or "",
        blocks=0 if random else int(fields["blocks"] or 0),
        rotated=int((fields["blocks"] if random else fields["rotated"]) or 0),
        refine="Flat" if refine == "RFlat" else refine.removeprefix("Refine(").removesuffix(")"),
    )


def _hint(factory: str) -> str:
    if "PCA" in factory:
        return "; set dimensions=N for PCA"
    if re.match(r"(OPQ\w+,)?PQ|(RR\d+,)?RaBitQfs", factory):
        return f"; these codes stand in lists: IVF<centroids>,{factory.rsplit(',R', 1)[0].split(',')[-1]}"
    return ""


def _check_numbers(spec: Spec) -> None:
    name = repr(spec.factory)
    if spec.kind == "ivf" and spec.centroids < 1:
        raise UserError(f"{name} needs at least 1 centroid; about 4·√(number of vectors) is usual")
    if (spec.kind == "hnsw" or "_HNSW" in spec.factory) and not 2 <= spec.links <= MAX_LINKS:
        raise UserError(f"{name} has {spec.links} links a vector; choose 2 to {MAX_LINKS}, 32 is usual")
    if spec.refine and spec.codec == "Flat":
        raise UserError(f"{name} refines vectors that are whole already; leave out the last part")
    if spec.rotation == "OPQ" and spec.blocks != spec.subquantizers:
        raise UserError(f"{name}: OPQ rotates for the product code behind it; write OPQ<M> and PQ<M> with one M")
    if spec.rotation and (spec.kind == "hnsw" or spec.codec == "Flat"):
        raise UserError(f"{name}: a rotation helps RaBitQ, PQ and SQ codes only; leave it out, or set dimensions=N")
    if "RR" in spec.factory and "_" in spec.factory.split(",")[0]:
        raise UserError(f"{name}: RR takes one number, the dimensions of the vectors")
    if spec.codec.startswith("PQ") and spec.subquantizers < 1:
        raise UserError(f"{name} needs at least 1 sub-quantizer; a quarter of the dimensions is usual with x4fs")


def check_shape(spec: Spec, count: int, dim: int) -> None:
    """Raise UserError when so many vectors of this dimension cannot be held by an index of this form."""
    name = repr(spec.factory)
    if spec.centroids > count:
        raise UserError(
            f"{name} needs at least {spec.centroids} vectors, one for each centroid, and there are {count}; "
            f"{_instead(f'IVF{usual_centroids(count)},{spec.codec}', count, dim)}"
        )
    if spec.subquantizers and count < 1 << spec.bits:
        raise UserError(
            f"{name} needs at least {1 << spec.bits} vectors to learn from, and there are {count}; take SQ8"
        )
    if spec.rotation == "RR" and spec.rotated != dim:
        raise UserError(f"{name} rotates {spec.rotated} dimensions and the vectors have {dim}; write RR{dim}")
    if spec.rotated > dim:
        raise UserError(f"{name} makes {spec.rotated} dimensions of {dim}; choose at most {dim}")
    inner = spec.dim_codes(dim)
    if spec.subquantizers and inner % spec.subquantizers:
        usual = max(m for m in range(1, max(1, inner // 4) + 1) if inner % m == 0)
        raise UserError(
            f"{name} cuts {inner} dimensions into {spec.subquantizers} parts, which must be equal; "
            f"choose a divisor of {inner}, such as {usual}"
        )


def _instead(factory: str, count: int, dim: int) -> str:
    """The index to take instead: that one, where it can be built of so many vectors."""
    try:
        check_shape(parse(factory), count, dim)
    except UserError:
        return "take Flat"
    return f"about 4·√n is usual: {factory}"


def usual_centroids(count: int) -> int:
    """About 4·√n, but never so many that a centroid has too few vectors to learn from."""
    return max(1, min(round(4 * math.sqrt(count)), count // MIN_SAMPLES_A_CENTROID))
