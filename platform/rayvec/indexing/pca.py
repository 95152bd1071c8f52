"""Fewer dimensions: PCA by one streaming pass, whitened or not, or the first alone; one `Projection` for all.

Moments are summed over batches and tasks, then solved once. Products are float32, sums of blocks float64: of 100,000
vectors of 512 dimensions, variances differ from those of float64 throughout by 1e-8 of the largest.

Knows numpy, BLAS and the file format of FAISS transforms. Knows no Ray and no parts: it is given batches.

Shapes: N vectors of a batch, D dimensions in, R dimensions kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rayvec.errors import UserError, VerificationError
from rayvec.indexing.vectors import Vectors, unit

Matrix = npt.NDArray[np.float64]
#: How dimensions become fewer: onto the principal axes, or by keeping the first (Matryoshka encoders).
Method = Literal["pca", "truncate"]

#: The first four bytes of the one kind of transform that we write.
LINEAR_TRANSFORM = b"LTra"
#: Rows whose products are summed in float32 before they join the float64 sum.
BLOCK_ROWS = 8192
#: Whitening adds this share of the largest variance to each: no direction is stretched more than a thousand times as
#: much as the first, so one that holds rounding errors alone stays small.
EPSILON = 1e-6
#: Dimensions, or vectors, of which all axes are as quickly found as two.
FEW = 64


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and scatter [D, D] (sum of outer products about the mean) of the vectors seen; all float64."""

    count: int
    mean: Matrix
    scatter: Matrix

    def __add__(self, other: Moments) -> Moments:
        """The moments of both together (Chan, Golub and LeVeque 1979, equation 2.1): no cancellation of large sums."""
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(step * (self.count * other.count / count), step)
        return Moments(count, self.mean + step * (other.count / count), scatter)


def moments(batches: Iterable[Vectors]) -> Moments:
    """The moments of a stream of batches; at least one must hold a vector."""
    sums: _Sums | None = None
    for batch in batches:
        for start in range(0, len(batch), BLOCK_ROWS):
            block = batch[start : start + BLOCK_ROWS]
            sums = sums or _Sums(block.mean(axis=0))
            sums.add(block)
    assert sums is not None
    return sums.moments()


class _Sums:
    """Sums about a fixed point near the mean [D], so that float32 products are of small numbers and nothing cancels."""

    def __init__(self, about_D: Vectors) -> None:
        dim = len(about_D)
        self._about = about_D
        self._count, self._waiting = 0, 0
        self._total = np.zeros(dim)
        # Upper triangles in BLAS's own order: `ssyrk` adds to the first in place, at half the work of a full product.
        self._block = np.zeros((dim, dim), np.float32, order="F")
        self._scatter = np.zeros((dim, dim), order="F")

    def add(self, block_ND: Vectors) -> None:
        from scipy.linalg.blas import ssyrk

        centred_ND = block_ND - self._about
        self._total += np.ones(len(centred_ND), np.float32) @ centred_ND
        self._block = ssyrk(1.0, centred_ND.T, beta=1.0, c=self._block, overwrite_c=True)
        self._count += len(centred_ND)
        self._waiting += len(centred_ND)
        if self._waiting >= BLOCK_ROWS:
            self._carry()

    def _carry(self) -> None:
        self._scatter += self._block
        self._block[:] = 0
        self._waiting = 0

    def moments(self) -> Moments:
        self._carry()
        scatter = self._scatter + self._scatter.T
        scatter[np.diag_indices_from(scatter)] /= 2
        step = self._total / self._count
        scatter -= np.outer(step * self._count, step)
        return Moments(self._count, self._about.astype(np.float64) + step, scatter)


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

    @cached_property
    def cuts(self) -> bool:
        """Whether it only keeps the first dimensions: the file is a matrix like any other, applying it need not be."""
        return not self.bias.any() and np.array_equal(self.matrix, np.eye(*self.matrix.shape, dtype=np.float32))

    def __call__(self, vectors_ND: Vectors) -> Vectors:
        """Project float32 [N, D] to [N, R]."""
        projected = vectors_ND[:, : self.dim_out] if self.cuts else vectors_ND @ self.matrix.T + self.bias
        return unit(projected) if self.normalize else projected


