package dev.tumbler;

import dev.tumbler.v1.KeyEvent;
import java.time.Duration;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Consumer;

/**
 * The cache of keys, with the state of the Watch stream. Whether an answer may be cached, and whether the cache may
 * answer, depends on the stream.
 *
 * <p>A lookup takes no lock. Eviction is by second chance: it evicts the oldest entry that was not used since it was
 * last examined. That is nearly the least recently used one, and a hit rarely writes to shared memory.
 *
 * <p>Times are nanoseconds of the monotonic clock.
 */
final class Cache {
    /** The number of latest changed keys whose revisions are kept, to compare them with answers to calls in flight. */
    static final int MAX_CHANGES = 1_024;

    /** What a cached key counts in addition to its answer: the digest and the entry itself. */
    static final int ENTRY_BYTES = 1_024;

    /** How far in the future a heartbeat may be. A larger lead shows that the client's own clock stood still. */
    static final long MAX_HEARTBEAT_LEAD = Duration.ofMillis(500).toNanos();

    /** The age up to which a heartbeat never makes the client reopen the stream, however short maxStaleness is. */
    private static final long TOLERATED_AGE = Duration.ofSeconds(1).toNanos();

    private static final String NO_CURSOR = "";

    private final int maxEntries;
    private final long maxBytes;
    private final long maxStaleness;
    private final long heartbeat;
    /** Without a stream: the lifetime of an entry. 0: there is a stream, or no cache. */
    private final long fixedTtl;

    private final ConcurrentHashMap<String, Entry> entries = new ConcurrentHashMap<>();
    private volatile long freshUntil;

    /** Guards the fields below, and every change of {@code entries}. */
    private final ReentrantLock lock = new ReentrantLock();

    private final LinkedHashMap<String, Entry> queue = new LinkedHashMap<>();
    /** The latest revision of each recently changed key, the latest change last. */
    private final LinkedHashMap<String, Long> changes = new LinkedHashMap<>();
    /** The highest revision that has dropped out of {@code changes}. */
    private long revisionFloor;
    /** The highest revision that the stream has delivered. */
    private long lastRevision;

    /** The total size of {@code entries}. */
    private long bytes;

    private long generation;
    private String cursor = NO_CURSOR;

    /** Gets the id of each key that has changed or was denied; null: any key may have. Called without the lock. */
    private volatile Consumer<String> listener = id -> {};

    /**
     * Creates an empty cache of {@code maxEntries} keys and {@code maxBytes} bytes; with 0 of either nothing is cached.
     * Unless there is a fixed time to live, nothing is cached before the stream's first heartbeat.
     */
    Cache(int maxEntries, long maxBytes, long maxStaleness, long heartbeat, long fixedTtl, long now) {
        this.maxEntries = maxEntries;
        this.maxBytes = maxBytes;
        this.maxStaleness = maxStaleness;
        this.heartbeat = heartbeat;
        this.fixedTtl = fixedTtl;
        this.freshUntil = now;
    }

    /** A cached answer. It holds the digest of the presented key, not the key. */
    static final class Entry {
        final byte[] digest;
        final Answer answer;
        /** The verdict if the key is valid, shared by all callers. */
        final Verification validVerdict;

        private final long expiresAt;
        private volatile boolean used;

        private Entry(byte[] digest, Answer answer, long expiresAt) {
            this.digest = digest;
            this.answer = answer;
            this.validVerdict = answer.verification(Code.VALID, true);
            this.expiresAt = expiresAt;
        }

        private long size() {
            return (long) answer.size() + ENTRY_BYTES;
        }
    }

    /**
     * The state of the stream when a call is sent.
     *
     * @param cursor empty: the stream has not delivered any message
     */
    record Position(long generation, long lastRevision, String cursor) {}

    /** Returns the entry of a key id, or null if there is none, it has expired, or the cache is not fresh. */
    Entry lookup(String id, long now) {
        if (!isFresh(now)) {
            return null;
        }
        Entry entry = entries.get(id);
        if (entry == null || now - entry.expiresAt >= 0) {
            return null;
        }
        if (!entry.used) {
            entry.used = true;
        }
        return entry;
    }

    void onChange(Consumer<String> listener) {
        this.listener = listener;
    }

