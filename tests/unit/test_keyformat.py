import json
import random
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tumbler
from tumbler import keyformat

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "keyformat.json").read_text())["vectors"]

KEY_ID = "0123456789abcdef"
SECRET = "0" * keyformat.SECRET_LENGTH
KEY = keyformat.build("acme_live", KEY_ID, SECRET)

prefixes = st.from_regex(keyformat.PREFIX_PATTERN, fullmatch=True)
ids = st.text(keyformat.ALPHABET, min_size=keyformat.ID_LENGTH, max_size=keyformat.ID_LENGTH)
secrets = st.text(keyformat.ALPHABET, min_size=keyformat.SECRET_LENGTH, max_size=keyformat.SECRET_LENGTH)
keys = st.builds(keyformat.build, prefixes, ids, secrets)


def text_of(vector):
    """Return a row's key as a string."""
    key = vector["key"]
    return key if isinstance(key, str) else key["repeat"][0] * key["repeat"][1]


class TestVectors:
    """The vectors that every Tumbler client must pass."""

    @pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
    def test_row(self, vector):
        """Each row is well formed or not, and parses into its parts, as the file says."""
        text = text_of(vector)
        assert keyformat.is_well_formed(text) is vector["well_formed"]
        if vector["well_formed"]:
            parsed = keyformat.parse(text)
            assert (parsed.prefix, parsed.id) == (vector["prefix"], vector["id"])
        else:
            with pytest.raises(keyformat.MalformedKey):
                keyformat.parse(text)

    def test_names(self):
        """Names are unique, so that a client can report the row that failed."""
        names = [vector["name"] for vector in VECTORS]
        assert len(names) == len(set(names)) >= 40

    @pytest.mark.parametrize("vector", [v for v in VECTORS if v["well_formed"]], ids=lambda vector: vector["name"])
    def test_scanner_pattern(self, vector):
        """The pattern for secret scanners finds each well-formed key within a line, completely."""
        assert keyformat.PATTERN.findall(f'set "{vector["key"]}";') == [vector["key"]]


class TestParse:
    """Parsing a key."""

    @given(prefixes, ids, secrets)
    def test_round_trip(self, prefix, key_id, secret):
        """The function parse returns what build joined."""
        key = keyformat.build(prefix, key_id, secret)
        assert len(key) <= keyformat.MAX_LENGTH
        assert keyformat.parse(key) == keyformat.ParsedKey(prefix, key_id, secret)

    def test_key_prefix(self):
        """The key prefix for lists is everything before the secret, including the underscore."""
        assert keyformat.parse(KEY).key_prefix == f"acme_live_{KEY_ID}_"

    def test_repr_hides_the_secret(self):
        """The repr of a parsed key does not contain its secret."""
        secret = "S" * keyformat.SECRET_LENGTH
        parsed = keyformat.parse(keyformat.build("tmb", KEY_ID, secret))
        assert repr(parsed) == str(parsed) == f"ParsedKey(prefix='tmb', id='{KEY_ID}')"
        assert parsed.secret == secret

    def test_frozen(self):
        """A parsed key is immutable."""
        with pytest.raises(AttributeError):
            keyformat.parse(KEY).id = "other"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a" * (keyformat.MAX_LENGTH + 1), "too long"),
            ("nonsense", "form"),
            (KEY + "\n", "form"),
            (KEY[:-1] + ("0" if KEY[-1] != "0" else "1"), "check"),
        ],
    )
    def test_message(self, text, message):
        """The message says what is wrong, and neither it nor its cause contains the text."""
        with pytest.raises(keyformat.MalformedKey, match=message) as caught:
            keyformat.parse(text)
        assert text.strip() not in str(caught.value)
        assert caught.value.__cause__ is None
        assert isinstance(caught.value, ValueError)

    @given(st.text())
    def test_any_text(self, text):
        """For any text, parse returns a key or raises MalformedKey, and both functions agree."""
        try:
            keyformat.parse(text)
        except keyformat.MalformedKey:
            assert not keyformat.is_well_formed(text)
        else:
            assert keyformat.is_well_formed(text)


