"""Doctor: what of this machine, its Ray and its storage would stop a run, endanger it or slow it, each with its cure.

Looks and probes, and changes nothing: a file that it writes into a storage is removed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipelines._finding import Finding
from pipelines._machine_checks import disks, gpus, open_files, shared_memory, storage_works, versions
from pipelines._ray_checks import authentication, ray_version, secrets, switches, token_file


def examine(places: Sequence[str] = (), address: str = "") -> list[Finding]:
    """All that can be seen from this machine. places: outputs that a run would have; address: of Ray's dashboard."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        ray_version,
        switches,
        secrets,
        versions,
        lambda: authentication(address),
        token_file,
        *(lambda place=place: storage_works(place) for place in places),
        lambda: disks(places),
        shared_memory,
        open_files,
        gpus,
    )
    return [finding for check in checks for finding in check()]


def on_every_node(places: Sequence[str]) -> list[Finding]:
    """What each node of the Ray cluster that is joined says of itself. Ray must be running."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    remote: Any = ray.remote(examine)
    asked = {
        address: remote.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(id_, soft=False)).remote(
            list(places)
        )
        for id_, address in nodes.items()
    }
    return [
        Finding(**{**asdict(finding), "node": address})
        for address, found in asked.items()
        for finding in ray.get(found)
    ]
