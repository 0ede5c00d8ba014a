"""Guards let a request to a service pass only with a key that a verifier accepts.

`tumbler.guards.grpc` and `tumbler.guards.grpc_aio` are interceptors for gRPC servers. `tumbler.guards.asgi` is a
middleware for every ASGI framework, and `tumbler.guards.fastapi` a dependency for single routes of FastAPI.

They take the key from ``authorization: Bearer …`` or from ``x-api-key``. A request with more than one of these headers
is refused. The caller receives one generic text. The `Code` goes to the logger ``tumbler.guards``. If it is VALID, the
handler receives it with the key's identity.
"""
