package dev.tumbler;

import dev.tumbler.Calls.Told;
import dev.tumbler.Memory.Entry;
import dev.tumbler.v1.ApiKeyServiceGrpc;
import dev.tumbler.v1.ApiKeyServiceGrpc.ApiKeyServiceStub;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/**
 * Verifies API keys, most of them without a call: it remembers what the server said of a key, decides anew on each use,
 * and listens to what changes, so that a revoked key is denied within moments, and within {@code maxStaleness} whatever
 * breaks.
 *
 * <p>Make one for a process, and use it from all threads, virtual ones too. It is ready at once and need not be
 * reachable then; its own threads are daemons.
 *
 * <pre>{@code
 * try (Verifier verifier = Verifier.builder("127.0.0.1:50051").apiKey(System.getenv("TUMBLER_API_KEY")).build()) {
 *     if (verifier.verify(key, VerifyOptions.requireScopes("orders:read")).valid()) { … }
 * }
 * }</pre>
 *
 * <p>No presented key is kept for longer than a call.
 */
public final class Verifier implements AutoCloseable {
    private static final long SHORTEST_RESET_INTERVAL = Duration.ofSeconds(2).toNanos();

    /** A server that is only slow must not be busy with new connections. */
    private static final long SHORTEST_RECONNECT_INTERVAL = Duration.ofSeconds(10).toNanos();
    /** The server's own limit is 3 MiB; gRPC's default of 4 MiB leaves little above it. */
    private static final int LARGEST_ANSWER = 16 * 1024 * 1024;

    /**
     * Calls go to every server that the target names, and so to those that are left where one is lost. gRPC itself
     * repeats calls that did not get through; docs/clients.md says how often.
     */
    private static final Map<String, ?> SERVICE_CONFIG = Map.of(
            "loadBalancingConfig",
            List.of(Map.of("round_robin", Map.of())),
            "methodConfig",
            List.of(Map.of(
                    "name",
                    List.of(
                            Map.of("service", ApiKeyServiceGrpc.SERVICE_NAME, "method", "Verify"),
                            Map.of("service", ApiKeyServiceGrpc.SERVICE_NAME, "method", "BatchVerify")),
                    "retryPolicy",
                    Map.of(
                            "maxAttempts", 3.0,
                            "initialBackoff", "0.05s",
                            "maxBackoff", "0.5s",
                            "backoffMultiplier", 2.0,
                            "retryableStatusCodes", List.of("UNAVAILABLE")))));

    static {
        ListedNameResolver.register();
    }

    private final Time time;
    private final ManagedChannel channel;
    private final Fingerprints fingerprints = new Fingerprints();
    private final Memory memory;
    private final Calls calls;
    private final Watcher watcher;
    private final Sessions sessions;
    private volatile long connectedAnew;
    private volatile long suspected;
    private volatile boolean closed;

