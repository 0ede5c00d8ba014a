import type { Clock } from "./clock.js";
import { digest } from "./digest.js";
import { UnavailableError } from "./errors.js";
import type { Verification } from "./verification.js";
import type { VerifyOptions } from "./verifier.js";

/** Maximum number of keys being verified again at a time. */
export const MAX_CHECKS = 256;

/** How long to wait, in ms, before a key that could not be verified is retried. */
const RETRY_DELAY = 1_000;

/** Minimum time between verifications of a key because its answers expire, in ms. Some live for microseconds, or not at all. */
const MIN_TRUST = 1_000;

/** Maximum time of a timer, in ms. */
const MAX_TIMER = 60_000;

/** Why a stream ends: the verdict that denies its key, or the error if there is no verdict. */
export type Outcome = Verification | Error;

/** The parts of a verifier that the sessions use. Times are in ms, by its clock. */
export interface VerifierPart {
  /** Verifies a key. The number is until when an open stream may rely on the verdict, while changes arrive. */
  verify(key: string, options: VerifyOptions): Promise<readonly [Verification, number]>;
  /** Until when the last heartbeat keeps the cache fresh. */
  freshUntil(): number;
}

interface Session {
  readonly ended: (outcome: Outcome) => void;
}

/** A key, the demand, and the streams that it opened. The key's text stays in memory while one of them is open. */
interface AdmittedKey {
  readonly ident: string;
  readonly keyId: string;
  readonly key: string;
  readonly options: VerifyOptions;
  readonly sessions: Set<Session>;
  state: "idle" | "queued" | "checking";
  /** Whether the stream delivered something while the verification was in flight. */
  changedMeanwhile: boolean;
  until: number;
  /** Whether the stream was fresh when that was set. */
  wasFresh: boolean;
  /** Since when nothing confirms the key. */
  unconfirmedSince: number | undefined;
  cancel: () => void;
}

/**
 * The open streams that a verifier's guards let in, and their keys.
 *
 * A key is verified again when nothing confirms it any more: after an event that names it, a reset, lapsed freshness of
 * the stream of changes, an answer that denied it, and when its record's `cache_ttl` ends. That is never after the
 * key's expiry or the end of its grace period. If the key is then not VALID, its streams end.
 */
export class Sessions {
  /** Counts changes to keys. A difference from before a verification shows that one came in between. */
  changeCount = 0;

  readonly #verifier: VerifierPart;
  readonly #maxUnconfirmed: number;
  readonly #clock: Clock;
  readonly #keys = new Map<string, AdmittedKey>();
  readonly #byId = new Map<string, Set<AdmittedKey>>();
  readonly #queue = new Set<AdmittedKey>(); // in order
  #checking = 0;
  #closed: Error | undefined;

  constructor(verifier: VerifierPart, maxStaleness: number, clock: Clock) {
    this.#verifier = verifier;
    this.#maxUnconfirmed = maxStaleness;
    this.#clock = clock;
  }

