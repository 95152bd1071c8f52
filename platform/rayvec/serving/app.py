"""Serve at the edge: plain classes become deployments here, and nowhere else.

`plan` checks everything that can be checked without Ray, so that a mistake costs a second and no cluster; `build_app`
gives the application; `running` deploys it and drains it at the end. `deploy` is what `infra/serve.yaml` names.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from rayvec import storage
from rayvec.errors import RayvecError, UserError
from rayvec.indexing.part import Part
from rayvec.serving.api import make_api
from rayvec.serving.config import EVERYWHERE, Limits, ServeConfig, is_loopback
from rayvec.serving.gateway import Gateway
from rayvec.serving.observer import open_log
from rayvec.serving.parts import VectorPart
from rayvec.serving.query_encoder import QueryEncoder
from rayvec.serving.rerank import load_reranker
from rayvec.serving.retriever import Retriever
from rayvec.serving.security import Keys
from rayvec.serving.tracing import Tracer
from rayvec.serving.writer import Writer, settings_of
from rayvec.storage import Fingerprint

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle
    from starlette.types import ASGIApp

APP_NAME = "rayvec"
DRAIN_SECONDS = 20.0
READY_SECONDS = 120.0
#: How often a retriever looks which version is live; where documents are written over HTTP, they are found soon.
POLL_SECONDS = 2.0
WRITABLE_POLL_SECONDS = 0.25


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


def plan(config: ServeConfig) -> Plan:
    """Read the manifests and compare the fingerprints; loads no weights and no vectors.

    Raises UserError for a missing index, an unknown version or a bad keys file, and MismatchError for an encoder that
    did not make this index, naming the field that differs.
    """
    from rayvec.indexing import versions
    from rayvec.modeling.encoder import load_tokenizer_only

    if not config.index:
        raise UserError("index is required; give the folder of an index with --set index=DIR")
    choose_proxy(config)
    if config.keys:
        Keys.load(config.keys)
    if config.traces:
        Tracer(config.traces)
    if config.access_log:
        open_log(config.access_log)
    if config.reranker:
        load_reranker(config.reranker)
    folder = versions.version_folder(config.index, config.index_version)
    manifest = versions.read_manifest(folder)
    if config.writable:
        _check_writable(config.index)
    if config.replicas.parts > len(manifest["shards"]):
        parts, files = config.replicas.parts, len(manifest["shards"])
        raise UserError(
            f"replicas.parts={parts}, and the vectors of {config.index} lie in {files} files; build it with "
            f"--set shards={parts}, or serve fewer parts"
        )
    reference = _absolute(config.encoder or str(manifest["encoder"]))
    fingerprint = Fingerprint.parse(manifest["fingerprint"])
    fingerprint.require(load_tokenizer_only(reference).fingerprint, mine="index", theirs="encoder")
    model = config.model_name or PurePosixPath(reference.rstrip("/")).name
    name = versions.local_folder(config.index).name
    return Plan(str(manifest["version"]), int(manifest["count"]), reference, fingerprint, model, name)


def _check_writable(index: str) -> None:
    """Raise UserError when the index's folder may not be written, or does not say how its documents were embedded."""
    from rayvec.indexing import versions

    folder = versions.local_folder(index)
    if not all(os.access(place, os.W_OK) for place in (folder, folder / versions.VERSIONS)):
        raise UserError(f"writable=true, and {folder} may not be written; see its permissions, or leave out writable")
    settings_of(index)


def _absolute(reference: str) -> str:
    """A folder's whole path, since replicas may run in another folder; any other reference as it is."""
    path = storage.local_path(reference)
    return str(path.absolute()) if storage.is_local(reference) and path.is_dir() else reference


def choose_proxy(config: ServeConfig) -> None:
    """Tell Ray Serve which proxy to start: it reads that from the environment, when it is imported."""
    if config.proxy == "haproxy":
        os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    elif os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") not in ("", "0") and not config.keys:
        raise UserError("RAY_SERVE_ENABLE_HA_PROXY=1 listens on every interface, whatever host says; set keys= too")


