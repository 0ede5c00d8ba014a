"""Checks regularly what the health service reports: can calls be served, and can anything be changed."""

import asyncio
import contextlib
import time
from concurrent.futures import Executor

from tumbler_server import calls, memory
from tumbler_server.calls import Call
from tumbler_server.errors import StoreUnavailable, TumblerError
from tumbler_server.freshness.glance import Glance
from tumbler_server.rpc.health import Health
from tumbler_server.store.database import Store
from tumbler_server.trouble import Trouble

INTERVAL = 2.0
"""Seconds between two checks of the database."""

_ATTEMPT = 1.0
"""Maximum seconds of an attempt to find out whether changes can be made again."""


class Vitals:
    """Checks the database, and updates the health service. Blocking work runs on ``threads``.

    Use it on the loop's thread only.
    """

    def __init__(self, health: Health, store: Store, glance: Glance, threads: Executor) -> None:
        self._health = health
        self._store = store
        self._glance = glance
        self._threads = threads
        self._trouble = Trouble("checking the database fails")

    async def watch(self) -> None:
        """Check regularly whether calls can be served. Also returns freed memory to the system."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look()
            await asyncio.get_running_loop().run_in_executor(self._threads, memory.trim)

    async def look(self) -> None:
        """Check now whether calls can be served, and report it."""
        try:
            await self._glance.fresh()
        except Exception as failure:
            # Catch every exception: if this task ended, the health status would never change again.
            if not isinstance(failure, StoreUnavailable):
                self._trouble.met(error=type(failure).__name__)
            self._health.say_serving(False)
        else:
            self._trouble.passed()
            self._health.say_serving(True)

    async def watch_changes(self) -> None:
        """Report regularly whether changes can be made, and find out when they can be made again."""
        while True:
            await asyncio.sleep(INTERVAL)
            if self._store.recovers:
                with contextlib.suppress(TumblerError):  # the store reports the outcome
                    await asyncio.get_running_loop().run_in_executor(self._threads, self._try_to_change)
            self._health.say_changing(self._store.takes_changes)

    def _try_to_change(self) -> None:
        with calls.serving(Call(time.monotonic() + _ATTEMPT)):
            self._store.try_to_change()