class TestTypingErrors:
    """The checksum's purpose: CRC-32 finds every error within 32 adjacent bits."""

    @given(keys, st.data())
    def test_one_character_changed(self, key, data):
        """A key with any one character replaced is refused."""
        place = data.draw(st.integers(0, len(key) - 1))
        other = data.draw(st.sampled_from(keyformat.ALPHABET + "_- ").filter(lambda c: c != key[place]))
        assert not keyformat.is_well_formed(key[:place] + other + key[place + 1 :])

    @given(keys, st.data())
    def test_neighbours_changed_about(self, key, data):
        """A key with two different neighbours swapped is refused, before the checksum or in it."""
        check_begins = len(key) - keyformat.CHECK_LENGTH
        swappable = [i for i in range(len(key) - 1) if key[i] != key[i + 1] and i + 1 != check_begins]
        place = data.draw(st.sampled_from(swappable))
        swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
        assert not keyformat.is_well_formed(swapped)

    @given(keys, st.data())
    def test_one_character_missing(self, key, data):
        """A key that lacks any number of characters at its end is refused."""
        assert not keyformat.is_well_formed(key[: data.draw(st.integers(0, len(key) - 1))])

    def test_every_single_change(self):
        """Every single-character change of one key is refused."""
        for place, right in enumerate(KEY):
            for wrong in set(keyformat.ALPHABET + "_") - {right}:
                assert not keyformat.is_well_formed(KEY[:place] + wrong + KEY[place + 1 :])


class TestBuild:
    """Building a key."""

    @pytest.mark.parametrize(
        ("part", "arguments"),
        [
            ("prefix", ("Tmb", KEY_ID, SECRET)),
            ("prefix", ("", KEY_ID, SECRET)),
            ("prefix", ("tmb\n", KEY_ID, SECRET)),
            ("id", ("tmb", KEY_ID[1:], SECRET)),
            ("id", ("tmb", KEY_ID[1:] + "_", SECRET)),
            ("id", ("tmb", KEY_ID[1:] + "\u0660", SECRET)),
            ("secret", ("tmb", KEY_ID, SECRET + "0")),
            ("secret", ("tmb", KEY_ID, SECRET[1:] + "é")),
        ],
    )
    def test_bad_part(self, part, arguments):
        """An invalid part is refused with its name, and its value is not shown."""
        with pytest.raises(ValueError, match=part) as caught:
            keyformat.build(*arguments)
        assert SECRET[:20] not in str(caught.value)

    @pytest.mark.parametrize(
        ("prefix", "valid"),
        [("tmb", True), ("acme_live", True), ("a", False), ("acme_", False), ("a_b", False), ("acmé", False)],
    )
    def test_valid_prefix(self, prefix, valid):
        """A prefix is valid if all of it matches the contract's pattern."""
        assert keyformat.valid_prefix(prefix) is valid


class TestChecksum:
    """The checksum."""

    @pytest.mark.parametrize(
        ("text", "check"),
        # The CRC-32 of nothing is 0; that of the standard's check string "123456789" is 0xCBF43926 = 3421780262.
        [("", "000000"), ("123456789", "3jZRME")],
    )
    def test_known(self, text, check):
        """The checksum is the standard CRC-32 in base 62."""
        assert keyformat.checksum(text) == check

    def test_against_int(self):
        """As a base 62 number the checksum equals the CRC-32, also with leading zeros."""
        generator = random.Random(0)  # noqa: S311 - a fixed sample, not a secret
        for _ in range(1000):
            text = "".join(generator.choices(keyformat.ALPHABET, k=20))
            check = keyformat.checksum(text)
            value = 0
            for character in check:
                value = value * 62 + keyformat.ALPHABET.index(character)
            assert (len(check), value) == (keyformat.CHECK_LENGTH, zlib.crc32(text.encode()))


class TestPattern:
    """The pattern for secret scanners."""

    def test_is_the_contracts(self):
        """The pattern is exactly the one in the contract."""
        assert keyformat.PATTERN.pattern == (
            r"\b[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}\b"
        )

    @pytest.mark.parametrize("text", [f"key={KEY}&x=1", f"Bearer {KEY}\r\n", f'{{"key":"{KEY}"}}', f"é{KEY}"])
    def test_hides_keys_in_logs(self, text):
        """A log filter that uses the pattern removes the whole key."""
        assert SECRET not in keyformat.PATTERN.sub("***", text)

    def test_not_part_of_a_longer_word(self):
        """A key inside a longer run of word characters is not matched."""
        assert keyformat.PATTERN.search(KEY + "0") is None


def test_version():
    """The package's version has the form of a release."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", tumbler.__version__)
