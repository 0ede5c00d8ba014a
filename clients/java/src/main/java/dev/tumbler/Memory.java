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
 * What is remembered of keys, and what the Watch stream has told. Both are one thing: whether an answer may be
 * remembered, and whether what is remembered may be used, depends on the stream.
 *
 * <p>Looking something up takes no lock. What is to go is chosen by second chance: of those that came first, the first
 * one that was not used since it was last looked at. That is nearly the least recently used, and a hit need not write
 * to what all threads share.
 *
 * <p>Instants are nanoseconds of the monotonic clock.
 */
final class Memory {
    /** How many changed keys' revisions are kept for answers that are under way. */
    static final int CHANGES = 1_024;

    /** What a remembered key counts beside its record: the fingerprint, and what holds the entry. */
    static final int ENTRY_BYTES = 1_024;

    /** How far the server's clock may run ahead of ours in a stream's life; beyond it, ours has stood still. */
    static final long AHEAD = Duration.ofMillis(500).toNanos();

    /** How old a heartbeat may be for its stream to be listened to further, however short the staleness allowed is. */
    private static final long YOUNG = Duration.ofSeconds(1).toNanos();

    private static final String NOWHERE = "";

    private final int size;
    private final long room;
    private final long maxStaleness;
    private final long heartbeat;
    /** For how long all is remembered where there is no stream; 0: there is one, or nothing is remembered. */
    private final long fixedTtl;

    private final ConcurrentHashMap<String, Entry> entries = new ConcurrentHashMap<>();
    private volatile long freshUntil;

    /** Guards all that follows, and every change of {@code entries}. */
    private final ReentrantLock lock = new ReentrantLock();

    private final LinkedHashMap<String, Entry> queue = new LinkedHashMap<>();
    /** The last revision of each key that changed lately, the latest change at the end. */
    private final LinkedHashMap<String, Long> changes = new LinkedHashMap<>();
    /** The highest revision that is not in {@code changes} any more. */
    private long lost;
    /** The highest revision that was told. */
    private long told;

    /** What {@code entries} count together. */
    private long bytes;

    private long resets;
    private String cursor = NOWHERE;

    /** Told the id of each key that has changed, or was denied; null: any may have. Not while the lock is held. */
    private volatile Consumer<String> listener = id -> {};

    /**
     * Remembers nothing where {@code size} or {@code room}, in bytes, is 0, and without a fixed time to live nothing before the stream's first
     * word.
     */
    Memory(int size, long room, long maxStaleness, long heartbeat, long fixedTtl, long now) {
        this.size = size;
        this.room = room;
        this.maxStaleness = maxStaleness;
        this.heartbeat = heartbeat;
        this.fixedTtl = fixedTtl;
        this.freshUntil = now;
    }

    /** A remembered answer; of the key that it is about only the fingerprint. */
    static final class Entry {
        final byte[] fingerprint;
        final Answer answer;
        /** What is returned where it is valid: the same for all. */
        final Verification allowed;

        private final long expires;
        private volatile boolean used;

        private Entry(byte[] fingerprint, Answer answer, long expires) {
            this.fingerprint = fingerprint;
            this.answer = answer;
            this.allowed = answer.verification(Code.VALID, true);
            this.expires = expires;
        }

        private long size() {
            return (long) answer.size() + ENTRY_BYTES;
        }
    }

    /**
     * What the stream had told when a call was sent.
     *
     * @param cursor empty: nothing yet
     */
    record Position(long resets, long told, String cursor) {}

