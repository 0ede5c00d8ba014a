"""Verification of secrets with changing peppers: digests make it cheap, and bcrypt works without any pepper."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import grpc
import pytest

from tests.domain import PATIENCE
from tests.harness import CHEAP, Refused, World, forged
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.audit import audit
from tumbler_server.events.log import EventType
from tumbler_server.secrets import pepper
from tumbler_server.secrets.secret import HashedSecret, Hasher
from tumbler_server.shares import PROOFS_OF_A_KEY
from tumbler_server.store.models import ApiKeyRow


def hashed(world: World, key_id: str) -> tuple[int, bool, str]:
    """Return what is stored of a key's secret: bcrypt's cost, whether there is a digest, and its pepper's ID."""
    (row,) = world.core.store.select(ApiKeyRow.select().where(ApiKeyRow.id == key_id))
    return int(row.secret_hash[4:6]), row.digest is not None, row.pepper_id


def peppers(world: World) -> list[str]:
    """Return the IDs of the peppers in the file, newest first."""
    return [one.id for one in world.installation.peppers()]


def rotate_pepper(world: World) -> None:
    """Add a new pepper and restart with it."""
    pepper.rotate(world.installation.pepper_file)
    world.reopen()


def drop_old_peppers(world: World) -> None:
    """Keep only the newest pepper in the file, and restart."""
    path = world.installation.pepper_file
    comment, newest, *_ = path.read_text().splitlines()
    path.write_text(f"{comment}\n{newest}\n")
    world.reopen()


def lose_pepper(world: World) -> None:
    """Delete the pepper file and restart without it."""
    world.installation.pepper_file.unlink()
    world.reopen()


def other_secret(text: str, number: int) -> str:
    """Return a key with the prefix and ID of another and a wrong secret, one for each number."""
    parsed = keyformat.parse(text)
    return keyformat.build(parsed.prefix, parsed.id, f"{number:0{keyformat.SECRET_LENGTH}}")


