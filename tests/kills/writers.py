"""Writers that run while servers are killed. Each retries a call until it gets a response, and records that."""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message

from tests.e2e.service import Client, seconds
from tests.harness import Refused
from tests.kills.history import Write
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

PROJECT = "kills-"
"""The prefix of the writers' projects."""

SCOPES = tuple(f"tumbler:keys:{what}" for what in ("create", "read", "update", "revoke", "rotate", "verify"))

LONGEST_OUTAGE = 60.0
"""Seconds after which a call without a response is given up, and the run with it."""

_MIX = {"create": 25, "update": 30, "switch": 15, "rotate": 15, "revoke": 10, "verify": 15}
_LIVING = 30
"""With more changeable keys than this, a writer revokes one instead of creating another."""
_REST = 0.05
"""Seconds between two writes of a writer, on average."""
_TIMEOUT = 10.0
_UNANSWERED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,  # gRPC's status for a stream that broke off
    }
)


@dataclass
class Held:
    """A writer's key, as it was acknowledged. ``text`` is empty if the response that showed it was lost."""

    id: str
    text: str = field(repr=False)
    etag: str
    active: bool = True
    revoked: bool = False
    superseded: bool = False

    @property
    def verdict(self) -> str:
        """Return the verdict that a verification must give."""
        if self.revoked:
            return "REVOKED"
        if self.superseded:
            return "SUPERSEDED"
        return "VALID" if self.active else "INACTIVE"


