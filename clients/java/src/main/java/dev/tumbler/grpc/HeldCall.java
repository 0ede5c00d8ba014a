package dev.tumbler.grpc;

import dev.tumbler.Guards.Refusal;
import io.grpc.ForwardingServerCall.SimpleForwardingServerCall;
import io.grpc.ForwardingServerCallListener.SimpleForwardingServerCallListener;
import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.Status;

/**
 * A streaming call that another thread than the handler's may end. The handler then sees what it sees when the caller
 * hangs up.
 */
final class HeldCall<Q, A> extends SimpleForwardingServerCall<Q, A> {
    /** Guards the call, which is not thread-safe, and the fields below. */
    private final Object lock = new Object();

    private volatile boolean ended;
    private boolean closed;
    private Runnable release = () -> {};

    HeldCall(ServerCall<Q, A> call) {
        super(call);
    }

    /** Ends the call with the refusal's status, unless it has ended. */
    void end(Refusal refusal) {
        synchronized (lock) {
            if (!closed) {
                closed = true;
                ended = true;
                delegate().close(refusal.grpcStatus(), new Metadata());
            }
        }
    }

    /** Sets what to run when the call has ended. */
    void onEnd(Runnable release) {
        synchronized (lock) {
            this.release = release;
        }
    }

    /** Wraps the handler's listener. After {@link #end} it delivers only the cancellation. */
    ServerCall.Listener<Q> listener(ServerCall.Listener<Q> handler) {
        return new SimpleForwardingServerCallListener<>(handler) {
            @Override
            public void onMessage(Q message) {
                if (!ended) {
                    super.onMessage(message);
                }
            }

            @Override
            public void onHalfClose() {
                if (!ended) { // else it may not be an orderly half-close
                    super.onHalfClose();
                }
            }

            @Override
            public void onCancel() {
                released();
                super.onCancel();
            }

            @Override
            public void onComplete() {
                released();
                if (ended) {
                    super.onCancel();
                } else {
                    super.onComplete();
                }
            }
        };
    }

    private void released() {
        synchronized (lock) {
            release.run();
        }
    }

    @Override
    public boolean isCancelled() {
        return ended || super.isCancelled();
    }

    @Override
    public boolean isReady() {
        return !ended && super.isReady();
    }

    @Override
    public void request(int messages) {
        synchronized (lock) {
            if (!ended) {
                super.request(messages);
            }
        }
    }

    @Override
    public void sendHeaders(Metadata headers) {
        synchronized (lock) {
            if (!ended) {
                super.sendHeaders(headers);
            }
        }
    }

    @Override
    public void sendMessage(A message) {
        synchronized (lock) {
            if (!ended) {
                super.sendMessage(message);
            }
        }
    }

    @Override
    public void close(Status status, Metadata trailers) {
        synchronized (lock) {
            if (!ended) {
                closed = true;
                super.close(status, trailers);
            }
        }
    }
}
