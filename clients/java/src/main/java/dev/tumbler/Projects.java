package dev.tumbler;

import java.util.List;

/**
 * Whose keys a verifier accepts.
 *
 * @param named those of these projects; empty: all that the verifier's own key sees
 * @param any whether that these are all is wished for
 */
record Projects(List<String> named, boolean any) {
    static final String NAMELESS = "projectId: must be one or more project ids, none of them empty";

    private static final String UNSAID = "the verifier's own key can verify the keys of all projects: "
            + "use projectId(), or anyProject(), or a key of one project";

    Projects {
        named = List.copyOf(named);
    }

    /** Says whether there are projects, and each has a name. */
    static boolean areNamed(List<String> ids) {
        return !ids.isEmpty() && ids.stream().noneMatch(id -> id == null || id.isEmpty());
    }

    /** Returns what the server is asked for itself: the project, where it is one, else nothing. */
    String only() {
        return named.size() == 1 ? named.get(0) : "";
    }

    boolean accept(String id) {
        return named.isEmpty() || named.contains(id);
    }

    boolean unsaid() {
        return named.isEmpty() && !any;
    }

    static NotAllowedException notSaid() {
        return new NotAllowedException(UNSAID, null);
    }
}
