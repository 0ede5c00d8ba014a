"""Opaque tokens that callers hold."""

from collections.abc import Callable

import pytest

from tests.domain import new_store
from tumbler_server.errors import InvalidFields
from tumbler_server.keys.tokens import Tokens, open_tokens
from tumbler_server.store.database import Store, open_store

FILTER = "fingerprint"
KEY_ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """Give an installation's tokens."""
    return Tokens(bytes(range(32)))


Kind = tuple[Callable[[Tokens], str], Callable[[Tokens, str], object], str]

PAGE: Kind = (
    lambda tokens: tokens.page(FILTER, 1_893_456_000_000_000, KEY_ID),
    lambda tokens, token: tokens.read_page(token, FILTER),
    "page_token",
)
REVISION: Kind = (
    lambda tokens: tokens.consistency(123_456),
    lambda tokens, token: tokens.revision(token),
    "consistency.at_least_as_fresh",
)

kinds = pytest.mark.parametrize(("issue", "read", "field"), [PAGE, REVISION], ids=["page", "consistency"])


def refused(read: Callable[[Tokens, str], object], tokens: Tokens, token: str) -> list[str]:
    """Return the fields that are refused when a token is read."""
    with pytest.raises(InvalidFields) as caught:
        read(tokens, token)
    return [violation.field for violation in caught.value.violations]


class TestRoundTrip:
    """What was issued is read."""

    @pytest.mark.parametrize("value", [0, 2**63 - 1, "", "a name", "ключ, 鍵", 'quo"ted'])
    def test_page(self, tokens: Tokens, value: int | str) -> None:
        """A page's token holds the sort value and the id after which the page begins."""
        assert tokens.read_page(tokens.page(FILTER, value, KEY_ID), FILTER) == (value, KEY_ID)

    @pytest.mark.parametrize("revision", [1, 2, 2**40])
    def test_consistency(self, tokens: Tokens, revision: int) -> None:
        """A consistency token names its revision."""
        assert tokens.revision(tokens.consistency(revision)) == revision

    @kinds
    def test_for_urls(
        self, tokens: Tokens, issue: Callable[[Tokens], str], read: Callable[[Tokens, str], object], field: str
    ) -> None:
        """A token is short and holds nothing that has to be escaped in a URL or a shell."""
        assert set(issue(tokens)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
        assert len(issue(tokens)) < 200

    def test_the_longest_name(self, tokens: Tokens) -> None:
        """The token after a key with the longest name there is can be read back."""
        name = "\U0001f511" * 255
        assert tokens.read_page(tokens.page(FILTER, name, KEY_ID), FILTER) == (name, KEY_ID)


class TestRefused:
    """What was not issued is refused."""

    @kinds
    def test_changed(
        self, tokens: Tokens, issue: Callable[[Tokens], str], read: Callable[[Tokens, str], object], field: str
    ) -> None:
        """Whichever character is changed, the token is refused (but for the last, some of whose bits mean nothing)."""
        token = issue(tokens)
        for place in range(len(token) - 1):
            other = "A" if token[place] != "A" else "B"
            assert refused(read, tokens, token[:place] + other + token[place + 1 :]) == [field]

    @kinds
    def test_cut_off(
        self, tokens: Tokens, issue: Callable[[Tokens], str], read: Callable[[Tokens, str], object], field: str
    ) -> None:
        """Wherever it is cut off or made longer, the token is refused."""
        token = issue(tokens)
        for length in range(len(token)):
            assert refused(read, tokens, token[:length]) == [field]
        assert refused(read, tokens, token + "A") == [field]
        assert refused(read, tokens, " " + token) == [field]

    @kinds
    @pytest.mark.parametrize(
        "token", ["a", ".", "..", "a.b", "\x00", "ключ", "=" * 8, "A" * 5_000_000, "W10.", "....."], ids=lambda text: ascii(text)[:12]
    )
    def test_nonsense(
        self,
        tokens: Tokens,
        issue: Callable[[Tokens], str],
        read: Callable[[Tokens, str], object],
        field: str,
        token: str,
    ) -> None:
        """Nonsense of any length is refused as what it is, and never fails otherwise."""
        assert refused(read, tokens, token) == [field]

    @kinds
    def test_foreign(
        self, tokens: Tokens, issue: Callable[[Tokens], str], read: Callable[[Tokens, str], object], field: str
    ) -> None:
        """Another installation's token is refused."""
        assert refused(read, tokens, issue(Tokens(bytes(32)))) == [field]

    def test_another_filter(self, tokens: Tokens) -> None:
        """A page's token belongs to the filter and order that it was issued for, and the message says so."""
        token = tokens.page(FILTER, 1, KEY_ID)
        with pytest.raises(InvalidFields, match="page_token: belongs to another filter or order"):
            tokens.read_page(token, "another")

    def test_the_other_kind(self, tokens: Tokens) -> None:
        """A token of one kind is none of the other."""
        assert refused(PAGE[1], tokens, REVISION[0](tokens)) == ["page_token"]
        assert refused(REVISION[1], tokens, PAGE[0](tokens)) == ["consistency.at_least_as_fresh"]

    @kinds
    def test_not_quoted(
        self, tokens: Tokens, issue: Callable[[Tokens], str], read: Callable[[Tokens, str], object], field: str
    ) -> None:
        """The refusal does not repeat the token: it could be anything."""
        with pytest.raises(InvalidFields) as caught:
            read(tokens, "pasted-by-mistake")
        assert "pasted" not in str(caught.value)


class TestInstallation:
    """Whose tokens they are."""

    def test_same_database(self, store: Store, database_url: str) -> None:
        """Servers on one database read each other's tokens, also after a restart."""
        other = open_store(database_url)
        assert open_tokens(other).revision(open_tokens(store).consistency(7)) == 7
        other.close()

    def test_another_database(self, store: Store, dialect: str, new_database: Callable[[str], str]) -> None:
        """A new installation has a secret of its own."""
        other = new_store(new_database(dialect))
        assert refused(REVISION[1], open_tokens(other), open_tokens(store).consistency(7))
        other.close()
