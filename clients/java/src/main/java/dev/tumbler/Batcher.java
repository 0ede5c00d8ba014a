package dev.tumbler;

import dev.tumbler.Cache.Position;
import dev.tumbler.v1.ApiKeyServiceGrpc.ApiKeyServiceStub;
import dev.tumbler.v1.BatchVerifyRequest;
import dev.tumbler.v1.BatchVerifyResponse;
import dev.tumbler.v1.Consistency;
import dev.tumbler.v1.VerifyCode;
import dev.tumbler.v1.VerifyRequest;
import dev.tumbler.v1.VerifyResponse;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;

/**
 * Verifies keys by calls to the server. Callers that present the same key at the same time share one call. Under load,
 * many keys go out as one batch.
 */
final class Batcher {
    /** The maximum number of calls in flight. Further misses queue, and go out as one batch. */
    static final int MAX_CALLS_IN_FLIGHT = 4;
    /** The maximum number of keys in a batch. */
    static final int MAX_BATCH_KEYS = 500;
    /** The maximum total size of the requests in a batch. A larger request goes by itself. */
    static final int MAX_BATCH_BYTES = 256 * 1024;

    /** Half of a failed batch would fail too: the server is unreachable, or refuses the verifier's own key. */
    private static final Set<Status.Code> NO_SPLIT = EnumSet.of(
            Status.Code.UNAVAILABLE,
            Status.Code.DEADLINE_EXCEEDED,
            Status.Code.CANCELLED,
            Status.Code.UNAUTHENTICATED,
            Status.Code.PERMISSION_DENIED);

    private final ApiKeyServiceStub stub;
    private final Cache cache;
    private final Projects projects;
    private final Digester digester;
    private final Clock clock;
    private final Duration timeout;
    private final Runnable resetBackoff;
    private final Runnable reconnect;

    /** Guards the fields below. Never held while a call is sent or a result is delivered. */
    private final ReentrantLock lock = new ReentrantLock();

    private final Map<String, Flight> joinable = new HashMap<>();
    private final Deque<Flight> queue = new ArrayDeque<>();
    private int callsInFlight;
    private boolean closed;

    Batcher(
            ApiKeyServiceStub stub,
            Cache cache,
            Projects projects,
            Digester digester,
            Clock clock,
            Duration timeout,
            Runnable resetBackoff,
            Runnable reconnect) {
        this.stub = stub;
        this.cache = cache;
        this.projects = projects;
        this.digester = digester;
        this.clock = clock;
        this.timeout = timeout;
        this.resetBackoff = resetBackoff;
        this.reconnect = reconnect;
    }

    /** A pending verification by the server, shared by all callers that wait for it. */
    private static final class Flight {
        final String key;
        final String id;
        final VerifyOptions demand;
        final CompletableFuture<Answer> answer = new CompletableFuture<>();
        /** The Watch stream's position when the flight was sent; null: it is queued. */
        Position position;
        /** The highest revision of an event of the key that the stream had delivered then; 0: none is known. */
        long knownRevision;
        /** When a caller last began to wait for it. */
        long joinedAt;
        /** The maximum size of its next batch: half the size of its last one. */
        int maxBatch = MAX_BATCH_KEYS;
        /** The cursor that the server may have refused in the last attempt; empty: none. */
        String refusedCursor = "";

        Flight(String key, String id, VerifyOptions demand) {
            this.key = key;
            this.id = id;
            this.demand = demand;
        }

        boolean mayDropCursor() {
            return refusedCursor.isEmpty() && !position.cursor().isEmpty();
        }
    }

    /** Verifies a well-formed key. Fails with a {@link TumblerException}, within the timeout. */
    CompletableFuture<Verification> verify(String key, String id, VerifyOptions demand) {
        return join(key, id, demand).thenApply(VerdictUntil::verification);
    }

    /** Like {@link #verify}. Also returns until when a guarded stream may rely on the verdict. */
    CompletableFuture<VerdictUntil> join(String key, String id, VerifyOptions demand) {
        long now = clock.now();
        Flight flight;
        lock.lock();
        try {
            if (closed) {
                return CompletableFuture.failedFuture(closed());
            }
            flight = joinable.get(key);
            // A caller that arrives after a change must not join a call that was sent before it.
            if (flight == null
                    || (flight.position != null && !cache.unchangedSince(flight.position, id, now))) {
                flight = new Flight(key, id, demand);
                joinable.put(key, flight);
                queue.addLast(flight);
            }
            flight.joinedAt = now;
        } finally {
            lock.unlock();
        }
        sendBatches();
        return verdict(flight, demand);
    }

    /** Fails all pending and later callers. */
    void close() {
        List<Flight> left = new ArrayList<>();
        lock.lock();
        try {
            closed = true;
            left.addAll(joinable.values());
            left.addAll(queue);
            joinable.clear();
            queue.clear();
        } finally {
            lock.unlock();
        }
        left.forEach(flight -> flight.answer.completeExceptionally(closed()));
    }

    static UnavailableException closed() {
        return new UnavailableException("the verifier is closed");
    }

