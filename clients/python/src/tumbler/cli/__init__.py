"""The command `tumbler`: manages and verifies keys on a server, for people and for scripts.

It needs the extra `cli` (``pip install 'tumbler[cli]'``); the rest of the package does not.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = {"google", "rich", "typer"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process, if left out) and return its exit code.

    0: done, or the key is valid. 1: refused, or the key is not valid. 2: the command was misused.
    3: the server cannot be reached, or did not answer in time. 130 and 141: interrupted, and the reader went away.
    """
    atexit.register(gc.freeze)  # the last collection, of memory that goes anyway, takes a tenth of a second
    # gRPC's C core would write its own lines between the error messages; it reads this once, when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from tumbler.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("tumbler: the command is not fully installed; run: pip install 'tumbler[cli]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)
