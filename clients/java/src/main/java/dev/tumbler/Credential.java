package dev.tumbler;

import java.util.ArrayList;
import java.util.List;

/**
 * The one key of a request. The server has the same rule; tests/vectors/credentials.json tests both.
 *
 * @param text the key; null: there is none
 * @param refused why there is no key; null: there is one
 */
record Credential(String text, Refused refused) {
    private static final String BEARER = "Bearer ";

    enum Refused {
        MISSING,
        /** There is more than one key: a gateway in front may have checked another one. */
        AMBIGUOUS
    }

    /** Returns the key in all headers with these names. Each header counts, whatever it holds. Null: no headers. */
    static Credential of(Iterable<String> authorization, Iterable<String> xApiKey) {
        List<String> found = new ArrayList<>(1);
        if (authorization != null) {
            authorization.forEach(value -> found.add(
                    value.regionMatches(true, 0, BEARER, 0, BEARER.length()) ? value.substring(BEARER.length()) : ""));
        }
        if (xApiKey != null) {
            xApiKey.forEach(found::add);
        }
        if (found.size() > 1) {
            return new Credential(null, Refused.AMBIGUOUS);
        }
        String text = found.isEmpty() ? "" : trim(found.get(0));
        return text.isEmpty() ? new Credential(null, Refused.MISSING) : new Credential(text, null);
    }

    /** Removes the spaces and tabs around a header's value, in linear time: the value is the caller's. */
    private static String trim(String value) {
        int from = 0;
        int to = value.length();
        while (from < to && isBlank(value.charAt(from))) {
            from++;
        }
        while (from < to && isBlank(value.charAt(to - 1))) {
            to--;
        }
        return value.substring(from, to);
    }

    private static boolean isBlank(char c) {
        return c == ' ' || c == '\t';
    }
}
