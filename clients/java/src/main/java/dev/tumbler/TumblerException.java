package dev.tumbler;

/**
 * A verification without a verdict: nothing was decided. Deny the request, or retry. Neither the message nor the cause
 * shows a key, also if the server quotes one.
 */
public abstract sealed class TumblerException extends RuntimeException
        permits UnavailableException, NotAllowedException, InvalidRequestException {
    private static final long serialVersionUID = 1L;

    TumblerException(String message, Throwable cause) {
        super(message, cause);
    }

    /** Returns a copy, with the same cause. */
    abstract TumblerException copy();

    /** Returns the failure for one more caller. An exception is mutable, so no two callers may get the same one. */
    static Throwable copyOf(Throwable failure) {
        return failure instanceof TumblerException known ? known.copy() : failure;
    }
}
