package dev.tumbler;

import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;

/**
 * The one key of a request. The server has the same rule; tests/vectors/credentials.json tests both.
 *
 * @param text the key; null: there is none
 * @param refused why there is no key; null: there is one
 */
record Credential(String text, Refused refused) {
    private static final String BEARER = "Bearer ";
    private static final Pattern AROUND = Pattern.compile("^[ \t]+|[ \t]+$");

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
        String text = found.isEmpty() ? "" : AROUND.matcher(found.get(0)).replaceAll("");
        return text.isEmpty() ? new Credential(null, Refused.MISSING) : new Credential(text, null);
    }
}