class EncoderReplica(QueryEncoder):
    """A QueryEncoder that loads its encoder, and has encoded once before the first request comes."""

    def __init__(self, reference: str, expected: Fingerprint, limits: Limits) -> None:
        from rayvec.modeling.encoder import load_encoder

        encoder = load_encoder(reference)
        encoder.encode(["warm up"])
        super().__init__(encoder, expected, limits)


class RetrieverReplica(Retriever):
    """A Retriever whose parts, if it has any, are behind Serve's handles."""

    def __init__(
        self,
        uri: str,
        expected: Fingerprint,
        reranker: str | None,
        poll_seconds: float,
        parts: list[DeploymentHandle[Any]],
        part_seconds: float,
        recall_seconds: float,
    ) -> None:
        from rayvec.serving.remote import RemotePart

        remote = [RemotePart(part) for part in parts]
        super().__init__(uri, expected, reranker, poll_seconds, remote, part_seconds, recall_seconds)


class WriterReplica(Writer):
    """A Writer whose encoder is behind Serve's handle."""

    def __init__(self, uri: str, encoder: DeploymentHandle[Any], reference: str, expected: Fingerprint) -> None:
        from rayvec.serving.remote import RemoteEncoder

        super().__init__(uri, RemoteEncoder(encoder), reference, expected)


class GatewayReplica:
    """A Gateway whose parts are behind Serve's handles."""

    def __init__(
        self,
        encoder: DeploymentHandle[Any],
        retriever: DeploymentHandle[Any],
        writer: DeploymentHandle[Any] | None,
        config: ServeConfig,
        checked: Plan,
    ) -> None:
        from rayvec.serving.remote import RemoteEncoder, RemoteRetriever, RemoteWriter

        self._config = config
        self._gateway = Gateway(
            RemoteEncoder(encoder),
            RemoteRetriever(retriever),
            None if writer is None else RemoteWriter(writer),
            model=checked.model,
            index_name=checked.name,
            retrievers=config.replicas.retriever,
            index_version=checked.version,
            limits=config.limits,
            cache_bytes=config.query_cache_mb << 20,
            traces=config.traces,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        config = self._config
        keys = Keys.load(config.keys) if config.keys else None
        return make_api(
            self._gateway,
            body_bytes=config.limits.body_bytes,
            keys=keys,
            loopback_only=is_loopback(config.host) and keys is None,
            cors_origins=config.cors_origins,
            access_log=open_log(config.access_log) if config.access_log else None,
        )


def build_app(config: ServeConfig, checked: Plan | None = None) -> Application:
    """The application of three deployments; parts of the vectors and a writer if asked for.

    It is over the version pinned, or the live one and those that follow it.

    The pin is in `user_config`, so that Serve changes it in running replicas, without starting them again.
    """
    from ray import serve

    checked = checked or plan(config)
    replicas, limits = config.replicas, config.limits
    encoder = serve.deployment(
        name="QueryEncoder",
        **_copies(replicas.encoder, replicas.encoder_most, replicas.target_requests),
        ray_actor_options=_actor(config, replicas.encoder_cpus, replicas.encoder_gpus),
        max_queued_requests=limits.queued_per_replica,
        **_options(limits.in_flight),
    )(EncoderReplica).bind(checked.encoder, checked.fingerprint, limits)
    poll_seconds = WRITABLE_POLL_SECONDS if config.writable else POLL_SECONDS
    parts = [
        serve.deployment(
            name=f"Vectors-{number}",
            num_replicas=replicas.part_copies,
            ray_actor_options=_actor(config, replicas.part_cpus),
            max_queued_requests=limits.queued_per_replica,
            user_config={"version": config.index_version},
            **_options(limits.in_flight),
        )(VectorPart).bind(_absolute(config.index), Part(number, replicas.parts), checked.fingerprint, poll_seconds)
        for number in range(replicas.parts if replicas.parts > 1 else 0)
    ]
    retriever = serve.deployment(
        name="Retriever",
        **_copies(replicas.retriever, replicas.retriever_most, replicas.target_requests),
        ray_actor_options=_actor(config),
        max_queued_requests=limits.queued_per_replica,
        user_config={"version": config.index_version},
        **_options(limits.in_flight),
    )(RetrieverReplica).bind(
        _absolute(config.index),
        checked.fingerprint,
        config.reranker,
        poll_seconds,
        parts,
        limits.part_seconds,
        config.recall_seconds,
    )
    writer = None
    if config.writable:
        writer = serve.deployment(
            name="Writer",
            num_replicas=1,  # there is one index to be written, and one may write it at a time
            ray_actor_options=_actor(config),
            max_queued_requests=limits.queued_per_replica,
            **_options(limits.in_flight),
        )(WriterReplica).bind(_absolute(config.index), encoder, checked.encoder, checked.fingerprint)
    # The gateway refuses by itself, in the shape that clients read, before Serve would (429 in plain text): that is for
    # a gateway that cannot keep up with refusing, where requests would wait without end.
    return serve.deployment(
        name="Gateway",
        num_replicas=replicas.gateway,
        ray_actor_options=_actor(config),
        max_queued_requests=limits.queued_per_replica,
        **_options(4 * limits.in_flight),
    )(serve.ingress()(GatewayReplica)).bind(encoder, retriever, writer, config, checked)


def _options(max_ongoing: int) -> dict[str, Any]:
    return {
        "max_ongoing_requests": max_ongoing,
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.2,
        # A wrong index or encoder does not become right by trying again.
        "max_constructor_retry_count": 1,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }


def _copies(least: int, most: int | None, target: float) -> dict[str, Any]:
    """A fixed number of copies, or from the least to the most of them, as requests come."""
    if most is None:
        return {"num_replicas": least}
    autoscaling = {"min_replicas": least, "max_replicas": max(least, most), "target_ongoing_requests": target}
    return {"num_replicas": "auto", "autoscaling_config": autoscaling}


def _actor(config: ServeConfig, cpus: float = 0.0, gpus: float = 0.0) -> dict[str, Any]:
    """What Ray sets aside for a replica. Ray gives a process one thread for arithmetic, unless told otherwise."""
    threads = config.replicas.threads or int(cpus) or len(os.sched_getaffinity(0))
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}}}


