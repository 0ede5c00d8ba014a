package dev.tumbler;

import dev.tumbler.grpc.KeyInterceptor;
import dev.tumbler.servlet.KeyFilter;
import dev.tumbler.v1.ApiKeyServiceGrpc;
import dev.tumbler.v1.WatchRequest;
import dev.tumbler.v1.WatchResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import jakarta.servlet.DispatcherType;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.util.EnumSet;
import org.eclipse.jetty.ee9.servlet.FilterHolder;
import org.eclipse.jetty.ee9.servlet.ServletContextHandler;
import org.eclipse.jetty.ee9.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.util.thread.QueuedThreadPool;

/** Guarded services whose streams send messages without end. The harness's {@code serve} starts them. */
final class SpeakingServices {
    private static final int TICK_MILLIS = 20;
    private static final String SCOPE = "orders:read";

    private final io.grpc.Server grpc;
    private final Server http;

    SpeakingServices(Verifier verifier) throws Exception {
        grpc = Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
                .intercept(KeyInterceptor.builder(verifier).requireScopes(SCOPE).build())
                .addService(new Speaker())
                .build()
                .start();
        QueuedThreadPool threads = new QueuedThreadPool();
        threads.setDaemon(true);
        http = new Server(threads);
        ServletContextHandler servlets = new ServletContextHandler();
        servlets.addFilter(
                new FilterHolder(KeyFilter.builder(verifier).requireScopes(SCOPE).build()),
                "/*",
                EnumSet.of(DispatcherType.REQUEST));
        servlets.addServlet(new ServletHolder(new Words()), "/*");
        ServerConnector connector = new ServerConnector(http);
        connector.setHost("127.0.0.1");
        http.addConnector(connector);
        http.setHandler(servlets);
        http.start();
    }

    int grpcPort() {
        return grpc.getPort();
    }

    int httpPort() {
        return ((ServerConnector) http.getConnectors()[0]).getLocalPort();
    }

    void stop() throws Exception {
        grpc.shutdownNow();
        http.stop();
    }

    private static final class Speaker extends ApiKeyServiceGrpc.ApiKeyServiceImplBase {
        @Override
        public void watch(WatchRequest request, StreamObserver<WatchResponse> to) {
            var call = (ServerCallStreamObserver<WatchResponse>) to;
            call.setOnCancelHandler(() -> {});
            Thread speaking = new Thread(() -> {
                while (!call.isCancelled()) {
                    call.onNext(WatchResponse.getDefaultInstance());
                    tick();
                }
            });
            speaking.setDaemon(true);
            speaking.start();
        }
    }

    private static final class Words extends HttpServlet {
        private static final long serialVersionUID = 1L;

        @Override
        protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
            while (true) {
                response.getOutputStream().print("word\n");
                response.flushBuffer();
                tick();
            }
        }
    }

    private static void tick() {
        try {
            Thread.sleep(TICK_MILLIS);
        } catch (InterruptedException interruption) {
            Thread.currentThread().interrupt();
        }
    }
}
