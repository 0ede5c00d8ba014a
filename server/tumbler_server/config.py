"""The server's settings. Each is a flag and an environment variable, declared only here.

A test compares the table in docs/configuration.md with these declarations.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from tumbler import decide, keyformat
from tumbler_server import limits
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND
from tumbler_server.errors import SetupError
from tumbler_server.freshness.tail import MAX_STALENESS
from tumbler_server.limits import WEBHOOK_URLS
from tumbler_server.secrets import pepper
from tumbler_server.secrets.pepper import Pepper
from tumbler_server.secrets.secret import CHEAPEST_COST, DEFAULT_COST, HIGHEST_COST
from tumbler_server.store import lease
from tumbler_server.store.database import TIMEOUT
from tumbler_server.webhooks.targets import Rules

SHORTEST_STALENESS = SECOND // 10
SHORTEST_TIMEOUT = SECOND // 2
SHORTEST_RETENTION = DAY
SHORTEST_LEASE = SECOND
MOST_WORKERS = 64

_UNITS = {"ms": SECOND // 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}


def parse_span(text: str | int) -> int:
    """Return a duration such as ``500ms``, ``90s``, ``15m``, ``1h`` or ``7d`` in microseconds."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d{1,9})(ms|s|m|h|d)", text)
    if match is None:
        raise typer.BadParameter("write a duration as 500ms, 90s, 15m, 1h or 7d")
    return int(match[1]) * _UNITS[match[2]]


_SIZES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def parse_size(text: str | int) -> int:
    """Return a size such as ``512KiB``, ``128MiB`` or ``2GiB`` in bytes."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d{1,6})(KiB|MiB|GiB)", text)
    if match is None:
        raise typer.BadParameter("write a size as 512KiB, 128MiB or 2GiB")
    return int(match[1]) * _SIZES[match[2]]


def _prefix(text: str) -> str:
    if not keyformat.valid_prefix(text):
        raise typer.BadParameter("must match [a-z][a-z0-9]{1,15}(_[a-z0-9]{1,15})?, such as acme_live")
    return text


def parse_address(text: str) -> str:
    """Return the address, if it is a host and a port."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise typer.BadParameter("write an address as 127.0.0.1:50051 or [::1]:50051")
    return text


