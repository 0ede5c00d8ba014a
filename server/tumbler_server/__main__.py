"""The entry point of ``tumbler-server`` and of ``python -m tumbler_server``."""

import signal
import sys


def main() -> None:
    """Import the command and run it. Ctrl-C ends the process without a traceback, also while modules are imported."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else whoever started us wants it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tumbler_server import commands

    signal.signal(signal.SIGINT, handler)
    try:
        commands.main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
