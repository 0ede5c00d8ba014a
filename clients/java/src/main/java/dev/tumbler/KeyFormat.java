package dev.tumbler;

import java.nio.charset.StandardCharsets;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.CRC32;

/** The parts of a key, {@code <prefix>_<id>_<secret><check>}, that are not secret. */
record KeyFormat(String prefix, String id) {
    static final int MAX_LENGTH = 32 + 1 + 16 + 1 + 43 + 6;

    private static final String DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    private static final int CHECK_LENGTH = 6;
    /** The length from the id's first character to the end. */
    private static final int ID_TO_END = 16 + 1 + 43 + CHECK_LENGTH;
    /** The length from the secret's first character to the end. */
    private static final int SECRET_TO_END = 43 + CHECK_LENGTH;

    private static final Pattern FORM =
            Pattern.compile("([a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?)_([0-9A-Za-z]{16})_[0-9A-Za-z]{49}");

    /**
     * Splits a key into its parts, after verifying its form and its check. Returns null if the text is not exactly one
     * key. The effort is bounded, however long the text is.
     */
    static KeyFormat parse(String text) {
        if (text.length() > MAX_LENGTH) {
            return null;
        }
        Matcher match = FORM.matcher(text);
        if (!match.matches() || !text.endsWith(check(text.substring(0, text.length() - CHECK_LENGTH)))) {
            return null;
        }
        return new KeyFormat(match.group(1), match.group(2));
    }

    /**
     * Returns the id if the text is a key, or null if its length rules that out. Enough for a lookup whose result is
     * verified by other means; {@link #parse} costs several times as much.
     */
    static String peekId(String text) {
        int length = text.length();
        return length <= ID_TO_END || length > MAX_LENGTH
                ? null
                : text.substring(length - ID_TO_END, length - SECRET_TO_END - 1);
    }

    /** Returns the check of a text: its CRC-32 as six base62 digits, most significant first. */
    static String check(String before) {
        CRC32 crc = new CRC32();
        crc.update(before.getBytes(StandardCharsets.US_ASCII));
        long value = crc.getValue();
        char[] check = new char[CHECK_LENGTH];
        for (int place = CHECK_LENGTH - 1; place >= 0; place--) {
            check[place] = DIGITS.charAt((int) (value % DIGITS.length()));
            value /= DIGITS.length();
        }
        return new String(check);
    }
}