  /** The number of open streams. */
  get size(): number {
    let open = 0;
    for (const { sessions } of this.#keys.values()) open += sessions.size;
    return open;
  }

  /**
   * Registers a stream that a verdict let in. `since` is `changeCount` from before the verification. `ended` is called
   * if the key stops being valid before the returned function, which removes the stream, is called.
   */
  open(
    key: string,
    options: VerifyOptions,
    keyId: string,
    until: number,
    since: number,
    ended: (outcome: Outcome) => void,
  ): () => void {
    if (this.#closed !== undefined) {
      ended(this.#closed);
      return () => {};
    }
    const ident = `${digest(key).toString("latin1")} ${JSON.stringify(options)}`;
    let admitted = this.#keys.get(ident);
    if (admitted === undefined) {
      admitted = {
        ident,
        keyId,
        key,
        options,
        sessions: new Set(),
        state: "idle",
        changedMeanwhile: false,
        until: 0,
        wasFresh: false,
        unconfirmedSince: undefined,
        cancel: () => {},
      };
      this.#keys.set(ident, admitted);
      const alike = this.#byId.get(keyId) ?? new Set();
      this.#byId.set(keyId, alike.add(admitted));
      this.#scheduleRecheck(admitted, until);
    }
    const opened = admitted;
    const session = { ended };
    opened.sessions.add(session);
    if (since !== this.changeCount) this.#recheck(opened);
    this.#startChecks();
    return () => {
      if (opened.sessions.delete(session) && opened.sessions.size === 0) this.#remove(opened);
    };
  }

  /** Notes that a key has changed. Undefined: any key may have changed. */
  changed(keyId?: string): void {
    this.changeCount++;
    if (keyId === undefined) {
      let delay = 0; // 1,000 keys a second
      for (const admitted of this.#keys.values()) this.#recheck(admitted, Math.min(delay++, this.#maxUnconfirmed / 2));
    } else {
      for (const admitted of this.#byId.get(keyId) ?? []) this.#recheck(admitted);
    }
    this.#startChecks();
  }

  /** Ends all streams, and every stream that is opened later. */
  close(error: Error): void {
    this.#closed = error;
    for (const admitted of [...this.#keys.values()]) end(this.#remove(admitted), error);
  }

  #startChecks(): void {
    for (const admitted of this.#queue) {
      if (this.#checking >= MAX_CHECKS) return;
      this.#queue.delete(admitted);
      if (this.#clock.now() - (admitted.unconfirmedSince ?? 0) > this.#maxUnconfirmed) {
        const late = new UnavailableError("the key of an open stream could not be verified again in time");
        end(this.#remove(admitted), late);
      } else {
        void this.#check(admitted);
      }
    }
  }

  async #check(admitted: AdmittedKey): Promise<void> {
    admitted.state = "checking";
    admitted.changedMeanwhile = false;
    this.#checking++;
    let outcome: readonly [Verification, number] | Error;
    try {
      outcome = await this.#verifier.verify(admitted.key, admitted.options);
    } catch (error) {
      outcome = error instanceof Error ? error : new UnavailableError("the key could not be verified");
    }
    this.#checking--;
    admitted.state = "idle";
    if (admitted.sessions.size > 0) this.#settle(admitted, outcome);
    this.#startChecks();
  }

  #settle(admitted: AdmittedKey, outcome: readonly [Verification, number] | Error): void {
    const now = this.#clock.now();
    if (outcome instanceof Error) {
      if (now - (admitted.unconfirmedSince ?? now) < this.#maxUnconfirmed) this.#setTimer(admitted, now + RETRY_DELAY);
      else end(this.#remove(admitted), outcome);
      return;
    }
    const [verification, until] = outcome;
    if (!verification.valid) {
      end(this.#remove(admitted), verification);
    } else if (admitted.changedMeanwhile) {
      this.#recheck(admitted);
    } else {
      admitted.unconfirmedSince = undefined;
      this.#scheduleRecheck(admitted, until);
    }
  }

  #recheck(admitted: AdmittedKey, delay = 0): void {
    const now = this.#clock.now();
    admitted.unconfirmedSince ??= now;
    if (admitted.state === "checking") {
      admitted.changedMeanwhile = true;
    } else if (admitted.state === "idle" && delay > 0) {
      this.#setTimer(admitted, Math.min(admitted.until, now + delay));
    } else if (admitted.state === "idle") {
      admitted.cancel();
      admitted.state = "queued";
      this.#queue.add(admitted);
    }
  }

  /** Schedules the next check of a valid key: when its answer expires, or sooner if freshness has lapsed. */
  #scheduleRecheck(admitted: AdmittedKey, until: number): void {
    const now = this.#clock.now();
    const counts = now < this.#verifier.freshUntil() ? until : Math.min(until, now + this.#maxUnconfirmed);
    this.#setTimer(admitted, Math.max(counts, now + MIN_TRUST));
  }

  /** Schedules a check of a key for then, and for when freshness lapses. */
  #setTimer(admitted: AdmittedKey, until: number): void {
    admitted.until = until;
    admitted.cancel();
    const now = this.#clock.now();
    const fresh = this.#verifier.freshUntil();
    admitted.wasFresh = fresh > now;
    const at = admitted.wasFresh ? Math.min(until, fresh) : until;
    const delay = Math.min(Math.max(0, at - now), MAX_TIMER);
    admitted.cancel = this.#clock.after(delay, () => this.#onTimer(admitted), false);
  }

  #onTimer(admitted: AdmittedKey): void {
    const now = this.#clock.now();
    if (now < admitted.until && (!admitted.wasFresh || now < this.#verifier.freshUntil())) {
      this.#setTimer(admitted, admitted.until); // freshness was renewed since, or the timer was a little early
    } else {
      this.#recheck(admitted);
      this.#startChecks();
    }
  }

  #remove(admitted: AdmittedKey): Session[] {
    const over = [...admitted.sessions];
    admitted.sessions.clear();
    admitted.cancel();
    this.#queue.delete(admitted);
    this.#keys.delete(admitted.ident);
    const alike = this.#byId.get(admitted.keyId);
    alike?.delete(admitted);
    if (alike?.size === 0) this.#byId.delete(admitted.keyId);
    return over;
  }
}

function end(sessions: readonly Session[], outcome: Outcome): void {
  for (const { ended } of sessions) ended(outcome);
}
