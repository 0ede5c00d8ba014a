"""The health service, without a server."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.harness import Aborted, Context, Refused
from tests.unit.test_lanes import PATIENCE, turns
from tumbler_server import shares
from tumbler_server.limits import Limit
from tumbler_server.rpc import health, reflecting
from tumbler_server.rpc.health import CHANGES, LIVENESS, Health
from tumbler_server.rpc.reflecting import Reflection
from tumbler_server.rpc.shedding import Shedding

OURS = "tumbler.v1.ApiKeyService"


def asking(service: str) -> bytes:
    """Return the serialized request for a service."""
    return bytes(health_pb2.HealthCheckRequest(service=service).SerializeToString())


class Asking(Context):
    """The context that gRPC gives a call's handler. Without ``message``, none arrives until the test sets one."""

    def __init__(self, message: Any = None, peer: str = "ipv4:127.0.0.1:40000") -> None:
        super().__init__(peer, b"")
        self.message: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if message is not None:
            self.message.set_result(message)

    async def read(self) -> Any:
        return await self.message

    async def next(self) -> str:
        """Return the name of the next status sent."""
        return told(await asyncio.wait_for(self.written.get(), PATIENCE))


def told(answer: bytes) -> str:
    """Return the name of the status in an answer."""
    return str(
        health_pb2.HealthCheckResponse.ServingStatus.Name(health_pb2.HealthCheckResponse.FromString(answer).status)
    )


def begin(server: Health, method: str, context: Context) -> "asyncio.Task[Any]":
    """Start a call, as gRPC would."""
    call = server.service(SimpleNamespace(method=f"/{health.SERVICE}/{method}"))
    assert call is not None
    return asyncio.ensure_future((call.stream_stream or call.stream_unary)(None, context))


async def begin_in(server: Health, context: Context) -> None:
    """Serve a Check in the current task."""
    call = server.service(SimpleNamespace(method=f"/{health.SERVICE}/Check"))
    assert call is not None
    await call.stream_unary(None, context)


async def ended(task: "asyncio.Task[Any]", context: Context) -> Any:
    """Return a call's result. Raises ``Refused``."""
    try:
        return await asyncio.wait_for(task, PATIENCE)
    except Aborted:
        raise Refused(context.code, context.details, context.trailing) from None


async def check(server: Health, service: str | bytes = "") -> str:
    """Check a service, and return the name of its status."""
    context = Asking(service if isinstance(service, bytes) else asking(service))
    return told(await ended(begin(server, "Check", context), context))


def healthy(test: Callable[[Health], Awaitable[None]]) -> None:
    """Run a test on a loop with its own health service."""

    async def run() -> None:
        await asyncio.wait_for(test(Health(OURS, Shedding())), PATIENCE)

    asyncio.run(run())


def test_check() -> None:
    """The server and its service are NOT_SERVING until reported otherwise; liveness is always SERVING."""

    async def test(server: Health) -> None:
        for serving, expected in ((None, "NOT_SERVING"), (True, "SERVING"), (False, "NOT_SERVING")):
            if serving is not None:
                server.say_serving(serving)
            assert [await check(server, name) for name in ("", OURS, LIVENESS)] == [expected, expected, "SERVING"]

    healthy(test)


@pytest.mark.parametrize("serving", [True, False])
@pytest.mark.parametrize("changing", [True, False])
def test_changes(serving: bool, changing: bool) -> None:
    """If changes cannot be made, only the name for changes is NOT_SERVING, to Check and to Watch."""

    async def test(server: Health) -> None:
        server.say_serving(True)
        watching = Asking(asking(CHANGES))
        task = begin(server, "Watch", watching)
        assert await watching.next() == "SERVING"
        server.say_changing(changing)
        server.say_serving(serving)
        expected = "SERVING" if serving and changing else "NOT_SERVING"
        whole = "SERVING" if serving else "NOT_SERVING"
        assert [await check(server, name) for name in ("", OURS, CHANGES)] == [whole, whole, expected]
        if expected == "NOT_SERVING":
            assert await watching.next() == expected
        server.say_changing(True)
        server.say_serving(True)
        assert await check(server, CHANGES) == "SERVING"
        server.say_goodbye()
        server.say_changing(True)
        assert await check(server, CHANGES) == "NOT_SERVING"
        task.cancel()

    healthy(test)


