"""Last-used times of keys. Each valid verification notes one in memory. A background thread writes them in batches."""

import json
import threading
import time
from collections.abc import Callable, Sequence

import peewee

from tumbler_server import calls, clock, logs
from tumbler_server.calls import Call
from tumbler_server.clock import SECOND, Clock
from tumbler_server.limits import USE_NOTES
from tumbler_server.store.database import SQLITE, Store
from tumbler_server.trouble import Trouble

INTERVAL = 30.0
"""Seconds between two flushes. A crash loses at most the notes of this time."""

MOST_NOTES = USE_NOTES.most
"""Most keys noted while the database is unavailable."""

LAST = 0.7
"""Least seconds for the last flush. Losing half a minute of notes is better than being killed."""

EXACTNESS = 30 * SECOND
"""A stored time is updated only if it is more than this much out of date. Together with the interval, times are exact
to a minute."""

# A flush holds locks that changes may wait for: on SQLite the only write lock. The batch size adapts so that each
# statement takes less than `_LONGEST`, whatever the disk. With 100,000 keys in the table and random ids, 200 of them
# took 30 ms on SQLite and 26 ms on PostgreSQL on the development machine; 5,000 took 270 ms and 460 ms.
_LONGEST = 50_000
_FIRST_SIZE, _LEAST_SIZE, _MOST_SIZE = 200, 50, 5_000

# A use is not a change: revision, etag and update_time stay the same. A time is never lowered.
_ON_SQLITE = f"""
UPDATE api_key SET last_used_time = noted.value FROM json_each(?) AS noted
WHERE api_key.id = noted.key AND api_key.last_used_time < noted.value - {EXACTNESS}
"""  # noqa: S608 - no input in it
# Rows are locked in id order, so two servers that write the same keys do not deadlock. Most changes lock only one
# existing row. Those that lock several (`verify.first_use`, `scheduler.alarms`) may do so in another order: then the
# store retries the transaction that the database aborts.
_ON_POSTGRESQL = f"""
WITH noted AS (
  SELECT k.id, n.at FROM api_key k JOIN unnest(%s::text[], %s::bigint[]) AS n (id, at) ON k.id = n.id
  WHERE k.last_used_time < n.at - {EXACTNESS} ORDER BY k.id FOR UPDATE OF k
)
UPDATE api_key SET last_used_time = GREATEST(api_key.last_used_time, noted.at) FROM noted WHERE api_key.id = noted.id
"""  # noqa: S608 - no input in it

_log = logs.get_logger(__name__)


class Usage:
    """Records when keys are used. Safe for use by many threads."""

    def __init__(
        self, store: Store, monotonic: Clock = clock.monotonic, translate: Callable[[int], int] = lambda noted: noted
    ) -> None:
        """``translate`` converts a time of this process's clock to the time to store. It may raise."""
        self._store = store
        self._monotonic = monotonic
        self._translate = translate
        # Always the same dictionary. Each operation on it is atomic: setting an item, `list` of its keys, `pop`,
        # `setdefault`. If a flush swapped in a new one, a thread that had just looked up the old one could write its
        # note there after the flush had read it.
        self._notes: dict[str, int] = {}
        self._size = _FIRST_SIZE
        self._dropping = False
        self._trouble = Trouble("last-used times cannot be written; retrying")
        self._flushing = threading.Lock()
        self._stopping = threading.Event()
        self._call = Call()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self.patience = LAST
        """Seconds that the flush of ``close`` may take."""

    def note(self, key_id: str, now: int) -> None:
        """Note that a key is used at ``now``. This takes a tenth of a microsecond and never blocks."""
        notes = self._notes
        if len(notes) < MOST_NOTES or key_id in notes:
            notes[key_id] = now
        elif not self._dropping:
            self._dropping = True
            _log.warning("too many last-used times wait for the database: others are dropped", most=MOST_NOTES)

    def flush(self) -> None:
        """Write the notes taken so far. Notes that cannot be written are kept for the next flush."""
        with self._flushing:
            waiting = list(self._notes)
            done = 0
            while done < len(waiting):
                began = self._monotonic()
                batch = waiting[done : done + self._size]
                if not self._write(batch):
                    return
                done += len(batch)
                took = self._monotonic() - began
                if took > _LONGEST:
                    self._size = max(_LEAST_SIZE, self._size // 2)
                elif took < _LONGEST // 4 and len(batch) == self._size:
                    self._size = min(_MOST_SIZE, self._size * 2)
                if done < len(waiting):
                    self._stopping.wait(took / SECOND)  # leave other writers as much time as we took
            self._dropping = False

    def start(self) -> None:
        """Start flushing every 30 seconds."""
        self._thread.start()

    def close(self) -> None:
        """Flush and stop, within about ``patience`` even if the database is blocked."""
        self._stopping.set()
        self._call.gone = True
        if self._thread.is_alive():
            self._thread.join()
        with calls.serving(Call(time.monotonic() + self.patience)):
            self.flush()

    def _run(self) -> None:
        with calls.serving(self._call):
            while not self._stopping.wait(INTERVAL):
                self.flush()

    def _write(self, key_ids: Sequence[str]) -> bool:
        batch = {key_id: self._notes.pop(key_id) for key_id in key_ids}
        try:
            times = {key_id: self._translate(noted) for key_id, noted in batch.items()}
            self._store.write_unserialized(lambda db: self._update(db, times))
        except Exception as failure:
            # Put the notes back, except where a newer one was taken meanwhile.
            for key_id, noted in batch.items():
                self._notes.setdefault(key_id, noted)
            self._trouble.met(keys=len(self._notes), error=type(failure).__name__)
            return False
        self._trouble.passed()
        return True

    def _update(self, db: peewee.Database, batch: dict[str, int]) -> None:
        # No lock on the log's head, which other writers take: nothing here depends on what they do.
        if self._store.dialect == SQLITE:
            db.execute_sql(_ON_SQLITE, (json.dumps(batch),))
        else:
            db.execute_sql(_ON_POSTGRESQL, (list(batch), list(batch.values())))
