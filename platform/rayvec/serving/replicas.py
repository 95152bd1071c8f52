"""What runs in a process of Ray Serve: the plain classes, with what they ask behind Serve's handles or beside them.

Knows the parts, the handles and the configuration. Knows nothing of deployments: `rayvec.serving.app` makes those.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayvec.fingerprint import Fingerprint
from rayvec.serving.api import make_api
from rayvec.serving.config import ServeConfig, is_loopback
from rayvec.serving.door import FrontDoor
from rayvec.serving.gateway import Gateway
from rayvec.serving.observer import open_log
from rayvec.serving.preflight import Plan
from rayvec.serving.query_encoder import QueryEncoder
from rayvec.serving.retriever import Retriever
from rayvec.serving.security import Keys
from rayvec.serving.services import EncoderService, RetrieverService
from rayvec.serving.writer import Writer, WriterService

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from starlette.types import ASGIApp


#: A thread that encodes or searches gives Python's lock back with each of its operations, and takes it again after; for
#: so long, at most, it then waits for the event loop. Python's 5 ms would hold a batch up by that at each of them.
SWITCH_SECONDS = 0.0001


class EncoderReplica(QueryEncoder):
    """A QueryEncoder that loads its encoder, and has encoded once before the first request comes."""

    def __init__(self, config: ServeConfig, checked: Plan) -> None:
        from rayvec.modeling.encoder import load_encoder

        sys.setswitchinterval(SWITCH_SECONDS)
        device = "cuda" if config.replicas.encoder_gpus else "cpu"
        encoder = load_encoder(checked.encoder, dtype=config.precision, device=device)
        encoder.encode(["warm up"])
        super().__init__(encoder, checked.fingerprint, config.limits)


class RetrieverReplica(Retriever):
    """A Retriever whose parts, if it has any, are behind Serve's handles."""

    def __init__(self, config: ServeConfig, checked: Plan, parts: Sequence[DeploymentHandle[Any]] = ()) -> None:
        from rayvec.serving.remote import RemotePart

        sys.setswitchinterval(SWITCH_SECONDS)
        super().__init__(
            config.index,
            checked.fingerprint,
            config.reranker,
            config.poll_seconds,
            [RemotePart(part) for part in parts],
            config.limits.part_seconds,
            config.recall_seconds,
            config.limits.timeout_seconds,
        )


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
        parts = (RemoteEncoder(encoder), RemoteRetriever(retriever), None if writer is None else RemoteWriter(writer))
        self._gateway = _gateway(*parts, config, checked)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _api(self._gateway, self._config)

    async def drain(self, seconds: float) -> bool:
        """Asked of every copy before the service ends; see `Admission.drain`."""
        return await self._gateway.admission.drain(seconds)


class WholeReplica:
    """A Gateway with its encoder, its retriever and its writer in the same process: no call crosses processes."""

    def __init__(self, config: ServeConfig, checked: Plan) -> None:
        self._config = config
        self._encoder = EncoderReplica(config, checked)
        self._retriever = RetrieverReplica(config, checked)
        writer = None
        if config.writable:
            writer = Writer(config.index, self._encoder, checked.encoder, checked.fingerprint)
        self._writer = writer
        self._gateway = _gateway(self._encoder, self._retriever, writer, config, checked)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _api(self._gateway, self._config)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve, before the first request: the version that is pinned."""
        await self._retriever.reconfigure(user_config)

    async def drain(self, seconds: float) -> bool:
        """Asked of every copy before the service ends; see `Admission.drain`."""
        return await self._gateway.admission.drain(seconds)

    async def check_health(self) -> None:
        """Called by Serve."""
        await self._encoder.check_health()
        await self._retriever.check_health()
        if self._writer is not None:
            await self._writer.check_health()


def _gateway(
    encoder: EncoderService,
    retriever: RetrieverService,
    writer: WriterService | None,
    config: ServeConfig,
    checked: Plan,
) -> Gateway:
    from ray import serve

    return Gateway(
        encoder,
        retriever,
        writer,
        model=checked.model,
        index_name=checked.name,
        retrievers=config.replicas.retriever,
        index_version=checked.version,
        instructions=checked.instructions,
        defaults=config.search,
        limits=config.limits,
        cache_bytes=config.query_cache_mb << 20,
        traces=config.traces,
        replica=serve.get_replica_context().replica_id.unique_id,
    )


def _api(gateway: Gateway, config: ServeConfig) -> ASGIApp:
    keys = Keys.load(config.keys) if config.keys else None
    interface = make_api(
        gateway,
        body_bytes=config.limits.body_bytes,
        keys=keys,
        loopback_only=is_loopback(config.host) and keys is None,
        cors_origins=config.cors_origins,
        access_log=open_log(config.access_log) if config.access_log else None,
        mcp=config.mcp,
        under_serve=True,
    )
    FrontDoor.stands_before(gateway.admission, interface)
    return interface
