"""One command's connection to the server: the channel, the calling key and the deadline."""

import os
from datetime import timedelta
from typing import Any

import grpc
import typer
from google.protobuf.message import Message

from tumbler.cli.flags import Flags
from tumbler.cli.inputs import read_bytes, read_key
from tumbler.cli.values import span
from tumbler.target import is_loopback
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

__all__ = ["Session"]

_DEFAULT_ENDPOINT = "127.0.0.1:50051"
_DEFAULT_TIMEOUT = timedelta(seconds=10)
# With http_proxy set, plaintext to this machine would go through the proxy.
_NO_PROXY = (("grpc.enable_http_proxy", 0),)
# By default a channel would wait for minutes before it reconnects to a server that was down.
_RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2000))


class Session:
    """A command's access to the server. It connects at the first call, so a usage error costs no connection."""

    def __init__(self, flags: Flags) -> None:
        self.as_json = flags.as_json
        self.endpoint = flags.endpoint or os.environ.get("TUMBLER_ENDPOINT") or _DEFAULT_ENDPOINT
        self.reads_key_from_stdin = flags.api_key_file == "-"
        self._flags = flags
        self._channel: grpc.Channel | None = None
        self.api_key = ""

    @property
    def timeout(self) -> timedelta:
        """The longest wait for an answer."""
        timeout = self._flags.timeout
        if timeout is None:
            text = os.environ.get("TUMBLER_TIMEOUT")
            timeout = _from_environment("TUMBLER_TIMEOUT", text) if text else _DEFAULT_TIMEOUT
        if not timeout:
            raise typer.BadParameter("must be more than 0.", param_hint="'--timeout'")
        return timeout

    def call(self, rpc: str, request: Message, *, with_key: bool = True, at_most: timedelta = timedelta.max) -> Any:
        """Call an RPC of the service and return its answer. Without a key, none is read and none is sent.

        The timeout is that of the options, or `at_most` if that is shorter.

        Raises:
            typer.BadParameter: The options or the environment do not say how to connect, or would send keys in
                plaintext to another machine.
            grpc.RpcError: The server refused, or cannot be reached.

        """
        return self._begin(rpc, request, min(self.timeout, at_most).total_seconds(), with_key)

    def stream(self, rpc: str, request: Message) -> Any:
        """Start a stream, which may last forever. Starting and reading it raise the errors of `call`."""
        return self._begin(rpc, request, None, with_key=True)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._channel is not None:
            self._channel.close()

    def _begin(self, rpc: str, request: Message, seconds: float | None, with_key: bool) -> Any:
        if self._channel is None:
            credentials = self._credentials()
            self._channel = (
                grpc.insecure_channel(self.endpoint, options=(*_NO_PROXY, *_RECONNECT))
                if credentials is None
                else grpc.secure_channel(self.endpoint, credentials, options=_RECONNECT)
            )
        if with_key and not self.api_key:
            self.api_key = self._read_api_key()
        method = getattr(ApiKeyServiceStub(self._channel), rpc)
        metadata = (("authorization", f"Bearer {self.api_key}"),) if with_key else ()
        return method(request, timeout=seconds, metadata=metadata)

    def _credentials(self) -> grpc.ChannelCredentials | None:
        """Return the TLS credentials, or `None` for plaintext if that is safe or was requested."""
        flags = self._flags
        if "://" in self.endpoint and self.endpoint.startswith(("http:", "https:")):
            raise typer.BadParameter(
                "must be HOST:PORT or another gRPC target, without http:// or https://.", param_hint="'--endpoint'"
            )
        authorities = flags.tls_ca or os.environ.get("TUMBLER_TLS_CA")
        if bool(flags.tls_cert) != bool(flags.tls_key):
            raise typer.BadParameter("--tls-cert and --tls-key must be given together.", param_hint="'--tls-cert'")
        if flags.tls or authorities or flags.tls_cert or _is_set("TUMBLER_TLS"):
            if flags.insecure:
                raise typer.BadParameter("cannot be combined with TLS options.", param_hint="'--insecure'")
            return grpc.ssl_channel_credentials(
                root_certificates=read_bytes(authorities, "--tls-ca") if authorities else None,
                private_key=read_bytes(flags.tls_key, "--tls-key") if flags.tls_key else None,
                certificate_chain=read_bytes(flags.tls_cert, "--tls-cert") if flags.tls_cert else None,
            )
        if not flags.insecure and not is_loopback(self.endpoint):
            raise typer.BadParameter(
                f"{self.endpoint} is not this machine, so keys would cross the network in plaintext: "
                "use --tls or --tls-ca, or --insecure if the network is trusted.",
                param_hint="'--endpoint'",
            )
        return None

    def _read_api_key(self) -> str:
        path = self._flags.api_key_file
        if path is None:
            key, source = os.environ.get("TUMBLER_API_KEY", "").strip(), "TUMBLER_API_KEY"
            if not key:
                raise typer.BadParameter(
                    "there is no calling key. Set this variable to a key of this server, or use --api-key-file.",
                    param_hint="TUMBLER_API_KEY",
                )
        else:
            key, source = read_key(path, "--api-key-file"), "'--api-key-file'"
        # gRPC would refuse it too, but its error shows the key.
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise typer.BadParameter("must be one key on one line.", param_hint=source)
        return key


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")


def _from_environment(variable: str, text: str) -> timedelta:
    try:
        return span(text)
    except typer.BadParameter as error:
        error.param_hint = variable
        raise
