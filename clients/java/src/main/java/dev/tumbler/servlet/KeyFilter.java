package dev.tumbler.servlet;

import dev.tumbler.Guards;
import dev.tumbler.Guards.Refusal;
import dev.tumbler.Verification;
import dev.tumbler.Verifier;
import dev.tumbler.VerifyOptions;
import jakarta.servlet.AsyncContext;
import jakarta.servlet.AsyncEvent;
import jakarta.servlet.AsyncListener;
import jakarta.servlet.Filter;
import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.ServletRequest;
import jakarta.servlet.ServletResponse;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletRequestWrapper;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.util.Collections;
import java.util.Enumeration;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Function;
import java.util.function.Predicate;

/**
 * Admits only requests with a valid key. The guard takes the key from {@code Authorization: Bearer …} or from {@code
 * X-API-Key}, and refuses a request with more than one of these headers. It waits for the verifier in the request's
 * thread, at most for the verifier's timeout.
 *
 * <p>The guard breaks off an answer that streams (that is flushed, or is longer than 64 KiB) when its key stops being
 * valid. The handler's writes fail with an {@link IOException}, the request's thread is interrupted, and the reader
 * sees an error. If an asynchronous answer is waiting and its handler does not write, only Jetty can break it off;
 * other containers complete it normally. Ordinary answers run to their end.
 *
 * <p>A connection that a servlet upgrades ({@link HttpServletRequest#upgrade}, and WebSockets in a container) does not
 * end with its key: the guard checks the key once, when the upgrade is requested. Whoever serves such a connection must
 * watch the key itself: {@link Guards#hold} says when it stops being valid.
 */
public final class KeyFilter implements Filter {
    /** The request attribute that holds the {@link Verification}. */
    public static final String IDENTITY = "dev.tumbler.Verification";

    private final Verifier verifier;
    private final Function<? super HttpServletRequest, List<String>> scopes;
    private final String environmentId;
    private final List<String> projectIds;
    private final Function<? super HttpServletRequest, String> clientIp;
    private final Predicate<? super HttpServletRequest> exempt;
    private final boolean endStreams;

    private KeyFilter(Builder options) {
        verifier = options.verifier;
        scopes = options.scopes;
        environmentId = options.environmentId;
        projectIds = options.projectIds;
        clientIp = options.clientIp;
        exempt = options.exempt;
        endStreams = options.endStreams;
    }

    /**
     * Returns a builder of a filter.
     *
     * @param verifier verifies the keys; the filter does not close it
     * @return a builder; by default any valid key is accepted, and no request is exempt
     */
    public static Builder builder(Verifier verifier) {
        return new Builder(verifier);
    }

    /**
     * Returns the verdict by which a guard admitted a request.
     *
     * @param request a request in a servlet behind the filter
     * @return a valid verdict; empty if no filter of this kind guards the servlet, or the request is exempt
     */
    public static Optional<Verification> identity(ServletRequest request) {
        return Optional.ofNullable((Verification) request.getAttribute(IDENTITY));
    }

    @Override
    public void doFilter(ServletRequest request, ServletResponse response, FilterChain chain)
            throws IOException, ServletException {
        if (!(request instanceof HttpServletRequest http)) {
            throw new ServletException("only HTTP requests can carry a key");
        }
        AtomicReference<Function<Runnable, Runnable>> hold = new AtomicReference<>();
        Optional<Refusal> refusal;
        try {
            refusal = exempt.test(http) ? Optional.empty() : check(http, hold);
        } catch (RuntimeException failure) {
            refusal = Optional.of(Guards.refusal(failure));
        }
        if (refusal.isPresent()) {
            refuse((HttpServletResponse) response, refusal.get());
        } else if (hold.get() == null || !endStreams) {
            chain.doFilter(request, response);
        } else {
            handle(http, new HeldResponse(http, (HttpServletResponse) response, hold.get()), chain);
        }
    }

    private static void handle(HttpServletRequest request, HeldResponse response, FilterChain chain)
            throws IOException, ServletException {
        boolean isAsync = false;
        try {
            chain.doFilter(new Request(request, response), response);
            isAsync = request.isAsyncStarted() && completes(request, response);
        } finally {
            if (!isAsync) {
                response.over();
            }
            response.handled();
        }
    }

    /** A request whose asynchronous answer is guarded too: otherwise startAsync() uses the container's own response. */
    private static final class Request extends HttpServletRequestWrapper {
        private final HeldResponse response;

        Request(HttpServletRequest request, HeldResponse response) {
            super(request);
            this.response = response;
        }

        @Override
        public AsyncContext startAsync() {
            return startAsync(this, response);
        }
    }

