package dev.tumbler.grpc;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.tumbler.BrokenLogger;
import io.grpc.ForwardingServerCallListener.SimpleForwardingServerCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServerCall;
import io.grpc.Status;
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

    @Test
    @DisplayName("Where a handler fails and its failure cannot be logged, the call is closed, and the listener told on.")
    void brokenLog() {
        Runnable remove = BrokenLogger.addHandler("dev.tumbler.guards");
        try {
            DeferredListener<String> deferred = new DeferredListener<>(new Call());
            deferred.proceed(() -> new SimpleForwardingServerCallListener<>(listener) {
                @Override
                public void onMessage(String message) {
                    throw new IllegalStateException("as the test has it");
                }
            });
            deferred.onMessage("one");
            deferred.onCancel();
            assertEquals(List.of("closed UNKNOWN", "cancel"), told);
        } finally {
            remove.run();
        }
    }

    private final class Call extends ServerCall<String, String> {
        @Override
        public void request(int messages) {}

        @Override
        public void sendHeaders(Metadata headers) {}

        @Override
        public void sendMessage(String message) {}

        @Override
        public void close(Status status, Metadata trailers) {
            told.add("closed " + status.getCode());
        }

        @Override
        public boolean isCancelled() {
            return false;
        }

        @Override
        public MethodDescriptor<String, String> getMethodDescriptor() {
            throw new UnsupportedOperationException();
        }
    }
}