def test_watch() -> None:
    """A Watch gets the current status at once and then each change, without repetition."""

    async def test(server: Health) -> None:
        watching = [Asking(asking(name)) for name in ("", OURS, LIVENESS, "no.such.Service")]
        tasks = [begin(server, "Watch", each) for each in watching]
        assert [await each.next() for each in watching] == ["NOT_SERVING"] * 2 + ["SERVING", "SERVICE_UNKNOWN"]
        for serving in (True, True, False):
            server.say_serving(serving)
            await turns()
        for each in watching[:2]:
            assert [await each.next(), await each.next()] == ["SERVING", "NOT_SERVING"]
        assert all(each.written.empty() for each in watching)
        for task in tasks:
            task.cancel()

    healthy(test)


def test_goodbye() -> None:
    """A stopping server reports NOT_SERVING, ends its streams, and never reports SERVING again."""

    async def test(server: Health) -> None:
        server.say_serving(True)
        watching = Asking(asking(""))
        task = begin(server, "Watch", watching)
        assert await watching.next() == "SERVING"
        server.say_goodbye()
        assert await watching.next() == "NOT_SERVING"
        await ended(task, watching)
        server.say_serving(True)
        assert await check(server) == "NOT_SERVING"
        late = Asking(asking(OURS))
        await ended(begin(server, "Watch", late), late)
        assert await late.next() == "NOT_SERVING"

    healthy(test)