    /**
     * Returns until when a guarded stream may rely on the entry of a key id, at least for a second after the call; for a
     * second from {@code now} if there is none.
     */
    long until(String id, long now) {
        Entry entry = entries.get(id);
        if (entry == null) {
            return now + Sessions.RECHECK_INTERVAL;
        }
        long earliest = entry.answer.sentAt() + Sessions.RECHECK_INTERVAL;
        return entry.expiresAt - earliest > 0 ? entry.expiresAt : earliest;
    }

    /** Returns how long the cache stays fresh if no further heartbeat arrives; 0 or less: it is not fresh. */
    long freshFor(long now) {
        return fixedTtl > 0 ? Long.MAX_VALUE : freshUntil - now;
    }

    /** Returns the number of cached keys. */
    int size() {
        return entries.size();
    }

    Position position() {
        lock.lock();
        try {
            return new Position(generation, lastRevision, cursor);
        } finally {
            lock.unlock();
        }
    }

    /** Returns whether this key cannot have changed since the position, so that a new caller may share that call. */
    boolean unchangedSince(Position position, String id, long now) {
        lock.lock();
        try {
            return isFresh(now)
                    && generation == position.generation
                    && revisionFloor <= position.lastRevision
                    && changes.getOrDefault(id, 0L) <= position.lastRevision;
        } finally {
            lock.unlock();
        }
    }

    /**
     * Returns the highest revision of a key's events that the stream had delivered at {@code position}; 0 if it is not
     * known, or a reset has come since.
     */
    long revisionAt(Position position, String id) {
        lock.lock();
        try {
            long revision = changes.getOrDefault(id, 0L);
            return position.generation == generation && revision <= position.lastRevision ? revision : 0;
        } finally {
            lock.unlock();
        }
    }

    /**
     * Returns whether an answer about a proven key contradicts the stream: it is older than an event of the key that
     * was delivered before the call was sent. A reset since then makes the revisions incomparable.
     *
     * @param known the value of {@link #revisionAt} when the call was sent
     */
    boolean contradicts(Answer answer, Position position, long known) {
        if (answer.record() == null || answer.code() == Code.UNSPECIFIED || answer.revision() >= known) {
            return false;
        }
        lock.lock();
        try {
            return position.generation == generation;
        } finally {
            lock.unlock();
        }
    }

    /** Returns whether an answer is older than {@code maxStaleness}, counted from before its call was sent. */
    boolean isTooOld(Answer answer, long now) {
        return now - answer.sentAt() > maxStaleness;
    }

    /**
     * Caches an answer about a key that is not revoked, superseded, inactive or expired. It does not if the answer is
     * too old, its call carried no cursor, or the stream has delivered a reset since {@code position}, or a change that
     * the answer may not include.
     */
    void store(byte[] digest, Answer answer, Position position, long now) {
        long ttl = fixedTtl > 0 ? Math.min(fixedTtl, answer.ttl()) : answer.ttl();
        if (maxEntries == 0 || ttl <= 0 || isTooOld(answer, now)) {
            return;
        }
        String id = answer.record().keyId();
        Entry entry = new Entry(digest, answer, answer.sentAt() + ttl);
        if (entry.size() > maxBytes) {
            return;
        }
        lock.lock();
        try {
            if (isFresh(now)
                    && (fixedTtl > 0 || !position.cursor.isEmpty())
                    && position.generation == generation
                    && answer.revision() >= revisionFloor
                    && answer.revision() >= changes.getOrDefault(id, 0L)) {
                evict(id);
                makeRoom(entry.size());
                queue.put(id, entry);
                entries.put(id, entry);
                bytes += entry.size();
            }
        } finally {
            lock.unlock();
        }
    }

    /** Evicts a key that the server has denied, whatever the stream has delivered so far. */
    void evictDenied(String id, byte[] digest) {
        boolean known;
        lock.lock();
        try {
            Entry entry = queue.get(id);
            known = entry != null && Digester.same(entry.digest, digest);
            if (known) {
                evict(id);
            }
        } finally {
            lock.unlock();
        }
        if (known) {
            listener.accept(id);
        }
    }

