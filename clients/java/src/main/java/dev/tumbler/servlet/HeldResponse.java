package dev.tumbler.servlet;

import jakarta.servlet.ServletOutputStream;
import jakarta.servlet.ServletRequest;
import jakarta.servlet.WriteListener;
import jakarta.servlet.http.HttpServletResponse;
import jakarta.servlet.http.HttpServletResponseWrapper;
import java.io.IOException;
import java.io.PrintWriter;
import java.util.function.Function;

/**
 * An answer that ends with its request's key from the moment when it streams: when it is flushed, or becomes longer
 * than {@link #STREAMING}.
 */
final class HeldResponse extends HttpServletResponseWrapper {
    /** The length, in bytes or characters, beyond which an answer counts as a stream even if it was never flushed. */
    private static final int STREAMING = 64 * 1024;

    /** An extension of Jetty, not of the standard: breaks off the answer, even if it has begun. */
    private static final int BREAK_OFF = -1;

    private final ServletRequest request;
    private final Function<Runnable, Runnable> hold;
    private final Object lock = new Object();
    private final Thread thread = Thread.currentThread();
    private boolean isHandled = true;
    private boolean isNoted;
    private boolean isOver;
    private volatile boolean isEnded;
    private Runnable release;
    private long written;
    private ServletOutputStream stream;
    private PrintWriter writer;

    /**
     * Creates the response. Call it in the request's thread.
     *
     * @param hold runs its argument when the key stops being valid, unless the Runnable that it returns is run first
     */
    HeldResponse(ServletRequest request, HttpServletResponse response, Function<Runnable, Runnable> hold) {
        super(response);
        this.request = request;
        this.hold = hold;
    }

    /**
     * Records that the request's thread has left the handler.
     *
     * @throws IOException if the answer was broken off: it must not look complete to its reader
     */
    void handled() throws IOException {
        synchronized (lock) {
            isHandled = false;
            if (isEnded) {
                Thread.interrupted(); // the interrupt was for the handler
            }
        }
        check();
    }

    /** Records that the answer is complete. */
    void over() {
        Runnable released;
        synchronized (lock) {
            isOver = true;
            released = release;
        }
        if (released != null) {
            released.run();
        }
    }

    private void end() {
        boolean isLeft;
        synchronized (lock) {
            if (isOver || isEnded) {
                return;
            }
            isEnded = true;
            isLeft = !isHandled;
            if (isHandled) {
                thread.interrupt();
            }
        }
        try {
            super.sendError(BREAK_OFF);
        } catch (IOException | RuntimeException elsewhere) {
            // Not Jetty: the handler ends at its next write, or by the interrupt.
        }
        if (isLeft) { // the request's thread has left the handler, so handled() cannot throw
            try {
                request.getAsyncContext().complete();
            } catch (IllegalStateException completed) {
                // completed by Jetty, or by the handler
            }
        }
    }

    private void note() {
        synchronized (lock) {
            if (isNoted) {
                return;
            }
            isNoted = true;
        }
        Runnable released = hold.apply(this::end);
        boolean late;
        synchronized (lock) {
            release = released;
            late = isOver;
        }
        if (late) {
            released.run();
        }
    }

    private void count(long more) {
        written += more;
        if (written > STREAMING) {
            note();
        }
    }

    private void check() throws IOException {
        if (isEnded) {
            throw new IOException("the response was aborted: its API key is no longer valid");
        }
    }

    @Override
    public void flushBuffer() throws IOException {
        note();
        check();
        super.flushBuffer();
    }

    @Override
    public ServletOutputStream getOutputStream() throws IOException {
        if (stream == null) {
            stream = new Stream(super.getOutputStream());
        }
        return stream;
    }

    @Override
    public PrintWriter getWriter() throws IOException {
        if (writer == null) {
            writer = new Writer(super.getWriter());
        }
        return writer;
    }

    private final class Writer extends PrintWriter {
        Writer(PrintWriter writer) {
            super(writer);
        }

        @Override
        public void write(int character) {
            count(1);
            if (!isEnded) {
                super.write(character);
            }
        }

        @Override
        public void write(char[] text, int from, int length) {
            count(length);
            if (!isEnded) {
                super.write(text, from, length);
            }
        }

        @Override
        public void write(String text, int from, int length) {
            count(length);
            if (!isEnded) {
                super.write(text, from, length);
            }
        }

        @Override
        public void flush() {
            note();
            if (!isEnded) {
                super.flush();
            }
        }

        @Override
        public boolean checkError() {
            return isEnded || super.checkError();
        }
    }

    private final class Stream extends ServletOutputStream {
        private final ServletOutputStream to;

        Stream(ServletOutputStream to) {
            this.to = to;
        }

        @Override
        public void write(int part) throws IOException {
            count(1);
            check();
            to.write(part);
        }

        @Override
        public void write(byte[] part, int from, int length) throws IOException {
            count(length);
            check();
            to.write(part, from, length);
        }

        @Override
        public void flush() throws IOException {
            note();
            check();
            to.flush();
        }

        @Override
        public void close() throws IOException {
            check();
            to.close();
        }

        @Override
        public boolean isReady() {
            return to.isReady();
        }

        @Override
        public void setWriteListener(WriteListener listener) {
            to.setWriteListener(listener);
        }
    }
}
