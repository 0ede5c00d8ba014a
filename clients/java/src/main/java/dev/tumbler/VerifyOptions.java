package dev.tumbler;

import java.util.Arrays;
import java.util.List;

/**
 * The demands on a key. An empty field is no demand. Immutable: create one per kind of request, and reuse it.
 *
 * @param requiredScopes the key must grant all of these scopes, at most 100; wildcards cannot be required
 * @param clientIp the address that the key was presented from, IPv4 or IPv6; empty: unknown. A key that is restricted
 *     to networks is denied without it
 * @param environmentId the environment that the key must belong to
 * @param projectIds the key must belong to one of these projects. They narrow what the verifier accepts, and never
 *     widen it. A key of another project is {@link Code#NOT_FOUND}
 */
public record VerifyOptions(
        List<String> requiredScopes, String clientIp, String environmentId, List<String> projectIds) {
    /** No demands. */
    public static final VerifyOptions NONE = new VerifyOptions(List.of(), "", "", List.of());

    /**
     * Creates options. A null address or environment counts as empty.
     *
     * @throws NullPointerException if a list or one of its elements is null: a demand must not get lost
     * @throws IllegalArgumentException if a project id is empty
     */
    public VerifyOptions {
        requiredScopes = List.copyOf(requiredScopes);
        clientIp = clientIp == null ? "" : clientIp;
        environmentId = environmentId == null ? "" : environmentId;
        projectIds = List.copyOf(projectIds);
        if (projectIds.contains("")) {
            throw new IllegalArgumentException(Projects.INVALID_PROJECT);
        }
    }

    /**
     * Creates options without projects. A null address or environment counts as empty.
     *
     * @param requiredScopes see {@link #requiredScopes()}
     * @param clientIp see {@link #clientIp()}
     * @param environmentId see {@link #environmentId()}
     */
    public VerifyOptions(List<String> requiredScopes, String clientIp, String environmentId) {
        this(requiredScopes, clientIp, environmentId, List.of());
    }

    /**
     * Demands only scopes.
     *
     * @param scopes the scopes that the key must grant
     * @return options with these scopes and no other demand
     */
    public static VerifyOptions requireScopes(String... scopes) {
        return NONE.withRequiredScopes(List.of(scopes));
    }

    /**
     * Replaces the required scopes.
     *
     * @param scopes the scopes that the key must grant
     * @return a copy of these options with the scopes
     */
    public VerifyOptions withRequiredScopes(List<String> scopes) {
        return new VerifyOptions(scopes, clientIp, environmentId, projectIds);
    }

    /**
     * Replaces the address that the key was presented from.
     *
     * @param address an IPv4 or IPv6 address
     * @return a copy of these options with the address
     */
    public VerifyOptions withClientIp(String address) {
        return new VerifyOptions(requiredScopes, address, environmentId, projectIds);
    }

    /**
     * Replaces the demanded environment.
     *
     * @param id the environment that the key must belong to
     * @return a copy of these options with the environment
     */
    public VerifyOptions withEnvironment(String id) {
        return new VerifyOptions(requiredScopes, clientIp, id, projectIds);
    }

    /**
     * Replaces the demanded projects.
     *
     * @param ids the key must belong to one of these projects
     * @return a copy of these options with the projects
     * @throws IllegalArgumentException if there is no id, or an empty one
     */
    public VerifyOptions withProject(String... ids) {
        if (!Projects.areValid(Arrays.asList(ids))) {
            throw new IllegalArgumentException(Projects.INVALID_PROJECT);
        }
        return new VerifyOptions(requiredScopes, clientIp, environmentId, List.of(ids));
    }

    /** Returns whether the demand rules out keys of this project. */
    boolean excludes(String projectId) {
        return !projectIds.isEmpty() && !projectIds.contains(projectId);
    }
}
