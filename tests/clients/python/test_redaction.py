"""Keys that a server quotes, or a proxy before it: no error, no log line and no answer of a guard shows them."""

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

import tumbler.aio
from tests.clients.python.fake_server import PATIENCE, FakeServer, key_of
from tumbler._batcher import MAX_CALLS_IN_FLIGHT
from tumbler._logging import log
from tumbler._redaction import redact
from tumbler.guards import asgi

ROWS: list[dict[str, str]] = json.loads((Path(__file__).parents[2] / "vectors" / "redaction.json").read_text())[
    "vectors"
]

OWN = key_of(7, "7")
SECRETS = ["0" * 20, "7" * 20]
"""What a test must not find of presented keys, and of the verifier's own."""

KEYS = [key_of(number) for number in range(MAX_CALLS_IN_FLIGHT + 3)]
QUOTING = f"no: authorization=Bearer {OWN}, keys: " + ",".join(KEYS)

STATUSES = [
    (grpc.StatusCode.UNAVAILABLE, tumbler.Unavailable),
    (grpc.StatusCode.INTERNAL, tumbler.Unavailable),
    (grpc.StatusCode.UNAUTHENTICATED, tumbler.NotAllowed),
    (grpc.StatusCode.PERMISSION_DENIED, tumbler.NotAllowed),
    (grpc.StatusCode.INVALID_ARGUMENT, tumbler.InvalidRequest),
]
each_status = pytest.mark.parametrize(("status", "kind"), STATUSES, ids=lambda value: getattr(value, "name", ""))


@pytest.fixture(autouse=True)
def verbose(caplog: pytest.LogCaptureFixture) -> None:
    """Log everything."""
    caplog.set_level(logging.DEBUG, "tumbler")


def said_by(error: BaseException | None) -> str:
    """Return all that an error shows when it is printed, and the errors behind it."""
    assert error is not None
    behind = [one for one in (error.__cause__, error.__context__) if one is not None]
    shown = [str(error), repr(error), repr(error.args), *traceback.format_exception(error), *map(said_by, behind)]
    return "\n".join(shown)


def check(shown: str) -> None:
    """Check that a text says that there were keys, and shows none."""
    assert "<key>" in shown
    assert [secret for secret in SECRETS if secret in shown] == []


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_row(row: dict[str, str]) -> None:
    """Each text becomes what the file says, and doing it again changes nothing."""
    expected = row.get("redacted", row["text"])
    assert redact(row["text"]) == expected
    assert redact(expected) == expected


def test_time_grows_with_the_length() -> None:
    """A long text takes time in proportion to its length."""
    began = time.monotonic()
    for part in ("a", "a_", "0123456789abcdef_", "aaaaaaaaaaaaaaaa_bbbbbbbbbbbbbbb_"):
        redact(part * (300_000 // len(part)))
    assert time.monotonic() - began < PATIENCE / 4


@each_status
class TestVerifiers:
    """Both verifiers, at a server whose every status quotes all keys."""

    def test_verify(
        self, fake: FakeServer, opened: Callable[..., Any], status: Any, kind: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A call of Verify."""
        verifier = opened(api_key=OWN, watch=False)
        fake.refuses_calls, fake.detail = status, QUOTING
        with pytest.raises(kind) as raised:
            verifier.verify(KEYS[0])
        check(said_by(raised.value))
        assert not any(secret in caplog.text for secret in SECRETS)

    def test_batch(self, fake: FakeServer, opened: Callable[..., Any], status: Any, kind: Any) -> None:
        """A call of BatchVerify, and what becomes of its keys one by one."""
        verifier = opened(api_key=OWN, watch=False)
        fake.detail = QUOTING
        first, others = KEYS[:MAX_CALLS_IN_FLIGHT], KEYS[MAX_CALLS_IN_FLIGHT:]
        release = [fake.hold(key) for key in first]
        begun = [verifier.begin(key) for key in first]
        fake.await_held(*first)
        begun = [verifier.begin(key) for key in others]
        batcher = verifier.verifier._batcher
        eventually(lambda: len(batcher._queue) == len(others))
        fake.refuses_calls = status
        for each in release:
            each()
        errors = [each.exception(PATIENCE) for each in begun]
        assert max(len(getattr(call, "requests", ())) for call in fake.calls) == len(others)
        for error in errors:
            assert isinstance(error, kind)
            check(said_by(error))

    @pytest.mark.parametrize("breaks", [False, True], ids=["refused", "broken"])
    def test_watch(
        self,
        fake: FakeServer,
        opened: Callable[..., Any],
        status: Any,
        kind: Any,
        breaks: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A stream that is refused, or breaks."""
        del kind
        fake.detail = QUOTING
        if breaks:
            opened(api_key=OWN)
            fake.refuses_streams = status
            fake.cut(status)
        else:
            fake.refuses_streams = status
            opened(api_key=OWN)
        eventually(lambda: status.name in caplog.text)
        check(caplog.text)


@each_status
def test_guard(fake: FakeServer, status: Any, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A guard neither answers nor logs a key."""
    fake.refuses_calls, fake.detail = status, QUOTING
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def request() -> None:
        async with tumbler.aio.Verifier(fake.target, api_key=OWN, watch=False, timeout=PATIENCE) as verifier:
            guard = asgi.RequireKey(None, verifier=verifier)  # type: ignore[arg-type]
            headers = [(b"x-api-key", KEYS[0].encode())]
            await guard({"type": "http", "path": "/", "headers": headers, "client": None}, receive, send)

    asyncio.run(request())
    assert sent[0]["status"] == (500 if kind is tumbler.InvalidRequest else 503)
    assert not any(secret in repr(sent) for secret in SECRETS)
    check(caplog.text)


class TestLog:
    """What the clients log of errors that are not theirs."""

    def test_a_traceback_with_a_key(self, caplog: pytest.LogCaptureFixture) -> None:
        """A traceback that shows a key becomes part of the text, without the key."""
        try:
            try:
                raise KeyError(KEYS[0])
            except KeyError as error:
                raise ValueError(f"unknown: {KEYS[0]}") from error
        except ValueError as error:
            log(logging.getLogger("tumbler"), logging.ERROR, "it failed: %s", error, error=error)
        (record,) = caplog.records
        assert (record.exc_info, "Traceback" in caplog.text, "KeyError" in caplog.text) == (None, True, True)
        check(caplog.text)

    def test_any_other_traceback(self, caplog: pytest.LogCaptureFixture) -> None:
        """Any other error is logged with itself, as ever."""
        error = ValueError("no key")
        log(logging.getLogger("tumbler"), logging.ERROR, "it failed: %s after %d", error, 3, error=error)
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert record.getMessage() == "it failed: no key after 3"
