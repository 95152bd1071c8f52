"""What of a machine and its storage would stop a run or slow it: libraries, disks, memory, files, GPUs.

A file that is written into a storage is removed again. Knows no model, no index.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import resource
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from pipelines._finding import CLOCK_S, Finding
from rayvec import storage, uris
from rayvec.errors import RayvecError

#: Ray makes no objects on a disk that is fuller.
DISK_FULL = 0.95
LEAST_DISK = 10e9
LEAST_SHARED = 2e9
LEAST_FILES = 4096
#: Other distributions of the same module, one of which does in its place.
_INSTEAD = {"faiss-cpu": ("faiss-gpu",)}


def versions() -> Iterator[Finding]:
    """Libraries outside the bounds that rayvec was tested in; nothing in a checkout that is not installed."""
    try:
        wanted = importlib.metadata.requires("rayvec") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("note", "rayvec runs from a checkout and is not installed here", "pip install . for workers")
        return
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        names = [requirement.name, *_INSTEAD.get(requirement.name, ())]
        name, found = next(((name, version) for name in names if (version := _installed(name))), (requirement.name, ""))
        cure = f"pip install -c constraints.txt '{str(requirement).replace(requirement.name, name, 1)}'"
        if not found:
            yield Finding("error", f"{name} is not installed", cure)
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Finding("error", f"{name} {found} is outside {requirement.specifier}", cure)


def _installed(name: str) -> str:
    """The version of a distribution; empty where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def storage_works(place: str) -> Iterator[Finding]:
    """Write, read and remove a small file there; compare its time with this machine's."""
    probe = uris.join(uris.absolute(place), f".rayvec-doctor-{uuid.uuid4().hex[:8]}")
    local = uris.local_path(place).absolute() if uris.is_local(place) else None
    missing = [] if local is None else [folder for folder in (local, *local.parents) if not folder.exists()]
    begin = time.monotonic()
    try:
        storage.write_bytes(probe, b"probe")
        seconds = time.monotonic() - begin
        good, written = storage.read_bytes(probe) == b"probe", storage.info(probe).mtime
        storage.delete(probe)
    except (RayvecError, OSError) as error:
        yield Finding("error", f"{place} cannot be written: {error}", "give a place that this machine may write to")
        return
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
    if not good:
        yield Finding("error", f"{place} gives back other bytes than were written", "use another storage")
    yield Finding("note", f"{place} can be written ({1000 * seconds:.0f} ms for a small file)")
    if written is not None and abs(written.timestamp() - time.time()) > CLOCK_S:
        off = written.timestamp() - time.time()
        yield Finding("warning", f"the clock of {place} is {off:+.0f} s off this machine's", "let both follow NTP")


def disks(places: Sequence[str] = ()) -> Iterator[Finding]:
    """Room where a run writes, and where Ray keeps its session and what it spills."""
    folders = [uris.local_path(place) for place in places if uris.is_local(place)]
    devices: dict[int, Path] = {}
    for folder in [Path(tempfile.gettempdir()), *folders]:
        there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
        devices.setdefault(there.stat().st_dev, there)
    for there in devices.values():
        usage = shutil.disk_usage(there)
        told = f"the disk of {there} has {usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f}"
        if 1 - usage.free / usage.total > DISK_FULL:
            yield Finding("error", f"{told}: Ray makes no objects on a disk that is over 95 % full", "free some")
        elif usage.free < LEAST_DISK:
            yield Finding("warning", told, "free some, or see `python -m jobs.plan` for what a run needs")
        else:
            yield Finding("note", told)


def shared_memory(path: str = "/dev/shm") -> Iterator[Finding]:  # noqa: S108
    """Ray's object store lies in shared memory; without enough of it, on a disk, and slow."""
    if not Path(path).is_dir():
        return
    free = shutil.disk_usage(path).free
    if free < LEAST_SHARED:
        yield Finding(
            "warning",
            f"{path} has {free / 1e9:.1f} GB free, and Ray's object store goes to a disk",
            "docker run --shm-size=8g; on Kubernetes an emptyDir of medium Memory",
        )
    else:
        yield Finding("note", f"{path} has {free / 1e9:.1f} GB free")


def open_files() -> Iterator[Finding]:
    """How many files a process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        yield Finding("warning", f"a process may open {soft} files", "ulimit -n 65536 before Ray starts")


def gpus() -> Iterator[Finding]:
    """GPUs, and which attention kernels there are for them. Loads torch."""
    import torch

    driver = shutil.which("nvidia-smi") is not None
    if not torch.cuda.is_available():
        if driver:
            yield Finding(
                "error",
                f"there is an NVIDIA driver, and torch {torch.__version__} finds no GPU",
                "install a CUDA build of torch for this driver, and let the container have the GPU",
            )
        else:
            yield Finding("note", "no GPU: encoders compute on the CPU, texts of each length together")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        told = f"GPU {number}: {properties.name}, {properties.total_memory / 1e9:.0f} GB"
        if properties.major < 8:
            yield Finding("warning", f"{told}: no bfloat16 and no flash attention", "use one of Ampere or later")
        else:
            yield Finding("note", told)
    yield from _kernels()


def _kernels() -> Iterator[Finding]:
    from importlib.util import find_spec

    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        yield Finding("warning", "torch has no varlen attention: texts are padded", "install torch 2.11 or later")
    else:
        yield Finding("note", "packed texts go to torch's own varlen attention")
    if find_spec("flash_attn") is None:
        yield Finding("note", "flash-attn is not installed; torch's own kernels are used")
    if find_spec("faiss") is not None:
        from rayvec.indexing import gpu

        if not gpu.is_supported():
            yield Finding("note", "faiss has no GPU part: indices are built on CPUs")
