package dev.tumbler.grpc;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.grpc.ServerCall;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;

/** Tests of the listener that stands in for a call's listener until there is one. */
class DeferredListenerTest {
    private final List<String> told = new ArrayList<>();

    private final ServerCall.Listener<String> listener = new ServerCall.Listener<>() {
        @Override
        public void onMessage(String message) {
            told.add(message);
        }

        @Override
        public void onHalfClose() {
            told.add("half-close");
        }

        @Override
        public void onCancel() {
            told.add("cancel");
        }

        @Override
        public void onComplete() {
            told.add("complete");
        }

        @Override
        public void onReady() {
            told.add("ready");
        }
    };

    @Test
    @DisplayName("The listener is told all that came before it, in order, and then what comes.")
    void order() {
        DeferredListener<String> deferred = new DeferredListener<>(null);
        deferred.onReady();
        deferred.onMessage("one");
        deferred.onCancel();
        assertEquals(List.of(), told);
        deferred.proceed(() -> listener);
        assertEquals(List.of("ready", "one", "cancel"), told);
        deferred.onMessage("two");
        deferred.onHalfClose();
        deferred.onComplete();
        assertEquals(List.of("ready", "one", "cancel", "two", "half-close", "complete"), told);
    }
}
