"""The options of a verifier, checked, and its channel options."""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import grpc

from tumbler.projects import AnyProject, ProjectId, projects_of
from tumbler.target import is_loopback

SECOND = 1_000_000

_SHORTEST_HEARTBEAT, _LONGEST_HEARTBEAT = 1.0, 3_600.0

_LARGEST_ANSWER = 16 * 1024 * 1024
"""Bytes. The server's own limit is 3 MiB. With gRPC's default of 4 MiB, an older server's batches would fail."""

_SERVICE_CONFIG = {
    # Calls go to the target's servers in turn, so if one fails they go to the others.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "tumbler.v1.ApiKeyService", "method": method} for method in ("Verify", "BatchVerify")],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

_CHANNEL = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", _LARGEST_ANSWER),
    # A server that was down is found again soon: no backoff and no attempt to connect is longer than this.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # This detects a connection whose other end vanished silently. The server allows a ping every ten seconds. The ping
    # that measures the flow has its own limit of a minute, and keepalive waits for it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A channel that replaces a silent one must not share its connections.
    ("grpc.use_local_subchannel_pool", 1),
]

# With http_proxy set, plaintext to this machine would go through the proxy.
_NO_PROXY = [("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True)
class Settings:
    """The options of a verifier. Durations are in seconds. Raises ValueError if an option breaks its rule."""

    target: str
    api_key: str = field(repr=False)
    credentials: grpc.ChannelCredentials | None
    insecure: bool
    cache_size: int
    cache_bytes: int
    max_staleness: float
    heartbeat: float
    timeout: float
    watch: bool
    fixed_ttl: float | None
    logger: logging.Logger
    project_id: ProjectId | AnyProject | None = None
    projects: tuple[str, ...] = field(init=False)
    """The projects whose keys are accepted. Empty: all projects that the verifier's own key sees."""

    def __post_init__(self) -> None:
        if not self.target or self.target.startswith(("http:", "https:")):
            raise ValueError("target: must be host:port or another gRPC target, without http:// or https://")
        # gRPC would refuse it too, but its error shows the key.
        if not self.api_key or not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key:
            raise ValueError("api_key: must be one key of visible ASCII characters")
        if self.credentials is not None and self.insecure:
            raise ValueError("insecure: cannot be combined with credentials")
        if self.credentials is None and not self.insecure and not is_loopback(self.target):
            raise ValueError(
                "credentials: the target is not this machine, so keys would cross the network in plaintext; "
                "use grpc.ssl_channel_credentials(), or insecure=True if the network is trusted"
            )
        said = self.project_id
        named = () if said is None or isinstance(said, AnyProject) else projects_of(said)
        object.__setattr__(self, "projects", named)
        if self.cache_size < 0:
            raise ValueError("cache_size: must be 0 or more")
        if self.cache_bytes < 0:
            raise ValueError("cache_bytes: must be 0 or more")
        if not 0 < self.timeout < float("inf"):
            raise ValueError("timeout: must be more than 0, and finite")
        if not _SHORTEST_HEARTBEAT <= self.heartbeat <= _LONGEST_HEARTBEAT:
            raise ValueError("heartbeat: must be 1 s to 1 h")
        if not self.heartbeat < self.max_staleness < float("inf"):
            raise ValueError("max_staleness: must be longer than heartbeat, and finite")
        if self.fixed_ttl is not None:
            if self.watch:
                raise ValueError("fixed_ttl: is only allowed with watch=False")
            if not 0 < self.fixed_ttl < float("inf"):
                raise ValueError("fixed_ttl: must be more than 0, and finite")

    @property
    def only_project(self) -> str:
        """The project that requests name, or "" if they name none."""
        return self.projects[0] if len(self.projects) == 1 else ""

    def accepts(self, project_id: str) -> bool:
        """Return whether keys of a project are accepted."""
        return not self.projects or project_id in self.projects

    @property
    def channel_options(self) -> list[tuple[str, Any]]:
        """The options of the gRPC channel."""
        return _CHANNEL + (_NO_PROXY if self.credentials is None else [])

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call: the verifier's own key."""
        return (("authorization", f"Bearer {self.api_key}"),)
