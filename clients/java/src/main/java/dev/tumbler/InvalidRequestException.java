package dev.tumbler;

/**
 * A required scope, the address, the environment or a project has the wrong form. Either the program has a bug, or it
 * passed on a client's input unchecked. The message says which field is wrong.
 */
public final class InvalidRequestException extends TumblerException {
    private static final long serialVersionUID = 1L;

    InvalidRequestException(String message, Throwable cause) {
        super(message, cause);
    }

    @Override
    InvalidRequestException copy() {
        return new InvalidRequestException(getMessage(), getCause());
    }
}
