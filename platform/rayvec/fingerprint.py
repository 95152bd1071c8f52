"""The fingerprint of an encoder, by which vectors, indices and services know whose they are."""

from __future__ import annotations

from rayvec.config import Config
from rayvec.errors import MismatchError


class Fingerprint(Config):
    """What an encoder is: everything that moves its vectors. Two encoders are the same when all fields are equal."""

    weights: str
    tokenizer: str
    attention: str
    pooling: str
    prompts: str
    max_length: int
    normalize: bool
    dim: int

    @property
    def short(self) -> str:
        """Sixteen hex digits that stand for the whole."""
        return self.digest()

    def require(self, other: Fingerprint, *, mine: str, theirs: str) -> None:
        """Raise MismatchError naming every differing field, unless `other` is the same encoder."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        differing = [f"{name} ({mine}: {a}, {theirs}: {b})" for name, a, b in pairs if a != b]
        if differing:
            raise MismatchError(
                f"{mine} and {theirs} are not of the same encoder: they differ in {'; '.join(differing)}. "
                "Use the encoder that made them, or make them again with this one"
            )