    private Verifier(Builder options) {
        time = options.time == null ? Time.real() : options.time;
        channel = Grpc.newChannelBuilder(
                        options.target,
                        options.credentials == null ? InsecureChannelCredentials.create() : options.credentials)
                .defaultServiceConfig(SERVICE_CONFIG)
                .maxInboundMessageSize(LARGEST_ANSWER)
                // A connection that leads nowhere any more ends by this: the server allows a ping every ten seconds.
                .keepAliveTime(10, TimeUnit.SECONDS)
                .keepAliveTimeout(5, TimeUnit.SECONDS)
                .build();
        Metadata headers = new Metadata();
        headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + options.apiKey);
        ApiKeyServiceStub stub =
                ApiKeyServiceGrpc.newStub(channel).withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
        memory = new Memory(
                options.watch || options.fixedTtl != null ? options.cacheSize : 0,
                options.cacheBytes,
                options.maxStaleness.toNanos(),
                options.heartbeat.toNanos(),
                options.fixedTtl == null ? 0 : options.fixedTtl.toNanos(),
                time.nanos());
        connectedAnew = time.nanos();
        suspected = time.nanos() - SHORTEST_RECONNECT_INTERVAL;
        calls = new Calls(stub, memory, options.projects, fingerprints, time, options.timeout, this::connectAnew, this::suspect);
        sessions = new Sessions(this::renew, memory::freshFor, fingerprints, options.maxStaleness, time);
        memory.onChange(sessions::heard);
        watcher = options.watch && options.cacheSize > 0 && options.cacheBytes > 0 // else there is nothing to keep fresh
                ? new Watcher(stub, channel, memory, options.projects.only(), time, options.heartbeat, options.logger)
                : null;
        if (watcher != null) {
            watcher.open();
        }
    }

    /**
     * Begins to describe a verifier.
     *
     * @param target where the server is, a gRPC target: {@code 127.0.0.1:50051}, {@code dns:///keys.example:50051} …
     * @return a builder with the defaults
     */
    public static Builder builder(String target) {
        return new Builder(target);
    }

    /**
     * Verifies a key without demanding anything of it. As {@link #verify(String, VerifyOptions)}.
     *
     * @param key the key's whole text, as it was presented
     * @return the outcome
     */
    public Verification verify(String key) {
        return verify(key, VerifyOptions.NONE);
    }

    /**
     * Verifies a key. Answers at once where it can; else it waits for the server, at most for the timeout.
     *
     * @param key the key's whole text, as it was presented
     * @param options what it is presented for
     * @return the outcome; let pass only what is {@link Verification#valid() valid}
     * @throws UnavailableException if the server could not be asked in time, the verifier is closed, or the thread was
     *     interrupted (it stays so)
     * @throws NotAllowedException if the verifier's own key is refused; or it sees all projects, and none was said
     * @throws InvalidRequestException if something in the options is not of the right form
     */
    public Verification verify(String key, VerifyOptions options) {
        Verification known = recall(key, options);
        if (known != null) {
            return known;
        }
        try {
            return calls.verify(key, KeyForm.idOf(key), options).get();
        } catch (ExecutionException failure) {
            if (failure.getCause() instanceof TumblerException told) {
                throw told;
            }
            throw new UnavailableException("verifying failed", failure.getCause());
        } catch (InterruptedException interruption) {
            Thread.currentThread().interrupt();
            throw new UnavailableException("interrupted", interruption);
        }
    }

    /**
     * Verifies a key without waiting. As {@link #verify(String, VerifyOptions)}, with its exceptions in the future.
     *
     * @param key the key's whole text, as it was presented
     * @param options what it is presented for
     * @return the outcome; complete already where no call was needed. What depends on it must not block the thread that
     *     completes it: give it an executor.
     */
    public CompletableFuture<Verification> verifyAsync(String key, VerifyOptions options) {
        try {
            Verification known = recall(key, options);
            return known != null
                    ? CompletableFuture.completedFuture(known)
                    : calls.verify(key, KeyForm.idOf(key), options);
        } catch (TumblerException failure) {
            return CompletableFuture.failedFuture(failure);
        }
    }

    /** Ends the stream and whoever waits; they, and all who come later, get {@link UnavailableException}. */
    @Override
    public void close() {
        closed = true;
        if (watcher != null) {
            watcher.close();
        }
        sessions.close(Calls.closed());
        calls.close();
        time.close();
        memory.distrust(time.nanos());
        channel.shutdownNow();
    }

    /** Returns how many keys are remembered. */
    int remembered() {
        return memory.size();
    }

    /** Returns how far the stream has come; empty: it has not begun. */
    String cursor() {
        return memory.position().cursor();
    }

    /** Returns the open streams of the guards. */
    Sessions sessions() {
        return sessions;
    }

    /** Returns until when an open stream may rest on a verdict that has just been given, while changes are told. */
    long until(Verification verdict) {
        return memory.until(verdict.keyId(), time.nanos());
    }

    private CompletableFuture<Told> renew(String key, VerifyOptions demand) {
        try {
            Verification known = recall(key, demand);
            return known != null
                    ? CompletableFuture.completedFuture(new Told(known, until(known)))
                    : calls.ask(key, KeyForm.idOf(key), demand);
        } catch (TumblerException failure) {
            return CompletableFuture.failedFuture(failure);
        }
    }

    /** Returns what can be said of a key without a call, or null. */
    private Verification recall(String key, VerifyOptions options) {
        Objects.requireNonNull(key, "key");
        Objects.requireNonNull(options, "options");
        if (closed) {
            throw Calls.closed();
        }
        String id = KeyForm.idOf(key);
        if (id == null) {
            return Verification.unproven(Code.MALFORMED, false);
        }
        long now = time.nanos();
        Entry entry = memory.find(id, now);
        if (entry != null && Fingerprints.same(entry.fingerprint, fingerprints.of(key))) {
            Code code = entry.answer.decide(options, now);
            return code == Code.VALID ? entry.allowed : entry.answer.verification(code, true);
        }
        if (KeyForm.parse(key) == null) {
            return Verification.unproven(Code.MALFORMED, false);
        }
        // An id has one key, and this is not it.
        return entry == null ? null : Verification.unproven(Code.NOT_FOUND, true);
    }

    /** Has the channel connect at once, though not again and again: gRPC's own pause grows to minutes. */
    private void connectAnew() {
        long now = time.nanos();
        if (now - connectedAnew >= SHORTEST_RESET_INTERVAL) {
            connectedAnew = now;
            channel.resetConnectBackoff();
        }
    }

    /**
     * Has what follows go over new connections: one whose other end stands still, while its kernel still acknowledges,
     * looks like any other. What is under way goes on over the old ones.
     */
    private void suspect() {
        long now = time.nanos();
        if (now - suspected >= SHORTEST_RECONNECT_INTERVAL) {
            suspected = now;
            channel.enterIdle();
        }
    }

    /** Describes a verifier. Only the key is required. */
    public static final class Builder {
        private final String target;
        private String apiKey;
        private List<String> projectIds;
        private boolean anyProject;
        private Projects projects;
        private ChannelCredentials credentials;
        private boolean insecure;
        private int cacheSize = 10_000;
        private long cacheBytes = 32L * 1024 * 1024;
        private Duration maxStaleness = Duration.ofSeconds(15);
        private Duration heartbeat = Duration.ofSeconds(5);
        private Duration timeout = Duration.ofSeconds(2);
        private boolean watch = true;
        private Duration fixedTtl;
        private System.Logger logger = System.getLogger("dev.tumbler");
        private Time time;

        private Builder(String target) {
            this.target = Objects.requireNonNull(target, "target");
        }

        /**
         * Sets the key with which the verifier itself calls. It needs the scope {@code tumbler:keys:verify}.
         *
         * @param key the key's whole text
         * @return this
         */
        public Builder apiKey(String key) {
            apiKey = key;
            return this;
        }

        /**
         * Sets whose keys are accepted: those of a project, or of several. A key of another is {@link Code#NOT_FOUND}.
         * Unset: those of the project of the verifier's own key. Where that key sees all projects (it is one of the
         * reserved project {@code tumbler}), it must be said: by this, or by {@link #anyProject}.
         *
         * @param ids the projects
         * @return this
         */
        public Builder projectId(String... ids) {
            projectIds = Arrays.asList(ids.clone());
            return this;
        }

        /**
         * Accepts the keys of all projects that the verifier's own key sees, whichever tenant's they are.
         *
         * @return this
         */
        public Builder anyProject() {
            anyProject = true;
            return this;
        }

        /**
         * Sets how the server is trusted: {@code io.grpc.TlsChannelCredentials.create()}, or with a certificate
         * authority of your own. Unset: no TLS, which is refused unless the target is this machine.
         *
         * @param credentials of the channel
         * @return this
         */
        public Builder credentials(ChannelCredentials credentials) {
            this.credentials = credentials;
            return this;
        }

        /**
         * Allows plaintext to another machine: all keys, and this verifier's own, can then be read on the way.
         *
         * @return this
         */
        public Builder insecure() {
            insecure = true;
            return this;
        }

        /**
         * Sets how many keys are remembered at most. Default 10,000; 0: none, and so nothing is listened to.
         *
         * @param keys how many
         * @return this
         */
        public Builder cacheSize(int keys) {
            cacheSize = keys;
            return this;
        }

        /**
         * Sets how many bytes they may take together, each counted as the server's answer and 1,024 bytes beside it.
         * Default 33,554,432 (32 MiB); 0: none, and so nothing is listened to.
         *
         * @param bytes how many
         * @return this
         */
        public Builder cacheBytes(long bytes) {
            cacheBytes = bytes;
            return this;
        }

        /**
         * Sets for how long what is remembered is used after the stream's last word. Default 15 s.
         *
         * @param span more than the heartbeat; within two and a half heartbeats a silent stream is made anew
         * @return this
         */
        public Builder maxStaleness(Duration span) {
            maxStaleness = span;
            return this;
        }

        /**
         * Sets how often the stream says that nothing changed. Default 5 s.
         *
         * @param interval 1 s to 1 h
         * @return this
         */
        public Builder heartbeat(Duration interval) {
            heartbeat = interval;
            return this;
        }

        /**
         * Sets for how long a caller waits at most. Default 2 s.
         *
         * @param span more than zero
         * @return this
         */
        public Builder timeout(Duration span) {
            timeout = span;
            return this;
        }

        /**
         * Sets whether to listen to changes. On unless said otherwise; off, nothing is remembered (but see
         * {@link #fixedTtl}).
         *
         * @param on whether to
         * @return this
         */
        public Builder watch(boolean on) {
            watch = on;
            return this;
        }

        /**
         * Remembers for a fixed time without listening: a revocation is seen no sooner. Only with {@link #watch} off.
         *
         * @param span for how long at most; a record's own {@code cache_ttl} may be less
         * @return this
         */
        public Builder fixedTtl(Duration span) {
            fixedTtl = span;
            return this;
        }

        /**
         * Sets where to say what happens to the stream. Default: the platform's logger {@code dev.tumbler}.
         *
         * @param logger gets no key, neither presented ones nor the verifier's own
         * @return this
         */
        public Builder logger(System.Logger logger) {
            this.logger = Objects.requireNonNull(logger, "logger");
            return this;
        }

        /** Sets the time, for tests. */
        Builder time(Time time) {
            this.time = time;
            return this;
        }

        /**
         * Makes the verifier, which begins to listen. It need not reach the server yet.
         *
         * @return a verifier; close it when it is not needed any more
         * @throws IllegalArgumentException if an option breaks a rule; the message says which, and never shows the key
         */
        public Verifier build() {
            demand(apiKey != null && apiKey.matches("[!-~]+"), "apiKey: must be one key of visible ASCII characters");
            demand(projectIds == null || Projects.areNamed(projectIds), Projects.NAMELESS);
            demand(projectIds == null || !anyProject, "projectId: cannot be combined with anyProject()");
            projects = new Projects(projectIds == null ? List.of() : projectIds, anyProject);
            demand(
                    insecure
                            || credentials != null && !(credentials instanceof InsecureChannelCredentials)
                            || Target.isLoopback(target),
                    "credentials: the target is not this machine, so keys would cross the network in plaintext; "
                            + "use credentials, or insecure() if the network is trusted");
            demand(cacheSize >= 0, "cacheSize: must be 0 or more");
            demand(cacheBytes >= 0, "cacheBytes: must be 0 or more");
            demand(isPositive(timeout), "timeout: must be more than 0, and at most 365 days");
            demand(isPositive(maxStaleness), "maxStaleness: must be more than 0, and at most 365 days");
            demand(
                    heartbeat != null
                            && heartbeat.compareTo(Duration.ofSeconds(1)) >= 0
                            && heartbeat.compareTo(Duration.ofHours(1)) <= 0,
                    "heartbeat: must be 1 s to 1 h");
            demand(!watch || heartbeat.compareTo(maxStaleness) < 0, "maxStaleness: must be longer than heartbeat");
            demand(fixedTtl == null || isPositive(fixedTtl), "fixedTtl: must be more than 0, and at most 365 days");
            demand(fixedTtl == null || !watch, "fixedTtl: is only allowed without watch");
            return new Verifier(this);
        }

        private static boolean isPositive(Duration span) {
            return span != null && !span.isZero() && !span.isNegative() && span.compareTo(Duration.ofDays(365)) <= 0;
        }

        private static void demand(boolean met, String rule) {
            if (!met) {
                throw new IllegalArgumentException(rule);
            }
        }
    }
}
