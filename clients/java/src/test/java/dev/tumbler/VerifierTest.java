package dev.tumbler;

import static dev.tumbler.FakeServer.KEY;
import static dev.tumbler.FakeServer.NOW;
import static dev.tumbler.FakeServer.denied;
import static dev.tumbler.FakeServer.key;
import static dev.tumbler.FakeServer.next;
import static dev.tumbler.FakeServer.valid;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Timestamp;
import dev.tumbler.FakeServer.Stream;
import dev.tumbler.v1.BatchVerifyRequest;
import dev.tumbler.v1.VerifyCode;
import dev.tumbler.v1.VerifyRequest;
import dev.tumbler.v1.VerifyResponse;
import io.grpc.Context;
import io.grpc.Status;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import java.util.function.IntFunction;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Nested;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Tests of what docs/clients.md promises of a verifier. */
@Timeout(60)
class VerifierTest {
    private static final String ID = KeyFormat.peekId(KEY);
    private static final String OTHER = key("1111111111111111");
    private static final VerifyOptions READ = VerifyOptions.requireScopes("orders:read");
    private static final VerifyOptions WRITE = VerifyOptions.requireScopes("orders:write");

    private final FakeClock clock = new FakeClock();
    private FakeServer server;
    private Verifier verifier;

    @BeforeEach
    void serve() throws Exception {
        server = new FakeServer();
    }

    @AfterEach
    void end() {
        if (verifier != null) {
            verifier.close();
        }
        server.close();
    }

    private Verifier.Builder options() {
        return Verifier.builder(server.target()).apiKey("own-key").clock(clock).timeout(Duration.ofSeconds(20));
    }

    /** Creates the verifier, and waits until it has processed the stream's first heartbeat. */
    private Stream listening(Verifier.Builder options) {
        verifier = options.build();
        Stream stream = server.stream();
        stream.heartbeat("c1");
        handled("c1");
        return stream;
    }

    private Stream listening() {
        return listening(options());
    }

    private void handled(String cursor) {
        until(() -> verifier.cursor().equals(cursor));
    }

    private static void until(BooleanSupplier condition) {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
        while (!condition.getAsBoolean()) {
            assertTrue(System.nanoTime() < deadline, "what was waited for did not come");
            Thread.onSpinWait();
        }
    }

    /** Advances time until the stream is reopened. */
    private Stream reconnected() {
        until(() -> {
            Duration pause = clock.untilNext();
            if (pause.compareTo(Duration.ofSeconds(5)) <= 0) { // else it is the timer for a silent stream
                clock.pass(pause);
            }
            return !server.streams.isEmpty();
        });
        return server.stream();
    }

    private void assertAsked(int calls) {
        assertEquals(calls, server.verifies.size(), "calls");
        server.verifies.clear();
    }

    private static VerifyResponse.Builder scoped(String key, String scope) {
        return valid(key).addScopes(scope);
    }

    private static CompletableFuture<Verification> later(Verifier verifier, String key, VerifyOptions options) {
        return CompletableFuture.supplyAsync(() -> verifier.verify(key, options));
    }

    private static Throwable failure(CompletableFuture<?> future) {
        return assertThrows(ExecutionException.class, () -> future.get(20, TimeUnit.SECONDS)).getCause();
    }

    @Nested
    @DisplayName("What is remembered")
    class Remembering {
        @Test
        @DisplayName("A key is asked about once, and answered from memory afterwards.")
        void hit() {
            listening();
            server.answer(request -> scoped(request.getKey(), "orders:*")
                    .setEnvironmentId("live")
                    .setOwnerId("o1")
                    .setName("shop")
                    .putMetadata("tier", "gold")
                    .setExpireTime(Timestamp.newBuilder().setSeconds(NOW + 9).setNanos(5_000)));
            Verification first = verifier.verify(KEY);
            Verification second = verifier.verify(KEY);
            assertAsked(1);
            assertEquals(
                    new Verification(
                            Code.VALID, ID, "acme", "live", "o1", "shop", List.of("orders:*"),
                            Map.of("tier", "gold"), Optional.of(Instant.ofEpochSecond(NOW + 9, 5_000)), false),
                    first);
            assertFalse(first.cached());
            assertTrue(second.cached());
            assertEquals(first.keyId(), second.keyId());
            assertEquals(first.expireTime(), second.expireTime());
        }

        @Test
        @DisplayName("Records are remembered, never verdicts: scopes, environment and address are decided anew.")
        void anew() {
            listening();
            server.answer(request ->
                    scoped(request.getKey(), "orders:read").setEnvironmentId("live").addAllowedCidrs("192.0.2.0/24"));
            VerifyOptions inside = READ.withClientIp("192.0.2.7");
            assertEquals(Code.VALID, verifier.verify(KEY, inside).code());
            assertEquals(Code.INSUFFICIENT_SCOPE, verifier.verify(KEY, WRITE.withClientIp("192.0.2.7")).code());
            assertEquals(Code.IP_NOT_ALLOWED, verifier.verify(KEY, READ.withClientIp("198.51.100.1")).code());
            assertEquals(Code.ENVIRONMENT_MISMATCH, verifier.verify(KEY, inside.withEnvironment("test")).code());
            assertTrue(verifier.verify(KEY, inside).valid());
            assertAsked(1);
        }

        @Test
        @DisplayName("A denial that depends on the demand is remembered as a record, so that another demand may pass.")
        void deniedRecord() {
            listening();
            server.answer(request -> scoped(request.getKey(), "orders:read")
                    .setValid(false)
                    .setCode(VerifyCode.VERIFY_CODE_INSUFFICIENT_SCOPE));
            assertEquals(Code.INSUFFICIENT_SCOPE, verifier.verify(KEY, WRITE).code());
            assertTrue(verifier.verify(KEY, READ).valid());
            assertAsked(1);
        }

        @ParameterizedTest
        @EnumSource(names = {"REVOKED", "SUPERSEDED", "INACTIVE", "EXPIRED", "NOT_FOUND", "MALFORMED"})
        @DisplayName("A key that does not work is not remembered.")
        void notRemembered(Code code) {
            listening();
            VerifyCode told = VerifyCode.valueOf("VERIFY_CODE_" + code);
            server.answer(request -> code == Code.NOT_FOUND || code == Code.MALFORMED
                    ? denied(told)
                    : FakeServer.proven(request, told));
            assertEquals(code, verifier.verify(KEY).code());
            assertEquals(code, verifier.verify(KEY).code());
            assertAsked(2);
            assertEquals(0, verifier.remembered());
        }

