package dev.tumbler;

import dev.tumbler.v1.ApiKeyServiceGrpc.ApiKeyServiceStub;
import dev.tumbler.v1.WatchRequest;
import dev.tumbler.v1.WatchResponse;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.locks.ReentrantLock;

/** Follows the Watch stream, and updates the cache. It reopens the stream whenever it breaks, until it is closed. */
final class Watcher {
    private static final long FIRST_BACKOFF = Duration.ofMillis(100).toNanos();
    private static final long MAX_BACKOFF = Duration.ofSeconds(5).toNanos();
    /** The longest duration that protobuf allows, 10,000 years. A longer one would overflow. */
    private static final long MAX_DURATION_SECONDS = 315_576_000_000L;

    private final ApiKeyServiceStub stub;
    private final ManagedChannel channel;
    private final Cache cache;
    private final String project;
    private final Clock clock;
    private final Duration heartbeat;
    private final SafeLogger log;

    /** Guards the fields below. */
    private final ReentrantLock lock = new ReentrantLock();

    private Stream current;
    private int failures;
    private boolean broken;
    private boolean closed;

    Watcher(
            ApiKeyServiceStub stub,
            ManagedChannel channel,
            Cache cache,
            String project,
            Clock clock,
            Duration heartbeat,
            System.Logger log) {
        this.stub = stub;
        this.channel = channel;
        this.cache = cache;
        this.project = project;
        this.clock = clock;
        this.heartbeat = heartbeat;
        this.log = new SafeLogger(log);
    }

    void open() {
        Stream stream;
        lock.lock();
        try {
            if (closed) {
                return;
            }
            stream = new Stream(cache.position().cursor());
            current = stream;
        } finally {
            lock.unlock();
        }
        // gRPC's own backoff grows to minutes, and a call made during it fails without an attempt.
        channel.resetConnectBackoff();
        WatchRequest request = WatchRequest.newBuilder()
                .setProjectId(project)
                .setStartCursor(stream.startCursor)
                .setHeartbeatInterval(com.google.protobuf.Duration.newBuilder()
                        .setSeconds(heartbeat.getSeconds())
                        .setNanos(heartbeat.getNano()))
                .build();
        Context.ROOT.run(() -> stub.watch(request, stream));
        stream.startWatchdog();
    }

    void close() {
        Stream last;
        lock.lock();
        try {
            closed = true;
            last = current;
            current = null;
        } finally {
            lock.unlock();
        }
        if (last != null) {
            last.cancel();
        }
    }

    /** One stream. Its callbacks come one at a time. When it is no longer the current one, they do nothing. */
    private final class Stream implements ClientResponseObserver<WatchRequest, WatchResponse> {
        private final String startCursor;
        private final long maxSilence = heartbeat.toNanos() / 2 * 5;
        private volatile ClientCallStreamObserver<WatchRequest> call;
        private final long requestedAt = clock.now();
        private volatile long lastMessageAt = requestedAt;
        private boolean receivedAny;
        private Runnable watchdog = () -> {};

        Stream(String startCursor) {
            this.startCursor = startCursor;
        }

        @Override
        public void beforeStart(ClientCallStreamObserver<WatchRequest> call) {
            this.call = call;
        }

        @Override
        public void onNext(WatchResponse response) {
            if (!handle(response, clock.now())
                    && streamEnded(Status.CANCELLED.withDescription("its heartbeats arrive too late to be used"))) {
                cancel();
            }
        }

        /** Processes a message, and returns whether to keep the stream. */
        private boolean handle(WatchResponse response, long now) {
            boolean restored;
            lock.lock();
            try {
                if (current != this) {
                    return true;
                }
                lastMessageAt = now;
                // Without a start cursor, changes before the first message are never delivered.
                if (response.getReset() || (!receivedAny && startCursor.isEmpty())) {
                    cache.reset(response.getCursor());
                }
                receivedAny = true;
                if (response.getEventsCount() > 0) {
                    cache.applyEvents(response.getEventsList(), response.getCursor());
                } else if (!response.getReset()
                        && !cache.applyHeartbeat(response.getCursor(), requestedAt, age(response), now)) {
                    return false;
                }
                restored = broken;
                broken = false;
            } finally {
                lock.unlock();
            }
            if (restored) {
                log.log(Level.INFO, "the stream is restored");
            }
            return true;
        }

        private static Duration age(WatchResponse response) {
            if (!response.hasStreamAge()) {
                return null;
            }
            com.google.protobuf.Duration age = response.getStreamAge();
            long seconds = Math.max(-MAX_DURATION_SECONDS, Math.min(age.getSeconds(), MAX_DURATION_SECONDS));
            return Duration.ofSeconds(seconds, age.getNanos());
        }

        @Override
        public void onError(Throwable failure) {
            streamEnded(Status.fromThrowable(failure));
        }

        @Override
        public void onCompleted() {
            streamEnded(Status.OK);
        }

        void cancel() {
            if (call != null) { // else the call is about to start, on a channel that is shut down
                call.cancel("the stream is no longer used", null);
            }
        }

        /** Closes and reopens the stream if it is silent for too long. */
        void startWatchdog() {
            lock.lock();
            try {
                if (current == this) {
                    watchdog = clock.after(maxSilence - (clock.now() - lastMessageAt), this::onWatchdog);
                }
            } finally {
                lock.unlock();
            }
        }

        private void onWatchdog() {
            if (clock.now() - lastMessageAt < maxSilence) {
                startWatchdog();
            } else if (streamEnded(Status.DEADLINE_EXCEEDED.withDescription("no heartbeat arrived in time"))) {
                cancel();
                channel.enterIdle(); // so that the next attempt is over another connection
            }
        }

        /** Schedules the next attempt, and returns whether this was the current stream. */
        private boolean streamEnded(Status status) {
            Level level;
            lock.lock();
            try {
                if (current != this) {
                    return false;
                }
                current = null;
                watchdog.run();
                // A stream that breaks at once is no recovery, even if it delivered a message.
                if (clock.now() - requestedAt >= heartbeat.toNanos()) {
                    failures = 0;
                }
                broken = true;
                level = failures++ == 0 ? Level.WARNING : Level.DEBUG;
                clock.after(backoff(status), Watcher.this::open);
            } finally {
                lock.unlock();
            }
            log.log(
                    level,
                    "the stream broke and will be reopened: {0}",
                    status.getDescription() == null
                            ? status.getCode()
                            : status.getCode() + ": " + status.getDescription());
            return true;
        }

        private long backoff(Status status) {
            switch (status.getCode()) {
                case UNAUTHENTICATED, PERMISSION_DENIED -> {
                    cache.invalidate(clock.now());
                    return MAX_BACKOFF;
                }
                case INVALID_ARGUMENT -> cache.dropCursor(startCursor, clock.now());
                default -> {}
            }
            long most = Math.min(MAX_BACKOFF, FIRST_BACKOFF << Math.min(failures - 1, 10));
            return ThreadLocalRandom.current().nextLong(most);
        }
    }
}
