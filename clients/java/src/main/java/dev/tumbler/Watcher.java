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
    private static final long FIRST_PAUSE = Duration.ofMillis(100).toNanos();
    private static final long LONGEST_PAUSE = Duration.ofSeconds(5).toNanos();

    private final ApiKeyServiceStub stub;
    private final ManagedChannel channel;
    private final Memory memory;
    private final String project;
    private final Time time;
    private final Duration heartbeat;
    private final System.Logger log;

    /** Guards the fields below. */
    private final ReentrantLock lock = new ReentrantLock();

    private Stream current;
    private int failures;
    private boolean closed;

    Watcher(
            ApiKeyServiceStub stub,
            ManagedChannel channel,
            Memory memory,
            String project,
            Time time,
            Duration heartbeat,
            System.Logger log) {
        this.stub = stub;
        this.channel = channel;
        this.memory = memory;
        this.project = project;
        this.time = time;
        this.heartbeat = heartbeat;
        this.log = log;
    }

    void open() {
        Stream stream;
        lock.lock();
        try {
            if (closed) {
                return;
            }
            stream = new Stream(memory.position().cursor());
            current = stream;
        } finally {
            lock.unlock();
        }
        // gRPC's own backoff grows to minutes, and a call made during it fails without an attempt.
        channel.resetConnectBackoff();
        WatchRequest request = WatchRequest.newBuilder()
                .setProjectId(project)
                .setStartCursor(stream.start)
                .setHeartbeatInterval(com.google.protobuf.Duration.newBuilder()
                        .setSeconds(heartbeat.getSeconds())
                        .setNanos(heartbeat.getNano()))
                .build();
        Context.ROOT.run(() -> stub.watch(request, stream));
        stream.mind();
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
        private final String start;
        private final long patience = heartbeat.toNanos() / 2 * 5;
        private volatile ClientCallStreamObserver<WatchRequest> call;
        private final long opened = time.nanos();
        private volatile long heard = opened;
        private boolean begun;
        private Runnable minder = () -> {};

        Stream(String start) {
            this.start = start;
        }

        @Override
        public void beforeStart(ClientCallStreamObserver<WatchRequest> call) {
            this.call = call;
        }

        @Override
        public void onNext(WatchResponse word) {
            if (!take(word, time.nanos())
                    && end(Status.CANCELLED.withDescription("its heartbeats arrive too late to be used"))) {
                cancel();
            }
        }

        /** Processes a message, and returns whether to keep the stream. */
        private boolean take(WatchResponse word, long now) {
            lock.lock();
            try {
                if (current != this) {
                    return true;
                }
                heard = now;
                // Without a start cursor, changes before the first message are never delivered.
                if (word.getReset() || !begun && start.isEmpty()) {
                    memory.reset(word.getCursor());
                }
                begun = true;
                if (word.getEventsCount() > 0) {
                    memory.hear(word.getEventsList(), word.getCursor());
                } else if (!word.getReset() && !memory.beat(word.getCursor(), opened, age(word), now)) {
                    return false;
                }
                if (failures > 0) {
                    log.log(Level.INFO, "the stream is restored");
                }
                failures = 0;
                return true;
            } finally {
                lock.unlock();
            }
        }

        private static Duration age(WatchResponse word) {
            return word.hasStreamAge()
                    ? Duration.ofSeconds(
                            word.getStreamAge().getSeconds(), word.getStreamAge().getNanos())
                    : null;
        }

        @Override
        public void onError(Throwable failure) {
            end(Status.fromThrowable(failure));
        }

        @Override
        public void onCompleted() {
            end(Status.OK);
        }

        void cancel() {
            if (call != null) { // else the call is about to start, on a channel that is shut down
                call.cancel("the stream is no longer used", null);
            }
        }

        /** Closes and reopens the stream if it is silent for too long. */
        void mind() {
            lock.lock();
            try {
                if (current == this) {
                    minder = time.after(patience - (time.nanos() - heard), this::look);
                }
            } finally {
                lock.unlock();
            }
        }

        private void look() {
            if (time.nanos() - heard < patience) {
                mind();
            } else if (end(Status.DEADLINE_EXCEEDED.withDescription("no heartbeat arrived in time"))) {
                cancel();
                channel.enterIdle(); // so that the next attempt is over another connection
            }
        }

        /** Schedules the next attempt, and returns whether this was the current stream. */
        private boolean end(Status status) {
            lock.lock();
            try {
                if (current != this) {
                    return false;
                }
                current = null;
                minder.run();
                time.after(pause(status), Watcher.this::open);
                return true;
            } finally {
                lock.unlock();
            }
        }

        private long pause(Status status) {
            log.log(
                    failures++ == 0 ? Level.WARNING : Level.DEBUG,
                    "the stream broke and will be reopened: {0}",
                    status.getDescription() == null
                            ? status.getCode()
                            : status.getCode() + ": " + status.getDescription());
            switch (status.getCode()) {
                case UNAUTHENTICATED, PERMISSION_DENIED -> {
                    memory.distrust(time.nanos());
                    return LONGEST_PAUSE;
                }
                case INVALID_ARGUMENT -> memory.lose(start, time.nanos());
                default -> {}
            }
            long most = Math.min(LONGEST_PAUSE, FIRST_PAUSE << Math.min(failures - 1, 10));
            return ThreadLocalRandom.current().nextLong(most);
        }
    }
}
