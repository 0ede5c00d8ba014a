package dev.tumbler;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.tumbler.Batcher.VerdictUntil;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Tests of guarded streams: when their keys are verified again, which streams end, and how many keys at a time. */
@Timeout(60)
class SessionsTest {
    private static final Duration STALENESS = Duration.ofSeconds(15);
    private static final Duration TTL = Duration.ofSeconds(60);

    private record Question(String key, VerifyOptions demand, CompletableFuture<VerdictUntil> answer) {}

    private final FakeClock clock = new FakeClock();
    private final ArrayDeque<Question> asked = new ArrayDeque<>();
    private final List<String> ended = new ArrayList<>();
    private long freshUntil = clock.now() + STALENESS.toNanos();
    private final Sessions sessions = new Sessions(
            (key, demand) -> {
                Question question = new Question(key, demand, new CompletableFuture<>());
                asked.add(question);
                return question.answer;
            },
            now -> freshUntil - now,
            new Digester(),
            STALENESS,
            clock);

    private static UnavailableException down() {
        return new UnavailableException("as the test has it");
    }

    private static String id(int number) {
        return String.format("%016d", number);
    }

    private Runnable open(int number, String name, long since, String... scopes) {
        return sessions.open(
                FakeServer.key(id(number)),
                id(number),
                VerifyOptions.requireScopes(scopes),
                clock.now() + TTL.toNanos(),
                since,
                (verdict, failure) -> ended.add(name + " " + (failure == null ? verdict.code() : "undecided")));
    }

    private Runnable open(int number, String name) {
        return open(number, name, sessions.changeCount());
    }

    private void pass(Duration span) {
        clock.pass(span);
        clock.pass(Duration.ZERO);
    }

    private void changed(int number) {
        sessions.changed(id(number));
        pass(Duration.ZERO);
    }

    private void heartbeat() {
        freshUntil = clock.now() + STALENESS.toNanos();
    }

    private VerdictUntil verdict(String id, Code code, Duration ttl) {
        Verification told =
                new Verification(code, id, "", "", "", "", List.of(), Map.of(), Optional.empty(), false);
        return new VerdictUntil(told, clock.now() + ttl.toNanos());
    }

    private void answer(Question question, Code code, Duration ttl) {
        question.answer.complete(verdict(KeyFormat.peekId(question.key), code, ttl));
        pass(Duration.ZERO);
    }

    private void fail(Question question) {
        question.answer.completeExceptionally(down());
        pass(Duration.ZERO);
    }

    @Test
    @DisplayName("While the stream is alive and says nothing of a key, it is not verified before its lifetime is over.")
    void vouched() {
        open(1, "one");
        for (int seconds = 5; seconds < 60; seconds += 5) {
            pass(Duration.ofSeconds(5));
            heartbeat();
            assertTrue(asked.isEmpty());
        }
        pass(Duration.ofSeconds(5));
        assertEquals(1, asked.size());
    }

    @ParameterizedTest
    @EnumSource(value = Code.class, names = "VALID", mode = EnumSource.Mode.EXCLUDE)
    @DisplayName("After an event of its key any verdict but VALID ends its streams, each once, and no others.")
    void ends(Code code) {
        open(1, "one");
        open(1, "one");
        open(2, "other");
        changed(1);
        answer(asked.remove(), code, TTL);
        assertEquals(List.of("one " + code, "one " + code), ended);
        changed(1);
        assertTrue(asked.isEmpty());
        assertEquals(1, sessions.size());
    }

    @Test
    @DisplayName("Streams of one key that were let in for different things are judged each by its own.")
    void demands() {
        open(1, "reads", sessions.changeCount(), "orders:read");
        open(1, "writes", sessions.changeCount(), "orders:write");
        changed(1);
        for (Question question : List.copyOf(asked)) {
            boolean lacks = question.demand.requiredScopes().contains("orders:write");
            answer(question, lacks ? Code.INSUFFICIENT_SCOPE : Code.VALID, TTL);
        }
        assertEquals(List.of("writes INSUFFICIENT_SCOPE"), ended);
    }

    @Test
    @DisplayName("What is told between the verdict and the stream counts, and so does what is told while it is asked.")
    void told() {
        long since = sessions.changeCount();
        changed(1);
        open(1, "one", since);
        pass(Duration.ZERO);
        changed(1);
        assertEquals(1, asked.size());
        answer(asked.remove(), Code.VALID, TTL);
        answer(asked.remove(), Code.REVOKED, TTL);
        assertEquals(List.of("one REVOKED"), ended);
    }

    @Test
    @DisplayName("A key is verified when its record ends by itself.")
    void expires() {
        open(1, "one");
        changed(1);
        answer(asked.remove(), Code.VALID, Duration.ofSeconds(3));
        pass(Duration.ofSeconds(3).minusNanos(1));
        assertTrue(asked.isEmpty());
        pass(Duration.ofNanos(1));
        assertEquals(1, asked.size());
    }

