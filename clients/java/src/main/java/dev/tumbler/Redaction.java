package dev.tumbler;

import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.util.regex.Pattern;

/**
 * Removes keys from texts that come from outside. A server, or a proxy before it, may quote a presented key or the
 * verifier's own in what a status says. The clients in all languages do the same (tests/vectors/redaction.json).
 */
final class Redaction {
    /**
     * Also finds keys without their prefix, inside a longer word, and cut short. Of a secret that is cut before its 20th
     * character, more than 130 bits are left to guess.
     */
    private static final Pattern KEY =
            Pattern.compile("(?:[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?_)?[0-9A-Za-z]{16}_[0-9A-Za-z]{20,}");

    private Redaction() {}

    /** Returns the text with {@code <key>} in place of all that looks like a key, of whatever installation. */
    static String redact(String text) {
        return KEY.matcher(text).replaceAll("<key>");
    }

    /**
     * Returns the failure of a call. If it shows a key, in any text, cause or trailer, it returns one with the same code
     * and the text without the key; its cause and its trailers are left out.
     */
    static Throwable redact(Throwable failure) {
        if (!shows(trace(failure)) && !shows(Status.trailersFromThrowable(failure))) {
            return failure;
        }
        Status status = Status.fromThrowable(failure);
        String said = status.getDescription();
        StatusRuntimeException copy = Status.fromCode(status.getCode())
                .withDescription(said == null ? null : redact(said))
                .asRuntimeException();
        copy.setStackTrace(failure.getStackTrace());
        return copy;
    }

    /** Returns what a failure and its causes show when they are printed. */
    static String trace(Throwable failure) {
        StringWriter text = new StringWriter();
        failure.printStackTrace(new PrintWriter(text));
        return text.toString();
    }

    /** Returns whether a text shows a key. */
    static boolean shows(String text) {
        return KEY.matcher(text).find();
    }

    private static boolean shows(Metadata trailers) {
        if (trailers == null) {
            return false;
        }
        for (String name : trailers.keys()) {
            if (name.endsWith(Metadata.BINARY_HEADER_SUFFIX)) {
                for (byte[] value : trailers.getAll(Metadata.Key.of(name, Metadata.BINARY_BYTE_MARSHALLER))) {
                    if (shows(new String(value, StandardCharsets.ISO_8859_1))) {
                        return true;
                    }
                }
            } else {
                for (String value : trailers.getAll(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER))) {
                    if (shows(value)) {
                        return true;
                    }
                }
            }
        }
        return false;
    }
}
