"""gRPC streams, WebSockets and streaming responses end with their key, over real sockets."""

import asyncio
import contextlib
import http.client
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import Response, StreamingResponse

import tumbler
import tumbler.aio
from tests.clients.python.fake_server import OWN_KEY, PATIENCE, FakeServer
from tests.clients.python.says import FORBIDDEN_TEXT, KEY_TEXT, UNDECIDED_TEXT
from tumbler.guards import asgi, fastapi
from tumbler.guards import grpc as guard
from tumbler.guards import grpc_aio as aio_guard
from tumbler.guards._rules import KEY_REQUIRED
from tumbler.v1 import api_key_service_pb2 as pb

KINDS = ("unary_stream", "stream_unary", "stream_stream")
TICK = 0.02
"""Seconds between two messages of a stream that sends."""

FLOOD = b"x" * 1_000_000
"""A message large enough to fill the buffers of a peer that does not read."""


class Handlers:
    """Threaded handlers. ``speaks``: they send endlessly, else they wait. They record how they ended."""

    def __init__(self) -> None:
        self.speaks = True
        self.floods = False
        self.flooded = 0
        self.begun = threading.Semaphore(0)
        self.ends: list[str] = []
        self.over = threading.Semaphore(0)
        self.blocked = threading.Event()

    def noted(self, end: str) -> None:
        """Record how a handler ended."""
        self.ends.append(end)
        self.over.release()

    def unary_stream(self, _: bytes, context: Any) -> Iterator[bytes]:
        """Send endlessly, or wait."""
        context.add_callback(lambda: self.noted("told"))
        self.begun.release()
        while self.floods:
            self.flooded += 1
            try:
                yield FLOOD
            except GeneratorExit:
                self.noted("let go")
                raise
        while self.speaks:
            yield b"word"
            time.sleep(TICK)
        self.blocked.wait(PATIENCE)

    def stream_unary(self, requests: Iterator[bytes], _: Any) -> bytes:
        """Read all requests."""
        self.begun.release()
        try:
            for _word in requests:
                pass
        except grpc.RpcError:
            self.noted("told")
            raise
        self.noted("taken for whole")
        return b"done"

    def stream_stream(self, requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
        """Echo."""
        self.begun.release()
        try:
            yield from requests
        except (grpc.RpcError, GeneratorExit):  # as it waits for a request, or for its answer to be sent
            self.noted("told")
            raise
        self.noted("taken for whole")


class AioHandlers(Handlers):
    """The same handlers for asyncio."""

    async def unary_stream(self, _: bytes, __: Any) -> AsyncIterator[bytes]:  # type: ignore[override]
        """Send endlessly, or wait."""
        self.begun.release()
        try:
            while self.floods:
                self.flooded += 1
                yield FLOOD
            while self.speaks:
                yield b"word"
                await asyncio.sleep(TICK)
            await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.noted("told")
            raise

    async def stream_unary(self, requests: AsyncIterator[bytes], _: Any) -> bytes:  # type: ignore[override]
        """Read all requests."""
        self.begun.release()
        try:
            async for _word in requests:
                pass
        except asyncio.CancelledError:
            self.noted("told")
            raise
        self.noted("taken for whole")
        return b"done"

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> None:  # type: ignore[override]
        """Echo, by writing to the context."""
        self.begun.release()
        try:
            async for request in requests:
                await context.write(request)
        except asyncio.CancelledError:
            self.noted("told")
            raise
        self.noted("taken for whole")


class Threads:
    """A guarded threaded server, with its verifier."""

    def __init__(self, fake: FakeServer, **options: Any) -> None:
        self.handlers = Handlers()
        self.verifier = tumbler.Verifier(fake.target, api_key=OWN_KEY, timeout=PATIENCE)
        fake.handled(self.verifier)
        interceptor = guard.RequireKey(self.verifier, ["orders:read"], **options)
        self.server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[interceptor])
        self.server.add_generic_rpc_handlers((_generic(self.handlers),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    @property
    def open(self) -> int:
        """The number of tracked streams."""
        return len(self.verifier._sessions)

    def stop(self) -> None:
        """Stop the server and its verifier."""
        self.handlers.blocked.set()
        self.server.stop(None).wait()
        self.verifier.close()


class Loop:
    """A guarded asyncio server, with its verifier."""

    def __init__(self, fake: FakeServer, **options: Any) -> None:
        self.handlers = AioHandlers()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(fake, options)))
        self.thread.start()
        assert self.ready.wait(PATIENCE)

    @property
    def open(self) -> int:
        """The number of tracked streams."""
        return len(self.verifier._sessions)

    def stop(self) -> None:
        """Stop the server and its verifier."""
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join()

    async def _serve(self, fake: FakeServer, options: Any) -> None:
        self.loop, self.stopping = asyncio.get_running_loop(), asyncio.Event()
        self.verifier = tumbler.aio.Verifier(fake.target, api_key=OWN_KEY, timeout=PATIENCE)
        async with self.verifier:
            server = grpc.aio.server(interceptors=[aio_guard.RequireKey(self.verifier, ["orders:read"], **options)])
            server.add_generic_rpc_handlers((_generic(self.handlers),))
            self.port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            self.ready.set()
            await self.stopping.wait()
            await server.stop(None)


