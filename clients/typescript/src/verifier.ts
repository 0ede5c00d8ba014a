import { toBinary } from "@bufbuild/protobuf";
import { Cache, ENTRY_BYTES } from "./cache.js";
import { type Answer, Calls, type Learned } from "./calls.js";
import { type Clock, systemClock } from "./clock.js";
import { type Demand, decide, excludes } from "./decide.js";
import { digest, isDigestOf } from "./digest.js";
import { InvalidRequestError, NotAllowedError, UnavailableError } from "./errors.js";
import { VerifyResponseSchema } from "./gen/tumbler/v1/api_key_service_pb.js";
import { Journal } from "./journal.js";
import { idWithin, isWellFormed, MAX_KEY_LENGTH } from "./keyformat.js";
import { type Settings, settle, type VerifierOptions } from "./options.js";
import { areNamed, NAMELESS, type ProjectId, UNSAID } from "./projects.js";
import { Service } from "./service.js";
import { Sessions } from "./sessions.js";
import { codeOf, microseconds, recordOf, showsLivingKey, type Verification, verification } from "./verification.js";
import { Watcher } from "./watcher.js";

/** What a key must satisfy. */
export interface VerifyOptions {
  /** Scopes that the key must grant, all of them. At most 100, without wildcards. Default: none. */
  readonly requiredScopes?: readonly string[] | undefined;
  /** The address that presented the key, IPv4 or IPv6. Without it, a key that is bound to networks is denied. */
  readonly clientIp?: string | undefined;
  /** The environment that the key must belong to. Default: any. */
  readonly environmentId?: string | undefined;
  /**
   * A project, or several: the key must belong to one of them. This narrows the verifier's own `projectId`, and never
   * widens it. A key of another project is NOT_FOUND.
   */
  readonly projectId?: ProjectId | undefined;
}

/**
 * Verifies presented keys. Caches their records while the server's stream confirms them.
 *
 * Create one per process and server. Calls may overlap. It follows the stream from its construction until
 * {@link close}. The stream does not keep the process alive; pending calls do.
 */
export class Verifier implements AsyncDisposable {
  readonly #settings: Settings;
  readonly #clock: Clock;
  readonly #cache: Cache;
  readonly #journal: Journal;
  readonly #service: Service;
  readonly #calls: Calls;
  readonly #watcher: Watcher | undefined;
  /**
   * The open streams of the guards.
   *
   * @internal
   */
  readonly sessions: Sessions;
  /** Until when answers count, for verdicts from the server. */
  readonly #until = new WeakMap<Verification, number>();
  #closed = false;

