package dev.tumbler;

import io.grpc.Status;
import java.lang.System.Logger.Level;
import java.util.Optional;
import java.util.concurrent.CompletionException;
import java.util.function.Consumer;

/**
 * The common part of all guards: finding the key, and choosing the answer. Use it to write a guard for another
 * framework; {@link dev.tumbler.grpc.KeyInterceptor} and {@link dev.tumbler.servlet.KeyFilter} are built on it.
 */
public final class Guards {
    static final SafeLogger LOG = new SafeLogger(System.getLogger("dev.tumbler.guards"));

    private Guards() {}

    /** The answer to a caller who is not admitted. It never says which rule the key broke. */
    public enum Refusal {
        /** There is no valid key. */
        KEY_REQUIRED(401, Status.Code.UNAUTHENTICATED, "a valid API key is required"),
        /** The key does not allow the request. */
        NOT_ALLOWED(403, Status.Code.PERMISSION_DENIED, "this API key does not allow that"),
        /** Keys cannot be verified at the moment. */
        UNDECIDED(503, Status.Code.UNAVAILABLE, "API keys cannot be verified at the moment"),
        /** A demand of the guard has the wrong form, or the guard failed. A retry does not help. The log says why. */
        MISTAKEN(500, Status.Code.INTERNAL, "API keys cannot be verified at the moment");

        private final int httpStatus;
        private final Status.Code grpcCode;
        private final String text;

        Refusal(int httpStatus, Status.Code grpcCode, String text) {
            this.httpStatus = httpStatus;
            this.grpcCode = grpcCode;
            this.text = text;
        }

        /**
         * Returns the HTTP status. Send {@code WWW-Authenticate: Bearer} with 401, and {@code Retry-After: 1} with 503.
         *
         * @return 401, 403, 500 or 503
         */
        public int httpStatus() {
            return httpStatus;
        }

        /**
         * Returns the gRPC status, with the text as its description.
         *
         * @return a status that is not OK
         */
        public Status grpcStatus() {
            return grpcCode.toStatus().withDescription(text);
        }

        /**
         * Returns the text for the caller.
         *
         * @return a text that is safe to show, and needs no escaping in JSON
         */
        public String text() {
            return text;
        }
    }

    /**
     * Returns the one key of a request, from {@code Authorization: Bearer …} or {@code X-API-Key}. With more than one
     * of these headers, whatever they hold, it returns no key, and logs why.
     *
     * @param authorization all the request's {@code Authorization} headers, unchanged; null: none
     * @param xApiKey all its {@code X-API-Key} headers, likewise
     * @return the key; empty: refuse the request with {@link Refusal#KEY_REQUIRED}
     */
    public static Optional<String> presentedKey(Iterable<String> authorization, Iterable<String> xApiKey) {
        Credential found = Credential.of(authorization, xApiKey);
        if (found.refused() == Credential.Refused.AMBIGUOUS) {
            LOG.log(Level.INFO, "denied: more than one credential");
        }
        return Optional.ofNullable(found.text());
    }

    /**
     * Returns the refusal of a request for which the guard's function lists no scopes, and logs it. No key lets such a
     * request pass, so none is verified.
     *
     * @return the refusal to answer with
     */
    public static Refusal unlisted() {
        LOG.log(Level.INFO, "denied: no scopes are listed for this request");
        return Refusal.NOT_ALLOWED;
    }

    /**
     * Returns a peer's address in the form that a verifier accepts.
     *
     * @param address the address that a request came from; null: unknown
     * @return the address without brackets if it is an IPv4 or IPv6 address, otherwise empty
     */
    public static String clientIp(String address) {
        if (address == null) {
            return "";
        }
        String bare = address.startsWith("[") && address.endsWith("]")
                ? address.substring(1, address.length() - 1)
                : address;
        return Address.parse(bare) == null ? "" : bare;
    }

    /**
     * Returns the refusal that a verdict leads to, and logs its code, and the key's id if it is known.
     *
     * @param verdict a verifier's verdict
     * @return empty: the request may pass
     */
    public static Optional<Refusal> refusal(Verification verdict) {
        if (verdict.valid()) {
            return Optional.empty();
        }
        String keyId = verdict.keyId().isEmpty() ? "unknown" : verdict.keyId();
        LOG.log(Level.INFO, "denied: {0}, key {1}", verdict.code(), keyId);
        return Optional.of(
                switch (verdict.code()) {
                    case ENVIRONMENT_MISMATCH, IP_NOT_ALLOWED, INSUFFICIENT_SCOPE -> Refusal.NOT_ALLOWED;
                    default -> Refusal.KEY_REQUIRED;
                });
    }

    /**
     * Returns a marker to take before verifying a key that may admit a stream. With it {@link #hold} detects a change
     * that was reported in between.
     *
     * @param verifier the verifier that will verify the key
     * @return the number of changes reported to it so far
     */
    public static long moment(Verifier verifier) {
        return verifier.sessions().changeCount();
    }

    /**
     * Ends a stream when the key that admitted it stops being valid.
     *
     * @param verifier the verifier that verified the key
     * @param key the key's whole text, which stays in memory until the stream has ended
     * @param demand the demands on the key
     * @param verdict the verdict, which must be valid
     * @param since the {@link #moment} before the key was verified
     * @param end called at most once, with the refusal that a new request would get, if the key stops being valid
     *     before the stream has ended by itself. It runs in another thread, or in this one if the verifier is closed
     *     already, and must not block
     * @return run this when the stream has ended by itself
     */
    public static Runnable hold(
            Verifier verifier,
            String key,
            VerifyOptions demand,
            Verification verdict,
            long since,
            Consumer<Refusal> end) {
        return verifier.sessions()
                .open(key, verdict.keyId(), demand, verifier.until(verdict), since, (denial, failure) -> end.accept(
                        failure != null ? refusal(failure) : refusal(denial).orElse(Refusal.MISTAKEN)));
    }

    /**
     * Returns the refusal if there is no verdict, and logs the failure.
     *
     * @param failure an exception of the verifier, or of code that runs before it
     * @return the refusal to answer with
     */
    public static Refusal refusal(Throwable failure) {
        Throwable cause = failure instanceof CompletionException ? failure.getCause() : failure;
        if (cause instanceof UnavailableException || cause instanceof NotAllowedException) {
            LOG.log(Level.ERROR, "undecided: {0}", cause.getMessage());
            return Refusal.UNDECIDED;
        }
        LOG.log(Level.ERROR, "the guard failed", cause);
        return Refusal.MISTAKEN;
    }
}