def _generic(handlers: Handlers) -> grpc.GenericRpcHandler:
    methods = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(handlers, kind)) for kind in KINDS}
    return grpc.method_handlers_generic_handler("test.Service", methods)


@pytest.fixture(params=[Threads, Loop], ids=["sync", "aio"])
def serve(request: pytest.FixtureRequest, fake: FakeServer) -> Iterator[Callable[..., Any]]:
    """Yield a function that starts a guarded server."""
    made = []

    def start(**options: Any) -> Any:
        made.append(request.param(fake, **options))
        return made[-1]

    yield start
    for server in made:
        server.stop()


class Caller:
    """A call of one kind in flight. If its requests stream, it sends one every TICK."""

    def __init__(self, server: Any, kind: str, key: str) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        self._over = threading.Event()
        method = getattr(self._channel, kind)(f"/test.Service/{kind}")
        if kind == "stream_unary":
            method = method.future
        sent = self._words() if kind.startswith("stream") else b"one"
        self.call = method(sent, metadata=(("authorization", f"Bearer {key}"),))
        assert server.handlers.begun.acquire(timeout=PATIENCE)
        self.kind = kind

    def end(self) -> tuple[str, str]:
        """Read until the call ends, and return its status and text."""
        try:
            if self.kind == "stream_unary":
                self.call.result(PATIENCE)
            else:
                for _ in self.call:
                    pass
        except grpc.RpcError as error:
            return error.code().name, error.details()
        finally:
            self.close()
        return "OK", ""

    def close(self) -> None:
        """Hang up."""
        self._over.set()
        self.call.cancel()
        self._channel.close()

    def _words(self) -> Iterator[bytes]:
        while not self._over.wait(TICK):
            yield b"word"


@pytest.mark.parametrize("kind", KINDS)
class TestGrpc:
    """Calls that stream in either direction."""

    @pytest.mark.parametrize(
        ("code", "end"),
        [
            (pb.VERIFY_CODE_REVOKED, ("UNAUTHENTICATED", KEY_TEXT)),
            (pb.VERIFY_CODE_SUPERSEDED, ("UNAUTHENTICATED", KEY_TEXT)),
            (pb.VERIFY_CODE_IP_NOT_ALLOWED, ("PERMISSION_DENIED", FORBIDDEN_TEXT)),
            (pb.VERIFY_CODE_INSUFFICIENT_SCOPE, ("PERMISSION_DENIED", FORBIDDEN_TEXT)),
        ],
    )
    def test_ends(self, serve: Callable[..., Any], fake: FakeServer, kind: str, code: Any, end: Any) -> None:
        """A call ends with the status that a new one would get, and its handler never sees a normal end."""
        key = fake.knows(1)
        server = serve()
        caller = Caller(server, kind, key)
        fake.knows(1, code=code)
        fake.send(key)
        assert caller.end() == end
        assert server.handlers.over.acquire(timeout=PATIENCE)
        assert server.handlers.ends == ["told"]
        assert server.open == 0

    def test_goes_on(self, serve: Callable[..., Any], fake: FakeServer, kind: str) -> None:
        """A change after which the key is still valid for the call ends nothing. Hanging up leaves nothing."""
        key = fake.knows(1)
        server = serve()
        caller = Caller(server, kind, key)
        asked = len(fake.calls)
        fake.send(key)
        fake.until(lambda: len(fake.calls) > asked)
        fake.handled_by(server)
        assert (server.open, server.handlers.ends) == (1, [])
        caller.close()
        _eventually(lambda: server.open == 0)

    def test_off(self, serve: Callable[..., Any], fake: FakeServer, kind: str) -> None:
        """With end_streams off a call outlives its key."""
        key = fake.knows(1)
        server = serve(end_streams=False)
        caller = Caller(server, kind, key)
        fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
        fake.send(key)
        fake.handled_by(server)
        assert (server.open, server.handlers.ends) == (0, [])
        caller.close()

    def test_an_end_by_itself(self, serve: Callable[..., Any], fake: FakeServer, kind: str) -> None:
        """The end of the key's record, which no event announces, ends the call."""
        key = fake.knows(1)
        fake.answers[key].cache_ttl.FromMilliseconds(300)
        server = serve()
        caller = Caller(server, kind, key)
        fake.answers[key].valid, fake.answers[key].code = False, pb.VERIFY_CODE_EXPIRED
        assert caller.end() == ("UNAUTHENTICATED", KEY_TEXT)

    def test_the_verifier_is_closed(self, serve: Callable[..., Any], fake: FakeServer, kind: str) -> None:
        """Closing the verifier ends all streams."""
        key = fake.knows(1)
        server = serve()
        caller = Caller(server, kind, key)
        closed = server.verifier.close()
        if closed is not None:
            asyncio.run_coroutine_threadsafe(closed, server.loop).result(PATIENCE)
        assert caller.end() == ("UNAVAILABLE", UNDECIDED_TEXT)


