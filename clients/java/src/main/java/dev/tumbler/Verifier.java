package dev.tumbler;

import dev.tumbler.Batcher.VerdictUntil;
import dev.tumbler.Cache.Entry;
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
 * Verifies API keys, most of them without a call. It caches the server's record of a key, never a verdict: each call
 * decides again. It follows the server's Watch stream, so it denies a revoked key within milliseconds, and within
 * {@code maxStaleness} whatever breaks.
 *
 * <p>Create one per process, and use it from any thread, including virtual threads. It is ready at once, even if the
 * server is not reachable yet. Its own threads are daemons.
 *
 * <pre>{@code
 * try (Verifier verifier = Verifier.builder("127.0.0.1:50051").apiKey(System.getenv("TUMBLER_API_KEY")).build()) {
 *     if (verifier.verify(key, VerifyOptions.requireScopes("orders:read")).valid()) { … }
 * }
 * }</pre>
 *
 * <p>No presented key stays in memory longer than a call or a guarded stream.
 */
public final class Verifier implements AutoCloseable {
    private static final long MIN_BACKOFF_RESET_INTERVAL = Duration.ofSeconds(2).toNanos();

    /** The minimum time between reconnections. Reconnecting must not load a server that is only slow. */
    private static final long MIN_RECONNECT_INTERVAL = Duration.ofSeconds(10).toNanos();
    /** Leaves room above the server's own limit of 3 MiB; gRPC's default of 4 MiB leaves little. */
    private static final int LARGEST_ANSWER = 16 * 1024 * 1024;

    /**
     * Spreads calls over all servers of the target by round robin, so if one is lost, calls go to the others. gRPC
     * itself retries calls that fail with UNAVAILABLE; docs/clients.md says how often.
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

    private final Clock clock;
    private final ManagedChannel channel;
    private final Digester digester = new Digester();
    private final Cache cache;
    private final Batcher batcher;
    private final Watcher watcher;
    private final Sessions sessions;
    private volatile long backoffResetAt;
    private volatile long reconnectedAt;
    private volatile boolean closed;

    private Verifier(Builder options) {
        clock = options.clock == null ? Clock.system() : options.clock;
        channel = Grpc.newChannelBuilder(
                        options.target,
                        options.credentials == null ? InsecureChannelCredentials.create() : options.credentials)
                .defaultServiceConfig(SERVICE_CONFIG)
                .maxInboundMessageSize(LARGEST_ANSWER)
                // Pings close dead connections. The server allows one ping every ten seconds.
                .keepAliveTime(10, TimeUnit.SECONDS)
                .keepAliveTimeout(5, TimeUnit.SECONDS)
                .build();
        Metadata headers = new Metadata();
        headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + options.apiKey);
        ApiKeyServiceStub stub =
                ApiKeyServiceGrpc.newStub(channel).withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
        cache = new Cache(
                options.watch || options.fixedTtl != null ? options.cacheSize : 0,
                options.cacheBytes,
                options.maxStaleness.toNanos(),
                options.heartbeat.toNanos(),
                options.fixedTtl == null ? 0 : options.fixedTtl.toNanos(),
                clock.now());
        backoffResetAt = clock.now();
        reconnectedAt = clock.now() - MIN_RECONNECT_INTERVAL;
        batcher = new Batcher(
                stub, cache, options.projects, digester, clock, options.timeout, this::resetBackoff, this::reconnect);
        sessions = new Sessions(this::recheck, cache::freshFor, digester, options.maxStaleness, clock);
        cache.onChange(sessions::changed);
        watcher = options.watch && options.cacheSize > 0 && options.cacheBytes > 0 // else nothing is to be kept fresh
                ? new Watcher(stub, channel, cache, options.projects.only(), clock, options.heartbeat, options.logger)
                : null;
        if (watcher != null) {
            watcher.open();
        }
    }

    /**
     * Returns a builder of a verifier.
     *
     * @param target the server's gRPC target: {@code 127.0.0.1:50051}, {@code dns:///keys.example:50051} …
     * @return a builder with the default options
     */
    public static Builder builder(String target) {
        return new Builder(target);
    }

    /**
     * Verifies a key without demands. Like {@link #verify(String, VerifyOptions)}.
     *
     * @param key the key's whole text, as it was presented
     * @return the verdict
     */
    public Verification verify(String key) {
        return verify(key, VerifyOptions.NONE);
    }

