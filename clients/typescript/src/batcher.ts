import type { MessageInitShape } from "@bufbuild/protobuf";
import { ConnectError, Code as Status } from "@connectrpc/connect";
import type { Clock } from "./clock.js";
import type { Code, Demand } from "./decide.js";
import { badAnswer, fromCall, type TumblerError, UnavailableError } from "./errors.js";
import {
  type ConsistencySchema,
  VerifyCode,
  type VerifyRequestSchema,
  type VerifyResponse,
} from "./gen/tumbler/v1/api_key_service_pb.js";
import { peekId } from "./keyformat.js";
import { type Service, shouldSplit } from "./service.js";
import type { StreamState } from "./stream-state.js";
import type { KeyRecord } from "./verification.js";

const MAX_CALLS_IN_FLIGHT = 4;
const MAX_BATCH_KEYS = 500;
/** Maximum size of the requests of one call together. A larger request goes by itself. */
const MAX_BATCH_BYTES = 256 * 1024;
/** Bytes of a request for the stream's cursor and the encoding. */
const CURSOR_BYTES = 256;

/** The server's response, and what decides whether it may be cached. */
export interface RawAnswer {
  readonly response: VerifyResponse;
  /** Our clock before the call was sent. */
  readonly sentAt: number;
  /** The cursor that the call named. Empty: none, so the answer may be older than what the stream delivered. */
  readonly cursor: string;
  /** The stream state's generation before the call was sent. */
  readonly generation: number;
  /** The newest revision of the key that the stream had delivered before the call was sent. 0: none. */
  readonly knownRevision: bigint;
}

/** A checked answer about a key. */
export interface Answer {
  readonly code: Code;
  readonly record: KeyRecord;
  /** Microseconds from our clock to the server's. NaN if the answer has no `check_time`. */
  readonly clockOffset: number;
  /** Our clock before the call was sent. */
  readonly sentAt: number;
  /** When the answer expires, by our clock. */
  readonly expiresAt: number;
}

/** One key on its way to the server and back, and all callers that wait for it. */
export interface Flight {
  readonly key: string;
  readonly demand: Demand;
  /** The checked answer. Rejects with TumblerError. */
  readonly outcome: Promise<Answer>;
}

interface OpenFlight extends Flight {
  readonly deadline: number;
  readonly finish: (raw: RawAnswer) => void;
  readonly fail: (error: TumblerError) => void;
  /** When its call was sent, by `performance.now()`. Undefined: it is queued. */
  sentSince: number | undefined;
  /** The newest revision that the stream had delivered of the key when its call was sent. */
  knownRevision: bigint;
  /** Maximum number of keys in its next call. After a retry: half of the keys in its last call, rounded up. */
  maxBatch: number;
  readonly bytes: number;
}

/**
 * Verifies keys that the cache cannot answer. At most four calls are in flight. Callers with the same key share a
 * flight. Queued flights go out together with the next call.
 */
export class Batcher {
  readonly #service: Service;
  readonly #streamState: StreamState;
  readonly #project: string;
  readonly #timeout: number;
  readonly #clock: Clock;
  readonly #flights = new Set<OpenFlight>();
  readonly #joinable = new Map<string, Map<string, OpenFlight>>(); // by key id, then by presented key
  readonly #queue = new Set<OpenFlight>(); // in order
  /** Flights that go before the queue, the first at the end. Some may have ended. */
  readonly #retries: OpenFlight[] = [];
  readonly #checkAnswer: (key: string, demand: Demand, raw: RawAnswer) => Answer;
  readonly #onReset: () => void;
  #callsInFlight = 0;

  /**
   * `project` is the project that requests name. Empty: none. They do not name the projects of single callers, so that
   * an answer serves other callers too. `checkAnswer` is called once with each answer. Callers receive what it returns
   * or throws. `onReset` must evict everything.
   */
  constructor(
    service: Service,
    streamState: StreamState,
    project: string,
    timeout: number,
    clock: Clock,
    checkAnswer: (key: string, demand: Demand, raw: RawAnswer) => Answer,
    onReset: () => void,
  ) {
    this.#service = service;
    this.#streamState = streamState;
    this.#project = project;
    this.#timeout = timeout;
    this.#clock = clock;
    this.#checkAnswer = checkAnswer;
    this.#onReset = onReset;
  }

