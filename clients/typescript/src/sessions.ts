import type { Clock } from "./clock.js";
import { digest } from "./digest.js";
import { UnavailableError } from "./errors.js";
import type { Verification } from "./verification.js";
import type { VerifyOptions } from "./verifier.js";

/** How many keys are verified anew at a time. */
export const MOST_ASKED = 256;

/** How long to wait, in ms, before a key that could not be verified is asked about again. */
const RETRY = 1_000;

/** How long an answer counts at least, in ms: the last ones before an expiry live for microseconds. */
const SHORTEST = 100;

/** How long a timer runs at most, in ms. */
const LOOK = 60_000;

/** What a stream is ended by: the verdict that denies its key, or why none could be had. */
export type Outcome = Verification | Error;

/** What the sessions need to know of a verifier. Times are by its clock, in ms. */
export interface Vouching {
  /** Verifies a key; the number is until when an open stream may rest on the verdict while changes are told. */
  verify(key: string, options: VerifyOptions): Promise<readonly [Verification, number]>;
  /** Until when the stream's last word counts. */
  freshUntil(): number;
}

interface Session {
  readonly ended: (outcome: Outcome) => void;
}

/** A key, what it was presented for, and the streams that it let in. Its text is kept for as long as one is open. */
interface Held {
  readonly id: string;
  readonly keyId: string;
  readonly key: string;
  readonly options: VerifyOptions;
  readonly sessions: Set<Session>;
  state: "resting" | "queued" | "asked";
  /** Whether something was told while it was asked about. */
  again: boolean;
  until: number;
  /** Whether the stream vouched for it when that was set. */
  byStream: boolean;
  /** Since when it is not vouched for. */
  doubted: number | undefined;
  cancel: () => void;
}

/**
 * The open streams that a verifier's guards have let in, and the keys that they were let in by.
 *
 * A key is verified anew when nothing vouches for it any more: after an event that names it, a reset, a loss of trust in
 * the stream of changes, an answer that denied it, and at the end of its record's `cache_ttl`, which is never past its
 * expiry or the end of its grace. Streams whose key is then not VALID end.
 */
export class Sessions {
  /** How often anything was told. Noted before a key is verified, it shows what came in between. */
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

  /** How many streams are open. */
  get size(): number {
    let open = 0;
    for (const { sessions } of this.#held.values()) open += sessions.size;
    return open;
  }

  /**
   * Notes a stream that was let in by a verdict, asked for when `words` was `since`; returns what forgets it. `ended` is
   * called if the key stops being valid before.
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

  /** Notes that a key has changed; without one, that any may have. */
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

  /** Ends all streams, and each that is opened later. */
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

  /** Lets a key be that was found valid: for as long as the answer counts, and is vouched for. */
  #rest(held: Held, until: number): void {
    const now = this.#clock.now();
    const counts = now < this.#vouching.freshUntil() ? until : Math.min(until, now + this.#patience);
    this.#arm(held, Math.max(counts, now + SHORTEST));
  }

  /** Has a key looked at then, and when trust lapses. */
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
      this.#arm(held, held.until); // the stream has spoken since, or the timer came a little early
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
