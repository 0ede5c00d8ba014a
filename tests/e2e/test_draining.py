"""How a stopping server ends the connections of busy callers."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from tests.e2e.service import OWN_CONNECTION, PATIENCE, Service
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

CONNECTIONS, CALLERS = 6, 5
"""Connections, and callers on each. One caller per connection opens streams; the others make calls."""

STOPS = 5

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


class Load:
    """Callers that call without pause, whatever the response."""

    def __init__(self, service: Service) -> None:
        self.ended: Counter[grpc.StatusCode] = Counter()
        self.details: Counter[str] = Counter()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._channels = [grpc.insecure_channel(service.target, OWN_CONNECTION) for _ in range(CONNECTIONS)]
        self._threads = [
            threading.Thread(target=self._call, args=(ApiKeyServiceStub(channel), service, number))
            for channel in self._channels
            for number in range(CALLERS)
        ]
        for thread in self._threads:
            thread.start()

    def _call(self, stub: ApiKeyServiceStub, service: Service, number: int) -> None:
        calls = (
            lambda: stub.Verify(pb.VerifyRequest(key=service.key), metadata=service.metadata, timeout=PATIENCE),
            lambda: stub.Create(pb.CreateRequest(project_id="acme"), metadata=service.metadata, timeout=PATIENCE),
            lambda: stub.Verify(pb.VerifyRequest(key=service.key), metadata=service.metadata, timeout=PATIENCE),
            lambda: stub.List(pb.ListRequest(), metadata=service.metadata, timeout=PATIENCE),
            lambda: list(stub.Watch(pb.WatchRequest(), metadata=service.metadata, timeout=PATIENCE)),
        )
        while not self._over.is_set():
            code, details = OK, ""
            try:
                calls[number % len(calls)]()
            except grpc.RpcError as failure:
                code, details = failure.code(), failure.details()
            with self._lock:
                self.ended[code] += 1
                self.details[details] += 1
            if code is not OK:
                time.sleep(0.001)  # a short pause after an error

    def end(self) -> None:
        """Stop the callers."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        for channel in self._channels:
            channel.close()


@contextmanager
def load(service: Service) -> Iterator[Load]:
    """Run callers until the context ends."""
    calling = Load(service)
    try:
        yield calling
    finally:
        calling.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_call_is_cancelled(embedded: Service, workers: str, number: signal.Signals) -> None:
    """Stopped repeatedly under load, a server answers each call or returns UNAVAILABLE, which is safe to retry."""
    for _ in range(STOPS):
        embedded.start("--workers", workers)
        with load(embedded) as calling:
            deadline = time.monotonic() + PATIENCE
            while calling.ended[OK] < 500:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            embedded.signal(number)
            assert embedded.wait() == 0
        assert set(calling.ended) == {OK, UNAVAILABLE}, calling.details
