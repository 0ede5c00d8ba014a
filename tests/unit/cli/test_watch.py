"""The command `tumbler keys watch`."""

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
from datetime import timedelta
from threading import Event
from time import monotonic

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from tests.unit.cli.conftest import KEY, KEY_ID
from tests.unit.cli.server import END, REFUSED
from tests.unit.cli.test_events import EVENT
from tumbler.cli.flags import Flags
from tumbler.cli.session import Session
from tumbler.cli.stream import Broken, follow
from tumbler.v1 import api_key_pb2, event_pb2
from tumbler.v1 import api_key_service_pb2 as pb

OPENED = pb.WatchResponse(cursor="c0")
BROKEN = (grpc.StatusCode.UNAVAILABLE, "the server is stopping")
UNKNOWN_CURSOR = (grpc.StatusCode.INVALID_ARGUMENT, "start_cursor: not of this installation")


def told(revision, cursor, **fields):
    """Return a response with one event."""
    event = event_pb2.KeyEvent()
    event.CopyFrom(EVENT)
    event.revision = revision
    return pb.WatchResponse(events=[event], cursor=cursor, **fields)


def cursors(recorder):
    """Return the start cursor of each stream."""
    return [request.start_cursor for request in recorder.requests]


def revisions(out):
    """Return the revisions printed as JSON lines, with "reset" for a reset."""
    return [line.get("revision", "reset") for line in map(json.loads, out.splitlines())]


class TestLines:
    """The output for programs and pipes. Each test's last stream is refused, which ends the command."""

    def test_json(self, run, recorder):
        """With --json each change is one line with a KeyEvent; heartbeats are not shown."""
        recorder.streams = [[OPENED, told(1, "c1"), OPENED, told(2, "c2"), REFUSED]]
        code, out, _ = run("keys", "watch", "--project", "acme", "--json")
        first, second = map(json.loads, out.splitlines())
        assert (code, first["revision"], second["revision"]) == (1, "1", "2")
        assert (first["type"], first["key_id"]) == ("KEY_EVENT_TYPE_ROTATION_DUE", KEY_ID)
        assert first["actor"] == {"key_id": "A" * 16, "name": "operator"}
        assert first["hash"]
        (request,) = recorder.requests
        assert (request.project_id, request.heartbeat_interval) == ("acme", Duration(seconds=5))
        assert recorder.deadlines[0] > 1e9, "it may last for ever"

    def test_json_reset(self, run, recorder):
        """With --json a reset is its own object, before the changes that came with it."""
        recorder.streams = [[OPENED, told(7, "c7", reset=True), REFUSED]]
        out = run("keys", "watch", "--json")[1]
        assert json.loads(out.splitlines()[0]) == {"reset": True}
        assert revisions(out) == ["reset", "7"]

    def test_pipe(self, run, recorder):
        """In a pipe each change is one line without colours."""
        recorder.streams = [[OPENED, told(1, "c1"), REFUSED]]
        _, out, err = run("keys", "watch")
        assert re.split(r"\s{2,}", out.rstrip("\n")) == [
            *("2027-01-01 00:00:00Z", "rotation-due", KEY_ID, "acme/live", f"by operator {'A' * 16}"),
            "comment=in a log reason=compromised",
        ]
        assert "Watching for changes at 127.0.0.1:" in err

    def test_reset_in_a_pipe(self, run, recorder):
        """Without --json a reset is reported on stderr."""
        recorder.streams = [[pb.WatchResponse(cursor="c1", reset=True), REFUSED]]
        _, out, err = run("keys", "watch")
        assert out == ""
        assert "may be missing" in err

    def test_terminal_escapes(self, run, recorder):
        """Control characters in a comment are escaped, so none reaches the terminal or breaks the line."""
        event = event_pb2.KeyEvent(detail={"comment": "\x1b[31m\nx"})
        recorder.streams = [[pb.WatchResponse(events=[event]), REFUSED]]
        assert r"comment=\x1b[31m\nx" in run("keys", "watch")[1]