    private static boolean completes(HttpServletRequest request, HeldResponse response) {
        try {
            request.getAsyncContext().addListener(new Completion(response));
            return true;
        } catch (IllegalStateException completed) {
            return false;
        }
    }

    /** Records that an asynchronous answer is complete. */
    private record Completion(HeldResponse response) implements AsyncListener {
        @Override
        public void onComplete(AsyncEvent event) {
            response.over();
        }

        @Override
        public void onError(AsyncEvent event) {
            response.over();
        }

        @Override
        public void onTimeout(AsyncEvent event) {}

        @Override
        public void onStartAsync(AsyncEvent event) {
            event.getAsyncContext().addListener(this);
        }
    }

    private Optional<Refusal> check(
            HttpServletRequest request, AtomicReference<Function<Runnable, Runnable>> hold) {
        Optional<String> key =
                Guards.presentedKey(all(request, "Authorization"), all(request, "X-API-Key"));
        if (key.isEmpty()) {
            return Optional.of(Refusal.KEY_REQUIRED);
        }
        List<String> required = scopes.apply(request);
        if (required == null) {
            return Optional.of(Guards.unlisted());
        }
        VerifyOptions demand =
                new VerifyOptions(required, clientIp.apply(request), environmentId, projectIds);
        long since = Guards.moment(verifier);
        Verification verification = verifier.verify(key.get(), demand);
        Optional<Refusal> refusal = Guards.refusal(verification);
        if (refusal.isEmpty()) {
            request.setAttribute(IDENTITY, verification);
            hold.set(end -> Guards.hold(verifier, key.get(), demand, verification, since, refused -> end.run()));
        }
        return refusal;
    }

    /** Returns all headers with a name; null if the container does not give access to them. */
    private static List<String> all(HttpServletRequest request, String name) {
        Enumeration<String> values = request.getHeaders(name);
        return values == null ? null : Collections.list(values);
    }

    private static void refuse(HttpServletResponse response, Refusal refusal) throws IOException {
        if (response.isCommitted()) {
            return; // something else has already answered
        }
        response.setStatus(refusal.httpStatus());
        if (refusal == Refusal.KEY_REQUIRED) {
            response.setHeader("WWW-Authenticate", "Bearer");
        } else if (refusal == Refusal.UNDECIDED) {
            response.setHeader("Retry-After", "1");
        }
        response.setContentType("application/json");
        String body = "{\"error\": \"" + refusal.text() + "\"}";
        response.resetBuffer();
        response.setContentLength(body.length()); // the body is ASCII
        try {
            response.getOutputStream().print(body);
        } catch (IllegalStateException writerIsInUse) { // by a filter before this one
            response.getWriter().print(body);
        }
    }

    /** Builds a filter. */
    public static final class Builder {
        private final Verifier verifier;
        private Function<? super HttpServletRequest, List<String>> scopes = request -> List.of();
        private String environmentId = "";
        private List<String> projectIds = List.of();
        private Function<? super HttpServletRequest, String> clientIp =
                request -> Guards.clientIp(request.getRemoteAddr());
        private Predicate<? super HttpServletRequest> exempt = request -> false;
        private boolean endStreams = true;

        private Builder(Verifier verifier) {
            this.verifier = verifier;
        }

        /**
         * Demands the same scopes for all requests.
         *
         * @param required the scopes that a key must grant
         * @return this
         */
        public Builder requireScopes(String... required) {
            List<String> all = List.of(required);
            return requireScopes(request -> all);
        }

        /**
         * Demands scopes that depend on the request.
         *
         * @param required returns the scopes that a key must grant for a request. If it returns null, the request is
         *     refused with 403, whatever the key; if it throws, with 500
         * @return this
         */
        public Builder requireScopes(Function<? super HttpServletRequest, List<String>> required) {
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
         * Sets a function that returns the client's address for a request. The default is the connection's peer, which
         * behind a proxy is the proxy. Read a header only if your own proxy sets it.
         *
         * @param address returns an IPv4 or IPv6 address, or an empty text
         * @return this
         */
        public Builder clientIp(Function<? super HttpServletRequest, String> address) {
            clientIp = address;
            return this;
        }

        /**
         * Admits these requests without a key: health checks, for example.
         *
         * @param requests returns true for an exempt request
         * @return this
         */
        public Builder exempt(Predicate<? super HttpServletRequest> requests) {
            exempt = requests;
            return this;
        }

        /**
         * Sets whether the guard breaks off answers that stream when their key stops being valid. The default is true.
         *
         * @param end true to break them off
         * @return this
         */
        public Builder endStreams(boolean end) {
            endStreams = end;
            return this;
        }

        /**
         * Builds the filter.
         *
         * @return a filter to register for the paths that it guards
         */
        public KeyFilter build() {
            return new KeyFilter(this);
        }
    }
}
