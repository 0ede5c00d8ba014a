"""Claim tokens: only the issued text is one."""

import string

import pytest

from tumbler_server.errors import ClaimTokenInvalid
from tumbler_server.secrets.claim_tokens import ClaimTokens
from tumbler_server.secrets.pepper import Pepper

OLD, NEW, OTHER = (Pepper(bytes([number]) * 32) for number in (1, 2, 3))
NAMED = ("0123456789abcdef", 123_456)
TOKENS = ClaimTokens([NEW, OLD])

of_each_pepper = pytest.mark.parametrize(
    "token", [ClaimTokens([NEW]).token(*NAMED), ClaimTokens([OLD]).token(*NAMED)], ids=["newest pepper", "older pepper"]
)


def refused(token: str) -> bool:
    """Return whether a token is refused. Any other exception fails the test."""
    try:
        TOKENS.read(token)
    except ClaimTokenInvalid:
        return True
    return False


@of_each_pepper
def test_issued(token: str) -> None:
    """The token of each listed pepper is read."""
    assert TOKENS.read(token) == NAMED


def test_newest_signs() -> None:
    """The newest pepper signs; the token of a pepper that is not listed is refused."""
    assert TOKENS.token(*NAMED) == ClaimTokens([NEW]).token(*NAMED)
    assert refused(ClaimTokens([OTHER]).token(*NAMED))


@of_each_pepper
def test_replaced(token: str) -> None:
    """A token with another character at any place is refused, also where base64 ignores bits or characters."""
    for place in range(len(token)):
        for other in set(string.printable + "é\x00") - {token[place]}:
            assert refused(token[:place] + other + token[place + 1 :]), (place, other)


@of_each_pepper
@pytest.mark.parametrize("more", [*string.printable, "é", "\x00", "==", "===", "====", "\r\n", "AAAA", ".A"], ids=ascii)
def test_longer(token: str, more: str) -> None:
    """A token with anything before, in or after it is refused."""
    for place in range(len(token) + 1):
        assert refused(token[:place] + more + token[place:]), place


@of_each_pepper
def test_shorter(token: str) -> None:
    """A token without any of its characters, or cut off anywhere, is refused."""
    for place in range(len(token)):
        assert refused(token[:place])
        assert refused(token[:place] + token[place + 1 :])


@pytest.mark.parametrize(
    "token", ["", "claim_", "claim_.", "claim_..", "claim_a.b", "claim_====", "claim_" + "A" * 513]
)
def test_nonsense(token: str) -> None:
    """Nonsense is refused."""
    assert refused(token)


def test_without_pepper() -> None:
    """Without a pepper, every token is refused."""
    with pytest.raises(ClaimTokenInvalid):
        ClaimTokens([]).read(TOKENS.token(*NAMED))
