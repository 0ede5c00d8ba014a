"""The owners of keys, which claim announced rotations: at once or later, once or twice, or losing the response."""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import grpc

from tests.e2e.service import Client, seconds
from tests.harness import Refused
from tests.rotations.history import OK, UNKNOWN, Arrival, Claim
from tests.rotations.receiver import Posted
from tumbler.v1 import api_key_service_pb2 as pb

GRACES = (1.0, 3_600.0)
"""The grace periods of replaced keys, in seconds. The short ones end before the run does."""

_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_CALLERS = 4
_PATIENCE = 10.0
_FAILING = 0.05


class Owners:
    """The owners, which take webhooks and call the servers at ``targets()``.

    They record everything in ``arrivals``, ``claims`` and ``shown``. ``secrets`` are the webhook secrets by path. Some
    webhooks to the path ``flaky`` are refused the first time.
    """

    def __init__(self, targets: Callable[[], Sequence[str]], operator: str, rate: float, seed: int) -> None:
        self.secrets: dict[str, str] = {}
        self.flaky = ""
        self.arrivals: list[Arrival] = []
        self.claims: list[Claim] = []
        self.shown: dict[str, str] = {}
        """Texts of keys by id. It needs no lock, since a key is shown to only one caller."""
        self.posted = threading.Event()
        """Set at each webhook. A waiter clears it first."""
        self.claiming = threading.Event()
        """Set at the beginning of each claim. A waiter clears it first."""
        self._targets = targets
        self._operator = operator
        self._rest = _CALLERS / rate
        self._seed = seed
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, str, str]] = []  # webhook_id, key_id, claim token
        self._known: set[str] = set()
        self._over = threading.Event()
        self._twice = ThreadPoolExecutor(2 * _CALLERS)
        self._callers = ThreadPoolExecutor(_CALLERS)
        self._calling: list[Future[None]] = []

    def start(self) -> None:
        """Start the callers that claim."""
        self._calling = [self._callers.submit(self._run, number) for number in range(_CALLERS)]

    def stop(self) -> None:
        """Stop claiming, and refuse no more webhooks. Further ones are still recorded. Raises the callers' errors."""
        self.flaky = ""
        self._over.set()
        self._callers.shutdown()
        self._twice.shutdown()
        for calling in self._calling:
            calling.result()

    def take(self, posted: Posted) -> int:
        """Record a webhook, and return the status of the response."""
        new = posted.id not in self._known
        self._known.add(posted.id)
        status = 500 if new and posted.path == self.flaky and self._chance.random() < _FAILING else 204
        key_id = str(posted.data["key_id"])
        signed = posted.signed_by(self.secrets.get(posted.path, ""))
        self.arrivals.append(Arrival(posted.id, posted.type, key_id, posted.digest, signed, status))
        if new and posted.type == "key.rotation_due":
            with self._lock:
                self._waiting.append((posted.id, key_id, posted.data["claim_token"]))
        self.posted.set()
        return status

    def _run(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311 - no secret
        while not self._over.wait(chance.uniform(0, 2 * self._rest)):
            with self._lock:
                if not self._waiting:
                    continue
                chosen = self._waiting.pop(chance.randrange(len(self._waiting)))
            if self._act(chance, *chosen):
                with self._lock:
                    self._waiting.append(chosen)

    def _act(self, chance: random.Random, webhook_id: str, key_id: str, token: str) -> bool:
        """Claim a rotation, or rotate the key by hand. Return whether to try the token again later."""
        if chance.random() < 0.03:
            self._rotate(chance, key_id)
            return True  # a claim must then be refused, unless this call failed and nothing was done
        self.claiming.set()
        targets = self._targets()
        if chance.random() < 0.25:
            calls = [
                self._twice.submit(self._claim, target, webhook_id, token, chance.choice(GRACES))
                for target in (targets[0], targets[-1])
            ]
            outcomes = [call.result() for call in calls]
        else:
            outcomes = [self._claim(chance.choice(targets), webhook_id, token, chance.choice(GRACES))]
        if OK in outcomes and chance.random() < 0.2:
            self._revoke(chance, key_id)
        return UNKNOWN in outcomes or (OK in outcomes and chance.random() < 0.2)

    def _claim(self, target: str, webhook_id: str, token: str, grace: float) -> str:
        request = pb.ClaimRotationRequest(claim_token=token, grace_period=seconds(grace))
        client = Client(target, "")
        try:
            claimed = client.call("ClaimRotation", request, _PATIENCE)
        except Refused as refused:
            outcome = UNKNOWN if refused.code in _LOST else refused.reason
            self.claims.append(Claim(webhook_id, outcome))
            return outcome
        finally:
            client.close()
        self.shown[claimed.api_key.id] = claimed.key
        self.claims.append(Claim(webhook_id, OK, claimed.api_key.id))
        return OK

    def _rotate(self, chance: random.Random, key_id: str) -> None:
        client = Client(chance.choice(self._targets()), self._operator)
        try:
            rotated = client.rotate(key_id, chance.choice(GRACES))
        except Refused as refused:
            if refused.code not in _LOST and refused.reason not in ("KEY_SUPERSEDED", "KEY_REVOKED"):
                raise
        else:
            self.shown[rotated.api_key.id] = rotated.key
        finally:
            client.close()

    def _revoke(self, chance: random.Random, key_id: str) -> None:
        client = Client(chance.choice(self._targets()), self._operator)
        try:
            client.revoke(key_id)
        except Refused as refused:
            if refused.code not in _LOST:
                raise
        finally:
            client.close()


def verdicts(targets: Sequence[str], operator: str, shown: dict[str, str]) -> dict[str, str]:
    """Verify every key that was shown, fully consistently, and return the verdicts by key id."""
    clients = [Client(target, operator) for target in targets]
    try:
        return {
            key_id: clients[number % len(clients)].verdict(text, consistency={"fully_consistent": True})
            for number, (key_id, text) in enumerate(shown.items())
        }
    finally:
        for client in clients:
            client.close()
