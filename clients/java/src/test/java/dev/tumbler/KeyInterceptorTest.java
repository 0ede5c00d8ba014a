package dev.tumbler;

import static dev.tumbler.FakeServer.KEY;
import static dev.tumbler.FakeServer.key;
import static dev.tumbler.FakeServer.next;
import static dev.tumbler.FakeServer.valid;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.tumbler.grpc.KeyInterceptor;
import dev.tumbler.v1.ApiKeyServiceGrpc;
import dev.tumbler.v1.GetRequest;
import dev.tumbler.v1.GetResponse;
import dev.tumbler.v1.VerifyCode;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Server;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Tests of the gRPC guard, with a service and callers of the test's own. */
@Timeout(60)
class KeyInterceptorTest {
    private static final MethodDescriptor<GetRequest, GetResponse> UNARY = ApiKeyServiceGrpc.getGetMethod();
    private static final MethodDescriptor<GetRequest, GetResponse> BIDI = UNARY.toBuilder()
            .setType(MethodDescriptor.MethodType.BIDI_STREAMING)
            .setFullMethodName("test.Shop/Chat")
            .build();

    private final BlockingQueue<String> owners = new LinkedBlockingQueue<>();
    private FakeServer tumbler;
    private Verifier verifier;
    private Server server;
    private ManagedChannel channel;

    @BeforeEach
    void serve() throws Exception {
        tumbler = new FakeServer();
        tumbler.answer(request -> valid(request).setOwnerId("o1"));
        verifier = Verifier.builder(tumbler.target())
                .apiKey("own-key")
                .watch(false)
                .fixedTtl(Duration.ofMinutes(1))
                .timeout(Duration.ofSeconds(20))
                .build();
    }

    @AfterEach
    void end() {
        channel.shutdownNow();
        server.shutdownNow();
        verifier.close();
        tumbler.close();
    }

    private void guard(UnaryOperator<KeyInterceptor.Builder> options) throws Exception {
        ServerServiceDefinition shop = ServerServiceDefinition.builder("test.Shop")
                .addMethod(BIDI, ServerCalls.asyncBidiStreamingCall(this::chat))
                .build();
        ServerServiceDefinition get = ServerServiceDefinition.builder("tumbler.v1.ApiKeyService")
                .addMethod(UNARY, ServerCalls.asyncUnaryCall(this::get))
                .build();
        server = Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
                .directExecutor() // calls run in the transport's own thread: blocking it stops all calls
                .intercept(options.apply(KeyInterceptor.builder(verifier)).build())
                .addService(shop)
                .addService(get)
                .build()
                .start();
        channel = Grpc.newChannelBuilder("127.0.0.1:" + server.getPort(), InsecureChannelCredentials.create())
                .build();
    }

    private void get(GetRequest request, StreamObserver<GetResponse> to) {
        owners.add(KeyInterceptor.identity().map(Verification::ownerId).orElse("nobody"));
        if (request.getKeyId().equals("fail")) {
            throw new IllegalStateException("a handler's mistake");
        }
        to.onNext(GetResponse.getDefaultInstance());
        to.onCompleted();
    }

    private StreamObserver<GetRequest> chat(StreamObserver<GetResponse> to) {
        return new StreamObserver<>() {
            @Override
            public void onNext(GetRequest message) {
                get(message, new StreamObserver<>() {
                    @Override
                    public void onNext(GetResponse response) {
                        to.onNext(response);
                    }

                    @Override
                    public void onError(Throwable failure) {}

                    @Override
                    public void onCompleted() {}
                });
            }

            @Override
            public void onError(Throwable failure) {}

            @Override
            public void onCompleted() {
                to.onCompleted();
            }
        };
    }

