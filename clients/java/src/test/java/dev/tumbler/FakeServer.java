package dev.tumbler;

import static org.junit.jupiter.api.Assertions.assertNotNull;

import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import dev.tumbler.v1.ApiKeyServiceGrpc;
import dev.tumbler.v1.BatchVerifyRequest;
import dev.tumbler.v1.BatchVerifyResponse;
import dev.tumbler.v1.KeyEvent;
import dev.tumbler.v1.VerifyCode;
import dev.tumbler.v1.VerifyRequest;
import dev.tumbler.v1.VerifyResponse;
import dev.tumbler.v1.WatchRequest;
import dev.tumbler.v1.WatchResponse;
import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.UnaryOperator;

/**
 * A server whose answers a test sets. By default every key is valid, at revision 1, and may be cached for a minute.
 */
final class FakeServer implements AutoCloseable {
    static final String KEY = key("0123456789abcdef");
    /** The server's time in seconds: far in the future, and different from this machine's clock. */
    static final long NOW = 4_000_000_000L;

    final BlockingQueue<VerifyRequest> verifies = new LinkedBlockingQueue<>();
    final BlockingQueue<BatchVerifyRequest> batches = new LinkedBlockingQueue<>();
    final BlockingQueue<Stream> streams = new LinkedBlockingQueue<>();
    final BlockingQueue<String> authorizations = new LinkedBlockingQueue<>();

    private static final Context.Key<String> PEER = Context.key("peer");

    private final Server server;
    private volatile Function<VerifyRequest, VerifyResponse.Builder> answers = FakeServer::valid;
    private volatile Consumer<BatchVerifyRequest> refusal = request -> {};
    private volatile UnaryOperator<List<VerifyResponse>> shape = UnaryOperator.identity();
    private volatile CountDownLatch gate = new CountDownLatch(0);

    FakeServer() throws IOException {
        this(0);
    }

    FakeServer(int port) throws IOException {
        server = Grpc.newServerBuilderForPort(port, InsecureServerCredentials.create())
                .intercept(new Listening())
                .addService(new Service())
                .build()
                .start();
    }

    /** Returns a well-formed key with this id and a made-up secret. */
    static String key(String id) {
        return key(id, '0');
    }

    static String key(String id, char secret) {
        String text = "tmb_" + id + "_" + String.valueOf(secret).repeat(43);
        return text + KeyFormat.check(text);
    }

    static VerifyResponse.Builder valid(String key) {
        return VerifyResponse.newBuilder()
                .setValid(true)
                .setCode(VerifyCode.VERIFY_CODE_VALID)
                .setKeyId(KeyFormat.peekId(key))
                .setProjectId("acme")
                .setCheckTime(Timestamp.newBuilder().setSeconds(NOW))
                .setCacheTtl(Duration.newBuilder().setSeconds(60))
                .setRevision(1);
    }

    /** Returns the answer for a key with just the scopes and the environment that the request demands. */
    static VerifyResponse.Builder valid(VerifyRequest request) {
        return valid(request.getKey())
                .setEnvironmentId(request.getEnvironmentId())
                .addAllScopes(request.getRequiredScopesList());
    }

    /** Returns an answer with this code. Its record gives the codes that depend on the demand, unless that is empty. */
    static VerifyResponse.Builder proven(VerifyRequest request, VerifyCode code) {
        VerifyResponse.Builder answer =
                valid(request).setValid(code == VerifyCode.VERIFY_CODE_VALID).setCode(code);
        return switch (code) {
            case VERIFY_CODE_ENVIRONMENT_MISMATCH -> answer.setEnvironmentId("another");
            case VERIFY_CODE_IP_NOT_ALLOWED -> answer.addAllowedCidrs("203.0.113.0/24");
            case VERIFY_CODE_INSUFFICIENT_SCOPE -> answer.clearScopes();
            default -> answer;
        };
    }

    static VerifyResponse.Builder denied(VerifyCode code) {
        return VerifyResponse.newBuilder().setCode(code).setCheckTime(Timestamp.newBuilder().setSeconds(NOW));
    }

    String target() {
        return "127.0.0.1:" + server.getPort();
    }

    int port() {
        return server.getPort();
    }

    /** Sets the function that answers each verification from now on. It may throw a status. */
    void answer(Function<VerifyRequest, VerifyResponse.Builder> with) {
        answers = with;
    }

    /** Sets a check of each batch from now on. It may throw a status, which fails the batch. */
    void refuse(Consumer<BatchVerifyRequest> with) {
        refusal = with;
    }

