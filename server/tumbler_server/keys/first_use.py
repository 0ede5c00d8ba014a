"""The first use of a rotated key's successor, where that ends the old key.

It is noted on the way of a valid answer, and written behind its back. What was noted and is not written when a process
ends is lost, and nothing else is: the successor's row says that its first use is still awaited, so that the next use is
noted again. The row is read with the write lock held, so whichever server is first writes it, once.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import replace

from tumbler_server import calls, limits
from tumbler_server.calls import Call
from tumbler_server.clock import rfc3339
from tumbler_server.errors import KeyNotFound
from tumbler_server.events.log import Actor, EventType
from tumbler_server.keys.differences import NEW, OLD
from tumbler_server.keys.ledger import Changed, Ledger
from tumbler_server.keys.record import Key
from tumbler_server.store.database import Transaction
from tumbler_server.trouble import Trouble

ACTOR = Actor("", "first-use")
"""Who ends a key because its successor is used: whoever verified that did not ask for it."""

LINE = 16
"""How many keys before it the first use of a key ends at the most: those that were rotated before they were ever used.

Callers decide how long such a line is, and all writers wait meanwhile. Those before end with their grace.
"""

_PAUSE = 1.0
"""Seconds before it is tried again to write what could not be written."""

_LAST = 0.3
"""Seconds for the last writes when the process ends. They can be missed: the next use is noted again."""


class FirstUses:
    """Notes first uses, and ends the keys that they end. Safe for use by many threads.

    Projects take turns, so that none waits for what another has noted.
    """

    def __init__(self, ledger: Ledger, most: int = limits.FIRST_USES.most) -> None:
        self._ledger = ledger
        self._most = most
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, dict[str, None]] = OrderedDict()
        """Ids of keys whose first use is to be written, by project, in the order in which the projects are served."""
        self._size = 0
        self._flushing = threading.Lock()
        self._trouble = Trouble("the end of keys whose successors were used cannot be written; retrying")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._call = Call()
        self._thread = threading.Thread(target=self._run, name="first-use", daemon=True)

    def __len__(self) -> int:
        return self._size

    def note(self, key: Key) -> None:
        """Note the use of a key that ``awaits_first_use``. It never waits for the database.

        A project has no more places than it leaves free: what one notes always leaves room for others.
        """
        with self._lock:
            noted = self._waiting.get(key.project_id, {})
            if key.id in noted or len(noted) >= self._most - self._size:
                return
            noted[key.id] = None
            self._waiting[key.project_id] = noted
            self._size += 1
        self._wake.set()

    def flush(self) -> bool:
        """Write down what has been noted; False where that failed, and is to be tried again after a pause."""
        with self._flushing:
            return self._flush()

    def start(self) -> None:
        """Begin to write what is noted, as soon as it is."""
        self._thread.start()

    def close(self) -> None:
        """Write what is noted if that takes no longer than a moment, and end."""
        self._call.deadline = time.monotonic() + _LAST
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with calls.serving(self._call):
            while not self._stopping.is_set():
                self._wake.wait()
                self._wake.clear()
                while not self.flush() and not self._stopping.wait(_PAUSE):
                    pass

    def _flush(self) -> bool:
        while (found := self._next()) is not None:
            project_id, key_id = found
            try:
                self._ledger.write(lambda transaction, key_id=key_id: self._use(transaction, key_id))  # type: ignore[misc]
            except KeyNotFound:
                pass  # the database was restored from a backup that is older than the key
            except Exception as failure:
                # It stays noted. The exception's text is not logged: it could hold anything.
                self._trouble.met(key_id=key_id, error=type(failure).__name__)
                return False
            self._trouble.passed()
            self._written(project_id, key_id)
        return True

    def _next(self) -> tuple[str, str] | None:
        """Return whose turn it is: the project and the key, which stays noted, and so is not noted again meanwhile."""
        with self._lock:
            for project_id, noted in self._waiting.items():
                self._waiting.move_to_end(project_id)
                key_id = next(iter(noted))
                noted[key_id] = noted.pop(key_id)  # one that cannot be written does not hold up the others
                return project_id, key_id
        return None

    def _written(self, project_id: str, key_id: str) -> None:
        with self._lock:
            noted = self._waiting[project_id]
            del noted[key_id]
            self._size -= 1
            if not noted:
                del self._waiting[project_id]

    def _use(self, transaction: Transaction, key_id: str) -> Changed:
        now = self._ledger.clock()
        key = self._ledger.find(transaction.read, key_id)
        if key is None:
            raise KeyNotFound(key_id)
        if not key.awaits_first_use:  # another server was faster
            return Changed(key, key.revision, now)
        used = replace(key, awaits_first_use=False)
        detail = {"replaces_key_id": key.replaces_key_id}
        changed = self._ledger.save(transaction, ACTOR, key, used, EventType.FIRST_USED, now, detail)
        later = key
        for _ in range(LINE):
            earlier = self._ledger.find(transaction.read, later.replaces_key_id) if later.awaits_first_use else None
            if earlier is None:
                break
            if earlier.grace_ends_on_first_use and not earlier.revoked and now < earlier.grace_expire_time:
                changed = self._end(transaction, earlier, key_id, now)
            later = earlier
        return changed

    def _end(self, transaction: Transaction, key: Key, used_key_id: str, now: int) -> Changed:
        ended = replace(key, grace_expire_time=now, grace_ends_on_first_use=False)
        detail = {
            "fields": "grace_expire_time",
            f"{OLD}grace_expire_time": rfc3339(key.grace_expire_time),
            f"{NEW}grace_expire_time": rfc3339(now),
            "first_used_key_id": used_key_id,
        }
        return self._ledger.save(transaction, ACTOR, key, ended, EventType.UPDATED, now, detail)
