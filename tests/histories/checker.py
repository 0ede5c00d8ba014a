"""The check that a history keeps the promises. It is pure, and tested on histories that break them.

A revocation happens once, so three rules make all answers of one place linearizable: it is as if each call, and the
revocation, took effect at one instant between its start and its end.

- No call that began after the revocation had returned is answered VALID.
- No call that returned before the revocation was requested is answered REVOKED.
- No call that began after another call had returned REVOKED is answered VALID.

If the first and the third rule are not promised (between servers, by ``minimize_latency``), a call may be answered
VALID if it began up to ``max_staleness`` after the revocation returned.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.histories.history import REVOKED, VALID, Freshness, History, Revoke, Verify, named

SHOWN = 20
"""Violations that are reported one by one. All are counted."""


@dataclass(frozen=True)
class Promise:
    """The promises of an installation. ``max_staleness`` is in nanoseconds."""

    max_staleness: int
    servers: frozenset[str]
    """All servers. Each must have been called."""
    changing: frozenset[str]
    """The servers that are never stale: the one that revokes and, on SQLite, every one."""
    linear: frozenset[str]
    """The servers that never answer VALID again after REVOKED, not even before the revocation has returned."""
    bearable: frozenset[int] = frozenset()
    """The failures that are allowed, as answers; see ``history.failed``. Without faults, none."""


@dataclass
class Lag:
    """How far a server lagged, by key, in nanoseconds after the revocation returned; never less than 0."""

    last_valid: list[int] = field(default_factory=list)
    """The start of the last call that was answered VALID: the staleness that the promise bounds."""
    first_denial: list[int] = field(default_factory=list)
    """The return of the first call that was answered REVOKED, for keys that have one."""


@dataclass
class Findings:
    """The results of a history."""

    revokes: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """The number of verifications by answer, a code or a status."""
    late: Counter[str] = field(default_factory=Counter)
    """By server, the verifications that began after the revocation had returned, and so could have been stale."""
    stale: Counter[str] = field(default_factory=Counter)
    """By server, the late verifications that were answered VALID."""
    demanding: int = 0
    """The late verifications that demanded a fresh answer, by token or fully_consistent."""
    stale_demanding: int = 0
    """The late and demanding verifications that were answered VALID."""
    lags: dict[str, Lag] = field(default_factory=lambda: defaultdict(Lag))
    unseen: Counter[str] = field(default_factory=Counter)
    """By server, the keys that were not verified both before and after: the history shows nothing about these."""
    violations: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def verifies(self) -> int:
        """Return the number of verifications."""
        return self.answers.total()

    @property
    def failures(self) -> int:
        """Return the number of verifications that were answered neither VALID nor REVOKED."""
        return sum(number for name, number in self.answers.items() if name not in ("VALID", "REVOKED"))

    def violate(self, text: str) -> None:
        """Record a broken promise."""
        self.violations += 1
        if len(self.examples) < SHOWN:
            self.examples.append(text)


def check(history: History, promise: Promise) -> Findings:
    """Return the results of a history, with its violations of the promise."""
    findings = Findings(revokes=len(history.revokes))
    revokes = {revoke.key: revoke for revoke in history.revokes}
    by_place: defaultdict[tuple[int, str], list[Verify]] = defaultdict(list)
    fully: defaultdict[int, list[Verify]] = defaultdict(list)
    for verify in history.verifies:
        findings.answers[named(verify.answer)] += 1
        if verify.answer not in (VALID, REVOKED):
            if verify.answer not in promise.bearable:
                findings.violate(f"{_told(verify)}: neither VALID nor REVOKED")
            continue
        by_place[verify.key, verify.server].append(verify)
        if verify.freshness is Freshness.FULL:
            fully[verify.key].append(verify)
    for (key, server), verifies in by_place.items():
        if key not in revokes:
            _check_untouched(verifies, findings)
        else:
            _check_revoked(revokes[key], server, verifies, promise, findings)
        if server in promise.linear:
            _check_order(verifies, findings, f"{server} itself")
    for verifies in fully.values():
        _check_order(verifies, findings, "another fully_consistent call")
    for server in promise.servers:
        findings.unseen[server] += sum((key, server) not in by_place for key in revokes)
    return findings


def quantile(values: Iterable[int], share: float) -> int:
    """Return the least value that at least this share of all values do not exceed, or 0 if there are no values."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0


def _check_untouched(verifies: Sequence[Verify], findings: Findings) -> None:
    for verify in verifies:
        if verify.answer == REVOKED:
            findings.violate(f"{_told(verify)}, and nobody revoked the key")


def _check_revoked(
    revoke: Revoke, server: str, verifies: Sequence[Verify], promise: Promise, findings: Findings
) -> None:
    """Compare a server's answers on a key with the key's revocation."""
    last_valid, first_denial, before = 0, None, False
    for verify in verifies:
        age = verify.invoked - revoke.returned
        late, stale = age > 0, age > 0 and verify.answer == VALID
        demanding = verify.freshness is not Freshness.LATENCY
        before |= verify.answer == VALID and age <= 0
        findings.late[server] += late
        findings.stale[server] += stale
        findings.demanding += late and demanding
        findings.stale_demanding += stale and demanding
        if verify.answer == REVOKED:
            if verify.returned < revoke.invoked:
                findings.violate(f"{_told(verify)}, before the key was revoked")
            seen = max(0, verify.returned - revoke.returned)
            first_denial = seen if first_denial is None else min(seen, first_denial)
        elif stale:
            last_valid = max(last_valid, age)
            bound = 0 if demanding or server in promise.changing else promise.max_staleness
            if age > bound:
                findings.violate(f"{_told(verify)}, begun {_ms(age)} after the revocation returned")
    lag = findings.lags[server]
    lag.last_valid.append(last_valid)
    if first_denial is not None:
        lag.first_denial.append(first_denial)
    findings.unseen[server] += first_denial is None or not before


def _check_order(verifies: Sequence[Verify], findings: Findings, who: str) -> None:
    """Check that no call that began after a REVOKED had returned was answered VALID."""
    denied = min((verify.returned for verify in verifies if verify.answer == REVOKED), default=None)
    if denied is None:
        return
    for verify in verifies:
        if verify.answer == VALID and verify.invoked > denied:
            after = _ms(verify.invoked - denied)
            findings.violate(f"{_told(verify)}, begun {after} after {who} had said REVOKED")


def _told(verify: Verify) -> str:
    return f"key {verify.key} at {verify.server} ({verify.freshness.name}): {named(verify.answer)}"


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.3f} ms"
