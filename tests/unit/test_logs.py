"""The log, which never contains a secret."""

import contextlib
import importlib
import json
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pytest
import structlog
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc._cython import cygrpc

import tumbler.v1
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import secret_pb2
from tumbler_server import logs
from tumbler_server.logs import REDACTED, redact
from tumbler_server.secrets.claim_tokens import ClaimTokens
from tumbler_server.secrets.pepper import Pepper
from tumbler_server.secrets.secret import generate

KEY = generate("acme_live").text
OTHER = generate("tmb").text
TOKEN = ClaimTokens([Pepper(bytes(32))]).token("0123456789abcdef", 12)
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw+/=="

SECRET_FIELDS = {
    "CreateResponse.key",
    "CreateResponse.webhook_secret",
    "UpdateResponse.webhook_secret",
    "RotateResponse.key",
    "VerifyRequest.key",
    "ClaimRotationRequest.claim_token",
    "ClaimRotationResponse.key",
    "RotateWebhookSecretResponse.webhook_secret",
}
"""All fields of the protos that hold a secret."""


class TestRedact:
    """Redaction of keys."""

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (KEY, REDACTED),
            (f"Bearer {KEY}", f"Bearer {REDACTED}"),
            (f'{{"key": "{KEY}", "other": "{OTHER}"}}', f'{{"key": "{REDACTED}", "other": "{REDACTED}"}}'),
            (f"{KEY},{OTHER}\n{KEY}", f"{REDACTED},{REDACTED}\n{REDACTED}"),
            (f'{{"claim_token":"{TOKEN}"}}', f'{{"claim_token":"{REDACTED}"}}'),
            (f"secret {WEBHOOK_SECRET}.", f"secret {REDACTED}."),
            ([KEY, 1], [REDACTED, 1]),
            ((KEY, (KEY,)), [REDACTED, [REDACTED]]),
            ({"a": {"b": [{"c": KEY}]}}, {"a": {"b": [{"c": REDACTED}]}}),
            ({KEY: 1}, {REDACTED: 1}),
            ({"a": None, "b": 1, "c": 1.5, "d": True}, {"a": None, "b": 1, "c": 1.5, "d": True}),
            (KEY.encode(), "<bytes>"),
            ({KEY}, "<set>"),
            (ValueError(KEY), "<ValueError>"),
            (object(), "<object>"),
            ({"a": [pb.VerifyRequest(key=KEY)]}, {"a": ["<VerifyRequest>"]}),
        ],
        ids=[
            "alone", "in a header", "in JSON", "several", "claim token", "webhook secret", "list", "tuple",
            "nested", "a name", "harmless", "bytes",
            "set", "exception", "object", "message",
        ],
    )  # fmt: skip
    def test_table(self, value: Any, shown: Any) -> None:
        """A key is redacted wherever it is, and values that could hide one are shown only by their type."""
        assert redact(value) == shown

    @pytest.mark.parametrize(
        "text",
        ["", "a plain line", KEY[: KEY.rindex("_") + 1], "0123456789abcdef", "tumbler:keys:read"],
        ids=["nothing", "prose", "a key's prefix", "an id", "a scope"],
    )
    def test_harmless(self, text: str) -> None:
        """Text that is not secret is unchanged, such as ids and the key prefix that a list shows."""
        assert redact(text) == text

    def test_a_wrong_check(self) -> None:
        """A key with a wrong checksum is redacted, because it is still most of a key."""
        assert redact(KEY[:-1] + ("0" if KEY[-1] != "0" else "1")) == REDACTED


Output = Callable[[], str]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Iterator[Output]:
    """Yield a function that returns what was logged, and reset the logging afterwards."""

    def read() -> str:
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    yield read
    structlog.reset_defaults()


@pytest.mark.parametrize("form", logs.FORMATS)
class TestConfigured:
    """The configured log, in each format."""

    def test_keys(self, output: Output, form: str) -> None:
        """A key that is logged by mistake is redacted, in the event and in its values."""
        logs.configure("info", form)
        structlog.get_logger("test").warning(f"refused {KEY}", key=KEY, request={"metadata": [("authorization", KEY)]})
        written = output()
        assert KEY not in written
        assert written.count(REDACTED) == 3

    def test_messages(self, output: Output, form: str) -> None:
        """A protobuf message is shown by its type, because its text would contain the key."""
        logs.configure("info", form)
        request = pb.VerifyRequest(key="not a key by its form, but meant to be one", project_id="acme")
        structlog.get_logger("test").info("call", request=request)
        written = output()
        assert "meant to be" not in written
        assert "<VerifyRequest>" in written

    def test_exceptions(self, output: Output, form: str) -> None:
        """An exception's text is not logged, because it could contain anything."""
        logs.configure("info", form)
        log = structlog.get_logger("test")
        try:
            raise ValueError("hunter" + "2")
        except ValueError as failure:
            log.exception("failed")
            log.error("failed", exc_info=True)
            log.error("failed", exc_info=failure, error=failure)
        assert "hunter" + "2" not in output()

    def test_what_libraries_log(self, output: Output, form: str) -> None:
        """A library's record becomes one line: its first line, redacted, with an exception's type."""
        logs.configure("info", form)
        library = logging.getLogger("asyncio")
        try:
            raise ValueError("hunter" + "2")
        except ValueError as failure:
            library.exception("Task exception with %s\nfuture: %r", KEY, failure)
        written = output()
        assert written.count("\n") == 1
        assert KEY not in written
        assert "hunter" + "2" not in written
        for expected in ("Task exception with", REDACTED, "asyncio", "ValueError", "test_what_libraries_log"):
            assert expected in written
        library.info("nothing that matters")
        assert output() == ""

    def test_callers_who_have_gone(self, output: Output, form: str) -> None:
        """A caller that has gone before gRPC could answer is not logged; gRPC's other exceptions are."""
        logs.configure("info", form)
        library = logging.getLogger("grpc._cython.cygrpc")
        misused = cygrpc.ExecuteBatchError("Failed grpc_call_start_batch: 8")
        for failure in (cygrpc.ExecuteBatchError("Failed"), misused, ValueError("failed")):
            try:
                raise failure
            except Exception:
                library.exception("raised by servicer method [Verify]")
        library.warning("Aborting method [%s] due to server stop.", "Verify")
        written = output()
        assert written.count("\n") == 2
        assert "ExecuteBatchError" in written
        assert "ValueError" in written

    def test_level(self, output: Output, form: str) -> None:
        """Events below the level are not written."""
        logs.configure("warning", form)
        log = structlog.get_logger("test")
        log.info("one thing")
        log.warning("another thing")
        written = output()
        assert "one thing" not in written
        assert "another thing" in written


