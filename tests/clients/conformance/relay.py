"""A proxy process before a server. When it is stopped, its kernel still acknowledges, but nothing answers."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.clients.conformance.link import Link

ROOT = Path(__file__).parents[3]


class Relay:
    """Passes bytes between the clients of ``address`` and a server. Close it at the end."""

    def __init__(self, server: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.clients.conformance.relay", server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        """Stop the process until ``go_on``."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Pass bytes again, those that have arrived meanwhile first."""
        self._process.send_signal(signal.SIGCONT)


def main() -> None:
    """Pass bytes until stdin ends."""
    with Link(sys.argv[1]) as link:
        print(link.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
