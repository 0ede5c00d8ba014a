package dev.tumbler;

import java.util.List;

/**
 * The projects whose keys a verifier accepts.
 *
 * @param named their ids; empty: all projects that the verifier's own key sees
 * @param any whether anyProject() is set
 */
record Projects(List<String> named, boolean any) {
    static final String INVALID_PROJECT = "projectId: must be one or more project ids, none of them empty";

    private static final String PROJECT_REQUIRED = "the verifier's own key can verify the keys of all projects: "
            + "use projectId(), or anyProject(), or a key of one project";

    Projects {
        named = List.copyOf(named);
    }

    /** Returns whether there is at least one id, and none is empty. */
    static boolean areValid(List<String> ids) {
        return !ids.isEmpty() && ids.stream().noneMatch(id -> id == null || id.isEmpty());
    }

    /** Returns the project to name in requests if there is exactly one, and otherwise an empty text. */
    String only() {
        return named.size() == 1 ? named.get(0) : "";
    }

    boolean accept(String id) {
        return named.isEmpty() || named.contains(id);
    }

    boolean lacksProject() {
        return named.isEmpty() && !any;
    }

    static NotAllowedException projectRequired() {
        return new NotAllowedException(PROJECT_REQUIRED, null);
    }
}