def test_goodbye_during_a_write() -> None:
    """If the server stops during a write, the stream still gets NOT_SERVING before it ends."""

    class Leaving(Asking):
        async def write(self, message: bytes) -> None:
            await super().write(message)
            server_of[0].say_goodbye()
            await turns()

    server_of: list[Health] = []

    async def test(server: Health) -> None:
        server_of.append(server)
        server.say_serving(True)
        watching = Leaving(asking(""))
        await ended(begin(server, "Watch", watching), watching)
        assert [await watching.next(), await watching.next()] == ["SERVING", "NOT_SERVING"]

    healthy(test)


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (asking("no.such.Service"), "NOT_FOUND", None),
        (b"\xff", "INVALID_ARGUMENT", "UNDECODABLE"),
        (b"\xff" * (shares.HEALTH_BYTES.most + 1), "INVALID_ARGUMENT", "REQUEST_TOO_LARGE"),
        (grpc.aio.EOF, "INVALID_ARGUMENT", "UNDECODABLE"),
    ],
    ids=["unknown", "undecodable", "too large", "none"],
)
def test_refused(message: Any, code: str, reason: str | None) -> None:
    """A bad Check, or one of an unknown service, is refused, and the error does not quote the name."""

    async def test(server: Health) -> None:
        context = Asking(message)
        with pytest.raises(Refused) as raised:
            await ended(begin(server, "Check", context), context)
        assert raised.value.code.name == code
        assert "such.Service" not in raised.value.message
        if reason:
            assert raised.value.reason == reason

    healthy(test)


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_too_slow(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that sends no message is refused when the time for sending is over."""
    monkeypatch.setattr(shares, "SECONDS_TO_SEND", Limit("patience", 0, "seconds", ""))

    async def test(server: Health) -> None:
        context = Asking()
        with pytest.raises(Refused) as raised:
            await ended(begin(server, method, context), context)
        assert raised.value.reason == "REQUEST_TOO_SLOW"

    healthy(test)


@pytest.mark.parametrize(("method", "crowd"), [("Check", shares.OPEN_CROWD), ("Watch", shares.HEALTH_WATCH_CROWD)])
def test_bounds(method: str, crowd: shares.CrowdLimit) -> None:
    """A connection's calls above its maximum are refused, while another connection's are served."""

    async def test(server: Health) -> None:
        open_calls = [begin(server, method, Asking()) for _ in range(crowd.most_each)]
        await turns()
        one_more = Asking()
        with pytest.raises(Refused) as raised:
            await ended(begin(server, method, one_more), one_more)
        assert raised.value.reason == "OVERLOADED"
        other = Asking(peer="ipv4:127.0.0.1:40001")
        task = begin(server, method, other)
        await turns()
        assert not task.done()
        for call in (*open_calls, task):
            call.cancel()
        await turns()
        again = begin(server, method, Asking())
        await turns()
        assert not again.done()
        again.cancel()

    healthy(test)


def test_who_keeps_the_question_back_makes_room() -> None:
    """If silent callers hold all places, a caller that sends its request takes the place of the oldest."""

    async def test(server: Health) -> None:
        server.say_serving(True)
        places = shares.OPEN_CROWD.most
        silent = [begin(server, "Check", Asking(peer=f"ipv4:192.0.2.1:{number}")) for number in range(places)]
        await turns()
        assert not any(each.done() for each in silent)
        assert await check(server) == "SERVING"
        await turns()
        assert [each.done() for each in silent] == [True] + [False] * (places - 1)
        for each in silent:
            each.cancel()
        await asyncio.gather(*silent, return_exceptions=True)

    healthy(test)


@pytest.mark.parametrize("name", ["", "no such service", "x" * 300], ids=["an answer", "a status", "a refusal"])
def test_who_does_not_take_the_answer_makes_room(name: str) -> None:
    """If callers that do not read their answers hold all places, the oldest is cut off for a new one.

    This includes answers for an unknown service and for a request that is too long.
    """

    async def test(server: Health) -> None:
        server.say_serving(True)

        async def check_unread(number: int) -> None:  # as gRPC does: its task runs until the answer is read
            context = Asking(asking(name), peer=f"ipv4:192.0.2.1:{number}")
            context.abort = lambda *_: asyncio.Event().wait()  # type: ignore[method-assign,assignment,return-value]
            await begin_in(server, context)
            await asyncio.Event().wait()

        unread = [asyncio.ensure_future(check_unread(number)) for number in range(shares.OPEN_CROWD.most)]
        await turns()
        assert not any(each.done() for each in unread)
        assert await check(server) == "SERVING"
        await turns()
        assert [each.done() for each in unread] == [True] + [False] * (len(unread) - 1)
        for each in unread:
            each.cancel()
        await asyncio.gather(*unread, return_exceptions=True)

    healthy(test)


@pytest.mark.parametrize(
    ("path", "crowd"),
    [
        (f"/{health.SERVICE}/Check", shares.OPEN_CROWD),
        (f"/{health.SERVICE}/Watch", shares.HEALTH_WATCH_CROWD),
        (f"/{reflecting.SERVICE}/{reflecting.METHOD}", shares.REFLECTION_CROWD),
    ],
    ids=["Check", "Watch", "reflection"],
)
def test_late_refusals(path: str, crowd: shares.CrowdLimit) -> None:
    """If an address repeatedly opens too many calls, its refusals are delayed."""

    async def test() -> None:
        shed = Shedding()
        services = (Health(OURS, shed), Reflection((OURS,), shed))

        def call() -> "asyncio.Task[Any]":
            handler = next(filter(None, (each.service(SimpleNamespace(method=path)) for each in services)))
            return asyncio.ensure_future((handler.stream_stream or handler.stream_unary)(None, Asking()))

        calls = [call() for _ in range(crowd.most_each + shares.PROMPT_REFUSALS.most)]
        await turns()
        assert [each.done() for each in calls] == [False] * crowd.most_each + [True] * shares.PROMPT_REFUSALS.most
        calls.append(late := call())
        await turns()
        assert not late.done()
        shed.say_goodbye()
        await asyncio.wait((late,), timeout=PATIENCE)
        assert isinstance(late.exception(), Aborted)
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(test())


@pytest.mark.parametrize("later", range(5))
def test_reset_in_the_moment_of_its_request(later: int) -> None:
    """A stream that is reset just as its request arrives ends, whichever is processed first."""

    async def test(server: Health) -> None:
        context = Asking()
        task = begin(server, "Watch", context)
        await turns()
        context.message.set_result(asking(""))
        await turns(later)
        task.cancel()
        await turns(10)
        assert task.cancelled()
        assert len(server._watching.present) == 0

    healthy(test)
