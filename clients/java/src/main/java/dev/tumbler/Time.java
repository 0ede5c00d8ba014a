package dev.tumbler;

import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/** The passing of time, which tests hold still. */
interface Time extends AutoCloseable {
    /**
     * Returns nanoseconds since some instant, never set back: {@link System#nanoTime}. Only differences mean
     * anything.
     */
    long nanos();

    /** Runs a short task once, after so many nanoseconds, unless what is returned is run before. */
    Runnable after(long nanos, Runnable task);

    /** Runs nothing any more. */
    @Override
    void close();

    /** Time as it is, with one thread for what is to happen later. */
    static Time real() {
        ScheduledThreadPoolExecutor timer = new ScheduledThreadPoolExecutor(1, task -> {
            Thread thread = new Thread(task, "tumbler-timer");
            thread.setDaemon(true);
            return thread;
        });
        timer.setRemoveOnCancelPolicy(true);
        timer.setExecuteExistingDelayedTasksAfterShutdownPolicy(false);
        timer.setRejectedExecutionHandler((task, executor) -> {}); // closed meanwhile
        return new Time() {
            @Override
            public long nanos() {
                return System.nanoTime();
            }

            @Override
            public Runnable after(long nanos, Runnable task) {
                ScheduledFuture<?> scheduled = timer.schedule(task, nanos, TimeUnit.NANOSECONDS);
                return () -> scheduled.cancel(false);
            }

            @Override
            public void close() {
                timer.shutdownNow();
            }
        };
    }
}
