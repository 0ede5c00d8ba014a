"""The peppers that each serving process has, to detect processes whose peppers differ.

A server whose pepper differs from the others' works, but each key costs a bcrypt run when that server first sees it.
The server then rehashes the key, which costs bcrypt runs on the other servers. It also cannot open what they have
sealed. So each process writes the ids of its peppers (never a pepper) to its own row. It compares them with the other
processes' ids and with the peppers that keys are signed under.

A process increments its row's beat while it runs. A process that has seen another's beat unchanged for too long, by the
monotonic clock, removes that row. If there are too many rows, all are removed, and live processes write theirs again.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence

import peewee

from tumbler_server import calls, logs
from tumbler_server import clock as clocks
from tumbler_server.calls import Call
from tumbler_server.clock import MINUTE, Clock
from tumbler_server.store.database import Store

INTERVAL = 30.0
"""Seconds between two comparisons."""

GONE = 5 * MINUTE
"""The time without a beat after which a row is removed, in microseconds."""

MOST = 256
"""Most rows. With more, processes start and die faster than dead ones can be told from live ones."""

_LAST = 0.5
"""Seconds for removing our row at shutdown."""

_SHOWN = 5
"""Most peers or pepper ids named in one log line."""

_NOTE = (
    "INSERT INTO server (name, pepper_ids, beat, seen_time) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
    "pepper_ids = excluded.pepper_ids, beat = excluded.beat, seen_time = excluded.seen_time"
)
_REMOVE = "DELETE FROM server WHERE name = ? AND beat = ?"
_REMOVE_ALL = "DELETE FROM server WHERE (SELECT COUNT(*) FROM server) > ?"
_READ = "SELECT name, pepper_ids, beat, seen_time FROM server ORDER BY name LIMIT ?"
SIGNED = """
WITH RECURSIVE found (id, number) AS (
  SELECT (SELECT MIN(pepper_id) FROM api_key WHERE pepper_id > ''), 1
  UNION ALL
  SELECT (SELECT MIN(pepper_id) FROM api_key WHERE pepper_id > found.id), number + 1
  FROM found WHERE found.id IS NOT NULL AND number < ?
)
SELECT id FROM found WHERE id IS NOT NULL ORDER BY number
"""
"""The ids of the peppers that keys are signed under, at most a given number.
It takes one index lookup for each id, however many keys there are."""

_log = logs.get_logger(__name__)


def signed_under(store: Store) -> list[str]:
    """Return the ids of the peppers that keys are signed under. Raises ``StoreUnavailable``."""
    return [pepper_id for (pepper_id,) in store.read(SIGNED, (MOST,))]


def known(store: Store, since: int = 0) -> dict[str, tuple[str, ...]]:
    """Return the pepper ids of each process seen since a time, the signing pepper first.

    A process's time is by its own clock. Raises ``StoreUnavailable``.
    """
    rows = store.read(_READ, (2 * MOST,))
    return {name: _ids(text) for name, text, _, seen_time in rows if seen_time >= since}


def differing(ours: Sequence[str], others: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the peers that have different peppers or sign with a different one."""
    return {name: ids for name, ids in others.items() if set(ids) != set(ours) or list(ids[:1]) != list(ours[:1])}


class Roster:
    """A process's row, and its comparisons with the rows of its peers."""

    def __init__(
        self, store: Store, pepper_ids: Sequence[str], clock: Clock, monotonic: Clock = clocks.monotonic
    ) -> None:
        self.name = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._store = store
        self._ours = tuple(pepper_ids)
        self._clock = clock
        self._monotonic = monotonic
        self._beat = 0
        self._beats: dict[str, tuple[int, int]] = {}  # the beat of each peer, and since when it is unchanged
        self._told: tuple[Mapping[str, Sequence[str]], Sequence[str]] = ({}, ())
        self._stopping = threading.Event()
        self._call = Call()
        self._thread = threading.Thread(target=self._run, name="roster", daemon=True)

    def look(self) -> None:
        """Write our row, and log a warning if our peppers differ from the others'. Raises ``StoreUnavailable``."""
        self._beat += 1
        row = (self.name, ",".join(self._ours), self._beat, self._clock())
        self._store.write_unserialized(lambda db: _run(db, (_REMOVE_ALL, (MOST,)), (_NOTE, row)))
        rows = self._store.read(_READ, (2 * MOST,))
        gone = self._gone({name: beat for name, _, beat, _ in rows if name != self.name})
        if gone:
            self._store.write_unserialized(lambda db: _run(db, *((_REMOVE, row) for row in gone.items())))
        others = {name: _ids(text) for name, text, _, _ in rows if name != self.name and name not in gone}
        self._tell(differing(self._ours, others), sorted(set(signed_under(self._store)) - set(self._ours)))

    def start(self) -> None:
        """Start comparing, at once and then every 30 seconds."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and remove our row if the database answers within half a second."""
        self._stopping.set()
        self._call.gone = True
        if self._thread.is_alive():
            self._thread.join()
        try:
            with calls.serving(Call(time.monotonic() + _LAST)):
                self._store.write_unserialized(lambda db: _run(db, (_REMOVE, (self.name, self._beat))))
        except Exception as failure:
            _log.debug("the row of this process could not be removed", error=type(failure).__name__)

    def _run(self) -> None:
        with calls.serving(self._call):
            pause = 0.0
            while not self._stopping.wait(pause):
                pause = INTERVAL
                try:
                    self.look()
                except Exception as failure:
                    _log.debug("comparing peppers failed; retrying", error=type(failure).__name__)

    def _gone(self, beats: Mapping[str, int]) -> dict[str, int]:
        """Return the peers whose beat has been unchanged for too long, with that beat."""
        now = self._monotonic()
        self._beats = {
            name: self._beats[name] if self._beats.get(name, (0,))[0] == beat else (beat, now)
            for name, beat in beats.items()
        }
        return {name: beat for name, (beat, since) in self._beats.items() if now - since >= GONE}

    def _tell(self, different: Mapping[str, Sequence[str]], foreign: Sequence[str]) -> None:
        (others, keys), self._told = self._told, (different, foreign)
        if different and different != others:
            _log.warning(
                "servers of this installation have different peppers: give all the same pepper file, and restart them",
                ours=self._ours,
                theirs={name: different[name] for name in sorted(different)[:_SHOWN]},
                differing=len(different),
            )
        elif others and not different:
            _log.warning("all servers of this installation have the same peppers again")
        if foreign and foreign != keys:
            _log.warning(
                "keys are signed with peppers that this server does not have: each costs bcrypt when first seen",
                ours=self._ours,
                theirs=foreign[:_SHOWN],
            )


def _run(db: peewee.Database, *statements: tuple[str, Sequence[object]]) -> None:
    for sql, parameters in statements:
        db.execute_sql(sql.replace("?", db.param), parameters)


def _ids(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