def parse_address_or_none(text: str) -> str:
    """Return the address, or an empty text for an empty text."""
    return text and parse_address(text)


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="TUMBLER_DATA_DIR", help="Folder of the SQLite database and the pepper file."),
]
DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="TUMBLER_DATABASE_URL",
        metavar="URL",
        show_default="SQLite, tumbler.db in the data folder",
        help="sqlite:///path, postgresql://… (any libpq URI) or cockroachdb://….",
    ),
]
DatabaseTimeout = Annotated[
    int,
    typer.Option(
        "--database-timeout",
        envvar="TUMBLER_DATABASE_TIMEOUT",
        parser=parse_span,
        metavar="DURATION",
        help="Maximum time of a change in the database, waiting included; at least 500ms. Reads have a fifth of it.",
    ),
]
PepperFile = Annotated[
    Path | None,
    typer.Option(
        "--pepper-file",
        envvar="TUMBLER_PEPPER_FILE",
        show_default="pepper in the data folder",
        help="File of the peppers, mode 0600. If set, the file must exist.",
    ),
]
Listen = Annotated[
    str,
    typer.Option(
        "--listen", envvar="TUMBLER_LISTEN", parser=parse_address, metavar="ADDRESS", help="Address to serve on."
    ),
]
BcryptCost = Annotated[
    int,
    typer.Option(
        "--bcrypt-cost",
        envvar="TUMBLER_BCRYPT_COST",
        min=CHEAPEST_COST,
        max=HIGHEST_COST,
        help="Cost of new bcrypt hashes; each step doubles the time. Keys with older hashes are rehashed when used.",
    ),
]
CacheSize = Annotated[
    int,
    typer.Option(
        "--cache-size", envvar="TUMBLER_CACHE_SIZE", min=1, help="Maximum number of keys in the cache of a process."
    ),
]
CacheBytes = Annotated[
    int,
    typer.Option(
        "--cache-bytes",
        envvar="TUMBLER_CACHE_BYTES",
        parser=parse_size,
        metavar="SIZE",
        help="Maximum memory of the cache of a process, at least 1MiB. The oldest keys not in use are evicted.",
    ),
]
MaxProjectKeys = Annotated[
    int,
    typer.Option(
        "--max-project-keys",
        envvar="TUMBLER_MAX_PROJECT_KEYS",
        min=1,
        help="Maximum number of keys of a project, in any state. Beyond it Create, Rotate and ClaimRotation fail.",
    ),
]
CacheTtl = Annotated[
    int,
    typer.Option(
        "--cache-ttl",
        envvar="TUMBLER_CACHE_TTL",
        parser=parse_span,
        metavar="DURATION",
        help="Maximum time that a client may cache an answer while its Watch stream is fresh.",
    ),
]
MaxStaleness = Annotated[
    int,
    typer.Option(
        "--max-staleness",
        envvar="TUMBLER_MAX_STALENESS",
        parser=parse_span,
        metavar="DURATION",
        help="Maximum staleness of an answer after a change by another server. Beyond it the database is read.",
    ),
]
StaleIfError = Annotated[
    int,
    typer.Option(
        "--stale-if-error",
        envvar="TUMBLER_STALE_IF_ERROR",
        parser=parse_span,
        metavar="DURATION",
        help="How much longer to answer for cached keys while the database is away. Delays revocations by as much.",
    ),
]
DatabaseNotify = Annotated[
    bool,
    typer.Option(
        "--database-notify/--no-database-notify",
        envvar="TUMBLER_DATABASE_NOTIFY",
        help="Wake other servers on PostgreSQL with NOTIFY. Behind a pooler they only poll.",
    ),
]
DefaultPrefix = Annotated[
    str,
    typer.Option(
        "--default-prefix",
        envvar="TUMBLER_DEFAULT_PREFIX",
        parser=_prefix,
        metavar="PREFIX",
        help="Prefix of keys for which Create sets none.",
    ),
]
EventRetention = Annotated[
    int,
    typer.Option(
        "--event-retention",
        envvar="TUMBLER_EVENT_RETENTION",
        parser=parse_span,
        metavar="DURATION",
        help="How long to keep events, at least 1d. Older events are removed from the start of the log.",
    ),
]
MinRotationInterval = Annotated[
    int,
    typer.Option(
        "--min-rotation-interval",
        envvar="TUMBLER_MIN_ROTATION_INTERVAL",
        parser=parse_span,
        metavar="DURATION",
        help="Minimum rotation interval of a key.",
    ),
]
WebhookAllowLoopback = Annotated[
    bool,
    typer.Option(
        "--webhook-allow-loopback",
        envvar="TUMBLER_WEBHOOK_ALLOW_LOOPBACK",
        help="Allow webhooks to 127.0.0.1 and ::1, also over http: for tests and local work.",
    ),
]
WebhookAllowNetworks = Annotated[
    str,
    typer.Option(
        "--webhook-allow-networks",
        envvar="TUMBLER_WEBHOOK_ALLOW_NETWORKS",
        metavar="CIDRS",
        show_default="none",
        help="Private or special networks that webhooks may reach, such as 10.1.0.0/16,fd00:1::/64.",
    ),
]
WebhookAllowHosts = Annotated[
    str,
    typer.Option(
        "--webhook-allow-hosts",
        envvar="TUMBLER_WEBHOOK_ALLOW_HOSTS",
        metavar="HOSTS",
        show_default="any",
        help="The only hosts that webhooks may reach, such as hooks.example.com,*.example.org.",
    ),
]
WebhookProxy = Annotated[
    str,
    typer.Option(
        "--webhook-proxy",
        envvar="TUMBLER_WEBHOOK_PROXY",
        metavar="URL",
        show_default="none",
        help="HTTP proxy for webhooks, http://[user:password@]host:port. The proxy resolves host names.",
    ),
]
WebhookCaFile = Annotated[
    Path | None,
    typer.Option(
        "--webhook-ca-file",
        envvar="TUMBLER_WEBHOOK_CA_FILE",
        help="PEM file of certificate authorities to trust for webhooks, in addition to the system's.",
    ),
]
MaxWebhookUrls = Annotated[
    int,
    typer.Option(
        "--max-webhook-urls",
        envvar="TUMBLER_MAX_WEBHOOK_URLS",
        min=1,
        help="Maximum number of webhook URLs of a project. An unused URL counts for another day.",
    ),
]
SchedulerLease = Annotated[
    int,
    typer.Option(
        "--scheduler-lease",
        envvar="TUMBLER_SCHEDULER_LEASE",
        parser=parse_span,
        metavar="DURATION",
        help="How long the acting scheduler may be silent before another takes over, at least 1s.",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        "--threads",
        envvar="TUMBLER_THREADS",
        min=1,
        max=1_000,
        help="Threads that use the database; the server keeps as many connections.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        envvar="TUMBLER_WORKERS",
        min=1,
        max=MOST_WORKERS,
        help="Serving processes on the port. Each has its own threads, cache and connections.",
    ),
]
MaxWatchStreams = Annotated[
    int,
    typer.Option(
        "--max-watch-streams",
        envvar="TUMBLER_MAX_WATCH_STREAMS",
        min=1,
        help="Maximum number of Watch streams of a process. Beyond it the project with the most streams gives way.",
    ),
]
MetricsListen = Annotated[
    str,
    typer.Option(
        "--metrics-listen",
        envvar="TUMBLER_METRICS_LISTEN",
        parser=parse_address_or_none,
        metavar="ADDRESS",
        show_default="off",
        help="Address to serve metrics on, over plain HTTP in Prometheus format, without authentication.",
    ),
]
ShutdownGrace = Annotated[
    int,
    typer.Option(
        "--shutdown-grace",
        envvar="TUMBLER_SHUTDOWN_GRACE",
        parser=parse_span,
        metavar="DURATION",
        help="How long calls in flight may continue after SIGTERM.",
    ),
]
Reflection = Annotated[
    bool | None,
    typer.Option(
        "--reflection/--no-reflection",
        envvar="TUMBLER_REFLECTION",
        show_default="on for a loopback address, else off",
        help="Offer gRPC reflection, for tools such as grpcurl.",
    ),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", envvar="TUMBLER_TLS_CERT", help="PEM file of the certificate chain.")
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", envvar="TUMBLER_TLS_KEY", help="PEM file of the private key.")
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        envvar="TUMBLER_TLS_CLIENT_CA",
        help="PEM file of a certificate authority. Clients must present a certificate that it signed.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", envvar="TUMBLER_INSECURE", help="Serve without TLS on an address that is not loopback."),
]
LogLevel = Annotated[
    str,
    typer.Option("--log-level", envvar="TUMBLER_LOG_LEVEL", metavar="LEVEL", help="debug, info, warning or error."),
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        envvar="TUMBLER_LOG_FORMAT",
        metavar="FORMAT",
        show_default="console on a terminal, else json",
        help="console or json.",
    ),
]


