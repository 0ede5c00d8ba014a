import * as crypto from "node:crypto";

// The random key makes a digest useless to anyone who later reads this process's memory or swap. It fills one block of
// SHA-256. HMAC is not needed: it protects digests that others see and could extend, and no one sees these.
const PROCESS_KEY = crypto.randomBytes(32).toString("hex");

const BYTES = 64; // in hexadecimal, because crypto.hash makes text three times as fast as a Buffer

const hash: (text: string) => string =
  typeof crypto.hash === "function" // since Node 20.12
    ? (text) => crypto.hash("sha256", text, "hex")
    : (text) => crypto.createHash("sha256").update(text).digest("hex");

const presented = Buffer.alloc(BYTES);

/** Returns a digest of the key, made with a random key of this process. */
export function digest(text: string): Buffer {
  return Buffer.from(hash(PROCESS_KEY + text), "latin1");
}

/** Returns whether the digest is that of the text. The only comparison of digests, in constant time. */
export function isDigestOf(stored: Buffer, text: string): boolean {
  presented.write(hash(PROCESS_KEY + text), "latin1");
  return crypto.timingSafeEqual(presented, stored);
}
