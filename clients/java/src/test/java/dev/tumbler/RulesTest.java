package dev.tumbler;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import java.time.Duration;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.stream.Stream;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Tests of the rules that the server and all clients share, by the common test vectors. */
class RulesTest {
    @TestFactory
    @DisplayName("The verdict is the server's.")
    Stream<DynamicTest> verdicts() throws Exception {
        return Vectors.of("verify.json")
                .map(vector -> DynamicTest.dynamicTest(vector.get("name").getAsString(), () -> {
                    JsonObject request = vector.getAsJsonObject("request");
                    Code decided = Verdict.decide(
                            Vectors.record(vector.get("record")),
                            new VerifyOptions(
                                    Vectors.strings(request, "required_scopes"),
                                    Vectors.text(request, "client_ip"),
                                    Vectors.text(request, "environment_id"),
                                    Vectors.strings(request, "project_ids")),
                            Vectors.micros(vector.get("now").getAsString()));
                    assertEquals(Code.valueOf(vector.get("code").getAsString()), decided);
                }));
    }

    @TestFactory
    @DisplayName("The form of a key is the server's.")
    Stream<DynamicTest> forms() throws Exception {
        return Vectors.of("keyformat.json")
                .map(vector -> DynamicTest.dynamicTest(vector.get("name").getAsString(), () -> {
                    KeyFormat expected = vector.get("well_formed").getAsBoolean()
                            ? new KeyFormat(Vectors.text(vector, "prefix"), Vectors.text(vector, "id"))
                            : null;
                    String key = text(vector.get("key"));
                    assertEquals(expected, KeyFormat.parse(key));
                    if (expected != null) {
                        assertEquals(expected.id(), KeyFormat.peekId(key));
                    }
                }));
    }

    private static String text(JsonElement key) {
        if (key.isJsonPrimitive()) {
            return key.getAsString();
        }
        JsonArray repeated = key.getAsJsonObject().getAsJsonArray("repeat");
        return repeated.get(0).getAsString().repeat(repeated.get(1).getAsInt());
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "192.0.2.1/24", "192.0.2.0/33", "2001:db8::/129", "192.0.2.0/", "192.0.2.0/-1", "192.0.2.0/+8",
                "/8", "example/8", "192.0.2.0/8/8", "2001:db8::1/64", "192.0.2.0/255.255.255.0"
            })
    @DisplayName("A network that is not written as one is none.")
    void noNetwork(String text) {
        assertNull(Network.parse(text));
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "::", "1::", "::1", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:192.0.2.1", "::192.0.2.1"
            })
    @DisplayName("IPv6 addresses may leave out zeros, and end as an IPv4 address.")
    void address(String text) {
        assertNotNull(Address.parse(text));
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                ":", ":::", "1:", ":1", "1:::2", "1::2::3", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7",
                "192.0.2.1::", "1:2:3:4:5:6:7:192.0.2.1", "::192.0.2.1:1", "g::", "12345::", "::-1",
                "::ffff:192.0.2.256"
            })
    @DisplayName("What only looks like an IPv6 address is none.")
    void noAddress(String text) {
        assertNull(Address.parse(text));
    }

    @TestFactory
    @DisplayName("A request has one credential, as the server has it.")
    Stream<DynamicTest> credentials() throws Exception {
        return Vectors.of("credentials.json")
                .map(vector -> DynamicTest.dynamicTest(vector.get("name").getAsString(), () -> {
                    String refused = Vectors.text(vector, "refused");
                    Credential expected = refused.isEmpty()
                            ? new Credential(Vectors.text(vector, "credential"), null)
                            : new Credential(null, Credential.Refused.valueOf(refused.toUpperCase(Locale.ROOT)));
                    assertEquals(
                            expected,
                            Credential.of(
                                    Vectors.headers(vector, "authorization"), Vectors.headers(vector, "x-api-key")));
                }));
    }

    @Test
    @DisplayName("A long header of blanks costs linear time, within the value as around it.")
    void blanks() {
        String blanks = " \t".repeat(500_000);
        assertTimeoutPreemptively(Duration.ofSeconds(5), () -> {
            assertEquals(Optional.of("a" + blanks + "b"), Guards.presentedKey(null, List.of("a" + blanks + "b")));
            assertEquals(Optional.of("k"), Guards.presentedKey(null, List.of(blanks + "k" + blanks)));
            assertEquals(Optional.empty(), Guards.presentedKey(null, List.of(blanks)));
        });
    }

    @Test
    @DisplayName("A log handler that throws changes no answer of a guard.")
    void brokenLog() {
        Runnable remove = BrokenLogger.addHandler("dev.tumbler.guards");
        try {
            assertEquals(
                    Optional.of(Guards.Refusal.KEY_REQUIRED),
                    Guards.refusal(Verification.unproven(Code.NOT_FOUND, false)));
            assertEquals(Guards.Refusal.UNDECIDED, Guards.refusal(new UnavailableException("as the test has it")));
            assertEquals(Guards.Refusal.MISTAKEN, Guards.refusal(new IllegalStateException("as the test has it")));
            assertEquals(Optional.empty(), Guards.presentedKey(List.of("a", "b"), null));
        } finally {
            remove.run();
        }
    }

    @Test
    @DisplayName("Where no header of a name came, it may be null.")
    void noHeaders() {
        assertEquals(Optional.of("k"), Guards.presentedKey(null, List.of("k")));
        assertEquals(Optional.of("k"), Guards.presentedKey(List.of("bearer k"), null));
        assertEquals(Optional.empty(), Guards.presentedKey(null, null));
    }
}
