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
 * The open streams that a verifier's guards have let in, and the keys that they were let in by.
 *
 * <p>A key is verified anew when nothing vouches for it any more: after an event that names it, a reset, a loss of trust
 * in the stream of changes, an answer that denied it, and at the end of its record's {@code cache_ttl}, which is never
 * past its expiry or the end of its grace. Streams whose key is then not VALID end.
 *
 * <p>Times are nanoseconds of the verifier's clock; only differences mean anything. What is to be done is done by its
 * timer's thread.
 */
final class Sessions {
    /** How many keys are verified anew at a time. */
    static final int MOST_ASKED = 256;

    /** How long to wait before a key that could not be verified is asked about again. */
    static final long RETRY = Duration.ofSeconds(1).toNanos();

    /** How long an answer counts at least: the last ones before an expiry live for microseconds. */
    private static final long SHORTEST = Duration.ofMillis(100).toNanos();

    /** From one key to the next, where all have to be verified: 1,000 a second. */
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
     * Makes them.
     *
     * @param verify verifies a key without waiting
     * @param freshFor says for how long, from an instant on, the stream vouches for what it has told; 0 or less: it does
     *     not
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

    /** What a stream is ended by: a verdict that denies its key, or why none could be had; the other is null. */
    interface Ended extends BiConsumer<Verification, Throwable> {}

    private record Ident(String fingerprint, VerifyOptions demand) {}

    private enum State {
        RESTING,
        QUEUED,
        ASKED
    }

    /** A key, what it was presented for, and the streams that it let in. Its text is kept while one is open. */
    private static final class Held {
        final Ident ident;
        final String id;
        final String key;
        final Set<Session> sessions = new HashSet<>();
        State state = State.RESTING;
        /** Whether something was told while it was asked about. */
        boolean again;
        long until;
        boolean doubted;
        /** Since when it is. */
        long since;

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

    /** Returns how often anything was told. Noted before a key is verified, it shows what came in between. */
    long words() {
        return words;
    }

    /** Returns how many streams are open. */
    int size() {
        lock.lock();
        try {
            return all.values().stream().mapToInt(held -> held.sessions.size()).sum();
        } finally {
            lock.unlock();
        }
    }

    /**
     * Notes a stream that was let in by a verdict, asked for when {@link #words} was {@code since} and good until then.
     *
     * @return forgets it: it has ended by itself
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

    /** Takes note that a key has changed; null: that any may have. */
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

    /** Ends all streams, and each that is opened later. */
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

    /** Asks about those whose turn it is. */
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
            // Not here: a call that others wait for is about to be answered.
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

    /** Lets a key be that was found valid: for as long as the answer counts, and is vouched for. */
    private void rest(Held held, long until) {
        long now = time.nanos();
        long counts = freshFor.applyAsLong(now) > 0 ? until - now : Math.min(until - now, patience);
        arm(held, now + Math.max(counts, SHORTEST));
    }

    /** Has a key looked at then, and when trust lapses. */
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
                arm(held, held.until); // the stream has spoken since
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