    /**
     * A verdict, and until when a guarded stream may rely on it.
     *
     * @param until in nanoseconds of the verifier's clock
     */
    record VerdictUntil(Verification verification, long until) {}

    private CompletableFuture<VerdictUntil> verdict(Flight flight, VerifyOptions demand) {
        boolean own = flight.demand.equals(demand);
        return flight.answer
                .copy()
                .orTimeout(timeout.toNanos(), TimeUnit.NANOSECONDS)
                .<CompletionStage<VerdictUntil>>handle((answer, failure) -> {
                    if (failure == null && cache.isTooOld(answer, clock.now())) {
                        return CompletableFuture.failedStage(
                                new UnavailableException("the server's answer is too old"));
                    }
                    if (failure == null) {
                        Code code = answer.decide(demand, own, clock.now());
                        return CompletableFuture.completedStage(
                                new VerdictUntil(answer.verification(code, false), answer.sentAt() + answer.ttl()));
                    }
                    Throwable cause = failure instanceof CompletionException ? failure.getCause() : failure;
                    if (cause instanceof InvalidRequestException && !own) { // the first caller's demand may be wrong
                        return join(flight.key, flight.id, demand);
                    }
                    return CompletableFuture.failedStage(
                            cause instanceof TimeoutException
                                    ? new UnavailableException("the server did not answer within " + timeout.toMillis() + " ms")
                                    : TumblerException.copyOf(cause));
                })
                .thenCompose(Function.identity());
    }

    /** Sends queued flights, up to the maximum number of calls in flight. */
    private void sendBatches() {
        for (List<Flight> next = nextBatch(); !next.isEmpty(); next = nextBatch()) {
            List<Flight> batch = next;
            // A shared call must not be cancelled with the gRPC context of the caller that started it.
            Context.ROOT.run(() -> sendBatch(batch));
        }
    }

    /**
     * Takes the next batch from the queue. Flights with different limits do not share a batch: retried ones stay
     * apart from new ones, and from those retried after a larger batch.
     */
    private List<Flight> nextBatch() {
        List<Flight> batch = new ArrayList<>();
        List<Flight> late = new ArrayList<>();
        lock.lock();
        try {
            if (callsInFlight < MAX_CALLS_IN_FLIGHT) {
                long now = clock.now();
                Position position = cache.position();
                int bytes = 0;
                while (!queue.isEmpty()) {
                    Flight flight = queue.getFirst();
                    if (now - flight.joinedAt > timeout.toNanos()) {
                        joinable.remove(flight.key, flight);
                        late.add(flight);
                    } else {
                        bytes += request(flight, position).getSerializedSize();
                        if (!batch.isEmpty()
                                && (batch.size() >= flight.maxBatch
                                        || batch.get(0).maxBatch != flight.maxBatch
                                        || bytes > MAX_BATCH_BYTES)) {
                            break;
                        }
                        flight.position = position;
                        flight.knownRevision = cache.revisionAt(position, flight.id);
                        batch.add(flight);
                    }
                    queue.removeFirst();
                }
                callsInFlight += batch.isEmpty() ? 0 : 1;
            }
        } finally {
            lock.unlock();
        }
        late.forEach(flight ->
                flight.answer.completeExceptionally(new UnavailableException("the call timed out before it was sent")));
        return batch;
    }

    private void sendBatch(List<Flight> batch) {
        ApiKeyServiceStub due = stub.withDeadlineAfter(timeout.toNanos(), TimeUnit.NANOSECONDS);
        List<VerifyRequest> requests = batch.stream()
                .map(flight -> request(flight, flight.position))
                .toList();
        long sentAt = clock.now();
        if (batch.size() == 1) {
            due.verify(
                    requests.get(0),
                    new Reply<VerifyResponse>(
                            response -> answered(batch, List.of(response), sentAt), failure -> failed(batch, failure)));
        } else {
            due.batchVerify(
                    BatchVerifyRequest.newBuilder().addAllRequests(requests).build(),
                    new Reply<BatchVerifyResponse>(
                            response -> answered(batch, response.getResponsesList(), sentAt),
                            failure -> failed(batch, failure)));
        }
    }

    private VerifyRequest request(Flight flight, Position position) {
        VerifyRequest.Builder request = VerifyRequest.newBuilder()
                .setKey(flight.key)
                .setProjectId(projects.only()) // never a caller's project: the answer serves other callers too
                .setEnvironmentId(flight.demand.environmentId())
                .addAllRequiredScopes(flight.demand.requiredScopes())
                .setClientIp(flight.demand.clientIp());
        if (!position.cursor().isEmpty() && flight.refusedCursor.isEmpty()) {
            request.setConsistency(Consistency.newBuilder().setAtLeastAsFresh(position.cursor()));
        }
        return request.build();
    }

