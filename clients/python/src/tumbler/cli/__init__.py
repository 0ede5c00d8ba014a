"""The command `tumbler`: manages and verifies keys on a server, for people and for scripts.

It needs the extra `cli` (``pip install 'tumbler[cli]'``). The rest of the package does not.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = {"google", "rich", "typer"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Default arguments: those of the process.

    0: done, or the key is valid. 1: refused, or the key is not valid. 2: usage error.
    3: the server cannot be reached, or did not answer in time. 130: interrupted. 141: the reader of stdout went away.
    """
    atexit.register(gc.freeze)  # the last garbage collection takes a tenth of a second and frees nothing of use
    # gRPC's C core would write its own lines between the error messages. It reads this variable once, when loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from tumbler.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("tumbler: the command is not fully installed; run: pip install 'tumbler[cli]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)
