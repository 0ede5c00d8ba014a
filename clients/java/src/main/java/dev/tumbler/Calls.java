package dev.tumbler;

import dev.tumbler.Memory.Position;
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
import java.util.stream.IntStream;

/**
 * Verifies keys by calls to the server. Callers that present the same key at the same time share one call. Under load,
 * many keys go out as one batch.
 */
final class Calls {
    /** The maximum number of calls in flight. Further misses queue, and go out as one batch. */
    static final int MOST_UNDER_WAY = 4;
    /** The maximum number of keys in a batch. */
    static final int MOST_IN_A_BATCH = 500;
    /** The maximum total size of the requests in a batch. A larger request goes by itself. */
    static final int MOST_BYTES = 256 * 1024;

    /** Half of a failed batch would fail too: the server is unreachable, or refuses the verifier's own key. */
    private static final Set<Status.Code> NOT_OF_THE_BATCH = EnumSet.of(
            Status.Code.UNAVAILABLE,
            Status.Code.DEADLINE_EXCEEDED,
            Status.Code.CANCELLED,
            Status.Code.UNAUTHENTICATED,
            Status.Code.PERMISSION_DENIED);

    private final ApiKeyServiceStub stub;
    private final Memory memory;
    private final Projects projects;
    private final Fingerprints fingerprints;
    private final Time time;
    private final Duration timeout;
    private final Runnable onUnreachable;
    private final Runnable onSilent;

    /** Guards the fields below. Never held while a call is sent or a result is delivered. */
    private final ReentrantLock lock = new ReentrantLock();

    private final Map<String, Question> open = new HashMap<>();
    private final Deque<Question> waiting = new ArrayDeque<>();
    private int underWay;
    private boolean closed;

    Calls(
            ApiKeyServiceStub stub,
            Memory memory,
            Projects projects,
            Fingerprints fingerprints,
            Time time,
            Duration timeout,
            Runnable onUnreachable,
            Runnable onSilent) {
        this.stub = stub;
        this.memory = memory;
        this.projects = projects;
        this.fingerprints = fingerprints;
        this.time = time;
        this.timeout = timeout;
        this.onUnreachable = onUnreachable;
        this.onSilent = onSilent;
    }

    /** A pending verification by the server, shared by all callers that wait for it. */
    private static final class Question {
        final String key;
        final String id;
        final VerifyOptions demand;
        final CompletableFuture<Answer> answer = new CompletableFuture<>();
        /** The Watch stream's position when the question was sent; null: it is queued. */
        Position position;
        /** When a caller last began to wait for it. */
        long wanted;
        /** The maximum size of its next batch: half the size of its last one. */
        int most = MOST_IN_A_BATCH;
        /** The cursor that the server may have refused in the last attempt; empty: none. */
        String doubted = "";

        Question(String key, String id, VerifyOptions demand) {
            this.key = key;
            this.id = id;
            this.demand = demand;
        }

        boolean mayDoubt() {
            return doubted.isEmpty() && !position.cursor().isEmpty();
        }
    }

    /** Verifies a well-formed key. Fails with a {@link TumblerException}, within the timeout. */
    CompletableFuture<Verification> verify(String key, String id, VerifyOptions demand) {
        return ask(key, id, demand).thenApply(Told::verification);
    }

    /** Like {@link #verify}. Also returns until when a guarded stream may rely on the verdict. */
    CompletableFuture<Told> ask(String key, String id, VerifyOptions demand) {
        long now = time.nanos();
        Question question;
        lock.lock();
        try {
            if (closed) {
                return CompletableFuture.failedFuture(closed());
            }
            question = open.get(key);
            // A caller that arrives after a change must not join a call that was sent before it.
            if (question == null
                    || question.position != null && !memory.unchangedSince(question.position, id, now)) {
                question = new Question(key, id, demand);
                open.put(key, question);
                waiting.addLast(question);
            }
            question.wanted = now;
        } finally {
            lock.unlock();
        }
        send();
        return told(question, demand);
    }

    /** Fails all pending and later callers. */
    void close() {
        List<Question> left = new ArrayList<>();
        lock.lock();
        try {
            closed = true;
            left.addAll(open.values());
            left.addAll(waiting);
            open.clear();
            waiting.clear();
        } finally {
            lock.unlock();
        }
        left.forEach(question -> question.answer.completeExceptionally(closed()));
    }