class TestBroken:
    """Streams that break."""

    @pytest.mark.parametrize("end", [BROKEN, END, (grpc.StatusCode.RESOURCE_EXHAUSTED, "the reader is too slow")])
    def test_healed(self, run, recorder, end):
        """A broken stream continues at the last cursor; stderr reports the break once and the recovery once."""
        recorder.streams = [[OPENED, told(1, "c1"), end], [BROKEN], [BROKEN], [told(2, "c2"), REFUSED]]
        code, out, err = run("keys", "watch", "--json")
        assert (code, revisions(out)) == (1, ["1", "2"])
        assert cursors(recorder) == ["", "c1", "c1", "c1"]
        notes = [json.loads(line)["stream"] for line in err.splitlines() if '"stream"' in line]
        assert notes == ["open", "broken", "healed"]

    def test_for_people(self, run, recorder):
        """People see the server's reason, with secrets redacted."""
        recorder.streams = [[OPENED, (*BROKEN[:1], f"stopping {KEY}")], [OPENED, REFUSED]]
        err = run("keys", "watch")[2]
        assert "The stream broke; reconnecting. UNAVAILABLE: stopping ***" in err
        assert "The stream resumed" in err

    def test_cursor_that_is_not_known_any_more(self, run, recorder):
        """If the server does not know the cursor, the stream starts from the present, with a reset."""
        recorder.streams = [[OPENED, told(9, "c9"), BROKEN], [UNKNOWN_CURSOR], [OPENED, told(3, "c3"), REFUSED]]
        out = run("keys", "watch", "--json")[1]
        assert revisions(out) == ["9", "reset", "3"]
        assert cursors(recorder) == ["", "c9", ""]

    @pytest.mark.parametrize(
        ("error", "code"), [(BROKEN, 3), ((grpc.StatusCode.RESOURCE_EXHAUSTED, "too many"), 1), (REFUSED, 1)]
    )
    def test_never_opened(self, run, recorder, error, code):
        """If the first attempt fails, the command exits as any other command would."""
        recorder.streams = [[error]]
        assert run("keys", "watch")[:2] == (code, "")
        assert len(recorder.requests) == 1

    def test_unreachable(self, run):
        """If nothing listens, the exit code is 3."""
        code, _, err = run("keys", "watch", "--endpoint", "127.0.0.1:1")
        assert code == 3
        assert "listening at 127.0.0.1:1?" in err

    def test_no_first_word(self, run, recorder):
        """A server that accepts the call must send its first message within --timeout."""
        recorder.streams = [[]]
        code, _, err = run("keys", "watch", "--timeout", "100ms")
        assert code == 3
        assert "no heartbeat arrived for 0.1 s" in err

    def test_permission_lost(self, run, recorder):
        """If the calling key loses its scope, the command reports that and ends, because a retry would not help."""
        lost = (grpc.StatusCode.PERMISSION_DENIED, "missing scope", ErrorInfo(reason="SCOPE_MISSING"))
        recorder.streams = [[OPENED, BROKEN], [lost]]
        code, _, err = run("keys", "watch")
        assert code == 1
        assert "SCOPE_MISSING" in err