    /**
     * Verifies a key. It answers from the cache if it can. Otherwise it calls the server, and waits at most for the
     * timeout.
     *
     * @param key the key's whole text, as it was presented
     * @param options the demands on the key
     * @return the verdict; accept the key only if it is {@link Verification#valid() valid}
     * @throws UnavailableException if the server is unreachable or does not answer in time, the verifier is closed, or
     *     the thread was interrupted (it stays interrupted)
     * @throws NotAllowedException if the server refuses the verifier's own key; or that key sees all projects, and no
     *     option says which projects to accept
     * @throws InvalidRequestException if an option has the wrong form
     */
    public Verification verify(String key, VerifyOptions options) {
        Verification known = verifyLocally(key, options);
        if (known != null) {
            return known;
        }
        try {
            return batcher.verify(key, KeyFormat.peekId(key), options).get();
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
     * Verifies a key without blocking. Like {@link #verify(String, VerifyOptions)}; exceptions complete the future.
     *
     * @param key the key's whole text, as it was presented
     * @param options the demands on the key
     * @return the verdict; already complete if no call is needed. Dependent stages must not block the thread that
     *     completes it: give them an executor.
     */
    public CompletableFuture<Verification> verifyAsync(String key, VerifyOptions options) {
        try {
            Verification known = verifyLocally(key, options);
            return known != null
                    ? CompletableFuture.completedFuture(known)
                    : batcher.verify(key, KeyFormat.peekId(key), options);
        } catch (TumblerException failure) {
            return CompletableFuture.failedFuture(failure);
        }
    }

    /**
     * Closes the Watch stream and the connection, and ends all guarded streams. Pending and later calls of verify fail
     * with {@link UnavailableException}.
     */
    @Override
    public void close() {
        closed = true;
        if (watcher != null) {
            watcher.close();
        }
        sessions.close(Batcher.closed());
        batcher.close();
        clock.close();
        cache.invalidate(clock.now());
        channel.shutdownNow();
    }

    /** Returns the number of cached keys. */
    int remembered() {
        return cache.size();
    }

    /** Returns the Watch stream's cursor; empty: the stream has not delivered any message. */
    String cursor() {
        return cache.position().cursor();
    }

    /** Returns the guarded streams. */
    Sessions sessions() {
        return sessions;
    }

    /** Returns until when a guarded stream may rely on a verdict just given, while the cache is fresh. */
    long until(Verification verdict) {
        return cache.until(verdict.keyId(), clock.now());
    }

    private CompletableFuture<VerdictUntil> recheck(String key, VerifyOptions demand) {
        try {
            Verification known = verifyLocally(key, demand);
            return known != null
                    ? CompletableFuture.completedFuture(new VerdictUntil(known, until(known)))
                    : batcher.join(key, KeyFormat.peekId(key), demand);
        } catch (TumblerException failure) {
            return CompletableFuture.failedFuture(failure);
        }
    }

    /** Returns the verdict if no call is needed, or null. */
    private Verification verifyLocally(String key, VerifyOptions options) {
        Objects.requireNonNull(key, "key");
        Objects.requireNonNull(options, "options");
        if (closed) {
            throw Batcher.closed();
        }
        String id = KeyFormat.peekId(key);
        if (id == null) {
            return Verification.unproven(Code.MALFORMED, false);
        }
        long now = clock.now();
        Entry entry = cache.lookup(id, now);
        if (entry != null && Digester.same(entry.digest, digester.digest(key))) {
            Code code = entry.answer.decide(options, now);
            return code == Code.VALID ? entry.validVerdict : entry.answer.verification(code, true);
        }
        if (KeyFormat.parse(key) == null) {
            return Verification.unproven(Code.MALFORMED, false);
        }
        // An id has one key, and this is a different text.
        return entry == null ? null : Verification.unproven(Code.NOT_FOUND, true);
    }

    /** Makes the channel reconnect at once, at most every 2 s. gRPC's own backoff grows to minutes. */
    private void resetBackoff() {
        long now = clock.now();
        if (now - backoffResetAt >= MIN_BACKOFF_RESET_INTERVAL) {
            backoffResetAt = now;
            channel.resetConnectBackoff();
        }
    }

    /**
     * Makes new connections for later calls. If a server hangs while its kernel still acknowledges packets, the
     * connection looks healthy. Calls in flight continue on the old connections.
     */
    private void reconnect() {
        long now = clock.now();
        if (now - reconnectedAt >= MIN_RECONNECT_INTERVAL) {
            reconnectedAt = now;
            channel.enterIdle();
        }
    }

    /** Builds a verifier. Only the key is required. */
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
        private Clock clock;

        private Builder(String target) {
            this.target = Objects.requireNonNull(target, "target");
        }

        /**
         * Sets the verifier's own key, which needs the scope {@code tumbler:keys:verify}.
         *
         * @param key the key's whole text
         * @return this
         */
        public Builder apiKey(String key) {
            apiKey = key;
            return this;
        }

        /**
         * Sets the projects whose keys are accepted. A key of another project is {@link Code#NOT_FOUND}. The default is
         * the project of the verifier's own key. If that key belongs to the reserved project {@code tumbler}, it sees
         * all projects: then this or {@link #anyProject} is required.
         *
         * @param ids the ids of the projects, at least one
         * @return this
         */
        public Builder projectId(String... ids) {
            projectIds = Arrays.asList(ids.clone());
            return this;
        }

        /**
         * Accepts the keys of all projects that the verifier's own key sees, of every tenant.
         *
         * @return this
         */
        public Builder anyProject() {
            anyProject = true;
            return this;
        }

        /**
         * Secures the connection: {@code io.grpc.TlsChannelCredentials.create()}, or with a certificate authority of
         * your own. The default is plaintext, which is refused unless the target is this machine.
         *
         * @param credentials the channel's credentials
         * @return this
         */
        public Builder credentials(ChannelCredentials credentials) {
            this.credentials = credentials;
            return this;
        }

        /**
         * Allows plaintext to another machine. Anyone on the network path can then read the keys, including the
         * verifier's own.
         *
         * @return this
         */
        public Builder insecure() {
            insecure = true;
            return this;
        }

        /**
         * Sets the maximum number of cached keys. Default 10,000. With 0 there is no cache, and no Watch stream.
         *
         * @param keys 0 or more
         * @return this
         */
        public Builder cacheSize(int keys) {
            cacheSize = keys;
            return this;
        }

        /**
         * Sets the maximum size of the cache in bytes. A key counts as the size of the server's answer plus 1,024.
         * Default 33,554,432 (32 MiB). With 0 there is no cache, and no Watch stream.
         *
         * @param bytes 0 or more
         * @return this
         */
        public Builder cacheBytes(long bytes) {
            cacheBytes = bytes;
            return this;
        }

        /**
         * Sets the maximum age of the Watch stream's last heartbeat; the cache does not answer beyond it. Default 15 s.
         * This bounds how long a revoked key is still accepted if the server is unreachable.
         *
         * @param span longer than the heartbeat, at most 365 days; a stream that is silent for two and a half
         *     heartbeats is closed and reopened
         * @return this
         */
        public Builder maxStaleness(Duration span) {
            maxStaleness = span;
            return this;
        }

        /**
         * Sets how often the server sends a heartbeat on the Watch stream. Default 5 s.
         *
         * @param interval 1 s to 1 h
         * @return this
         */
        public Builder heartbeat(Duration interval) {
            heartbeat = interval;
            return this;
        }

        /**
         * Sets the longest duration of a verification. Default 2 s.
         *
         * @param span more than zero, at most 365 days
         * @return this
         */
        public Builder timeout(Duration span) {
            timeout = span;
            return this;
        }

        /**
         * Sets whether to follow the Watch stream. Default on. Without it nothing is cached unless {@link #fixedTtl} is
         * set.
         *
         * @param on true to follow the stream
         * @return this
         */
        public Builder watch(boolean on) {
            watch = on;
            return this;
        }

        /**
         * Caches keys for this long without a Watch stream. No revocation is seen, so a revoked key may be accepted for
         * that time. It is allowed only with {@link #watch} off.
         *
         * @param span the maximum lifetime of a cached key; a record's own {@code cache_ttl} may be shorter
         * @return this
         */
        public Builder fixedTtl(Duration span) {
            fixedTtl = span;
            return this;
        }

        /**
         * Sets the logger for the Watch stream. The default is the system logger {@code dev.tumbler}. No key is ever
         * logged, neither a presented one nor the verifier's own.
         *
         * @param logger a logger
         * @return this
         */
        public Builder logger(System.Logger logger) {
            this.logger = Objects.requireNonNull(logger, "logger");
            return this;
        }

        /** Sets the source of time, for tests. */
        Builder clock(Clock clock) {
            this.clock = clock;
            return this;
        }

        /**
         * Builds the verifier. It connects in the background, so the server need not be reachable yet.
         *
         * @return a verifier; close it after use
         * @throws IllegalArgumentException if an option is wrong; the message names the option and the rule, and never
         *     shows the key
         */
        public Verifier build() {
            demand(apiKey != null && apiKey.matches("[!-~]+"), "apiKey: must be one key of visible ASCII characters");
            demand(projectIds == null || Projects.areValid(projectIds), Projects.INVALID_PROJECT);
            demand(projectIds == null || !anyProject, "projectId: cannot be combined with anyProject()");
            projects = new Projects(projectIds == null ? List.of() : projectIds, anyProject);
            demand(
                    insecure
                            || (credentials != null && !(credentials instanceof InsecureChannelCredentials))
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