@pytest.fixture
def bcrypt_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that gives the number of bcrypt checks since its last call."""
    runs: list[int] = []
    check = Hasher.check_bcrypt

    def counted(self: Hasher, secret: str, hashed: HashedSecret) -> bool:
        runs.append(1)
        return check(self, secret, hashed)

    monkeypatch.setattr(Hasher, "check_bcrypt", counted)

    def since() -> int:
        number = len(runs)
        runs.clear()
        return number

    return since


def test_a_key_is_stored_as_hash_and_digest(world: World) -> None:
    """A key is stored as a bcrypt hash of the configured cost and a digest under the newest pepper."""
    key_id = world.create().api_key.id
    assert hashed(world, key_id) == (CHEAP, True, peppers(world)[0])


def test_with_a_pepper_bcrypt_never_runs(world: World, bcrypt_runs: Callable[[], int]) -> None:
    """While a digest can be checked, neither a right nor a wrong secret costs a bcrypt run."""
    created = world.create()
    world.reopen()
    assert world.verdict(forged(created.key)) == "NOT_FOUND"
    assert world.verdict(created.key) == "VALID"
    assert world.verdict(forged(created.key)) == "NOT_FOUND"
    world.revoke(created.api_key.id)
    assert world.verdict(forged(created.key)) == "NOT_FOUND"
    assert bcrypt_runs() == 0


def test_after_a_pepper_rotation_old_digests_prove(world: World, bcrypt_runs: Callable[[], int]) -> None:
    """A key with a digest under an older pepper is verified without bcrypt and rehashed under the newest on use."""
    created, unused = world.create(), world.create()
    (old,) = peppers(world)
    rotate_pepper(world)
    newest, older = peppers(world)
    assert older == old
    assert world.verdict(created.key) == "VALID"
    world.core.rehasher.drain()
    assert hashed(world, created.api_key.id) == (CHEAP, True, newest)
    assert hashed(world, unused.api_key.id) == (CHEAP, True, old)
    assert bcrypt_runs() == 0


def test_a_wrong_secret_seals_nothing(world: World) -> None:
    """Only a verified key is rehashed."""
    created = world.create()
    before = hashed(world, created.api_key.id)
    rotate_pepper(world)
    assert world.verdict(forged(created.key)) == "NOT_FOUND"
    world.core.rehasher.drain()
    assert hashed(world, created.api_key.id) == before


def test_the_old_pepper_can_go_once_keys_were_used(world: World, bcrypt_runs: Callable[[], int]) -> None:
    """A key that was used under the new pepper no longer needs the old one; an unused one costs bcrypt once."""
    created, unused = world.create(), world.create()
    rotate_pepper(world)
    assert world.verdict(created.key) == "VALID"
    world.core.rehasher.drain()
    drop_old_peppers(world)
    assert world.verdict(created.key) == "VALID"
    assert world.verdict(forged(created.key)) == "NOT_FOUND"
    assert bcrypt_runs() == 0
    for _ in range(3):
        assert world.verdict(unused.key) == "VALID"
    assert bcrypt_runs() == 1
    world.core.rehasher.drain()
    world.reopen()
    assert world.verdict(unused.key) == "VALID"
    assert bcrypt_runs() == 0


def test_without_any_pepper_bcrypt_runs_once_a_key_and_process(
    world: World, twin: World, bcrypt_runs: Callable[[], int]
) -> None:
    """Without the pepper file, every key works: bcrypt verifies it once in each process, then the cache does."""
    created = world.create()
    lose_pepper(world)
    twin.reopen()
    for server in (world, twin):
        for _ in range(3):
            assert server.verdict(created.key) == "VALID"
            assert server.verdict(forged(created.key)) == "NOT_FOUND"
        assert bcrypt_runs() == 2  # the caller's key and this one
    world.set_active(created.api_key.id, False)
    assert world.verdict(created.key) == "INACTIVE"
    assert bcrypt_runs() == 0  # a secret never changes, whatever else does


def test_without_any_pepper_a_wrong_secret_is_not_found(world: World, bcrypt_runs: Callable[[], int]) -> None:
    """Without a pepper, bcrypt refuses a wrong secret."""
    created = world.create()
    lose_pepper(world)
    world.page()
    bcrypt_runs()
    assert world.verdict(forged(created.key)) == "NOT_FOUND"
    assert bcrypt_runs() == 1
    assert world.verdict(created.key) == "VALID"


def test_keys_made_without_a_pepper_work(world: World) -> None:
    """Without a pepper, keys can be created, listed, rotated and revoked; they have a hash and no digest."""
    lose_pepper(world)
    created = world.create()
    assert hashed(world, created.api_key.id) == (CHEAP, False, "")
    rotated = world.rotate(created.api_key.id)
    assert (world.verdict(created.key), world.verdict(rotated.key)) == ("VALID", "VALID")
    world.revoke(created.api_key.id)
    assert world.verdict(created.key) == "REVOKED"


def test_a_new_pepper_file_heals_the_installation(world: World, bcrypt_runs: Callable[[], int]) -> None:
    """With a new pepper file after a loss, bcrypt verifies each key once, and then it has a digest again."""
    created = world.create()
    lose_pepper(world)
    made_without = world.create()
    pepper.create(world.installation.pepper_file)
    world.reopen()
    bcrypt_runs()
    for key in (created, made_without):
        assert world.verdict(key.key) == "VALID"
    assert bcrypt_runs() == 3  # including the caller's key
    world.core.rehasher.drain()
    for key in (created, made_without):
        assert hashed(world, key.api_key.id) == (CHEAP, True, peppers(world)[0])
    world.reopen()
    for key in (created, made_without):
        assert world.verdict(key.key) == "VALID"
    assert bcrypt_runs() == 0


def test_a_higher_cost_is_taken_on_with_use(world: World) -> None:
    """If the bcrypt cost is raised, a key is rehashed at its next use; if it is lowered, stronger hashes stay."""
    created = world.create()
    key_id = created.api_key.id
    world.reopen(bcrypt_cost=CHEAP + 1)
    assert hashed(world, key_id)[0] == CHEAP
    assert world.verdict(created.key) == "VALID"
    world.core.rehasher.drain()
    assert hashed(world, key_id) == (CHEAP + 1, True, peppers(world)[0])
    assert hashed(world, world.create().api_key.id)[0] == CHEAP + 1
    world.reopen(bcrypt_cost=CHEAP)
    assert world.verdict(created.key) == "VALID"
    world.core.rehasher.drain()
    assert hashed(world, key_id)[0] == CHEAP + 1


def test_a_remade_hash_still_proves(world: World) -> None:
    """A new hash is of the same secret, and verifies the key without any pepper."""
    created = world.create()
    world.reopen(bcrypt_cost=CHEAP + 1)
    assert world.verdict(created.key) == "VALID"
    world.core.rehasher.drain()
    lose_pepper(world)
    assert world.verdict(created.key) == "VALID"
    assert world.verdict(forged(created.key)) == "NOT_FOUND"


def test_sealing_anew_is_no_change_of_the_key(world: World) -> None:
    """A rehashed key changes only its etag, and the log has a REHASHED event."""
    created = world.create()
    rotate_pepper(world)
    world.clock.advance(1)
    assert world.verdict(created.key) == "VALID"
    world.core.rehasher.drain()
    found = world.get(created.api_key.id)
    assert found.etag != created.api_key.etag
    found.etag = created.api_key.etag
    assert found == created.api_key
    event = world.events()[-1]
    assert (event.type, event.key_id, event.actor_name) == (EventType.REHASHED, created.api_key.id, "rehash")
    assert audit.run(world.core.store, world.clock)


def test_a_key_goes_on_working_where_sealing_anew_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If rehashing fails, the key works as before, and its next use retries."""
    created = world.create()
    before = hashed(world, created.api_key.id)
    rotate_pepper(world)
    with monkeypatch.context() as broken:
        broken.setattr(Hasher, "hash", lambda *_: 1 / 0)
        assert world.verdict(created.key) == "VALID"
        world.core.rehasher.drain()
    assert hashed(world, created.api_key.id) == before
    world.reopen()
    assert world.verdict(created.key) == "VALID"
    world.core.rehasher.drain()
    assert hashed(world, created.api_key.id)[2] == peppers(world)[0]


