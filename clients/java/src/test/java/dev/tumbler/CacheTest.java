package dev.tumbler;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;

/** Tests of the cache that need no stream. */
class CacheTest {
    private static final String ID = KeyFormat.peekId(FakeServer.KEY);

    private final Cache cache =
            new Cache(10, 1_000_000, Duration.ofSeconds(15).toNanos(), Duration.ofSeconds(5).toNanos(), 0, 0);
    private final List<String> changes = new ArrayList<>();

    @BeforeEach
    void remember() {
        assertTrue(cache.applyHeartbeat("c1", 0, Duration.ZERO, 0));
        cache.store(new byte[32], Answer.of(FakeServer.valid(FakeServer.KEY).build(), ID, VerifyOptions.NONE, 0), cache.position(), 1);
        assertEquals(1, cache.size());
        cache.onChange(id -> changes.add(String.valueOf(id)));
    }

    @Test
    @DisplayName("The refusal of the current cursor drops it with everything that is cached, and ends freshness.")
    void currentCursorRefused() {
        long generation = cache.position().generation();
        cache.dropCursor("c1", 2);
        assertEquals(0, cache.size());
        assertEquals(0, cache.freshFor(2));
        assertEquals("", cache.position().cursor());
        assertEquals(generation + 1, cache.position().generation());
        assertEquals(List.of("null"), changes);
    }

    @Test
    @DisplayName("Nothing is cached while no message of the stream has had a cursor.")
    void noCursor() {
        Cache fresh = new Cache(10, 1_000_000, Duration.ofSeconds(15).toNanos(), Duration.ofSeconds(5).toNanos(), 0, 0);
        Answer answer = Answer.of(FakeServer.valid(FakeServer.KEY).build(), ID, VerifyOptions.NONE, 0);
        fresh.reset("");
        assertTrue(fresh.applyHeartbeat("", 0, Duration.ZERO, 0));
        Cache.Position position = fresh.position();
        fresh.store(new byte[32], answer, position, 1);
        assertEquals(0, fresh.size());
        assertTrue(fresh.applyHeartbeat("c1", 0, Duration.ZERO, 0));
        fresh.store(new byte[32], answer, position, 1); // its call carried no cursor
        assertEquals(0, fresh.size());
        fresh.store(new byte[32], answer, fresh.position(), 1);
        assertEquals(1, fresh.size());
    }

    @Test
    @DisplayName("A guarded stream relies on a verdict for a second at least, whether or not its record is cached.")
    void until() {
        assertEquals(Duration.ofSeconds(60).toNanos(), cache.until(ID, 5));
        assertEquals(Duration.ofSeconds(1).toNanos() + 5, cache.until("another", 5));
    }

    @Test
    @DisplayName("The refusal of a cursor that the stream has moved on from changes nothing.")
    void oldCursorRefused() {
        cache.applyHeartbeat("c2", 0, Duration.ofNanos(2), 2);
        long fresh = cache.freshFor(3);
        Cache.Position position = cache.position();
        cache.dropCursor("c1", 3);
        assertEquals(1, cache.size());
        assertEquals(fresh, cache.freshFor(3));
        assertEquals(position, cache.position());
        assertEquals(List.of(), changes);
    }
}
