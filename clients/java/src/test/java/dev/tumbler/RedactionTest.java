package dev.tumbler;

import static dev.tumbler.FakeServer.key;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonObject;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.charset.StandardCharsets;
import java.text.MessageFormat;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Queue;
import java.util.ResourceBundle;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.logging.SimpleFormatter;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Keys that a server quotes, or a proxy before it: no exception, no log line and no answer of a guard shows them. */
@Timeout(60)
class RedactionTest {
    private static final String OWN = key("7777777777777777", '7');
    private static final List<String> KEYS = IntStream.range(0, 7)
            .mapToObj(number -> key("012345678901234" + number))
            .toList();
    private static final Metadata.Key<String> HEADER = Metadata.Key.of("x-seen", Metadata.ASCII_STRING_MARSHALLER);
    private static final Metadata.Key<byte[]> DETAILS =
            Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

    private final Logger guards = Logger.getLogger("dev.tumbler.guards");
    private final Log log = new Log();
    private FakeServer server;

    @BeforeEach
    void serve() throws Exception {
        server = new FakeServer();
        guards.addHandler(log);
        guards.setLevel(Level.ALL);
    }

    @AfterEach
    void end() {
        server.close();
        guards.removeHandler(log);
        guards.setLevel(null);
    }

    /** The statuses that a server may answer with, and the exceptions that they become. */
    private enum Answered {
        UNAVAILABLE(UnavailableException.class),
        INTERNAL(UnavailableException.class),
        UNAUTHENTICATED(NotAllowedException.class),
        PERMISSION_DENIED(NotAllowedException.class),
        INVALID_ARGUMENT(InvalidRequestException.class);

        final Class<? extends TumblerException> kind;

        Answered(Class<? extends TumblerException> kind) {
            this.kind = kind;
        }

        /** Returns a status that quotes all keys, in its text and in its trailers. */
        StatusRuntimeException quoting() {
            Metadata trailers = new Metadata();
            trailers.put(HEADER, "Bearer " + KEYS.get(0));
            trailers.put(DETAILS, ("header: " + KEYS.get(0)).getBytes(StandardCharsets.US_ASCII));
            return Status.fromCode(Status.Code.valueOf(name()))
                    .withDescription("no: authorization=Bearer " + OWN + ", keys: " + String.join(",", KEYS))
                    .asRuntimeException(trailers);
        }
    }

    private Verifier verifier(boolean watch) {
        return Verifier.builder(server.target())
                .apiKey(OWN)
                .watch(watch)
                .timeout(Duration.ofSeconds(20))
                .logger(log)
                .build();
    }

    private static void check(String shown) {
        assertTrue(shown.contains("<key>"), shown);
        assertUnseen(shown);
    }

    private static void assertUnseen(String shown) {
        assertFalse(shown.contains("0".repeat(20)), shown);
        assertFalse(shown.contains("7".repeat(20)), shown);
    }

    /** Checks an exception, with all causes and trailers. */
    private static void check(Throwable failure) {
        check(Redaction.trace(failure));
        for (Throwable each = failure; each != null; each = each.getCause()) {
            Metadata trailers = Status.trailersFromThrowable(each);
            assertTrue(trailers == null || (!trailers.containsKey(HEADER) && !trailers.containsKey(DETAILS)));
        }
    }

    @TestFactory
    @DisplayName("No text shows its key.")
    Stream<DynamicTest> vectors() throws Exception {
        return Vectors.of("redaction.json")
                .map(vector -> DynamicTest.dynamicTest(vector.get("name").getAsString(), () -> {
                    String expected = expected(vector);
                    assertEquals(expected, Redaction.redact(vector.get("text").getAsString()));
                    assertEquals(expected, Redaction.redact(expected));
                }));
    }

    private static String expected(JsonObject vector) {
        return vector.get(vector.has("redacted") ? "redacted" : "text").getAsString();
    }

    @Test
    @DisplayName("The time for a text grows with its length.")
    void linear() {
        assertTimeoutPreemptively(Duration.ofSeconds(20), () -> {
            for (String part : List.of("a", "a_", "0123456789abcdef_", "aaaaaaaaaaaaaaaa_bbbbbbbbbbbbbbb_")) {
                assertFalse(Redaction.redact(part.repeat(300_000 / part.length())).isEmpty());
            }
        });
    }

    @ParameterizedTest
    @EnumSource
    @DisplayName("Verify: what the server quotes is not shown.")
    void verify(Answered answered) {
        server.answer(request -> {
            throw answered.quoting();
        });
        try (Verifier verifier = verifier(false)) {
            TumblerException failure = assertThrows(answered.kind, () -> verifier.verify(KEYS.get(0)));
            check(failure);
            check(failure.getMessage());
            assertEquals(answered.name(), Status.fromThrowable(failure).getCode().name());
        }
        assertUnseen(log.text());
    }

