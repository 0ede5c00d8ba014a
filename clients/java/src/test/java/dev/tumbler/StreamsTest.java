package dev.tumbler;

import static dev.tumbler.FakeServer.KEY;
import static dev.tumbler.FakeServer.next;
import static dev.tumbler.FakeServer.valid;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.tumbler.grpc.KeyInterceptor;
import dev.tumbler.servlet.KeyFilter;
import dev.tumbler.v1.ApiKeyServiceGrpc;
import dev.tumbler.v1.GetRequest;
import dev.tumbler.v1.GetResponse;
import dev.tumbler.v1.VerifyCode;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import jakarta.servlet.AsyncContext;
import jakarta.servlet.DispatcherType;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.EnumSet;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BooleanSupplier;
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
import org.junit.jupiter.params.provider.ValueSource;

/** Tests of how gRPC streams and streaming answers of servlets end with their key. */
@Timeout(60)
class StreamsTest {
    private final BlockingQueue<String> ends = new LinkedBlockingQueue<>();
    private final BlockingQueue<Boolean> begun = new LinkedBlockingQueue<>();
    private final CountDownLatch go = new CountDownLatch(1);
    private FakeServer tumbler;
    private FakeServer.Stream stream;
    private Verifier verifier;
    private AutoCloseable service = () -> {};
    private long revision = 1;

    @BeforeEach
    void serve() throws Exception {
        tumbler = new FakeServer();
        verifier = Verifier.builder(tumbler.target())
                .apiKey("own-key")
                .timeout(Duration.ofSeconds(20))
                .build();
        stream = tumbler.stream();
        stream.heartbeat("begun");
        eventually(() -> verifier.cursor().equals("begun"));
    }

    @AfterEach
    void end() throws Exception {
        go.countDown();
        service.close();
        verifier.close();
        tumbler.close();
    }

    /**
     * Sets the key's verdict from now on, and sends an event that names the key. Returns when the verifier has
     * processed the event and called the server again.
     */
    private void becomes(VerifyCode code) {
        long now = ++revision;
        tumbler.verifies.clear();
        tumbler.answer(request -> FakeServer.proven(request, code).setRevision(now));
        stream.changed("r" + now, KeyFormat.peekId(KEY), now);
        eventually(() -> verifier.cursor().equals("r" + now));
        verifier.verify(KEY);
        next(tumbler.verifies);
    }

    private static void eventually(BooleanSupplier holds) {
        for (long end = System.nanoTime() + 20_000_000_000L; !holds.getAsBoolean(); Thread.onSpinWait()) {
            assertTrue(System.nanoTime() - end < 0, "it never came to be");
        }
    }

    private static final MethodDescriptor<GetRequest, GetResponse> BIDI = ApiKeyServiceGrpc.getGetMethod().toBuilder()
            .setType(MethodDescriptor.MethodType.BIDI_STREAMING)
            .setFullMethodName("test.Shop/Chat")
            .build();

    /** Serves a method whose handler sends or receives, and starts a call of it. The queue gets the call's status. */
    private BlockingQueue<Status> call(boolean speaks, boolean endStreams, ClientCall<?, ?>[] called) throws Exception {
        var server = Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
                .intercept(KeyInterceptor.builder(verifier).endStreams(endStreams).build())
                .addService(ServerServiceDefinition.builder("test.Shop")
                        .addMethod(BIDI, ServerCalls.asyncBidiStreamingCall(to -> handle(to, speaks)))
                        .build())
                .build()
                .start();
        ManagedChannel channel = Grpc.newChannelBuilder(
                        "127.0.0.1:" + server.getPort(), InsecureChannelCredentials.create())
                .build();
        service = () -> {
            channel.shutdownNow();
            server.shutdownNow();
        };
        BlockingQueue<Status> ended = new LinkedBlockingQueue<>();
        ClientCall<GetRequest, GetResponse> call = channel.newCall(BIDI, CallOptions.DEFAULT);
        Metadata headers = new Metadata();
        headers.put(Metadata.Key.of("x-api-key", Metadata.ASCII_STRING_MARSHALLER), KEY);
        call.start(
                new ClientCall.Listener<>() {
                    @Override
                    public void onMessage(GetResponse message) {
                        call.request(1);
                    }

                    @Override
                    public void onClose(Status status, Metadata trailers) {
                        ended.add(status);
                    }
                },
                headers);
        call.request(1);
        called[0] = call;
        next(begun);
        return ended;
    }

    private StreamObserver<GetRequest> handle(StreamObserver<GetResponse> to, boolean speaks) {
        var call = (ServerCallStreamObserver<GetResponse>) to;
        call.setOnCancelHandler(() -> ends.add("told"));
        begun.add(true);
        if (speaks) {
            Thread speaking = new Thread(() -> {
                while (!call.isCancelled()) {
                    if (call.isReady()) {
                        call.onNext(GetResponse.getDefaultInstance());
                    }
                    LockSupport.parkNanos(100_000); // spinning would take a core from all else
                }
            });
            speaking.setDaemon(true);
            speaking.start();
        }
        return new StreamObserver<>() {
            @Override
            public void onNext(GetRequest message) {}

            @Override
            public void onError(Throwable failure) {}

            @Override
            public void onCompleted() {
                ends.add("taken for whole");
            }
        };
    }

