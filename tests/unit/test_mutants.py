"""The mutants of ``make mutants``, which rarely runs, match the code."""

import pytest

from tests.mutants.run import MUTANTS, Mutant, place


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_stands_once(mutant: Mutant) -> None:
    """The code that a mutant changes occurs once in its file."""
    package, file = place(mutant)
    assert (package / file).read_text().count(mutant.old) == 1
