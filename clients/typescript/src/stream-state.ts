/** For how many changed keys the last revision is kept. */
const MAX_CHANGES = 1_024;

/** How far the server's clock may run ahead of ours while a stream is open, in ms. If further, ours stopped. */
const MAX_HEARTBEAT_LEAD = 500;

/** The age, in ms, up to which a heartbeat does not end its stream, however short `maxStaleness` is. */
const TOLERATED_AGE = 1_000;

/**
 * What the stream has delivered. This decides which answers may be cached, and how long the cache may answer.
 *
 * It knows nothing of connections, and nothing of the cache.
 */
export class StreamState {
  /** The newest cursor of the stream. Empty: none. */
  cursor = "";

  /** Counts the resets. An answer whose call began in another generation is not cached. */
  generation = 0;

  readonly #maxStaleness: number;
  readonly #heartbeat: number;
  readonly #changes = new Map<string, bigint>(); // the newest revision by key id, in order of arrival
  #revisionFloor = 0n; // no change that was dropped from #changes is newer
  #freshUntil = Number.NEGATIVE_INFINITY;

  constructor(maxStaleness: number, heartbeat: number) {
    this.#maxStaleness = maxStaleness;
    this.#heartbeat = heartbeat;
  }

  /**
   * Handles a heartbeat of a stream that was requested at `requestedAt`. Returns whether to keep the stream. All times
   * are in ms.
   *
   * `age` is how long the stream had been open when everything was delivered; an older server does not send it. The
   * heartbeat may have travelled or waited for long. The server opened the stream after we requested it, so the instant
   * `requestedAt + age` is never too late.
   */
  applyHeartbeat(now: number, requestedAt: number, age: number | undefined): boolean {
    if (age === undefined && requestedAt < this.#freshUntil && this.#freshUntil <= now) return false;
    const confirmedAt = age === undefined ? now : requestedAt + age;
    if (confirmedAt > now + MAX_HEARTBEAT_LEAD || (age !== undefined && age < 0)) {
      this.endFreshness(); // this machine was stopped, and its clock with it; or the age is nonsense
      return false;
    }
    const old = Math.max(0, now - confirmedAt);
    this.#freshUntil = Math.max(this.#freshUntil, now - old + this.#maxStaleness);
    // If freshness would lapse before the next heartbeat, the stream is slow, or took long to open.
    return old <= Math.max(TOLERATED_AGE, this.#maxStaleness - this.#heartbeat);
  }

  /** Until when the last heartbeat keeps the cache fresh. */
  get freshUntil(): number {
    return this.#freshUntil;
  }

  /** Returns whether the cache may answer: the last heartbeat is recent enough. */
  isFresh(now: number): boolean {
    return now < this.#freshUntil;
  }

  recordChange(keyId: string, revision: bigint): void {
    const known = this.revisionOf(keyId);
    this.#changes.delete(keyId);
    this.#changes.set(keyId, revision > known ? revision : known);
    if (this.#changes.size <= MAX_CHANGES) return;
    for (const [oldest, dropped] of this.#changes) {
      this.#changes.delete(oldest);
      if (dropped > this.#revisionFloor) this.#revisionFloor = dropped;
      return;
    }
  }

  /** Returns whether an answer of that revision and generation includes all changes delivered for the key. */
  admits(keyId: string, revision: bigint, generation: number): boolean {
    return generation === this.generation && revision >= this.#revisionFloor && revision >= this.revisionOf(keyId);
  }

  /** Returns the newest revision that was delivered of a key. 0: none, or it was dropped since. */
  revisionOf(keyId: string): bigint {
    return this.#changes.get(keyId) ?? 0n;
  }

  /** Starts over. The changes are dropped too, because another log may count from below. */
  reset(): void {
    this.generation++;
    this.#changes.clear();
    this.#revisionFloor = 0n;
  }

  /**
   * Drops a cursor that the server does not know. Returns whether everything must be evicted; then nothing is fresh until
   * the next heartbeat. If the stream has since moved on to another cursor, the server knew that one, and nothing happens.
   */
  dropCursor(refused: string): boolean {
    if (this.cursor !== refused) return false;
    this.cursor = "";
    this.endFreshness();
    this.reset();
    return true;
  }

  /** Ends freshness at once. */
  endFreshness(): void {
    this.#freshUntil = Number.NEGATIVE_INFINITY;
  }
}
