import type { KeyRecord } from "./verification.js";

/** A remembered key. */
export interface Entry {
  readonly digest: Buffer;
  readonly record: KeyRecord;
  /** Until when it may answer, by the clock. */
  readonly aliveUntil: number;
  /** What the server's time in microseconds is ahead of the clock's. */
  readonly serverTimeAhead: number;
}

/** The entries by key id; of more than `capacity` the least recently used is forgotten. */
export class Cache {
  readonly #capacity: number;
  readonly #entries = new Map<string, Entry>(); // in order of use, the latest last

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get size(): number {
    return this.#entries.size;
  }

  get(keyId: string): Entry | undefined {
    const entry = this.#entries.get(keyId);
    if (entry !== undefined) this.put(entry);
    return entry;
  }

  put(entry: Entry): void {
    if (this.#capacity === 0) return;
    // The record's own text: an id that was cut out of a presented key would keep the whole key in memory.
    const { keyId } = entry.record;
    this.#entries.delete(keyId);
    this.#entries.set(keyId, entry);
    if (this.#entries.size > this.#capacity) {
      const [leastRecent] = this.#entries.keys();
      if (leastRecent !== undefined) this.#entries.delete(leastRecent);
    }
  }

  delete(keyId: string): void {
    this.#entries.delete(keyId);
  }

  clear(): void {
    this.#entries.clear();
  }
}