    /** Sets what is made of a batch's answers from now on. */
    void shape(UnaryOperator<List<VerifyResponse>> with) {
        shape = with;
    }

    /** Holds back answers from now on, until the returned latch is counted down. */
    CountDownLatch hold() {
        gate = new CountDownLatch(1);
        return gate;
    }

    /** Waits for the next Watch stream. */
    Stream stream() {
        return next(streams);
    }

    static <T> T next(BlockingQueue<T> queue) {
        try {
            T next = queue.poll(20, TimeUnit.SECONDS);
            assertNotNull(next, "what was waited for did not come");
            return next;
        } catch (InterruptedException interruption) {
            throw new AssertionError(interruption);
        }
    }

    @Override
    public void close() {
        gate.countDown();
        server.shutdownNow();
        try {
            server.awaitTermination(20, TimeUnit.SECONDS);
        } catch (InterruptedException interruption) {
            throw new AssertionError(interruption);
        }
    }

    /** One Watch stream, on the server's side. */
    static final class Stream {
        final WatchRequest request;
        /** The client's address. Another connection has another port. */
        final String peer;
        private final StreamObserver<WatchResponse> to;

        private Stream(WatchRequest request, String peer, StreamObserver<WatchResponse> to) {
            this.request = request;
            this.peer = peer;
            this.to = to;
        }

        void heartbeat(String cursor) {
            to.onNext(WatchResponse.newBuilder().setCursor(cursor).build());
        }

        /** Sends a heartbeat that confirms the instant at which the stream had this age. */
        void heartbeat(String cursor, java.time.Duration age) {
            to.onNext(WatchResponse.newBuilder()
                    .setCursor(cursor)
                    .setStreamAge(Duration.newBuilder().setSeconds(age.getSeconds()).setNanos(age.getNano()))
                    .build());
        }

        void changed(String cursor, String keyId, long revision) {
            to.onNext(WatchResponse.newBuilder()
                    .setCursor(cursor)
                    .addEvents(KeyEvent.newBuilder().setKeyId(keyId).setRevision(revision))
                    .build());
        }

        void reset(String cursor) {
            to.onNext(WatchResponse.newBuilder().setCursor(cursor).setReset(true).build());
        }

        void fail(Status status) {
            to.onError(status.asRuntimeException());
        }

        boolean cancelled() {
            return ((ServerCallStreamObserver<?>) to).isCancelled();
        }
    }

    private final class Service extends ApiKeyServiceGrpc.ApiKeyServiceImplBase {
        @Override
        public void verify(VerifyRequest request, StreamObserver<VerifyResponse> to) {
            CountDownLatch held = gate;
            Function<VerifyRequest, VerifyResponse.Builder> said = answers;
            verifies.add(request);
            await(held);
            try {
                to.onNext(said.apply(request).build());
                to.onCompleted();
            } catch (RuntimeException failure) {
                to.onError(failure);
            }
        }

        @Override
        public void batchVerify(BatchVerifyRequest request, StreamObserver<BatchVerifyResponse> to) {
            Function<VerifyRequest, VerifyResponse.Builder> said = answers;
            batches.add(request);
            try {
                refusal.accept(request);
                List<VerifyResponse> all = request.getRequestsList().stream()
                        .map(item -> said.apply(item).build())
                        .toList();
                to.onNext(BatchVerifyResponse.newBuilder().addAllResponses(shape.apply(all)).build());
                to.onCompleted();
            } catch (RuntimeException failure) {
                to.onError(failure);
            }
        }

        @Override
        public void watch(WatchRequest request, StreamObserver<WatchResponse> to) {
            ((ServerCallStreamObserver<WatchResponse>) to).setOnCancelHandler(() -> {});
            streams.add(new Stream(request, PEER.get(), to));
        }

        private static void await(CountDownLatch latch) {
            try {
                latch.await(20, TimeUnit.SECONDS);
            } catch (InterruptedException interruption) {
                Thread.currentThread().interrupt();
            }
        }
    }

    private final class Listening implements ServerInterceptor {
        @Override
        public <Q, A> ServerCall.Listener<Q> interceptCall(
                ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
            authorizations.add(
                    String.valueOf(headers.get(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER))));
            String peer = String.valueOf(call.getAttributes().get(Grpc.TRANSPORT_ATTR_REMOTE_ADDR));
            return Contexts.interceptCall(Context.current().withValue(PEER, peer), call, headers, next);
        }
    }
}
