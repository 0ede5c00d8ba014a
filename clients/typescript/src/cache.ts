import type { KeyRecord } from "./verification.js";

/** Bytes that a cached key counts in addition to its record, for the digest and the entry. */
export const ENTRY_BYTES = 1_024;

/** A cached key. */
export interface Entry {
  readonly digest: Buffer;
  readonly record: KeyRecord;
  /** Until when it may answer, by our clock. */
  readonly expiresAt: number;
  /** Microseconds from our clock to the server's. */
  readonly clockOffset: number;
  /** The bytes that it counts. */
  readonly size: number;
}

/** The records by key id. Beyond `maxEntries` entries or `maxBytes` bytes, the least recently used is evicted. */
export class Cache {
  readonly #maxEntries: number;
  readonly #maxBytes: number;
  readonly #entries = new Map<string, Entry>(); // in order of use, the latest last
  #bytes = 0;

  constructor(maxEntries: number, maxBytes: number) {
    this.#maxEntries = maxEntries;
    this.#maxBytes = maxBytes;
  }

  get size(): number {
    return this.#entries.size;
  }

  lookup(keyId: string): Entry | undefined {
    const entry = this.#entries.get(keyId);
    if (entry !== undefined) {
      // Not `keyId`: it may be a slice of a presented key, and would keep that whole key in memory.
      this.#entries.delete(entry.record.keyId);
      this.#entries.set(entry.record.keyId, entry);
    }
    return entry;
  }

  store(entry: Entry): void {
    if (this.#maxEntries === 0 || entry.size > this.#maxBytes) return;
    const { keyId } = entry.record;
    this.evict(keyId);
    this.#entries.set(keyId, entry);
    this.#bytes += entry.size;
    for (const leastRecent of this.#entries.keys()) {
      if (this.#entries.size <= this.#maxEntries && this.#bytes <= this.#maxBytes) return;
      this.evict(leastRecent);
    }
  }

  evict(keyId: string): void {
    this.#bytes -= this.#entries.get(keyId)?.size ?? 0;
    this.#entries.delete(keyId);
  }

  clear(): void {
    this.#entries.clear();
    this.#bytes = 0;
  }
}
