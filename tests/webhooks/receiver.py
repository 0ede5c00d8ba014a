"""A receiver that keeps the webhooks that it gets, and the server's flags to send some to it."""

import json
import queue
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.e2e.service import PATIENCE

OPTIONS = ("--webhook-allow-loopback", "--min-rotation-interval", "1s")
"""Flags of ``serve`` that allow webhooks to this machine, and rotations that are due soon enough for a test."""

_MOST = 65_536


@dataclass(frozen=True)
class Sent:
    """A received webhook. Its repr shows no claim token and no signature."""

    path: str
    headers: dict[str, str] = field(repr=False)
    """The headers, by lower-case name."""
    body: str = field(repr=False)

    @property
    def type(self) -> str:
        """Return the type in its message."""
        return str(json.loads(self.body)["type"])

    @property
    def data(self) -> dict[str, Any]:
        """Return the data in its message."""
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data


class Receiver:
    """An HTTP server on a free port of this machine, for as long as the context lasts.

    It answers with ``status`` and ``headers``, which may be changed at any time.
    """

    def __init__(self, status: int = 204) -> None:
        self.status = status
        self.headers: dict[str, str] = {}
        self._sent: queue.Queue[Sent] = queue.Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = PATIENCE

            def do_POST(self) -> None:
                body = self.rfile.read(min(int(self.headers["Content-Length"]), _MOST))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver._sent.put(Sent(self.path, headers, body.decode()))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver")

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Return the URL for webhooks."""
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    @property
    def waiting(self) -> int:
        """Return the number of webhooks that ``next`` has not returned yet."""
        return self._sent.qsize()

    def next(self, type_: str) -> Sent:
        """Wait for the next webhook of a type, and skip others. Fail if none comes."""
        while True:
            try:
                sent = self._sent.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no {type_} came within {PATIENCE} s") from None
            if sent.type == type_:
                return sent
