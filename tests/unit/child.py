"""A child process for tests of code that starts processes. It writes its start and its end to a file."""

import os
import sys
import time
from pathlib import Path

from tumbler_server.processes import READY, take_up, wait_for_parent


def main() -> None:
    """Behave as the job says."""
    (notes, behaviour), tell = take_up()

    def note(what: str) -> None:
        with Path(notes).open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    note("began")
    if behaviour == "useless":
        tell(b"no use")
        sys.exit(3)
    if behaviour == "slow":
        time.sleep(60)
    tell(READY)
    time.sleep(0.1)  # until the parent has read it
    note("ready")
    wait_for_parent()
    if behaviour == "stubborn":
        time.sleep(60)
    note("ended")
