package dev.tumbler;

import dev.tumbler.v1.VerifyCode;

/** The outcome of a verification. The first that applies, in this order from MALFORMED on, decides. */
public enum Code {
    /** The key may do what was asked. The only one that allows anything. */
    VALID,
    /** Not of a key's form, or its check is wrong: most likely a typing error. */
    MALFORMED,
    /** No such key, a wrong secret, or a key of a project that the verifier may not see. */
    NOT_FOUND,
    /** Revoked, for ever. */
    REVOKED,
    /** Rotated, and the grace period is over. */
    SUPERSEDED,
    /** Deactivated; it can be activated again. */
    INACTIVE,
    /** Its expiry has been reached. */
    EXPIRED,
    /** The key belongs to another environment than the one that was asked for. */
    ENVIRONMENT_MISMATCH,
    /** The key may be used from certain networks alone, and the address is in none of them, or was not given. */
    IP_NOT_ALLOWED,
    /** A required scope is not granted. */
    INSUFFICIENT_SCOPE;

    /** Returns what a server's code says, or null where it is none that decides. */
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
            case VERIFY_CODE_UNSPECIFIED, UNRECOGNIZED -> null;
        };
    }

    /** Says whether a record is proven and working, so that what is demanded of it decides. */
    boolean dependsOnDemand() {
        return this == VALID || this == ENVIRONMENT_MISMATCH || this == IP_NOT_ALLOWED || this == INSUFFICIENT_SCOPE;
    }
}
