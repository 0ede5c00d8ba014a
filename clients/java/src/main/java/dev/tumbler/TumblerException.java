package dev.tumbler;

/** A verification that came to no verdict. Whatever the reason: the key at hand must not be let pass. */
public abstract sealed class TumblerException extends RuntimeException
        permits UnavailableException, NotAllowedException, InvalidRequestException {
    private static final long serialVersionUID = 1L;

    TumblerException(String message, Throwable cause) {
        super(message, cause);
    }
}
