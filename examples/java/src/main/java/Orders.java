import com.google.gson.Gson;
import dev.tumbler.Verifier;
import dev.tumbler.servlet.KeyFilter;
import jakarta.servlet.DispatcherType;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import org.eclipse.jetty.ee9.servlet.FilterHolder;
import org.eclipse.jetty.ee9.servlet.ServletContextHandler;
import org.eclipse.jetty.server.Server;

/** Orders, behind API keys: Jetty and one filter. */
public final class Orders extends HttpServlet {
    private static final long serialVersionUID = 1L;

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        Server server = new Server(new InetSocketAddress(InetAddress.getLoopbackAddress(), port));
        try (Verifier verifier = Verifier.builder(System.getenv("TUMBLER_ENDPOINT"))
                .apiKey(System.getenv("TUMBLER_API_KEY"))
                .build()) {
            KeyFilter guard = KeyFilter.builder(verifier).requireScopes("orders:read").build();
            ServletContextHandler context = new ServletContextHandler(server, "/");
            context.addFilter(new FilterHolder(guard), "/*", EnumSet.of(DispatcherType.REQUEST));
            context.addServlet(Orders.class, "/orders");
            server.start();
            System.out.println("listening on http://127.0.0.1:" + port);
            server.join();
        }
    }

    @Override
    protected void doGet(HttpServletRequest request, HttpServletResponse response) throws IOException {
        String owner = KeyFilter.identity(request).orElseThrow().ownerId();
        response.setContentType("application/json");
        response.getWriter().print(new Gson().toJson(Map.of("orders", List.of(), "owner", owner)));
    }
}
