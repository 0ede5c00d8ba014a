package dev.tumbler;

import dev.tumbler.Calls.Told;
import java.lang.System.Logger.Level;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.BiConsumer;
import java.util.function.BiFunction;
import java.util.function.LongUnaryOperator;

/**
 * The guarded streams of a verifier that are open, and their keys.
 *
 * <p>A key is verified again after an event that names it, after a reset, after an answer that denied it, when
 * freshness lapses, and when its record's {@code cache_ttl} ends, which is never after the key's expiry or the end of
 * its grace period. If the key is then not VALID, its streams end.
 *
 * <p>Times are nanoseconds of the verifier's clock; only differences have a meaning. Verifications start in its timer's
 * thread.
 */
final class Sessions {
    /** The maximum number of keys that are being verified again at a time. */
    static final int MOST_ASKED = 256;

    /** The wait before the next attempt after a key could not be verified. */
    static final long RETRY = Duration.ofSeconds(1).toNanos();

    /** How long an answer counts at least. Just before an expiry, answers live for microseconds only. */
    private static final long SHORTEST = Duration.ofMillis(100).toNanos();

    /** The time from one key to the next if all must be verified again: 1,000 a second. */
    private static final long SPREAD = Duration.ofMillis(1).toNanos();

    private final BiFunction<String, VerifyOptions, CompletableFuture<Told>> verify;
    private final LongUnaryOperator freshFor;
    private final Fingerprints fingerprints;
    private final long patience;
    private final Time time;
    private final ReentrantLock lock = new ReentrantLock();
    private final Map<Ident, Held> all = new HashMap<>();
    private final Map<String, Set<Held>> byId = new HashMap<>();
    private final ArrayDeque<Held> queue = new ArrayDeque<>();
    private int asked;
    private boolean planned;
    private RuntimeException closed;
    private volatile long words;

    /**
     * Creates an empty set.
     *
     * @param verify verifies a key without blocking
     * @param freshFor returns how long the cache stays fresh after a given instant; 0 or less: it is not fresh
     */
    Sessions(
            BiFunction<String, VerifyOptions, CompletableFuture<Told>> verify,
            LongUnaryOperator freshFor,
            Fingerprints fingerprints,
            Duration maxStaleness,
            Time time) {
        this.verify = verify;
        this.freshFor = freshFor;
        this.fingerprints = fingerprints;
        this.patience = maxStaleness.toNanos();
        this.time = time;
    }

    /** Ends a stream, by a verdict that denies its key or by the failure to get a verdict; the other is null. */
    interface Ended extends BiConsumer<Verification, Throwable> {}

    private record Ident(String fingerprint, VerifyOptions demand) {}

    private enum State {
        RESTING,
        QUEUED,
        ASKED
    }

    /** A key, its demand, and its open streams. The key's text is kept as long as one stream is open. */
    private static final class Held {
        final Ident ident;
        final String id;
        final String key;
        final Set<Session> sessions = new HashSet<>();
        State state = State.RESTING;
        /** Whether a change was reported while it was being verified. */
        boolean again;
        /** While the cache is fresh, the last answer counts until then. */
        long until;
        /** Whether it must be verified again. */
        boolean doubted;
        /** When it became doubted. */
        long since;

        /** Counts the timers, so that a former timer has no effect. */
        int armed;

        Runnable cancel = () -> {};

        Held(Ident ident, String id, String key) {
            this.ident = ident;
            this.id = id;
            this.key = key;
        }
    }

    private static final class Session {
        final Ended ended;

        Session(Ended ended) {
            this.ended = ended;
        }
    }

    /** Counts the calls of {@link #heard}. A caller reads it before it verifies a key, to detect a call in between. */
    long words() {
        return words;
    }

    /** Returns the number of open streams. */
    int size() {
        lock.lock();
        try {
            return all.values().stream().mapToInt(held -> held.sessions.size()).sum();
        } finally {
            lock.unlock();
        }
    }

    /**
     * Registers a stream that a verdict admitted.
     *
     * @param until when the verdict stops counting
     * @param since the value of {@link #words} before that verification
     * @return removes the stream when it has ended by itself
     */
    Runnable open(String key, String id, VerifyOptions demand, long until, long since, Ended ended) {
        Session session = new Session(ended);
        Held held;
        lock.lock();
        try {
            Ident ident = new Ident(text(fingerprints.of(key)), demand);
            held = closed == null ? all.computeIfAbsent(ident, unknown -> new Held(ident, id, key)) : null;
            if (held != null) {
                if (byId.computeIfAbsent(id, unknown -> new HashSet<>()).add(held)) {
                    rest(held, until);
                }
                held.sessions.add(session);
                if (since != words) {
                    doubt(held, 0);
                }
            }
        } finally {
            lock.unlock();
        }
        if (held == null) {
            ended.accept(null, closed);
            return () -> {};
        }
        return () -> close(held, session);
    }

    private void close(Held held, Session session) {
        lock.lock();
        try {
            if (held.sessions.remove(session) && held.sessions.isEmpty()) {
                drop(held);
            }
        } finally {
            lock.unlock();
        }
    }

