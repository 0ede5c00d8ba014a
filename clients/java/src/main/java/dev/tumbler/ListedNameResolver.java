package dev.tumbler;

import io.grpc.Attributes;
import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.NameResolverRegistry;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.List;

/**
 * Resolves a target that lists addresses, {@code ipv4:192.0.2.1:50051,192.0.2.2:50051} for example. gRPC supports these
 * schemes in other languages, but not in Java.
 */
final class ListedNameResolver extends NameResolver {
    private final List<String> addresses;

    private ListedNameResolver(String list) {
        addresses = List.of(list.split(","));
        addresses.forEach(ListedNameResolver::group); // fail at once if an address is wrong
    }

    /** Registers the schemes with gRPC, unless it knows them. */
    static void register() {
        NameResolverRegistry registry = NameResolverRegistry.getDefaultRegistry();
        for (String scheme : List.of("ipv4", "ipv6")) {
            if (registry.getProviderForScheme(scheme) == null) {
                registry.register(new Provider(scheme));
            }
        }
    }

    @Override
    public String getServiceAuthority() {
        return addresses.get(0);
    }

    @Override
    @SuppressWarnings("deprecation") // its replacement is newer than the oldest supported gRPC
    public void start(Listener2 listener) {
        List<EquivalentAddressGroup> groups = new ArrayList<>();
        addresses.forEach(address -> groups.add(group(address)));
        listener.onResult(ResolutionResult.newBuilder().setAddresses(groups).build());
    }

    @Override
    public void shutdown() {}

    private static EquivalentAddressGroup group(String address) {
        int colon = address.lastIndexOf(':');
        byte[] host = Address.parse(
                address.substring(0, Math.max(colon, 0)).replaceAll("^\\[|\\]$", ""));
        try {
            if (host == null) {
                throw new IllegalArgumentException("target: " + address + " is not address:port");
            }
            int port = Integer.parseInt(address.substring(colon + 1));
            // Each server's certificate names its own address.
            return new EquivalentAddressGroup(
                    new InetSocketAddress(InetAddress.getByAddress(host), port),
                    Attributes.newBuilder()
                            .set(EquivalentAddressGroup.ATTR_AUTHORITY_OVERRIDE, address)
                            .build());
        } catch (UnknownHostException | NumberFormatException failure) {
            throw new IllegalArgumentException("target: " + address + " is not address:port", failure);
        }
    }

    private static final class Provider extends NameResolverProvider {
        private final String scheme;

        Provider(String scheme) {
            this.scheme = scheme;
        }

        @Override
        public NameResolver newNameResolver(URI target, NameResolver.Args args) {
            return scheme.equals(target.getScheme()) ? new ListedNameResolver(target.getSchemeSpecificPart()) : null;
        }

        @Override
        public String getDefaultScheme() {
            return scheme;
        }

        @Override
        protected boolean isAvailable() {
            return true;
        }

        @Override
        protected int priority() {
            return 4; // below DNS, which must stay the default for a target without a scheme
        }
    }
}
