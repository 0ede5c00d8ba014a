"""A request to an ASGI application, and how it ends when its key stops being valid."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tumbler._sessions import Session
from tumbler.guards._rules import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Opening = Callable[[Callable[[Refusal], None]], Session | None]
"""Opens the session of a request that streams."""

STREAM = "tumbler.stream"
"""The name under which the ASGI scope holds the request's `HeldResponse`."""

_CLOSING = 1.0
"""Maximum seconds for sending the closing message of a WebSocket."""

_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013


_PARTS = frozenset({"http.response.body", "http.response.zerocopysend", "http.response.pathsend"})
"""Messages that carry a response's body. The last two need a server extension, and the last sends the whole body."""


class KeyEnded(ConnectionError):
    """A response was broken off: its key is no longer valid. The application sees it like a peer that hung up."""

    def __init__(self) -> None:
        """Set a message that says, in whatever log it ends up, that the application is not at fault."""
        super().__init__("the response was aborted on purpose: its API key is no longer valid")


class HeldResponse:
    """A request while it is answered. It belongs to the task that created it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._is_socket = scope["type"] == "websocket"
        self._send = send
        self._opening: list[Opening] = []
        self._sessions: list[Session] = []
        self._refusal: Refusal | None = None
        self._task = asyncio.current_task()
        self._is_running = False
        self._missing: int | None = None
        self._unless_whole: Refusal | None = None
        self._closing: asyncio.Task[None] | None = None

    def let_in(self, opening: Opening) -> None:
        """Note that a key let the request in. The key holds a WebSocket from now on, a response from its start."""
        self._opening.append(opening)
        if self._is_socket:
            self._note()

    async def run(self, app: App, scope: Scope, receive: Receive) -> None:
        """Run the application. Raises `KeyEnded` if the response was broken off: a plain return may look complete."""
        try:
            if self._refusal is None:
                self._is_running = True
                await app({**scope, STREAM: self}, receive, self.send)
        except asyncio.CancelledError:
            if self._refusal is None or not _is_only_ours(self._task):
                raise
        except Exception:
            if self._refusal is None:
                raise
        finally:
            self._is_running = False
            for session in self._sessions:
                session.close()
        if self._closing is not None:
            await self._closing
        elif self._refusal is not None:
            raise KeyEnded

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send a message of the application. Raises `KeyEnded`.

        A response is held to its key from its start, because its first part may come hours later.
        """
        if message["type"] == "http.response.start":
            self._missing = _length(message)
            self._note()
        elif message["type"] in _PARTS:
            self._part(message)
        if self._refusal is not None:
            await asyncio.sleep(0)  # lets a pending cancellation take effect
            raise KeyEnded
        await self._send(message)

    def end(self, refusal: Refusal) -> None:
        """End the request. A response with a content-length ends only if it is sent in several parts."""
        if self._refusal is not None:
            return
        if self._missing is not None:
            self._unless_whole = refusal
            return
        self._refusal = refusal
        if self._is_socket:
            self._closing = asyncio.get_running_loop().create_task(self._close(refusal))
        else:
            self._cancel()

    def _part(self, message: MutableMapping[str, Any]) -> None:
        # A middleware may split an ordinary response into one part and an empty one.
        whole = self._missing is not None and self._missing == len(message.get("body", b""))
        if whole or not message.get("more_body"):
            for session in self._sessions:
                session.close()
            return
        self._missing = None
        self._note()
        if self._unless_whole is not None:
            self.end(self._unless_whole)

    def _note(self) -> None:
        while self._opening:
            session = self._opening.pop()(self.end)
            if session is not None:
                self._sessions.append(session)

    async def _close(self, refusal: Refusal) -> None:
        # A peer that does not read must not delay cancelling the application.
        sending = asyncio.ensure_future(self._send(closing(refusal)))
        sending.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({sending}, timeout=_CLOSING)
        sending.cancel()
        self._cancel()

    def _cancel(self) -> None:
        if self._is_running and self._task is not None:
            self._task.cancel()


def _length(start: MutableMapping[str, Any]) -> int | None:
    """Return the content-length of a response, or None if it has none."""
    for name, value in start.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None


def closing(refusal: Refusal) -> dict[str, Any]:
    """Return the message that closes a WebSocket."""
    return {"type": "websocket.close", "code": closing_code(refusal), "reason": refusal.text}


def _is_only_ours(task: Any) -> bool:
    """Return whether nothing else cancelled the task too. Before Python 3.11 this is unknown, and assumed."""
    return not hasattr(task, "uncancel") or task.uncancel() == 0


def closing_code(refusal: Refusal) -> int:
    """Return the code that closes a WebSocket that cannot get an HTTP answer."""
    return _TRY_AGAIN_LATER if refusal.http >= 500 else _POLICY_VIOLATION
