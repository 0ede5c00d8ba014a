"""The server's settings. Each is declared once, as a field with its flag, default and help, and has a variable.

The variable's name is the flag's, in capitals, after ``TUMBLER_``. ``takes_settings`` gives them to a command.
A test compares the table in docs/configuration.md with these declarations.
"""

import functools
import inspect
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints
from urllib.parse import quote

import typer

from tumbler import decide, keyformat
from tumbler_server import defaults, limits
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND
from tumbler_server.errors import SetupError

if TYPE_CHECKING:  # a command's --help loads nothing that only its work needs
    from tumbler_server.secrets.pepper import Pepper
    from tumbler_server.webhooks.targets import TargetRules

SHORTEST_STALENESS = SECOND // 10
SHORTEST_TIMEOUT = SECOND // 2
SHORTEST_RETENTION = DAY
SHORTEST_LEASE = SECOND
MOST_WORKERS = 64

_UNITS = {"ms": SECOND // 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}


def parse_span(text: str) -> int:
    """Return a duration such as ``500ms``, ``90s``, ``15m``, ``1h`` or ``7d`` in microseconds."""
    match = re.fullmatch(r"(\d{1,9})(ms|s|m|h|d)", text)
    if match is None:
        raise typer.BadParameter("write a duration as 500ms, 90s, 15m, 1h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def format_span(span: int) -> str:
    """Return a duration in microseconds as ``parse_span`` reads it, in the largest unit that fits."""
    unit = next((unit for unit in reversed(_UNITS) if span % _UNITS[unit] == 0), "ms") if span else "s"
    return f"{span // _UNITS[unit]}{unit}"


_SIZES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def parse_size(text: str) -> int:
    """Return a size such as ``512KiB``, ``128MiB`` or ``2GiB`` in bytes."""
    match = re.fullmatch(r"(\d{1,6})(KiB|MiB|GiB)", text)
    if match is None:
        raise typer.BadParameter("write a size as 512KiB, 128MiB or 2GiB")
    return int(match[1]) * _SIZES[match[2]]


def format_size(size: int) -> str:
    """Return a size in bytes as ``parse_size`` reads it, in the largest unit that fits."""
    unit = next(unit for unit in reversed(_SIZES) if size % _SIZES[unit] == 0)
    return f"{size // _SIZES[unit]}{unit}"


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


def _span(text: str) -> Any:
    return typer.Option(help=text, parser=parse_span, metavar="DURATION")


@dataclass(frozen=True)
class Installation:
    """Where an installation stores its data. The defaults are those of SQLite."""

    data_dir: Annotated[Path, typer.Option(help="Folder of the SQLite database and the pepper file.")] = Path(
        "tumbler-data"
    )
    database: Annotated[
        str,
        typer.Option(
            envvar="TUMBLER_DATABASE_URL",
            metavar="URL",
            show_default="SQLite, tumbler.db in the data folder",
            help="sqlite:///path, postgresql://… (any libpq URI) or cockroachdb://….",
        ),
    ] = ""
    pepper: Annotated[
        Path | None,
        typer.Option(
            "--pepper-file",
            show_default="pepper in the data folder",
            help="File of the peppers, mode 0600. If set, the file must exist.",
        ),
    ] = None

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

    def peppers(self) -> "tuple[Pepper, ...]":
        """Return the peppers; none if no file is set and the default one is missing. Raises ``SetupError``."""
        if self.pepper is None and not self.pepper_file.exists():
            return ()
        from tumbler_server.secrets import pepper

        return pepper.load(self.pepper_file)


@dataclass(frozen=True)
class Tls:
    """The files of TLS. Raises ``SetupError`` if one of a pair is missing."""

    cert: Annotated[Path | None, typer.Option("--tls-cert", help="PEM file of the certificate chain.")] = None
    key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file of the private key.")] = None
    client_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-client-ca",
            help="PEM file of a certificate authority. Clients must present a certificate that it signed.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise SetupError("--tls-cert and --tls-key must be given together")
        if self.client_ca and not self.cert:
            raise SetupError("--tls-client-ca needs --tls-cert and --tls-key")

    def __bool__(self) -> bool:
        return self.cert is not None


def _webhook_rules(loopback: bool, networks: str, hosts: str, proxied: bool) -> "TargetRules":
    """Return what webhooks may reach, from lists separated by commas. Raises ``SetupError``."""
    try:
        allowed = tuple(decide.parse_network(part.strip()) for part in networks.split(",") if part.strip())
    except ValueError:
        raise SetupError("--webhook-allow-networks must be networks without host bits, such as 10.1.0.0/16") from None
    names = tuple(part.strip().lower() for part in hosts.split(",") if part.strip())
    for name in names:
        if not _HOST.fullmatch(name):
            raise SetupError("--webhook-allow-hosts must be hosts, such as hooks.example.com or *.example.com")
    from tumbler_server.webhooks.targets import TargetRules

    return TargetRules(loopback, allowed, names, proxied)


_HOST = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]+\]")


