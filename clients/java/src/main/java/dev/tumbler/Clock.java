package dev.tumbler;

import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/** The source of time. Tests use one that moves only when they advance it. */
interface Clock extends AutoCloseable {
    /** Returns the monotonic clock in nanoseconds, see {@link System#nanoTime}. Only differences have a meaning. */
    long now();

    /** Runs a short task once, after {@code nanos} nanoseconds, unless the returned Runnable is run first. */
    Runnable after(long nanos, Runnable task);

    /** Cancels all tasks. */
    @Override
    void close();

    /** Returns the system's time, with one thread that runs the tasks. */
    static Clock system() {
        ScheduledThreadPoolExecutor timer = new ScheduledThreadPoolExecutor(1, task -> {
            Thread thread = new Thread(task, "tumbler-timer");
            thread.setDaemon(true);
            return thread;
        });
        timer.setRemoveOnCancelPolicy(true);
        timer.setExecuteExistingDelayedTasksAfterShutdownPolicy(false);
        timer.setRejectedExecutionHandler((task, executor) -> {}); // already closed
        return new Clock() {
            @Override
            public long now() {
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
