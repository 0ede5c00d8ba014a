"""A few attacks, as `make siege` makes them: short, and without a look at how long calls take."""

from pathlib import Path

from tests.siege.attacks import BY_NAME
from tests.siege.ground import ENDING, Ground, Settings
from tests.siege.honest import Crew
from tests.siege.outcome import PHASES
from tests.siege.report import table
from tests.siege.run import besiege

ATTACKS = ("headers-16", "watch-window-0", "unread-no-key")
"""Of each kind of harm one: threads that are held, a deadlock, answers that pile up."""


def test_no_honest_call_fails_beside_attackers(tmp_path: Path) -> None:
    """While others attack, no honest call fails, and SIGTERM ends the server in the middle of it."""
    settings = Settings(seconds=2.5, rest=0.5, pause=0.0)  # longer than an honest caller waits for an answer
    crew, ground = Crew(), Ground(tmp_path, settings)
    try:
        done = [besiege(BY_NAME[name], settings, crew, ground) for name in ATTACKS]
    finally:
        crew.close()
    assert {each.attack: {phase: each.failures(phase) for phase in PHASES} for each in done} == {
        name: {phase: {} for phase in PHASES} for name in ATTACKS
    }
    for each in done:
        assert (each.ended or 2 * ENDING) < ENDING, each.attack
        assert len(each.calls["during"]["Verify"]) > 100, each.attack
        assert sum(each.counts.values()) >= 16, each.attack
    assert table(done, "a short siege").row_count == len(ATTACKS)
