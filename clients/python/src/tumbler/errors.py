"""The errors that a verifier raises. None of them is a verdict, and none means that a key may pass."""

__all__ = ["InvalidRequest", "NotAllowed", "TumblerError", "Unavailable"]


class TumblerError(Exception):
    """Nothing was decided: deny the request, or let the caller retry. The text never holds a key."""


class Unavailable(TumblerError):
    """The server did not answer in time and no valid record was cached, or the verifier is closed."""


class NotAllowed(TumblerError):
    """The server refused the verifier's own key. It must be valid and have the scope ``tumbler:keys:verify``.

    Or it sees the keys of all projects, and the verifier does not know which of them to accept.
    """


class InvalidRequest(TumblerError):
    """A demand has the wrong form: a scope, an address, an environment or a project."""