def test_too_many_secrets_to_prove_is_told_with_a_time_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit of concurrent bcrypt checks of one key, a Verify is RESOURCE_EXHAUSTED with RetryInfo."""
    created = world.create()
    lose_pepper(world)
    world.page()  # caches the caller's own key
    parsed = keyformat.parse(created.key)
    turned = [parsed.secret[n:] + parsed.secret[:n] for n in range(1, PROOFS_OF_A_KEY.most + 3)]
    presented = [keyformat.build(parsed.prefix, parsed.id, secret) for secret in turned]
    end, check = threading.Event(), Hasher.check_bcrypt

    def held(hasher: Hasher, secret: str, stored: HashedSecret) -> bool:
        assert end.wait(PATIENCE)
        return check(hasher, secret, stored)

    monkeypatch.setattr(Hasher, "check_bcrypt", held)
    with ThreadPoolExecutor(len(presented)) as others:
        calls = [others.submit(world.call, "Verify", pb.VerifyRequest(key=text)) for text in presented]
        refused = list(itertools.islice(as_completed(calls, PATIENCE), 2))
        world.page()  # verified keys are still served
        end.set()
    for call in refused:
        failure = call.exception()
        assert isinstance(failure, Refused)
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert failure.retry_delay > 0
    proven = [call.result() for call in calls if call not in refused]
    assert [pb.VerifyCode.Name(each.code) for each in proven] == ["VERIFY_CODE_NOT_FOUND"] * PROOFS_OF_A_KEY.most
    assert world.verdict(created.key) == "VALID"


def test_without_any_pepper_the_prefix_still_counts(world: World) -> None:
    """Without a pepper, a key with another prefix is NOT_FOUND, although bcrypt covers only the secret."""
    created = world.create(prefix="acme_live")
    lose_pepper(world)
    parsed = keyformat.parse(created.key)
    assert world.verdict(keyformat.build("acme_test", parsed.id, parsed.secret)) == "NOT_FOUND"
    assert world.verdict(created.key) == "VALID"
