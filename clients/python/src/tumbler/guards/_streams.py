"""The rule that all guards share for streams: a stream ends when its key stops being valid."""

from collections.abc import Callable
from typing import Any

from tumbler._base import demand_of
from tumbler._sessions import Session
from tumbler.guards._rules import Refusal, log_refusal, refusal_for
from tumbler.verification import Verification

VerifyArguments = dict[str, Any]
"""The arguments of ``verify``."""


class Streams:
    """The streams behind one guard."""

    def __init__(self, verifier: Any, end_streams: bool) -> None:
        # A verifier that is not ours, in a test for example, may have no sessions.
        self._sessions = getattr(verifier, "_sessions", None) if end_streams else None

    @property
    def change_count(self) -> int:
        """The counter to note before verifying a key that may let a stream in."""
        return self._sessions.change_count if self._sessions is not None else 0

    def hold(
        self, arguments: VerifyArguments, verification: Verification, since: int, ended: Callable[[Refusal], None]
    ) -> Session | None:
        """Call ``ended``, perhaps in another thread, when the key that let a stream in is no longer valid.

        Return the session, to be closed when the stream has ended by itself. None: the stream outlives its key.
        """
        if self._sessions is None:
            return None
        demand = dict(arguments)
        key = demand.pop("key")

        def over(outcome: Verification | Exception) -> None:
            if not isinstance(outcome, Verification) or not outcome:
                ended(refusal_for(outcome))
                log_refusal(outcome)

        session: Session = self._sessions.open(key, demand_of(**demand), verification, since, over)
        return session
