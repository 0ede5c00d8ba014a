package dev.tumbler;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.security.SecureRandom;

/**
 * Digests of presented keys: SHA-256 of a random secret of this object and the key. The cache keeps nothing else of a
 * presented key. Digests never leave the process, so this construction is enough; HMAC would cost twice as much.
 */
final class Digester {
    private static final ThreadLocal<MessageDigest> SHA_256 = ThreadLocal.withInitial(() -> {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException impossible) { // every Java platform must have it
            throw new IllegalStateException(impossible);
        }
    });

    private final byte[] secret = new byte[32];

    Digester() {
        new SecureRandom().nextBytes(secret);
    }

    /** Returns the digest of a text. Characters beyond ISO 8859-1 count as '?', which no key contains. */
    byte[] digest(String key) {
        MessageDigest sha256 = SHA_256.get();
        sha256.update(secret);
        return sha256.digest(key.getBytes(StandardCharsets.ISO_8859_1));
    }

    /** Compares two digests in constant time. No other code compares digests. */
    static boolean same(byte[] one, byte[] other) {
        return MessageDigest.isEqual(one, other);
    }
}
