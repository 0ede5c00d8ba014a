package dev.tumbler;

/**
 * The server is unreachable, overloaded or does not answer in time, the thread was interrupted, or the verifier is
 * closed. A retry may help.
 */
public final class UnavailableException extends TumblerException {
    private static final long serialVersionUID = 1L;

    UnavailableException(String message, Throwable cause) {
        super(message, cause);
    }

    UnavailableException(String message) {
        this(message, null);
    }

    @Override
    UnavailableException copy() {
        return new UnavailableException(getMessage(), getCause());
    }
}
