package dev.tumbler;

/** A logger that never throws: what the application's logger throws, or a handler behind it, is dropped. */
final class SafeLogger {
    private final System.Logger logger;

    SafeLogger(System.Logger logger) {
        this.logger = logger;
    }

    void log(System.Logger.Level level, String format, Object... params) {
        try {
            logger.log(level, format, params);
        } catch (Throwable unlogged) {
            // There is nowhere to tell it.
        }
    }

    void log(System.Logger.Level level, String text, Throwable thrown) {
        try {
            logger.log(level, text, thrown);
        } catch (Throwable unlogged) {
            // There is nowhere to tell it.
        }
    }
}
