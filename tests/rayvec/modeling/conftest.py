"""Small models that the tests of this folder share; one thread, since the machine is shared too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayvec.modeling.encoder import TextEncoder
from tests.models import tiny_llama


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama as a plain transformers folder."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def encoder(llama: Path) -> TextEncoder:
    """That Llama as an encoder with usual settings."""
    return TextEncoder.load(llama)
