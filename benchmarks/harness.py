"""What the benchmarks share: alternating timing, peak memory, the machine in words, JSON. Knows no model."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD = -3  # malloc.h


@dataclass
class Timing:
    """Seconds of one variant, a call each: of the clock, and of this process's processors."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, call: Callable[[], object]) -> None:
        """Time one call."""
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    @property
    def medians(self) -> dict[str, float]:
        """{"wall": seconds, "cpu": seconds}."""
        return {"wall": statistics.median(self.wall), "cpu": statistics.median(self.cpu)}


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Each call once to warm up, then all in turn, `rounds` times; every second round backwards."""
    for call in calls.values():
        call()
    timings = {name: Timing() for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            timings[name].add(calls[name])
    return timings


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> dict[str, float]:
    """How many times as long `slow` takes as `fast`: medians of wall and CPU time."""
    return {kind: timings[slow].medians[kind] / timings[fast].medians[kind] for kind in ("wall", "cpu")}


def peak_above(call: Callable[[], object]) -> int:
    """Bytes of resident memory at the peak of a call, above the level before it (Linux: VmHWM, reset before).

    Meanwhile glibc maps each block of 64 KiB and more by itself, so that what is freed is gone: its own pools are no
    part of what a step needs.
    """
    import ctypes

    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 64 << 10)
    libc.malloc_trim(0)
    CLEAR.write_text("5")
    before = _kilobytes("VmRSS")
    try:
        call()
        return (_kilobytes("VmHWM") - before) * 1024
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # what glibc's own threshold grows to where big blocks come and go


def peak_of_tensors(call: Callable[[], object]) -> int:
    """Bytes of the tensors that a call makes and that are alive at one time, at most; of one thread, on a CPU.

    Resident memory also holds what the allocator keeps for later, which hides differences of this size.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        live = peak = 0

        def __init__(self) -> None:
            super().__init__()
            self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            made = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(made):
                if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                    self.seen.add(storage)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self.freed, storage.nbytes())
            return made

        def freed(self, size: int) -> None:
            self.live -= size

    gc.collect()
    with Count() as counted:
        call()
    return counted.peak


def _kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {name}"
    return int(found[1])


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def in_words(there: Mapping[str, Any]) -> str:
    """The machine in one line."""
    place = there["gpu"] or f"{there['cores']} cores, {there['vectors']}, {there['threads']} thread(s)"
    return f"{place}; load {there['load']} at the start; torch {there['torch']}, transformers {there['transformers']}"


def write_json(path: Path | None, values: Mapping[str, Any]) -> None:
    """Write the figures to a file, if one was asked for."""
    if path is not None:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
