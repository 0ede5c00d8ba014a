package dev.tumbler;

import static dev.tumbler.FakeServer.KEY;
import static dev.tumbler.FakeServer.next;
import static dev.tumbler.FakeServer.valid;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.tumbler.servlet.KeyFilter;
import dev.tumbler.v1.VerifyCode;
import io.grpc.Status;
import jakarta.servlet.DispatcherType;
import jakarta.servlet.Filter;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.EnumSet;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.function.UnaryOperator;
import org.eclipse.jetty.ee9.servlet.FilterHolder;
import org.eclipse.jetty.ee9.servlet.ServletContextHandler;
import org.eclipse.jetty.ee9.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Tests of the servlet guard, in a container. */
@Timeout(60)
class KeyFilterTest {
    private final HttpClient client = HttpClient.newHttpClient();
    private FakeServer tumbler;
    private Verifier verifier;
    private Server container;

    @BeforeEach
    void serve() throws Exception {
        tumbler = new FakeServer();
        tumbler.answer(request -> valid(request).setOwnerId("o1"));
        verifier = Verifier.builder(tumbler.target())
                .apiKey("own-key")
                .watch(false)
                .timeout(Duration.ofSeconds(20))
                .build();
    }

    @AfterEach
    void end() throws Exception {
        container.stop();
        verifier.close();
        tumbler.close();
    }

    private void guard(UnaryOperator<KeyFilter.Builder> options) throws Exception {
        guard(response -> {}, options);
    }

    /** What a filter before the guard does with the response. */
    private interface Before {
        void act(HttpServletResponse response) throws IOException;
    }

    private void guard(Before before, UnaryOperator<KeyFilter.Builder> options) throws Exception {
        ServletContextHandler servlets = new ServletContextHandler();
        Filter first = (request, response, chain) -> {
            before.act((HttpServletResponse) response);
            chain.doFilter(request, response);
        };
        servlets.addFilter(new FilterHolder(first), "/*", EnumSet.of(DispatcherType.REQUEST));
        servlets.addFilter(
                new FilterHolder(options.apply(KeyFilter.builder(verifier)).build()),
                "/*",
                EnumSet.of(DispatcherType.REQUEST));
        servlets.addServlet(new ServletHolder(new Orders()), "/*");
        container = new Server();
        ServerConnector connector = new ServerConnector(container);
        connector.setHost("127.0.0.1");
        container.addConnector(connector);
        container.setHandler(servlets);
        container.start();
    }

    private static final class Orders extends HttpServlet {
        private static final long serialVersionUID = 1L;

