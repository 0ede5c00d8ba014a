"""Guards: they let a request of a service pass only with a key that a verifier says yes to.

`tumbler.guards.grpc` and `tumbler.guards.grpc_aio` are interceptors of gRPC servers, `tumbler.guards.asgi` is a
middleware for every ASGI framework, and `tumbler.guards.fastapi` a dependency for single routes of FastAPI.

They take the key from ``authorization: Bearer …`` or from ``x-api-key``; a request with more than one of these headers
is refused. Whoever presented it is told one generic text; which `Code` it was goes to the logger ``tumbler.guards``
and, where it was VALID, with the key's identity to the handler.
"""
