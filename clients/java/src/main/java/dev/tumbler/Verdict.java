package dev.tumbler;

import java.util.List;

/**
 * Decides whether a key meets a demand. It has the same rules as the server, tested by the same vectors
 * (tests/vectors/verify.json).
 */
final class Verdict {
    /** The prefix of scopes that are permissions on Tumbler itself. The scope {@code *} does not grant them. */
    private static final String RESERVED = "tumbler:";

    private Verdict() {}

    /**
     * Returns the first reason to deny, in the order of docs/contract.md, "Verdicts", or VALID if there is none.
     *
     * @param key null: nothing was proven
     * @param now microseconds since the Unix epoch
     */
    static Code decide(KeyRecord key, VerifyOptions demand, long now) {
        if (key == null || demand.excludes(key.projectId())) {
            return Code.NOT_FOUND;
        }
        if (key.revoked()) {
            return Code.REVOKED;
        }
        if (now >= key.graceExpireTime()) {
            return Code.SUPERSEDED;
        }
        if (!key.active()) {
            return Code.INACTIVE;
        }
        if (now >= key.expireTime()) {
            return Code.EXPIRED;
        }
        if (!demand.environmentId().isEmpty() && !demand.environmentId().equals(key.environmentId())) {
            return Code.ENVIRONMENT_MISMATCH;
        }
        if (key.restricted() && !within(key.networks(), demand.clientIp())) {
            return Code.IP_NOT_ALLOWED;
        }
        for (String scope : demand.requiredScopes()) {
            if (!anyGrants(key.scopes(), scope)) {
                return Code.INSUFFICIENT_SCOPE;
            }
        }
        return Code.VALID;
    }

    private static boolean within(List<Network> networks, String clientIp) {
        byte[] address = Address.parse(clientIp);
        return address != null && networks.stream().anyMatch(network -> network.contains(address));
    }

    private static boolean anyGrants(List<String> granted, String required) {
        for (String scope : granted) {
            if (grants(scope, required)) {
                return true;
            }
        }
        return false;
    }

    private static boolean grants(String granted, String required) {
        if (granted.equals(required)) {
            return true;
        }
        if (granted.equals("*")) {
            return !required.startsWith(RESERVED);
        }
        return granted.endsWith(":*") && required.startsWith(granted.substring(0, granted.length() - 1));
    }
}