class Writer:
    """A writer, with its own project and credential, and keys that no other writer changes.

    ``target`` returns the address to call. ``revision`` decodes a consistency token. ``calling`` is set at the
    beginning of each call.
    """

    def __init__(
        self,
        number: int,
        target: Callable[[], str],
        revision: Callable[[str], int],
        operator: Client,
        seed: int,
        calling: threading.Event,
    ) -> None:
        self.writes: list[Write] = []
        self.scheduled: set[str] = set()
        self.held: list[Held] = []
        self.counts: Counter[str] = Counter()
        """Calls that were ``interrupted`` and retried, those of them that ``had been made``, and keys ``verified``."""
        self.problems: list[str] = []
        self._project = f"{PROJECT}{number}"
        self._target = target
        self._revision = revision
        self._calling = calling
        self._chance = random.Random(f"{seed} {number}")  # noqa: S311 - no secret
        self._living: list[Held] = []
        self._token = ""
        self._made = 0
        caller = operator.create(project_id=self._project, name="caller", scopes=SCOPES)
        self._note("CREATED", caller.api_key.id, caller.consistency_token, "caller")
        self._key = caller.key
        self._client = Client(target(), self._key)

    def run(self, over: threading.Event) -> None:
        """Write until ``over`` is set. A write in progress is completed."""
        try:
            while not over.wait(self._chance.uniform(0, 2 * _REST)):
                (what,) = self._chance.choices(list(_MIX), list(_MIX.values()))
                if what == "create" and len(self._living) > _LIVING:
                    what = "revoke"
                elif what != "create" and not self._living:
                    what = "create"
                getattr(self, f"_{what}")()
        except Refused as refused:
            self.problems.append(f"{self._project} was refused: {refused}")
        finally:
            self._client.close()

    def _create(self) -> None:
        """Create a key. One in ten has a schedule, and is left to the scheduler."""
        name, request_id, scheduled = self._name(), str(uuid.uuid4()), self._chance.random() < 0.1
        rotation = api_key_pb2.Rotation(interval=seconds(1)) if scheduled else None
        request = pb.CreateRequest(
            project_id=self._project, name=name, scopes=["orders:read"], rotation=rotation, request_id=request_id
        )
        answer = self._settle("Create", request)
        self.counts["had been made"] += answer.secret_omitted
        self._note("CREATED", answer.api_key.id, answer.consistency_token, name, request_id)
        held = Held(answer.api_key.id, answer.key, answer.api_key.etag)
        self.held.append(held)
        if scheduled:
            self.scheduled.add(held.id)
        else:
            self._living.append(held)

    def _update(self) -> None:
        """Rename a key, half of the time with its etag."""
        held, name = self._any(), self._name()
        etag = held.etag if self._chance.random() < 0.5 else ""
        request = pb.UpdateRequest(
            api_key=api_key_pb2.ApiKey(id=held.id, name=name, etag=etag), update_mask={"paths": ["name"]}
        )
        before = self.counts["interrupted"]
        try:
            answer = self._settle("Update", request)
        except Refused as refused:
            if refused.code is not grpc.StatusCode.ABORTED or self.counts["interrupted"] == before:
                raise
            # If the update was made and its response lost, the key has the new name.
            key = self._settle("Get", pb.GetRequest(key_id=held.id)).api_key
            if key.name != name:
                raise
            self.counts["had been made"] += 1
            self.writes.append(Write("UPDATED", held.id, _revision(key.etag), name))
            held.etag = key.etag
        else:
            self._note("UPDATED", held.id, answer.consistency_token, name)
            held.etag = answer.api_key.etag

    def _switch(self) -> None:
        held = self._any()
        answer = self._settle("SetActive", pb.SetActiveRequest(key_id=held.id, active=not held.active))
        held.active, held.etag = not held.active, answer.api_key.etag
        self._note("ACTIVATED" if held.active else "DEACTIVATED", held.id, answer.consistency_token)

    def _rotate(self) -> None:
        held, request_id, ends = self._any(), str(uuid.uuid4()), self._chance.random() < 0.5
        grace = seconds(0 if ends else 86_400)
        answer = self._settle("Rotate", pb.RotateRequest(key_id=held.id, grace_period=grace, request_id=request_id))
        self.counts["had been made"] += answer.secret_omitted
        self._note("ROTATED", held.id, answer.consistency_token, answer.api_key.id, request_id)
        held.superseded = ends
        successor = Held(answer.api_key.id, answer.key, answer.api_key.etag, held.active)
        self.held.append(successor)
        self._living[self._living.index(held)] = successor

    def _revoke(self) -> None:
        held = self._any()
        answer = self._settle("Revoke", pb.RevokeRequest(key_id=held.id))
        held.revoked = True
        self._living.remove(held)
        self._note("REVOKED", held.id, answer.consistency_token)

    def _verify(self) -> None:
        """Verify any key that was ever created: a killed server must not have lost what it acknowledged."""
        held = self._chance.choice(self.held)
        if held.text:
            fresh = pb.Consistency(at_least_as_fresh=self._token)
            answer = self._settle("Verify", pb.VerifyRequest(key=held.text, consistency=fresh))
            verdict = pb.VerifyCode.Name(answer.code).removeprefix("VERIFY_CODE_")
            self.counts["verified"] += 1
            if verdict != held.verdict:
                self.problems.append(f"key {held.id} was {verdict}, and is acknowledged as {held.verdict}")

    def _any(self) -> Held:
        return self._chance.choice(self._living)

    def _name(self) -> str:
        self._made += 1
        return f"{self._project} {self._made}"

    def _note(self, kind: str, key_id: str, token: str, value: str = "", request_id: str = "") -> None:
        self._token = token
        self.writes.append(Write(kind, key_id, self._revision(token), value, request_id))

    def _settle(self, method: str, request: Message) -> Any:
        """Retry a call until it is answered. Raises ``Refused`` for other errors, and after too long an outage."""
        began, interrupted = time.monotonic(), False
        while True:
            self._calling.set()
            try:
                return self._client.call(method, request, _TIMEOUT)
            except Refused as refused:
                busy = refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                if not (busy or refused.code in _UNANSWERED) or time.monotonic() > began + LONGEST_OUTAGE:
                    raise
                self.counts["interrupted"] += not (busy or interrupted)
                interrupted = interrupted or not busy
            # Use a new channel: a failed one waits longer and longer before it reconnects.
            self._client.close()
            time.sleep(self._chance.uniform(0.02, 0.1))
            self._client = Client(self._target(), self._key)


def _revision(etag: str) -> int:
    """Return the revision in an etag. Callers must not look into one; only the server's own tests do."""
    return int(etag.strip('"').partition("-")[0], 16)
