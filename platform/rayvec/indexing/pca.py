"""PCA: fewer dimensions by one streaming pass. Moments are summed in float64 over batches and tasks, then solved once.

Knows numpy and the file format of FAISS transforms. Knows no Ray and no parts: it is given batches.

Shapes: N vectors of a batch, D dimensions in, R dimensions kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvec.errors import UserError, VerificationError
from rayvec.indexing.vectors import Vectors, unit

Matrix = npt.NDArray[np.float64]

#: The first four bytes of the one kind of transform that we write.
LINEAR_TRANSFORM = b"LTra"


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and scatter [D, D] (sum of outer products about the mean) of the vectors seen; all float64."""

    count: int
    mean: Matrix
    scatter: Matrix

    @classmethod
    def of(cls, vectors_ND: Vectors) -> Moments:
        """The moments of one batch."""
        values = vectors_ND.astype(np.float64)
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both together (Chan, Golub and LeVeque 1979, equation 2.1): no cancellation of large sums."""
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)


def moments(batches: Iterable[Vectors]) -> Moments:
    """The moments of a stream of batches; at least one must hold a vector."""
    return reduce(Moments.__add__, (Moments.of(batch) for batch in batches if len(batch)))


@dataclass(frozen=True)
class Projection:
    """y = matrix · x + bias, then to length 1 if asked: matrix [R, D], bias [R], and the share of variance kept [R]."""

    matrix: Vectors
    bias: Vectors
    normalize: bool
    explained: tuple[float, ...] = ()

    @property
    def dim_in(self) -> int:
        """Dimensions of what goes in."""
        return int(self.matrix.shape[1])

    @property
    def dim_out(self) -> int:
        """Dimensions of what comes out."""
        return int(self.matrix.shape[0])

    def __call__(self, vectors_ND: Vectors) -> Vectors:
        """Project float32 [N, D] to [N, R]."""
        projected = vectors_ND @ self.matrix.T + self.bias
        return unit(projected) if self.normalize else projected


def fit(seen: Moments, dimensions: int, *, normalize: bool) -> Projection:
    """Project on the `dimensions` directions of most variance; `explained` is cumulative: its last is what is kept.

    Raises UserError when more dimensions are asked for than the vectors have, or than there are vectors.
    """
    dim = len(seen.mean)
    if not 1 <= dimensions <= dim:
        raise UserError(f"dimensions = {dimensions}: the vectors have {dim}; choose 1 to {dim}")
    if dimensions > seen.count:
        raise UserError(f"dimensions = {dimensions}: there are only {seen.count} vectors; choose at most as many")
    variances, directions = np.linalg.eigh(seen.scatter / seen.count)
    order = np.argsort(variances)[::-1]
    variances, directions = np.maximum(variances[order], 0.0), directions[:, order]
    total = variances.sum()
    shares = np.cumsum(variances[:dimensions]) / total if total > 0 else np.zeros(dimensions)
    matrix = _signed(directions[:, :dimensions].T)
    bias = -matrix @ seen.mean
    return Projection(
        matrix.astype(np.float32), bias.astype(np.float32), normalize, tuple(min(float(share), 1.0) for share in shares)
    )


def _signed(matrix_RD: Matrix) -> Matrix:
    """Each direction with its largest entry positive: an eigenvector's sign is free, and ours must not waver."""
    largest = np.abs(matrix_RD).argmax(axis=1)
    return matrix_RD * np.where(matrix_RD[np.arange(len(matrix_RD)), largest] < 0, -1.0, 1.0)[:, None]


def save(projection: Projection, path: Path) -> None:
    """Write a FAISS LinearTransform, which FAISS tools read too; whether to normalise after it, the manifest says."""
    faiss = _faiss()
    transform = faiss.LinearTransform(projection.dim_in, projection.dim_out, True)
    faiss.copy_array_to_vector(np.ascontiguousarray(projection.matrix).ravel(), transform.A)
    faiss.copy_array_to_vector(np.ascontiguousarray(projection.bias), transform.b)
    transform.is_trained = True
    faiss.write_VectorTransform(transform, str(path))


def load(path: Path, *, normalize: bool) -> Projection:
    """Read a transform that `save` wrote. Raises VerificationError for any other kind of file."""
    faiss = _faiss()
    with path.open("rb") as stream:
        if stream.read(4) != LINEAR_TRANSFORM:
            raise VerificationError(f"{path} is not a linear transform that rayvec wrote; build the index again")
    transform = faiss.read_VectorTransform(str(path))
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    return Projection(matrix, faiss.vector_to_array(transform.b), normalize)


def _faiss() -> Any:
    """FAISS without its own annotations, which know a part of it only."""
    import faiss

    return faiss