@dataclass(frozen=True)
class Installation:
    """Where an installation stores its data. The defaults are those of SQLite."""

    data_dir: Path = Path("tumbler-data")
    database: str = ""
    pepper: Path | None = None

    @property
    def database_url(self) -> str:
        """Return the database's URL."""
        return self.database or f"sqlite:///{quote(str(self.database_file))}"

    @property
    def database_file(self) -> Path:
        """Return the path of the SQLite database."""
        return self.data_dir.absolute() / "tumbler.db"

    @property
    def pepper_file(self) -> Path:
        """Return the path of the pepper file."""
        return self.pepper or self.data_dir / "pepper"

    def peppers(self) -> tuple[Pepper, ...]:
        """Return the peppers; none if no file is set and the default one is missing. Raises ``SetupError``."""
        if self.pepper is None and not self.pepper_file.exists():
            return ()
        return pepper.load(self.pepper_file)


@dataclass(frozen=True)
class Tls:
    """The files of TLS. Raises ``SetupError`` if one of a pair is missing."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise SetupError("--tls-cert and --tls-key must be given together")
        if self.client_ca and not self.cert:
            raise SetupError("--tls-client-ca needs --tls-cert and --tls-key")

    def __bool__(self) -> bool:
        return self.cert is not None


def webhook_rules(loopback: bool, networks: str, hosts: str, proxied: bool) -> Rules:
    """Return what webhooks may reach, from lists separated by commas. Raises ``SetupError``."""
    try:
        allowed = tuple(decide.parse_network(part.strip()) for part in networks.split(",") if part.strip())
    except ValueError:
        raise SetupError("--webhook-allow-networks must be networks without host bits, such as 10.1.0.0/16") from None
    names = tuple(part.strip().lower() for part in hosts.split(",") if part.strip())
    for name in names:
        if not _HOST.fullmatch(name):
            raise SetupError("--webhook-allow-hosts must be hosts, such as hooks.example.com or *.example.com")
    return Rules(loopback, allowed, names, proxied)


_HOST = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]+\]")


@dataclass(frozen=True)
class Config:
    """All settings of the server. Durations are in microseconds."""

    installation: Installation
    listen: str = "127.0.0.1:50051"
    bcrypt_cost: int = DEFAULT_COST
    cache_size: int = limits.CACHE_KEYS.most
    cache_bytes: int = limits.CACHE_BYTES.most
    cache_ttl: int = MINUTE
    max_staleness: int = MAX_STALENESS
    stale_if_error: int = 0
    database_notify: bool = True
    database_timeout: int = TIMEOUT
    event_retention: int = 400 * DAY
    default_prefix: str = "tmb"
    min_rotation_interval: int = HOUR
    max_project_keys: int = limits.PROJECT_KEYS.most
    webhook_rules: Rules = Rules()
    webhook_proxy: str = field(default="", repr=False)  # it may hold a password
    webhook_ca_file: Path | None = None
    max_webhook_urls: int = WEBHOOK_URLS.most
    scheduler_lease: int = lease.SPAN
    threads: int = 16
    workers: int = 1
    max_watch_streams: int = limits.WATCH_PROCESS.most
    metrics_listen: str = ""
    shutdown_grace: int = 30 * SECOND
    reflection: bool | None = None
    tls: Tls = Tls()
    insecure: bool = False
    log_level: str = "info"
    log_format: str = ""

    def __post_init__(self) -> None:
        if self.cache_bytes < limits.MIB:
            raise SetupError("--cache-bytes must be at least 1MiB")
        if self.max_staleness < SHORTEST_STALENESS:
            raise SetupError("--max-staleness must be at least 100ms")
        if self.database_timeout < SHORTEST_TIMEOUT:
            raise SetupError("--database-timeout must be at least 500ms")
        if self.scheduler_lease < SHORTEST_LEASE:
            raise SetupError("--scheduler-lease must be at least 1s")
        if self.event_retention < SHORTEST_RETENTION:
            raise SetupError("--event-retention must be at least 1d")
        if not (self.tls or self.loopback or self.insecure):
            raise SetupError(
                f"{self.listen} is not a loopback address, so keys would cross the network in plaintext: "
                "use --tls-cert and --tls-key, or --insecure if a proxy in front encrypts"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        host = self.listen.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def reflects(self) -> bool:
        """Whether reflection is on."""
        return self.loopback if self.reflection is None else self.reflection
