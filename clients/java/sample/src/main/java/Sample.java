import dev.tumbler.UnavailableException;
import dev.tumbler.Verification;
import dev.tumbler.Verifier;
import dev.tumbler.VerifyOptions;
import java.time.Duration;

/** Verifies the key in the environment variable PRESENTED_KEY, twice. */
public final class Sample {
    private Sample() {}

    public static void main(String[] args) {
        VerifyOptions read = VerifyOptions.requireScopes("orders:read");
        try (Verifier verifier = Verifier.builder(System.getenv("TUMBLER_ENDPOINT"))
                .apiKey(System.getenv("TUMBLER_API_KEY"))
                .timeout(Duration.ofSeconds(20)) // a JVM's first call takes long on a busy machine
                .build()) {
            for (int i = 0; i < 2; i++) {
                Verification told = verifier.verify(System.getenv("PRESENTED_KEY"), read);
                System.out.println(told.valid() ? "allowed: " + told.name() : "denied: " + told.code());
            }
        } catch (UnavailableException failure) {
            System.out.println("unavailable");
        }
    }
}