    /** Returns what is remembered of the key with this id, or null where nothing is that may be used now. */
    Entry find(String id, long now) {
        if (!fresh(now)) {
            return null;
        }
        Entry entry = entries.get(id);
        if (entry == null || now - entry.expires >= 0) {
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

    /** Returns until when what is remembered of the key with this id lives; {@code now} where nothing is. */
    long until(String id, long now) {
        Entry entry = entries.get(id);
        return entry == null ? now : entry.expires;
    }

    /** Returns for how long from now on the stream's last word counts; 0 or less: it does not. */
    long freshFor(long now) {
        return fixedTtl > 0 ? Long.MAX_VALUE : freshUntil - now;
    }

    /** Returns how many keys are remembered. */
    int size() {
        return entries.size();
    }

    Position position() {
        lock.lock();
        try {
            return new Position(resets, told, cursor);
        } finally {
            lock.unlock();
        }
    }

    /** Says whether what was asked there may be told to who asks now: no change of this key can have come between. */
    boolean unchangedSince(Position position, String id, long now) {
        lock.lock();
        try {
            return fresh(now)
                    && resets == position.resets
                    && lost <= position.told
                    && changes.getOrDefault(id, 0L) <= position.told;
        } finally {
            lock.unlock();
        }
    }

    /** Remembers an answer about a key in good standing, to a call that was sent at this position, if it will bear it. */
    void remember(byte[] fingerprint, Answer answer, Position position, long now) {
        long ttl = fixedTtl > 0 ? Math.min(fixedTtl, answer.ttl()) : answer.ttl();
        if (size == 0 || ttl <= 0) {
            return;
        }
        String id = answer.record().keyId();
        Entry entry = new Entry(fingerprint, answer, answer.sent() + ttl);
        if (entry.size() > room) {
            return;
        }
        lock.lock();
        try {
            if (fresh(now)
                    && position.resets == resets
                    && answer.revision() >= lost
                    && answer.revision() >= changes.getOrDefault(id, 0L)) {
                forget(id);
                makeRoom(entry.size());
                queue.put(id, entry);
                entries.put(id, entry);
                bytes += entry.size();
            }
        } finally {
            lock.unlock();
        }
    }

    /** Forgets a key that the server has denied, whatever the stream has told so far. */
    void refuse(String id, byte[] fingerprint) {
        boolean known;
        lock.lock();
        try {
            Entry entry = queue.get(id);
            known = entry != null && Fingerprints.same(entry.fingerprint, fingerprint);
            if (known) {
                forget(id);
            }
        } finally {
            lock.unlock();
        }
        if (known) {
            listener.accept(id);
        }
    }

    /** Takes in what the stream told. That renews no trust: it may be part of what a new stream has to catch up with. */
    void hear(List<KeyEvent> events, String cursor) {
        lock.lock();
        try {
            for (KeyEvent event : events) {
                forget(event.getKeyId());
                changes.remove(event.getKeyId());
                changes.put(event.getKeyId(), event.getRevision());
                told = Math.max(told, event.getRevision());
            }
            Iterator<Long> oldest = changes.values().iterator();
            while (changes.size() > CHANGES) {
                lost = Math.max(lost, oldest.next());
                oldest.remove();
            }
            this.cursor = cursor;
        } finally {
            lock.unlock();
        }
        events.forEach(event -> listener.accept(event.getKeyId()));
    }

    /**
     * Takes in that there was nothing else to tell, and says whether to listen to the stream any longer.
     *
     * <p>A heartbeat may have been on its way for long, or have waited here: it counts from the instant that it is true
     * of. The server opened the stream after we had asked for it, so what counts from then is never too late.
     *
     * @param opened when its stream was opened
     * @param age of what age the stream was at the instant that it is true of; null: an older server's does not say
     * @param now when it was received
     */
    boolean beat(String cursor, long opened, Duration age, long now) {
        lock.lock();
        try {
            this.cursor = cursor;
            boolean lapsed = now - freshUntil >= 0;
            if (age == null && lapsed && freshUntil - opened > 0) {
                return false; // it may have waited for as long as we heard nothing
            }
            long trueAt = age == null ? now : opened + age.toNanos();
            if (trueAt - now > AHEAD) { // this machine stood still, and its clock with it
                freshUntil = now;
                return false;
            }
            long old = Math.max(0, now - trueAt);
            long until = now - old + maxStaleness;
            if (lapsed || until - freshUntil > 0) {
                freshUntil = until;
            }
            // Where trust would lapse before the next one, the stream is slow, or it took long to be opened.
            return old <= Math.max(YOUNG, maxStaleness - heartbeat);
        } finally {
            lock.unlock();
        }
    }

    /** Forgets all that was remembered and told, and goes on where the stream is now. */
    void reset(String cursor) {
        lock.lock();
        try {
            reset();
            this.cursor = cursor;
        } finally {
            lock.unlock();
        }
        listener.accept(null);
    }

    /** Forgets all that was remembered and told, and remembers nothing before the stream's next word. */
    void distrust(long now) {
        lock.lock();
        try {
            reset();
            freshUntil = now;
        } finally {
            lock.unlock();
        }
        listener.accept(null);
    }

    /** Does as {@link #distrust}, and forgets where the stream was, if it was there. */
    void lose(String place, long now) {
        lock.lock();
        try {
            reset();
            freshUntil = now;
            if (cursor.equals(place)) {
                cursor = NOWHERE;
            }
        } finally {
            lock.unlock();
        }
        listener.accept(null);
    }

    private void reset() {
        resets++;
        entries.clear();
        queue.clear();
        bytes = 0;
        changes.clear();
        lost = 0;
        told = 0;
    }

    private boolean fresh(long now) {
        return fixedTtl > 0 || now - freshUntil < 0;
    }

    private void forget(String id) {
        Entry entry = queue.remove(id);
        if (entry != null) {
            entries.remove(id);
            bytes -= entry.size();
        }
    }

    private void makeRoom(long needed) {
        while (queue.size() >= size || bytes + needed > room) {
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
