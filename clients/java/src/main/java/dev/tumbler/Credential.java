package dev.tumbler;

import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;

/**
 * The one key that comes with a request. The rule is that of the server; tests/vectors/credentials.json holds both to
 * it.
 *
 * @param text the key; null where there is none
 * @param refused why there is none; null where there is one
 */
record Credential(String text, Refused refused) {
    private static final String BEARER = "Bearer ";
    private static final Pattern AROUND = Pattern.compile("^[ \t]+|[ \t]+$");

    enum Refused {
        MISSING,
        /** There is more than one: who stands in between may have judged another than we would. */
        AMBIGUOUS
    }

    /** Returns the key in the headers of these names, each of which counts, whatever it holds; null: none came. */
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
