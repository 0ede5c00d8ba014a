package dev.tumbler;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Consumer;

/**
 * Lets the common tests of all clients (tests/clients) drive this client. It reads one JSON object per line from
 * standard input, and writes an answer to each to standard output, in the order in which they are ready.
 */
final class Harness {
    private static final Gson JSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

    private final ExecutorService threads = Executors.newCachedThreadPool(task -> {
        Thread thread = new Thread(task);
        thread.setDaemon(true);
        return thread;
    });
    private volatile JsonObject described;
    private volatile Verifier verifier;
    private volatile Race race;
    private SpeakingServices services;

    private Harness() {}

    /** Answers requests until the end of standard input. */
    public static void main(String[] args) throws IOException {
        Harness harness = new Harness();
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JsonObject request = JsonParser.parseString(line).getAsJsonObject();
            harness.threads.execute(() -> {
                JsonObject answer = harness.answer(request);
                if (request.has("id")) {
                    answer.add("id", request.get("id"));
                }
                synchronized (out) {
                    out.println(JSON.toJson(answer));
                }
            });
        }
        harness.close();
    }

    private JsonObject answer(JsonObject request) {
        try {
            return switch (request.get("op").getAsString()) {
                case "open" -> open(request);
                case "verify" -> verify(request);
                case "verify_many" -> verifyMany(request);
                case "race_start" -> startRace(request);
                case "race_stop" -> race.stop();
                case "decide" -> decide(request);
                case "well_formed" -> wellFormed(request);
                case "size" -> with("size", verifier.remembered());
                case "bench" -> bench(verifier, request);
                case "bench_uncached" -> benchUncached(request);
                case "serve" -> serve();
                case "close" -> close();
                default -> with("error", "op");
            };
        } catch (Exception failure) {
            return failed("internal", failure.toString());
        }
    }

    // Opening and calling a verifier.

    private JsonObject open(JsonObject request) {
        close();
        try {
            verifier = described(request).build();
        } catch (IllegalArgumentException failure) {
            return failed("option", failure.getMessage());
        }
        described = request;
        return new JsonObject();
    }

    private static Verifier.Builder described(JsonObject request) {
        Verifier.Builder builder =
                Verifier.builder(request.get("target").getAsString()).apiKey(request.get("api_key").getAsString());
        given(request, "project_id", value -> builder.projectId(projects(value)));
        given(request, "any_project", value -> builder.anyProject());
        given(request, "cache_size", value -> builder.cacheSize(value.getAsInt()));
        given(request, "cache_bytes", value -> builder.cacheBytes(value.getAsLong()));
        given(request, "max_staleness", value -> builder.maxStaleness(millis(value)));
        given(request, "heartbeat", value -> builder.heartbeat(millis(value)));
        given(request, "timeout", value -> builder.timeout(millis(value)));
        given(request, "watch", value -> builder.watch(value.getAsBoolean()));
        given(request, "fixed_ttl", value -> builder.fixedTtl(millis(value)));
        return builder;
    }

    private synchronized JsonObject serve() throws Exception {
        if (services == null) {
            services = new SpeakingServices(verifier);
        }
        JsonObject answer = new JsonObject();
        answer.add("grpc", with("grpc", services.grpcPort()));
        answer.add("http", with("servlet", services.httpPort()));
        return answer;
    }

    private synchronized JsonObject close() {
        if (verifier != null) {
            verifier.close();
        }
        if (services != null) {
            try {
                services.stop();
            } catch (Exception failure) {
                return failed("internal", failure.toString());
            } finally {
                services = null;
            }
        }
        return new JsonObject();
    }

    private JsonObject verify(JsonObject request) {
        Verification told;
        try {
            told = verifier.verify(request.get("key").getAsString(), demand(request));
        } catch (TumblerException failure) {
            return failed(kind(failure), failure.getMessage());
        }
        JsonObject answer = with("valid", told.valid());
        answer.addProperty("code", told.code().name());
        answer.addProperty("key_id", told.keyId());
        answer.addProperty("project_id", told.projectId());
        answer.addProperty("environment_id", told.environmentId());
        answer.addProperty("owner_id", told.ownerId());
        answer.addProperty("name", told.name());
        answer.add("scopes", JSON.toJsonTree(told.scopes()));
        answer.add("metadata", JSON.toJsonTree(told.metadata()));
        answer.addProperty("expire_time", told.expireTime().map(Instant::toString).orElse(null));
        answer.addProperty("cached", told.cached());
        return answer;
    }

    private JsonObject verifyMany(JsonObject request) throws Exception {
        ConcurrentLinkedQueue<String> keys = new ConcurrentLinkedQueue<>(Vectors.strings(request, "keys"));
        VerifyOptions demand = demand(request);
        Map<String, Integer> codes = new TreeMap<>();
        Map<String, Integer> errors = new TreeMap<>();
        AtomicInteger cached = new AtomicInteger();
        List<Future<?>> callers = new ArrayList<>();
        for (int i = number(request, "callers", 1); i > 0; i--) {
            callers.add(threads.submit(() -> {
                for (String key = keys.poll(); key != null; key = keys.poll()) {
                    try {
                        Verification told = verifier.verify(key, demand);
                        cached.addAndGet(told.cached() ? 1 : 0);
                        count(codes, told.code().name());
                    } catch (TumblerException failure) {
                        count(errors, kind(failure));
                    }
                }
            }));
        }
        for (Future<?> caller : callers) {
            caller.get();
        }
        JsonObject answer = with("cached", cached.get());
        answer.add("codes", JSON.toJsonTree(codes));
        answer.add("errors", JSON.toJsonTree(errors));
        return answer;
    }

    // Callers that verify a key again and again, while the test revokes it.

    private JsonObject startRace(JsonObject request) {
        race = new Race(request.get("key").getAsString(), demand(request), number(request, "callers", 1));
        return new JsonObject();
    }

    private final class Race {
        private final List<Future<?>> callers = new ArrayList<>();
        private volatile boolean over;

        // Guarded by this.
        private final Map<String, Integer> errors = new TreeMap<>();
        private long calls;
        private long cached;
        private long valid;
        private long lastValidBegan;
        private long firstDeniedEnded = Long.MAX_VALUE;

        Race(String key, VerifyOptions demand, int callers) {
            for (int i = 0; i < callers; i++) {
                this.callers.add(threads.submit(() -> run(key, demand)));
            }
        }

        @SuppressWarnings("ThreadPriorityCheck") // for speed alone: nothing depends on the scheduler
        private void run(String key, VerifyOptions demand) {
            while (!over) {
                long began = now();
                try {
                    Verification told = verifier.verify(key, demand);
                    took(began, now(), told);
                } catch (TumblerException failure) {
                    synchronized (this) {
                        calls++;
                        count(errors, kind(failure));
                    }
                }
                Thread.yield();
            }
        }

        private synchronized void took(long began, long ended, Verification told) {
            calls++;
            cached += told.cached() ? 1 : 0;
            if (told.valid()) {
                valid++;
                lastValidBegan = Math.max(lastValidBegan, began);
            } else {
                firstDeniedEnded = Math.min(firstDeniedEnded, ended);
            }
        }

        JsonObject stop() throws Exception {
            over = true;
            for (Future<?> caller : callers) {
                caller.get();
            }
            synchronized (this) {
                JsonObject answer = with("calls", calls);
                answer.addProperty("cached", cached);
                answer.addProperty("valid", valid);
                answer.addProperty("last_valid_began_us", valid == 0 ? null : lastValidBegan);
                answer.addProperty(
                        "first_denied_ended_us", firstDeniedEnded == Long.MAX_VALUE ? null : firstDeniedEnded);
                answer.add("errors", JSON.toJsonTree(errors));
                return answer;
            }
        }
    }

    // Rules that need no server.

    private static JsonObject decide(JsonObject request) {
        JsonObject asked = request.getAsJsonObject("request");
        Code code = Verdict.decide(
                Vectors.record(request.get("record")),
                new VerifyOptions(
                        Vectors.strings(asked, "required_scopes"),
                        Vectors.text(asked, "client_ip"),
                        Vectors.text(asked, "environment_id"),
                        Vectors.strings(asked, "project_ids")),
                Vectors.micros(request.get("now").getAsString()));
        return with("code", code.name());
    }

    private static JsonObject wellFormed(JsonObject request) {
        KeyFormat form = KeyFormat.parse(request.get("key").getAsString());
        JsonObject answer = with("well_formed", form != null);
        if (form != null) {
            answer.addProperty("prefix", form.prefix());
            answer.addProperty("key_id", form.id());
        }
        return answer;
    }

    // Benchmarks.

    private static JsonObject bench(Verifier verifier, JsonObject request) {
        String key = request.get("key").getAsString();
        VerifyOptions demand = demand(request);
        int calls = number(request, "calls", 1);
        run(verifier, key, demand, Math.max(50_000, calls / 2));
        long began = System.nanoTime();
        int cached = run(verifier, key, demand, calls);
        JsonObject answer = with("ns_per_call", (System.nanoTime() - began) / (double) calls);
        answer.addProperty("cached", cached);
        return answer;
    }

    private JsonObject benchUncached(JsonObject request) {
        String key = request.get("key").getAsString();
        VerifyOptions demand = demand(request);
        int calls = number(request, "calls", 1);
        try (Verifier without = described(described).cacheSize(0).build()) {
            run(without, key, demand, calls / 2);
            long began = System.nanoTime();
            run(without, key, demand, calls);
            return with("ns_per_call", (System.nanoTime() - began) / (double) calls);
        }
    }

    private static int run(Verifier verifier, String key, VerifyOptions demand, int calls) {
        int cached = 0;
        for (int i = 0; i < calls; i++) {
            cached += verifier.verify(key, demand).cached() ? 1 : 0;
        }
        return cached;
    }

    // JSON.

    private static VerifyOptions demand(JsonObject request) {
        VerifyOptions demand = new VerifyOptions(
                Vectors.strings(request, "required_scopes"),
                Vectors.text(request, "client_ip"),
                Vectors.text(request, "environment_id"));
        return given(request, "project_id") ? demand.withProject(projects(request.get("project_id"))) : demand;
    }

    private static String[] projects(JsonElement oneOrSeveral) {
        return oneOrSeveral.isJsonArray()
                ? JSON.fromJson(oneOrSeveral, String[].class)
                : new String[] {oneOrSeveral.getAsString()};
    }

    private static int number(JsonObject request, String name, int otherwise) {
        return given(request, name) ? request.get(name).getAsInt() : otherwise;
    }

    private static void given(JsonObject request, String name, Consumer<JsonElement> use) {
        if (given(request, name)) {
            use.accept(request.get(name));
        }
    }

    private static boolean given(JsonObject request, String name) {
        return request.has(name) && !(request.get(name) instanceof JsonNull);
    }

    private static Duration millis(JsonElement value) {
        return Duration.ofNanos((long) (value.getAsDouble() * 1e6));
    }

    private static long now() {
        return ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now());
    }

    private static void count(Map<String, Integer> counts, String what) {
        synchronized (counts) {
            counts.merge(what, 1, Integer::sum);
        }
    }

    private static String kind(TumblerException failure) {
        return failure instanceof NotAllowedException
                ? "not_allowed"
                : failure instanceof InvalidRequestException ? "invalid_request" : "unavailable";
    }

    private static JsonObject failed(String kind, String message) {
        JsonObject answer = with("error", kind);
        answer.addProperty("message", message);
        return answer;
    }

    private static JsonObject with(String name, Object value) {
        JsonObject answer = new JsonObject();
        answer.add(name, JSON.toJsonTree(value));
        return answer;
    }
}