@dataclass(frozen=True)
class Config:
    """All settings of the server. Durations are in microseconds."""

    installation: Installation
    listen: Annotated[str, typer.Option(parser=parse_address, metavar="ADDRESS", help="Address to serve on.")] = (
        "127.0.0.1:50051"
    )
    bcrypt_cost: Annotated[
        int,
        typer.Option(
            min=defaults.CHEAPEST_BCRYPT,
            max=defaults.DEAREST_BCRYPT,
            help="Cost of new bcrypt hashes; each step doubles the time. "
            "Keys with older hashes are rehashed when used.",
        ),
    ] = defaults.BCRYPT_COST
    cache_size: Annotated[int, typer.Option(min=1, help="Maximum number of keys in the cache of a process.")] = (
        limits.CACHE_KEYS.most
    )
    cache_bytes: Annotated[
        int,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            help="Maximum memory of the cache of a process, at least 1MiB. The oldest keys not in use are evicted.",
        ),
    ] = limits.CACHE_BYTES.most
    cache_ttl: Annotated[
        int, _span("Maximum time that a client may cache an answer while its Watch stream is fresh.")
    ] = MINUTE
    max_staleness: Annotated[
        int,
        _span("Maximum staleness of an answer after a change by another server. Beyond it the database is read."),
    ] = defaults.MAX_STALENESS
    stale_if_error: Annotated[
        int,
        _span("How much longer to answer for cached keys while the database is away. Delays revocations by as much."),
    ] = 0
    database_notify: Annotated[
        bool, typer.Option(help="Wake other servers on PostgreSQL with NOTIFY. Behind a pooler they only poll.")
    ] = True
    database_timeout: Annotated[
        int,
        _span("Maximum time of a change in the database, waiting included; at least 500ms. Reads have a fifth of it."),
    ] = defaults.DATABASE_TIMEOUT
    event_retention: Annotated[
        int, _span("How long to keep events, at least 1d. Older events are removed from the start of the log.")
    ] = 400 * DAY
    default_prefix: Annotated[
        str, typer.Option(parser=_prefix, metavar="PREFIX", help="Prefix of keys for which Create sets none.")
    ] = "tmb"
    min_rotation_interval: Annotated[int, _span("Minimum rotation interval of a key.")] = HOUR
    max_project_keys: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum number of keys of a project, in any state. Beyond it Create, Rotate and ClaimRotation fail.",
        ),
    ] = limits.PROJECT_KEYS.most
    webhook_allow_loopback: Annotated[
        bool,
        typer.Option(
            "--webhook-allow-loopback",
            help="Allow webhooks to 127.0.0.1 and ::1, also over http: for tests and local work.",
        ),
    ] = False
    webhook_allow_networks: Annotated[
        str,
        typer.Option(
            metavar="CIDRS",
            show_default="none",
            help="Private or special networks that webhooks may reach, such as 10.1.0.0/16,fd00:1::/64.",
        ),
    ] = ""
    webhook_allow_hosts: Annotated[
        str,
        typer.Option(
            metavar="HOSTS",
            show_default="any",
            help="The only hosts that webhooks may reach, such as hooks.example.com,*.example.org.",
        ),
    ] = ""
    webhook_proxy: Annotated[
        str,
        typer.Option(
            metavar="URL",
            show_default="none",
            help="HTTP proxy for webhooks, http://[user:password@]host:port. The proxy resolves host names.",
        ),
    ] = field(default="", repr=False)  # it may hold a password
    webhook_ca_file: Annotated[
        Path | None,
        typer.Option(help="PEM file of certificate authorities to trust for webhooks, in addition to the system's."),
    ] = None
    max_webhook_urls: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of webhook URLs of a project. An unused URL counts for another day."),
    ] = limits.WEBHOOK_URLS.most
    scheduler_lease: Annotated[
        int, _span("How long the acting scheduler may be silent before another takes over, at least 1s.")
    ] = defaults.SCHEDULER_LEASE
    threads: Annotated[
        int,
        typer.Option(min=1, max=1_000, help="Threads that use the database; the server keeps as many connections."),
    ] = 16
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_WORKERS,
            help="Serving processes on the port. Each has its own threads, cache and connections.",
        ),
    ] = 1
    max_watch_streams: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum number of Watch streams of a process. Beyond it the project with the most streams gives way.",
        ),
    ] = limits.WATCH_PROCESS.most
    metrics_listen: Annotated[
        str,
        typer.Option(
            parser=parse_address_or_none,
            metavar="ADDRESS",
            show_default="off",
            help="Address to serve metrics on, over plain HTTP in Prometheus format, without authentication.",
        ),
    ] = ""
    shutdown_grace: Annotated[int, _span("How long calls in flight may continue after SIGTERM.")] = 30 * SECOND
    reflection: Annotated[
        bool | None,
        typer.Option(
            show_default="on for a loopback address, else off",
            help="Offer gRPC reflection, for tools such as grpcurl.",
        ),
    ] = None
    tls: Tls = Tls()
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve without TLS on an address that is not loopback.")
    ] = False
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "info"
    log_format: Annotated[
        str,
        typer.Option(metavar="FORMAT", show_default="console on a terminal, else json", help="console or json."),
    ] = ""

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
        _ = self.webhook_rules  # raises if they are wrong
        if not (self.tls or self.loopback or self.insecure):
            raise SetupError(
                f"{self.listen} is not a loopback address, so keys would cross the network in plaintext: "
                "use --tls-cert and --tls-key, or --insecure if a proxy in front encrypts"
            )

    @functools.cached_property
    def webhook_rules(self) -> "TargetRules":
        """What webhooks may reach."""
        return _webhook_rules(
            self.webhook_allow_loopback,
            self.webhook_allow_networks,
            self.webhook_allow_hosts,
            proxied=bool(self.webhook_proxy),
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


_FORMATS: dict[Any, Callable[[int], str]] = {parse_span: format_span, parse_size: format_size}


def _options(group: type) -> Iterator[inspect.Parameter]:
    """Yield a typer parameter for each setting of a class."""
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        hint = hints[each.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _options(hint)
            continue
        (option,) = hint.__metadata__
        # In `Annotated`, typer keeps the first name as the default.
        flag = option.default if isinstance(option.default, str) else f"--{each.name.replace('_', '-')}"
        option.envvar = option.envvar or "TUMBLER_" + flag.removeprefix("--").replace("-", "_").upper()
        default: Any = each.default
        if option.parser in _FORMATS:
            default = _FORMATS[option.parser](default)
        yield inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


_SETTINGS = {option.name: option for option in _options(Config)}
_GROUPS = (Installation, Config)


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give settings to a command: by a parameter with a setting's name, or all of a class by one of that class."""
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.annotation in _GROUPS:
            groups[name] = parameter.annotation
            parameters |= {option.name: option for option in _options(parameter.annotation)}
        elif parameter.default is inspect.Parameter.empty:
            parameters[name] = _SETTINGS[name]
        else:
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(command)
    def with_settings(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = _made(group, given)
        command(**given)

    with_settings.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]  # typer reads it
    with_settings.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return with_settings


def _made(group: type, given: dict[str, Any]) -> Any:
    """Return the settings of a class, and remove them from what was given."""
    hints = get_type_hints(group)
    return group(
        **{
            each.name: _made(hints[each.name], given) if is_dataclass(hints[each.name]) else given.pop(each.name)
            for each in fields(group)
        }
    )
