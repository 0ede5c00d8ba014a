package dev.tumbler;

/** The verifier's own key is refused, or lacks the scope {@code tumbler:keys:verify}. */
public final class NotAllowedException extends TumblerException {
    private static final long serialVersionUID = 1L;

    NotAllowedException(String message, Throwable cause) {
        super(message, cause);
    }
}
