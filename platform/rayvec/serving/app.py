"""Serve at the edge: plain classes become deployments here, and nowhere else.

`build_app` gives the application; `running` deploys it and drains it at the end. `deploy` is what `infra/serve.yaml`
names.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rayvec.errors import RayvecError, UserError
from rayvec.indexing.part import Part
from rayvec.serving import proxy
from rayvec.serving.config import EVERYWHERE, ServeConfig
from rayvec.serving.parts import VectorPart
from rayvec.serving.preflight import Plan, plan, with_whole_paths
from rayvec.serving.replicas import EncoderReplica, GatewayReplica, RetrieverReplica, WholeReplica, WriterReplica

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

APP_NAME = "rayvec"
_LOG = logging.getLogger(__name__)
#: How long a copy that Serve takes away may finish what it does.
COPY_SECONDS = 20.0
#: At the end of the service, how long requests under way may take: the whole ending stays within a pod's 30 s.
DRAIN_SECONDS = 15.0
#: How long the proxies may take to send what the gateways have answered.
SENT_SECONDS = 0.5
READY_SECONDS = 120.0


def build_app(config: ServeConfig, checked: Plan | None = None) -> Application:
    """The application: a gateway, an encoder and a retriever; parts of the vectors and a writer if asked for.

    It is over the version pinned, or the live one and those that follow it. With `replicas.together` it is one
    deployment of copies that have it all.
    """
    checked = checked or plan(config)
    proxy.require(config)
    config = with_whole_paths(config)
    return _together(config, checked) if config.replicas.together else _apart(config, checked)


def _apart(config: ServeConfig, checked: Plan) -> Application:
    """Each part a deployment of its own."""
    from ray import serve

    replicas = config.replicas
    encoder = serve.deployment(
        name="QueryEncoder",
        **_copies(replicas.encoder, replicas.encoder_most, replicas.target_requests),
        **_options(config, replicas.encoder_cpus, replicas.encoder_gpus),
    )(EncoderReplica).bind(config, checked)
    parts = [
        serve.deployment(
            name=f"Vectors-{number}",
            num_replicas=replicas.part_copies,
            user_config=_pin(config),
            **_options(config, replicas.part_cpus),
        )(VectorPart).bind(
            config.index,
            Part(number, replicas.parts),
            checked.fingerprint,
            config.poll_seconds,
            config.limits.timeout_seconds,
        )
        for number in range(replicas.parts if replicas.parts > 1 else 0)
    ]
    retriever = serve.deployment(
        name="Retriever",
        **_copies(replicas.retriever, replicas.retriever_most, replicas.target_requests),
        user_config=_pin(config),
        **_options(config),
    )(RetrieverReplica).bind(config, checked, parts)
    writer = None
    if config.writable:
        writer = serve.deployment(
            name="Writer",
            num_replicas=1,  # there is one index to be written, and one may write it at a time
            **_options(config),
        )(WriterReplica).bind(config.index, encoder, checked.encoder, checked.fingerprint)
    return serve.deployment(name="Gateway", num_replicas=replicas.gateway, **_gateway_options(config))(
        serve.ingress()(GatewayReplica)
    ).bind(encoder, retriever, writer, config, checked)


def _together(config: ServeConfig, checked: Plan) -> Application:
    """One deployment, whose copies need no other process."""
    from ray import serve

    replicas = config.replicas
    options = _gateway_options(config, replicas.encoder_cpus, replicas.encoder_gpus)
    return serve.deployment(name="Gateway", num_replicas=replicas.gateway, user_config=_pin(config), **options)(
        serve.ingress()(WholeReplica)
    ).bind(config, checked)


def _pin(config: ServeConfig) -> dict[str, Any]:
    """What Serve changes in running replicas, without starting them again."""
    return {"version": config.index_version}


def _gateway_options(config: ServeConfig, cpus: float = 0.0, gpus: float = 0.0) -> dict[str, Any]:
    """The gateway refuses by itself, in the shape that clients read, before Serve would (429 in plain text).

    What Serve refuses is for a gateway that cannot keep up with refusing, where requests would wait without end.
    """
    return _options(config, cpus, gpus) | {"max_ongoing_requests": 4 * config.limits.in_flight}


def _options(config: ServeConfig, cpus: float = 0.0, gpus: float = 0.0) -> dict[str, Any]:
    return {
        "ray_actor_options": _actor(config, cpus, gpus),
        "max_ongoing_requests": config.limits.in_flight,
        "max_queued_requests": config.limits.queued_per_replica,
        "graceful_shutdown_timeout_s": COPY_SECONDS,
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


@contextlib.contextmanager
def running(config: ServeConfig, checked: Plan) -> Iterator[str]:
    """Deploy on the Ray that runs, wait until it answers, give the address; at the end, drain and take it down."""
    from ray import serve
    from ray.exceptions import GetTimeoutError, RayActorError

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    there = serve.status()
    joined = bool(there.proxies)
    if APP_NAME in there.applications:  # it would be replaced by ours, and taken down at our end
        raise UserError(
            f"this Ray serves an application {APP_NAME!r} already, of `serve deploy` or of another jobs.serve; end "
            "that one (`serve shutdown`, if nothing else is served), or start this one on another Ray"
        )
    http_options = {
        "host": config.host,
        "port": config.port,
        # A backstop only: the gateway's own limit comes first, and answers in the shape that clients read.
        "request_timeout_s": config.limits.timeout_seconds + 5,
    }
    try:
        serve.start(http_options=http_options, logging_config={"log_level": "ERROR", "enable_access_log": False})
    except (RayActorError, GetTimeoutError):
        raise RayvecError("Serve's proxy did not start in time; run it again when the machine is less busy") from None
    try:
        try:
            gateways = serve.run(build_app(config, checked), name=APP_NAME, route_prefix="/")
        except RuntimeError as error:
            raise _deployment_error(f"{error}\n{_told_by_deployments()}") from None
        _wait_until_ready(config)
        yield config.address
        _drain(gateways)
    finally:
        # On a Ray of our own, Serve ends with it, at once and in silence; on a cluster, what we started we also end.
        if joined:
            serve.delete(APP_NAME)
        elif os.environ.get("RAY_ADDRESS"):  # its proxies first: without their application they would answer 404
            serve.shutdown()


def _drain(gateways: DeploymentHandle[Any]) -> None:
    """Have every gateway refuse what is new and finish what is under way."""
    try:
        if not gateways.is_initialized:  # tuned for throughput, a handle would need an event loop here
            gateways._init(_run_router_in_separate_loop=True)
        answers = gateways.broadcast("drain", DRAIN_SECONDS).results(
            timeout_s=DRAIN_SECONDS + 1, return_exceptions=True
        )
    except Exception as error:  # whatever keeps them from answering, the service ends
        answers = [error]
    if left := [answer for answer in answers if answer is not True]:
        _LOG.warning("serve: %d of %d gateways had not finished their requests: %s", len(left), len(answers), left[0])
    time.sleep(SENT_SECONDS)


def _told_by_deployments() -> str:
    """What Serve keeps of the errors of replicas that did not start; not all of it is in the error that it raises."""
    from ray import serve

    application = serve.status().applications.get(APP_NAME)
    return "\n".join(one.message for one in application.deployments.values()) if application else ""


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