        @Test
        @DisplayName("The wrong secret for a remembered id is not found, without a call, and the right one stays.")
        void wrongSecret() {
            listening();
            verifier.verify(KEY);
            Verification wrong = verifier.verify(key(ID, '1'));
            assertEquals(Code.NOT_FOUND, wrong.code());
            assertEquals("", wrong.keyId());
            assertTrue(verifier.verify(KEY).cached());
            assertAsked(1);
        }

        @ParameterizedTest
        @ValueSource(strings = {"", "no key", "tmb_0123456789abcdef_0000000000000000000000000000000000000000000000000"})
        @DisplayName("What is not of a key's form is malformed, without a call.")
        void malformed(String text) {
            listening();
            verifier.verify(KEY);
            assertEquals(Code.MALFORMED, verifier.verify(text).code());
            assertEquals(Code.MALFORMED, verifier.verify(KEY + KEY).code());
            assertAsked(1);
        }

        @Test
        @DisplayName("Expiry is noticed while a key is remembered, at the instant itself, by the server's clock.")
        void expiry() {
            listening();
            server.answer(
                    request -> valid(request.getKey()).setExpireTime(Timestamp.newBuilder().setSeconds(NOW + 10)));
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(10).minusNanos(1_000));
            assertTrue(verifier.verify(KEY).valid());
            clock.pass(Duration.ofNanos(1_000));
            assertEquals(Code.EXPIRED, verifier.verify(KEY).code());
            assertAsked(1);
        }

        @Test
        @DisplayName("The end of a grace period is noticed while a key is remembered.")
        void grace() {
            listening();
            server.answer(
                    request -> valid(request.getKey()).setGraceExpireTime(Timestamp.newBuilder().setSeconds(NOW + 10)));
            assertTrue(verifier.verify(KEY).valid());
            clock.pass(Duration.ofSeconds(10));
            assertEquals(Code.SUPERSEDED, verifier.verify(KEY).code());
            assertAsked(1);
        }

