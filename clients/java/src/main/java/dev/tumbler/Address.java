package dev.tumbler;

/**
 * A strict parser of IP addresses that never resolves a name. {@link java.net.InetAddress} would query DNS for any text
 * that is not an address.
 */
final class Address {
    private Address() {}

    /**
     * Returns the 4 or 16 bytes of an address, or null if the text is not an address. An IPv4-mapped IPv6 address gives
     * the 4 bytes of the IPv4 address. An address with a zone ({@code fe80::1%eth0}) has a meaning only on its own
     * machine, so it gives null.
     */
    static byte[] parse(String text) {
        return text.indexOf(':') < 0 ? parse4(text) : unmapped(parse6(text));
    }

    /** Like {@link #parse}, but an IPv4-mapped address gives its 16 bytes. */
    static byte[] parseAsWritten(String text) {
        return text.indexOf(':') < 0 ? parse4(text) : parse6(text);
    }

    private static byte[] parse4(String text) {
        String[] parts = text.split("\\.", 5);
        if (parts.length != 4) {
            return null;
        }
        byte[] address = new byte[4];
        for (int i = 0; i < 4; i++) {
            int value = number(parts[i], 3, 10);
            if (value < 0 || value > 255 || (parts[i].length() > 1 && parts[i].charAt(0) == '0')) {
                return null;
            }
            address[i] = (byte) value;
        }
        return address;
    }

    private static byte[] parse6(String text) {
        int gap = text.indexOf("::");
        byte[] head = groups(gap < 0 ? text : text.substring(0, gap), gap < 0);
        byte[] tail = gap < 0 ? new byte[0] : groups(text.substring(gap + 2), true);
        if (head == null || tail == null) {
            return null;
        }
        int length = head.length + tail.length;
        if (gap < 0 ? length != 16 : length > 14) { // a gap stands for one group or more
            return null;
        }
        byte[] address = new byte[16];
        System.arraycopy(head, 0, address, 0, head.length);
        System.arraycopy(tail, 0, address, 16 - tail.length, tail.length);
        return address;
    }

    /** Returns the bytes of groups separated by colons. If they end the text, the last may be an IPv4 address. */
    private static byte[] groups(String text, boolean atEnd) {
        if (text.isEmpty()) {
            return new byte[0];
        }
        String[] parts = text.split(":", 9);
        byte[] last = atEnd ? parse4(parts[parts.length - 1]) : null;
        int count = last == null ? parts.length : parts.length - 1;
        byte[] bytes = new byte[2 * count + (last == null ? 0 : 4)];
        for (int i = 0; i < count; i++) {
            int value = number(parts[i], 4, 16);
            if (value < 0) {
                return null;
            }
            bytes[2 * i] = (byte) (value >> 8);
            bytes[2 * i + 1] = (byte) value;
        }
        if (last != null) {
            System.arraycopy(last, 0, bytes, 2 * count, 4);
        }
        return bytes;
    }

    private static byte[] unmapped(byte[] address) {
        if (address == null || address[10] != -1 || address[11] != -1) {
            return address;
        }
        for (int i = 0; i < 10; i++) {
            if (address[i] != 0) {
                return address;
            }
        }
        return new byte[] {address[12], address[13], address[14], address[15]};
    }

    /** Returns the value of 1 to {@code longest} ASCII digits, or -1 if the text is anything else. */
    static int number(String text, int longest, int radix) {
        if (text.isEmpty() || text.length() > longest) {
            return -1;
        }
        int value = 0;
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            int digit = c < 128 ? Character.digit(c, radix) : -1;
            if (digit < 0) {
                return -1;
            }
            value = value * radix + digit;
        }
        return value;
    }
}
