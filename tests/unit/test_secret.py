"""Secrets: generated, hashed and proven."""

import dataclasses
import re
from pathlib import Path

import pytest

import tumbler_server
from tests.harness import CHEAP
from tumbler import keyformat
from tumbler_server.defaults import CHEAPEST_BCRYPT
from tumbler_server.secrets.pepper import Pepper
from tumbler_server.secrets.secret import HashedSecret, Hasher, NewKey, generate, same

OLD, NEW, OTHER = (Pepper(bytes([number]) * 32) for number in (1, 2, 3))


@pytest.fixture(scope="module")
def made() -> NewKey:
    """Return a new key."""
    return generate("acme_live")


def cost_of(hashed: HashedSecret) -> str:
    """Return the cost in a bcrypt hash: two digits after its version."""
    return hashed.secret_hash.split("$")[2]


class TestGenerate:
    """New keys."""

    @pytest.mark.parametrize("prefix", ["tmb", "ab", "acme_live", "a23456789012345b_1"])
    def test_form(self, prefix: str) -> None:
        """A new key parses, and has the requested prefix."""
        made = generate(prefix)
        parsed = keyformat.parse(made.text)
        assert (parsed.prefix, parsed.id, parsed.secret) == (prefix, made.id, made.secret)
        assert made.key_prefix == f"{prefix}_{made.id}_"

    def test_prefix_must_be_one(self) -> None:
        """An invalid prefix is refused."""
        with pytest.raises(ValueError, match="prefix"):
            generate("Acme")

    def test_every_key_is_another(self) -> None:
        """Ids and secrets do not repeat."""
        keys = [generate("tmb") for _ in range(500)]
        assert len({key.id for key in keys}) == len({key.secret for key in keys}) == 500

    def test_entropy(self) -> None:
        """Each of the 62 digits occurs at each position of a secret."""
        secrets = [generate("tmb").secret for _ in range(2_000)]
        assert {len(secret) for secret in secrets} == {43}
        # The chance that one of 43 positions lacks a digit in 2,000 tries is 43 * 62 * (61/62)**2000, 2 in 10**11.
        for place in range(43):
            assert {secret[place] for secret in secrets} == set(keyformat.ALPHABET)

    def test_repr_is_silent(self, made: NewKey) -> None:
        """The repr of a new key contains neither its text nor its secret."""
        assert made.secret not in repr(made)
        assert made.id in repr(made)


class TestSeal:
    """What is stored."""

    def test_nothing_readable(self, made: NewKey) -> None:
        """The stored data contains neither the secret nor the pepper."""
        hashed = Hasher(CHEAP, [NEW]).hash(made.text, made.secret)
        stored = "".join(str(value) for value in dataclasses.astuple(hashed))
        assert made.secret not in stored
        assert NEW.secret.hex() not in (hashed.digest or b"").hex()

    def test_salted(self, made: NewKey) -> None:
        """The same secret has a different hash each time."""
        hasher = Hasher(CHEAP)
        assert hasher.hash(made.text, made.secret).secret_hash != hasher.hash(made.text, made.secret).secret_hash

    def test_repr_is_silent(self, made: NewKey) -> None:
        """The repr of the stored data contains neither hash nor digest."""
        hashed = Hasher(CHEAP, [NEW]).hash(made.text, made.secret)
        assert hashed.secret_hash not in repr(hashed)
        assert repr(hashed.digest) not in repr(hashed)

    def test_cost(self, made: NewKey) -> None:
        """A hash has the hasher's cost; the minimum is bcrypt's own."""
        assert cost_of(Hasher(CHEAPEST_BCRYPT + 1).hash(made.text, made.secret)) == "05"

    def test_the_newest_pepper_signs(self, made: NewKey) -> None:
        """The first of several peppers makes the digest."""
        assert Hasher(CHEAP, [NEW, OLD]).hash(made.text, made.secret).pepper_id == NEW.id

    def test_without_a_pepper(self, made: NewKey) -> None:
        """Without a pepper there is only a bcrypt hash, no digest."""
        hashed = Hasher(CHEAP).hash(made.text, made.secret)
        assert (hashed.digest, hashed.pepper_id) == (None, "")


