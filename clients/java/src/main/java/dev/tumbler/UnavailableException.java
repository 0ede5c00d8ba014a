package dev.tumbler;

/** The server could not be asked in time, and nothing that is remembered answers. Trying again later may help. */
public final class UnavailableException extends TumblerException {
    private static final long serialVersionUID = 1L;

    UnavailableException(String message, Throwable cause) {
        super(message, cause);
    }

    UnavailableException(String message) {
        this(message, null);
    }
}
