package dev.tumbler;

import java.time.Duration;
import java.util.Comparator;
import java.util.PriorityQueue;

/** Time that moves only when a test advances it. Tasks that become due run at once, in the test's thread. */
final class FakeClock implements Clock {
    private record Task(long due, Runnable task) {}

    private final PriorityQueue<Task> tasks = new PriorityQueue<>(Comparator.comparingLong(Task::due));
    private long now = Long.MAX_VALUE - 1_000_000_000; // overflows soon, as System.nanoTime may

    @Override
    public synchronized long now() {
        return now;
    }

    @Override
    public synchronized Runnable after(long nanos, Runnable task) {
        // The queue is ordered by the time since the start: absolute times overflow, which would break its order.
        Task planned = new Task(passed() + Math.max(0, nanos), task);
        tasks.add(planned);
        return () -> {
            synchronized (this) {
                tasks.remove(planned);
            }
        };
    }

    @Override
    public synchronized void close() {
        tasks.clear();
    }

    void pass(Duration span) {
        long end;
        synchronized (this) {
            end = passed() + span.toNanos();
        }
        for (Task task = due(end); task != null; task = due(end)) {
            task.task.run();
        }
        synchronized (this) {
            now += end - passed();
        }
    }

    /** Returns the time until the next task; a year if there is none. */
    synchronized Duration untilNext() {
        return tasks.isEmpty() ? Duration.ofDays(365) : Duration.ofNanos(tasks.element().due - passed());
    }

    private synchronized Task due(long end) {
        if (tasks.isEmpty() || tasks.element().due > end) {
            return null;
        }
        Task task = tasks.remove();
        now += Math.max(0, task.due - passed());
        return task;
    }

    private long passed() {
        return now - (Long.MAX_VALUE - 1_000_000_000);
    }
}