        @Test
        @DisplayName("A record is used for as long as it may be, counted from before the call was sent.")
        void ttl() {
            listening();
            server.answer(request -> {
                clock.pass(Duration.ofSeconds(2)); // the time that the call takes
                return valid(request.getKey()).setCacheTtl(com.google.protobuf.Duration.newBuilder().setSeconds(10));
            });
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(8).minusNanos(1));
            assertTrue(verifier.verify(KEY).cached());
            clock.pass(Duration.ofNanos(1));
            assertFalse(verifier.verify(KEY).cached());
            assertAsked(2);
        }

        @Test
        @DisplayName("An answer without a time to live is not remembered.")
        void withoutTtl() {
            listening();
            server.answer(request -> valid(request.getKey()).clearCacheTtl());
            verifier.verify(KEY);
            verifier.verify(KEY);
            assertAsked(2);
        }

        @ParameterizedTest
        @ValueSource(longs = {-1, -(1L << 62), Long.MIN_VALUE})
        @DisplayName("An answer with a negative time to live is not remembered.")
        void negativeTtl(long seconds) {
            listening();
            server.answer(request -> valid(request.getKey())
                    .setCacheTtl(com.google.protobuf.Duration.newBuilder().setSeconds(seconds).setNanos(-999_999_999)));
            assertTrue(verifier.verify(KEY).valid());
            assertTrue(verifier.verify(KEY).valid());
            assertAsked(2);
            assertEquals(0, verifier.remembered());
        }

        @Test
        @DisplayName("No more keys than allowed are remembered, and one that was used stays longer.")
        void eviction() {
            listening(options().cacheSize(3));
            List<String> keys = IntStream.range(0, 50).mapToObj(i -> key("%016d".formatted(i))).toList();
            verifier.verify(keys.get(0));
            for (String key : keys.subList(1, 50)) {
                assertFalse(verifier.verify(key).cached());
                assertTrue(verifier.verify(keys.get(0)).cached());
                assertTrue(verifier.remembered() <= 3);
            }
            assertTrue(verifier.verify(keys.get(49)).cached());
            assertFalse(verifier.verify(keys.get(25)).cached());
        }

        @Test
        @DisplayName("No more bytes than allowed are remembered, each record counted as it was received.")
        void evictionByBytes() {
            listening(options().cacheBytes(3 * (1_000 + 200 + Cache.ENTRY_BYTES)));
            server.answer(request -> valid(request.getKey()).setName("n".repeat(1_000)));
            List<String> keys = IntStream.range(0, 50).mapToObj(i -> key("%016d".formatted(i))).toList();
            keys.forEach(key -> {
                assertFalse(verifier.verify(key).cached());
                assertTrue(verifier.verify(key).cached());
                assertTrue(verifier.remembered() <= 3);
            });
            assertEquals(3, verifier.remembered());
            server.answer(request -> valid(request.getKey()).setName("n".repeat(10_000)));
            String large = key("large00000000000");
            assertFalse(verifier.verify(large).cached());
            assertFalse(verifier.verify(large).cached());
            assertEquals(3, verifier.remembered());
        }

        @Test
        @DisplayName("With a cache of no size every verification is a call, and nothing is listened to.")
        void noCache() {
            verifier = options().cacheSize(0).build();
            verifier.verify(KEY);
            verifier.verify(KEY);
            assertAsked(2);
            assertTrue(server.streams.isEmpty());
        }

        @Test
        @DisplayName("Without the stream nothing is remembered.")
        void watchOff() {
            verifier = options().watch(false).build();
            verifier.verify(KEY);
            assertFalse(verifier.verify(KEY).cached());
            assertAsked(2);
        }

        @Test
        @DisplayName("Without the stream, a fixed time to live is asked for by name, and is the bound.")
        void fixedTtl() {
            verifier = options().watch(false).fixedTtl(Duration.ofSeconds(30)).build();
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(30).minusNanos(1));
            assertTrue(verifier.verify(KEY).cached());
            clock.pass(Duration.ofNanos(1));
            assertFalse(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("A fixed time to live does not lengthen the server's.")
        void fixedTtlIsNoMore() {
            verifier = options().watch(false).fixedTtl(Duration.ofHours(1)).build();
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(60));
            assertFalse(verifier.verify(KEY).cached());
        }
    }

    @Nested
    @DisplayName("What the stream does")
    class Listening {
        @Test
        @DisplayName("Nothing is remembered before the stream's first word.")
        void beforeTheFirstWord() {
            verifier = options().build();
            server.stream();
            verifier.verify(KEY);
            assertFalse(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("An event makes it forget that key, and no other.")
        void event() {
            Stream stream = listening();
            verifier.verify(KEY);
            verifier.verify(OTHER);
            stream.changed("c2", ID, 2);
            handled("c2");
            server.answer(request -> FakeServer.proven(request, VerifyCode.VERIFY_CODE_REVOKED).setRevision(2));
            assertEquals(Code.REVOKED, verifier.verify(KEY).code());
            assertTrue(verifier.verify(OTHER).cached());
        }

        @Test
        @DisplayName("A reset makes it forget everything.")
        void reset() {
            Stream stream = listening();
            verifier.verify(KEY);
            verifier.verify(OTHER);
            stream.reset("c2");
            handled("c2");
            assertEquals(0, verifier.remembered());
            assertFalse(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("After a break it goes on from the newest cursor, and what was remembered is good again.")
        void reconnect() {
            Stream stream = listening();
            verifier.verify(KEY);
            verifier.verify(OTHER);
            stream.heartbeat("c2");
            handled("c2");
            stream.fail(Status.UNAVAILABLE);
            Stream second = reconnected();
            assertEquals("c2", second.request.getStartCursor());
            assertEquals(5, second.request.getHeartbeatInterval().getSeconds());
            second.changed("c3", ID, 2);
            second.heartbeat("c4");
            handled("c4");
            assertTrue(verifier.verify(OTHER).cached());
            server.answer(request -> valid(request.getKey()).setRevision(2));
            assertFalse(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("Once the last word is too old, calls are made again; a new word makes memory good again.")
        void stale() {
            Stream stream = listening();
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(10));
            assertTrue(verifier.verify(KEY).cached());
            stream.heartbeat("c2");
            handled("c2");
            clock.pass(Duration.ofSeconds(12));
            assertTrue(verifier.verify(KEY).cached());
            clock.pass(Duration.ofSeconds(3));
            assertFalse(verifier.verify(KEY).cached());
            Stream second = server.stream();
            second.heartbeat("c3", Duration.ofSeconds(2));
            handled("c3");
            assertTrue(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("Trust counts from the instant that a heartbeat is true of, not from its arrival.")
        void longOnItsWay() {
            Stream stream = listening(options().heartbeat(Duration.ofSeconds(10)));
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(10));
            stream.heartbeat("c2", Duration.ofSeconds(6));
            handled("c2");
            clock.pass(Duration.ofSeconds(11).minusNanos(1));
            assertTrue(verifier.verify(KEY).cached());
            clock.pass(Duration.ofNanos(1));
            assertFalse(verifier.verify(KEY).cached());
        }

        @ParameterizedTest
        @ValueSource(strings = {"old", "a pile", "undated", "of the future"})
        @DisplayName("Heartbeats that count for nothing restore no trust, and have another stream opened.")
        void tooLate(String which) {
            Stream stream = listening(options().heartbeat(Duration.ofSeconds(14)));
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(25));
            switch (which) {
                case "a pile" -> {
                    stream.heartbeat("c2", Duration.ofSeconds(1));
                    stream.heartbeat("c2", Duration.ofSeconds(10));
                }
                case "old" -> stream.heartbeat("c2", Duration.ofSeconds(10));
                case "undated" -> stream.heartbeat("c2");
                default -> stream.heartbeat("c2", Duration.ofSeconds(25).plusNanos(Cache.MAX_HEARTBEAT_LEAD + 1));
            }
            until(stream::cancelled);
            assertFalse(verifier.verify(KEY).cached());
            reconnected().heartbeat("c3", Duration.ZERO);
            handled("c3");
            assertTrue(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("A heartbeat that cannot have been sent yet shows that our clock stood still: nothing is trusted.")
        void ofTheFuture() {
            Stream stream = listening();
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(1));
            stream.heartbeat("c2", Duration.ofSeconds(1).plusNanos(Cache.MAX_HEARTBEAT_LEAD));
            handled("c2");
            assertTrue(verifier.verify(KEY).cached());
            stream.heartbeat("c3", Duration.ofSeconds(1).plusNanos(Cache.MAX_HEARTBEAT_LEAD + 1));
            until(stream::cancelled);
            assertFalse(verifier.verify(KEY).cached());
        }

        @ParameterizedTest
        @ValueSource(longs = {-1, 315_576_000_000L, 1L << 62, -(1L << 62), Long.MAX_VALUE, Long.MIN_VALUE})
        @DisplayName("A heartbeat of an age that cannot be ends trust and the stream, and overflows nothing.")
        void absurdAge(long seconds) {
            Stream stream = listening();
            verifier.verify(KEY);
            stream.heartbeat("c2", Duration.ofSeconds(seconds, 999_999_999));
            until(stream::cancelled);
            assertFalse(verifier.verify(KEY).cached());
            assertFalse(verifier.verify(KEY).cached());
            reconnected().heartbeat("c3", Duration.ZERO);
            handled("c3");
            assertTrue(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("A message without a cursor keeps the one that is known.")
        void withoutCursor() {
            Stream stream = listening();
            verifier.verify(KEY);
            stream.heartbeat("");
            stream.changed("", ID, 1);
            until(() -> verifier.remembered() == 0);
            stream.reset("");
            stream.fail(Status.UNAVAILABLE);
            assertEquals("c1", reconnected().request.getStartCursor());
        }

        @ParameterizedTest
        @ValueSource(strings = {"UNAVAILABLE", "UNAUTHENTICATED"})
        @DisplayName("A logger that throws changes nothing: the stream is opened anew, and what must go is forgotten.")
        void brokenLogger(String status) {
            Stream stream = listening(options().logger(new BrokenLogger()));
            verifier.verify(KEY);
            stream.fail(Status.fromCode(Status.Code.valueOf(status)));
            Stream second = reconnected();
            assertEquals(status.equals("UNAVAILABLE") ? 1 : 0, verifier.remembered());
            second.heartbeat("c2");
            handled("c2");
            verifier.verify(KEY);
            assertTrue(verifier.verify(KEY).cached());
            second.fail(Status.UNAVAILABLE);
            reconnected();
        }

        @ParameterizedTest
        @ValueSource(booleans = {true, false})
        @DisplayName("A denial with a code of a newer server denies, and the key is forgotten.")
        void unknownCode(boolean isDated) {
            listening(options().heartbeat(Duration.ofSeconds(14)));
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(15));
            server.answer(request -> {
                VerifyResponse.Builder answer = valid(request.getKey()).setValid(false).setCodeValue(99);
                return isDated ? answer : answer.clearCheckTime();
            });
            Verification denied = verifier.verify(KEY);
            assertEquals(Code.UNSPECIFIED, denied.code());
            assertFalse(denied.valid());
            assertEquals(isDated ? ID : "", denied.keyId());
            assertEquals(Optional.of(Guards.Refusal.KEY_REQUIRED), Guards.refusal(denied));
            assertEquals(0, verifier.remembered());
            assertEquals(Code.UNSPECIFIED, verifier.verify(KEY, READ).code());
            assertAsked(3);
            server.answer(request -> valid(OTHER).setValid(false).setCodeValue(99));
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
        }

        @ParameterizedTest
        @EnumSource(names = {"VALID", "INSUFFICIENT_SCOPE", "REVOKED"})
        @DisplayName("An answer that is older than an event of its key that was told before the call decides nothing.")
        void olderThanTold(Code code) {
            Stream stream = listening();
            stream.changed("c2", ID, 5);
            stream.changed("c3", ID, 3);
            handled("c3");
            VerifyCode told = VerifyCode.valueOf("VERIFY_CODE_" + code);
            server.answer(request -> FakeServer.proven(request, told).setRevision(4));
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY, READ));
            assertEquals(0, verifier.remembered());
            assertEquals(code, verifier.verify(OTHER, READ).code());
            server.answer(request -> FakeServer.proven(request, told).setRevision(5));
            assertEquals(code, verifier.verify(KEY, READ).code());
        }

        @Test
        @DisplayName("A reset makes it forget the revisions that were told.")
        void resetForgetsRevisions() {
            Stream stream = listening();
            stream.changed("c2", ID, 5);
            stream.reset("c3");
            stream.heartbeat("c4");
            handled("c4");
            assertTrue(verifier.verify(KEY).valid());
        }

        @Test
        @DisplayName("Once a cursor is refused, as after a restore of an older backup, the revisions told count no more.")
        void restoredRevisions() {
            Stream stream = listening();
            stream.changed("c2", ID, 5);
            handled("c2");
            server.answer(request -> {
                if (request.hasConsistency()) {
                    throw Status.INVALID_ARGUMENT.asRuntimeException();
                }
                return valid(request.getKey());
            });
            assertTrue(verifier.verify(KEY).valid());
            assertEquals("", verifier.cursor());
        }

        @Test
        @DisplayName("A stream is opened anew as soon as trust would lapse between two of its heartbeats.")
        void wouldNotLast() {
            Stream stream = listening(options().heartbeat(Duration.ofSeconds(6)));
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(10));
            stream.heartbeat("c2", Duration.ofSeconds(1));
            handled("c2");
            stream.heartbeat("c3", Duration.ofMillis(999));
            until(stream::cancelled);
            assertTrue(verifier.verify(KEY).cached());
        }

        @ParameterizedTest
        @EnumSource(names = {"REVOKED", "INACTIVE", "EXPIRED", "NOT_FOUND"})
        @DisplayName("Once the server has denied a key, memory never says otherwise, whatever the stream tells.")
        void denied(Code code) {
            listening(options().heartbeat(Duration.ofSeconds(14)));
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(15));
            VerifyCode told = VerifyCode.valueOf("VERIFY_CODE_" + code);
            server.answer(request -> FakeServer.proven(request, told));
            assertEquals(code, verifier.verify(KEY).code());
            assertEquals(0, verifier.remembered());
        }

        @Test
        @DisplayName("A wrong secret for a remembered key's id, which the server does not find, costs it nothing.")
        void wrongSecretWhileStale() {
            listening(options().heartbeat(Duration.ofSeconds(14)));
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(15));
            server.answer(request -> FakeServer.denied(VerifyCode.VERIFY_CODE_NOT_FOUND));
            assertEquals(Code.NOT_FOUND, verifier.verify(FakeServer.key(ID, '7')).code());
            assertEquals(1, verifier.remembered());
        }

        @Test
        @DisplayName("Events are no word that all was told: they do not lengthen the trust in what is remembered.")
        void eventsAreNoWord() {
            Stream stream = listening();
            verifier.verify(KEY);
            clock.pass(Duration.ofSeconds(12));
            stream.changed("c2", "2222222222222222", 2);
            handled("c2");
            clock.pass(Duration.ofSeconds(3));
            assertFalse(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("A stream that says nothing for two and a half heartbeats is opened anew, over another connection.")
        void silence() {
            Stream stream = listening();
            clock.pass(Duration.ofMillis(12_499));
            assertTrue(server.streams.isEmpty());
            clock.pass(Duration.ofMillis(1));
            Stream second = reconnected();
            assertEquals("c1", second.request.getStartCursor());
            assertNotEquals(stream.peer, second.peer);
            until(stream::cancelled);
        }

        @Test
        @DisplayName("Attempts to listen are repeated after pauses that grow to five seconds.")
        void backoff() {
            verifier = options().build();
            for (int i = 0; i < 12; i++) {
                server.stream().fail(Status.UNAVAILABLE);
                Duration most = Duration.ofMillis(Math.min(5_000, 100L << i));
                until(() -> clock.untilNext().compareTo(most) <= 0);
                clock.pass(clock.untilNext());
            }
            server.stream().heartbeat("c1");
            handled("c1");
        }

        @ParameterizedTest
        @ValueSource(strings = {"UNAUTHENTICATED", "PERMISSION_DENIED"})
        @DisplayName("Once its own key is refused, everything is forgotten at once, and it tries again after 5 s.")
        void refused(String status) {
            Stream stream = listening();
            verifier.verify(KEY);
            stream.fail(Status.fromCode(Status.Code.valueOf(status)));
            until(() -> verifier.remembered() == 0);
            until(() -> clock.untilNext().compareTo(Duration.ofSeconds(5)) <= 0);
            assertEquals(Duration.ofSeconds(5), clock.untilNext());
            verifier.verify(KEY);
            assertFalse(verifier.verify(KEY).cached());
            clock.pass(Duration.ofSeconds(5));
            Stream second = server.stream();
            assertEquals("c1", second.request.getStartCursor());
            second.heartbeat("c2");
            handled("c2");
            verifier.verify(KEY);
            assertTrue(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("A cursor that the server does not know is dropped, and everything forgotten with it.")
        void cursorRefused() {
            Stream stream = listening();
            verifier.verify(KEY);
            stream.fail(Status.UNAVAILABLE);
            reconnected().fail(Status.INVALID_ARGUMENT);
            until(() -> verifier.cursor().isEmpty());
            assertEquals(0, verifier.remembered());
            assertFalse(verifier.verify(KEY).cached());
            assertFalse(verifier.verify(KEY).cached());
            Stream third = reconnected();
            assertEquals("", third.request.getStartCursor());
            third.heartbeat("c9");
            handled("c9");
            verifier.verify(KEY);
            assertTrue(verifier.verify(KEY).cached());
        }

        @Test
        @DisplayName("Each call asks for what the stream has told, and carries the verifier's own key.")
        void cursorAndKey() {
            listening();
            verifier.verify(KEY, READ.withClientIp("192.0.2.7").withEnvironment("live"));
            VerifyRequest request = next(server.verifies);
            assertEquals("c1", request.getConsistency().getAtLeastAsFresh());
            assertEquals(List.of("orders:read"), request.getRequiredScopesList());
            assertEquals("192.0.2.7", request.getClientIp());
            assertEquals("live", request.getEnvironmentId());
            assertEquals("Bearer own-key", next(server.authorizations));
            assertEquals("Bearer own-key", next(server.authorizations));
        }

        @Test
        @DisplayName("A cursor that a call is refused for is dropped, and the call made without it.")
        void cursorDoubted() {
            listening();
            verifier.verify(OTHER);
            server.answer(request -> {
                if (request.hasConsistency()) {
                    throw Status.INVALID_ARGUMENT.asRuntimeException();
                }
                return valid(request.getKey());
            });
            assertTrue(verifier.verify(KEY).valid());
            assertEquals(0, verifier.remembered());
            assertEquals("", verifier.cursor());
        }

        @Test
        @DisplayName("A cursor that a call is refused for changes nothing if the stream has moved on meanwhile.")
        void oldCursorDoubted() throws Exception {
            Stream stream = listening();
            verifier.verify(OTHER);
            next(server.verifies);
            server.answer(request -> {
                if (request.hasConsistency()) {
                    throw Status.INVALID_ARGUMENT.asRuntimeException();
                }
                return valid(request.getKey());
            });
            CountDownLatch gate = server.hold();
            CompletableFuture<Verification> caller = later(verifier, KEY, VerifyOptions.NONE);
            next(server.verifies);
            stream.heartbeat("c2");
            handled("c2");
            gate.countDown();
            assertTrue(caller.get().valid());
            assertEquals("c2", verifier.cursor());
            assertTrue(verifier.verify(OTHER).cached());
            // The answer may be older than what the stream had delivered: its call named no cursor.
            assertEquals(1, verifier.remembered());
        }
    }

    @Nested
    @DisplayName("An answer that was under way")
    class UnderWay {
        private CompletableFuture<Verification> asked;
        private CountDownLatch gate;

        private Stream asking() {
            Stream stream = listening();
            gate = server.hold();
            asked = later(verifier, KEY, VerifyOptions.NONE);
            next(server.verifies);
            return stream;
        }

        private void assertRemembered(boolean expected) throws Exception {
            gate.countDown();
            assertTrue(asked.get().valid());
            assertEquals(expected ? 1 : 0, verifier.remembered());
        }

        @Test
        @DisplayName("is not remembered where it is older than an event of its key.")
        void olderThanAnEvent() throws Exception {
            Stream stream = asking();
            stream.changed("c2", ID, 2);
            handled("c2");
            assertRemembered(false);
        }

        @Test
        @DisplayName("decides nothing where it is older than an event that was told before, though another came since.")
        void olderThanBothEvents() {
            Stream stream = listening();
            stream.changed("c2", ID, 5);
            handled("c2");
            gate = server.hold();
            asked = later(verifier, KEY, VerifyOptions.NONE);
            next(server.verifies);
            stream.changed("c3", ID, 9);
            handled("c3");
            gate.countDown();
            assertInstanceOf(UnavailableException.class, failure(asked));
        }

        @ParameterizedTest
        @ValueSource(longs = {0, 1})
        @DisplayName("decides nothing where its call was sent longer than maxStaleness ago, and is not remembered.")
        void tooOld(long nanos) throws Exception {
            Stream stream = asking();
            CompletableFuture<Verification> joined = verifier.verifyAsync(KEY, READ);
            clock.pass(Duration.ofSeconds(10));
            stream.heartbeat("c2");
            handled("c2");
            clock.pass(Duration.ofSeconds(5).plusNanos(nanos));
            if (nanos == 0) {
                assertRemembered(true);
                assertEquals(Code.INSUFFICIENT_SCOPE, joined.get().code());
            } else {
                gate.countDown();
                assertEquals("the server's answer is too old", failure(asked).getMessage());
                assertEquals("the server's answer is too old", failure(joined).getMessage());
                assertEquals(0, verifier.remembered());
            }
        }

        @ParameterizedTest
        @EnumSource(names = {"VALID", "REVOKED"})
        @DisplayName("decides nothing then without a stream either.")
        void tooOldWithoutStream(Code code) {
            verifier = options().watch(false).build();
            server.answer(request -> {
                clock.pass(Duration.ofSeconds(15).plusNanos(1));
                return FakeServer.proven(request, VerifyCode.valueOf("VERIFY_CODE_" + code));
            });
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
        }

        @Test
        @DisplayName("is remembered where it reflects the event.")
        void newerThanAnEvent() throws Exception {
            server.answer(request -> valid(request.getKey()).setRevision(2));
            Stream stream = asking();
            stream.changed("c2", ID, 2);
            handled("c2");
            assertRemembered(true);
        }

        @Test
        @DisplayName("is remembered where another key changed.")
        void anotherKey() throws Exception {
            Stream stream = asking();
            stream.changed("c2", "2222222222222222", 2);
            handled("c2");
            assertRemembered(true);
        }

        @Test
        @DisplayName("is not remembered where more keys have changed since than are kept.")
        void tooManyChanges() throws Exception {
            Stream stream = asking();
            for (int i = 0; i <= Cache.MAX_CHANGES; i++) {
                stream.changed("c" + (i + 2), "%016d".formatted(i), i + 2);
            }
            handled("c" + (Cache.MAX_CHANGES + 2));
            assertRemembered(false);
        }

        @Test
        @DisplayName("is not remembered where the stream was reset, though it goes on.")
        void reset() throws Exception {
            Stream stream = asking();
            stream.reset("c2");
            stream.heartbeat("c3");
            handled("c3");
            assertRemembered(false);
        }

        @Test
        @DisplayName("is not remembered where the stream has begun only since: what came between was never told.")
        void beforeTheStream() throws Exception {
            verifier = options().build();
            Stream stream = server.stream();
            gate = server.hold();
            asked = later(verifier, KEY, VerifyOptions.NONE);
            next(server.verifies);
            stream.heartbeat("c1");
            handled("c1");
            assertRemembered(false);
        }

        @Test
        @DisplayName("is not told to who comes after a change of the key.")
        void notShared() throws Exception {
            Stream stream = asking();
            server.answer(request -> FakeServer.proven(request, VerifyCode.VERIFY_CODE_REVOKED).setRevision(2));
            stream.changed("c2", ID, 2);
            handled("c2");
            CompletableFuture<Verification> after = later(verifier, KEY, VerifyOptions.NONE);
            next(server.verifies);
            gate.countDown();
            assertTrue(asked.get().valid());
            assertEquals(Code.REVOKED, after.get().code());
        }
    }

    @Nested
    @DisplayName("Callers at the same time")
    class Together {
        private final List<CompletableFuture<Verification>> callers = new ArrayList<>();

        private void call(String key, VerifyOptions options) {
            callers.add(verifier.verifyAsync(key, options));
        }

        @Test
        @DisplayName("share the call for a key, and those with other demands decide on the record that it brings.")
        void sharing() throws Exception {
            listening();
            server.answer(request -> scoped(request.getKey(), "orders:read"));
            CountDownLatch gate = server.hold();
            call(KEY, READ);
            next(server.verifies);
            IntStream.range(0, 63).forEach(i -> call(KEY, i % 2 == 0 ? READ : WRITE));
            gate.countDown();
            for (int i = 0; i < 64; i++) {
                Code expected = i == 0 || i % 2 == 1 ? Code.VALID : Code.INSUFFICIENT_SCOPE;
                assertEquals(expected, callers.get(i).get().code());
                assertFalse(callers.get(i).get().cached());
            }
            assertAsked(0);
        }

        @Test
        @DisplayName("do not share a call that was sent, where no stream says that nothing has changed.")
        void notSharing() throws Exception {
            verifier = options().watch(false).build();
            CountDownLatch gate = server.hold();
            call(KEY, READ);
            next(server.verifies);
            call(KEY, READ);
            next(server.verifies);
            gate.countDown();
            callers.get(1).get();
        }

        @Test
        @DisplayName("are not told of what was wrong with another's demands.")
        void anothersMistake() throws Exception {
            listening();
            server.answer(request -> {
                if (request.getClientIp().equals("nowhere")) {
                    throw Status.INVALID_ARGUMENT.withDescription("client_ip").asRuntimeException();
                }
                return valid(request.getKey());
            });
            CountDownLatch gate = server.hold();
            call(KEY, VerifyOptions.NONE.withClientIp("nowhere"));
            next(server.verifies);
            call(KEY, VerifyOptions.NONE);
            gate.countDown();
            assertInstanceOf(InvalidRequestException.class, failure(callers.get(0)));
            assertTrue(callers.get(1).get().valid());
        }

        @Test
        @DisplayName("have at most four calls under way; what comes meanwhile goes out together, 500 at a time.")
        void batching() throws Exception {
            listening();
            CountDownLatch gate = server.hold();
            IntStream.range(0, 604).forEach(i -> call(key("%016d".formatted(i)), VerifyOptions.NONE));
            for (int i = 0; i < 4; i++) {
                next(server.verifies);
            }
            assertTrue(server.batches.isEmpty());
            gate.countDown();
            for (int i = 0; i < 604; i++) {
                assertEquals("%016d".formatted(i), callers.get(i).get().keyId());
            }
            int first = next(server.batches).getRequestsCount();
            int second = next(server.batches).getRequestsCount();
            assertEquals(List.of(100, 500), IntStream.of(first, second).sorted().boxed().toList());
            assertAsked(0);
            assertEquals(604, verifier.remembered());
        }

        @Test
        @DisplayName("get an answer though a batch left theirs undecided: it is asked for again, alone.")
        void undecided() throws Exception {
            listening();
            String odd = key("%016d".formatted(5));
            AtomicInteger asked = new AtomicInteger();
            server.answer(request -> request.getKey().equals(odd) && asked.incrementAndGet() == 1
                    ? VerifyResponse.newBuilder()
                    : valid(request.getKey()));
            CountDownLatch gate = server.hold();
            IntStream.range(0, 8).forEach(i -> call(key("%016d".formatted(i)), VerifyOptions.NONE));
            for (int i = 0; i < 4; i++) {
                next(server.verifies);
            }
            gate.countDown();
            for (CompletableFuture<Verification> caller : callers) {
                assertTrue(caller.get().valid());
            }
            assertEquals(4, next(server.batches).getRequestsCount());
            assertEquals(odd, next(server.verifies).getKey());
        }

        /** Queues keys for one batch, lets it go, and returns the sizes of the batches that the server received. */
        private List<Integer> gathered(int keys, IntFunction<VerifyOptions> demand) {
            CountDownLatch gate = server.hold();
            IntStream.range(0, 4).forEach(i -> call(key("filler%010d".formatted(i)), VerifyOptions.NONE));
            for (int i = 0; i < 4; i++) {
                next(server.verifies);
            }
            IntStream.range(0, keys).forEach(i -> call(key("%016d".formatted(i)), demand.apply(i)));
            gate.countDown();
            callers.forEach(caller -> caller.exceptionally(failure -> null).join());
            return server.batches.stream().map(BatchVerifyRequest::getRequestsCount).toList();
        }

        @ParameterizedTest
        @EnumSource(
                value = Status.Code.class,
                names = {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "UNIMPLEMENTED"})
        @DisplayName("do not fail with a batch: it is halved, again and again, and only the key at fault fails.")
        void halving(Status.Code code) throws Exception {
            verifier = options().watch(false).build();
            String bad = key("%016d".formatted(37));
            server.refuse(batch -> {
                if (batch.getRequestsList().stream().anyMatch(item -> item.getKey().equals(bad))) {
                    throw code.toStatus().asRuntimeException();
                }
            });
            server.answer(request -> {
                if (request.getKey().equals(bad)) {
                    throw code.toStatus().asRuntimeException();
                }
                return valid(request.getKey());
            });
            List<Integer> sizes = gathered(100, i -> VerifyOptions.NONE);
            assertEquals(100, sizes.get(0));
            assertEquals(2, Collections.frequency(sizes, 50), sizes.toString()); // smaller ones may come in between
            assertTrue(sizes.size() <= 13, sizes.toString());
            for (int i = 0; i < 100; i++) {
                if (i == 37) {
                    failure(callers.get(4 + i));
                } else {
                    assertTrue(callers.get(4 + i).get().valid());
                }
            }
        }

        @ParameterizedTest
        @EnumSource(value = Status.Code.class, names = {"DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED"})
        @DisplayName("fail with a batch that its halves would fail with too.")
        void notHalved(Status.Code code) {
            verifier = options().watch(false).build();
            server.refuse(batch -> {
                throw code.toStatus().asRuntimeException();
            });
            assertEquals(List.of(100), gathered(100, i -> VerifyOptions.NONE));
            callers.subList(4, 104).forEach(caller -> assertTrue(caller.isCompletedExceptionally()));
        }

        @ParameterizedTest
        @ValueSource(ints = {0, 9, 11})
        @DisplayName("fail with a batch that has another number of answers, and it is not sent again.")
        void anotherLength(int answers) {
            verifier = options().watch(false).build();
            server.shape(all -> IntStream.range(0, answers)
                    .mapToObj(i -> all.get(Math.min(i, all.size() - 1)))
                    .toList());
            assertEquals(List.of(10), gathered(10, i -> VerifyOptions.NONE));
            callers.subList(4, 14)
                    .forEach(caller -> assertInstanceOf(UnavailableException.class, failure(caller)));
            assertTrue(server.verifies.isEmpty());
        }

        @Test
        @DisplayName("get an exception of their own each, though they share a batch, or a call.")
        void ownExceptions() {
            verifier = options().watch(false).build();
            server.refuse(batch -> {
                throw Status.PERMISSION_DENIED.asRuntimeException();
            });
            gathered(10, i -> i % 2 == 0 ? READ : WRITE);
            CountDownLatch gate = server.hold();
            server.answer(request -> {
                throw Status.PERMISSION_DENIED.asRuntimeException();
            });
            IntStream.range(0, 10).forEach(i -> call(KEY, i % 2 == 0 ? READ : WRITE));
            gate.countDown();
            Set<Throwable> different = Collections.newSetFromMap(new IdentityHashMap<>());
            callers.subList(4, 24).forEach(caller -> different.add(failure(caller)));
            assertEquals(20, different.size());
            different.forEach(failure -> assertInstanceOf(NotAllowedException.class, failure));
        }

        @Test
        @DisplayName("are asked for again, in smaller batches, where the answer had no room for theirs.")
        void noRoom() throws Exception {
            verifier = options().watch(false).build();
            ThreadLocal<AtomicInteger> room = ThreadLocal.withInitial(() -> new AtomicInteger(4));
            server.refuse(batch -> room.get().set(30));
            server.answer(request ->
                    room.get().getAndDecrement() > 0 ? valid(request.getKey()) : VerifyResponse.newBuilder());
            List<Integer> sizes = new ArrayList<>(gathered(100, i -> VerifyOptions.NONE));
            sizes.sort(Comparator.reverseOrder());
            assertEquals(List.of(100, 50, 20, 20), sizes);
            for (CompletableFuture<Verification> caller : callers) {
                assertTrue(caller.get().valid());
            }
        }

        @Test
        @DisplayName("go out together as far as their requests have no more than 256 KiB.")
        void batchBytes() {
            verifier = options().watch(false).build();
            List<Integer> sizes = gathered(
                    21, i -> VerifyOptions.requireScopes("s".repeat(i == 20 ? 300_000 : 40_000)));
            assertEquals(Set.of(6, 2), Set.copyOf(sizes));
            server.batches.forEach(batch -> assertTrue(batch.getSerializedSize() <= Batcher.MAX_BATCH_BYTES));
        }

        @Test
        @DisplayName("get answers of up to 16 MiB.")
        void largeAnswers() {
            verifier = options().watch(false).timeout(Duration.ofSeconds(20)).build();
            server.answer(request -> valid(request.getKey()).setName("n".repeat(15 << 20)));
            assertTrue(verifier.verify(KEY).valid());
            server.answer(request -> valid(request.getKey()).setName("n".repeat(17 << 20)));
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
        }

        @Test
        @DisplayName("do not end one another's call: that of a server call that is cancelled goes on for the others.")
        void cancelledContext() throws Exception {
            listening();
            CountDownLatch gate = server.hold();
            try (Context.CancellableContext context = Context.current().withCancellation()) {
                context.run(() -> call(KEY, READ));
                next(server.verifies);
                call(KEY, READ);
            }
            gate.countDown();
            callers.get(1).get();
            assertAsked(0);
        }
    }

    @Nested
    @DisplayName("What can go wrong")
    class Failing {
        @ParameterizedTest
        @EnumSource(
                value = Status.Code.class,
                names = {"UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL"})
        @DisplayName("A call that fails is an error by its kind, never a verdict.")
        void statuses(Status.Code status) {
            listening();
            server.answer(request -> {
                throw Status.fromCode(status).withDescription("why").asRuntimeException();
            });
            Class<? extends TumblerException> kind = switch (status) {
                case UNAUTHENTICATED, PERMISSION_DENIED -> NotAllowedException.class;
                case INVALID_ARGUMENT -> InvalidRequestException.class;
                default -> UnavailableException.class;
            };
            TumblerException failure = assertThrows(kind, () -> verifier.verify(KEY));
            assertTrue(failure.getMessage().contains("why"));
            assertFalse(failure.toString().contains(KEY));
        }

        @Test
        @DisplayName("A server that is away is unavailable once what is remembered is too old, and no sooner.")
        void away() throws Exception {
            listening();
            verifier.verify(KEY);
            int port = server.port();
            server.close();
            assertTrue(verifier.verify(KEY).valid());
            clock.pass(Duration.ofSeconds(15));
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
            server = new FakeServer(port);
            assertEquals("c1", reconnected().request.getStartCursor());
            assertTrue(verifier.verify(KEY).valid());
        }

        @Test
        @DisplayName("A call that does not get through is repeated twice.")
        void retries() {
            listening();
            server.answer(request -> {
                if (server.verifies.size() < 3) {
                    throw Status.UNAVAILABLE.asRuntimeException();
                }
                return valid(request.getKey());
            });
            assertTrue(verifier.verify(KEY).valid());
            assertAsked(3);
        }

        @Test
        @DisplayName("A caller waits no longer than the timeout.")
        void deadline() {
            listening(options().timeout(Duration.ofMillis(50)));
            server.hold();
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
        }

        @Test
        @DisplayName("An interrupted caller stops waiting, and stays interrupted.")
        void interrupted() {
            listening();
            server.hold();
            Thread.currentThread().interrupt();
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
            assertTrue(Thread.interrupted());
        }

        @Test
        @DisplayName("An answer that contradicts itself, or is about another key, or about no instant, is none.")
        void contradictions() {
            listening();
            List<VerifyResponse.Builder> odd = List.of(
                    VerifyResponse.newBuilder(),
                    valid(KEY).setValid(false),
                    valid(KEY).setCode(VerifyCode.VERIFY_CODE_REVOKED),
                    valid(KEY).setCodeValue(99),
                    valid(OTHER),
                    valid(KEY).clearCheckTime());
            for (VerifyResponse.Builder answer : odd) {
                server.answer(request -> answer);
                assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
            }
        }

        @ParameterizedTest
        @EnumSource(names = {"NOT_FOUND", "MALFORMED"})
        @DisplayName("The check time of an answer that proves no key is not looked at.")
        void unprovenTime(Code code) {
            listening();
            server.answer(request -> denied(VerifyCode.valueOf("VERIFY_CODE_" + code))
                    .setCheckTime(Timestamp.newBuilder().setSeconds(1L << 62)));
            assertEquals(code, verifier.verify(KEY).code());
        }

        @Test
        @DisplayName("A network that is not written as one contains no address, and does not spoil the answer.")
        void oddNetwork() {
            listening();
            server.answer(request -> valid(request.getKey()).addAllowedCidrs("junk").addAllowedCidrs("192.0.2.0/24"));
            assertTrue(verifier.verify(KEY, VerifyOptions.NONE.withClientIp("192.0.2.1")).valid());
            assertEquals(Code.IP_NOT_ALLOWED, verifier.verify(KEY, VerifyOptions.NONE.withClientIp("198.51.100.1")).code());
        }

        @Test
        @DisplayName("A closed verifier is unavailable, though it remembers; and closing it again changes nothing.")
        void closed() {
            listening();
            verifier.verify(KEY);
            verifier.close();
            verifier.close();
            assertThrows(UnavailableException.class, () -> verifier.verify(KEY));
            assertInstanceOf(UnavailableException.class, failure(verifier.verifyAsync(KEY, READ)));
        }

        @Test
        @DisplayName("Closing ends the stream, and those who wait, also in line.")
        void closing() {
            Stream stream = listening();
            server.hold();
            List<CompletableFuture<Verification>> callers = IntStream.range(0, 6)
                    .mapToObj(i -> verifier.verifyAsync(key("%016d".formatted(i)), READ))
                    .toList();
            next(server.verifies);
            verifier.close();
            callers.forEach(caller -> assertEquals("the verifier is closed", failure(caller).getMessage()));
            until(stream::cancelled);
        }
    }

    @Nested
    @DisplayName("Options")
    class Options {
        @Test
        @DisplayName("that break a rule are refused, by name, and no message shows the key.")
        void rules() {
            Map<String, Verifier.Builder> broken = Map.of(
                    "apiKey", Verifier.builder("localhost:1"),
                    "apiKey: must", options().apiKey("own\nkey"),
                    "credentials", Verifier.builder("keys.example:1").apiKey("own-key"),
                    "cacheSize", options().cacheSize(-1),
                    "maxStaleness", options().maxStaleness(Duration.ZERO),
                    "heartbeat: must be 1 s", options().heartbeat(Duration.ofMillis(999)),
                    "maxStaleness: must be longer than heartbeat", options().maxStaleness(Duration.ofSeconds(5)),
                    "timeout", options().timeout(Duration.ofSeconds(-1)),
                    "fixedTtl", options().fixedTtl(Duration.ofSeconds(1)),
                    "fixedTtl: must be more", options().watch(false).fixedTtl(Duration.ZERO));
            broken = new HashMap<>(broken); // Map.of takes ten pairs
            broken.put("cacheBytes", options().cacheBytes(-1));
            broken.forEach((rule, builder) -> {
                String message = assertThrows(IllegalArgumentException.class, builder::build).getMessage();
                assertTrue(message.startsWith(rule), message);
                assertFalse(message.contains("own"), message);
            });
        }

        @Test
        @DisplayName("A target may list servers; one that is not there costs nothing.")
        void listed() {
            for (String target : List.of("ipv4:" + server.target() + ",127.0.0.1:1", "ipv4:127.0.0.1:1," + server.target())) {
                try (Verifier listed = Verifier.builder(target).apiKey("own-key").watch(false).timeout(Duration.ofSeconds(20)).build()) {
                    for (int i = 0; i < 4; i++) {
                        assertTrue(listed.verify(KEY).valid());
                    }
                }
            }
        }

        @Test
        @DisplayName("Plaintext to another machine is possible where it is said to be wanted.")
        void insecure() {
            Verifier.builder("keys.example:1").apiKey("own-key").insecure().build().close();
        }

        @ParameterizedTest
        @ValueSource(
                strings = {
                    "localhost:1", "LOCALHOST", "127.0.0.1:1", "127.9.9.9", "[::1]:1", "::1", "unix:///tmp/x",
                    "dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1"
                })
        @DisplayName("This machine is where plaintext may go.")
        void loopback(String target) {
            assertTrue(Target.isLoopback(target));
        }

        @ParameterizedTest
        @ValueSource(
                strings = {
                    "keys.example:1", "192.0.2.1:1", "[2001:db8::1]:1", "localhost.example",
                    "dns://192.0.2.1/localhost",
                    "ipv4:127.0.0.1:1,192.0.2.1:1", "", "127.0.0.1.example:1", "xds:///localhost", "0.0.0.0:1", "[::]:1"
                })
        @DisplayName("All other targets are elsewhere, or in doubt.")
        void elsewhere(String target) {
            assertFalse(Target.isLoopback(target));
        }

        @Test
        @DisplayName("Printing what is at hand shows no key.")
        void printing() {
            listening();
            Verification told = verifier.verify(KEY);
            for (Object thing : List.of(verifier, options(), told, READ, KeyFormat.parse(KEY))) {
                assertFalse(thing.toString().contains("own-key"), thing.toString());
                assertFalse(thing.toString().contains(KEY.substring(22)), thing.toString());
            }
        }
    }
}