class TestDigest:
    """The cheap proof by digest."""

    @pytest.mark.parametrize(
        ("hashed_under", "at_hand", "proven"),
        [
            ([NEW], [NEW], True),
            ([OLD], [NEW, OLD], True),
            ([NEW], [OLD, NEW], True),
            ([OLD], [NEW], None),
            ([OLD], [], None),
            ([], [NEW], None),
            ([], [], None),
        ],
        ids=["same", "an older one is kept", "the order does not matter", "gone", "all gone", "never one", "none ever"],
    )
    def test_right_key(self, made: NewKey, hashed_under: list[Pepper], at_hand: list[Pepper], proven: bool) -> None:
        """Any known pepper proves its digests; without the pepper that made a digest, the result is None."""
        hashed = Hasher(CHEAP, hashed_under).hash(made.text, made.secret)
        assert Hasher(CHEAP, at_hand).check_digest(made.text, hashed) is proven

    def test_wrong_key(self, made: NewKey) -> None:
        """A wrong key is False, not None, so it never reaches bcrypt."""
        hashed = Hasher(CHEAP, [NEW]).hash(made.text, made.secret)
        assert Hasher(CHEAP, [NEW]).check_digest(generate("acme_live").text, hashed) is False

    def test_the_whole_key_counts(self, made: NewKey) -> None:
        """The same secret with another prefix is another key."""
        hashed = Hasher(CHEAP, [NEW]).hash(made.text, made.secret)
        other = keyformat.build("acme_test", made.id, made.secret)
        assert Hasher(CHEAP, [NEW]).check_digest(other, hashed) is False

    def test_a_digest_of_another_pepper_proves_nothing(self, made: NewKey) -> None:
        """A digest with another pepper's id is refused."""
        hashed = Hasher(CHEAP, [OTHER]).hash(made.text, made.secret)
        forged = dataclasses.replace(hashed, pepper_id=NEW.id)
        assert Hasher(CHEAP, [NEW, OTHER]).check_digest(made.text, forged) is False


class TestBcrypt:
    """The proof by bcrypt, which survives a lost pepper."""

    def test_right_and_wrong(self, made: NewKey) -> None:
        """The right secret is proven without a pepper, and another one is not."""
        hashed = Hasher(CHEAP, [OLD]).hash(made.text, made.secret)
        assert Hasher(CHEAP).check_bcrypt(made.secret, hashed)
        assert not Hasher(CHEAP).check_bcrypt(generate("tmb").secret, hashed)

    def test_the_last_character_counts(self, made: NewKey) -> None:
        """A secret is far below bcrypt's limit of 72 bytes, so its last character counts."""
        hashed = Hasher(CHEAP).hash(made.text, made.secret)
        last = "0" if made.secret[-1] != "0" else "1"
        assert not Hasher(CHEAP).check_bcrypt(made.secret[:-1] + last, hashed)

    def test_cost_of_the_hash_counts(self, made: NewKey) -> None:
        """A hash with another cost than the hasher's is proven, too."""
        assert Hasher(CHEAP + 2).check_bcrypt(made.secret, Hasher(CHEAP).hash(made.text, made.secret))


class TestNeedsRehash:
    """When a proven key is rehashed."""

    @pytest.mark.parametrize(
        ("hashed_by", "now", "anew"),
        [
            ((4, [NEW]), (4, [NEW]), False),
            ((4, [NEW]), (5, [NEW]), True),
            ((5, [NEW]), (4, [NEW]), False),
            ((4, [OLD]), (4, [NEW, OLD]), True),
            ((4, [NEW]), (4, [NEW, OLD]), False),
            ((4, []), (4, [NEW]), True),
            ((4, [OLD]), (4, []), False),
            ((4, []), (4, []), False),
            ((4, []), (5, []), True),
        ],
        ids=[
            "nothing changed",
            "the cost went up",
            "the cost went down",
            "a newer pepper signs",
            "an older pepper was added",
            "there is a pepper now",
            "there is no pepper any more",
            "there never was a pepper",
            "without a pepper the cost went up",
        ],
    )
    def test_table(
        self, made: NewKey, hashed_by: tuple[int, list[Pepper]], now: tuple[int, list[Pepper]], anew: bool
    ) -> None:
        """A key is rehashed if the cost has risen or another pepper signs, and never to a weaker form."""
        hashed = Hasher(*hashed_by).hash(made.text, made.secret)
        assert Hasher(*now).needs_rehash(hashed) is anew


class TestSame:
    """Comparison of byte strings."""

    @pytest.mark.parametrize(
        ("one", "other", "equal"),
        [(b"", b"", True), (b"ab", b"ab", True), (b"ab", b"ac", False), (b"ab", b"abc", False), (b"ab", b"", False)],
    )
    def test_table(self, one: bytes, other: bytes, equal: bool) -> None:
        """Byte strings are the same if their lengths and all bytes are equal."""
        assert same(one, other) is equal

    def test_time_tells_nothing(self) -> None:
        """The comparison uses the standard library's constant-time function."""
        assert "compare_digest" in same.__code__.co_names

    def test_it_is_the_only_one(self) -> None:
        """No other module compares in constant time, and none compares digests or tags with == or !=."""
        package = Path(tumbler_server.__file__).parent
        for module in package.rglob("*.py"):
            text = module.read_text()
            if module.name != "secret.py":
                assert "compare_digest" not in text, module
            assert not re.search(r"(digest|tag|fingerprint)\)? *(==|!=) *\w+\.(digest|tag|fingerprint)", text), module