  /** @throws {TypeError} An option breaks its rule. The server need not be up yet. */
  constructor(options: VerifierOptions);
  /** @internal */
  constructor(options: VerifierOptions, clock: Clock);
  constructor(options: VerifierOptions, clock: Clock = systemClock) {
    const settings = settle(options);
    this.#settings = settings;
    this.#clock = clock;
    this.#cache = new Cache(
      settings.watch || settings.fixedTtl !== undefined ? settings.cacheSize : 0,
      settings.cacheBytes,
    );
    this.#journal = new Journal(settings.maxStaleness, settings.heartbeat);
    this.#service = new Service(settings);
    const [project = ""] = settings.projects.length === 1 ? settings.projects : [];
    this.#calls = new Calls(this.#service, this.#journal, project, settings.timeout, clock, (key, answer) =>
      this.#learn(key, answer),
    );
    const vouching = {
      verify: async (key: string, demand: VerifyOptions) => {
        const verification = await this.verify(key, demand);
        return [verification, this.until(key, verification)] as const;
      },
      freshUntil: () =>
        settings.fixedTtl === undefined ? this.#journal.freshUntil : Number.POSITIVE_INFINITY,
    };
    this.sessions = new Sessions(vouching, settings.maxStaleness, clock);
    if (settings.watch && settings.cacheSize > 0 && settings.cacheBytes > 0) {
      const listener = {
        forget: (keyId: string) => {
          this.#cache.delete(keyId);
          this.#calls.part((key) => idWithin(key) === keyId);
          this.sessions.heard(keyId);
        },
        forgetAll: () => {
          this.#cache.clear();
          this.#calls.part(() => true);
          this.sessions.heard();
        },
      };
      const { heartbeat, logger } = settings;
      this.#watcher = new Watcher(this.#service, this.#journal, listener, project, heartbeat, clock, logger);
    }
  }

  /**
   * Returns whether a presented key may do what is asked, now. It may only if `valid` is true in the result.
   *
   * Text that is no key, and undefined, are denied as MALFORMED.
   *
   * @throws {UnavailableError} The server did not answer within `timeout` and no valid record was cached, or the
   *   verifier is closed. Nothing was decided.
   * @throws {NotAllowedError} The server refused the verifier's own key, or that key sees all projects and you named
   *   none.
   * @throws {InvalidRequestError} A scope, the address, the environment or a project has the wrong form.
   */
  verify(key: string | undefined, options: VerifyOptions = {}): Promise<Verification> {
    if (this.#closed) return Promise.reject(new UnavailableError("the verifier is closed"));
    if (options.projectId !== undefined && !areNamed(options.projectId)) {
      return Promise.reject(new InvalidRequestError(NAMELESS));
    }
    if (typeof key !== "string" || key.length > MAX_KEY_LENGTH) return MALFORMED;
    return this.#recall(key, options) ?? this.#ask(key, options);
  }

  /** Closes the stream, fails all pending calls with UnavailableError, and evicts everything. May be called again. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher?.close();
    this.sessions.close(new UnavailableError("the verifier is closed"));
    this.#calls.close();
    this.#service.close();
    this.#cache.clear();
  }

  /** Calls {@link close}, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  /**
   * How many keys are cached at the moment.
   *
   * @internal
   */
  get size(): number {
    return this.#cache.size;
  }

  /**
   * Until when an open stream may rely on a verdict just given to a key, while the stream of changes is fresh.
   *
   * @internal
   */
  until(key: string, verification: Verification): number {
    return this.#until.get(verification) ?? this.#cache.get(idWithin(key))?.aliveUntil ?? this.#clock.now();
  }

  /** Answers from the cache, or returns undefined. Nearly all calls end here, so nothing is awaited. */
  #recall(key: string, demand: Demand): Promise<Verification> | undefined {
    const now = this.#clock.now();
    if (this.#settings.watch && !this.#journal.isFresh(now)) return undefined;
    const keyId = idWithin(key);
    const entry = this.#cache.get(keyId);
    if (entry === undefined) return undefined;
    if (now >= entry.aliveUntil) {
      this.#cache.delete(keyId);
      return undefined;
    }
    if (!isDigestOf(entry.digest, key)) {
      // An id has one key, and this is not it.
      return Promise.resolve(verification(isWellFormed(key) ? "NOT_FOUND" : "MALFORMED", undefined, true));
    }
    const code = decide(entry.record, demand, now * 1000 + entry.serverTimeAhead);
    return Promise.resolve(verification(code, entry.record, true));
  }

  async #ask(key: string, options: VerifyOptions): Promise<Verification> {
    if (!isWellFormed(key)) return MALFORMED;
    const { projectId, requiredScopes = [] } = options;
    const demand = { ...options, projectId: projectId && [projectId].flat(), requiredScopes: [...requiredScopes] };
    let flight = this.#calls.joinOrBegin(key, demand);
    let learned: Learned;
    try {
      learned = await flight.outcome;
    } catch (error) {
      if (!(error instanceof InvalidRequestError) || isSame(flight.demand, demand)) throw error;
      // The server refused another caller's demand.
      flight = this.#calls.begin(key, demand);
      learned = await flight.outcome;
    }
    const { code, record, serverTimeAhead, until } = learned;
    if (excludes(demand, record.projectId) && code !== "MALFORMED") return verification("NOT_FOUND", undefined, false);
    const decided =
      !showsLivingKey(code) || isSame(flight.demand, demand)
        ? code
        : decide(record, demand, this.#clock.now() * 1000 + serverTimeAhead);
    const told = verification(decided, record, false);
    this.#until.set(told, until);
    return told;
  }

  /**
   * Checks an answer about a key, and caches its record.
   *
   * @throws {UnavailableError} It is about another key, or contradicts itself.
   * @throws {NotAllowedError} The verifier's own key sees all projects, and none was named.
   */
  #learn(key: string, { response, sentAt, epoch }: Answer): Learned {
    const keyId = idWithin(key);
    const { projects, projectsSaid } = this.#settings;
    if (response.anyProject && !projectsSaid) throw new NotAllowedError(UNSAID);
    let code = codeOf(response);
    const unproven = code === "MALFORMED" || code === "NOT_FOUND" || code === "UNSPECIFIED";
    if (
      response.valid !== (code === "VALID") ||
      (!unproven && (response.keyId !== keyId || response.checkTime === undefined))
    ) {
      throw new UnavailableError("this client version does not understand the server's answer");
    }
    if (!unproven && projects.length > 0 && !projects.includes(response.projectId)) code = "NOT_FOUND";
    const { cacheTtl } = response;
    const ttl = cacheTtl === undefined ? 0 : Number(cacheTtl.seconds) * 1000 + cacheTtl.nanos / 1e6;
    const learned = {
      code,
      record: recordOf(response),
      serverTimeAhead: microseconds(response.checkTime, Number.NaN) - sentAt * 1000,
      until: sentAt + ttl,
    };
    if (!showsLivingKey(code)) {
      this.#refuse(key, keyId);
      return learned;
    }
    const remembered =
      epoch !== undefined &&
      (!this.#settings.watch ||
        (this.#journal.isFresh(this.#clock.now()) && this.#journal.admits(keyId, response.revision, epoch)));
    if (remembered) {
      const aliveUntil = sentAt + Math.min(ttl, this.#settings.fixedTtl ?? ttl);
      if (!this.#closed && this.#clock.now() < aliveUntil) {
        const { record, serverTimeAhead } = learned;
        const size = toBinary(VerifyResponseSchema, response).length + ENTRY_BYTES;
        this.#cache.put({ digest: digest(key), record, aliveUntil, serverTimeAhead, size });
      }
    }
    return learned;
  }

  /** Evicts a key that the server has denied, whatever the stream has delivered so far. */
  #refuse(key: string, keyId: string): void {
    const entry = this.#cache.get(keyId);
    if (entry !== undefined && isDigestOf(entry.digest, key)) {
      this.#cache.delete(keyId);
      this.sessions.heard(keyId);
    }
  }
}

const MALFORMED = Promise.resolve(verification("MALFORMED", undefined, false));

/** Returns whether both demands make the same request to the server. */
function isSame(one: Demand, other: Demand): boolean {
  const oneScopes = one.requiredScopes ?? [];
  const otherScopes = other.requiredScopes ?? [];
  return (
    one === other ||
    ((one.environmentId ?? "") === (other.environmentId ?? "") &&
      (one.clientIp ?? "") === (other.clientIp ?? "") &&
      oneScopes.length === otherScopes.length &&
      oneScopes.every((scope, index) => scope === otherScopes[index]))
  );
}