    private void answered(List<Flight> batch, List<VerifyResponse> responses, long sentAt) {
        if (responses.size() != batch.size()) {
            settle(batch, List.of());
            batch.forEach(flight -> flight.answer.completeExceptionally(
                    new UnavailableException("the server's answer does not match the request")));
            return;
        }
        List<Answer> parsed = IntStream.range(0, batch.size())
                .mapToObj(i -> lacksProject(responses.get(i))
                        ? null
                        : Answer.of(responses.get(i), batch.get(i).id, batch.get(i).demand, sentAt))
                .map(answer -> answer == null ? null : answer.of(projects))
                .toList();
        List<Answer> answers = IntStream.range(0, batch.size())
                .mapToObj(i -> applied(parsed.get(i), batch.get(i)))
                .toList();
        // A batch leaves an item undecided if its answer has no room for it, or if the item has the wrong form.
        IntPredicate isUndecided =
                i -> batch.size() > 1 && responses.get(i).getCode() == VerifyCode.VERIFY_CODE_UNSPECIFIED;
        settle(batch, IntStream.range(0, batch.size()).filter(isUndecided).mapToObj(batch::get).toList());
        for (int i = 0; i < batch.size(); i++) {
            if (answers.get(i) != null) {
                batch.get(i).answer.complete(answers.get(i));
            } else if (lacksProject(responses.get(i))) {
                batch.get(i).answer.completeExceptionally(Projects.projectRequired());
            } else if (!isUndecided.test(i)) {
                batch.get(i).answer.completeExceptionally(new UnavailableException("the server did not decide"));
            }
        }
    }

    /** Updates the cache by an answer. Returns the answer, or null if it decides nothing. */
    private Answer applied(Answer answer, Flight flight) {
        if (answer == null) {
            return null;
        }
        long now = clock.now();
        if (!flight.refusedCursor.isEmpty()) {
            cache.dropCursor(flight.refusedCursor, now);
        }
        if (cache.contradicts(answer, flight.position, flight.knownRevision)) {
            return null;
        }
        byte[] digest = digester.digest(flight.key);
        if (!answer.code().dependsOnDemand()) {
            cache.evictDenied(flight.id, digest);
        } else if (flight.refusedCursor.isEmpty()) { // else the answer may be older than the position
            cache.store(digest, answer, flight.position, now);
        }
        return answer;
    }

    /** Returns whether the verifier's own key sees all projects, and no option says which projects to accept. */
    private boolean lacksProject(VerifyResponse response) {
        return response.getAnyProject() && projects.lacksProject();
    }

    private void failed(List<Flight> batch, Throwable failure) {
        Status status = Status.fromThrowable(failure);
        if (status.getCode() == Status.Code.UNAVAILABLE) {
            resetBackoff.run();
        }
        if (status.getCode() == Status.Code.DEADLINE_EXCEEDED) {
            reconnect.run();
        }
        if (batch.size() > 1 && !NO_SPLIT.contains(status.getCode())) {
            settle(batch, batch);
            return;
        }
        if (status.getCode() == Status.Code.INVALID_ARGUMENT && batch.get(0).mayDropCursor()) {
            // Either the demand is wrong, or the cursor is (an older backup was restored).
            // A call without the cursor shows which.
            batch.forEach(flight -> flight.refusedCursor = flight.position.cursor());
            settle(batch, batch);
            return;
        }
        settle(batch, List.of());
        String description = status.getDescription();
        String said = status.getCode() + (description == null ? "" : ": " + Redaction.redact(description));
        Throwable cause = Redaction.redact(failure);
        TumblerException exception = switch (status.getCode()) {
            case UNAUTHENTICATED, PERMISSION_DENIED ->
                new NotAllowedException("the server refused the verifier's own key: " + said, cause);
            case INVALID_ARGUMENT -> new InvalidRequestException("the request is invalid: " + said, cause);
            default -> new UnavailableException("the call to the server failed: " + said, cause);
        };
        batch.forEach(flight -> flight.answer.completeExceptionally(exception));
    }

    /**
     * Ends a call: frees its slot, puts the flights that it left undecided at the front of the queue, for batches of half
     * the size, and sends what is queued. After {@link #close} it fails those flights.
     */
    private void settle(List<Flight> batch, List<Flight> again) {
        boolean isClosed;
        lock.lock();
        try {
            callsInFlight--;
            isClosed = closed;
            if (!isClosed) {
                batch.forEach(flight -> joinable.remove(flight.key, flight));
                for (int i = again.size() - 1; i >= 0; i--) {
                    Flight flight = again.get(i);
                    flight.position = null;
                    flight.maxBatch = (batch.size() + 1) / 2;
                    queue.addFirst(flight);
                    joinable.putIfAbsent(flight.key, flight);
                }
            }
        } finally {
            lock.unlock();
        }
        if (isClosed) {
            again.forEach(flight -> flight.answer.completeExceptionally(closed()));
        }
        sendBatches();
    }

    /** Receives the one response of a call. */
    private static final class Reply<T> implements StreamObserver<T> {
        private final Consumer<T> answered;
        private final Consumer<Throwable> failed;
        private T response;

        Reply(Consumer<T> answered, Consumer<Throwable> failed) {
            this.answered = answered;
            this.failed = failed;
        }

        @Override
        public void onNext(T response) {
            this.response = response;
        }

        @Override
        public void onError(Throwable failure) {
            failed.accept(failure);
        }

        @Override
        public void onCompleted() {
            answered.accept(response); // gRPC ensures that there is exactly one
        }
    }
}
