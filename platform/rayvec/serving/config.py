"""What a search service is told: which index and encoder, where to listen, how much one request may ask.

Knows values only. Knows no Ray, no HTTP, no model; importing it loads none of them.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rayvec.config import Config

Mode = Literal["hybrid", "dense", "lexical"]
Fusion = Literal["weighted", "rrf"]

#: Addresses that stand for every interface of a machine.
EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104


class Limits(Config):
    """How much one request, and all requests together, may take. Past a limit the answer is a clear 4xx."""

    body_bytes: int = Field(4_000_000, ge=1_000, le=64_000_000)
    request_tokens: int = Field(300_000, ge=1, le=10_000_000)
    batch_tokens: int = Field(16_384, ge=1, le=1_000_000)
    in_flight: int = Field(128, ge=1, le=100_000)
    queued_per_replica: int = Field(256, ge=1, le=100_000)
    #: How long a search waits for one part of the vectors, before it answers without that part, and says so.
    part_seconds: float = Field(5.0, gt=0, le=600)
    timeout_seconds: float = Field(30.0, gt=0, le=3_600)


class Replicas(Config):
    """How many copies of each part run; the CPUs and GPUs that Ray sets aside for a copy of the encoder.

    Where `encoder_most` or `retriever_most` is set, Serve starts copies up to it while more than `target_requests` wait
    or run in each, and takes them down again. `parts` spreads the vectors over so many processes, of which each has
    `part_copies` and holds its shards alone (a machine's memory then holds a part of the index): the retriever keeps
    words and documents, asks all parts, and puts together what they find. `threads` is how many a copy of the encoder
    or the retriever computes with; all of the machine's by default. `together` puts encoder, retriever and gateway into
    one process, of which there are `gateway` copies: no call between processes, the fastest for one request at a time.
    """

    together: bool = False

    gateway: int = Field(1, ge=1)
    encoder: int = Field(1, ge=1)
    retriever: int = Field(1, ge=1)
    encoder_most: int | None = Field(None, ge=1)
    retriever_most: int | None = Field(None, ge=1)
    target_requests: float = Field(8.0, gt=0)
    parts: int = Field(1, ge=1, le=4_096)
    part_copies: int = Field(1, ge=1)
    part_cpus: float = Field(0.0, ge=0)
    encoder_cpus: float = Field(0.0, ge=0)
    encoder_gpus: float = Field(0.0, ge=0)
    threads: int | None = Field(None, ge=1, le=1_024)

    @model_validator(mode="after")
    def _copied_whole(self) -> Self:
        apart = {"encoder": self.encoder, "retriever": self.retriever, "parts": self.parts}
        apart |= {"encoder_most": self.encoder_most or 1, "retriever_most": self.retriever_most or 1}
        if self.together and (several := [name for name, copies in apart.items() if copies > 1]):
            raise ValueError(
                f"together=true copies encoder and retriever with the gateway, and {' and '.join(several)} asks for "
                "more of one alone; give gateway=N, or together=false"
            )
        return self


class SearchDefaults(Config):
    """What a search is where its request does not say; the best that the index can, and the fusion's own weight."""

    mode: Mode | None = None
    fusion: Fusion = "weighted"
    dense_weight: float | None = Field(None, ge=0, le=100)


class ServeConfig(Config):
    """A search service over one index version.

    `index` is an index folder or URI; `index_version` pins a version, else the one that CURRENT names is served, and a
    new one soon after it is named there. `encoder` defaults to the reference in the index's manifest. `model_name` is
    what clients pass as `model`. `keys` is a file of hashed API keys (see `rayvec.serving.security`), and is required
    off the loopback interface.
    """

    index: str = ""
    index_version: str | None = None
    encoder: str | None = None
    model_name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65_535)
    keys: str | None = None
    #: What takes connections for Ray Serve: its own proxy in Python, or HAProxy (it comes with Ray), which answers many
    #: times as many requests; it listens on every interface, whatever host says, and so asks for keys.
    proxy: Literal["python", "haproxy"] = "python"
    #: Pages of these origins may ask from a browser ("https://example.org"); none by default.
    cors_origins: tuple[str, ...] = ()
    #: Whether documents may be put in and taken out over HTTP; where keys are set, by those of scope write.
    writable: bool = False
    #: Whether assistants find `search` and `fetch` at POST /mcp, by the Model Context Protocol; see docs/serving.md.
    mcp: bool = False
    #: A file for one JSON line a request: time, id, route, status, milliseconds, its stages', key's id; never a text.
    access_log: str | None = None
    #: Where spans of requests are sent: an OpenTelemetry collector's OTLP address, "http://host:4318/v1/traces".
    traces: str | None = Field(None, pattern=r"^https?://[^\s]+$")
    #: What the encoder computes in, as for `jobs.embed`: int8 is for CPUs, about twice as fast, at cosines of .999.
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    #: Megabytes of query vectors that each gateway keeps, for queries that come again; 0 for none.
    query_cache_mb: int = Field(16, ge=0, le=65_536)
    #: Seconds between looks at the recall of a few stored vectors, which are compared with all of them; 0 for none.
    recall_seconds: float = Field(300.0, ge=0)
    #: What `rerank` in a request asks: "cross-encoder:NAME_OR_FOLDER", or "package.module:name" of a callable.
    reranker: str | None = None
    search: SearchDefaults = SearchDefaults()
    replicas: Replicas = Replicas()
    limits: Limits = Limits()

    @property
    def poll_seconds(self) -> float:
        """How often a retriever looks which version is live; where documents are written over HTTP, they show soon."""
        return 0.25 if self.writable else 2.0

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the service."""
        host = "127.0.0.1" if self.host in EVERYWHERE else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?", origin):
                raise ValueError(f"{origin!r} is no origin; write scheme, host and port alone: https://example.org")
        return origins

    @model_validator(mode="after")
    def _written_where_it_is_followed(self) -> Self:
        if self.writable and self.index_version is not None:
            raise ValueError(
                "writable=true makes new versions, and index_version pins an old one, which would never show them; "
                "leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _written_by_one(self) -> Self:
        if self.writable and self.replicas.together and self.replicas.gateway > 1:
            raise ValueError(
                "writable=true has one writer, and replicas.together=true with replicas.gateway over 1 would have "
                "several; leave out one of the three"
            )
        return self

    @model_validator(mode="after")
    def _written_to_a_known_number(self) -> Self:
        if self.writable and (self.replicas.retriever_most or 0) > self.replicas.retriever:
            raise ValueError(
                "writable=true answers `wait` when every copy of the retriever serves a write, and "
                "replicas.retriever_most lets their number change; give replicas.retriever=N alone"
            )
        return self

    @model_validator(mode="after")
    def _rounded_on_a_cpu(self) -> Self:
        if self.precision == "int8" and self.replicas.encoder_gpus:
            raise ValueError("precision=int8 is for CPUs; set replicas.encoder_gpus=0, or precision=auto")
        return self

    @model_validator(mode="after")
    def _open_only_with_keys(self) -> Self:
        if not self.keys and self.proxy == "haproxy":
            raise ValueError(
                "proxy=haproxy listens on every interface, and no API keys are set; make one with "
                "`python -m rayvec.serving.security keys.txt NAME` and give keys=keys.txt, or keep proxy=python"
            )
        if not self.keys and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, and no API keys are set; make one with "
                "`python -m rayvec.serving.security keys.txt NAME` and give keys=keys.txt, or keep host=127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("::ffff:127.0.0.1")
    (True, True, True)
    >>> is_loopback("0.0.0.0"), is_loopback("example.org")
    (False, False)
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
