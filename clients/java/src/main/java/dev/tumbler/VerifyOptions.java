package dev.tumbler;

import java.util.List;

/**
 * What a key is presented for. What is left out is not asked for. Immutable: make one for each kind of request, and use
 * it again and again.
 *
 * @param requiredScopes scopes that the key must all grant, without wildcards, at most 100; empty: none
 * @param clientIp where the key was presented from, IPv4 or IPv6; empty: not known, and so in no network that a key is
 *     restricted to
 * @param environmentId the environment that the key must belong to; empty: any
 */
public record VerifyOptions(List<String> requiredScopes, String clientIp, String environmentId) {
    /** Asks for nothing in particular. */
    public static final VerifyOptions NONE = new VerifyOptions(List.of(), "", "");

    /**
     * Makes options; a null address or environment counts as empty.
     *
     * @throws NullPointerException if the scopes or one of them is null: what is demanded must not get lost
     */
    public VerifyOptions {
        requiredScopes = List.copyOf(requiredScopes);
        clientIp = clientIp == null ? "" : clientIp;
        environmentId = environmentId == null ? "" : environmentId;
    }

    /**
     * Demands scopes.
     *
     * @param scopes what the key must grant
     * @return options that demand them, and nothing else
     */
    public static VerifyOptions requireScopes(String... scopes) {
        return NONE.withRequiredScopes(List.of(scopes));
    }

    /**
     * Demands other scopes.
     *
     * @param scopes what the key must grant
     * @return these options with the scopes in place of those they had
     */
    public VerifyOptions withRequiredScopes(List<String> scopes) {
        return new VerifyOptions(scopes, clientIp, environmentId);
    }

    /**
     * Says where the key was presented from.
     *
     * @param address an IPv4 or IPv6 address
     * @return these options with the address in place of the one they had
     */
    public VerifyOptions withClientIp(String address) {
        return new VerifyOptions(requiredScopes, address, environmentId);
    }

    /**
     * Demands an environment.
     *
     * @param id what the key must belong to
     * @return these options with the environment in place of the one they had
     */
    public VerifyOptions withEnvironment(String id) {
        return new VerifyOptions(requiredScopes, clientIp, id);
    }
}
