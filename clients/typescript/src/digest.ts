import * as crypto from "node:crypto";

// Keyed with what only this process knows, a digest is of no use to whoever reads its memory, or its swap, later.
// The key fills one block of SHA-256. (HMAC guards digests that others see and extend; nobody sees these.)
const PROCESS_KEY = crypto.randomBytes(32).toString("hex");

const BYTES = 64; // in hexadecimal: crypto.hash makes text three times as fast as a Buffer

const hash: (text: string) => string =
  typeof crypto.hash === "function" // since Node 20.12
    ? (text) => crypto.hash("sha256", text, "hex")
    : (text) => crypto.createHash("sha256").update(text).digest("hex");

const presented = Buffer.alloc(BYTES);

/** Returns what is remembered of a key: a digest of it under a random key of this process. */
export function digest(text: string): Buffer {
  return Buffer.from(hash(PROCESS_KEY + text), "latin1");
}

/** Says whether the digest is that of the text. The only place where digests are compared, and in constant time. */
export function isDigestOf(remembered: Buffer, text: string): boolean {
  presented.write(hash(PROCESS_KEY + text), "latin1");
  return crypto.timingSafeEqual(presented, remembered);
}
