"""Which peppers the processes that serve know, so that it shows where they differ.

A server with another pepper than the others works, but each key costs bcrypt there when it is first seen, is signed
anew, and costs bcrypt at the others after that; and it cannot open what they seal. So each process notes the ids of its
peppers (never a pepper) in a row of its own, and compares them with the others' and with what keys are signed under.

A process that is gone raises its row's beat no more. Whoever has seen that stand still for long enough, by a clock that
nobody sets, removes the row; and where there are too many, all are, and those who live write theirs again.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence

import peewee
import structlog

from tumbler_server import calls
from tumbler_server import clock as clocks
from tumbler_server.calls import Call
from tumbler_server.clock import MINUTE, Clock
from tumbler_server.store.database import Store

INTERVAL = 30.0
"""Seconds between two looks."""

GONE = 5 * MINUTE
"""A row that nobody has touched for so long is removed."""

MOST = 256
"""Rows; where there are more, processes begin and die faster than they can be told from those that live."""

_LAST = 0.5
"""Seconds for taking leave."""

_SHOWN = 5
"""Others that one line of the log tells of."""

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
"""Which peppers sign, at most so many: a look-up in an index for each of them, however many keys there are."""

_log = structlog.get_logger(__name__)


def signed_under(store: Store) -> list[str]:
    """Return the ids of the peppers that keys are signed under. Raises ``StoreUnavailable``."""
    return [pepper_id for (pepper_id,) in store.read(SIGNED, (MOST,))]


def known(store: Store, since: int = 0) -> dict[str, tuple[str, ...]]:
    """Return the pepper ids that each process knows, the one that signs first; of those seen since an instant.

    When a process was seen is by its own clock. Raises ``StoreUnavailable``.
    """
    rows = store.read(_READ, (2 * MOST,))
    return {name: _ids(text) for name, text, _, seen_time in rows if seen_time >= since}


def differing(ours: Sequence[str], others: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return those of the others that know other peppers than we do, or sign with another."""
    return {name: ids for name, ids in others.items() if set(ids) != set(ours) or list(ids[:1]) != list(ours[:1])}


class Roster:
    """A process's row, and its looks at the others'."""

    def __init__(self, store: Store, pepper_ids: Sequence[str], clock: Clock, uptime: Clock = clocks.uptime) -> None:
        self.name = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._store = store
        self._ours = tuple(pepper_ids)
        self._clock = clock
        self._uptime = uptime
        self._beat = 0
        self._beats: dict[str, tuple[int, int]] = {}  # of others, and since when they stand there
        self._told: tuple[Mapping[str, Sequence[str]], Sequence[str]] = ({}, ())
        self._stopping = threading.Event()
        self._call = Call()
        self._thread = threading.Thread(target=self._run, name="roster", daemon=True)

    def look(self) -> None:
        """Note what we know, and tell the log where it is not what others know. Raises ``StoreUnavailable``."""
        self._beat += 1
        row = (self.name, ",".join(self._ours), self._beat, self._clock())
        self._store.alone(lambda db: _run(db, (_REMOVE_ALL, (MOST,)), (_NOTE, row)))
        rows = self._store.read(_READ, (2 * MOST,))
        gone = self._gone({name: beat for name, _, beat, _ in rows if name != self.name})
        if gone:
            self._store.alone(lambda db: _run(db, *((_REMOVE, row) for row in gone.items())))
        others = {name: _ids(text) for name, text, _, _ in rows if name != self.name and name not in gone}
        self._tell(differing(self._ours, others), sorted(set(signed_under(self._store)) - set(self._ours)))

    def start(self) -> None:
        """Begin to look, at once and then every half a minute."""
        self._thread.start()

    def close(self) -> None:
        """Remove our row, if the database answers within half a second, and end."""
        self._stopping.set()
        self._call.gone = True
        if self._thread.is_alive():
            self._thread.join()
        try:
            with calls.serving(Call(time.monotonic() + _LAST)):
                self._store.alone(lambda db: _run(db, (_REMOVE, (self.name, self._beat))))
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
        """Return those whose beat has stood still for too long."""
        now = self._uptime()
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
