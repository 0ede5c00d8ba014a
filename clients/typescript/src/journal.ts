/** How many changed keys are kept for answers that are under way. */
const KEPT_CHANGES = 1_024;

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
  readonly #changes = new Map<string, bigint>(); // the newest revision by key id, in order of arrival
  #forgottenChange = 0n; // no change that was dropped from #changes is newer
  #lastWord = Number.NEGATIVE_INFINITY;

  constructor(maxStaleness: number) {
    this.#maxStaleness = maxStaleness;
  }

  /** The stream has just said that it has told everything up to now. */
  heard(now: number): void {
    this.#lastWord = now;
  }

  /** Says whether the stream's last word is young enough for memory to answer. */
  isFresh(now: number): boolean {
    return now - this.#lastWord < this.#maxStaleness;
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

  /** The stream is refused: its last word is void at once. */
  silence(): void {
    this.#lastWord = Number.NEGATIVE_INFINITY;
  }
}
