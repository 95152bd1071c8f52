"""Fixtures for all tests: one small Ray cluster a module."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pipelines._ray import ALONE, ENVIRONMENT  # loads numpy, which reads the number of threads

for name, value in {**ENVIRONMENT, **ALONE}.items():
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start a cluster go first: where files run side by side, none of them is then left for the end."""
    first = {item.path for item in items if item.get_closest_marker("cluster") or "ray_cluster" in item.fixturenames}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray of this module's own, with its own folder; ended by its own driver, never by `ray stop`."""
    import ray

    # Unix socket paths may not pass 107 bytes, so the folder is short and lies in /tmp.
    with tempfile.TemporaryDirectory(prefix="rv", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=150_000_000,
            log_to_driver=False,
            _temp_dir=folder,
            runtime_env={
                "env_vars": {"PYTHONPATH": os.pathsep.join(["platform", ".", os.environ.get("PYTHONPATH", "")])}
            },
        )
        yield
        ray.shutdown()
