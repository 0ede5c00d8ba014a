package dev.tumbler.grpc;

import dev.tumbler.Guards;
import dev.tumbler.Guards.Refusal;
import dev.tumbler.Verification;
import dev.tumbler.Verifier;
import dev.tumbler.VerifyOptions;
import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.Grpc;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import java.lang.System.Logger.Level;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.Executors;
import java.util.function.BiFunction;
import java.util.function.Function;
import java.util.function.Predicate;

/**
 * Admits only calls with a valid key. The guard takes the key from {@code authorization: Bearer …} or from {@code
 * x-api-key}, and refuses a call with more than one of these headers.
 *
 * <p>It never blocks. A call whose key needs a call to the Tumbler server waits without a thread, and continues in the
 * interceptor's executor. So calls with cached keys are not delayed while that server is slow, even if the gRPC
 * server's own executor is small or is the transport's thread.
 *
 * <p>A call that streams in either direction ends when its key stops being valid, with the status that a new call would
 * get. Its handler sees what it sees when the caller hangs up: the call is cancelled. Unary calls run to their end.
 */
public final class KeyInterceptor implements ServerInterceptor {
    private static final System.Logger LOG = System.getLogger("dev.tumbler.guards");
    private static final Context.Key<Verification> IDENTITY = Context.key("dev.tumbler.Verification");
    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    private static final Metadata.Key<String> X_API_KEY =
            Metadata.Key.of("x-api-key", Metadata.ASCII_STRING_MARSHALLER);

    private final Verifier verifier;
    private final Function<? super ServerCall<?, ?>, List<String>> scopes;
    private final String environmentId;
    private final List<String> projectIds;
    private final BiFunction<? super ServerCall<?, ?>, Metadata, String> clientIp;
    private final Predicate<? super MethodDescriptor<?, ?>> exempt;
    private final Executor executor;
    private final boolean endStreams;

    private KeyInterceptor(Builder options) {
        verifier = options.verifier;
        scopes = options.scopes;
        environmentId = options.environmentId;
        projectIds = options.projectIds;
        clientIp = options.clientIp;
        exempt = options.exempt;
        executor = options.executor == null ? Threads.SHARED : options.executor;
        endStreams = options.endStreams;
    }

    /**
     * Returns a builder of an interceptor.
     *
     * @param verifier verifies the keys; the interceptor does not close it
     * @return a builder; by default any valid key is accepted, and no method is exempt
     */
    public static Builder builder(Verifier verifier) {
        return new Builder(verifier);
    }

