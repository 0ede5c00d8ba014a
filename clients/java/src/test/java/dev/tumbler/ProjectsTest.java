package dev.tumbler;

import static dev.tumbler.FakeServer.KEY;
import static dev.tumbler.FakeServer.key;
import static dev.tumbler.FakeServer.next;
import static dev.tumbler.FakeServer.valid;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.tumbler.v1.VerifyCode;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** Tests of the projects whose keys a verifier accepts. */
@Timeout(60)
class ProjectsTest {
    private static final VerifyOptions ACME = VerifyOptions.NONE.withProject("acme");

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

    /** Creates a verifier that caches for a minute, without a stream. */
    private void open(UnaryOperator<Verifier.Builder> say) {
        end(verifier);
        verifier = say.apply(Verifier.builder(server.target()).apiKey("own-key"))
                .timeout(Duration.ofSeconds(20))
                .watch(false)
                .fixedTtl(Duration.ofMinutes(1))
                .build();
    }

    private static void end(Verifier former) {
        if (former != null) {
            former.close();
        }
    }

    private void allOf(String project) {
        server.answer(request -> valid(request.getKey()).setProjectId(project));
    }

    private void revokedOf(String project) {
        server.answer(request -> valid(request.getKey())
                .setProjectId(project)
                .setValid(false)
                .setCode(VerifyCode.VERIFY_CODE_REVOKED));
    }

    private static void assertNothingTold(Verification told) {
        assertEquals(Verification.unproven(Code.NOT_FOUND, told.cached()), told);
    }

    static Stream<Arguments> asked() {
        return Stream.of(
                row(builder -> builder, ""),
                row(builder -> builder.anyProject(), ""),
                row(builder -> builder.projectId("acme"), "acme"),
                row(builder -> builder.projectId("acme", "globex"), ""));
    }

    private static Arguments row(UnaryOperator<Verifier.Builder> say, String project) {
        return Arguments.of(say, project);
    }

    @ParameterizedTest
    @MethodSource
    @DisplayName("The server is asked for a project that is the only one, in calls and for the stream.")
    void asked(UnaryOperator<Verifier.Builder> say, String project) {
        verifier = say.apply(Verifier.builder(server.target()).apiKey("own-key"))
                .timeout(Duration.ofSeconds(20))
                .build();
        assertEquals(project, server.stream().request.getProjectId());
        verifier.verify(KEY);
        assertEquals(project, next(server.verifies).getProjectId());
    }

    static Stream<List<String>> lists() {
        return Stream.of(List.of("acme"), List.of("acme", "globex"));
    }

    @ParameterizedTest
    @MethodSource("lists")
    @DisplayName("Nothing is told of a key of another project, and nothing remembered.")
    void others(List<String> projects) {
        open(builder -> builder.projectId(projects.toArray(String[]::new)));
        allOf("initech");
        assertNothingTold(verifier.verify(KEY));
        assertNothingTold(verifier.verify(KEY));
        revokedOf("initech");
        assertNothingTold(verifier.verify(KEY));
        assertEquals(0, verifier.remembered());
        allOf("acme");
        assertTrue(verifier.verify(KEY).valid());
        assertTrue(verifier.verify(KEY).cached());
    }

    @Test
    @DisplayName("A call narrows what the verifier accepts, of what is remembered too, and never widens it.")
    void narrows() {
        open(Verifier.Builder::anyProject);
        allOf("globex");
        assertNothingTold(verifier.verify(KEY, ACME));
        assertNothingTold(verifier.verify(KEY, VerifyOptions.NONE.withProject("acme", "initech")));
        for (VerifyOptions options : List.of(VerifyOptions.NONE, VerifyOptions.NONE.withProject("acme", "globex"))) {
            Verification told = verifier.verify(KEY, options);
            assertTrue(told.valid() && told.cached());
            assertEquals("globex", told.projectId());
        }

        open(builder -> builder.projectId("acme"));
        assertNothingTold(verifier.verify(KEY, VerifyOptions.NONE.withProject("globex")));
        allOf("acme");
        assertNothingTold(verifier.verify(KEY, VerifyOptions.NONE.withProject("globex")));
        assertTrue(verifier.verify(KEY, ACME).valid());
    }

