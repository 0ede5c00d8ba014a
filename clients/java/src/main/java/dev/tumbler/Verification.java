package dev.tumbler;

import java.time.Instant;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * The verdict on a presented key. With MALFORMED and NOT_FOUND, all fields except code and cached are empty: the secret
 * was not proven, or the project is not accepted. Immutable.
 *
 * @param code why the key is accepted or denied; for operators and logs, not for the caller who presented the key
 * @param keyId the key's id, which is not secret
 * @param projectId the key's project
 * @param environmentId the key's environment; empty: the key has no environment
 * @param ownerId on whose behalf the key acts
 * @param name the key's name, for people
 * @param scopes all scopes that the key grants, not only the required ones
 * @param metadata the key's metadata
 * @param expireTime the first instant at which the key is not accepted; empty: it never expires
 * @param cached whether the verdict came from the cache, without a call
 */
public record Verification(
        Code code,
        String keyId,
        String projectId,
        String environmentId,
        String ownerId,
        String name,
        List<String> scopes,
        Map<String, String> metadata,
        Optional<Instant> expireTime,
        boolean cached) {

    /** Creates a verdict, with copies of the collections. */
    public Verification {
        scopes = List.copyOf(scopes);
        metadata = Map.copyOf(metadata);
    }

    /**
     * Returns whether to accept the key.
     *
     * @return true if and only if the code is VALID
     */
    public boolean valid() {
        return code == Code.VALID;
    }

    /** Returns a verdict without any details of the key. */
    static Verification unproven(Code code, boolean cached) {
        return new Verification(code, "", "", "", "", "", List.of(), Map.of(), Optional.empty(), cached);
    }
}
