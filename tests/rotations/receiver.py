"""A receiver that is cheap even at thousands of webhooks a second: one thread, and no framework.

It can verify each signature with the specification's library, and hands each webhook to a callback.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

_LONGEST = 65_536
_ANSWER = "HTTP/1.1 {} as told\r\nContent-Length: {}\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Posted:
    """A received webhook. Its repr shows no claim token and no signature."""

    path: str
    headers: dict[str, str] = field(repr=False)
    """The headers, by lower-case name."""
    body: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Return its ``webhook-id``."""
        return self.headers.get("webhook-id", "")

    @property
    def type(self) -> str:
        """Return the type in its message."""
        return str(json.loads(self.body)["type"])

    @property
    def data(self) -> dict[str, Any]:
        """Return the data in its message."""
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data

    @property
    def digest(self) -> str:
        """Return the SHA-256 digest of the body."""
        return hashlib.sha256(self.body).hexdigest()

    def signed_by(self, secret: str) -> bool:
        """Return whether the signature was made with this secret."""
        try:
            Webhook(secret).verify(self.body.decode(), self.headers)
        except WebhookVerificationError:
            return False
        return True


Take = Callable[[Posted], int]
"""Takes a webhook and returns the HTTP status of the response. Called by one thread, and must not block."""


class Receiver:
    """An HTTP server on a free port of this machine, for as long as the context lasts.

    Responses are held back while ``hold`` is set, for at most ``LONGEST_HOLD`` seconds. With ``echo``, any response
    that can have a body returns the request's.
    """

    LONGEST_HOLD = 2.0

    def __init__(self, take: Take, echo: bool = False) -> None:
        self.port = 0
        self.hold = threading.Event()
        self._take = take
        self._echo = echo
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def __enter__(self) -> "Receiver":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def url(self, path: str = "/hook") -> str:
        """Return the URL for webhooks."""
        return f"http://127.0.0.1:{self.port}{path}"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=1_024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait([task])

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            posted = await _read(reader)
            status = self._take(posted)
            held_until = self._loop.time() + self.LONGEST_HOLD
            while self.hold.is_set() and self._loop.time() < held_until:
                await asyncio.sleep(0.005)
            body = posted.body if self._echo and status != 204 else b""
            writer.write(_ANSWER.format(status, len(body)).encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the sender was killed
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Posted:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(min(int(headers["content-length"]), _LONGEST))
    return Posted(first.split(" ")[1], headers, body)
