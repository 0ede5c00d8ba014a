package dev.tumbler;

import io.grpc.Status;
import java.lang.System.Logger.Level;
import java.util.Optional;
import java.util.concurrent.CompletionException;
import java.util.function.Consumer;

/**
 * What all guards do alike: where the key is, and which of a few answers follows. For guards of frameworks that have
 * none here; {@link dev.tumbler.grpc.KeyInterceptor} and {@link dev.tumbler.servlet.KeyFilter} are made of it.
 */
public final class Guards {
    static final System.Logger LOG = System.getLogger("dev.tumbler.guards");

    private Guards() {}

    /** What whoever presented a key is told. It says nothing about the key. */
    public enum Refusal {
        /** There is no key, or it is none that works. */
        KEY_REQUIRED(401, Status.Code.UNAUTHENTICATED, "a valid API key is required"),
        /** The key works, and is not good for this. */
        NOT_ALLOWED(403, Status.Code.PERMISSION_DENIED, "this API key does not allow that"),
        /** There is no verdict at the moment. */
        UNDECIDED(503, Status.Code.UNAVAILABLE, "API keys cannot be verified at the moment"),
        /** There never will be one: what the guard demands is not valid, or it is broken. The log says why. */
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
         * Returns the HTTP status. A 401 goes with {@code WWW-Authenticate: Bearer}, a 503 with {@code Retry-After: 1}.
         *
         * @return 401, 403, 500 or 503
         */
        public int httpStatus() {
            return httpStatus;
        }

        /**
         * Returns the gRPC status, with the text.
         *
         * @return a status that is not OK
         */
        public Status grpcStatus() {
            return grpcCode.toStatus().withDescription(text);
        }

        /**
         * Returns what to say.
         *
         * @return a text that is safe to show and to put into JSON
         */
        public String text() {
            return text;
        }
    }

    /**
     * Returns the one key that comes with a request: that of {@code Authorization: Bearer …} or of {@code X-API-Key}.
     * With more than one of these headers there is none, whatever they hold; that is logged.
     *
     * @param authorization all headers of this name, as they came; null: none
     * @param xApiKey all headers {@code x-api-key}, likewise
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
     * Returns a peer's address in the form that a verifier takes.
     *
     * @param address where a request came from; null: not known
     * @return the same if it is an IPv4 or IPv6 address, also in brackets; else empty
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
     * Returns what follows from a verdict, and logs one that denies: its code, and the key's id where it is known.
     *
     * @param verdict of a verifier
     * @return empty: let it pass
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
     * Returns what to note before a key is verified that may let a stream in.
     *
     * @param verifier that will be asked
     * @return how often it was told anything until now
     */
    public static long moment(Verifier verifier) {
        return verifier.sessions().words();
    }

    /**
     * Holds a stream to the key that let it in, from now on.
     *
     * @param verifier that said yes
     * @param key the key's whole text, which is kept until the stream has ended
     * @param demand what it was presented for
     * @param verdict the outcome, which is valid
     * @param since the {@link #moment} before the key was verified
     * @param end told once, by another thread, how a new request would be refused, if the key stops being valid before
     *     the stream has ended by itself; it must not block
     * @return to be run when the stream has ended by itself
     */
    public static Runnable hold(
            Verifier verifier,
            String key,
            VerifyOptions demand,
            Verification verdict,
            long since,
            Consumer<Refusal> end) {
        return verifier.sessions()
                .open(key, verdict.keyId(), demand, verifier.until(verdict), since, (told, failure) -> end.accept(
                        failure != null ? refusal(failure) : refusal(told).orElse(Refusal.MISTAKEN)));
    }

    /**
     * Returns what follows where there is no verdict, and logs why there is none.
     *
     * @param failure what was thrown, by a verifier or on the way to it
     * @return what to answer
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
