package dev.tumbler;

import java.time.Instant;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * The outcome of a verification. With MALFORMED and NOT_FOUND, all but the code is empty: nothing is told of a key
 * whose secret was not proven. Immutable.
 *
 * @param code why it is allowed or denied; for operators and logs, not for whoever presented the key
 * @param keyId the key's id, no secret
 * @param projectId the key's project
 * @param environmentId the key's environment; empty: it has none
 * @param ownerId on whose behalf the key acts
 * @param name what people call the key
 * @param scopes all that the key grants, not only what was asked for
 * @param metadata the key's metadata
 * @param expireTime the first instant at which the key is not accepted; empty: it never expires
 * @param cached whether it was decided on what the verifier remembered, without a call
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

    /** Makes an outcome, with copies of the collections. */
    public Verification {
        scopes = List.copyOf(scopes);
        metadata = Map.copyOf(metadata);
    }

    /**
     * Says whether to let the key pass.
     *
     * @return true if and only if the code is VALID
     */
    public boolean valid() {
        return code == Code.VALID;
    }

    /** Returns an outcome that tells nothing of the key. */
    static Verification unproven(Code code, boolean cached) {
        return new Verification(code, "", "", "", "", "", List.of(), Map.of(), Optional.empty(), cached);
    }
}
