package dev.tumbler;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.security.SecureRandom;

/**
 * What is remembered of a presented key: SHA-256 over a random secret of this object and the key. Nobody sees a
 * fingerprint, so that the plain construction is enough, and it costs half of what HMAC does.
 */
final class Fingerprints {
    private static final ThreadLocal<MessageDigest> SHA_256 = ThreadLocal.withInitial(() -> {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException impossible) { // every Java platform must have it
            throw new IllegalStateException(impossible);
        }
    });

    private final byte[] secret = new byte[32];

    Fingerprints() {
        new SecureRandom().nextBytes(secret);
    }

    /** Returns the fingerprint of a text. Characters that no key has may count as others that no key has. */
    byte[] of(String key) {
        MessageDigest sha256 = SHA_256.get();
        sha256.update(secret);
        return sha256.digest(key.getBytes(StandardCharsets.ISO_8859_1));
    }

    /** Compares in constant time. The one place where fingerprints are compared. */
    static boolean same(byte[] one, byte[] other) {
        return MessageDigest.isEqual(one, other);
    }
}