def test_the_first_message_is_in_flight() -> None:
    """A call is not cancelled while its first message is in flight: until then gRPC can send no status."""
    told: list[str] = []

    class Context:
        async def abort(self, _: grpc.StatusCode, details: str) -> None:
            told.append(details)
            raise grpc.aio.AbortError

    async def run() -> None:
        sent, calls = asyncio.Event(), []

        async def handler() -> None:
            async with aio_guard._Admitted(Context()) as call:
                calls.append(call)
                call.is_sending = True
                await sent.wait()
                call.sent()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(handler())
        await asyncio.sleep(0)
        calls[0].end(KEY_REQUIRED)
        await asyncio.sleep(0.05)
        assert not task.done()
        assert told == []
        sent.set()
        with pytest.raises(grpc.aio.AbortError):
            await task

    asyncio.run(run())
    assert told == [KEY_REQUIRED.text]


def test_a_handler_that_waits(serve: Callable[..., Any], fake: FakeServer) -> None:
    """A call whose handler waits for something else, and sends nothing, ends at once."""
    key = fake.knows(1)
    server = serve()
    server.handlers.speaks = False
    caller = Caller(server, "unary_stream", key)
    fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
    fake.send(key)
    assert caller.end() == ("UNAUTHENTICATED", KEY_TEXT)


def test_a_peer_that_does_not_read(serve: Callable[..., Any], fake: FakeServer) -> None:
    """A handler whose peer does not read is released, and the call ends for the peer too."""
    key = fake.knows(1)
    server = serve()
    server.handlers.floods = True
    caller = Caller(server, "unary_stream", key)
    _stands_still(lambda: server.handlers.flooded)
    fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
    fake.send(key)
    let_go = "told" if isinstance(server, Loop) else "let go"
    _eventually(lambda: let_go in server.handlers.ends and server.open == 0)
    status, _ = caller.end()
    assert status == "UNAUTHENTICATED" if isinstance(server, Loop) else status in {"UNAUTHENTICATED", "CANCELLED"}


