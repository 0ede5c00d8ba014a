package dev.tumbler;

import java.util.Arrays;
import java.util.List;

/**
 * What a key is presented for. What is left out is not asked for. Immutable: make one for each kind of request, and use
 * it again and again.
 *
 * @param requiredScopes scopes that the key must all grant, without wildcards, at most 100; empty: none
 * @param clientIp where the key was presented from, IPv4 or IPv6; empty: not known, and so in no network that a key is
 *     restricted to
 * @param environmentId the environment that the key must belong to; empty: any
 * @param projectIds the projects that the key must belong to one of; empty: those that the verifier accepts. They narrow
 *     these, and never widen them. A key of another project is {@link Code#NOT_FOUND}
 */
public record VerifyOptions(
        List<String> requiredScopes, String clientIp, String environmentId, List<String> projectIds) {
    /** Asks for nothing in particular. */
    public static final VerifyOptions NONE = new VerifyOptions(List.of(), "", "", List.of());

    /**
     * Makes options; a null address or environment counts as empty.
     *
     * @throws NullPointerException if the scopes, the projects or one of them is null: what is demanded must not get lost
     * @throws IllegalArgumentException if a project's id is empty
     */
    public VerifyOptions {
        requiredScopes = List.copyOf(requiredScopes);
        clientIp = clientIp == null ? "" : clientIp;
        environmentId = environmentId == null ? "" : environmentId;
        projectIds = List.copyOf(projectIds);
        if (projectIds.contains("")) {
            throw new IllegalArgumentException(Projects.NAMELESS);
        }
    }

    /**
     * Makes options that name no project; a null address or environment counts as empty.
     *
     * @param requiredScopes as {@link #requiredScopes()}
     * @param clientIp as {@link #clientIp()}
     * @param environmentId as {@link #environmentId()}
     */
    public VerifyOptions(List<String> requiredScopes, String clientIp, String environmentId) {
        this(requiredScopes, clientIp, environmentId, List.of());
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
        return new VerifyOptions(scopes, clientIp, environmentId, projectIds);
    }

    /**
     * Says where the key was presented from.
     *
     * @param address an IPv4 or IPv6 address
     * @return these options with the address in place of the one they had
     */
    public VerifyOptions withClientIp(String address) {
        return new VerifyOptions(requiredScopes, address, environmentId, projectIds);
    }

    /**
     * Demands an environment.
     *
     * @param id what the key must belong to
     * @return these options with the environment in place of the one they had
     */
    public VerifyOptions withEnvironment(String id) {
        return new VerifyOptions(requiredScopes, clientIp, id, projectIds);
    }

    /**
     * Demands a project, or one of several.
     *
     * @param ids what the key must belong to one of
     * @return these options with the projects in place of those they had
     * @throws IllegalArgumentException if there is none, or one has an empty id
     */
    public VerifyOptions withProject(String... ids) {
        if (!Projects.areNamed(Arrays.asList(ids))) {
            throw new IllegalArgumentException(Projects.NAMELESS);
        }
        return new VerifyOptions(requiredScopes, clientIp, environmentId, List.of(ids));
    }

    /** Says whether keys of a project are not asked for. */
    boolean excludes(String projectId) {
        return !projectIds.isEmpty() && !projectIds.contains(projectId);
    }
}
