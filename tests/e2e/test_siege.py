"""A few short attacks, as `make siege` runs them, without checks of latency."""

from pathlib import Path

from tests.siege.attacks import BY_NAME
from tests.siege.ground import ENDING, Ground, Settings
from tests.siege.honest import Crew
from tests.siege.outcome import PHASES
from tests.siege.report import table
from tests.siege.run import besiege

ATTACKS = ("headers-16", "watch-window-0", "unread-no-key")
"""One of each kind of harm: held threads, a deadlock, and responses that pile up."""


def test_no_honest_call_fails_beside_attackers(tmp_path: Path) -> None:
    """Attacks make no other caller's call fail, and SIGTERM stops the server during an attack."""
    settings = Settings(seconds=2.5, rest=0.5, pause=0.0)  # longer than a caller waits for a response
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