    /** Processes events. They do not renew freshness: they may be old, from a stream that is catching up. */
    void applyEvents(List<KeyEvent> events, String cursor) {
        lock.lock();
        try {
            for (KeyEvent event : events) {
                evict(event.getKeyId());
                Long earlier = changes.remove(event.getKeyId());
                changes.put(
                        event.getKeyId(),
                        earlier == null ? event.getRevision() : Math.max(earlier, event.getRevision()));
                lastRevision = Math.max(lastRevision, event.getRevision());
            }
            Iterator<Long> oldest = changes.values().iterator();
            while (changes.size() > MAX_CHANGES) {
                revisionFloor = Math.max(revisionFloor, oldest.next());
                oldest.remove();
            }
            moveTo(cursor);
        } finally {
            lock.unlock();
        }
        events.forEach(event -> listener.accept(event.getKeyId()));
    }

    /**
     * Processes a heartbeat, which renews freshness, and returns whether to keep the stream.
     *
     * <p>A heartbeat may have travelled or waited in a socket for long, so it counts from the instant that it confirms:
     * {@code requestedAt} plus {@code age}. The server opened the stream after that request, so the sum is never too
     * late.
     *
     * @param requestedAt when the stream was requested
     * @param age how long the stream had been open at that instant; null: an older server does not send it. One that
     *     cannot be ends freshness
     * @param now when the heartbeat arrived
     */
    boolean applyHeartbeat(String cursor, long requestedAt, Duration age, long now) {
        lock.lock();
        try {
            moveTo(cursor);
            boolean lapsed = now - freshUntil >= 0;
            if (age == null && lapsed && freshUntil - requestedAt > 0) {
                return false; // it may have waited for as long as nothing arrived
            }
            // Compared before it is added: an absurd age would overflow.
            Duration most = Duration.ofNanos(now - requestedAt + MAX_HEARTBEAT_LEAD);
            if (age != null && (age.isNegative() || age.compareTo(most) > 0)) { // this machine's clock stood still
                freshUntil = now;
                return false;
            }
            long confirmedAt = age == null ? now : requestedAt + age.toNanos();
            long old = Math.max(0, now - confirmedAt);
            long until = now - old + maxStaleness;
            if (lapsed || until - freshUntil > 0) {
                freshUntil = until;
            }
            // If freshness would lapse before the next heartbeat, the stream is slow, or took long to open: reopen it.
            return old <= Math.max(TOLERATED_AGE, maxStaleness - heartbeat);
        } finally {
            lock.unlock();
        }
    }

    /** Evicts everything, and continues from the stream's new cursor. */
    void reset(String cursor) {
        lock.lock();
        try {
            reset();
            moveTo(cursor);
        } finally {
            lock.unlock();
        }
        listener.accept(null);
    }

    /** Evicts everything. Nothing is cached until the next heartbeat. */
    void invalidate(long now) {
        lock.lock();
        try {
            reset();
            freshUntil = now;
        } finally {
            lock.unlock();
        }
        listener.accept(null);
    }

    /**
     * Drops a cursor that the server does not know, and evicts everything. Nothing is cached until the next heartbeat.
     * It does nothing if the stream has moved on to another cursor.
     */
    void dropCursor(String refused, long now) {
        lock.lock();
        try {
            if (!cursor.equals(refused)) {
                return;
            }
            reset();
            freshUntil = now;
            cursor = NO_CURSOR;
        } finally {
            lock.unlock();
        }
        listener.accept(null);
    }

    /** Continues from a message's cursor. A message without one keeps the cursor that is known. */
    private void moveTo(String cursor) {
        if (!cursor.isEmpty()) {
            this.cursor = cursor;
        }
    }

    private void reset() {
        generation++;
        entries.clear();
        queue.clear();
        bytes = 0;
        changes.clear();
        revisionFloor = 0;
        lastRevision = 0;
    }

    private boolean isFresh(long now) {
        return fixedTtl > 0 || now - freshUntil < 0;
    }

    private void evict(String id) {
        Entry entry = queue.remove(id);
        if (entry != null) {
            entries.remove(id);
            bytes -= entry.size();
        }
    }

    private void makeRoom(long needed) {
        while (queue.size() >= maxEntries || bytes + needed > maxBytes) {
            Iterator<Map.Entry<String, Entry>> places = queue.entrySet().iterator();
            Map.Entry<String, Entry> first = places.next();
            String id = first.getKey();
            Entry entry = first.getValue();
            places.remove();
            if (entry.used) {
                entry.used = false;
                queue.put(id, entry);
            } else {
                entries.remove(id);
                bytes -= entry.size();
            }
        }
    }
}
