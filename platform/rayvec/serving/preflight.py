"""Everything about a service that can be checked without Ray, so that a mistake costs a second and no cluster.

Reads manifests, compares fingerprints, tries the port. Loads no weights and no vectors.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath

from rayvec import uris
from rayvec.errors import UserError
from rayvec.fingerprint import Fingerprint
from rayvec.serving import proxy
from rayvec.serving.config import ServeConfig
from rayvec.serving.observer import open_log
from rayvec.serving.rerank import load_reranker
from rayvec.serving.security import Keys
from rayvec.serving.tracing import Tracer
from rayvec.serving.writer import settings_of


@dataclass(frozen=True)
class Plan:
    """What will be served: one index version and the encoder that made it."""

    version: str
    count: int
    encoder: str
    fingerprint: Fingerprint
    model: str
    #: What the index is called.
    name: str
    #: What is read before a "query", and before a "document" where the index's were embedded so.
    instructions: dict[str, str]


def plan(config: ServeConfig) -> Plan:
    """Read the manifests and compare the fingerprints; loads no weights and no vectors.

    Raises UserError for a missing index, an unknown version or a bad keys file, and MismatchError for an encoder that
    did not make this index, naming the field that differs.
    """
    from rayvec.indexing import places
    from rayvec.modeling.encoder import load_tokenizer_only

    if not config.index:
        raise UserError("index is required; give the folder of an index with --set index=DIR")
    proxy.check(config)
    if config.keys:
        Keys.load(config.keys)
    if config.traces:
        Tracer(config.traces)
    if config.mcp and find_spec("mcp") is None:
        raise UserError("mcp=true needs a library that is not installed; pip install 'rayvec[mcp]', or leave mcp out")
    if config.access_log:
        open_log(config.access_log)
    if config.reranker:
        load_reranker(config.reranker)
    manifest = places.read_manifest(config.index, config.index_version)
    if config.writable:
        _check_writable(config.index)
    if config.replicas.parts > len(manifest["shards"]):
        parts, files = config.replicas.parts, len(manifest["shards"])
        raise UserError(
            f"replicas.parts={parts}, and the vectors of {config.index} lie in {files} files; build it with "
            f"--set shards={parts}, or serve fewer parts"
        )
    reference = absolute(config.encoder or str(manifest["encoder"]))
    fingerprint = Fingerprint.parse(manifest["fingerprint"])
    tokenizer = load_tokenizer_only(reference)
    fingerprint.require(tokenizer.fingerprint, mine="index", theirs="encoder")
    embedded = manifest.get("embedded") or {}  # embeddings made elsewhere may not say how
    own = {"query": tokenizer.instructions.get("query"), "document": embedded.get("instruction")}
    instructions = {kind: text for kind, text in own.items() if text}
    model = config.model_name or PurePosixPath(reference.rstrip("/")).name
    name = uris.name_of(uris.absolute(config.index))
    return Plan(str(manifest["version"]), int(manifest["count"]), reference, fingerprint, model, name, instructions)


def _check_writable(index: str) -> None:
    """Raise UserError when the index's folder may not be written, or does not say how its documents were embedded."""
    from rayvec.indexing import versions

    if not uris.is_local(index):
        raise UserError(
            f"writable=true, and {index} is a bucket, which is changed by jobs alone (python -m jobs.index --recipe "
            "….update --set index=…, which the service follows); leave out writable, or serve a folder"
        )
    folder = versions.local_folder(index)
    if not all(os.access(place, os.W_OK) for place in (folder, folder / versions.VERSIONS)):
        raise UserError(f"writable=true, and {folder} may not be written; see its permissions, or leave out writable")
    settings_of(index)


def absolute(reference: str) -> str:
    """A folder's whole path, since replicas may run in another folder; any other reference as it is."""
    path = uris.local_path(reference)
    return str(path.absolute()) if uris.is_local(reference) and path.is_dir() else reference


def with_whole_paths(config: ServeConfig) -> ServeConfig:
    """The same with whole paths of the places that replicas read and write."""
    files = {name: uris.absolute(path) for name in ("keys", "access_log") if (path := getattr(config, name))}
    return config.replace(index=absolute(config.index), **files)


def check_port(config: ServeConfig) -> None:
    """Raise UserError when the address cannot be listened on."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {config.port} on {config.host} is in use; choose another with --set port=…"
            else:
                message = f"cannot listen on {config.host}:{config.port} ({error.strerror}); see host and port"
            raise UserError(message) from None
