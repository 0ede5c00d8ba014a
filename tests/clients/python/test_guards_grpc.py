"""The guards of threaded and asyncio gRPC servers, with all four kinds of method."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from tests.clients.python.says import GOOD, KEY_TEXT, OUTCOMES, Says, SaysAio
from tumbler import Code
from tumbler.guards import grpc as guard
from tumbler.guards import grpc_aio as aio_guard

BEARER = (("authorization", f"Bearer {GOOD}"),)
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def _handlers(behaviors: dict[str, Callable[..., Any]]) -> grpc.GenericRpcHandler:
    methods = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(behavior) for kind, behavior in behaviors.items()}
    return grpc.method_handlers_generic_handler("test.Service", methods)


def _owner() -> bytes:
    try:
        return guard.current().owner_id.encode()
    except LookupError:
        return b"nobody"


def _stream(*_: Any) -> Iterator[bytes]:
    yield _owner()
    yield _owner()


async def _unary_aio(*_: Any) -> bytes:
    await asyncio.sleep(0)
    return _owner()


async def _stream_aio(*_: Any) -> Any:
    yield _owner()
    await asyncio.sleep(0)
    yield _owner()


async def _writes_aio(_: Any, context: Any) -> None:
    await context.write(_owner())
    await context.write(_owner())


class Threads:
    """A threaded server."""

    def __init__(self, **options: Any) -> None:
        self.says = Says()
        unary = lambda *_: _owner()  # noqa: E731
        behaviors = dict(zip(KINDS, (unary, _stream, unary, _stream), strict=True))
        self.server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[guard.RequireKey(self.says, **options)])
        self.server.add_generic_rpc_handlers((_handlers(behaviors),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def stop(self) -> None:
        """Stop the server."""
        self.server.stop(None).wait()


class Loop:
    """An asyncio server, in its own thread."""

    def __init__(self, **options: Any) -> None:
        self.says = SaysAio()
        self.options = options
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.thread.start()
        assert self.ready.wait(20)

    def stop(self) -> None:
        """Stop the server."""
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join()

    async def _serve(self) -> None:
        self.loop, self.stopping = asyncio.get_running_loop(), asyncio.Event()
        behaviors = dict(zip(KINDS, (_unary_aio, _stream_aio, _unary_aio, _writes_aio), strict=True))
        server = grpc.aio.server(interceptors=[aio_guard.RequireKey(self.says, **self.options)])
        server.add_generic_rpc_handlers((_handlers(behaviors),))
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.ready.set()
        await self.stopping.wait()
        await server.stop(None)


@pytest.fixture(params=[Threads, Loop], ids=["sync", "aio"])
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Yield a function that starts a guarded server."""
    made = []

    def start(**options: Any) -> Any:
        made.append(request.param(**options))
        return made[-1]

    yield start
    for server in made:
        server.stop()


def call(server: Any, kind: str = "unary_unary", metadata: Any = BEARER) -> list[bytes]:
    """Call a method of a kind, and return all of its answers. Raises ``grpc.RpcError``."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = getattr(channel, kind)(f"/test.Service/{kind}")
        request = iter([b"one", b"two"]) if kind.startswith("stream") else b"one"
        answer = method(request, metadata=metadata, timeout=20)
        return list(answer) if kind.endswith("stream") else [answer]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    """All four kinds of method."""

    def test_passes(self, serve: Callable[..., Any], kind: str) -> None:
        """A good key lets the call pass, and its handler knows the key's identity until its last message."""
        assert set(call(serve(), kind)) == {b"owner"}

    def test_refused(self, serve: Callable[..., Any], kind: str) -> None:
        """Without a key the handler is not called, and the verifier neither."""
        server = serve()
        with pytest.raises(grpc.RpcError) as raised:
            call(server, kind, metadata=())
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, KEY_TEXT)
        assert server.says.asked == []

    def test_exempt(self, serve: Callable[..., Any], kind: str) -> None:
        """An exempt method needs no key, and its handler has no identity."""
        assert set(call(serve(exempt=[f"/test.Service/{kind}"]), kind, metadata=())) == {b"nobody"}


