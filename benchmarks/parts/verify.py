"""Verify and BatchVerify, in every way that a key can be presented, against the no-op."""

from collections.abc import Callable

from benchmarks import seed
from benchmarks.bench import POSTGRESQL, SQLITE, Bench
from benchmarks.load import Unfit
from benchmarks.race import Case, Measured, Race, Supply
from benchmarks.server import NOOP
from benchmarks.service import SERVICE, Service
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb

VERIFY, BATCH_VERIFY = f"{SERVICE}/Verify", f"{SERVICE}/BatchVerify"

WARM, NEVER_SEEN = "warm", "never seen"
BATCHES = (1, 50, 500)


def request(text: str) -> bytes:
    """Return a request to verify a key, as an ordinary service would make it."""
    return pb.VerifyRequest(key=text, required_scopes=[seed.ASKED]).SerializeToString()


def batch(texts: list[str]) -> bytes:
    """Return a request to verify many keys."""
    questions = [pb.VerifyRequest(key=text, required_scopes=[seed.ASKED]) for text in texts]
    return pb.BatchVerifyRequest(requests=questions).SerializeToString()


def batch_name(size: int) -> str:
    """Return the name of the case of a batch of warm keys."""
    return f"batch of {size}, warm"


def wrong(text: str) -> str:
    """Return a key with the same id, a wrong secret, and a matching checksum."""
    parsed = keyformat.parse(text)
    return keyformat.build(parsed.prefix, parsed.id, parsed.secret[::-1])


def mistyped(text: str) -> str:
    """Return a key with one wrong character, so that its checksum fails."""
    last = "0" if text[-1] != "0" else "1"
    return text[:-1] + last


def must_be(name: str) -> Callable[[bytes], None]:
    """Return a check that an answer has this code."""

    def check(answer: bytes) -> None:
        got = pb.VerifyCode.Name(pb.VerifyResponse.FromString(answer).code)
        if got != f"VERIFY_CODE_{name}":
            raise Unfit(f"the answer should be {name}, and is {got}")

    return check


def _all_valid(answer: bytes) -> None:
    responses = pb.BatchVerifyResponse.FromString(answer).responses
    if not responses or not all(response.valid for response in responses):
        raise Unfit("a key of a batch is not valid")


def run(bench: Bench) -> list[dict[str, object]]:
    """Measure on both databases, with 1 and 32 calls in flight."""
    rows: list[dict[str, object]] = []
    for database in (SQLITE, POSTGRESQL):
        bench.say(f"verify on {database}: keys are put into the database")
        house = bench.found(database)
        keys = list(seed.texts(20_000 if bench.quick else 100_000))
        seed.add_digested(house.url, house.pepper_file, keys)
        for in_flight in (1, 32):
            bench.say(f"verify on {database}, {in_flight} in flight")
            # A new process each time, so that keys that the last one has cached are new to this one.
            with Service(house) as service:
                rows += [{"database": database, **vars(row)} for row in _race(bench, service, keys, in_flight)]
    return rows


def _race(bench: Bench, service: Service, keys: list[str], in_flight: int) -> list[Measured]:
    caller = service.caller("tumbler:keys:verify")
    (unknown,) = seed.texts(1)
    warm, presented_wrong, others, rest = keys[:1_000], keys[1_000], keys[1_001:2_001], keys[2_001:]
    alone, batched = rest[: len(rest) // 3], rest[len(rest) // 3 :]
    for text in warm:
        service.raw(VERIFY, request(text), caller)
    cases = [
        Case("nothing, by the same server", NOOP, outcome="OK 0"),
        Case(WARM, VERIFY, request(warm[0]), check=must_be("VALID")),
        Case("warm, 1,000 keys in turn", VERIFY, supply=Supply([request(text) for text in warm], again=True)),
        Case(NEVER_SEEN, VERIFY, supply=Supply([request(text) for text in alone]), check=must_be("VALID"), reads=1),
        Case("wrong secret, id in the cache", VERIFY, request(wrong(warm[0])), check=must_be("NOT_FOUND")),
        Case("wrong secret, id not in the cache", VERIFY, request(wrong(presented_wrong)), check=must_be("NOT_FOUND")),
        Case("unknown id", VERIFY, request(unknown), check=must_be("NOT_FOUND")),
        Case("malformed", VERIFY, request(mistyped(others[0])), check=must_be("MALFORMED")),
        *(
            Case(batch_name(size), BATCH_VERIFY, batch(warm[:size]), keys=size, check=_all_valid, outcome="OK 0")
            for size in BATCHES
        ),
    ]
    if in_flight == 1:  # with more in flight, the keys would run out
        slices = [batched[start : start + 500] for start in range(0, len(batched) - 499, 500)]
        supply = Supply([batch(texts) for texts in slices])
        cases.append(
            Case(
                "batch of 500, never seen",
                BATCH_VERIFY,
                supply=supply,
                keys=500,
                reads=500,
                check=_all_valid,
                outcome="OK 0",
            )
        )
    rows = Race(bench, service, caller, in_flight).run(cases)
    if bcrypt_runs := service.counted()["bcrypt_runs"]:
        raise Unfit(f"bcrypt ran {bcrypt_runs} times, though each key has a digest")
    return rows
