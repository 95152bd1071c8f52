"""rayvec: turn a decoder-only LLM into a text encoder, embed corpora with it, index them, and serve the search.

Importing this package loads none of torch, ray, faiss or deepspeed; names load where they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayvec.modeling.encoder import TextEncoder
    from rayvec.modeling.hash_encoder import HashEncoder
    from rayvec.serving.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "HashEncoder", "TextEncoder", "__version__"]

_WHERE = {
    "AsyncClient": "rayvec.serving.client",
    "Client": "rayvec.serving.client",
    "HashEncoder": "rayvec.modeling.hash_encoder",
    "TextEncoder": "rayvec.modeling.encoder",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rayvec' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_WHERE[name]), name)
