"""Where gevent has patched threads.

gRPC waits in threads of its own making, in C. Once these are greenlets, the first that waits stops all others, for
ever, unless gRPC has been told to wait otherwise.
"""

import sys

from grpc._cython import cygrpc

_TOLD = "call grpc.experimental.gevent.init_gevent() right after monkey.patch_all(), before using gRPC"


def has_patched_threads() -> bool:
    """Say whether threads are greenlets in this process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def demand_grpc_knows() -> None:
    """Raise RuntimeError where threads are greenlets, and gRPC does not know."""
    # It is this that gRPC's own channels look at.
    if has_patched_threads() and not getattr(cygrpc, "g_gevent_activated", True):
        raise RuntimeError(f"gevent has patched threads, so gRPC would hang: {_TOLD}")


def demand_none() -> None:
    """Raise RuntimeError where threads are greenlets: gRPC for asyncio does not work then, whatever it knows."""
    if has_patched_threads():
        raise RuntimeError(
            f"gevent has patched threads, so gRPC for asyncio would hang: use tumbler.Verifier, and {_TOLD}"
        )
