package dev.tumbler;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;

/** The common test vectors, and the meaning of their JSON. */
final class Vectors {
    private Vectors() {}

    static Stream<JsonObject> of(String file) throws IOException {
        Path path = Path.of(System.getProperty("vectors"), file);
        JsonObject all = JsonParser.parseString(Files.readString(path)).getAsJsonObject();
        return all.getAsJsonArray("vectors").asList().stream().map(JsonElement::getAsJsonObject);
    }

    static KeyRecord record(JsonElement json) {
        if (json == null || json instanceof JsonNull) {
            return null;
        }
        JsonObject record = json.getAsJsonObject();
        return new KeyRecord(
                "",
                text(record, "project_id"),
                text(record, "environment_id"),
                "",
                "",
                strings(record, "scopes"),
                Map.of(),
                KeyRecord.networks(strings(record, "allowed_cidrs")),
                !strings(record, "allowed_cidrs").isEmpty(),
                has(record, "revoke_time"),
                !has(record, "active") || record.get("active").getAsBoolean(),
                time(record, "grace_expire_time"),
                time(record, "expire_time"));
    }

    static long micros(String time) {
        Instant instant = Instant.parse(time);
        return instant.getEpochSecond() * 1_000_000 + instant.getNano() / 1_000;
    }

    /** Returns a text; empty if it was left out. */
    static String text(JsonObject object, String name) {
        return has(object, name) ? object.get(name).getAsString() : "";
    }

    static List<String> strings(JsonObject object, String name) {
        JsonArray array = has(object, name) ? object.getAsJsonArray(name) : new JsonArray();
        return array.asList().stream().map(JsonElement::getAsString).toList();
    }

    /** Returns the values of a row's headers with this name, in order. */
    static List<String> headers(JsonObject row, String name) {
        return row.getAsJsonArray("headers").asList().stream()
                .map(JsonElement::getAsJsonArray)
                .filter(header -> header.get(0).getAsString().equals(name))
                .map(header -> header.get(1).getAsString())
                .toList();
    }

    private static long time(JsonObject object, String name) {
        return has(object, name) ? micros(object.get(name).getAsString()) : KeyRecord.NEVER;
    }

    private static boolean has(JsonObject object, String name) {
        return object.has(name) && !(object.get(name) instanceof JsonNull);
    }
}