    @Test
    @DisplayName("A key whose answers have no lifetime is verified once a second, but at once after an event.")
    void noLifetime() {
        open(1, "one");
        changed(1);
        for (int second = 0; second < 5; second++) {
            answer(asked.remove(), Code.VALID, Duration.ZERO);
            pass(Duration.ofSeconds(1).minusNanos(1));
            assertTrue(asked.isEmpty());
            pass(Duration.ofNanos(1));
            assertEquals(1, asked.size());
        }
        answer(asked.remove(), Code.VALID, Duration.ZERO);
        changed(1);
        assertEquals(1, asked.size());
    }

    @Test
    @DisplayName("Once the stream was silent for maxStaleness, every key is verified each maxStaleness.")
    void lapses() {
        open(1, "one");
        for (int i = 0; i < 3; i++) {
            pass(STALENESS.minusNanos(1));
            assertTrue(asked.isEmpty());
            pass(Duration.ofNanos(1));
            answer(asked.remove(), Code.VALID, TTL);
        }
    }

    @Test
    @DisplayName("A key that cannot be verified is asked about each second, and ends its streams after maxStaleness.")
    void undecided() {
        open(1, "one");
        changed(1);
        for (int second = 0; second < STALENESS.toSeconds(); second++) {
            fail(asked.remove());
            assertTrue(ended.isEmpty() && asked.isEmpty());
            pass(Duration.ofSeconds(1));
        }
        fail(asked.remove());
        assertEquals(List.of("one undecided"), ended);
        assertEquals(0, sessions.size());
    }

    @Test
    @DisplayName("A stream whose key was denied just before closing ends by that verdict, and only once.")
    void deniedAtClosing() {
        open(1, "one");
        changed(1);
        asked.remove().answer.complete(verdict(id(1), Code.REVOKED, TTL));
        sessions.close(down());
        clock.close(); // and its tasks are dropped
        assertEquals(List.of("one REVOKED"), ended);
        pass(Duration.ofSeconds(1));
        assertEquals(List.of("one REVOKED"), ended);
    }

    @Test
    @DisplayName("Each stream gets an exception of its own.")
    void ownExceptions() {
        List<Throwable> failures = new ArrayList<>();
        Sessions.Ended ended = (verdict, failure) -> failures.add(failure);
        Runnable open = () -> sessions.open(
                FakeServer.key(id(1)), id(1), VerifyOptions.NONE, clock.now(), sessions.changeCount(), ended);
        open.run();
        open.run();
        changed(1);
        pass(STALENESS);
        fail(asked.remove());
        assertEquals(2, failures.size());
        open.run();
        open.run();
        sessions.close(down());
        open.run();
        open.run();
        assertEquals(6, failures.size());
        Set<Throwable> different = Collections.newSetFromMap(new IdentityHashMap<>());
        different.addAll(failures);
        assertEquals(6, different.size());
        failures.forEach(failure -> assertEquals(down().toString(), failure.toString()));
    }

    @Test
    @DisplayName("Ten thousand changes, each told three times, are so many verifications, and few of them at a time.")
    void flood() {
        for (int number = 0; number < 10_000; number++) {
            open(number, "x");
        }
        for (int i = 0; i < 3; i++) {
            for (int number = 0; number < 10_000; number++) {
                sessions.changed(id(number));
            }
        }
        pass(Duration.ZERO);
        int seen = 0;
        while (!asked.isEmpty()) {
            assertTrue(asked.size() <= Sessions.MAX_CHECKS);
            seen++;
            answer(asked.remove(), Code.REVOKED, TTL);
        }
        assertEquals(10_000, seen);
        assertEquals(10_000, ended.size());
        assertEquals(0, sessions.size());
    }

    @Test
    @DisplayName("After a reset every key is verified, a thousand a second.")
    void reset() {
        for (int number = 0; number < 3_000; number++) {
            open(number, "x");
        }
        sessions.changed(null);
        int seen = 0;
        for (int i = 0; i < 30; i++) {
            pass(Duration.ofMillis(100));
            assertTrue(asked.size() <= 101, "" + asked.size());
            while (!asked.isEmpty()) {
                seen++;
                answer(asked.remove(), Code.VALID, TTL);
            }
            heartbeat();
        }
        assertEquals(3_000, seen);
    }

    @Test
    @DisplayName("Nothing is left of a stream that has ended, and closing ends all.")
    void leaves() {
        for (int number = 0; number < 1_000; number++) {
            Runnable release = open(number, "x");
            release.run();
            release.run();
        }
        assertEquals(Duration.ofDays(365), clock.untilNext());
        open(1, "one");
        sessions.close(down());
        open(1, "two");
        assertEquals(List.of("one undecided", "two undecided"), ended);
        assertEquals(Duration.ofDays(365), clock.untilNext());
    }
}
