"""When keys were last used: noted on the way of every valid answer, written in batches behind its back."""

import json
import threading
import time
from collections.abc import Callable, Sequence

import peewee
import structlog

from tumbler_server import calls, clock
from tumbler_server.calls import Call
from tumbler_server.clock import SECOND, Clock
from tumbler_server.limits import USE_NOTES
from tumbler_server.store.database import SQLITE, Store
from tumbler_server.trouble import Trouble

INTERVAL = 30.0
"""Seconds between two flushes: what a crash can lose."""

MOST_NOTES = USE_NOTES.most
"""How many keys are noted at the most while the database is away."""

LAST = 0.7
"""Seconds for the last flush, at the least: it is better to lose half a minute's notes than to be killed."""

EXACTNESS = 30 * SECOND
"""A stored time is left as it is until it is so much too old. With the interval that makes it exact to a minute."""

# A flush holds locks that a change may have to wait for: on SQLite the one write lock. Its statements are sized so that
# each takes less than the longest, whatever the disk. With 100,000 keys in the table and random ids, 200 of them took
# 30 ms on SQLite and 26 ms on PostgreSQL on the machine this was made on; 5,000 took 270 ms and 460 ms.
_LONGEST = 50_000
_FIRST_SIZE, _LEAST_SIZE, _MOST_SIZE = 200, 50, 5_000

# Revision, etag and update_time stay as they are: a use is no change. Nor is a time ever lowered.
_ON_SQLITE = f"""
UPDATE api_key SET last_used_time = noted.value FROM json_each(?) AS noted
WHERE api_key.id = noted.key AND api_key.last_used_time < noted.value - {EXACTNESS}
"""  # noqa: S608 - no input in it
# Rows are locked in the order of their ids, so that two servers that write the same keys do not wait for each other in
# a circle. Changes do not either: each holds but one row of those that were there before it.
_ON_POSTGRESQL = f"""
WITH noted AS (
  SELECT k.id, n.at FROM api_key k JOIN unnest(%s::text[], %s::bigint[]) AS n (id, at) ON k.id = n.id
  WHERE k.last_used_time < n.at - {EXACTNESS} ORDER BY k.id FOR UPDATE OF k
)
UPDATE api_key SET last_used_time = GREATEST(api_key.last_used_time, noted.at) FROM noted WHERE api_key.id = noted.id
"""  # noqa: S608 - no input in it

_log = structlog.get_logger(__name__)


class Usage:
    """Notes which keys are used, and writes it down. Safe for use by many threads."""

    def __init__(
        self, store: Store, uptime: Clock = clock.uptime, translate: Callable[[int], int] = lambda noted: noted
    ) -> None:
        """``translate`` makes of an instant by this process's clock what is to be written; it may raise."""
        self._store = store
        self._uptime = uptime
        self._translate = translate
        # One dictionary for ever, of which each use is a single step that no other thread can come between: setting an
        # item, `list` of its keys, `pop`, `setdefault`. Were it exchanged for a new one at a flush, a thread that had
        # looked it up just before would write its note into the old one, after that was read.
        self._notes: dict[str, int] = {}
        self._size = _FIRST_SIZE
        self._dropping = False
        self._trouble = Trouble("last-used times cannot be written; retrying")
        self._flushing = threading.Lock()
        self._stopping = threading.Event()
        self._call = Call()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def note(self, key_id: str, now: int) -> None:
        """Note that a key is used now. It costs a tenth of a microsecond, and never waits."""
        notes = self._notes
        if len(notes) < MOST_NOTES or key_id in notes:
            notes[key_id] = now
        elif not self._dropping:
            self._dropping = True
            _log.warning("too many last-used times wait for the database: others are dropped", most=MOST_NOTES)

    def flush(self) -> None:
        """Write down what has been noted so far. What cannot be written is kept for the next time."""
        with self._flushing:
            waiting = list(self._notes)
            done = 0
            while done < len(waiting):
                began = self._uptime()
                batch = waiting[done : done + self._size]
                if not self._write(batch):
                    return
                done += len(batch)
                took = self._uptime() - began
                if took > _LONGEST:
                    self._size = max(_LEAST_SIZE, self._size // 2)
                elif took < _LONGEST // 4 and len(batch) == self._size:
                    self._size = min(_MOST_SIZE, self._size * 2)
                if done < len(waiting):
                    self._stopping.wait(took / SECOND)  # as much time for those who wait to write as we took
            self._dropping = False

    def start(self) -> None:
        """Begin to flush every 30 seconds."""
        self._thread.start()

    def close(self, seconds: float = LAST) -> None:
        """Flush, and end: within about so many seconds, whatever holds the database."""
        self._stopping.set()
        self._call.gone = True
        if self._thread.is_alive():
            self._thread.join()
        with calls.serving(Call(time.monotonic() + seconds)):
            self.flush()

    def _run(self) -> None:
        with calls.serving(self._call):
            while not self._stopping.wait(INTERVAL):
                self.flush()

    def _write(self, key_ids: Sequence[str]) -> bool:
        batch = {key_id: self._notes.pop(key_id) for key_id in key_ids}
        try:
            times = {key_id: self._translate(noted) for key_id, noted in batch.items()}
            self._store.alone(lambda db: self._update(db, times))
        except Exception as failure:
            # They stay where they were, but that what was noted meanwhile is newer.
            for key_id, noted in batch.items():
                self._notes.setdefault(key_id, noted)
            self._trouble.met(keys=len(self._notes), error=type(failure).__name__)
            return False
        self._trouble.passed()
        return True

    def _update(self, db: peewee.Database, batch: dict[str, int]) -> None:
        # Without the lock on the log's head, which other writers take: nothing here depends on what they do.
        if self._store.dialect == SQLITE:
            db.execute_sql(_ON_SQLITE, (json.dumps(batch),))
        else:
            db.execute_sql(_ON_POSTGRESQL, (list(batch), list(batch.values())))
