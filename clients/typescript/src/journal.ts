/** How many changed keys are kept for answers that are under way. */
const KEPT_CHANGES = 1_024;

/** How far the server's clock may run ahead of ours in a stream's life; beyond it, ours has stood still. In ms. */
const AHEAD = 500;

/** How old a heartbeat may be, in ms, for its stream to be listened to further, however short `maxStaleness` is. */
const YOUNG = 1_000;

/**
 * How much the stream has told, and so which answers may be remembered, and for how long memory may answer.
 *
 * It knows nothing of connections, and nothing of what is remembered.
 */
export class Journal {
  /** The newest position in the server's log that the stream has told; empty: none. */
  cursor = "";

  /** Counts how often everything had to be forgotten. An answer whose call began in another epoch is not remembered. */
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
   * A stream that was opened at that time has said that it had told everything by the time at which it was of this age;
   * an older server's does not say when. Returns whether to listen to it any longer; all times are in ms.
   *
   * The heartbeat may have been on its way for long, or have waited here. The server opened the stream after we had
   * asked for it, so what counts from then is never too late.
   */
  heard(now: number, opened: number, age: number | undefined): boolean {
    if (age === undefined && opened < this.#freshUntil && this.#freshUntil <= now) return false;
    const trueAt = age === undefined ? now : opened + age;
    if (trueAt > now + AHEAD) {
      this.silence(); // this machine stood still, and its clock with it
      return false;
    }
    const old = Math.max(0, now - trueAt);
    this.#freshUntil = Math.max(this.#freshUntil, now - old + this.#maxStaleness);
    // Where trust would lapse before the next one, the stream is slow, or it took long to be opened.
    return old <= Math.max(YOUNG, this.#maxStaleness - this.#heartbeat);
  }

  /** Until when the stream's last word counts. */
  get freshUntil(): number {
    return this.#freshUntil;
  }

  /** Says whether memory may answer: the stream's last word is true of a time that is young enough. */
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

  /** Says whether an answer of that revision, to a call of that epoch, holds everything the stream has told of the key. */
  admits(keyId: string, revision: bigint, epoch: number): boolean {
    return epoch === this.epoch && revision >= this.#forgottenChange && revision >= (this.#changes.get(keyId) ?? 0n);
  }

  /** Nothing that was told before counts any more: not the changes either, since another log may count from below. */
  beginAnew(): void {
    this.epoch++;
    this.#changes.clear();
    this.#forgottenChange = 0n;
  }

  /** All that the stream has said is void at once. */
  silence(): void {
    this.#freshUntil = Number.NEGATIVE_INFINITY;
  }
}
