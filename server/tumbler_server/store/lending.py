"""Peewee on connections that somebody else opened."""

import threading
from typing import Any


class Lending:
    """Mixed into a peewee database: connecting is taking what a thread was lent.

    Peewee connects while it holds a lock, so threads would wait for each other's attempts.
    """

    _lent = threading.local()

    def lend(self, connection: Any) -> None:
        """Have this thread work on a connection."""
        self._lent.connection = connection
        self.connect()  # type: ignore[attr-defined]

    def unlend(self) -> None:
        """Have this thread forget the connection, which stays open."""
        self.dispose()  # type: ignore[attr-defined]

    def _connect(self) -> Any:
        return self._lent.connection

    def _set_server_version(self, _: Any) -> None:
        # CockroachDB would be asked, under the lock. Nothing that we send depends on it.
        self.server_version = 0
