"""Doctor: what of this machine, its Ray and its storage would stop a run, endanger it or slow it, each with its cure.

Looks and probes, and changes nothing: a file that it writes into a storage is removed again. Knows machines and
versions. Knows no model, no index.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import resource
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

from rayvec import storage, uris
from rayvec.errors import RayvecError
from rayvec.serving.config import is_loopback

Level = Literal["error", "warning", "note"]

#: Switches that make Ray unpickle what it finds in files; never set where we run.
UNSAFE_SWITCHES = (
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
)
#: Where Ray tells a submitted job its runtime environment.
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Names of variables that hold a secret; not those that name a file of them, nor Ray's own. MAX_TOKENS holds none.
SECRET = re.compile(
    r"(?!RAY_|GOOGLE_APPLICATION_CREDENTIALS$)(?!.*_(FILE|PATH|DIR)$)"
    r".*(TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL)"
)
#: Set to 1, jobs join a Ray that runs code for whoever reaches it from another machine.
ALLOW_OPEN = "RAYVEC_ALLOW_OPEN_RAY"
#: Before it, Parquet files and web datasets could run code (CVE-2026-41486, CVE-2026-57516).
RAY_FLOOR = Version("2.56")
#: Ray makes no objects on a disk that is fuller.
DISK_FULL = 0.95
LEAST_DISK = 10e9
LEAST_SHARED = 2e9
LEAST_FILES = 4096
#: Object stores refuse signatures that are a quarter of an hour off; leases and logs go wrong before.
CLOCK_S = 60.0
#: Other distributions of the same module, one of which does in its place.
_INSTEAD = {"faiss-cpu": ("faiss-gpu",)}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: an error stops or endangers a run, a warning slows it or may, a note informs."""

    level: Level
    what: str
    cure: str = ""
    node: str = ""


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


def quick() -> list[Finding]:
    """The errors that can be seen in a millisecond: what every job looks at before it starts Ray."""
    return [*ray_version(), *switches(), *secrets()]


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


def ray_version() -> Iterator[Finding]:
    """Errors only: Ray is missing, or old enough to be unsafe."""
    try:
        found = Version(importlib.metadata.version("ray"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding("error", "Ray is not installed", "pip install -c constraints.txt .")
        return
    if found < RAY_FLOOR:
        yield Finding(
            "error", f"Ray {found} runs code that lies in data files", "install the pinned one: -c constraints.txt"
        )


def switches() -> Iterator[Finding]:
    """Environment variables that must not be set."""
    for name in UNSAFE_SWITCHES:
        if os.environ.get(name, "0") not in ("", "0", "false", "False"):
            yield Finding("error", f"{name} lets Ray run code that lies in data files", "unset it")
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        yield Finding(
            "warning", "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports runs code here", "set it to token"
        )


def secrets() -> Iterator[Finding]:
    """Secrets in the runtime environment of the submitted job that this is; told by name, never by value."""
    job = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    for name in sorted(name for name, value in given.items() if value and SECRET.match(name.upper())):
        yield Finding(
            "error",
            f"{name} is in the job's runtime environment, which Ray shows in its API and writes to its logs",
            "replace that secret, and give the new one as a file that is mounted on the nodes, or in their environment",
        )


def joined(dashboard: str | None) -> Iterator[Finding]:
    """Whether the Ray that is joined runs code for whoever reaches it, and whether another machine can. Ray must run.

    dashboard: its host and port; without one, or where it says neither, what this process was told counts.
    """
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    status, _ = (_status(f"http://{dashboard}/api/version") if dashboard else None) or (0, None)
    if status in (401, 403) or (status != 200 and is_token_auth_enabled()):
        return
    # Ray listens on every interface of a node, whatever its dashboard does.
    nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    reached = sorted(node for node in nodes if not is_loopback(node))
    if not reached:
        yield Finding("warning", "this Ray runs code for whoever asks on this machine", "start it with a token")
        return
    more = f" and {len(reached) - 1} more" if len(reached) > 1 else ""
    yield Finding(
        "warning" if os.environ.get(ALLOW_OPEN) == "1" else "error",
        f"the Ray at {reached[0]}{more} runs code for whoever reaches its ports, and asks for no token",
        "stop it; ray get-auth-token --generate; start it with RAY_AUTH_MODE=token; or, where nobody else reaches that "
        f"network, set {ALLOW_OPEN}=1",
    )


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


def authentication(address: str = "") -> Iterator[Finding]:
    """Whether a Ray that runs here, or at the address, takes jobs from whoever asks, and from where it can be asked."""
    asked = {address} if address else {f"http://{_asked(host)}:{port}" for host, port in _dashboards()}
    for url in sorted(asked):
        answer = _status(f"{url}/api/version")
        if answer is None:
            if address:
                yield Finding("error", f"no Ray dashboard answers at {url}", "start Ray, or give another --address")
            continue
        status, date = answer
        reach = (
            "" if is_loopback(url.partition("//")[2].rpartition(":")[0].strip("[]")) else ", from other machines too"
        )
        if status == 401:
            yield Finding("note", f"Ray's job API at {url} asks for a token")
        elif status == 200:
            yield Finding(
                "error" if reach else "warning",
                f"Ray's job API at {url} runs code for whoever asks{reach}",
                "stop Ray; ray get-auth-token --generate; start it with RAY_AUTH_MODE=token",
            )
        yield from _clock(url, date)
    exposed = sorted(f"{host}:{port}" for host, port in _dashboards() if not is_loopback(host))
    if exposed:
        yield Finding(
            "warning",
            f"Ray's dashboard listens at {', '.join(exposed)}",
            "start Ray with --dashboard-host=127.0.0.1, or keep its port from others by a firewall or NetworkPolicy",
        )


def token_file() -> Iterator[Finding]:
    """Whether others of this machine may read Ray's token."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.is_file() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Finding("warning", f"{path} can be read by other users of this machine", f"chmod 600 {path}")


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


def _clock(url: str, date: str | None) -> Iterator[Finding]:
    if date is None:
        return
    off = parsedate_to_datetime(date).timestamp() - time.time()
    if abs(off) > CLOCK_S:
        yield Finding("warning", f"the clock at {url} is {off:+.0f} s off this machine's", "let both follow NTP")


def _status(url: str) -> tuple[int, str | None] | None:
    """The status without any token, and the Date header; None when nobody answers."""
    import httpx

    try:
        answer = httpx.get(url, timeout=3, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol):
        return None
    return answer.status_code, answer.headers.get("date")


def _dashboards() -> set[tuple[str, int]]:
    """Where the dashboards of Rays on this machine listen, as far as their processes can be seen."""
    import psutil

    found: set[tuple[str, int]] = set()
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if not any(part.endswith("dashboard/dashboard.py") for part in line):
            continue
        given = {part.partition("=")[0]: part.partition("=")[2] for part in line}
        if given.get("--port", "").isdigit():
            found.add((given.get("--host", "127.0.0.1"), int(given["--port"])))
    return found


def _asked(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def rendered(findings: Sequence[Finding]) -> str:
    """One line a finding, errors first, each with its cure below."""
    order: dict[Level, int] = {"error": 0, "warning": 1, "note": 2}
    lines: list[str] = []
    for finding in sorted(findings, key=lambda finding: order[finding.level]):
        where = f"{finding.node}: " if finding.node else ""
        lines.append(f"{finding.level:<8} {where}{finding.what}")
        if finding.cure:
            lines.append(f"{'':<8} → {finding.cure}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Plain values: whether all is well, and the findings."""
    return {"ok": not any(f.level == "error" for f in findings), "findings": [asdict(f) for f in findings]}
