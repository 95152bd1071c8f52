"""One index and one client a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import Client, write_service_index


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_service_index(tmp_path_factory.mktemp("serving") / "index")


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[Client]:
    client = Client(index)
    yield client
    client.close()