def test_without_grpcs_own_parts(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a version of gRPC lacks the internals, the call is cancelled."""
    monkeypatch.delattr("grpc._server._abort")
    key = fake.knows(1)
    server = Threads(fake)
    caller = Caller(server, "unary_stream", key)
    fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
    fake.send(key)
    assert caller.end()[0] == "CANCELLED"
    monkeypatch.undo()
    server.stop()


class Web:
    """A streaming ASGI application, served by uvicorn. ``guarded`` puts the guard around it or into it."""

    def __init__(self, fake: FakeServer, guarded: Callable[[Any], Any]) -> None:
        self.fake = fake
        self.guarded = guarded
        self.ends: list[str] = []
        self.over = threading.Semaphore(0)
        self.answering = threading.Event()
        self.released = threading.Event()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.thread.start()
        assert self.ready.wait(PATIENCE)

    @property
    def open(self) -> int:
        """The number of tracked streams."""
        return len(self.verifier._sessions)

    def stop(self) -> None:
        """Stop the server."""
        self.server.should_exit = True
        self.thread.join()

    @contextlib.contextmanager
    def get(self, path: str, key: str) -> Iterator[http.client.HTTPResponse]:
        """Start to read a response, and hang up at the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"})
        with contextlib.closing(connection), connection.getresponse() as answer:
            yield answer

    def read(self, path: str, key: str) -> bytes:
        """Return a whole response."""
        with self.get(path, key) as answer:
            return answer.read()

    def stays(self) -> None:
        """Return once the verifier has acted on all events, and check that nothing ended."""
        self.fake.handled_by(self)
        assert self.ends == []

    async def words(self) -> AsyncIterator[bytes]:
        """Yield endlessly."""
        try:
            while True:
                yield b"word\n"
                await asyncio.sleep(TICK)
        except (asyncio.CancelledError, GeneratorExit):
            self.ends.append("told")
            self.over.release()
            raise

    async def late(self) -> AsyncIterator[bytes]:
        """Yield twice, once the test releases it."""
        try:
            await self._until_released()
            yield b"word\n"
            yield b"word\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.ends.append("told")
            self.over.release()
            raise

    async def slow(self) -> dict[str, str]:
        """Answer once the test releases it."""
        await self._until_released()
        return {"all": "right"}

    async def _until_released(self) -> None:
        self.answering.set()
        while not self.released.is_set():
            await asyncio.sleep(0.01)

    async def talk(self, websocket: WebSocket) -> None:
        """Send endlessly."""
        await websocket.accept()
        try:
            while True:
                await websocket.send_text("word")
                await asyncio.sleep(TICK)
        except BaseException:
            self.ends.append("told")
            self.over.release()
            raise

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with tumbler.aio.Verifier(self.fake.target, api_key=OWN_KEY, timeout=PATIENCE) as self.verifier:
            self.app = self.guarded(self)
            config = uvicorn.Config(self.app, log_config=None, timeout_graceful_shutdown=1)
            self.server = uvicorn.Server(config)
            listening = socket.create_server(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
            serving = asyncio.ensure_future(self.server.serve(sockets=[listening]))
            while not self.server.started:
                await asyncio.sleep(0.01)
            self.ready.set()
            await serving


class Socket:
    """A WebSocket client for an application in its own event loop. It takes the place of a server."""

    def __init__(self, web: Web, key: str) -> None:
        self._loop = web.loop
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._came: asyncio.Queue[Any] = asyncio.Queue()
        self._gone = False
        scope = {
            "type": "websocket",
            "path": "/socket",
            "raw_path": b"/socket",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
            "client": ("127.0.0.1", 1),
            "subprotocols": [],
        }
        self._come({"type": "websocket.connect"})
        self._served = asyncio.run_coroutine_threadsafe(web.app(scope, self._came.get, self._send), web.loop)
        first = self._next()["type"]
        assert first == "websocket.accept", first

    def receive(self) -> str:
        """Return the next message."""
        return str(self._next()["text"])

    def close(self) -> tuple[int, str]:
        """Wait until the server closes it, and return the code and the text. No message may follow."""
        while (message := self._next())["type"] == "websocket.send":
            pass
        self._come({"type": "websocket.disconnect", "code": message["code"]})
        with contextlib.suppress(RuntimeError):  # Starlette's, for a handler that continues to send
            self._served.result(PATIENCE)
        assert self._sent.empty()
        return message["code"], message["reason"]

    def __enter__(self) -> "Socket":
        return self

    def __exit__(self, *_: object) -> None:
        self._gone = True
        self._come({"type": "websocket.disconnect", "code": 1005})
        with contextlib.suppress(Exception):
            self._served.result(PATIENCE)

    def _next(self) -> Any:
        return self._sent.get(timeout=PATIENCE)

    def _come(self, message: Any) -> None:
        self._loop.call_soon_threadsafe(self._came.put_nowait, message)

    async def _send(self, message: Any) -> None:
        if self._gone:
            raise OSError
        self._sent.put(message)


class Whole(Response):
    """A response in one piece that is sent long after its headers."""

    def __init__(self, web: Web) -> None:
        super().__init__(b"whole")
        self._web = web

    async def __call__(self, _: Any, __: Any, send: Any) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._web._until_released()
        await send({"type": "http.response.body", "body": self.body})


def _app(web: Web, *dependencies: Any) -> FastAPI:
    app = FastAPI(dependencies=list(dependencies))
    app.get("/slow")(web.slow)
    app.websocket("/socket")(web.talk)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(web.words())

    @app.get("/late")
    async def late() -> StreamingResponse:
        return StreamingResponse(web.late())

    @app.get("/promised")
    async def promised() -> StreamingResponse:
        return StreamingResponse(web.late(), headers={"content-length": "10"})

    @app.get("/whole")
    async def whole() -> Response:
        return Whole(web)

    @app.get("/threads")
    def in_threads() -> StreamingResponse:
        def words() -> Iterator[bytes]:
            while True:
                yield b"word\n"
                time.sleep(TICK)

        return StreamingResponse(words())

    return app


def _asgi(web: Web, **options: Any) -> Any:
    return asgi.RequireKey(_app(web), verifier=web.verifier, scopes=["orders:read"], **options)


def _before_a_middleware(web: Web) -> Any:
    app = _app(web)

    @app.middleware("http")
    async def passes(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    return asgi.RequireKey(app, verifier=web.verifier, scopes=["orders:read"])


def _dependency(web: Web, **options: Any) -> Any:
    app = _app(web, Depends(fastapi.RequireKey(web.verifier, "orders:read", **options)))
    app.add_middleware(asgi.EndStreams)
    return app


def _dependency_alone(web: Web) -> Any:
    return _app(web, Depends(fastapi.RequireKey(web.verifier, "orders:read")))


@pytest.fixture
def web(fake: FakeServer) -> Iterator[Callable[..., Web]]:
    """Yield a function that serves an application."""
    made: list[Web] = []

    def start(guarded: Callable[[Any], Any]) -> Web:
        made.append(Web(fake, guarded))
        return made[-1]

    yield start
    for each in made:
        each.stop()


GUARDS = pytest.mark.parametrize("guarded", [_asgi, _dependency, _before_a_middleware])


class TestHttp:
    """Streaming responses."""

    @GUARDS
    @pytest.mark.parametrize("path", ["/stream", "/threads"])
    def test_ends(self, web: Callable[..., Web], fake: FakeServer, guarded: Any, path: str) -> None:
        """A response is broken off: its reader sees an error, not an end, and its producer is cancelled."""
        key = fake.knows(1)
        serving = web(guarded)
        with serving.get(path, key) as answer:
            assert answer.readline() == b"word\n"
            fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
            fake.send(key)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                answer.read()
        if path == "/stream":
            assert serving.over.acquire(timeout=PATIENCE)
        _eventually(lambda: serving.open == 0)

    @GUARDS
    def test_ends_before_its_first_part(self, web: Callable[..., Web], fake: FakeServer, guarded: Any) -> None:
        """A response whose headers are sent is broken off while its producer waits before the first part."""
        key = fake.knows(1)
        serving = web(guarded)
        with serving.get("/late", key) as answer:
            assert serving.answering.wait(PATIENCE)
            assert serving.open == 1
            fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
            fake.send(key)
            assert serving.over.acquire(timeout=PATIENCE)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)) as broken:
                answer.read()
        assert getattr(broken.value, "partial", b"") == b""
        _eventually(lambda: serving.open == 0)

    @GUARDS
    def test_no_part_after_the_end(self, web: Callable[..., Web], fake: FakeServer, guarded: Any) -> None:
        """A response with a content-length that is nevertheless sent in parts ends at the first of them."""
        key = fake.knows(1)
        serving = web(guarded)
        with serving.get("/promised", key) as answer:
            assert serving.answering.wait(PATIENCE)
            fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
            fake.send(key)
            serving.stays()
            serving.released.set()
            with pytest.raises((http.client.IncompleteRead, ConnectionError)) as broken:
                answer.read()
        assert getattr(broken.value, "partial", b"") == b""
        _eventually(lambda: serving.open == 0)

    @GUARDS
    def test_an_answer_in_one_piece(self, web: Callable[..., Web], fake: FakeServer, guarded: Any) -> None:
        """A response with a content-length that is sent in one piece runs to its end, however late."""
        key = fake.knows(1)
        serving = web(guarded)
        with serving.get("/whole", key) as answer:
            assert serving.answering.wait(PATIENCE)
            fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
            fake.send(key)
            serving.stays()
            serving.released.set()
            assert answer.read() == b"whole"
        _eventually(lambda: serving.open == 0)

    @GUARDS
    def test_goes_on(self, web: Callable[..., Web], fake: FakeServer, guarded: Any) -> None:
        """A change after which the key is still valid for the response ends nothing. Hanging up leaves nothing."""
        key = fake.knows(1)
        serving = web(guarded)
        with serving.get("/stream", key) as answer:
            assert answer.readline() == b"word\n"
            fake.send(key)
            serving.stays()
            for _ in range(5):
                assert answer.readline() == b"word\n"
            assert serving.open == 1
        _eventually(lambda: serving.open == 0)

    @GUARDS
    def test_an_ordinary_answer(self, web: Callable[..., Web], fake: FakeServer, guarded: Any) -> None:
        """A request in progress when its key is revoked is answered, and not tracked as a stream."""
        key = fake.knows(1)
        serving = web(guarded)
        with futures.ThreadPoolExecutor() as threads:
            answer = threads.submit(serving.read, "/slow", key)
            assert serving.answering.wait(PATIENCE)
            fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
            fake.send(key)
            serving.stays()
            assert serving.open == 0
            serving.released.set()
            assert answer.result(PATIENCE) == b'{"all":"right"}'

    def test_says_why_it_was_broken_off(self, web: Callable[..., Web], fake: FakeServer, caplog: Any) -> None:
        """The server's log of a broken response says that it was on purpose. Its class tells it apart from a fault."""
        key = fake.knows(1)
        serving = web(_asgi)
        with serving.get("/late", key):
            assert serving.answering.wait(PATIENCE)
            fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
            fake.send(key)
            assert serving.over.acquire(timeout=PATIENCE)
            _eventually(lambda: "uvicorn.error" in {record.name for record in caplog.records})
        (told,) = [record.exc_info[1] for record in caplog.records if record.name == "uvicorn.error"]
        assert isinstance(told, asgi.KeyEnded)
        assert "on purpose" in str(told)

    @pytest.mark.parametrize("make", [_asgi, _dependency])
    def test_off(self, web: Callable[..., Web], fake: FakeServer, make: Any) -> None:
        """With end_streams off a response outlives its key."""
        key = fake.knows(1)
        serving = web(lambda web: make(web, end_streams=False))
        with serving.get("/stream", key) as answer:
            fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
            fake.send(key)
            serving.stays()
            for _ in range(5):
                assert answer.readline() == b"word\n"


class TestWebSocket:
    """WebSockets."""

    @pytest.mark.parametrize("guarded", [_asgi, _dependency, _dependency_alone])
    @pytest.mark.parametrize(
        ("code", "text"),
        [(pb.VERIFY_CODE_REVOKED, KEY_TEXT), (pb.VERIFY_CODE_INSUFFICIENT_SCOPE, FORBIDDEN_TEXT)],
    )
    def test_ends(self, web: Callable[..., Web], fake: FakeServer, guarded: Any, code: Any, text: str) -> None:
        """A WebSocket is closed with 1008 and the generic text, and its handler ends."""
        key = fake.knows(1)
        serving = web(guarded)
        with Socket(serving, key) as client:
            assert client.receive() == "word"
            fake.knows(1, code=code)
            fake.send(key)
            assert client.close() == (1008, text)
        assert serving.over.acquire(timeout=PATIENCE)
        _eventually(lambda: serving.open == 0)

    @pytest.mark.parametrize("guarded", [_asgi, _dependency, _dependency_alone])
    def test_goes_on(self, web: Callable[..., Web], fake: FakeServer, guarded: Any) -> None:
        """A change after which the key is still valid for the socket ends nothing. Hanging up leaves nothing."""
        key = fake.knows(1)
        serving = web(guarded)
        with Socket(serving, key) as client:
            fake.send(key)
            serving.stays()
            assert client.receive() == "word"
            assert serving.open == 1
        _eventually(lambda: serving.open == 0)

    @pytest.mark.parametrize("guarded", [_asgi, _dependency, _dependency_alone])
    def test_refused(self, web: Callable[..., Web], fake: FakeServer, guarded: Any) -> None:
        """A refused WebSocket is not tracked as a stream."""
        key = fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
        serving = web(guarded)
        with pytest.raises(AssertionError, match="websocket"):
            Socket(serving, key)
        assert serving.open == 0


def _stands_still(count: Callable[[], int]) -> None:
    """Return once a count has stopped growing, which means that its handler is blocked."""
    seen, since = -1, time.monotonic()
    deadline = since + PATIENCE
    while time.monotonic() - since < 10 * TICK or seen < 1:
        assert time.monotonic() < deadline, "it never stood still"
        if count() != seen:
            seen, since = count(), time.monotonic()
        time.sleep(TICK)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