    @ParameterizedTest
    @CsvSource({
        "true, REVOKED, UNAUTHENTICATED", "false, REVOKED, UNAUTHENTICATED",
        "true, IP_NOT_ALLOWED, PERMISSION_DENIED", "false, IP_NOT_ALLOWED, PERMISSION_DENIED"
    })
    @DisplayName("A gRPC stream ends with the status that a new call would get, and its handler is cancelled.")
    void grpcEnds(boolean speaks, Code code, Status.Code expected) throws Exception {
        BlockingQueue<Status> ended = call(speaks, true, new ClientCall<?, ?>[1]);
        becomes(VerifyCode.valueOf("VERIFY_CODE_" + code));
        assertEquals(expected, next(ended).getCode());
        assertEquals("told", next(ends));
        eventually(() -> verifier.sessions().size() == 0);
        assertTrue(ends.isEmpty());
    }

    @ParameterizedTest
    @CsvSource({"true, VALID, 1", "false, REVOKED, 0"})
    @DisplayName("A gRPC stream goes on if its key is still good for it, or if it shall not end; hanging up leaves nothing.")
    void grpcGoesOn(boolean endStreams, Code code, int open) throws Exception {
        ClientCall<?, ?>[] called = new ClientCall<?, ?>[1];
        BlockingQueue<Status> ended = call(false, endStreams, called);
        becomes(VerifyCode.valueOf("VERIFY_CODE_" + code));
        assertEquals(open, verifier.sessions().size());
        assertTrue(ended.isEmpty() && ends.isEmpty());
        called[0].cancel("as the test has it", null);
        assertEquals("told", next(ends));
        eventually(() -> verifier.sessions().size() == 0);
    }

    /** Serves a servlet that answers by the request's path, and starts to read an answer. */
    private InputStream get(String path, boolean endStreams) throws Exception {
        ServletContextHandler servlets = new ServletContextHandler();
        FilterHolder filter =
                new FilterHolder(KeyFilter.builder(verifier).endStreams(endStreams).build());
        filter.setAsyncSupported(true);
        servlets.addFilter(filter, "/*", EnumSet.of(DispatcherType.REQUEST));
        ServletHolder servlet = new ServletHolder(new Answers());
        servlet.setAsyncSupported(true);
        servlets.addServlet(servlet, "/*");
        Server container = new Server();
        ServerConnector connector = new ServerConnector(container);
        connector.setHost("127.0.0.1");
        container.addConnector(connector);
        container.setHandler(servlets);
        container.start();
        service = container::stop;
        HttpRequest request = HttpRequest.newBuilder(
                        URI.create("http://127.0.0.1:" + connector.getLocalPort() + path))
                .header("x-api-key", KEY)
                .build();
        HttpResponse<InputStream> answer =
                HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofInputStream());
        assertEquals(200, answer.statusCode());
        return answer.body();
    }

    private final class Answers extends HttpServlet {
        private static final long serialVersionUID = 1L;

        @Override
        protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
            try {
                switch (request.getPathInfo()) {
                    case "/speaks" -> {
                        while (true) {
                            response.getOutputStream().print("word\n");
                            response.getOutputStream().flush();
                        }
                    }
                    case "/swallows" -> {
                        while (!response.getWriter().checkError()) {
                            response.getWriter().println("word");
                            response.getWriter().flush();
                        }
                        ends.add("told");
                    }
                    case "/waits" -> {
                        response.flushBuffer();
                        go.await();
                        response.getWriter().print("whole");
                    }
                    case "/async" -> {
                        AsyncContext async = request.startAsync();
                        async.setTimeout(0);
                        async.getResponse().flushBuffer();
                        Thread speaking = new Thread(() -> {
                            try {
                                for (begun.poll(); true; begun.poll(5, TimeUnit.MILLISECONDS)) {
                                    async.getResponse().flushBuffer();
                                }
                            } catch (IOException | InterruptedException | RuntimeException told) {
                                ends.add("told");
                            }
                        });
                        speaking.setDaemon(true);
                        speaking.start();
                    }
                    default -> {
                        begun.add(true);
                        becomes(VerifyCode.VERIFY_CODE_REVOKED);
                        assertEquals(0, verifier.sessions().size());
                        response.getWriter().print("whole");
                    }
                }
            } catch (IOException | InterruptedException told) {
                ends.add("told");
            }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"/speaks", "/swallows", "/waits", "/async"})
    @DisplayName("An answer that streams is broken off: its reader sees an error, and its handler is told.")
    void answersEnd(String path) throws Exception {
        InputStream answer = get(path, true);
        eventually(() -> verifier.sessions().size() == 1);
        becomes(VerifyCode.VERIFY_CODE_REVOKED);
        assertThrows(IOException.class, answer::readAllBytes);
        assertEquals("told", next(ends));
        eventually(() -> verifier.sessions().size() == 0);
    }

    @ParameterizedTest
    @CsvSource({"true, VALID, 1", "false, REVOKED, 0"})
    @DisplayName("An answer goes on to its end if its key is still good for it, or if it shall not end with it.")
    void answersGoOn(boolean endStreams, Code code, int open) throws Exception {
        InputStream answer = get("/waits", endStreams);
        becomes(VerifyCode.valueOf("VERIFY_CODE_" + code));
        assertEquals(open, verifier.sessions().size());
        go.countDown();
        assertEquals("whole", new String(answer.readAllBytes(), StandardCharsets.UTF_8));
        eventually(() -> verifier.sessions().size() == 0);
    }

    @Test
    @DisplayName("An ordinary answer runs to its end, and is not noted as a stream.")
    void ordinaryAnswers() throws Exception {
        assertEquals("whole", new String(get("/ordinary", true).readAllBytes(), StandardCharsets.UTF_8));
    }
}
