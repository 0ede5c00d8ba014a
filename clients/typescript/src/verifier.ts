import { toBinary } from "@bufbuild/protobuf";
import { type Answer, Batcher, type RawAnswer } from "./batcher.js";
import { Cache, ENTRY_BYTES } from "./cache.js";
import { type Clock, systemClock } from "./clock.js";
import { type Demand, decide, excludes } from "./decide.js";
import { digest, isDigestOf } from "./digest.js";
import { badAnswer, InvalidRequestError, NotAllowedError, UnavailableError } from "./errors.js";
import { VerifyResponseSchema } from "./gen/tumbler/v1/api_key_service_pb.js";
import { isWellFormed, MAX_KEY_LENGTH, peekId } from "./keyformat.js";
import { type Settings, toSettings, type VerifierOptions } from "./options.js";
import { areValid, INVALID_PROJECT, PROJECT_REQUIRED, type ProjectId } from "./projects.js";
import { Service } from "./service.js";
import { Sessions } from "./sessions.js";
import { StreamState } from "./stream-state.js";
import {
  codeOf,
  dependsOnDemand,
  hasValidTimes,
  microseconds,
  recordOf,
  type Verification,
  verification,
} from "./verification.js";
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
  readonly #streamState: StreamState;
  readonly #service: Service;
  readonly #batcher: Batcher;
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
  // eslint-disable-next-line @typescript-eslint/unified-signatures -- the clock is no part of the published types
  constructor(options: VerifierOptions, clock: Clock);
  constructor(options: VerifierOptions, clock: Clock = systemClock) {
    const settings = toSettings(options);
    this.#settings = settings;
    this.#clock = clock;
    this.#cache = new Cache(
      settings.watch || settings.fixedTtl !== undefined ? settings.cacheSize : 0,
      settings.cacheBytes,
    );
    this.#streamState = new StreamState(settings.maxStaleness, settings.heartbeat);
    this.#service = new Service(settings);
    const [project = ""] = settings.projects.length === 1 ? settings.projects : [];
    const onReset = () => {
      this.#cache.clear();
      this.#batcher.detach();
      this.sessions.changed();
    };
    this.#batcher = new Batcher(
      this.#service,
      this.#streamState,
      project,
      settings.timeout,
      clock,
      (key, demand, raw) => this.#checkAnswer(key, demand, raw),
      onReset,
    );
    const part = {
      verify: async (key: string, demand: VerifyOptions) => {
        const verification = await this.verify(key, demand);
        return [verification, this.until(key, verification)] as const;
      },
      freshUntil: () => (settings.fixedTtl === undefined ? this.#streamState.freshUntil : Number.POSITIVE_INFINITY),
    };
    this.sessions = new Sessions(part, settings.maxStaleness, clock);
    if (settings.watch && settings.cacheSize > 0 && settings.cacheBytes > 0) {
      const listener = {
        onChange: (keyId: string) => {
          this.#cache.evict(keyId);
          this.#batcher.detach(keyId);
          this.sessions.changed(keyId);
        },
        onReset,
      };
      const { heartbeat, logger } = settings;
      this.#watcher = new Watcher(this.#service, this.#streamState, listener, project, heartbeat, clock, logger);
    }
  }

  /**
   * Returns whether a presented key may do what is asked, now. It may only if `valid` is true in the result.
   *
   * Text that is no key, and undefined, are denied as MALFORMED.
   *
   * @throws {UnavailableError} The server did not answer within `timeout`, or its answer came later than
   *   `maxStaleness`, and no valid record was cached. Or the verifier is closed. Nothing was decided.
   * @throws {NotAllowedError} The server refused the verifier's own key, or that key sees all projects and you named
   *   none.
   * @throws {InvalidRequestError} A scope, the address, the environment or a project has the wrong form.
   */
  verify(key: string | undefined, options: VerifyOptions = {}): Promise<Verification> {
    if (this.#closed) return Promise.reject(new UnavailableError("the verifier is closed"));
    if (options.projectId !== undefined && !areValid(options.projectId)) {
      return Promise.reject(new InvalidRequestError(INVALID_PROJECT));
    }
    if (typeof key !== "string" || key.length > MAX_KEY_LENGTH) return MALFORMED;
    return this.#verifyLocally(key, options) ?? this.#verifyRemotely(key, options);
  }

  /** Closes the stream, fails all pending calls with UnavailableError, and evicts everything. May be called again. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher?.close();
    this.sessions.close(new UnavailableError("the verifier is closed"));
    this.#batcher.close();
    this.#service.close();
    this.#cache.clear();
  }

  /** Calls {@link close}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  /**
   * How many keys are cached at the moment.
   *
   * @internal
   */
  get remembered(): number {
    return this.#cache.size;
  }

  /**
   * Until when an open stream may rely on a verdict just given to a key, while the stream of changes is fresh.
   *
   * @internal
   */
  until(key: string, verification: Verification): number {
    return this.#until.get(verification) ?? this.#cache.lookup(peekId(key))?.expiresAt ?? this.#clock.now();
  }

  /** Answers from the cache, or returns undefined. Nearly all calls end here, so nothing is awaited. */
  #verifyLocally(key: string, demand: Demand): Promise<Verification> | undefined {
    const now = this.#clock.now();
    if (this.#settings.watch && !this.#streamState.isFresh(now)) return undefined;
    const keyId = peekId(key);
    const entry = this.#cache.lookup(keyId);
    if (entry === undefined) return undefined;
    if (now >= entry.expiresAt) {
      this.#cache.evict(keyId);
      return undefined;
    }
    if (!isDigestOf(entry.digest, key)) {
      // An id has one key, and this is not it.
      return Promise.resolve(verification(isWellFormed(key) ? "NOT_FOUND" : "MALFORMED", undefined, true));
    }
    const code = decide(entry.record, demand, now * 1000 + entry.clockOffset);
    return Promise.resolve(verification(code, entry.record, true));
  }

  async #verifyRemotely(key: string, options: VerifyOptions): Promise<Verification> {
    if (!isWellFormed(key)) return MALFORMED;
    const { projectId, requiredScopes = [] } = options;
    const demand = { ...options, projectId: projectId && [projectId].flat(), requiredScopes: [...requiredScopes] };
    let flight = this.#batcher.join(key, demand);
    let answer: Answer;
    try {
      answer = await flight.outcome;
    } catch (error) {
      if (!(error instanceof InvalidRequestError) || isSame(flight.demand, demand)) throw error;
      // The server refused another caller's demand.
      flight = this.#batcher.start(key, demand);
      answer = await flight.outcome;
    }
    const { code, record, clockOffset, sentAt, expiresAt } = answer;
    if (this.#isTooOld(sentAt)) throw new UnavailableError("the server's answer is too old");
    if (excludes(demand, record.projectId) && code !== "MALFORMED") return verification("NOT_FOUND", undefined, false);
    const decided =
      !dependsOnDemand(code) || isSame(flight.demand, demand)
        ? code
        : decide(record, demand, this.#clock.now() * 1000 + clockOffset);
    const result = verification(decided, record, false);
    this.#until.set(result, expiresAt);
    return result;
  }

  /**
   * Checks an answer about a key, and caches its record.
   *
   * @throws {UnavailableError} It is about another key, or contradicts itself or what the stream delivered.
   * @throws {NotAllowedError} The verifier's own key sees all projects, and none was named.
   */
  #checkAnswer(key: string, demand: Demand, raw: RawAnswer): Answer {
    const { response, sentAt, cursor, generation, knownRevision } = raw;
    const keyId = peekId(key);
    const { projects, projectsSet } = this.#settings;
    if (response.anyProject && !projectsSet) throw new NotAllowedError(PROJECT_REQUIRED);
    let code = codeOf(response);
    const unproven = code === "MALFORMED" || code === "NOT_FOUND";
    const record = recordOf(response);
    const checkTime = microseconds(response.checkTime, Number.NaN);
    if (
      response.valid !== (code === "VALID") ||
      (!unproven && (response.keyId !== keyId || !hasValidTimes(response))) ||
      // After a reset another log may count from below.
      (!unproven && response.revision < knownRevision && generation === this.#streamState.generation) ||
      (dependsOnDemand(code) && decide(record, { ...demand, projectId: undefined }, checkTime) !== code)
    ) {
      throw badAnswer();
    }
    if (!unproven && projects.length > 0 && !projects.includes(response.projectId)) code = "NOT_FOUND";
    const { cacheTtl } = response;
    const ttl = cacheTtl === undefined ? 0 : Number(cacheTtl.seconds) * 1000 + cacheTtl.nanos / 1e6;
    const answer = {
      code,
      record,
      clockOffset: checkTime - sentAt * 1000,
      sentAt,
      expiresAt: sentAt + ttl,
    };
    if (!dependsOnDemand(code)) {
      this.#evictDenied(key, keyId);
      return answer;
    }
    const isCacheable =
      !this.#isTooOld(sentAt) &&
      (!this.#settings.watch ||
        (cursor !== "" &&
          this.#streamState.isFresh(this.#clock.now()) &&
          this.#streamState.admits(keyId, response.revision, generation)));
    if (isCacheable) {
      const expiresAt = sentAt + Math.min(ttl, this.#settings.fixedTtl ?? ttl);
      if (!this.#closed && this.#clock.now() < expiresAt) {
        const { clockOffset } = answer;
        const size = toBinary(VerifyResponseSchema, response).length + ENTRY_BYTES;
        this.#cache.store({ digest: digest(key), record, expiresAt, clockOffset, size });
      }
    }
    return answer;
  }

  /** Returns whether the answer to a call decides nothing any more: the key may have been revoked since. */
  #isTooOld(sentAt: number): boolean {
    return this.#clock.now() - sentAt > this.#settings.maxStaleness;
  }

  /** Evicts a key that the server has denied, whatever the stream has delivered so far. */
  #evictDenied(key: string, keyId: string): void {
    const entry = this.#cache.lookup(keyId);
    if (entry !== undefined && isDigestOf(entry.digest, key)) {
      this.#cache.evict(keyId);
      this.sessions.changed(keyId);
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
