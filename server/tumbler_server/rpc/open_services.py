"""What anybody may call without a key: the standard health service, and reflection where it is on.

Both have streams that last as long as a caller likes. They must neither take the threads that Verify needs nor hold up
the end of the server.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc


class OpenServices:
    """Health and reflection, added to a server that does not serve yet. ``service`` is the full name of ours."""

    def __init__(self, server: grpc.Server, service: str, reflects: bool) -> None:
        self._service = service
        self._streams = _Streams()
        self._health = _Health(self._streams)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if reflects:
            names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names, self._streams), server)

    def say_serving(self, serving: bool) -> None:
        """Tell whoever asks, or watches, whether calls can be served now."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in (health.OVERALL_HEALTH, self._service):
            self._health.set(service, status)

    def say_goodbye(self) -> None:
        """Tell them NOT_SERVING, for good."""
        self._health.enter_graceful_shutdown()

    def cut(self) -> None:
        """End all streams, and each that still comes."""
        self._streams.cut()


class _Streams:
    def __init__(self) -> None:
        self._open: set[grpc.ServicerContext] = set()
        self._over = False

    def enter(self, context: grpc.ServicerContext) -> None:
        """Note a stream, until it ends."""
        self._open.add(context)
        if not context.add_callback(lambda: self._open.discard(context)) or self._over:
            self._open.discard(context)
            context.cancel()

    def cut(self) -> None:
        self._over = True
        for context in tuple(self._open):
            context.cancel()


class _Health(health.HealthServicer):  # type: ignore[misc]  # it ships no types
    def __init__(self, streams: _Streams) -> None:
        super().__init__()  # its Watch takes no thread
        self._streams = streams

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:  # noqa: N802
        self._streams.enter(context)
        return super().Watch(request, context, send_response_callback)


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]  # it ships no types
    def __init__(self, names: tuple[str, ...], streams: _Streams) -> None:
        super().__init__(names)
        self._streams = streams

    def ServerReflectionInfo(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._streams.enter(context)
        return super().ServerReflectionInfo(request_iterator, context)

    # A stream of it holds a thread for its whole life: two of its own.
    ServerReflectionInfo.experimental_thread_pool = ThreadPoolExecutor(2, thread_name_prefix="reflection")  # type: ignore[attr-defined]
