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

/** Stands in for a call's listener until there is one. Earlier events are queued, and delivered to it in order. */
final class DeferredListener<Q> extends ServerCall.Listener<Q> {
    private static final System.Logger LOG = System.getLogger("dev.tumbler.guards");

    /** Delivers the call's events one at a time, although they come from different threads. */
    private final SynchronizationContext inTurn;

    private final List<Consumer<ServerCall.Listener<Q>>> early = new ArrayList<>();
    private ServerCall.Listener<Q> listener;

    DeferredListener(ServerCall<Q, ?> call) {
        inTurn = new SynchronizationContext((thread, failure) -> {
            // gRPC does the same with an exception of a handler.
            try {
                call.close(Status.UNKNOWN.withDescription("Application error processing RPC"), new Metadata());
            } catch (IllegalStateException closed) {
                // the handler has closed the call itself
            }
            try {
                LOG.log(Level.ERROR, "a handler failed", failure);
            } catch (Throwable unlogged) {
                // If it left this method, no event would be delivered any more.
            }
        });
    }

    /** Creates the listener, and delivers the queued events to it. */
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
