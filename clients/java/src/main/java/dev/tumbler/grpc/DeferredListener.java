package dev.tumbler.grpc;

import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.Status;
import io.grpc.SynchronizationContext;
import java.lang.System.Logger.Level;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import java.util.function.Supplier;

/** Stands for a call's listener until there is one. What comes before is kept, and told it in turn. */
final class DeferredListener<Q> extends ServerCall.Listener<Q> {
    private static final System.Logger LOG = System.getLogger("dev.tumbler.guards");

    /** What happens to the call is told one after another, though by different threads. */
    private final SynchronizationContext inTurn;

    private final List<Consumer<ServerCall.Listener<Q>>> early = new ArrayList<>();
    private ServerCall.Listener<Q> listener;

    DeferredListener(ServerCall<Q, ?> call) {
        inTurn = new SynchronizationContext((thread, failure) -> {
            // As gRPC does with what a handler throws.
            LOG.log(Level.ERROR, "a handler failed", failure);
            try {
                call.close(Status.UNKNOWN.withDescription("Application error processing RPC"), new Metadata());
            } catch (IllegalStateException closed) {
                // by the handler itself
            }
        });
    }

    /** Makes the listener that there shall be from now on. */
    void proceed(Supplier<ServerCall.Listener<Q>> make) {
        inTurn.execute(() -> {
            listener = make.get();
            early.forEach(event -> event.accept(listener));
            early.clear();
        });
    }

    @Override
    public void onMessage(Q message) {
        tell(listener -> listener.onMessage(message));
    }

    @Override
    public void onHalfClose() {
        tell(ServerCall.Listener::onHalfClose);
    }

    @Override
    public void onCancel() {
        tell(ServerCall.Listener::onCancel);
    }

    @Override
    public void onComplete() {
        tell(ServerCall.Listener::onComplete);
    }

    @Override
    public void onReady() {
        tell(ServerCall.Listener::onReady);
    }

    private void tell(Consumer<ServerCall.Listener<Q>> event) {
        inTurn.execute(() -> {
            if (listener == null) {
                early.add(event);
            } else {
                event.accept(listener);
            }
        });
    }
}
