package dev.tumbler;

import java.util.Arrays;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Classifies gRPC targets. */
final class Target {
    private static final Pattern HOST_SCHEME = Pattern.compile("dns:(?:///)?|ipv4:|ipv6:");
    private static final Network LOOPBACK_4 = Network.parse("127.0.0.0/8");
    private static final Network LOOPBACK_6 = Network.parse("::1");

    private Target() {}

    /**
     * Returns whether a gRPC target can only be this machine: a Unix socket, {@code localhost}, 127.0.0.0/8 or ::1.
     * Plaintext to it crosses no network. If in doubt it returns false: another name may resolve to anything, and so
     * may {@code localhost} on a chosen DNS server ({@code dns://server/localhost}).
     */
    static boolean isLoopback(String target) {
        if (target.startsWith("unix:") || target.startsWith("unix-abstract:")) {
            return true;
        }
        Matcher scheme = HOST_SCHEME.matcher(target);
        String addresses = scheme.lookingAt() ? target.substring(scheme.end()) : target;
        return Arrays.stream(addresses.split(",", -1)).map(Target::host).allMatch(Target::isLoopbackHost);
    }

    private static String host(String address) {
        if (address.startsWith("[")) {
            int end = address.indexOf(']');
            return address.substring(1, end < 0 ? address.length() : end);
        }
        int colon = address.indexOf(':');
        return colon < 0 || colon != address.lastIndexOf(':') ? address : address.substring(0, colon);
    }

    private static boolean isLoopbackHost(String host) {
        if (host.equalsIgnoreCase("localhost")) {
            return true;
        }
        byte[] address = Address.parse(host);
        return address != null && (LOOPBACK_4.contains(address) || LOOPBACK_6.contains(address));
    }
}
