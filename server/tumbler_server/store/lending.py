"""Peewee on connections that are opened elsewhere."""

import threading
from typing import Any


class Lending:
    """A mix-in for a peewee database: connecting means taking the connection that the thread was lent.

    Peewee connects while it holds a lock, so threads would wait for one another's attempts.
    """

    _lent = threading.local()

    def lend(self, connection: Any) -> None:
        """Make this thread use a connection."""
        self._lent.connection = connection
        self.connect()  # type: ignore[attr-defined]  # the database that this is mixed into has it

    def unlend(self) -> None:
        """Make this thread forget its connection, which stays open."""
        self.dispose()  # type: ignore[attr-defined]  # likewise

    def _connect(self) -> Any:
        return self._lent.connection

    def _set_server_version(self, _: Any) -> None:
        # Peewee would query CockroachDB under the lock. Nothing that we send depends on the version.
        self.server_version = 0