    static UnavailableException closed() {
        return new UnavailableException("the verifier is closed");
    }

    /**
     * A verdict, and until when a guarded stream may rely on it.
     *
     * @param until in nanoseconds of the verifier's clock
     */
    record Told(Verification verification, long until) {}

    private CompletableFuture<Told> told(Question question, VerifyOptions demand) {
        boolean own = question.demand.equals(demand);
        return question.answer
                .copy()
                .orTimeout(timeout.toNanos(), TimeUnit.NANOSECONDS)
                .<CompletionStage<Told>>handle((answer, failure) -> {
                    if (failure == null) {
                        Code code = answer.decide(demand, own, time.nanos());
                        return CompletableFuture.completedStage(
                                new Told(answer.verification(code, false), answer.sent() + answer.ttl()));
                    }
                    Throwable cause = failure instanceof CompletionException ? failure.getCause() : failure;
                    if (cause instanceof InvalidRequestException && !own) { // the first caller's demand may be wrong
                        return ask(question.key, question.id, demand);
                    }
                    return CompletableFuture.failedStage(
                            cause instanceof TimeoutException
                                    ? new UnavailableException("the server did not answer within " + timeout.toMillis() + " ms")
                                    : cause);
                })
                .thenCompose(Function.identity());
    }

    /** Sends queued questions, up to the maximum number of calls in flight. */
    private void send() {
        for (List<Question> next = next(); !next.isEmpty(); next = next()) {
            List<Question> batch = next;
            // A shared call must not be cancelled with the gRPC context of the caller that started it.
            Context.ROOT.run(() -> send(batch));
        }
    }

    /**
     * Takes the next batch from the queue. Questions with different limits do not share a batch: retried ones stay
     * apart from new ones, and from those retried after a larger batch.
     */
    private List<Question> next() {
        List<Question> batch = new ArrayList<>();
        List<Question> late = new ArrayList<>();
        lock.lock();
        try {
            if (underWay < MOST_UNDER_WAY) {
                long now = time.nanos();
                Position position = memory.position();
                int bytes = 0;
                while (!waiting.isEmpty()) {
                    Question question = waiting.getFirst();
                    if (now - question.wanted > timeout.toNanos()) {
                        open.remove(question.key, question);
                        late.add(question);
                    } else {
                        bytes += request(question, position).getSerializedSize();
                        if (!batch.isEmpty()
                                && (batch.size() >= question.most
                                        || batch.get(0).most != question.most
                                        || bytes > MOST_BYTES)) {
                            break;
                        }
                        question.position = position;
                        batch.add(question);
                    }
                    waiting.removeFirst();
                }
                underWay += batch.isEmpty() ? 0 : 1;
            }
        } finally {
            lock.unlock();
        }
        late.forEach(question ->
                question.answer.completeExceptionally(new UnavailableException("the call timed out before it was sent")));
        return batch;
    }

    private void send(List<Question> batch) {
        ApiKeyServiceStub due = stub.withDeadlineAfter(timeout.toNanos(), TimeUnit.NANOSECONDS);
        List<VerifyRequest> requests = batch.stream()
                .map(question -> request(question, question.position))
                .toList();
        long sent = time.nanos();
        if (batch.size() == 1) {
            due.verify(
                    requests.get(0),
                    new Reply<VerifyResponse>(
                            response -> answered(batch, List.of(response), sent), failure -> failed(batch, failure)));
        } else {
            due.batchVerify(
                    BatchVerifyRequest.newBuilder().addAllRequests(requests).build(),
                    new Reply<BatchVerifyResponse>(
                            response -> answered(batch, response.getResponsesList(), sent),
                            failure -> failed(batch, failure)));
        }
    }

    private VerifyRequest request(Question question, Position position) {
        VerifyRequest.Builder request = VerifyRequest.newBuilder()
                .setKey(question.key)
                .setProjectId(projects.only()) // never a caller's project: the answer serves other callers too
                .setEnvironmentId(question.demand.environmentId())
                .addAllRequiredScopes(question.demand.requiredScopes())
                .setClientIp(question.demand.clientIp());
        if (!position.cursor().isEmpty() && question.doubted.isEmpty()) {
            request.setConsistency(Consistency.newBuilder().setAtLeastAsFresh(position.cursor()));
        }
        return request.build();
    }

