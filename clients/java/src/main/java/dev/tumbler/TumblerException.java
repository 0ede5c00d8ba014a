package dev.tumbler;

/** A verification without a verdict: nothing was decided. Deny the request, or retry. */
public abstract sealed class TumblerException extends RuntimeException
        permits UnavailableException, NotAllowedException, InvalidRequestException {
    private static final long serialVersionUID = 1L;

    TumblerException(String message, Throwable cause) {
        super(message, cause);
    }
}
