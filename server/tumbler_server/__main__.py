"""``python -m tumbler_server`` is ``tumbler-server``."""

from tumbler_server.commands import main

if __name__ == "__main__":
    main()
