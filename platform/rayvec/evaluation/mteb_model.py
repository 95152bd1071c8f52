"""An encoder of ours as one of mteb's: it chooses the instruction of each task and side, and reads mteb's batches.

Knows encoders and mteb's protocol. Knows no task's data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rayvec.config import Config
from rayvec.evaluation.mteb_library import mteb

if TYPE_CHECKING:
    from rayvec.fingerprint import Fingerprint

Vectors = npt.NDArray[np.float32]
#: Texts and the instruction before them, to vectors float32 [n, D].
Encode = Callable[[Sequence[str], str | None], Vectors]


class MtebPrompts(Config):
    """Which instructions stand before which texts."""

    #: queries: before queries, and before all texts of tasks whose sides are alike; both: before documents too.
    sides: Literal["none", "queries", "both"] = "queries"
    #: By a task's name or type, in place of the task's own.
    instructions: Mapping[str, str] = {}

    def instruction(self, task: Any, side: str | None) -> str | None:
        """What stands before the texts of a side ("query", "document", or None where both are alike), or nothing.

        task: mteb's metadata, whose own prompt is the default: those of E5-mistral, which LLM2Vec took over, mostly.
        """
        if self.sides == "none" or (side == "document" and self.sides == "queries"):
            return None
        for name in (task.name, task.type):
            if name in self.instructions:
                return self.instructions[name] or None
        own = task.prompt
        if isinstance(own, dict):
            own = own.get(side or "query")
        if own is None and side == "document":
            return None
        return own or mteb("abstasks.abstask").get_abstask_prompt(task.name) or None


class MtebModel:
    """What `mteb.evaluate` takes: mteb's EncoderProtocol over an encode function.

    Vectors are compared by cosine, whatever their length.
    """

    def __init__(
        self, encode: Encode, *, name: str, fingerprint: Fingerprint, prompts: MtebPrompts | None = None
    ) -> None:
        self._encode = encode
        self.prompts = prompts or MtebPrompts()
        #: How often texts of which task were read after which instruction; for reports.
        self.instructions: dict[str, set[str | None]] = {}
        meta = mteb("models").ModelMeta
        self.mteb_model_meta = meta.create_empty(
            {
                "name": f"rayvec/{_plain(name)}",
                "revision": fingerprint.short,
                "max_tokens": fingerprint.max_length,
                "embed_dim": fingerprint.dim,
                "similarity_fn_name": "cosine",
                "use_instructions": self.prompts.sides != "none",
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> Vectors:
        """Vectors of the texts of a data loader, in its order; see mteb's EncoderProtocol."""
        del hf_split, hf_subset
        side = None if prompt_type is None else str(prompt_type.value)
        instruction = self.prompts.instruction(task_metadata, side)
        self.instructions.setdefault(task_metadata.name, set()).add(instruction)
        texts = [text for batch in inputs for text in batch["text"]]
        return self._encode(texts, instruction)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all with all."""
        return mteb("similarity_functions").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of each with its counterpart."""
        return mteb("similarity_functions").pairwise_cos_sim(embeddings1, embeddings2)


def _plain(name: str) -> str:
    """A name that mteb takes: one part, no spaces."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip("-") or "encoder"
