package dev.tumbler;

/** A range of IP addresses in CIDR notation: the first {@code bits} of {@code address}, whose other bits are zero. */
@SuppressWarnings("ArrayRecordComponent") // never compared, and nothing writes to the array
record Network(byte[] address, int bits) {
    /** Parses a network. Returns null if the text is not a network, or has bits set beyond its mask. */
    static Network parse(String text) {
        int slash = text.indexOf('/');
        byte[] address = Address.parseAsWritten(slash < 0 ? text : text.substring(0, slash));
        if (address == null) {
            return null;
        }
        int all = 8 * address.length;
        int bits = slash < 0 ? all : Address.number(text.substring(slash + 1), 3, 10);
        if (bits < 0 || bits > all) {
            return null;
        }
        for (int bit = bits; bit < all; bit++) {
            if ((address[bit / 8] >> (7 - bit % 8) & 1) != 0) {
                return null;
            }
        }
        return new Network(address, bits);
    }

    boolean contains(byte[] other) {
        if (other.length != address.length) {
            return false;
        }
        int whole = bits / 8;
        for (int i = 0; i < whole; i++) {
            if (other[i] != address[i]) {
                return false;
            }
        }
        return bits % 8 == 0 || (other[whole] ^ address[whole]) >> (8 - bits % 8) == 0;
    }
}
