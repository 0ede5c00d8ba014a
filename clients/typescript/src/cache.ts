import type { KeyRecord } from "./verification.js";

/** What a remembered key counts beside its record: the digest, and what holds the entry. */
export const ENTRY_BYTES = 1_024;

/** A remembered key. */
export interface Entry {
  readonly digest: Buffer;
  readonly record: KeyRecord;
  /** Until when it may answer, by the clock. */
  readonly aliveUntil: number;
  /** What the server's time in microseconds is ahead of the clock's. */
  readonly serverTimeAhead: number;
  /** What it counts, in bytes. */
  readonly size: number;
}

/** The entries by key id; of more than `capacity`, or `room` in bytes, the least recently used is forgotten. */
export class Cache {
  readonly #capacity: number;
  readonly #room: number;
  readonly #entries = new Map<string, Entry>(); // in order of use, the latest last
  #bytes = 0;

  constructor(capacity: number, room: number) {
    this.#capacity = capacity;
    this.#room = room;
  }

  get size(): number {
    return this.#entries.size;
  }

  get(keyId: string): Entry | undefined {
    const entry = this.#entries.get(keyId);
    if (entry !== undefined) {
      // The record's own text: an id that was cut out of a presented key would keep the whole key in memory.
      this.#entries.delete(entry.record.keyId);
      this.#entries.set(entry.record.keyId, entry);
    }
    return entry;
  }

  put(entry: Entry): void {
    if (this.#capacity === 0 || entry.size > this.#room) return;
    const { keyId } = entry.record;
    this.delete(keyId);
    this.#entries.set(keyId, entry);
    this.#bytes += entry.size;
    for (const leastRecent of this.#entries.keys()) {
      if (this.#entries.size <= this.#capacity && this.#bytes <= this.#room) return;
      this.delete(leastRecent);
    }
  }

  delete(keyId: string): void {
    this.#bytes -= this.#entries.get(keyId)?.size ?? 0;
    this.#entries.delete(keyId);
  }

  clear(): void {
    this.#entries.clear();
    this.#bytes = 0;
  }
}
