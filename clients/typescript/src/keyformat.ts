/**
 * The form of a key: `<prefix>_<id>_<secret><check>` (docs/contract.md, "The form of a key"). The clients in all
 * languages run the same test vectors (`tests/vectors/keyformat.json`). Nothing here needs a server.
 */

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID_LENGTH = 16;
const CHECK_LENGTH = 6;
const SECRET_AND_CHECK_LENGTH = 43 + CHECK_LENGTH;
const PREFIX = "[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?";

/** Characters in the longest possible key. */
export const MAX_KEY_LENGTH = 32 + 1 + ID_LENGTH + 1 + SECRET_AND_CHECK_LENGTH;

/**
 * Finds keys in other text, for secret scanners and log filters: `text.replaceAll(KEY_PATTERN, "…")`. It does not
 * verify the check; {@link parseKey} does.
 */
export const KEY_PATTERN = new RegExp(`\\b${PREFIX}_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}\\b`, "g");

// An underscore in the prefix is not ambiguous: the last 66 characters have a fixed length and one underscore.
const WHOLE_KEY = new RegExp(`^(${PREFIX})_([0-9A-Za-z]{16})_[0-9A-Za-z]{43}([0-9A-Za-z]{6})$`);

/** The parts of a well-formed key that may be shown. The secret is not among them. */
export interface ParsedKey {
  /** The prefix chosen when the key was created, `acme_live` for example. */
  readonly prefix: string;
  /** The id by which the key is managed. Not a secret. */
  readonly id: string;
}

/**
 * Splits a key into its parts, after verifying its form and its check. Returns undefined if the text is not exactly one
 * key; white space around it counts too. It takes a few microseconds, however long the text is.
 *
 * A well-formed key may still be unknown, revoked or expired.
 */
export function parseKey(text: string): ParsedKey | undefined {
  if (text.length > MAX_KEY_LENGTH) return undefined;
  const [, prefix, id, check] = WHOLE_KEY.exec(text) ?? [];
  if (prefix === undefined || id === undefined || checksum(text.slice(0, -CHECK_LENGTH)) !== check) return undefined;
  return { prefix, id };
}

/** Returns whether {@link parseKey} accepts the text. */
export function isWellFormed(text: string): boolean {
  return parseKey(text) !== undefined;
}

/**
 * Returns the part of the text that is the id if the text is a key. For other text the result is no key's id.
 *
 * @internal
 */
export function peekId(text: string): string {
  const end = text.length - SECRET_AND_CHECK_LENGTH - 1;
  return text.slice(end - ID_LENGTH, end);
}

/** Returns the CRC-32 of the text as six base62 digits, highest first. It finds typing errors and proves nothing. */
function checksum(text: string): string {
  let crc = 0xffffffff;
  for (let index = 0; index < text.length; index++) {
    crc = (CRC_TABLE[(crc ^ text.charCodeAt(index)) & 0xff] ?? 0) ^ (crc >>> 8);
  }
  let value = ~crc >>> 0;
  let digits = "";
  for (let place = 0; place < CHECK_LENGTH; place++) {
    digits = ALPHABET.charAt(value % 62) + digits;
    value = Math.floor(value / 62);
  }
  return digits;
}

// zlib.crc32 is newer than the oldest Node that we support.
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});