    /**
     * Returns the verdict by which a guard admitted the current call.
     *
     * @return a valid verdict; empty if no interceptor of this kind guards the method, or the method is exempt
     */
    public static Optional<Verification> identity() {
        return Optional.ofNullable(IDENTITY.get());
    }

    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
            ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
        CompletableFuture<Verification> verdict = null; // null: the method is exempt
        Function<HeldCall<Q, A>, Runnable> hold = held -> () -> {};
        try {
            if (!exempt.test(call.getMethodDescriptor())) {
                Optional<String> key = Guards.presentedKey(headers.getAll(AUTHORIZATION), headers.getAll(X_API_KEY));
                if (key.isEmpty()) {
                    return refuse(call, Refusal.KEY_REQUIRED);
                }
                List<String> required = scopes.apply(call);
                if (required == null) {
                    return refuse(call, Guards.unlisted());
                }
                VerifyOptions demand = new VerifyOptions(
                        required, clientIp.apply(call, headers), environmentId, projectIds);
                long since = Guards.moment(verifier);
                CompletableFuture<Verification> asked = verifier.verifyAsync(key.get(), demand);
                hold = held -> Guards.hold(verifier, key.get(), demand, asked.join(), since, held::end);
                verdict = asked;
            }
        } catch (RuntimeException failure) { // from a function of the application
            return refuse(call, Guards.refusal(failure));
        }
        if (verdict == null) {
            return next.startCall(call, headers);
        }
        if (verdict.isDone()) {
            return admit(verdict, call, headers, next, hold);
        }
        CompletableFuture<Verification> awaited = verdict;
        Function<HeldCall<Q, A>, Runnable> holding = hold;
        DeferredListener<Q> waiting = new DeferredListener<>(call);
        Context context = Context.current();
        Runnable proceed = context.wrap(() -> waiting.proceed(() -> admit(awaited, call, headers, next, holding)));
        var unused = awaited.whenComplete((verification, failure) -> { // its failure is admit's to handle
            try {
                executor.execute(proceed);
            } catch (RuntimeException | OutOfMemoryError rejection) { // OutOfMemoryError: it could start no thread
                waiting.proceed(() -> refuse(call, Refusal.UNDECIDED));
                LOG.log(Level.ERROR, "undecided: the guard's executor rejects calls", rejection);
            }
        });
        return waiting;
    }

    private <Q, A> ServerCall.Listener<Q> admit(
            CompletableFuture<Verification> verdict,
            ServerCall<Q, A> call,
            Metadata headers,
            ServerCallHandler<Q, A> next,
            Function<HeldCall<Q, A>, Runnable> hold) {
        Verification verification;
        try {
            verification = verdict.join();
        } catch (RuntimeException failure) {
            return refuse(call, Guards.refusal(failure));
        }
        Optional<Refusal> refusal = Guards.refusal(verification);
        if (refusal.isPresent()) {
            return refuse(call, refusal.get());
        }
        Context identified = Context.current().withValue(IDENTITY, verification);
        if (!endStreams || call.getMethodDescriptor().getType() == MethodDescriptor.MethodType.UNARY) {
            return Contexts.interceptCall(identified, call, headers, next);
        }
        HeldCall<Q, A> held = new HeldCall<>(call);
        held.onEnd(hold.apply(held));
        return held.listener(Contexts.interceptCall(identified, held, headers, next));
    }

    private static <Q, A> ServerCall.Listener<Q> refuse(ServerCall<Q, A> call, Refusal refusal) {
        call.close(refusal.grpcStatus(), new Metadata());
        return new ServerCall.Listener<>() {};
    }

    private static String peer(ServerCall<?, ?> call) {
        return call.getAttributes().get(Grpc.TRANSPORT_ATTR_REMOTE_ADDR) instanceof InetSocketAddress address
                        && address.getAddress() != null
                ? Guards.clientIp(address.getAddress().getHostAddress())
                : "";
    }

    /** Created when the first call must wait. */
    private static final class Threads {
        static final Executor SHARED = Executors.newCachedThreadPool(task -> {
            Thread thread = new Thread(task, "tumbler-guard");
            thread.setDaemon(true);
            return thread;
        });
    }

    /** Builds an interceptor. */
    public static final class Builder {
        private final Verifier verifier;
        private Function<? super ServerCall<?, ?>, List<String>> scopes = call -> List.of();
        private String environmentId = "";
        private List<String> projectIds = List.of();
        private BiFunction<? super ServerCall<?, ?>, Metadata, String> clientIp = (call, headers) -> peer(call);
        private Predicate<? super MethodDescriptor<?, ?>> exempt = method -> false;
        private Executor executor;
        private boolean endStreams = true;

        private Builder(Verifier verifier) {
            this.verifier = verifier;
        }

        /**
         * Demands the same scopes for all methods.
         *
         * @param required the scopes that a key must grant
         * @return this
         */
        public Builder requireScopes(String... required) {
            List<String> all = List.of(required);
            return requireScopes(call -> all);
        }

        /**
         * Demands scopes that depend on the call.
         *
         * @param required returns the scopes that a key must grant for a call. If it returns null, the call is refused
         *     with PERMISSION_DENIED, whatever the key; if it throws, with INTERNAL
         * @return this
         */
        public Builder requireScopes(Function<? super ServerCall<?, ?>, List<String>> required) {
            scopes = required;
            return this;
        }

        /**
         * Demands an environment.
         *
         * @param id the environment that a key must belong to
         * @return this
         */
        public Builder environment(String id) {
            environmentId = id;
            return this;
        }

        /**
         * Demands a project. This narrows what the verifier accepts, and never widens it.
         *
         * @param ids a key must belong to one of these projects
         * @return this
         * @throws IllegalArgumentException if there is no id, or an empty one
         */
        public Builder projectId(String... ids) {
            projectIds = VerifyOptions.NONE.withProject(ids).projectIds();
            return this;
        }

        /**
         * Sets a function that returns the client's address for a call. The default is the connection's peer, which
         * behind a proxy is the proxy. Read metadata only if your own proxy sets it.
         *
         * @param address returns an IPv4 or IPv6 address, or an empty text
         * @return this
         */
        public Builder clientIp(BiFunction<? super ServerCall<?, ?>, Metadata, String> address) {
            clientIp = address;
            return this;
        }

        /**
         * Admits calls of these methods without a key: health checks, for example.
         *
         * @param methods returns true for an exempt method, for example {@code method ->
         *     "grpc.health.v1.Health".equals(method.getServiceName())}
         * @return this
         */
        public Builder exempt(Predicate<? super MethodDescriptor<?, ?>> methods) {
            exempt = methods;
            return this;
        }

        /**
         * Sets where calls continue that had to wait. The default is a pool of daemon threads, as many as needed. A call
         * that it rejects is refused with UNAVAILABLE.
         *
         * @param executor may run handlers, so they must be allowed to block it
         * @return this
         */
        public Builder executor(Executor executor) {
            this.executor = executor;
            return this;
        }

        /**
         * Sets whether the guard ends streaming calls when their key stops being valid. The default is true.
         *
         * @param end true to end them
         * @return this
         */
        public Builder endStreams(boolean end) {
            endStreams = end;
            return this;
        }

        /**
         * Builds the interceptor.
         *
         * @return an interceptor for {@code ServerBuilder.intercept}
         */
        public KeyInterceptor build() {
            return new KeyInterceptor(this);
        }
    }
}