def deploy(args: Mapping[str, Any]) -> Application:
    """The application from the plain values of a Serve configuration file; see `infra/serve.yaml`."""
    return build_app(ServeConfig.parse(args))


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


@contextlib.contextmanager
def running(config: ServeConfig, checked: Plan) -> Iterator[str]:
    """Deploy on the Ray that runs, wait until it answers, give the address; at the end, drain and take it down."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    joined = bool(serve.status().proxies)
    http_options = {
        "host": config.host,
        "port": config.port,
        # A backstop only: the gateway's own limit comes first, and answers in the shape that clients read.
        "request_timeout_s": config.limits.timeout_seconds + 5,
    }
    serve.start(http_options=http_options, logging_config={"log_level": "ERROR", "enable_access_log": False})
    try:
        try:
            serve.run(build_app(config, checked), name=APP_NAME, route_prefix="/")
        except RuntimeError as error:
            raise _deployment_error(str(error)) from None
        _wait_until_ready(config)
        yield config.address
    finally:
        serve.delete(APP_NAME)
        # On a Ray of our own, Serve ends with it, and in silence; on a cluster, what we started there we also end.
        if os.environ.get("RAY_ADDRESS") and not joined:
            serve.shutdown()


def _deployment_error(message: str) -> RayvecError:
    """The error that a replica raised in its constructor, which reaches us as text only, as one of our own."""
    known = {kind.__name__: kind for kind in RayvecError.__subclasses__()}
    for name, text in re.findall(r"(\w+Error): (.+)", message):
        if name in known:
            return known[name](text)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return RayvecError(f"the service did not start: {lines[-1] if lines else 'no reason was given'}")


def _wait_until_ready(config: ServeConfig) -> None:
    """Ask over HTTP, as a client would, until both parts answer."""
    end = time.monotonic() + READY_SECONDS
    host = "127.0.0.1" if config.host in EVERYWHERE else config.host
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(host, config.port, timeout=10)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise RayvecError(
        f"the service does not answer at {config.address}; a Serve that runs already keeps its own address"
    )
