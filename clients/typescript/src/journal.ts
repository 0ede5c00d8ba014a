/** For how many changed keys the last revision is kept. */
const KEPT_CHANGES = 1_024;

/** How far the server's clock may run ahead of ours while a stream is open, in ms. If further, ours stopped. */
const AHEAD = 500;

/** The age, in ms, up to which a heartbeat does not end its stream, however short `maxStaleness` is. */
const YOUNG = 1_000;

/**
 * What the stream has delivered. This decides which answers may be cached, and how long the cache may answer.
 *
 * It knows nothing of connections, and nothing of the cache.
 */
export class Journal {
  /** The newest cursor of the stream. Empty: none. */
  cursor = "";

  /** Counts how often everything was evicted. An answer whose call began in another epoch is not cached. */
  epoch = 0;

  readonly #maxStaleness: number;
  readonly #heartbeat: number;
  readonly #changes = new Map<string, bigint>(); // the newest revision by key id, in order of arrival
  #forgottenChange = 0n; // no change that was dropped from #changes is newer
  #freshUntil = Number.NEGATIVE_INFINITY;

  constructor(maxStaleness: number, heartbeat: number) {
    this.#maxStaleness = maxStaleness;
    this.#heartbeat = heartbeat;
  }

  /**
   * Handles a heartbeat of a stream that was requested at `opened`. Returns whether to keep the stream. All times are
   * in ms.
   *
   * `age` is how long the stream had been open when everything was delivered; an older server does not send it. The
   * heartbeat may have travelled or waited for long. The server opened the stream after we requested it, so the instant
   * `opened + age` is never too late.
   */
  heard(now: number, opened: number, age: number | undefined): boolean {
    if (age === undefined && opened < this.#freshUntil && this.#freshUntil <= now) return false;
    const trueAt = age === undefined ? now : opened + age;
    if (trueAt > now + AHEAD) {
      this.silence(); // this machine was stopped, and its clock with it
      return false;
    }
    const old = Math.max(0, now - trueAt);
    this.#freshUntil = Math.max(this.#freshUntil, now - old + this.#maxStaleness);
    // If freshness would lapse before the next heartbeat, the stream is slow, or took long to open.
    return old <= Math.max(YOUNG, this.#maxStaleness - this.#heartbeat);
  }

  /** Until when the last heartbeat keeps the cache fresh. */
  get freshUntil(): number {
    return this.#freshUntil;
  }

  /** Returns whether the cache may answer: the last heartbeat is recent enough. */
  isFresh(now: number): boolean {
    return now < this.#freshUntil;
  }

  changed(keyId: string, revision: bigint): void {
    this.#changes.delete(keyId);
    this.#changes.set(keyId, revision);
    if (this.#changes.size <= KEPT_CHANGES) return;
    for (const [oldest, dropped] of this.#changes) {
      this.#changes.delete(oldest);
      if (dropped > this.#forgottenChange) this.#forgottenChange = dropped;
      return;
    }
  }

  /** Returns whether an answer of that revision and epoch includes all changes delivered for the key. */
  admits(keyId: string, revision: bigint, epoch: number): boolean {
    return epoch === this.epoch && revision >= this.#forgottenChange && revision >= (this.#changes.get(keyId) ?? 0n);
  }

  /** Starts over. The changes are dropped too, because another log may count from below. */
  beginAnew(): void {
    this.epoch++;
    this.#changes.clear();
    this.#forgottenChange = 0n;
  }

  /** Ends freshness at once. */
  silence(): void {
    this.#freshUntil = Number.NEGATIVE_INFINITY;
  }
}
