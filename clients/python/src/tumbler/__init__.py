"""The Python client of Tumbler, the self-hosted API key service.

`Verifier` verifies a presented key (`tumbler.aio.Verifier` does so in asyncio).
`tumbler.guards` protects a service with a verifier.
`tumbler.keyformat` checks the form of a key without a server. `tumbler.v1` holds the generated messages and stubs.
"""

from typing import TYPE_CHECKING, Any

from tumbler.decide import Code
from tumbler.errors import InvalidRequest, NotAllowed, TumblerError, Unavailable
from tumbler.keyformat import MalformedKey, ParsedKey
from tumbler.projects import ANY_PROJECT
from tumbler.verification import Verification

if TYPE_CHECKING:
    from tumbler.verifier import Verifier

__all__ = [
    "ANY_PROJECT",
    "Code",
    "InvalidRequest",
    "MalformedKey",
    "NotAllowed",
    "ParsedKey",
    "TumblerError",
    "Unavailable",
    "Verification",
    "Verifier",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Importing only the key format does not load gRPC, and a server can fork before it loads gRPC.
    if name == "Verifier":
        from tumbler.verifier import Verifier

        return Verifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
