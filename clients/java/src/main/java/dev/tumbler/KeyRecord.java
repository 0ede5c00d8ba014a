package dev.tumbler;

import com.google.protobuf.Timestamp;
import dev.tumbler.v1.VerifyResponse;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;

/**
 * The data of a key whose secret was proven. Times are microseconds since the Unix epoch.
 *
 * @param networks those of the key's networks that could be parsed
 * @param restricted whether the key may be used only from {@code networks}
 */
record KeyRecord(
        String keyId,
        String projectId,
        String environmentId,
        String ownerId,
        String name,
        List<String> scopes,
        Map<String, String> metadata,
        List<Network> networks,
        boolean restricted,
        boolean revoked,
        boolean active,
        long graceExpireTime,
        long expireTime) {
    static final long NEVER = Long.MAX_VALUE;

    /**
     * Returns the record in an answer about a proven key, with revoked false and active true: no record of a revoked or
     * inactive key is cached.
     */
    static KeyRecord of(VerifyResponse answer) {
        return new KeyRecord(
                answer.getKeyId(),
                answer.getProjectId(),
                answer.getEnvironmentId(),
                answer.getOwnerId(),
                answer.getName(),
                List.copyOf(answer.getScopesList()),
                Map.copyOf(answer.getMetadataMap()),
                networks(answer.getAllowedCidrsList()),
                answer.getAllowedCidrsCount() > 0,
                false,
                true,
                answer.hasGraceExpireTime() ? micros(answer.getGraceExpireTime()) : NEVER,
                answer.hasExpireTime() ? micros(answer.getExpireTime()) : NEVER);
    }

    static long micros(Timestamp time) {
        return time.getSeconds() * 1_000_000 + time.getNanos() / 1_000;
    }

    /** Parses a key's allowed_cidrs. An entry that cannot be parsed is left out: it contains no address. */
    static List<Network> networks(List<String> cidrs) {
        List<Network> networks = new ArrayList<>(cidrs.size());
        cidrs.stream().map(Network::parse).filter(Objects::nonNull).forEach(networks::add);
        return List.copyOf(networks);
    }

    Verification verification(Code code, boolean cached) {
        Optional<Instant> expires = expireTime == NEVER
                ? Optional.empty()
                : Optional.of(Instant.ofEpochSecond(
                        Math.floorDiv(expireTime, 1_000_000), Math.floorMod(expireTime, 1_000_000) * 1_000L));
        return new Verification(
                code, keyId, projectId, environmentId, ownerId, name, scopes, metadata, expires, cached);
    }
}
