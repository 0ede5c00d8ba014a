"""Declares options, and those that every command has: the server, the calling key, the timeout and the output."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from tumbler.cli.values import span

__all__ = ["Flags", "option", "takes_flags"]


def option(name: str, text: str, *more_names: str, **settings: Any) -> Any:
    """Declare an option with this help text. typer does not show its default: the text mentions it if it matters."""
    return typer.Option(name, *more_names, help=text, show_default=False, **settings)


def _connection(name: str, text: str, **settings: Any) -> Any:
    return option(name, text, rich_help_panel="Connection", **settings)


@dataclass(frozen=True)
class Flags:
    """The values of these options at one level of the command line. `None` or false: not given."""

    endpoint: Annotated[
        str | None,
        _connection("--endpoint", "The server. Default: TUMBLER_ENDPOINT, else 127.0.0.1:50051.", metavar="HOST:PORT"),
    ] = None
    api_key_file: Annotated[
        str | None,
        _connection(
            "--api-key-file",
            "Read the calling key from this file instead of TUMBLER_API_KEY; - is stdin.",
            metavar="FILE",
        ),
    ] = None
    timeout: Annotated[
        timedelta | None,
        _connection(
            "--timeout", "Timeout of each call. Default: TUMBLER_TIMEOUT, else 10s.", metavar="DURATION", parser=span
        ),
    ] = None
    tls: Annotated[
        bool, _connection("--tls", "Use TLS, and trust the system's certificate authorities (TUMBLER_TLS=1).")
    ] = False
    tls_ca: Annotated[
        str | None,
        _connection(
            "--tls-ca", "Use TLS, and trust these certificate authorities instead (TUMBLER_TLS_CA).", metavar="FILE"
        ),
    ] = None
    tls_cert: Annotated[
        str | None, _connection("--tls-cert", "Use TLS, and present this client certificate.", metavar="FILE")
    ] = None
    tls_key: Annotated[str | None, _connection("--tls-key", "The private key of --tls-cert.", metavar="FILE")] = None
    insecure: Annotated[bool, _connection("--insecure", "Send keys in plaintext even to another machine.")] = False
    as_json: Annotated[bool, option("--json", "Print JSON, also for errors.")] = False

    def inside(self, outer: "Flags") -> "Flags":
        """Return these options. An option that was not given takes the value of the outer level."""
        typed = {name: value for name in _NAMES if (value := getattr(self, name)) is not None and value is not False}
        return replace(outer, **typed)


_NAMES = tuple(field.name for field in fields(Flags))
_HINTS = get_type_hints(Flags, include_extras=True)
_PARAMETERS = tuple(
    inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=_HINTS[field.name])
    for field in fields(Flags)
)


def takes_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the function's parameter `flags` with one typer option for each field of `Flags`."""
    signature = inspect.signature(function)

    @wraps(function)
    def with_flags(**values: Any) -> None:
        flags = Flags(**{name: values.pop(name) for name in _NAMES})
        function(**values, flags=flags)

    kept = [parameter for name, parameter in signature.parameters.items() if name != "flags"]
    parameters = [*kept, *_PARAMETERS]
    with_flags.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it
    with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_flags