    private Channel with(String... namesAndValues) {
        Metadata headers = new Metadata();
        for (int i = 0; i < namesAndValues.length; i += 2) {
            headers.put(Metadata.Key.of(namesAndValues[i], Metadata.ASCII_STRING_MARSHALLER), namesAndValues[i + 1]);
        }
        return ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(headers));
    }

    private static GetResponse call(Channel channel) {
        return call(channel, "");
    }

    private static GetResponse call(Channel channel, String id) {
        return ClientCalls.blockingUnaryCall(
                channel, UNARY, CallOptions.DEFAULT, GetRequest.newBuilder().setKeyId(id).build());
    }

    private static Status refusal(Channel channel) {
        return assertThrows(StatusRuntimeException.class, () -> call(channel)).getStatus();
    }

    @Test
    @DisplayName("A call with a key that may passes, asked about or remembered, and its handler knows whose key it is.")
    void passes() throws Exception {
        guard(options -> options.requireScopes());
        call(with("authorization", "Bearer " + KEY));
        call(with("authorization", "bearer " + KEY));
        call(with("x-api-key", KEY));
        assertEquals(1, tumbler.verifies.size());
        assertEquals(List.of("o1", "o1", "o1"), List.copyOf(owners));
        assertEquals("127.0.0.1", next(tumbler.verifies).getClientIp());
    }

    @ParameterizedTest
    @CsvSource({
        "MALFORMED, UNAUTHENTICATED", "NOT_FOUND, UNAUTHENTICATED", "REVOKED, UNAUTHENTICATED",
        "SUPERSEDED, UNAUTHENTICATED", "INACTIVE, UNAUTHENTICATED", "EXPIRED, UNAUTHENTICATED",
        "ENVIRONMENT_MISMATCH, PERMISSION_DENIED", "IP_NOT_ALLOWED, PERMISSION_DENIED",
        "INSUFFICIENT_SCOPE, PERMISSION_DENIED"
    })
    @DisplayName("Each verdict that denies is answered with one of two generic texts.")
    void denies(Code code, Status.Code expected) throws Exception {
        guard(options -> options.requireScopes("orders:read").environment("live"));
        tumbler.answer(request ->
                FakeServer.proven(request, VerifyCode.valueOf("VERIFY_CODE_" + code)));
        Status told = refusal(with("authorization", "Bearer " + KEY));
        assertEquals(expected, told.getCode());
        assertEquals(
                expected == Status.Code.UNAUTHENTICATED
                        ? "a valid API key is required"
                        : "this API key does not allow that",
                told.getDescription());
        assertTrue(owners.isEmpty());
    }

    @Test
    @DisplayName("Without a key nothing passes, and nothing is asked.")
    void noKey() throws Exception {
        guard(options -> options);
        assertEquals(Status.Code.UNAUTHENTICATED, refusal(channel).getCode());
        assertEquals(Status.Code.UNAUTHENTICATED, refusal(with("authorization", "Basic abc")).getCode());
        assertTrue(tumbler.verifies.isEmpty());
        assertTrue(owners.isEmpty());
    }

    @Test
    @DisplayName("A call with more than one credential is refused, whatever they hold.")
    void oneCredential() throws Exception {
        guard(options -> options);
        String bearer = "Bearer " + KEY;
        for (String[] headers : new String[][] {
            {"authorization", bearer, "authorization", bearer},
            {"authorization", "Basic abc", "authorization", bearer},
            {"authorization", "Basic abc", "x-api-key", KEY},
            {"authorization", bearer, "x-api-key", KEY},
            {"x-api-key", KEY, "x-api-key", KEY},
        }) {
            assertEquals(Status.Code.UNAUTHENTICATED, refusal(with(headers)).getCode(), String.join(" ", headers));
        }
        assertTrue(tumbler.verifies.isEmpty());
        assertTrue(owners.isEmpty());
    }

    @Test
    @DisplayName("The guard's projects narrow the verifier's.")
    void projects() throws Exception {
        guard(options -> options.projectId("globex"));
        assertEquals(Status.Code.UNAUTHENTICATED, refusal(with("x-api-key", KEY)).getCode());
        channel.shutdownNow();
        server.shutdownNow();
        guard(options -> options.projectId("globex", "acme"));
        call(with("x-api-key", KEY));
    }

    @ParameterizedTest
    @CsvSource({
        "UNAVAILABLE, UNAVAILABLE", "UNAUTHENTICATED, UNAVAILABLE", "INVALID_ARGUMENT, INTERNAL"
    })
    @DisplayName("Where there is no verdict nothing passes, and the text tells no reason.")
    void undecided(Status.Code failure, Status.Code expected) throws Exception {
        guard(options -> options);
        tumbler.answer(request -> {
            throw Status.fromCode(failure).withDescription("secret reason").asRuntimeException();
        });
        Status told = refusal(with("authorization", "Bearer " + KEY));
        assertEquals(expected, told.getCode());
        assertEquals("API keys cannot be verified at the moment", told.getDescription());
        assertTrue(owners.isEmpty());
    }

    @Test
    @DisplayName("A function of the guard's user that throws lets nothing pass.")
    void brokenFunction() throws Exception {
        guard(options -> options.requireScopes(call -> {
            throw new IllegalStateException("no such method");
        }));
        assertEquals(Status.Code.INTERNAL, refusal(with("authorization", "Bearer " + KEY)).getCode());
        assertTrue(owners.isEmpty());
    }

    @Test
    @DisplayName("A call for which no scopes are listed is refused, whatever the key; without a key it is told so.")
    void unlisted() throws Exception {
        guard(options -> options.requireScopes(call -> null));
        assertEquals(
                Status.Code.PERMISSION_DENIED,
                refusal(with("authorization", "Bearer " + KEY)).getCode());
        assertEquals(Status.Code.UNAUTHENTICATED, refusal(with("x-other", "1")).getCode());
        assertTrue(tumbler.verifies.isEmpty());
    }

    @Test
    @DisplayName("Scopes may depend on the method, the address on the headers, and the environment is demanded.")
    void demands() throws Exception {
        Metadata.Key<String> forwarded = Metadata.Key.of("x-real-ip", Metadata.ASCII_STRING_MARSHALLER);
        Map<String, List<String>> byMethod = Map.of("Get", List.of("shop:read"));
        guard(options -> options.requireScopes(call -> byMethod.get(call.getMethodDescriptor().getBareMethodName()))
                .environment("live")
                .clientIp((call, headers) -> headers.get(forwarded)));
        Metadata headers = new Metadata();
        headers.put(forwarded, "192.0.2.7");
        call(ClientInterceptors.intercept(
                with("authorization", "Bearer " + KEY), MetadataUtils.newAttachHeadersInterceptor(headers)));
        var request = next(tumbler.verifies);
        assertEquals(List.of("shop:read"), request.getRequiredScopesList());
        assertEquals("live", request.getEnvironmentId());
        assertEquals("192.0.2.7", request.getClientIp());
    }

    @Test
    @DisplayName("A method that is exempt needs no key, and its handler knows nobody.")
    void exempt() throws Exception {
        guard(options -> options.exempt(method -> method.getServiceName().equals("tumbler.v1.ApiKeyService")));
        call(channel);
        assertEquals(List.of("nobody"), List.copyOf(owners));
    }

    @Test
    @DisplayName("A call whose key has to be asked about holds up no other, even in the transport's thread.")
    void doesNotBlock() throws Exception {
        guard(options -> options);
        call(with("authorization", "Bearer " + KEY));
        next(tumbler.verifies);
        CountDownLatch gate = tumbler.hold();
        CompletableFuture<GetResponse> slow =
                CompletableFuture.supplyAsync(() -> call(with("x-api-key", key("2222222222222222"))));
        next(tumbler.verifies);
        call(with("authorization", "Bearer " + KEY));
        gate.countDown();
        slow.get();
        assertEquals(List.of("o1", "o1", "o1"), List.copyOf(owners));
    }

    @Test
    @DisplayName("A call that has to wait is refused if its executor rejects it, unary or streaming.")
    void executorRejects() throws Exception {
        ExecutorService stopped = Executors.newSingleThreadExecutor();
        stopped.shutdown();
        guard(options -> options.executor(stopped));
        Status told = refusal(with("x-api-key", KEY));
        assertEquals(Status.Code.UNAVAILABLE, told.getCode());
        assertEquals("API keys cannot be verified at the moment", told.getDescription());
        assertTrue(owners.isEmpty());
        call(with("x-api-key", KEY)); // it does not have to wait
        BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
        StreamObserver<GetRequest> chat = ClientCalls.asyncBidiStreamingCall(
                with("x-api-key", key("2222222222222222")).newCall(BIDI, CallOptions.DEFAULT), collecting(answers));
        chat.onNext(GetRequest.getDefaultInstance());
        assertEquals(Status.Code.UNAVAILABLE, Status.fromThrowable((Throwable) next(answers)).getCode());
        assertEquals(List.of("o1"), List.copyOf(owners));
    }

    @Test
    @DisplayName("A call that waits when the verifier is closed is refused.")
    void verifierCloses() throws Exception {
        guard(options -> options);
        CountDownLatch gate = tumbler.hold();
        CompletableFuture<Status> told = CompletableFuture.supplyAsync(() -> refusal(with("x-api-key", KEY)));
        next(tumbler.verifies);
        verifier.close();
        assertEquals(Status.Code.UNAVAILABLE, told.get().getCode());
        assertEquals(Status.Code.UNAVAILABLE, refusal(with("x-api-key", KEY)).getCode());
        gate.countDown();
    }

    @Test
    @DisplayName("Messages that come while a key is asked about are handled in order, once it is known.")
    void streaming() throws Exception {
        guard(options -> options);
        CountDownLatch gate = tumbler.hold();
        BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
        StreamObserver<GetRequest> chat = ClientCalls.asyncBidiStreamingCall(
                with("x-api-key", KEY).newCall(BIDI, CallOptions.DEFAULT), collecting(answers));
        for (int i = 0; i < 100; i++) {
            chat.onNext(GetRequest.getDefaultInstance());
        }
        chat.onCompleted();
        next(tumbler.verifies);
        assertTrue(owners.isEmpty());
        gate.countDown();
        for (int i = 0; i < 100; i++) {
            assertEquals(GetResponse.getDefaultInstance(), next(answers));
        }
        assertEquals("completed", next(answers));
        assertEquals(100, owners.stream().filter("o1"::equals).count());
    }

    @Test
    @DisplayName("A handler's exception ends its call with UNKNOWN, also of a call that had to wait.")
    void handlerFails() throws Exception {
        guard(options -> options);
        for (int i = 0; i < 2; i++) {
            StatusRuntimeException failure =
                    assertThrows(StatusRuntimeException.class, () -> call(with("x-api-key", KEY), "fail"));
            assertEquals(Status.Code.UNKNOWN, failure.getStatus().getCode());
        }
    }

    @Test
    @DisplayName("A caller that leaves while its key is asked about harms nobody.")
    void leaves() throws Exception {
        guard(options -> options);
        CountDownLatch gate = tumbler.hold();
        var call = with("x-api-key", KEY).newCall(UNARY, CallOptions.DEFAULT);
        CompletableFuture<GetResponse> asked = new CompletableFuture<>();
        ClientCalls.asyncUnaryCall(call, GetRequest.getDefaultInstance(), new StreamObserver<>() {
            @Override
            public void onNext(GetResponse response) {
                asked.complete(response);
            }

            @Override
            public void onError(Throwable failure) {
                asked.completeExceptionally(failure);
            }

            @Override
            public void onCompleted() {}
        });
        next(tumbler.verifies);
        call.cancel("gone", null);
        assertThrows(ExecutionException.class, asked::get);
        gate.countDown();
        call(with("x-api-key", KEY));
    }

    private static StreamObserver<GetResponse> collecting(BlockingQueue<Object> answers) {
        return new StreamObserver<>() {
            @Override
            public void onNext(GetResponse response) {
                answers.add(response);
            }

            @Override
            public void onError(Throwable failure) {
                answers.add(failure);
            }

            @Override
            public void onCompleted() {
                answers.add("completed");
            }
        };
    }
}
