"""Checks for gevent's monkey patch.

gRPC waits in its own threads, in C. If these are greenlets, the first one that waits blocks all others forever, unless
gRPC was switched to gevent.
"""

import sys

from grpc._cython import cygrpc

_TOLD = "call grpc.experimental.gevent.init_gevent() right after monkey.patch_all(), before using gRPC"


def has_patched_threads() -> bool:
    """Return whether threads are greenlets in this process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def demand_grpc_knows() -> None:
    """Raise RuntimeError if threads are greenlets and gRPC was not switched to gevent."""
    # gRPC's own channels check this flag.
    if has_patched_threads() and not getattr(cygrpc, "g_gevent_activated", True):
        raise RuntimeError(f"gevent has patched threads, so gRPC would hang: {_TOLD}")


def demand_none() -> None:
    """Raise RuntimeError if threads are greenlets. gRPC for asyncio does not work then, even if switched to gevent."""
    if has_patched_threads():
        raise RuntimeError(
            f"gevent has patched threads, so gRPC for asyncio would hang: use tumbler.Verifier, and {_TOLD}"
        )
