"""The outcome of an attack, and whether the server held."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.siege.ground import ENDING, NOISE
from tests.siege.honest import ROLES, Call
from tests.siege.scene import BEFORE, FLOOD, Held

MOST_MEMORY = 512 << 20
GROWTH = 1.2
"""The ratio of memory at the end to memory at the start that is allowed."""
AGAIN = 1.1
"""If memory grows more than that: the further ratio that is allowed after the same attack is repeated."""
TIMES = 3.0
"""The ratio of Verify's p99 during an attack without a key to its p99 before that is allowed."""
PHASES = ("before", "during", "after")


@dataclass
class Outcome:
    """The effects of an attack on a server and its callers."""

    attack: str
    what: str
    calls: dict[str, dict[str, list[Call]]] = field(default_factory=dict)
    """By phase, then by role."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes at the start, at the peak and at the end; and after ``again``, a second attack, if there was one."""
    ended: float | None = None
    """Seconds from SIGTERM to the server's end; None if it had to be killed."""
    counts: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0
    """The attacker's share of a core. Near 1, it could not have done more."""
    late: float = 0.0
    """The p99 of the delays with which the honest callers' own processes began calls, in seconds."""
    problems: list[str] = field(default_factory=list)

    def quantile(self, phase: str, role: str, share: float) -> float | None:
        """Return a quantile of the durations of a role's calls, in seconds, or None if there were no calls."""
        took = sorted(call.took for call in self.calls.get(phase, {}).get(role, ()))
        return took[min(int(len(took) * share), len(took) - 1)] if took else None

    def failures(self, phase: str, roles: Sequence[str] = ROLES) -> dict[str, int]:
        """Return the number of failed calls of each role that had any."""
        failed = {
            role: sum(bool(call.failure) for call in calls)
            for role, calls in self.calls.get(phase, {}).items()
            if role in roles
        }
        return {role: number for role, number in failed.items() if number}


def judge(held: Held, outcome: Outcome, yardstick: float, noise: float = NOISE) -> None:
    """Add a problem for each limit that the server did not hold."""
    problems = outcome.problems
    if not outcome.calls:
        return
    for phase in PHASES:
        roles = [role for role in ROLES if phase != "during" or role not in held.excused]
        if failed := outcome.failures(phase, roles):
            told = ", ".join(f"{number} {role}" for role, number in failed.items())
            examples = {call.failure for role in failed for call in outcome.calls[phase][role] if call.failure}
            problems.append(f"failed {phase}: {told} ({'; '.join(sorted(examples)[:3])})")
    during = outcome.quantile("during", "Verify", 0.99) or 0.0
    if held.verify:
        most = TIMES * max(outcome.quantile("before", "Verify", 0.99) or 0.0, yardstick if held.verify == FLOOD else 0)
        if during > max(most, noise):
            compared = "before" if held.verify == BEFORE else "before, and of beside as many no-op calls"
            problems.append(f"Verify's p99 is {during * 1e3:.0f} ms, more than {TIMES:.0f} times that of {compared}")
    revoke = outcome.quantile("during", "Revoke", 0.99) or 0.0
    if held.revoke is not None and revoke > held.revoke:
        problems.append(f"Revoke's p99 is {revoke * 1e3:.0f} ms")
    for role, most in held.slowest.items():
        slowest = max((call.took for call in outcome.calls["during"][role]), default=0.0)
        if slowest > most:
            problems.append(f"an answer of {role} took {slowest:.1f} s")
    start, peak, end = (outcome.memory.get(name, 0) for name in ("start", "peak", "end"))
    if peak > MOST_MEMORY:
        problems.append(f"memory reached {peak >> 20} MiB")
    again = outcome.memory.get("again", 0)
    if end > GROWTH * start and not 0 < again <= AGAIN * end:
        problems.append(f"memory ended at {end >> 20} MiB, began at {start >> 20}, and was {again >> 20} when repeated")
    if outcome.ended is None or outcome.ended > ENDING:
        problems.append(f"SIGTERM did not end the server within {ENDING:.0f} s")