class TestForms:
    """The formats of the log."""

    def test_json(self, output: Output) -> None:
        """In JSON each event is one line with its level and its time in UTC."""
        logs.configure("info", "json")
        structlog.get_logger("test").info("first", number=1, text="a\nb")
        structlog.get_logger("test").error("second")
        first, second = (json.loads(line) for line in output().splitlines())
        assert (first["event"], first["level"], first["number"], first["text"]) == ("first", "info", 1, "a\nb")
        assert first["timestamp"].endswith("Z")
        assert second["level"] == "error"

    def test_not_a_terminal(self, output: Output) -> None:
        """If stderr is not a terminal, the format is JSON."""
        logs.configure()
        structlog.get_logger("test").info("first")
        assert json.loads(output())["event"] == "first"


def messages() -> Iterator[Descriptor]:
    """Yield every message type of the package, nested ones included."""
    for module in pkgutil.iter_modules(tumbler.v1.__path__, "tumbler.v1."):
        if module.name.endswith("_pb2"):
            waiting = list(importlib.import_module(module.name).DESCRIPTOR.message_types_by_name.values())
            while waiting:
                message = waiting.pop()
                waiting += message.nested_types
                yield message


def fields() -> dict[str, FieldDescriptor]:
    """Return every field of every message by its name within the package."""
    return {field.full_name.removeprefix("tumbler.v1."): field for message in messages() for field in message.fields}


def marked(field: FieldDescriptor) -> bool:
    """Return whether a field has the option that marks secrets."""
    return bool(field.GetOptions().Extensions[secret_pb2.secret])


class TestALogThatIsNotRead:
    """A log that is not read must not block the server."""

    @pytest.fixture
    def pipe(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
        """Write the log to a pipe, and yield both ends."""
        near, far = os.pipe()
        with contextlib.suppress(BrokenPipeError), os.fdopen(far, "w", buffering=1) as file:
            monkeypatch.setattr(sys, "stderr", file)
            logs.configure(form="json")
            yield near, file
            with contextlib.suppress(OSError):
                os.close(near)
        monkeypatch.undo()
        logs.configure()

    def test_a_full_pipe(self, pipe: tuple[int, TextIO]) -> None:
        """Lines that a full pipe cannot take are dropped; once it has room, their number is logged."""
        near, _ = pipe
        log = structlog.get_logger()
        for number in range(5_000):
            log.info("a line", number=number)
        read = os.read(near, 1 << 20)
        written = [json.loads(line) for line in read.splitlines()]
        assert [line["number"] for line in written] == [*range(len(written))]
        log.info("read again")
        lost, last = map(json.loads, os.read(near, 1 << 20).splitlines())
        assert lost["lines"] == 5_000 - len(written)
        assert last["event"] == "read again"

    def test_nobody_reads_it_any_more(self, pipe: tuple[int, TextIO]) -> None:
        """A log whose reader has gone raises nothing."""
        os.close(pipe[0])
        structlog.get_logger().info("a line")

    def test_a_line_that_a_pipe_might_not_take_at_once(self, pipe: tuple[int, TextIO]) -> None:
        """A line that a pipe might take only in part is dropped: writing the rest could block."""
        log = structlog.get_logger()
        log.info("long", text="x" * 5_000)
        log.info("short")
        lost, last = map(json.loads, os.read(pipe[0], 1 << 20).splitlines())
        assert (lost["lines"], last["event"]) == (1, "short")


class TestDescriptors:
    """Secrets in the protos."""

    def test_marked(self) -> None:
        """Exactly the fields that hold a secret have the option ``secret``."""
        assert {name for name, field in fields().items() if marked(field)} == SECRET_FIELDS

    def test_named_like_a_secret(self) -> None:
        """Every field with a secret's name holds one, except tokens that give no rights."""
        harmless = {"page_token", "next_page_token", "consistency_token"}
        suspicious = {
            name
            for name, field in fields().items()
            if field.name not in harmless
            and "Entry." not in name
            and (field.name == "key" or field.name.endswith(("secret", "_token", "hash", "password")))
        }
        assert suspicious - SECRET_FIELDS == {"KeyEvent.hash"}  # the chain's hash, made of data that all may read

    def test_no_read_shows_a_secret(self) -> None:
        """No response of a reading RPC contains a secret, at any depth."""
        for name in (
            "GetResponse",
            "ListResponse",
            "VerifyResponse",
            "ListEventsResponse",
            "WatchResponse",
            "ListDeliveriesResponse",
        ):
            waiting, seen = [getattr(pb, name).DESCRIPTOR], set()
            while waiting:
                message = waiting.pop()
                seen.add(message.full_name)
                assert not [field.full_name for field in message.fields if marked(field)]
                waiting += [
                    field.message_type
                    for field in message.fields
                    if field.message_type and field.message_type.full_name not in seen
                ]