        @Override
        protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
            response.getWriter()
                    .print(KeyFilter.identity(request).map(Verification::ownerId).orElse("nobody"));
        }
    }

    private HttpResponse<String> get(String path, String... headers) throws Exception {
        int port = ((ServerConnector) container.getConnectors()[0]).getLocalPort();
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + path));
        return client.send(
                (headers.length == 0 ? request : request.headers(headers)).build(),
                HttpResponse.BodyHandlers.ofString());
    }

    @Test
    @DisplayName("A request with a key that may passes, and its servlet knows whose key it is.")
    void passes() throws Exception {
        guard(options -> options.requireScopes("orders:read").environment("live"));
        HttpResponse<String> told = get("/orders", "Authorization", "Bearer " + KEY);
        assertEquals(200, told.statusCode());
        assertEquals("o1", told.body());
        assertEquals("o1", get("/orders", "X-API-Key", KEY).body());
        var request = next(tumbler.verifies);
        assertEquals(List.of("orders:read"), request.getRequiredScopesList());
        assertEquals("live", request.getEnvironmentId());
        assertEquals("127.0.0.1", request.getClientIp());
    }

    @ParameterizedTest
    @CsvSource({
        "MALFORMED, 401", "NOT_FOUND, 401", "REVOKED, 401", "SUPERSEDED, 401", "INACTIVE, 401", "EXPIRED, 401",
        "ENVIRONMENT_MISMATCH, 403", "IP_NOT_ALLOWED, 403", "INSUFFICIENT_SCOPE, 403"
    })
    @DisplayName("Each verdict that denies is answered with one of two generic texts.")
    void denies(Code code, int expected) throws Exception {
        guard(options -> options.requireScopes("orders:read").environment("live"));
        tumbler.answer(request ->
                FakeServer.proven(request, VerifyCode.valueOf("VERIFY_CODE_" + code)));
        HttpResponse<String> told = get("/orders", "Authorization", "Bearer " + KEY);
        assertEquals(expected, told.statusCode());
        assertEquals(
                expected == 401
                        ? "{\"error\": \"a valid API key is required\"}"
                        : "{\"error\": \"this API key does not allow that\"}",
                told.body());
        assertEquals(Optional.of("application/json"), told.headers().firstValue("content-type"));
        assertEquals(expected == 401, told.headers().firstValue("www-authenticate").equals(Optional.of("Bearer")));
    }

    @Test
    @DisplayName("Without a key nothing passes.")
    void noKey() throws Exception {
        guard(options -> options);
        assertEquals(401, get("/orders").statusCode());
        assertEquals(401, get("/orders", "Authorization", "Basic abc").statusCode());
    }

    @Test
    @DisplayName("A request with more than one credential is refused, whatever they hold.")
    void oneCredential() throws Exception {
        guard(options -> options);
        String bearer = "Bearer " + KEY;
        for (String[] headers : new String[][] {
            {"Authorization", bearer, "Authorization", bearer},
            {"Authorization", "Basic abc", "Authorization", bearer},
            {"Authorization", "Basic abc", "X-API-Key", KEY},
            {"Authorization", bearer, "X-API-Key", KEY},
            {"X-API-Key", KEY, "X-API-Key", KEY},
        }) {
            assertEquals(401, get("/orders", headers).statusCode(), String.join(" ", headers));
        }
        assertTrue(tumbler.verifies.isEmpty());
    }

    @Test
    @DisplayName("An answer that has begun is left to who began it, and the servlet is not reached.")
    void answered() throws Exception {
        guard(
                response -> {
                    response.setStatus(504);
                    response.getOutputStream().print("too late");
                    response.flushBuffer();
                },
                options -> options);
        HttpResponse<String> told = get("/orders");
        assertEquals(504, told.statusCode());
        assertEquals("too late", told.body());
    }

    @Test
    @DisplayName("A refusal is written whole, also where a filter has written to the writer.")
    void writerInUse() throws Exception {
        guard(response -> response.getWriter().print("forgotten"), options -> options);
        HttpResponse<String> told = get("/orders");
        assertEquals(401, told.statusCode());
        assertEquals("{\"error\": \"a valid API key is required\"}", told.body());
    }

    @Test
    @DisplayName("The guard's projects narrow the verifier's.")
    void projects() throws Exception {
        guard(options -> options.projectId("globex"));
        assertEquals(401, get("/orders", "X-API-Key", KEY).statusCode());
        container.stop();
        guard(options -> options.projectId("globex", "acme"));
        assertEquals(200, get("/orders", "X-API-Key", KEY).statusCode());
    }

    @ParameterizedTest
    @CsvSource({"UNAVAILABLE, 503", "UNAUTHENTICATED, 503", "INVALID_ARGUMENT, 500"})
    @DisplayName("Where there is no verdict nothing passes, and the text tells no reason.")
    void undecided(Status.Code failure, int expected) throws Exception {
        guard(options -> options);
        tumbler.answer(request -> {
            throw Status.fromCode(failure).withDescription("secret reason").asRuntimeException();
        });
        HttpResponse<String> told = get("/orders", "Authorization", "Bearer " + KEY);
        assertEquals(expected, told.statusCode());
        assertEquals("{\"error\": \"API keys cannot be verified at the moment\"}", told.body());
        assertEquals(expected == 503, told.headers().firstValue("retry-after").equals(Optional.of("1")));
    }

    @Test
    @DisplayName("A request that waits when the verifier is closed is answered with 503, and so is a later one.")
    void verifierCloses() throws Exception {
        guard(options -> options);
        CountDownLatch gate = tumbler.hold();
        CompletableFuture<HttpResponse<String>> told = CompletableFuture.supplyAsync(() -> {
            try {
                return get("/orders", "X-API-Key", KEY);
            } catch (Exception failure) {
                throw new AssertionError(failure);
            }
        });
        next(tumbler.verifies);
        verifier.close();
        assertEquals(503, told.get().statusCode());
        assertEquals(503, get("/orders", "X-API-Key", KEY).statusCode());
        gate.countDown();
    }

    @Test
    @DisplayName("A function of the guard's user that throws lets nothing pass.")
    void brokenFunction() throws Exception {
        guard(options -> options.exempt(request -> {
            throw new IllegalStateException("who knows");
        }));
        assertEquals(500, get("/orders", "Authorization", "Bearer " + KEY).statusCode());
    }

    @Test
    @DisplayName("A request for which no scopes are listed is refused, whatever the key; without a key it is told so.")
    void unlisted() throws Exception {
        guard(options -> options.requireScopes(request -> null));
        assertEquals(403, get("/orders", "Authorization", "Bearer " + KEY).statusCode());
        assertEquals(401, get("/orders").statusCode());
        assertTrue(tumbler.verifies.isEmpty());
    }

    @Test
    @DisplayName("Scopes and address may depend on the request, and what is exempt needs no key.")
    void functions() throws Exception {
        guard(options -> options.requireScopes(request -> List.of(request.getMethod().toLowerCase(Locale.ROOT) + ":any"))
                .clientIp(request -> request.getHeader("X-Real-IP"))
                .exempt(request -> request.getRequestURI().equals("/health")));
        assertEquals("nobody", get("/health").body());
        assertFalse(get("/healthy").body().equals("nobody"));
        get("/orders", "Authorization", "Bearer " + KEY, "X-Real-IP", "192.0.2.7");
        var request = next(tumbler.verifies);
        assertEquals(List.of("get:any"), request.getRequiredScopesList());
        assertEquals("192.0.2.7", request.getClientIp());
    }
}
