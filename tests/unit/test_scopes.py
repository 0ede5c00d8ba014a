"""Which scopes a scope grants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tumbler.decide import any_grants, grants
from tumbler_server.keys.scopes import first_not_held

SCOPES = st.lists(st.sampled_from(["", "*", ":", ":*", "a", "b", "tumbler"]), max_size=5).map("".join)
"""Scopes, valid and invalid."""


class TestGrants:
    """One scope compared with another."""

    @pytest.mark.parametrize(
        ("granted", "required", "covered"),
        [
            ("orders", "orders", True),
            ("orders:read", "orders:read", True),
            ("orders", "orders:read", False),
            ("orders:read", "orders", False),
            ("orders:read", "orders:reads", False),
            ("orders:*", "orders:read", True),
            ("orders:*", "orders:read:own", True),
            ("orders:*", "orders", False),
            ("orders:*", "ordersx:read", False),
            ("orders:*", "Orders:read", False),
            ("orders:read:*", "orders:read:own", True),
            ("orders:read:*", "orders:read", False),
            ("orders:*:own", "orders:read:own", False),
            ("orders*", "orders:read", False),
            ("*:read", "orders:read", False),
            ("*", "orders", True),
            ("*", "orders:read", True),
            ("*", "tumbler", True),
            ("*", "tumblers:read", True),
            ("*", "tumbler:keys:read", False),
            ("tumbler:*", "tumbler:keys:read", True),
            ("tumbler:*", "orders:read", False),
            ("tumbler:keys:*", "tumbler:keys:read", True),
            ("tumbler:keys:*", "tumbler:events:read", False),
        ],
    )
    def test_required_scopes(self, granted: str, required: str, covered: bool) -> None:
        """A scope grants itself, `:*` all below it, and `*` everything except this service's own permissions."""
        assert grants(granted, required) is covered

    @pytest.mark.parametrize(
        ("granted", "wildcard", "covered"),
        [
            ("orders:*", "orders:*", True),
            ("orders:*", "orders:read:*", True),
            ("orders:read:*", "orders:*", False),
            ("orders:read", "orders:*", False),
            ("*", "*", True),
            ("*", "orders:*", True),
            ("*", "tumbler:*", False),
            ("tumbler:*", "tumbler:*", True),
            ("tumbler:*", "tumbler:keys:*", True),
            ("tumbler:*", "*", False),
            ("tumbler:keys:*", "tumbler:*", False),
        ],
    )
    def test_wildcards(self, granted: str, wildcard: str, covered: bool) -> None:
        """A wildcard is covered by itself and by a wider one, but not by a narrower one."""
        assert grants(granted, wildcard) is covered


class TestAnyGrants:
    """A list of scopes compared with one."""

    def test_an_empty_list_covers_nothing(self) -> None:
        """An empty list grants nothing, not everything."""
        assert not any_grants((), "orders:read")

    def test_one_is_enough(self) -> None:
        """One scope of the list that covers the required one is enough, at any position."""
        assert any_grants(("users:read", "orders:*"), "orders:read")

    def test_scopes_do_not_add_up(self) -> None:
        """Scopes that each cover only a part do not cover the whole together."""
        assert not any_grants(("orders", "read"), "orders:read")

    @given(st.lists(SCOPES, max_size=4), SCOPES)
    def test_it_is_what_one_of_them_grants(self, granted: list[str], required: str) -> None:
        """For any list, the lookup gives the same result as comparing each scope."""
        assert any_grants(frozenset(granted), required) is any(grants(scope, required) for scope in granted)


class TestFirstNotHeld:
    """The first scope that a caller may not give, because it does not hold it."""

    @pytest.mark.parametrize(
        ("given", "held", "lacking"),
        [
            ((), (), None),
            (("orders:read",), (), None),
            (("orders:*", "*"), (), None),
            (("tumbler",), (), None),
            (("tumbler:keys:read",), ("tumbler:keys:read",), None),
            (("tumbler:keys:read",), ("tumbler:keys:*",), None),
            (("tumbler:keys:*",), ("tumbler:*",), None),
            (("tumbler:keys:read",), (), "tumbler:keys:read"),
            (("tumbler:keys:read",), ("*",), "tumbler:keys:read"),
            (("tumbler:keys:*",), ("tumbler:keys:read",), "tumbler:keys:*"),
            (("tumbler:*",), ("tumbler:keys:*", "tumbler:events:*"), "tumbler:*"),
            (("a", "tumbler:keys:read", "tumbler:keys:create"), ("tumbler:keys:read",), "tumbler:keys:create"),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
    )
    def test_table(self, given: tuple[str, ...], held: tuple[str, ...], lacking: str | None) -> None:
        """Only this service's own permissions count, and each must be covered by a held one."""
        assert first_not_held(given, held) == lacking

    def test_held_may_be_any_iterable(self) -> None:
        """The held scopes may come from an iterator."""
        assert first_not_held(["tumbler:a", "tumbler:b"], iter(["tumbler:b", "tumbler:a"])) is None
