"""What a verifier raises. None of these is ever a verdict, and none means that a key may pass."""

__all__ = ["InvalidRequest", "NotAllowed", "TumblerError", "Unavailable"]


class TumblerError(Exception):
    """Nothing was decided: deny the request at hand, or have it tried again. Its text never holds a key."""


class Unavailable(TumblerError):
    """The server could not be asked in time, and nothing valid was remembered; or the verifier is closed."""


class NotAllowed(TumblerError):
    """The verifier's own key was refused. It needs to be valid, with the scope ``tumbler:keys:verify``.

    Or it sees the keys of all projects, and the verifier was not told whose to accept.
    """


class InvalidRequest(TumblerError):
    """What was demanded of the key is not of the right form: a scope, an address, an environment or a project."""