def truncation(dim: int, dimensions: int, *, normalize: bool) -> Projection:
    """Keep the first `dimensions` (Matryoshka Representation Learning, section 3). Raises UserError as `fit` does.

    >>> truncation(4, 2, normalize=True)(np.array([[3, 4, 9, 9]], np.float32)).round(1).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    _check_dimensions(dimensions, dim)
    return Projection(np.eye(dimensions, dim, dtype=np.float32), np.zeros(dimensions, np.float32), normalize)


@dataclass(frozen=True)
class Axes:
    """The principal axes of `count` vectors: mean [D], mean squares [D] along them, large to small, directions [D, D].

    They are those of the second moment, about zero and not about the mean: search is by inner products, and these keep
    them best (Eckart and Young 1936). Taking the mean out changes who is near whom before any dimension is dropped.
    """

    count: int
    mean: Matrix
    squares: Matrix
    directions: Matrix

    @property
    def explained(self) -> Matrix:
        """The share of the variance (about the mean) that the first 1…D axes hold; 0 where nothing varies."""
        variances = np.maximum(self.squares - (self.directions @ self.mean) ** 2, 0.0)
        total = variances.sum()
        if total <= EPSILON * self.squares.sum():
            return np.zeros(len(variances))
        return np.minimum(np.cumsum(variances) / total, 1.0)

    def projection(self, dimensions: int, *, normalize: bool, whiten: bool = False) -> Projection:
        """Project on the first `dimensions` axes; whitened, all count alike. Raises UserError as `fit` does."""
        _check_dimensions(dimensions, len(self.mean))
        if dimensions > self.count:
            raise UserError(f"dimensions = {dimensions}: there are only {self.count} vectors; choose at most as many")
        matrix, bias = self.directions[:dimensions], np.zeros(dimensions)
        if whiten:
            whitening, bias = self.whitening(dimensions)
            matrix = whitening @ matrix
        shares = tuple(self.explained[:dimensions].tolist())
        return Projection(matrix.astype(np.float32), bias.astype(np.float32), normalize, shares)

    def whitening(self, dimensions: int) -> tuple[Matrix, Matrix]:
        """Matrix [R, R] and bias [R] that bring coordinates along the first axes to mean 0, and each to variance 1."""
        mean_R = self.directions[:dimensions] @ self.mean
        variances, turn = np.linalg.eigh(np.diag(self.squares[:dimensions]) - np.outer(mean_R, mean_R))
        variances, turn = np.maximum(variances[::-1], 0.0), turn[:, ::-1]
        epsilon = EPSILON * variances[0]
        scales = 1 / np.sqrt(variances + epsilon) if epsilon > 0 else np.ones(dimensions)
        matrix = _signed(turn.T) * scales[:, None]
        return matrix, -matrix @ mean_R


def axes(seen: Moments) -> Axes:
    """The principal axes of the vectors seen."""
    squares, directions = np.linalg.eigh(seen.scatter / seen.count + np.outer(seen.mean, seen.mean))
    # What is left of a zero after rounding may be negative.
    return Axes(seen.count, seen.mean, np.maximum(squares[::-1], 0.0), _signed(directions[:, ::-1].T))


def fit(seen: Moments, dimensions: int, *, normalize: bool, whiten: bool = False) -> Projection:
    """Project on the first `dimensions` principal axes; `explained` is cumulative: its last is what is kept.

    Raises UserError when more dimensions are asked for than the vectors have, or than there are vectors.
    """
    return axes(seen).projection(dimensions, normalize=normalize, whiten=whiten)


def plane(vectors_ND: Vectors) -> Projection:
    """Onto the two axes along which the vectors vary most about their mean, which goes to 0: to look at, not to search.

    Lanczos' method (Lehoucq, Sorensen and Yang 1998), where dimensions are many: without the moments, which take longer
    to sum than two axes to find. A coordinate along which nothing varies is 0.
    """
    from scipy.sparse.linalg import svds

    mean_D = vectors_ND.mean(axis=0)
    centred_ND = vectors_ND - mean_D
    total = float(np.vdot(centred_ND, centred_ND))
    matrix, shares = np.zeros((2, len(mean_D))), (0.0, 0.0)
    if total > EPSILON * float(np.vdot(vectors_ND, vectors_ND)):
        if min(centred_ND.shape) <= FEW:
            _, lengths, directions = np.linalg.svd(centred_ND, full_matrices=False)
        else:
            start = np.random.default_rng(0).normal(size=min(centred_ND.shape)).astype(np.float32)
            _, lengths, directions = svds(centred_ND, k=2, v0=start, tol=1e-4, return_singular_vectors="vh")
        order = np.argsort(-lengths)[:2]
        matrix[: len(order)] = _signed(directions[order])
        first, both = np.cumsum(lengths[order].astype(np.float64) ** 2)[[0, -1]] / total
        shares = (min(float(first), 1.0), min(float(both), 1.0))
    return Projection(matrix.astype(np.float32), (-matrix @ mean_D).astype(np.float32), False, shares)


def _check_dimensions(dimensions: int, dim: int) -> None:
    if not 1 <= dimensions <= dim:
        raise UserError(f"dimensions = {dimensions}: the vectors have {dim}; choose 1 to {dim}")


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
