package dev.tumbler;

/**
 * The server refuses the verifier's own key. It is unknown, revoked or expired, or lacks the scope {@code
 * tumbler:keys:verify}. Or it sees the keys of all projects, and no option says which projects to accept.
 */
public final class NotAllowedException extends TumblerException {
    private static final long serialVersionUID = 1L;

    NotAllowedException(String message, Throwable cause) {
        super(message, cause);
    }

    @Override
    NotAllowedException copy() {
        return new NotAllowedException(getMessage(), getCause());
    }
}
