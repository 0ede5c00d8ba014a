// Unlike `KEY_PATTERN`: also without the prefix, inside a longer word, and cut short. Of a secret that is cut before its
// 20th character, more than 130 bits are left to guess.
const QUOTED_KEY = /(?:[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?_)?[0-9A-Za-z]{16}_[0-9A-Za-z]{20,}/g;

/**
 * Returns the text with `<key>` in place of all that looks like a key, of whatever installation. A server, or a proxy
 * before it, may quote a presented key or the verifier's own. The clients in all languages have the same function, and
 * `tests/vectors/redaction.json` tests them all.
 */
export function redact(text: string): string {
  return text.replaceAll(QUOTED_KEY, "<key>");
}
