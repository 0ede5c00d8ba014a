package dev.tumbler;

import dev.tumbler.Batcher.VerdictUntil;
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
    static final int MAX_CHECKS = 256;

    /** The wait before the next attempt after a key could not be verified. */
    static final long RETRY_DELAY = Duration.ofSeconds(1).toNanos();

    /**
     * The minimum time between two verifications of a key because its answers' lifetimes are over. An answer may have no
     * lifetime, and just before an expiry it has a few microseconds.
     */
    static final long RECHECK_INTERVAL = Duration.ofSeconds(1).toNanos();

    /** How long an answer counts at least, even if maxStaleness is shorter. */
    private static final long MIN_TRUST = Duration.ofMillis(100).toNanos();

    /** The time from one key to the next if all must be verified again: 1,000 a second. */
    private static final long SPREAD = Duration.ofMillis(1).toNanos();

    private final BiFunction<String, VerifyOptions, CompletableFuture<VerdictUntil>> verify;
    private final LongUnaryOperator freshFor;
    private final Digester digester;
    private final long maxUnconfirmed;
    private final Clock clock;
    private final ReentrantLock lock = new ReentrantLock();
    private final Map<Ident, AdmittedKey> keys = new HashMap<>();
    private final Map<String, Set<AdmittedKey>> byId = new HashMap<>();
    private final ArrayDeque<AdmittedKey> queue = new ArrayDeque<>();
    /** What the timer's thread, or {@link #close}, is to run. */
    private final List<Ending> endings = new ArrayList<>();

    private int checking;
    private boolean areChecksScheduled;
    private RuntimeException closed;
    private volatile long changeCount;

    /**
     * Creates an empty set.
     *
     * @param verify verifies a key without blocking
     * @param freshFor returns how long the cache stays fresh after a given instant; 0 or less: it is not fresh
     */
    Sessions(
            BiFunction<String, VerifyOptions, CompletableFuture<VerdictUntil>> verify,
            LongUnaryOperator freshFor,
            Digester digester,
            Duration maxStaleness,
            Clock clock) {
        this.verify = verify;
        this.freshFor = freshFor;
        this.digester = digester;
        this.maxUnconfirmed = maxStaleness.toNanos();
        this.clock = clock;
    }

    /** Ends a stream, by a verdict that denies its key or by the failure to get a verdict; the other is null. */
    interface Ended extends BiConsumer<Verification, Throwable> {}

    private record Ident(String digest, VerifyOptions demand) {}

    private enum State {
        IDLE,
        QUEUED,
        CHECKING
    }

    /** A key, its demand, and its open streams. The key's text is kept as long as one stream is open. */
    private static final class AdmittedKey {
        final Ident ident;
        final String id;
        final String key;
        final Set<Session> sessions = new HashSet<>();
        State state = State.IDLE;
        /** Whether a change was reported while it was being verified. */
        boolean changedMeanwhile;
        /** While the cache is fresh, the last answer counts until then. */
        long until;
        /** Whether it must be verified again. */
        boolean isUnconfirmed;
        /** When it became unconfirmed. */
        long unconfirmedSince;
        /** When its last verification here started. */
        long checkedAt;

        /** Counts the timers, so that a former timer has no effect. */
        int timerNumber;

        Runnable cancel = () -> {};

        AdmittedKey(Ident ident, String id, String key) {
            this.ident = ident;
            this.id = id;
            this.key = key;
        }
    }

    /** Streams to end, by a verdict or by a failure. */
    private record Ending(List<Session> sessions, Verification verdict, Throwable failure) {
        void run() {
            for (Session session : sessions) {
                try {
                    session.ended.accept(verdict, TumblerException.copyOf(failure));
                } catch (RuntimeException broken) {
                    Guards.LOG.log(Level.ERROR, "a stream whose key is no longer valid could not be ended", broken);
                }
            }
        }
    }

    private static final class Session {
        final Ended ended;

        Session(Ended ended) {
            this.ended = ended;
        }
    }

    /** Counts the calls of {@link #changed}. Callers read it before they verify a key, to detect a change in between. */
    long changeCount() {
        return changeCount;
    }

    /** Returns the number of open streams. */
    int size() {
        lock.lock();
        try {
            return keys.values().stream().mapToInt(admitted -> admitted.sessions.size()).sum();
        } finally {
            lock.unlock();
        }
    }

    /**
     * Registers a stream that a verdict admitted.
     *
     * @param until when the verdict stops counting
     * @param since the value of {@link #changeCount} before that verification
     * @return removes the stream when it has ended by itself
     */
    Runnable open(String key, String id, VerifyOptions demand, long until, long since, Ended ended) {
        Session session = new Session(ended);
        AdmittedKey admitted;
        lock.lock();
        try {
            Ident ident = new Ident(text(digester.digest(key)), demand);
            admitted = closed == null ? keys.computeIfAbsent(ident, unknown -> new AdmittedKey(ident, id, key)) : null;
            if (admitted != null) {
                if (byId.computeIfAbsent(id, unknown -> new HashSet<>()).add(admitted)) {
                    scheduleRecheck(admitted, until);
                }
                admitted.sessions.add(session);
                if (since != changeCount) {
                    recheck(admitted, 0);
                }
            }
        } finally {
            lock.unlock();
        }
        if (admitted == null) {
            ended.accept(null, TumblerException.copyOf(closed));
            return () -> {};
        }
        return () -> close(admitted, session);
    }

    private void close(AdmittedKey admitted, Session session) {
        lock.lock();
        try {
            if (admitted.sessions.remove(session) && admitted.sessions.isEmpty()) {
                remove(admitted);
            }
        } finally {
            lock.unlock();
        }
    }

    /** Records that a key has changed, or with null that any may have, and queues keys to be verified again. */
    @SuppressWarnings("NonAtomicVolatileUpdate") // only written under the lock
    void changed(String id) {
        lock.lock();
        try {
            changeCount++;
            if (id == null) {
                long delay = 0;
                for (AdmittedKey admitted : keys.values()) {
                    recheck(admitted, Math.min(delay, maxUnconfirmed / 2));
                    delay += SPREAD;
                }
            } else {
                byId.getOrDefault(id, Set.of()).forEach(admitted -> recheck(admitted, 0));
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
            List.copyOf(keys.values()).forEach(admitted -> over.addAll(remove(admitted)));
        } finally {
            lock.unlock();
        }
        runEndings(); // the timer may be closed next
        new Ending(over, null, failure).run();
    }

    /** Starts verifications of queued keys. */
    private void startChecks() {
        List<AdmittedKey> turns = new ArrayList<>();
        List<Session> late = new ArrayList<>();
        lock.lock();
        try {
            areChecksScheduled = false;
            while (checking < MAX_CHECKS && !queue.isEmpty()) {
                AdmittedKey admitted = queue.remove();
                if (admitted.sessions.isEmpty()) {
                    continue;
                }
                if (clock.now() - admitted.unconfirmedSince > maxUnconfirmed) {
                    late.addAll(remove(admitted));
                } else {
                    admitted.state = State.CHECKING;
                    admitted.changedMeanwhile = false;
                    admitted.checkedAt = clock.now();
                    checking++;
                    turns.add(admitted);
                }
            }
        } finally {
            lock.unlock();
        }
        new Ending(late, null, new UnavailableException("the key of an open stream could not be verified again in time"))
                .run();
        for (AdmittedKey admitted : turns) {
            var unused = verify.apply(admitted.key, admitted.ident.demand) // settle gets its failure, and throws nothing
                    .whenComplete((verdict, failure) -> settle(admitted, verdict, failure));
        }
    }

    private void settle(AdmittedKey admitted, VerdictUntil verdict, Throwable failure) {
        Throwable cause = failure instanceof CompletionException ? failure.getCause() : failure;
        boolean isOver = false;
        lock.lock();
        try {
            checking--;
            admitted.state = State.IDLE;
            if (!admitted.sessions.isEmpty()) {
                if (cause != null && clock.now() - admitted.unconfirmedSince < maxUnconfirmed) {
                    setTimer(admitted, clock.now() + RETRY_DELAY);
                } else if (cause != null || !verdict.verification().valid()) {
                    endings.add(new Ending(remove(admitted), verdict == null ? null : verdict.verification(), cause));
                    isOver = true;
                } else if (admitted.changedMeanwhile) {
                    recheck(admitted, 0);
                } else {
                    admitted.isUnconfirmed = false;
                    long earliest = admitted.checkedAt + RECHECK_INTERVAL;
                    scheduleRecheck(admitted, verdict.until() - earliest > 0 ? verdict.until() : earliest);
                }
            }
            if (!queue.isEmpty()) {
                scheduleChecks();
            }
        } finally {
            lock.unlock();
        }
        if (isOver) {
            // Not in this thread: it is completing a call that other callers wait for.
            clock.after(0, this::runEndings);
        }
    }

    private void scheduleChecks() {
        if (!areChecksScheduled) {
            areChecksScheduled = true;
            clock.after(0, this::startChecks);
        }
    }

    private void recheck(AdmittedKey admitted, long delay) {
        long now = clock.now();
        if (!admitted.isUnconfirmed) {
            admitted.isUnconfirmed = true;
            admitted.unconfirmedSince = now;
        }
        if (admitted.state == State.CHECKING) {
            admitted.changedMeanwhile = true;
        } else if (admitted.state == State.IDLE && delay > 0) {
            setTimer(admitted, now + Math.min(admitted.until - now, delay));
        } else if (admitted.state == State.IDLE) {
            admitted.state = State.QUEUED;
            queue.add(admitted);
            scheduleChecks();
        }
    }

    /** Leaves a valid key until its answer expires; if the cache is not fresh, for at most {@code maxUnconfirmed}. */
    private void scheduleRecheck(AdmittedKey admitted, long until) {
        long now = clock.now();
        long counts = freshFor.applyAsLong(now) > 0 ? until - now : Math.min(until - now, maxUnconfirmed);
        setTimer(admitted, now + Math.max(counts, MIN_TRUST));
    }

    /** Sets the timer to look at a key at {@code until}, or earlier when freshness lapses. */
    private void setTimer(AdmittedKey admitted, long until) {
        admitted.until = until;
        admitted.cancel.run();
        long now = clock.now();
        long fresh = freshFor.applyAsLong(now);
        int timerNumber = ++admitted.timerNumber;
        long left = fresh > 0 ? Math.min(until - now, fresh) : until - now;
        admitted.cancel = clock.after(Math.max(0, left), () -> onTimer(admitted, timerNumber));
    }

    private void onTimer(AdmittedKey admitted, int timerNumber) {
        lock.lock();
        try {
            if (admitted.timerNumber != timerNumber || admitted.state != State.IDLE || admitted.sessions.isEmpty()) {
                return;
            }
            long now = clock.now();
            if (admitted.until - now > 0 && freshFor.applyAsLong(now) > 0) {
                setTimer(admitted, admitted.until); // a heartbeat has arrived since
            } else {
                recheck(admitted, 0);
            }
        } finally {
            lock.unlock();
        }
    }

    private List<Session> remove(AdmittedKey admitted) {
        List<Session> over = List.copyOf(admitted.sessions);
        admitted.sessions.clear();
        admitted.cancel.run();
        keys.remove(admitted.ident, admitted);
        Set<AdmittedKey> alike = byId.getOrDefault(admitted.id, new HashSet<>());
        alike.remove(admitted);
        if (alike.isEmpty()) {
            byId.remove(admitted.id);
        }
        return over;
    }

    /** Ends the streams that {@link #settle} has removed. */
    private void runEndings() {
        List<Ending> due;
        lock.lock();
        try {
            due = List.copyOf(endings);
            endings.clear();
        } finally {
            lock.unlock();
        }
        due.forEach(Ending::run);
    }

    private static String text(byte[] digest) {
        return new String(digest, StandardCharsets.ISO_8859_1);
    }
}
