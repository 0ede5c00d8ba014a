"""The live display of changes: the changes scroll, and the keys that changed last are listed below them."""

import sys
from types import TracebackType
from typing import Final

import grpc
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from tumbler.cli import render
from tumbler.cli.session import Session
from tumbler.cli.table import Layout
from tumbler.cli.text import console, time, visible
from tumbler.v1.api_key_pb2 import ApiKey
from tumbler.v1.api_key_service_pb2 import GetRequest, WatchResponse
from tumbler.v1.event_pb2 import KeyEvent

__all__ = ["Board"]

_MOST_KEYS: Final = 10
_LAYOUT: Final = Layout(
    titles=("KEY", "NAME", "PROJECT", "STATE", "CHANGE", "WHEN", "BY"),
    least_widths={"BY": 12, "WHEN": 10, "NAME": 12},
    least_wanted=("BY", "PROJECT", "WHEN", "NAME"),
)


class Board:
    """A display on stdout, which must be a terminal. It lasts as long as the context."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._keys: dict[str, tuple[ApiKey, KeyEvent]] = {}
        self._may_read = True
        self._console = console(sys.stdout)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=self._render,
        )

    def __enter__(self) -> "Board":
        self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, response: WatchResponse) -> None:
        """Print the changes, and read the changed keys again."""
        if response.reset:
            self._keys.clear()
            self._say(render.RESET)
        latest: dict[str, KeyEvent] = {}
        for event in response.events:
            latest.pop(event.key_id, None)
            latest[event.key_id] = event
        if response.events:
            self._console.print(Text("\n").join(map(render.event_line, response.events)))
        for key_id, event in list(latest.items())[-_MOST_KEYS:]:
            self._keys.pop(key_id, None)
            self._keys[key_id] = (self._read(event), event)
        for key_id in list(self._keys)[:-_MOST_KEYS]:
            del self._keys[key_id]
        self._live.refresh()

    def note(self, state: str, text: str) -> None:  # noqa: ARG002 - the text includes the state
        """Print the state of the stream."""
        self._say(text)

    def _read(self, event: KeyEvent) -> ApiKey:
        if self._may_read:
            try:
                api_key: ApiKey = self._session.call("Get", GetRequest(key_id=event.key_id)).api_key
                return api_key
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    self._may_read = False
                    self._say("Names and states are not shown: the calling key lacks tumbler:keys:read.")
        return ApiKey(key_prefix=event.key_id, project_id=event.project_id)

    def _say(self, text: str) -> None:
        # If stderr is this terminal too, writing to it would garble the display.
        if sys.stderr.isatty():
            self._console.print(Text(visible(text), "bold"))
        else:
            render.print_note(text)

    def _render(self) -> RenderableType:
        shown = max(1, min(_MOST_KEYS, self._console.height - 4))
        rows = [
            [
                Text(visible(api_key.key_prefix)),
                Text(visible(api_key.name)),
                Text(visible(api_key.project_id)),
                render.state(api_key),
                render.event_type(event),
                Text(time(event.time)),
                Text(visible(render.who(event))),
            ]
            for api_key, event in list(self._keys.values())[-shown:]
        ]
        return _LAYOUT.fitted(rows, self._console.width) if rows else Text("No changes so far.", "dim")