    private void answered(List<Question> batch, List<VerifyResponse> responses, long sent) {
        if (responses.size() != batch.size()) {
            failed(batch, Status.INTERNAL.withDescription("the server's answer does not match the request").asException());
            return;
        }
        List<Answer> answers = IntStream.range(0, batch.size())
                .mapToObj(i -> refused(responses.get(i)) ? null : Answer.of(responses.get(i), batch.get(i).id, sent))
                .map(answer -> answer == null ? null : answer.of(projects))
                .toList();
        long now = time.nanos();
        for (int i = 0; i < batch.size(); i++) {
            Question question = batch.get(i);
            if (answers.get(i) != null) {
                if (!question.doubted.isEmpty()) {
                    memory.lose(question.doubted, now);
                }
                byte[] fingerprint = fingerprints.of(question.key);
                if (answers.get(i).code().dependsOnDemand()) {
                    memory.remember(fingerprint, answers.get(i), question.position, now);
                } else {
                    memory.refuse(question.id, fingerprint);
                }
            }
        }
        // A batch leaves an item undecided if its answer has no room for it, or if the item has the wrong form.
        List<Question> undecided = batch.size() == 1
                ? List.of()
                : IntStream.range(0, batch.size())
                        .filter(i -> responses.get(i).getCode() == VerifyCode.VERIFY_CODE_UNSPECIFIED)
                        .mapToObj(batch::get)
                        .toList();
        back(batch, undecided);
        for (int i = 0; i < batch.size(); i++) {
            if (answers.get(i) != null) {
                batch.get(i).answer.complete(answers.get(i));
            } else if (refused(responses.get(i))) {
                batch.get(i).answer.completeExceptionally(Projects.notSaid());
            } else if (!undecided.contains(batch.get(i))) {
                batch.get(i).answer.completeExceptionally(new UnavailableException("the server did not decide"));
            }
        }
    }

    /** Returns whether the verifier's own key sees all projects, and no option says which projects to accept. */
    private boolean refused(VerifyResponse response) {
        return response.getAnyProject() && projects.unsaid();
    }

    private void failed(List<Question> batch, Throwable failure) {
        Status status = Status.fromThrowable(failure);
        if (status.getCode() == Status.Code.UNAVAILABLE) {
            onUnreachable.run();
        }
        if (status.getCode() == Status.Code.DEADLINE_EXCEEDED) {
            onSilent.run();
        }
        if (batch.size() > 1 && !NOT_OF_THE_BATCH.contains(status.getCode())) {
            back(batch, batch);
            return;
        }
        if (status.getCode() == Status.Code.INVALID_ARGUMENT && batch.get(0).mayDoubt()) {
            // Either the demand is wrong, or the cursor is (an older backup was restored).
            // A call without the cursor shows which.
            batch.forEach(question -> question.doubted = question.position.cursor());
            back(batch, batch);
            return;
        }
        back(batch, List.of());
        String said = status.getCode() + (status.getDescription() == null ? "" : ": " + status.getDescription());
        TumblerException told = switch (status.getCode()) {
            case UNAUTHENTICATED, PERMISSION_DENIED ->
                new NotAllowedException("the server refused the verifier's own key: " + said, failure);
            case INVALID_ARGUMENT -> new InvalidRequestException("the request is invalid: " + said, failure);
            default -> new UnavailableException("the call to the server failed: " + said, failure);
        };
        batch.forEach(question -> question.answer.completeExceptionally(told));
    }

    /**
     * Ends a call: frees its slot, puts the questions that it left open at the front of the queue, for batches of half
     * the size, and sends what is queued.
     */
    private void back(List<Question> batch, List<Question> again) {
        lock.lock();
        try {
            underWay--;
            if (!closed) {
                batch.forEach(question -> open.remove(question.key, question));
                for (int i = again.size() - 1; i >= 0; i--) {
                    Question question = again.get(i);
                    question.position = null;
                    question.most = (batch.size() + 1) / 2;
                    waiting.addFirst(question);
                    open.putIfAbsent(question.key, question);
                }
            }
        } finally {
            lock.unlock();
        }
        send();
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
