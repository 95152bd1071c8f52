"""Serve: one index version and the encoder that made it, behind an address, until a signal comes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipelines._ray import ray_session, tell_of_idle_gpus
from pipelines.report import Report
from rayvec.serving.config import ServeConfig

#: Set before Ray is imported.
ENVIRONMENT = {
    # Serve's own lines say nothing that a user of this service needs; its files have them.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray gives way to all else on its machine, as jobs of hours should; somebody waits for a service.
    "RAY_worker_niceness": "0",
}
#: Requests and answers pass between processes inline or in small objects; nothing large is kept.
OBJECT_STORE = 150_000_000


def serve(config: ServeConfig) -> Report:
    """Serve an index: search page, search and OpenAI-compatible embeddings. Ends, drained, on SIGTERM or ctrl-C."""
    from rayvec.serving import proxy
    from rayvec.serving.app import running
    from rayvec.serving.preflight import check_port, plan

    begin = time.monotonic()
    checked = plan(config)
    check_port(config)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _say(f"serve: {checked.count:,} documents of {config.index} ({checked.version}), encoder {checked.model}; starting")
    with (
        proxy.chosen(config),
        ray_session(object_store_memory=OBJECT_STORE),
        running(config, checked) as address,
        _stop_signals() as stopped,
    ):
        tell_of_idle_gpus(checked.encoder, config.replicas.encoder_gpus, "replicas.encoder_gpus=1")
        _say(f"serve: ready in {time.monotonic() - begin:.0f} s at {address} (ctrl-C ends it)")
        # Waiting without end would keep a signal from being seen on some systems.
        while not stopped.wait(timeout=1.0):
            pass
        _say("serve: finishing the requests under way")
    return {"index": config.index, "served_seconds": round(time.monotonic() - begin)}


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or ctrl-C sets; a second one acts as it usually does."""
    stopped = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        stopped.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