  /**
   * Returns the flight of the key, whatever its demand, or begins one. A sent flight is shared only while the stream is
   * fresh: otherwise the key may have been revoked since, and the stream would not have reported it.
   */
  join(key: string, demand: Demand): Flight {
    const open = this.#joinable.get(peekId(key))?.get(key);
    if (open && (open.sentSince === undefined || this.#streamState.isFresh(this.#clock.now()))) return open;
    return this.start(key, demand);
  }

  /** Begins a separate flight for the demand. It ends after at most `timeout`. */
  start(key: string, demand: Demand): Flight {
    const keyId = peekId(key);
    let resolve!: (answer: Answer) => void;
    let reject!: (error: unknown) => void;
    const outcome = new Promise<Answer>((onAnswer, onError) => {
      resolve = onAnswer;
      reject = onError;
    });
    const end = () => {
      cancel();
      this.#flights.delete(flight);
      this.#queue.delete(flight);
      if (this.#joinable.get(keyId)?.get(key) === flight) this.#letNobodyJoin(keyId, key);
    };
    const flight: OpenFlight = {
      key,
      demand,
      outcome,
      deadline: this.#clock.now() + this.#timeout,
      finish: (raw) => {
        end();
        try {
          resolve(this.#checkAnswer(key, demand, raw));
        } catch (error) {
          reject(error);
        }
      },
      fail: (error) => {
        end();
        reject(error);
      },
      sentSince: undefined,
      knownRevision: 0n,
      maxBatch: MAX_BATCH_KEYS,
      bytes: bytesOf(key, this.#project, demand),
    };
    const late = () => {
      if (flight.sentSince !== undefined) this.#service.reconnect(flight.sentSince);
      flight.fail(new UnavailableError(`the server did not answer within ${this.#timeout} ms`));
    };
    const cancel = this.#clock.after(this.#timeout, late, true);
    this.#flights.add(flight);
    const alike = this.#joinable.get(keyId) ?? new Map<string, OpenFlight>();
    this.#joinable.set(keyId, alike.set(key, flight));
    this.#queue.add(flight);
    this.#sendBatches();
    return flight;
  }

  /**
   * Lets no further caller join the sent flights of a key. Their answers may lack the stream's last message. Undefined:
   * of all keys.
   */
  detach(keyId?: string): void {
    for (const id of keyId === undefined ? this.#joinable.keys() : [keyId]) {
      for (const [key, { sentSince }] of this.#joinable.get(id) ?? []) {
        if (sentSince !== undefined) this.#letNobodyJoin(id, key);
      }
    }
  }

  close(): void {
    for (const flight of this.#flights) flight.fail(new UnavailableError("the verifier is closed"));
  }

  #letNobodyJoin(keyId: string, key: string): void {
    const alike = this.#joinable.get(keyId);
    alike?.delete(key);
    if (alike?.size === 0) this.#joinable.delete(keyId);
  }

  #sendBatches(): void {
    while (this.#callsInFlight < MAX_CALLS_IN_FLIGHT) {
      const batch = this.#nextBatch();
      if (batch.length === 0) return;
      void this.#sendBatch(batch);
    }
  }

  /**
   * Takes the flights of the next call: the one that has waited longest, and all that may share its call. A retried
   * flight shares a batch only with flights of the same `maxBatch`: from a batch of the same size.
   */
  #nextBatch(): OpenFlight[] {
    const batch: OpenFlight[] = [];
    let bytes = 0;
    const take = (flight: OpenFlight): boolean => {
      const { maxBatch } = batch[0] ?? flight;
      bytes += flight.bytes;
      const fits = batch.length < maxBatch && flight.maxBatch === maxBatch && bytes <= MAX_BATCH_BYTES;
      if (batch.length > 0 && !fits) return false;
      batch.push(flight);
      return true;
    };
    for (let retry = this.#retries.at(-1); retry !== undefined; retry = this.#retries.at(-1)) {
      if (this.#flights.has(retry) && !take(retry)) return batch;
      this.#retries.pop();
    }
    for (const flight of this.#queue) {
      if (!take(flight)) break;
      this.#queue.delete(flight);
    }
    return batch;
  }

  async #sendBatch(batch: readonly OpenFlight[]): Promise<void> {
    this.#callsInFlight++;
    const sentSince = performance.now();
    for (const flight of batch) {
      flight.sentSince = sentSince;
      flight.knownRevision = this.#streamState.revisionOf(peekId(flight.key));
    }
    const { cursor, generation } = this.#streamState;
    const sentAt = this.#clock.now();
    const left = Math.max(...batch.map((flight) => flight.deadline)) - sentAt;
    try {
      const responses = await this.#service.verify(
        batch.map((flight) =>
          this.#request(flight, cursor ? { case: "atLeastAsFresh", value: cursor } : NO_REQUIREMENT),
        ),
        left,
      );
      // Which answer is whose key's cannot be told.
      if (responses.length !== batch.length) {
        for (const flight of batch) flight.fail(badAnswer());
        return;
      }
      // A batch leaves an item undecided if the answer has no room for it, or if the item has the wrong form.
      const undecided: OpenFlight[] = [];
      responses.forEach((response, index) => {
        const flight = batch[index];
        if (flight === undefined) return;
        const { knownRevision } = flight;
        if (response.code !== VerifyCode.UNSPECIFIED) {
          flight.finish({ response, sentAt, cursor, generation, knownRevision });
        } else if (batch.length === 1) flight.fail(new UnavailableError("the server did not decide"));
        else undecided.push(flight);
      });
      this.#requeue(undecided, batch.length);
    } catch (reason) {
      const [only] = batch;
      const error = ConnectError.from(reason);
      if (error.code === Status.DeadlineExceeded) this.#service.reconnect(sentSince);
      const refused = error.code === Status.InvalidArgument;
      if (batch.length > 1 && shouldSplit(error)) this.#requeue(batch, batch.length);
      else if (refused && cursor !== "" && only !== undefined) await this.#retryWithoutCursor(only, cursor);
      else for (const flight of batch) flight.fail(fromCall(reason));
    } finally {
      this.#callsInFlight--;
      this.#sendBatches();
    }
  }

  /** Puts flights before the queue, in batches half as large as the one that they shared. */
  #requeue(flights: readonly OpenFlight[], shared: number): void {
    for (const flight of [...flights].reverse()) {
      if (!this.#flights.has(flight)) continue;
      flight.sentSince = undefined;
      flight.maxBatch = Math.ceil(shared / 2);
      this.#retries.push(flight);
    }
  }

  /**
   * Retries without the cursor: a server does not know it after an older backup was restored, and the caller is not to
   * blame for that. If the retry succeeds, it was the cursor.
   */
  async #retryWithoutCursor(flight: OpenFlight, refused: string): Promise<void> {
    const { generation } = this.#streamState;
    const knownRevision = this.#streamState.revisionOf(peekId(flight.key));
    const sentAt = this.#clock.now();
    try {
      const [response] = await this.#service.verify(
        [this.#request(flight, { case: "fullyConsistent", value: true })],
        flight.deadline - sentAt,
      );
      if (response === undefined || response.code === VerifyCode.UNSPECIFIED) {
        throw new ConnectError("the server did not decide", Status.Unavailable);
      }
      if (this.#streamState.dropCursor(refused)) this.#onReset();
      flight.finish({ response, sentAt, cursor: "", generation, knownRevision });
    } catch (reason) {
      flight.fail(fromCall(reason));
    }
  }

  #request({ key, demand }: Flight, requirement: Requirement): MessageInitShape<typeof VerifyRequestSchema> {
    return {
      key,
      projectId: this.#project,
      environmentId: demand.environmentId ?? "",
      requiredScopes: [...(demand.requiredScopes ?? [])],
      clientIp: demand.clientIp ?? "",
      consistency: { requirement },
    };
  }
}

type Requirement = NonNullable<MessageInitShape<typeof ConsistencySchema>["requirement"]>;

function bytesOf(
  key: string,
  project: string,
  { environmentId = "", requiredScopes = [], clientIp = "" }: Demand,
): number {
  return [key, project, environmentId, clientIp, ...requiredScopes].reduce(
    (bytes, text) => bytes + Buffer.byteLength(text) + 4,
    CURSOR_BYTES,
  );
}

const NO_REQUIREMENT: Requirement = { case: undefined };
