package dev.tumbler;

import java.util.Arrays;

/**
 * A logger that never throws, and shows no key: what the application's logger throws, or a handler behind it, is
 * dropped. What looks like a key in a text from outside becomes {@code <key>}.
 */
final class SafeLogger {
    private final System.Logger logger;

    SafeLogger(System.Logger logger) {
        this.logger = logger;
    }

    void log(System.Logger.Level level, String format, Object... params) {
        try {
            Object[] redacted = Arrays.stream(params)
                    .map(param -> param instanceof String text ? Redaction.redact(text) : param)
                    .toArray();
            logger.log(level, format, redacted);
        } catch (Throwable unlogged) {
            // There is nowhere to tell it.
        }
    }

    /** Logs a text and a throwable. If that shows a key, its stack trace becomes part of the text, without the key. */
    void log(System.Logger.Level level, String text, Throwable thrown) {
        try {
            String trace = Redaction.trace(thrown);
            if (Redaction.shows(trace)) {
                logger.log(level, "{0}: {1}", text, Redaction.redact(trace));
            } else {
                logger.log(level, text, thrown);
            }
        } catch (Throwable unlogged) {
            // There is nowhere to tell it.
        }
    }
}
