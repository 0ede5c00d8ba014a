package dev.tumbler;

import dev.tumbler.v1.VerifyCode;

/**
 * The outcome of a verification. If several reasons to deny apply, the first in this order counts, from MALFORMED on.
 */
public enum Code {
    /**
     * The server denies the key for a reason that this version does not know. The server never sends this code itself.
     */
    UNSPECIFIED,
    /** The key is accepted. The only code that allows anything. */
    VALID,
    /** The text does not have the form of a key, or its check is wrong. Most likely a typing error. */
    MALFORMED,
    /** No such key, a wrong secret, or a key of a project that is not accepted. */
    NOT_FOUND,
    /** The key is revoked, permanently. */
    REVOKED,
    /** The key was rotated, and its grace period is over. */
    SUPERSEDED,
    /** The key is switched off; it can be activated again. */
    INACTIVE,
    /** The key has expired. */
    EXPIRED,
    /** The key does not belong to the demanded environment. */
    ENVIRONMENT_MISMATCH,
    /** The key may not be used from this address, or no address was given. */
    IP_NOT_ALLOWED,
    /** The key does not grant a required scope. */
    INSUFFICIENT_SCOPE;

    /** Returns the code for a server's code, UNSPECIFIED for one of a newer server, or null if it is not a verdict. */
    static Code of(VerifyCode code) {
        return switch (code) {
            case VERIFY_CODE_VALID -> VALID;
            case VERIFY_CODE_MALFORMED -> MALFORMED;
            case VERIFY_CODE_NOT_FOUND -> NOT_FOUND;
            case VERIFY_CODE_REVOKED -> REVOKED;
            case VERIFY_CODE_SUPERSEDED -> SUPERSEDED;
            case VERIFY_CODE_INACTIVE -> INACTIVE;
            case VERIFY_CODE_EXPIRED -> EXPIRED;
            case VERIFY_CODE_ENVIRONMENT_MISMATCH -> ENVIRONMENT_MISMATCH;
            case VERIFY_CODE_IP_NOT_ALLOWED -> IP_NOT_ALLOWED;
            case VERIFY_CODE_INSUFFICIENT_SCOPE -> INSUFFICIENT_SCOPE;
            case UNRECOGNIZED -> UNSPECIFIED;
            case VERIFY_CODE_UNSPECIFIED -> null;
        };
    }

    /** Returns whether the verdict depends on the demand: the key is not revoked, superseded, inactive or expired. */
    boolean dependsOnDemand() {
        return this == VALID || this == ENVIRONMENT_MISMATCH || this == IP_NOT_ALLOWED || this == INSUFFICIENT_SCOPE;
    }
}
