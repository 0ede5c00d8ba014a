package dev.tumbler;

/**
 * A required scope, address or environment is not of the right form. The message says which; the caller must change.
 */
public final class InvalidRequestException extends TumblerException {
    private static final long serialVersionUID = 1L;

    InvalidRequestException(String message, Throwable cause) {
        super(message, cause);
    }
}