    @ParameterizedTest
    @EnumSource
    @DisplayName("BatchVerify: what the server quotes is not shown.")
    void batch(Answered answered) throws Exception {
        CountDownLatch held = server.hold();
        try (Verifier verifier = verifier(false)) {
            for (String key : KEYS.subList(0, 4)) {
                var unused = verifier.verifyAsync(key, VerifyOptions.NONE);
            }
            for (int i = 0; i < 4; i++) {
                FakeServer.next(server.verifies);
            }
            List<CompletableFuture<Verification>> queued = new ArrayList<>();
            for (String key : KEYS.subList(4, KEYS.size())) {
                queued.add(verifier.verifyAsync(key, VerifyOptions.NONE));
            }
            server.answer(request -> {
                throw answered.quoting();
            });
            server.refuse(request -> {
                throw answered.quoting();
            });
            held.countDown();
            for (CompletableFuture<Verification> each : queued) {
                ExecutionException failure =
                        assertThrows(ExecutionException.class, () -> each.get(20, TimeUnit.SECONDS));
                assertInstanceOf(answered.kind, failure.getCause());
                check(failure);
            }
            assertEquals(3, FakeServer.next(server.batches).getRequestsCount());
        }
        assertUnseen(log.text());
    }

    @ParameterizedTest
    @EnumSource
    @DisplayName("Watch: what the server quotes is not logged.")
    void watch(Answered answered) throws Exception {
        try (Verifier verifier = verifier(true)) {
            server.stream().fail(answered.quoting().getStatus());
            log.awaitText("the stream broke");
            check(log.text());
            assertEquals(0, verifier.remembered());
        }
    }

    @ParameterizedTest
    @EnumSource
    @DisplayName("A guard's refusal and its log show no key.")
    void guard(Answered answered) {
        server.answer(request -> {
            throw answered.quoting();
        });
        try (Verifier verifier = verifier(false)) {
            Throwable failure = assertThrows(answered.kind, () -> verifier.verify(KEYS.get(0)));
            assertUnseen(Guards.refusal(failure).text());
        }
        check(log.text());
    }

    @Test
    @DisplayName("A guard logs an error of the application's functions without the keys in it.")
    void functions() {
        Guards.refusal(new IllegalStateException("no {scopes}", new IllegalArgumentException("for " + KEYS.get(0))));
        check(log.text());
        assertTrue(log.text().contains("IllegalStateException: no {scopes}"), log.text());
    }

    @Test
    @DisplayName("A failure that shows no key stays as it is; one whose cause or trailer shows it does not.")
    void copied() {
        StatusRuntimeException plain = Status.INTERNAL.withDescription("no key").asRuntimeException(new Metadata());
        assertSame(plain, Redaction.redact(plain));
        Throwable behind = Status.INTERNAL
                .withCause(new IllegalStateException(KEYS.get(0)))
                .asRuntimeException();
        assertNotSame(behind, Redaction.redact(behind));
        assertUnseen(Redaction.trace(Redaction.redact(behind)));
        Metadata text = new Metadata();
        text.put(HEADER, KEYS.get(0));
        Metadata bytes = new Metadata();
        bytes.put(DETAILS, KEYS.get(0).getBytes(StandardCharsets.US_ASCII));
        for (Metadata trailers : List.of(text, bytes)) {
            StatusRuntimeException quoting = Status.INTERNAL.asRuntimeException(trailers);
            check(Redaction.redact(quoting), quoting);
        }
    }

    private static void check(Throwable copy, Throwable original) {
        assertNotSame(original, copy);
        assertEquals(Status.Code.INTERNAL, Status.fromThrowable(copy).getCode());
        assertNull(Status.trailersFromThrowable(copy));
    }

    /** Collects what is logged, by the verifier's own logger and by the guards'. */
    private static final class Log extends Handler implements System.Logger {
        private final Queue<String> lines = new ConcurrentLinkedQueue<>();

        String text() {
            return String.join("\n", lines);
        }

        void awaitText(String part) throws InterruptedException {
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
            while (!text().contains(part)) {
                assertTrue(System.nanoTime() < deadline, "what was waited for was not logged");
                Thread.sleep(1);
            }
        }

        @Override
        public void publish(LogRecord entry) {
            lines.add(new SimpleFormatter().format(entry));
        }

        @Override
        public String getName() {
            return "collected";
        }

        @Override
        public boolean isLoggable(System.Logger.Level level) {
            return true;
        }

        @Override
        public void log(System.Logger.Level level, ResourceBundle bundle, String message, Throwable thrown) {
            lines.add(message + "\n" + Redaction.trace(thrown));
        }

        @Override
        public void log(System.Logger.Level level, ResourceBundle bundle, String format, Object... params) {
            lines.add(MessageFormat.format(format, params));
        }

        @Override
        public void flush() {}

        @Override
        public void close() {}
    }
}