    /** Records that a key has changed, or with null that any may have, and queues keys to be verified again. */
    void heard(String id) {
        lock.lock();
        try {
            words++;
            if (id == null) {
                long delay = 0;
                for (Held held : all.values()) {
                    doubt(held, Math.min(delay, patience / 2));
                    delay += SPREAD;
                }
            } else {
                byId.getOrDefault(id, Set.of()).forEach(held -> doubt(held, 0));
            }
        } finally {
            lock.unlock();
        }
    }

    /** Ends all streams, and every stream that is opened later. */
    void close(RuntimeException failure) {
        List<Session> over = new ArrayList<>();
        lock.lock();
        try {
            closed = failure;
            List.copyOf(all.values()).forEach(held -> over.addAll(drop(held)));
        } finally {
            lock.unlock();
        }
        end(over, null, failure);
    }

    /** Starts verifications of queued keys. */
    private void pump() {
        List<Held> turns = new ArrayList<>();
        List<Session> late = new ArrayList<>();
        lock.lock();
        try {
            planned = false;
            while (asked < MOST_ASKED && !queue.isEmpty()) {
                Held held = queue.remove();
                if (held.sessions.isEmpty()) {
                    continue;
                }
                if (time.nanos() - held.since > patience) {
                    late.addAll(drop(held));
                } else {
                    held.state = State.ASKED;
                    held.again = false;
                    asked++;
                    turns.add(held);
                }
            }
        } finally {
            lock.unlock();
        }
        end(late, null, new UnavailableException("the key of an open stream could not be verified again in time"));
        for (Held held : turns) {
            verify.apply(held.key, held.ident.demand).whenComplete((told, failure) -> settle(held, told, failure));
        }
    }

    private void settle(Held held, Told told, Throwable failure) {
        Throwable cause = failure instanceof CompletionException ? failure.getCause() : failure;
        List<Session> over = List.of();
        lock.lock();
        try {
            asked--;
            held.state = State.RESTING;
            if (!held.sessions.isEmpty()) {
                if (cause != null && time.nanos() - held.since < patience) {
                    arm(held, time.nanos() + RETRY);
                } else if (cause != null || !told.verification().valid()) {
                    over = drop(held);
                } else if (held.again) {
                    doubt(held, 0);
                } else {
                    held.doubted = false;
                    rest(held, told.until());
                }
            }
            if (!queue.isEmpty()) {
                plan();
            }
        } finally {
            lock.unlock();
        }
        if (!over.isEmpty()) {
            // Not in this thread: it is completing a call that other callers wait for.
            List<Session> ending = over;
            time.after(0, () -> end(ending, told == null ? null : told.verification(), cause));
        }
    }

    private void plan() {
        if (!planned) {
            planned = true;
            time.after(0, this::pump);
        }
    }

    private void doubt(Held held, long delay) {
        long now = time.nanos();
        if (!held.doubted) {
            held.doubted = true;
            held.since = now;
        }
        if (held.state == State.ASKED) {
            held.again = true;
        } else if (held.state == State.RESTING && delay > 0) {
            arm(held, now + Math.min(held.until - now, delay));
        } else if (held.state == State.RESTING) {
            held.state = State.QUEUED;
            queue.add(held);
            plan();
        }
    }

    /** Leaves a valid key until its answer expires, but for at most {@code patience} if the cache is not fresh. */
    private void rest(Held held, long until) {
        long now = time.nanos();
        long counts = freshFor.applyAsLong(now) > 0 ? until - now : Math.min(until - now, patience);
        arm(held, now + Math.max(counts, SHORTEST));
    }

    /** Sets the timer to look at a key at {@code until}, or earlier when freshness lapses. */
    private void arm(Held held, long until) {
        held.until = until;
        held.cancel.run();
        long now = time.nanos();
        long fresh = freshFor.applyAsLong(now);
        int armed = ++held.armed;
        long left = fresh > 0 ? Math.min(until - now, fresh) : until - now;
        held.cancel = time.after(Math.max(0, left), () -> look(held, armed));
    }

    private void look(Held held, int armed) {
        lock.lock();
        try {
            if (held.armed != armed || held.state != State.RESTING || held.sessions.isEmpty()) {
                return;
            }
            long now = time.nanos();
            if (held.until - now > 0 && freshFor.applyAsLong(now) > 0) {
                arm(held, held.until); // a heartbeat has arrived since
            } else {
                doubt(held, 0);
            }
        } finally {
            lock.unlock();
        }
    }

    private List<Session> drop(Held held) {
        List<Session> over = List.copyOf(held.sessions);
        held.sessions.clear();
        held.cancel.run();
        all.remove(held.ident, held);
        Set<Held> alike = byId.getOrDefault(held.id, new HashSet<>());
        alike.remove(held);
        if (alike.isEmpty()) {
            byId.remove(held.id);
        }
        return over;
    }

    private static void end(List<Session> over, Verification verdict, Throwable failure) {
        for (Session session : over) {
            try {
                session.ended.accept(verdict, failure);
            } catch (RuntimeException broken) {
                Guards.LOG.log(Level.ERROR, "a stream whose key is no longer valid could not be ended", broken);
            }
        }
    }

    private static String text(byte[] fingerprint) {
        return new String(fingerprint, StandardCharsets.ISO_8859_1);
    }
}
