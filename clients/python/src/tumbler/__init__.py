"""The Python client of Tumbler, the self-hosted API key service.

`tumbler.keyformat` checks the form of a key without a server; `tumbler.v1` holds the generated messages and stubs.
"""

from tumbler.keyformat import MalformedKey, ParsedKey

__all__ = ["MalformedKey", "ParsedKey", "__version__"]

__version__ = "0.1.0"