class TestGuard:
    """The arguments of the verification, and the answers."""

    def test_outcomes(self, serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
        """Each outcome has one status and one generic text. The log says more, and never the key."""
        server = serve()
        for outcome, status, _, text in OUTCOMES:
            server.says.outcome = outcome
            caplog.clear()
            with caplog.at_level(logging.INFO, "tumbler.guards"), pytest.raises(grpc.RpcError) as raised:
                call(server)
            assert (raised.value.code().name, raised.value.details()) == (status, text)
            assert (outcome.name if isinstance(outcome, Code) else "as the test has it") in caplog.text
            assert GOOD not in caplog.text

    @pytest.mark.usefixtures("unwritable")
    def test_outcomes_that_cannot_be_logged(self, serve: Callable[..., Any]) -> None:
        """The answers are the same."""
        server = serve()
        for outcome, status, _, text in OUTCOMES:
            server.says.outcome = outcome
            with pytest.raises(grpc.RpcError) as raised:
                call(server)
            assert (raised.value.code().name, raised.value.details()) == (status, text)

    def test_what_is_demanded(self, serve: Callable[..., Any]) -> None:
        """The scopes, the environment and the project are the configured ones. The address is the peer's."""
        server = serve(scopes=["orders:read"], environment_id="live", project_id="acme")
        call(server)
        (asked,) = server.says.asked
        assert asked["required_scopes"] == ("orders:read",)
        assert (asked["client_ip"], asked["environment_id"]) == ("127.0.0.1", "live")
        assert asked["project_id"] == ("acme",)

    def test_by_method(self, serve: Callable[..., Any]) -> None:
        """Scopes and address can be functions of the call."""
        server = serve(
            scopes=lambda call: [call.method.rpartition("/")[2]], client_ip=lambda call: call.metadata["x-real-ip"]
        )
        call(server, "unary_stream", metadata=(*BEARER, ("x-real-ip", "192.0.2.7")))
        (asked,) = server.says.asked
        assert (asked["required_scopes"], asked["client_ip"]) == (("unary_stream",), "192.0.2.7")

    def test_a_call_for_which_no_scopes_are_listed(self, serve: Callable[..., Any]) -> None:
        """If the function that names the scopes knows none for a call, the call is refused, whatever its key."""
        scopes: dict[Any, list[str]] = {}
        server = serve(scopes=lambda called: scopes.get(called.method))
        with pytest.raises(grpc.RpcError) as raised:
            call(server)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert server.says.asked == []

    def test_a_function_that_fails(self, serve: Callable[..., Any]) -> None:
        """If the function that names the scopes fails, the call does not pass."""
        server = serve(scopes={}.__getitem__)
        with pytest.raises(grpc.RpcError) as raised:
            call(server)
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert server.says.asked == []

    @pytest.mark.parametrize("options", [{"scopes": "orders:read"}, {"exempt": "/test.Service/x"}], ids=str)
    def test_one_text_is_no_list(self, options: Any) -> None:
        """A string in place of a list is refused."""
        with pytest.raises(TypeError):
            guard.RequireKey(Says(), **options)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7"),
        ("ipv6:[2001:db8::1]:51234", "2001:db8::1"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("ipv6:[fe80::1%25eth0]:51234", None),
        ("unix:/run/app.sock", None),
        ("unix:", None),
        ("", None),
    ],
)
def test_peer_address(peer: str, address: str | None) -> None:
    """A peer's address is parsed from gRPC's text, if it has one."""
    assert guard.peer_address(guard.Call("/test.Service/x", peer, {})) == address


@pytest.mark.parametrize(
    ("method", "exempt"),
    [
        ("/grpc.health.v1.Health/Check", True),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True),
        ("/acme.Orders/grpc.health.v1.Health", False),
    ],
)
def test_health_and_reflection(method: str, exempt: bool) -> None:
    """Health and reflection are recognized by their names."""
    assert guard.health_and_reflection(method) is exempt


def test_a_handler_that_does_not_block() -> None:
    """A non-blocking handler cannot wait for a verdict. Guarding it is refused; exempting it is not."""

    def behavior(*_: Any) -> None: ...

    behavior.experimental_non_blocking = True  # type: ignore[attr-defined]
    handler = grpc.unary_stream_rpc_method_handler(behavior)
    details = type("Details", (), {"method": "/test.Service/x"})
    with pytest.raises(NotImplementedError, match="exempt"):
        guard.RequireKey(Says()).intercept_service(lambda _: handler, details)
    exempting = guard.RequireKey(Says(), exempt=["/test.Service/x"])
    assert exempting.intercept_service(lambda _: handler, details) is handler


def test_no_such_method() -> None:
    """A method without a handler stays without one."""
    details = type("Details", (), {"method": "/test.Service/x"})
    assert guard.RequireKey(Says()).intercept_service(lambda _: None, details) is None
