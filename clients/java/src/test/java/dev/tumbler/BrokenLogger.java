package dev.tumbler;

import java.util.ResourceBundle;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;

/** A logger that cannot write its log, and says so by an exception or an error. */
public final class BrokenLogger implements System.Logger {
    @Override
    public String getName() {
        return "broken";
    }

    @Override
    public boolean isLoggable(Level level) {
        return true;
    }

    @Override
    public void log(Level level, ResourceBundle bundle, String text, Throwable thrown) {
        throw new IllegalStateException("the log cannot be written");
    }

    @Override
    public void log(Level level, ResourceBundle bundle, String format, Object... params) {
        throw new AssertionError("the log cannot be written");
    }

    /** Adds a handler that throws to the loggers with this name. Run the result to remove it. */
    public static Runnable addHandler(String name) {
        Logger logger = Logger.getLogger(name);
        Handler handler = new Handler() {
            @Override
            public void publish(LogRecord entry) {
                throw new IllegalStateException("the log cannot be written");
            }

            @Override
            public void flush() {}

            @Override
            public void close() {}
        };
        logger.addHandler(handler);
        return () -> logger.removeHandler(handler);
    }
}
