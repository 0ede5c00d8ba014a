"""A server for the tests of the command: it records each request and returns scripted answers."""

from concurrent import futures
from threading import Event

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer, add_ApiKeyServiceServicer_to_server

RPCS = (
    *("Create", "Get", "List", "Update", "SetActive", "Revoke", "Rotate", "Verify", "ListEvents"),
    *("ClaimRotation", "ListDeliveries", "Redeliver", "RotateWebhookSecret"),
)
END = object()
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "no such key", ErrorInfo(reason="UNAUTHENTICATED"))


class Recorder(ApiKeyServiceServicer):
    """Answers every RPC from `answers`, a list for each RPC whose last entry repeats, or with an error.

    `error` answers all RPCs, `errors` single ones: each is a status, a message, and details.
    Each Watch plays one of `streams`: responses, errors, events to wait for, and silence at the end.
    `END` ends a stream without an error. If no stream is left, the calling key is refused.
    """

    def __init__(self):
        self.requests = []
        self.metadata = {}
        self.deadlines = []
        self.answers = {}
        self.error = None
        self.errors = {}
        self.streams = []
        self.held = None

    def handle(self, rpc, request, context):
        """Record one call and answer it."""
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.deadlines.append(context.time_remaining())
        if self.held is not None:
            self.held.set()
            stopped = Event()
            context.add_callback(stopped.set)
            stopped.wait(30)
        if error := self.error or self.errors.get(rpc):
            _abort(context, error)
        answers = self.answers.get(rpc, [getattr(pb, f"{rpc}Response")()])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def Watch(self, request, context):  # noqa: N802 - the RPC's name
        """Play the next stream."""
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        for item in self.streams.pop(0) if self.streams else [REFUSED]:
            if item is END:
                return
            if isinstance(item, Event):
                assert item.wait(30)
            elif isinstance(item, pb.WatchResponse):
                yield item
            else:
                _abort(context, item)
        left = Event()
        if context.add_callback(left.set):
            left.wait(30)


def _abort(context, error):
    code, message, *details = error
    packed = [Any() for _ in details]
    for any_, detail in zip(packed, details, strict=True):
        any_.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def _method(rpc):
    return lambda self, request, context: self.handle(rpc, request, context)


for _rpc in RPCS:
    setattr(Recorder, _rpc, _method(_rpc))


def start(credentials=None):
    """Start a server on a free port of 127.0.0.1 and return it, its recorder and its port."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    recorder = Recorder()
    add_ApiKeyServiceServicer_to_server(recorder, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, recorder, port