class TestFollow:
    """The stream that the command uses."""

    @pytest.fixture
    def session(self, recorder):  # noqa: ARG002 - it sets the environment
        """Yield a session with the recorder's server."""
        session = Session(Flags())
        yield session
        session.close()

    def test_silence(self, recorder, session):
        """A stream that is silent for too long is closed and opened again."""
        recorder.streams = [[OPENED], [told(1, "c1")]]
        news = follow(session, "", longest_silence=timedelta(milliseconds=50), sleep=lambda _: None)
        assert next(news) == OPENED
        lost = next(news)
        assert isinstance(lost, Broken)
        assert lost.failure.message == "no heartbeat arrived for 0.05 s"
        assert next(news).cursor == "c1"
        assert cursors(recorder) == ["", "c0"]

    def test_pauses(self, recorder, session):
        """Pauses grow up to 5 s, are short again after a response, and have jitter."""
        recorder.streams = [[OPENED, BROKEN], *[[BROKEN]] * 30, [OPENED, BROKEN], [REFUSED]]
        pauses = []
        with pytest.raises(grpc.RpcError):
            list(follow(session, "", sleep=pauses.append))
        limits = [min(5, 0.1 * 2**failures) for failures in range(31)]
        assert all(0 <= pause <= limit for pause, limit in zip(pauses, [*limits, 0.1], strict=True))
        assert max(pauses) > 1
        assert len(set(pauses)) == len(pauses)

    def test_pause_that_the_server_asks_for(self, recorder, session):
        """A server's retry delay is respected."""
        later = RetryInfo(retry_delay=Duration(seconds=7))
        recorder.streams = [[OPENED, (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", later)], [REFUSED]]
        pauses = []
        with pytest.raises(grpc.RpcError):
            list(follow(session, "", sleep=pauses.append))
        assert pauses == [7]


class Terminal:
    """A pseudo-terminal of the given width, and what was shown on it."""

    def __init__(self, columns=120):
        self.ours, self.its = os.openpty()
        fcntl.ioctl(self.its, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
        self.shown = ""

    def until(self, text):
        """Read until this text has been shown."""
        deadline = monotonic() + 30
        while text not in self.shown:
            assert monotonic() < deadline, self.shown
            self.shown += os.read(self.ours, 10_000).decode(errors="replace")

    def close(self):
        """Close the terminal."""
        os.close(self.ours)
        os.close(self.its)


@pytest.fixture
def terminal(monkeypatch):
    """Yield a terminal with colours and cursor movement."""
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    yield terminal
    terminal.close()


class TestTerminal:
    """The live display."""

    def test_changes_and_keys(self, process, recorder, terminal):
        """The display shows each change and, below, the current state of the keys that changed last."""
        recorder.streams = [[OPENED, told(1, "c1")]]
        api_key = api_key_pb2.ApiKey(key_prefix=f"tmb_{KEY_ID}_", name="ci job", state="STATE_SUPERSEDED")
        recorder.answers["Get"] = [pb.GetResponse(api_key=api_key)]
        child = process("keys", "watch", stdin=terminal.its, stdout=terminal.its, stderr=terminal.its)
        terminal.until("superseded")
        assert "\x1b[?25l" in terminal.shown
        for text in ("Watching for changes", "No changes so far.", f"rotation-due      {KEY_ID}", "ci job", "CHANGE"):
            assert text in re.sub(r"\x1b\[\d+m", "", terminal.shown)
        assert recorder.requests[-1] == pb.GetRequest(key_id=KEY_ID)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        terminal.until("\x1b[?25h")
        assert "Traceback" not in terminal.shown

    def test_without_the_permission_to_read(self, process, recorder, terminal):
        """If the calling key may not read keys, the display says so once and still shows the changes."""
        recorder.errors["Get"] = (grpc.StatusCode.PERMISSION_DENIED, "missing scope")
        gate = Event()
        recorder.streams = [[OPENED, told(1, "c1"), gate, told(2, "c2"), REFUSED]]
        child = process("keys", "watch", stdin=terminal.its, stdout=terminal.its, stderr=terminal.its)
        terminal.until("lacks tumbler:keys:read")
        gate.set()
        assert child.wait(30) == 1
        terminal.until("UNAUTHENTICATED")
        assert terminal.shown.count("lacks tumbler:keys:read") == 1
        assert sum(isinstance(request, pb.GetRequest) for request in recorder.requests) == 1

    def test_notes_apart(self, process, recorder, terminal):
        """If stderr is not a terminal, notes go to stderr and not into the display."""
        recorder.streams = [[OPENED, told(1, "c1", reset=True), REFUSED]]
        child = process("keys", "watch", stdin=terminal.its, stdout=terminal.its)
        _, err = child.communicate(timeout=30)
        assert b"Watching for changes" in err
        assert b"may be missing" in err
        terminal.until("rotation-due")
        assert "Watching" not in terminal.shown

    def test_the_keys_that_changed_last(self, process, recorder, terminal):
        """The display keeps the ten keys that changed last, and only reads those."""
        events = [event_pb2.KeyEvent(key_id=f"{number:016}", type="KEY_EVENT_TYPE_CREATED") for number in range(30)]
        recorder.errors["Get"] = (grpc.StatusCode.NOT_FOUND, "gone")
        recorder.streams = [[OPENED, pb.WatchResponse(events=events, cursor="c30"), REFUSED]]
        child = process("keys", "watch", stdin=terminal.its, stdout=terminal.its)
        child.communicate(timeout=30)
        terminal.until("\x1b[?25h")
        read = [request.key_id for request in recorder.requests if isinstance(request, pb.GetRequest)]
        assert read == [f"{number:016}" for number in range(20, 30)]
        last = terminal.shown.rpartition("CHANGE")[2]
        assert re.findall(r"\d{16}", last) == read


class TestProcess:
    """How the command ends."""

    def test_interrupted(self, process, recorder, monkeypatch):
        """Ctrl-C exits with 130; each change is written at once, also to a pipe."""
        monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
        recorder.streams = [[OPENED, told(1, "c1")]]
        child = process("keys", "watch", "--json", stdout=subprocess.PIPE)
        assert json.loads(child.stdout.readline())["revision"] == "1"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out) == (130, b"")
        assert json.loads(err)["stream"] == "open"

    @pytest.mark.parametrize("then", [OPENED, told(2, "c2")], ids=["heartbeat", "change"])
    def test_reader_went_away(self, process, recorder, then):
        """If the reader closes the pipe, as head does, the command exits with 141 at the next heartbeat or change."""
        gate = Event()
        recorder.streams = [[OPENED, told(1, "c1"), gate, then]]
        child = process("keys", "watch", stdout=subprocess.PIPE)
        assert child.stdout.readline()
        child.stdout.close()
        gate.set()
        assert child.wait(30) == 141
        assert b"Traceback" not in child.stderr.read()
