"""The setting of a scenario: a server, a verifier in some language, and keys."""

import itertools
import time
from pathlib import Path
from typing import Any

from benchmarks import seed
from tests.clients.conformance.programs import PATIENCE, Program
from tests.e2e.service import Service, eventually
from tests.e2e.test_workers import counted
from tumbler import keyformat
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

PROMPTLY = 40.0
"""Seconds within which a stream, even a new one, delivers a change on a very busy machine."""

PATIENT = {"max_staleness": 120_000, "timeout": 10_000}
"""Options for a verifier that a busy machine does not disturb. As the server's ``cache_ttl`` is long, only the stream
makes it evict a key within ``PROMPTLY``."""

Demand = dict[str, Any]

_projects = itertools.count(1)


class Scene:
    """A verifier, created by ``open``, for its own project."""

    def __init__(self, program: Program, service: Service, project: str = "") -> None:
        self.program = program
        self.service = service
        self.project = project or f"conformance-{next(_projects)}"
        self.own = self.create("tumbler:keys:verify")
        self._logged = program.log.stat().st_size
        self._secrets: list[str] = []

    def open(self, target: str = "", settled: bool = True, **options: Any) -> None:
        """Create a verifier that replaces the previous one. Return when it caches, unless it cannot.

        Its stream does not report keys that were created before. A key created later may be evicted once, when its
        creation is delivered.
        """
        probe = self.create().key
        sent = {"target": target or self.service.target, "api_key": self.own.key, **PATIENT, **options}
        answer = self.program.call("open", **sent)
        assert answer == {}, answer
        self._secrets.append(self.own.key)
        if settled:
            self.remembered(probe)

    def close(self) -> None:
        """Close the verifier. It must not have logged any part of a key's secret."""
        self.program.call("close")
        with self.program.log.open(errors="replace") as log:
            log.seek(self._logged)
            logged = log.read()
        for text in self._secrets:
            assert keyformat.parse(text).secret not in logged, "a secret was logged"

    def create(self, *scopes: str, **fields: Any) -> pb.CreateResponse:
        """Create a key in the verifier's project."""
        return self.service.create(project_id=self.project, scopes=scopes, **fields)

    def crowd(self, size: int) -> list[str]:
        """Put this many keys into the database directly, and return their texts. The project must be the crowd's."""
        assert self.project == seed.PROJECT
        return crowd(self.service, size)

    def update(self, key_id: str, *mask: str, **fields: Any) -> None:
        """Change the fields of a key that the mask names, or without a mask the given ones."""
        key = api_key_pb2.ApiKey(id=key_id, **fields)
        self.service.call("Update", pb.UpdateRequest(api_key=key, update_mask={"paths": mask} if mask else None))

    def verify(self, text: str, **demand: Any) -> dict[str, Any]:
        """Verify a key, and return the answer. It is valid if and only if the code is VALID."""
        return self._checked(text, self.program.call("verify", key=text, **demand))

    def verify_together(self, *asked: tuple[str, Demand]) -> list[str]:
        """Verify keys at the same time, and return each outcome."""
        under_way = [(text, self.program.begin("verify", key=text, **demand)) for text, demand in asked]
        return [outcome(self._checked(text, answer.result(PATIENCE))) for text, answer in under_way]

    def verify_many(self, keys: list[str], callers: int = 64) -> dict[str, Any]:
        """Verify each key once, with this many concurrent callers, and return the counts."""
        return self.program.call("verify_many", keys=keys, callers=callers, patience=120.0)

    def code(self, text: str, **demand: Any) -> str:
        """Verify a key, and return the code, or the error if there is none."""
        return outcome(self.verify(text, **demand))

    def becomes(self, text: str, expected: str, patience: float = PROMPTLY, **demand: Any) -> None:
        """Verify a key until the outcome is as expected."""
        found, deadline = self.code(text, **demand), time.monotonic() + patience
        while found != expected:
            assert time.monotonic() < deadline, f"it is {found} still, and not {expected}"
            time.sleep(0.005)
            found = self.code(text, **demand)

    def answered(self, text: str, seconds: float, **demand: Any) -> set[str]:
        """Verify a key repeatedly for this long, or until it is not valid, and return the outcomes."""
        ended, deadline = set(), time.monotonic() + seconds
        while time.monotonic() < deadline and ended <= {"VALID"}:
            ended.add(self.code(text, **demand))
            time.sleep(0.02)
        return ended

    def last_valid(self, text: str, expected: str, **demand: Any) -> float:
        """Verify a key until it is no longer valid. The outcome must then be as expected.

        Return when the last call that returned VALID began, in seconds since 1970, or 0 if there was none.
        """
        last, deadline = 0.0, time.monotonic() + 2 * PROMPTLY
        while time.monotonic() < deadline:
            began = time.time()
            found = self.code(text, **demand)
            if found != "VALID":
                assert found == expected
                return last
            last = began
            time.sleep(0.002)
        raise AssertionError(f"it is valid still, and not {expected}")

    def remembered(self, *keys: str) -> None:
        """Verify keys until each answer is cached."""
        for text in keys:
            eventually(lambda text=text: self.verify(text).get("cached"), PROMPTLY)

    def calls(self) -> int:
        """Return how many verdicts the server has given so far."""
        return round(sum(number for name, number in counted(self.service).items() if name.startswith(_VERDICTS)))

    def size(self) -> int:
        """Return how many records the verifier caches."""
        return int(self.program.call("size")["size"])

    def _checked(self, text: str, answer: dict[str, Any]) -> dict[str, Any]:
        if keyformat.is_well_formed(text):
            self._secrets.append(text)
            assert keyformat.parse(text).secret not in str(answer), "a secret was told"
        assert ("error" in answer) != ("code" in answer), answer
        if "code" in answer:
            assert answer["valid"] is (answer["code"] == "VALID"), answer
        return answer


_VERDICTS = "tumbler_verdicts_total{"


def outcome(answer: dict[str, Any]) -> str:
    """Return the code of an answer, or its error."""
    return str(answer.get("error") or answer["code"])


def crowd(service: Service, size: int) -> list[str]:
    """Put this many keys of project ``acme`` into a server's database directly, and return their texts."""
    keys = list(seed.texts(size))
    seed.add_digested(service.database_url, Path(service.pepper_file), keys)
    return keys
