"""Defaults of settings that other rooms need too, and the ends of their ranges. ``config`` declares the settings."""

from tumbler_server.clock import SECOND

MAX_STALENESS = 2 * SECOND
"""``--max-staleness``."""

DATABASE_TIMEOUT = 10 * SECOND
"""``--database-timeout``."""

SCHEDULER_LEASE = 15 * SECOND
"""``--scheduler-lease``."""

BCRYPT_COST = 10
"""``--bcrypt-cost``."""

CHEAPEST_BCRYPT, DEAREST_BCRYPT = 4, 16
"""The range of ``--bcrypt-cost``. The lowest is bcrypt's own minimum, about 2 ms; for tests."""
