"""The rules for following the Watch stream: what to request, and how to handle its messages and its end. No I/O."""

import logging
import random

import grpc

from tumbler._cache import Cache, Clock
from tumbler._logging import log
from tumbler._settings import SECOND, Settings
from tumbler.v1 import api_key_service_pb2 as pb

_FIRST_BACKOFF, _MAX_BACKOFF = 0.1, 5.0
_REFUSED_BACKOFF = 5.0

LATE = "its heartbeats arrive too late to be used"
"""The reason for closing a stream whose heartbeats are too late."""

_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class Watcher:
    """The state of one verifier's stream across reconnects. Only the reader of the stream uses it."""

    def __init__(self, settings: Settings, cache: Cache, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock
        self._log = settings.logger
        self._target = settings.target
        self._project = settings.only_project
        self._heartbeat = int(settings.heartbeat * SECOND)
        self._cursor = ""
        self._received_any = False
        self._requested_at = 0
        self._failures = 0
        self._broken = False
        self.max_silence = 2.5 * settings.heartbeat
        """Seconds without a message after which a stream is closed."""

    def request(self) -> pb.WatchRequest:
        """Return the request for the next attempt. Send it at once: the age of heartbeats counts from now."""
        self._cursor, self._received_any, self._requested_at = self._cache.cursor, False, self._clock()
        request = pb.WatchRequest(project_id=self._project, start_cursor=self._cursor)
        request.heartbeat_interval.FromMicroseconds(self._heartbeat)
        return request

    def handle(self, response: pb.WatchResponse) -> bool:
        """Handle a message. Return whether to keep the stream; if not, open another."""
        first_without_cursor, self._received_any = not self._received_any and not self._cursor, True
        if not self._cache.apply(response, first_without_cursor, self._requested_at):
            return False
        is_restored, self._broken = self._broken, False
        if is_restored:
            log(self._log, logging.INFO, "the stream from %s is restored", self._target)
        return True

    def stream_ended(self, status: grpc.StatusCode, detail: str) -> float:
        """Handle the end of an attempt, and return the seconds to wait before the next."""
        # A stream that breaks at once is no recovery, even if it delivered a message.
        lasted = self._clock() - self._requested_at >= self._heartbeat
        self._failures = 1 if lasted else self._failures + 1
        self._broken = True
        if status in _REFUSED:
            self._cache.invalidate()
            text = "%s refused the verifier's own key: %s: %s"
            log(self._log, logging.ERROR, text, self._target, status.name, detail)
            return _REFUSED_BACKOFF
        if status is grpc.StatusCode.INVALID_ARGUMENT and self._cursor:
            self._cache.drop_cursor(self._cursor)
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        text = "the stream from %s broke and will be reopened: %s: %s"
        log(self._log, level, text, self._target, status.name, detail)
        longest = min(_MAX_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(self._failures - 1, 10))
        return random.uniform(0, longest)  # noqa: S311 - jitter, not a secret
