"""The first use of a rotated key's successor, if that use ends the old key.

A valid verification notes the use in memory. A background thread writes it. Notes that are not written when the process
ends are lost, but the successor's row still awaits its first use, so the next use is noted again. The row is read under
the write lock, so only the first server writes the use, and only once.
"""

import functools
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
from tumbler_server.keys.ledger import Ledger, Snapshot
from tumbler_server.keys.record import Key
from tumbler_server.store.database import Transaction
from tumbler_server.trouble import Trouble

ACTOR = Actor("", "first-use")
"""The actor of these changes. The verifying caller did not ask for them."""

LINE = 16
"""Most predecessors that a key's first use ends. A key rotated before its own first use extends the chain.

Callers control the length of such a chain, and all writers wait for this change. Predecessors beyond the limit end with
their grace.
"""

_PAUSE = 1.0
"""Seconds before retrying a failed write."""

_LAST = 0.3
"""Seconds for the last writes at shutdown. Missing them is safe: the next use is noted again."""


class FirstUses:
    """Records first uses of keys and ends their predecessors. Safe for use by many threads.

    Projects are served round robin, so no project waits for another's backlog.
    """

    def __init__(self, ledger: Ledger, most: int = limits.FIRST_USES.most) -> None:
        self._ledger = ledger
        self._most = most
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, dict[str, None]] = OrderedDict()
        """The ids of keys with an unwritten first use, by project. The order of projects is the order of service."""
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
        """Note the use of a key that ``awaits_first_use``. Never waits for the database.

        A project may occupy at most as many places as remain free, so it always leaves room for others.
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
        """Write the noted uses. Return False if a write failed and must be retried after a pause."""
        with self._flushing:
            return self._flush()

    def start(self) -> None:
        """Start writing uses as soon as they are noted."""
        self._thread.start()

    def close(self) -> None:
        """Stop, after writing the noted uses if that takes at most 0.3 seconds."""
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
                self._ledger.write(functools.partial(self._use, key_id=key_id))
            except KeyNotFound:
                pass  # the database was restored from a backup that is older than the key
            except Exception as failure:
                # The use stays noted. The exception's text is not logged: it could hold anything.
                self._trouble.met(key_id=key_id, error=type(failure).__name__)
                return False
            self._trouble.passed()
            self._written(project_id, key_id)
        return True

    def _next(self) -> tuple[str, str] | None:
        """Return the next project and key. The key stays noted meanwhile, so it is not noted twice."""
        with self._lock:
            for project_id, noted in self._waiting.items():
                self._waiting.move_to_end(project_id)
                key_id = next(iter(noted))
                noted[key_id] = noted.pop(key_id)  # to the end: a failing key must not block the others
                return project_id, key_id
        return None

    def _written(self, project_id: str, key_id: str) -> None:
        with self._lock:
            noted = self._waiting[project_id]
            del noted[key_id]
            self._size -= 1
            if not noted:
                del self._waiting[project_id]

    def _use(self, transaction: Transaction, key_id: str) -> Snapshot:
        now = self._ledger.clock()
        key = self._ledger.find(transaction.read, key_id)
        if key is None:
            raise KeyNotFound(key_id)
        if not key.awaits_first_use or not self._ledger.intact(transaction.read, key_id):
            # Another server has already written it. Or the row was changed by hand: an event would confirm that.
            return Snapshot(key, key.revision, now)
        used = replace(key, awaits_first_use=False)
        detail = {"replaces_key_id": key.replaces_key_id}
        changed = self._ledger.save(transaction, ACTOR, key, used, EventType.FIRST_USED, now, detail)
        later = key
        for _ in range(LINE):
            earlier = self._ledger.find(transaction.read, later.replaces_key_id) if later.awaits_first_use else None
            if earlier is None or not self._ledger.intact(transaction.read, earlier.id):
                break
            if earlier.grace_ends_on_first_use and not earlier.revoked and now < earlier.grace_expire_time:
                changed = self._end(transaction, earlier, key_id, now)
            later = earlier
        return changed

    def _end(self, transaction: Transaction, key: Key, used_key_id: str, now: int) -> Snapshot:
        ended = replace(key, grace_expire_time=now, grace_ends_on_first_use=False)
        detail = {
            "fields": "grace_expire_time",
            f"{OLD}grace_expire_time": rfc3339(key.grace_expire_time),
            f"{NEW}grace_expire_time": rfc3339(now),
            "first_used_key_id": used_key_id,
        }
        return self._ledger.save(transaction, ACTOR, key, ended, EventType.UPDATED, now, detail)
