package dev.tumbler;

/**
 * The verifier's own key is refused, or lacks the scope {@code tumbler:keys:verify}; or it sees the keys of all projects,
 * and it was not said whose to accept.
 */
public final class NotAllowedException extends TumblerException {
    private static final long serialVersionUID = 1L;

    NotAllowedException(String message, Throwable cause) {
        super(message, cause);
    }
}
