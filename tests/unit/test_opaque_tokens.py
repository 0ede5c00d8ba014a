"""Opaque tokens that callers keep."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.domain import new_store
from tumbler_server.errors import InvalidFields
from tumbler_server.secrets.opaque_tokens import OpaqueTokens, Point, open_opaque_tokens
from tumbler_server.store.database import Store, open_store

FILTER = "fingerprint"
KEY_ID = "0123456789abcdef"
MARK = "abcdefghijkl"
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.fixture(scope="module")
def tokens() -> OpaqueTokens:
    """Return an installation's tokens."""
    return OpaqueTokens(bytes(range(32)), lambda _: MARK)


def open_tokens(store: Store) -> OpaqueTokens:
    """Return the tokens of the installation that owns this database."""
    return open_opaque_tokens(store, lambda _: MARK)


@dataclass(frozen=True)
class Kind:
    """A kind of token: how to issue and read one, and the field that holds it."""

    field: str
    issue: Callable[[OpaqueTokens], str]
    read: Callable[[OpaqueTokens, str], object]

    def refused(self, tokens: OpaqueTokens, token: str) -> bool:
        """Return whether reading a token reports its field as invalid."""
        with pytest.raises(InvalidFields) as caught:
            self.read(tokens, token)
        return [violation.field for violation in caught.value.violations] == [self.field]


PAGE = Kind(
    "page_token",
    lambda tokens: tokens.page(FILTER, 1_893_456_000_000_000, KEY_ID),
    lambda tokens, token: tokens.read_page(token, FILTER),
)
REVISION = Kind(
    "consistency.at_least_as_fresh",
    lambda tokens: tokens.consistency(123_456),
    lambda tokens, token: tokens.point(token),
)

kinds = pytest.mark.parametrize("kind", [PAGE, REVISION], ids=lambda kind: kind.field)


class TestRoundTrip:
    """Reading an issued token."""

    @pytest.mark.parametrize("value", [0, 2**63 - 1, "", "a name", "ключ, 鍵", 'quo"ted'])
    def test_page(self, tokens: OpaqueTokens, value: int | str) -> None:
        """A page token has the sort value and the id after which the page begins."""
        assert tokens.read_page(tokens.page(FILTER, value, KEY_ID), FILTER) == (value, KEY_ID, 0)

    @pytest.mark.parametrize("revision", [1, 2, 2**40])
    def test_consistency(self, tokens: OpaqueTokens, revision: int) -> None:
        """A consistency token has its revision and the revision's mark."""
        assert tokens.point(tokens.consistency(revision)) == Point(revision, MARK)

    @kinds
    def test_for_urls(self, tokens: OpaqueTokens, kind: Kind) -> None:
        """A token is short and needs no escaping in a URL or a shell."""
        assert set(kind.issue(tokens)) <= set(BASE64 + ".")
        assert len(kind.issue(tokens)) < 200

    def test_the_longest_name(self, tokens: OpaqueTokens) -> None:
        """The token after a key with the longest possible name can be read."""
        name = "\U0001f511" * 255
        assert tokens.read_page(tokens.page(FILTER, name, KEY_ID), FILTER) == (name, KEY_ID, 0)


class TestRefused:
    """Refusing a token that was not issued."""

    @kinds
    def test_changed(self, tokens: OpaqueTokens, kind: Kind) -> None:
        """A token with any changed character is refused, also if it means the same bytes."""
        token = kind.issue(tokens)
        for place in range(len(token)):
            for other in "AB-_" if place < len(token) - 1 else BASE64:
                if other != token[place]:
                    assert kind.refused(tokens, token[:place] + other + token[place + 1 :])

    @kinds
    def test_cut_off(self, tokens: OpaqueTokens, kind: Kind) -> None:
        """A token that is cut off anywhere, or made longer, is refused."""
        token = kind.issue(tokens)
        for length in range(len(token)):
            assert kind.refused(tokens, token[:length])
        for more in ("A", "=", "==", ".", "\n"):
            assert kind.refused(tokens, token + more)
        assert kind.refused(tokens, " " + token)

    @kinds
    @pytest.mark.parametrize(
        "token",
        ["a", ".", "..", "a.b", "\x00", "ключ", "=" * 8, "A" * 5_000_000, "W10.", "....."],
        ids=lambda text: ascii(text)[:12],
    )
    def test_nonsense(self, tokens: OpaqueTokens, kind: Kind, token: str) -> None:
        """Nonsense of any length is refused as invalid, and raises nothing else."""
        assert kind.refused(tokens, token)

    @kinds
    def test_foreign(self, tokens: OpaqueTokens, kind: Kind) -> None:
        """Another installation's token is refused."""
        assert kind.refused(tokens, kind.issue(OpaqueTokens(bytes(32), lambda _: "")))

    def test_another_filter(self, tokens: OpaqueTokens) -> None:
        """A page token belongs to its filter and order, and the message says so."""
        token = tokens.page(FILTER, 1, KEY_ID)
        with pytest.raises(InvalidFields, match="page_token: belongs to another filter or order"):
            tokens.read_page(token, "another")

    def test_the_other_kind(self, tokens: OpaqueTokens) -> None:
        """A token of one kind is refused as the other."""
        assert PAGE.refused(tokens, REVISION.issue(tokens))
        assert REVISION.refused(tokens, PAGE.issue(tokens))

    @kinds
    def test_not_quoted(self, tokens: OpaqueTokens, kind: Kind) -> None:
        """The error does not repeat the token, because it could be anything."""
        with pytest.raises(InvalidFields) as caught:
            kind.read(tokens, "pasted-by-mistake")
        assert "pasted" not in str(caught.value)


class TestInstallation:
    """Which installation a token belongs to."""

    def test_same_database(self, store: Store, database_url: str) -> None:
        """Servers on one database read each other's tokens, even after a restart."""
        other = open_store(database_url)
        assert open_tokens(other).point(open_tokens(store).consistency(7)) == Point(7, MARK)
        other.close()

    def test_another_database(self, store: Store, dialect: str, new_database: Callable[[str], str]) -> None:
        """A new installation has its own secret, so it refuses another's tokens."""
        other = new_store(new_database(dialect))
        assert REVISION.refused(open_tokens(other), open_tokens(store).consistency(7))
        other.close()
