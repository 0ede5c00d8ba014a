import type { Clock } from "./clock.js";
import { digest } from "./digest.js";
import { UnavailableError } from "./errors.js";
import type { Verification } from "./verification.js";
import type { VerifyOptions } from "./verifier.js";

/** Maximum number of keys being verified again at a time. */
export const MOST_ASKED = 256;

/** How long to wait, in ms, before a key that could not be verified is retried. */
const RETRY = 1_000;

/** Minimum time that an answer counts, in ms. The last answers before an expiry live for microseconds. */
const SHORTEST = 100;

/** Maximum time of a timer, in ms. */
const LOOK = 60_000;

/** Why a stream ends: the verdict that denies its key, or the error if there is no verdict. */
export type Outcome = Verification | Error;

/** The parts of a verifier that the sessions use. Times are in ms, by its clock. */
export interface Vouching {
  /** Verifies a key. The number is until when an open stream may rely on the verdict, while changes arrive. */
  verify(key: string, options: VerifyOptions): Promise<readonly [Verification, number]>;
  /** Until when the last heartbeat keeps the cache fresh. */
  freshUntil(): number;
}

interface Session {
  readonly ended: (outcome: Outcome) => void;
}

/** A key, the demand, and the streams that it opened. The key's text stays in memory while one of them is open. */
interface Held {
  readonly id: string;
  readonly keyId: string;
  readonly key: string;
  readonly options: VerifyOptions;
  readonly sessions: Set<Session>;
  state: "resting" | "queued" | "asked";
  /** Whether the stream delivered something while the verification was in flight. */
  again: boolean;
  until: number;
  /** Whether the stream was fresh when that was set. */
  byStream: boolean;
  /** Since when nothing confirms the key. */
  doubted: number | undefined;
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
  words = 0;

  readonly #vouching: Vouching;
  readonly #patience: number;
  readonly #clock: Clock;
  readonly #held = new Map<string, Held>();
  readonly #byId = new Map<string, Set<Held>>();
  readonly #queue = new Set<Held>(); // in order
  #asked = 0;
  #closed: Error | undefined;

  constructor(vouching: Vouching, maxStaleness: number, clock: Clock) {
    this.#vouching = vouching;
    this.#patience = maxStaleness;
    this.#clock = clock;
  }

  /** The number of open streams. */
  get size(): number {
    let open = 0;
    for (const { sessions } of this.#held.values()) open += sessions.size;
    return open;
  }

  /**
   * Registers a stream that a verdict let in. `since` is `words` from before the verification. `ended` is called if the
   * key stops being valid before the returned function, which removes the stream, is called.
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
    const id = `${digest(key).toString("latin1")} ${JSON.stringify(options)}`;
    let held = this.#held.get(id);
    if (held === undefined) {
      held = {
        id,
        keyId,
        key,
        options,
        sessions: new Set(),
        state: "resting",
        again: false,
        until: 0,
        byStream: false,
        doubted: undefined,
        cancel: () => {},
      };
      this.#held.set(id, held);
      const alike = this.#byId.get(keyId) ?? new Set();
      this.#byId.set(keyId, alike.add(held));
      this.#rest(held, until);
    }
    const opened = held;
    const session = { ended };
    opened.sessions.add(session);
    if (since !== this.words) this.#doubt(opened);
    this.#pump();
    return () => {
      if (opened.sessions.delete(session) && opened.sessions.size === 0) this.#drop(opened);
    };
  }

  /** Notes that a key has changed. Undefined: any key may have changed. */
  heard(keyId?: string): void {
    this.words++;
    if (keyId === undefined) {
      let delay = 0; // 1,000 keys a second
      for (const held of this.#held.values()) this.#doubt(held, Math.min(delay++, this.#patience / 2));
    } else {
      for (const held of this.#byId.get(keyId) ?? []) this.#doubt(held);
    }
    this.#pump();
  }

  /** Ends all streams, and every stream that is opened later. */
  close(error: Error): void {
    this.#closed = error;
    for (const held of [...this.#held.values()]) end(this.#drop(held), error);
  }

  #pump(): void {
    for (const held of this.#queue) {
      if (this.#asked >= MOST_ASKED) return;
      this.#queue.delete(held);
      if (this.#clock.now() - (held.doubted ?? 0) > this.#patience) {
        end(this.#drop(held), new UnavailableError("the key of an open stream could not be verified again in time"));
      } else {
        void this.#ask(held);
      }
    }
  }

  async #ask(held: Held): Promise<void> {
    held.state = "asked";
    held.again = false;
    this.#asked++;
    let outcome: readonly [Verification, number] | Error;
    try {
      outcome = await this.#vouching.verify(held.key, held.options);
    } catch (error) {
      outcome = error instanceof Error ? error : new UnavailableError("the key could not be verified");
    }
    this.#asked--;
    held.state = "resting";
    if (held.sessions.size > 0) this.#settle(held, outcome);
    this.#pump();
  }

  #settle(held: Held, outcome: readonly [Verification, number] | Error): void {
    const now = this.#clock.now();
    if (outcome instanceof Error) {
      if (now - (held.doubted ?? now) < this.#patience) this.#arm(held, now + RETRY);
      else end(this.#drop(held), outcome);
      return;
    }
    const [verification, until] = outcome;
    if (!verification.valid) {
      end(this.#drop(held), verification);
    } else if (held.again) {
      this.#doubt(held);
    } else {
      held.doubted = undefined;
      this.#rest(held, until);
    }
  }

  #doubt(held: Held, delay = 0): void {
    const now = this.#clock.now();
    held.doubted ??= now;
    if (held.state === "asked") {
      held.again = true;
    } else if (held.state === "resting" && delay > 0) {
      this.#arm(held, Math.min(held.until, now + delay));
    } else if (held.state === "resting") {
      held.cancel();
      held.state = "queued";
      this.#queue.add(held);
    }
  }

  /** Schedules the next check of a valid key: when its answer expires, or sooner if freshness has lapsed. */
  #rest(held: Held, until: number): void {
    const now = this.#clock.now();
    const counts = now < this.#vouching.freshUntil() ? until : Math.min(until, now + this.#patience);
    this.#arm(held, Math.max(counts, now + SHORTEST));
  }

  /** Schedules a check of a key for then, and for when freshness lapses. */
  #arm(held: Held, until: number): void {
    held.until = until;
    held.cancel();
    const now = this.#clock.now();
    const fresh = this.#vouching.freshUntil();
    held.byStream = fresh > now;
    const at = held.byStream ? Math.min(until, fresh) : until;
    held.cancel = this.#clock.after(Math.min(Math.max(0, at - now), LOOK), () => this.#look(held), false);
  }

  #look(held: Held): void {
    const now = this.#clock.now();
    if (now < held.until && (!held.byStream || now < this.#vouching.freshUntil())) {
      this.#arm(held, held.until); // freshness was renewed since, or the timer was a little early
    } else {
      this.#doubt(held);
      this.#pump();
    }
  }

  #drop(held: Held): Session[] {
    const over = [...held.sessions];
    held.sessions.clear();
    held.cancel();
    this.#queue.delete(held);
    this.#held.delete(held.id);
    const alike = this.#byId.get(held.keyId);
    alike?.delete(held);
    if (alike?.size === 0) this.#byId.delete(held.keyId);
    return over;
  }
}

function end(sessions: readonly Session[], outcome: Outcome): void {
  for (const { ended } of sessions) ended(outcome);
}