    @Test
    @DisplayName("Nothing is told of a revoked key, either, to who does not accept its project.")
    void revoked() {
        open(Verifier.Builder::anyProject);
        revokedOf("globex");
        assertNothingTold(verifier.verify(KEY, ACME));
        assertEquals(Code.REVOKED, verifier.verify(KEY).code());
    }

    @Test
    @DisplayName("Who shares a call has projects of their own.")
    void shared() throws Exception {
        open(builder -> builder.anyProject());
        CountDownLatch gate = server.hold();
        List<CompletableFuture<Verification>> told = new ArrayList<>();
        for (VerifyOptions options : List.of(VerifyOptions.NONE.withProject("globex"), ACME, VerifyOptions.NONE)) {
            told.add(verifier.verifyAsync(KEY, options));
        }
        gate.countDown();
        assertNothingTold(told.get(0).get(20, TimeUnit.SECONDS));
        assertTrue(told.get(1).get(20, TimeUnit.SECONDS).valid());
        assertTrue(told.get(2).get(20, TimeUnit.SECONDS).valid());
    }

    private static void assertUnsaid(Throwable failure) {
        assertTrue(failure instanceof NotAllowedException, String.valueOf(failure));
        assertTrue(failure.getMessage().contains("can verify the keys of all projects: use projectId(), or anyProject()"));
    }

    @Test
    @DisplayName("A verifier whose own key sees all projects must say which, whatever a caller names.")
    void lacksProject() {
        open(builder -> builder);
        server.answer(request -> valid(request.getKey()).setAnyProject(true));
        assertUnsaid(assertThrows(TumblerException.class, () -> verifier.verify(KEY)));
        assertUnsaid(assertThrows(TumblerException.class, () -> verifier.verify(KEY, ACME)));
        assertEquals(0, verifier.remembered());
        for (UnaryOperator<Verifier.Builder> say : List.<UnaryOperator<Verifier.Builder>>of(
                Verifier.Builder::anyProject, builder -> builder.projectId("acme", "globex"))) {
            open(say);
            assertTrue(verifier.verify(KEY).valid());
        }
    }

    @Test
    @DisplayName("Keys that are asked for together are refused alike.")
    void unsaidTogether() {
        open(builder -> builder);
        CountDownLatch gate = server.hold();
        server.answer(request -> valid(request.getKey()).setAnyProject(true));
        List<CompletableFuture<Verification>> told = new ArrayList<>();
        for (int i = 0; i < 10; i++) {
            told.add(verifier.verifyAsync(key("%016d".formatted(i)), VerifyOptions.NONE));
        }
        gate.countDown();
        for (CompletableFuture<Verification> each : told) {
            assertUnsaid(assertThrows(ExecutionException.class, () -> each.get(20, TimeUnit.SECONDS)).getCause());
        }
        assertFalse(server.batches.isEmpty());
    }

    @Test
    @DisplayName("No project is not any project.")
    void nameless() {
        for (String[] ids : new String[][] {{}, {""}, {"acme", ""}, {null}}) {
            Verifier.Builder builder = Verifier.builder("localhost:1").apiKey("own-key").projectId(ids);
            assertThrows(IllegalArgumentException.class, builder::build);
            assertThrows(IllegalArgumentException.class, () -> VerifyOptions.NONE.withProject(ids));
        }
        assertThrows(IllegalArgumentException.class, () -> new VerifyOptions(List.of(), "", "", List.of("")));
        Verifier.Builder both = Verifier.builder("localhost:1").apiKey("own-key").projectId("acme").anyProject();
        assertThrows(IllegalArgumentException.class, both::build);
    }
}
