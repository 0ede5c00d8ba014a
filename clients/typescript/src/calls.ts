import type { MessageInitShape } from "@bufbuild/protobuf";
import { ConnectError, Code as Status } from "@connectrpc/connect";
import type { Clock } from "./clock.js";
import type { Code, Demand } from "./decide.js";
import { fromCall, type TumblerError, UnavailableError } from "./errors.js";
import {
  type ConsistencySchema,
  VerifyCode,
  type VerifyRequestSchema,
  type VerifyResponse,
} from "./gen/tumbler/v1/api_key_service_pb.js";
import type { Journal } from "./journal.js";
import { isOfBatch, type Service } from "./service.js";
import type { KeyRecord } from "./verification.js";

const CALLS_AT_ONCE = 4;
const KEYS_AT_ONCE = 500;
/** Maximum size of the requests of one call together. A larger request goes by itself. */
const BYTES_AT_ONCE = 256 * 1024;
/** Bytes of a request for the stream's cursor and the encoding. */
const SPARE_BYTES = 256;

/** The server's response, and what decides whether it may be cached. */
export interface Answer {
  readonly response: VerifyResponse;
  /** Our clock before the call was sent. */
  readonly sentAt: number;
  /** The journal's epoch before the call was sent. Undefined: the answer must not be cached. */
  readonly epoch: number | undefined;
}

/** A checked answer about a key. */
export interface Learned {
  readonly code: Code;
  readonly record: KeyRecord;
  /** Microseconds from our clock to the server's. NaN if the answer has no `check_time`. */
  readonly serverTimeAhead: number;
  /** When the answer expires, by our clock. */
  readonly until: number;
}

/** One key on its way to the server and back, and all callers that wait for it. */
export interface Flight {
  readonly key: string;
  readonly demand: Demand;
  /** The checked answer. Rejects with TumblerError. */
  readonly outcome: Promise<Learned>;
}

interface OpenFlight extends Flight {
  readonly deadline: number;
  readonly land: (answer: Answer) => void;
  readonly fail: (error: TumblerError) => void;
  /** When its call was sent, by `performance.now()`. Undefined: it is queued. */
  sentSince: number | undefined;
  /** Maximum number of keys in its next call. After a retry: half of the keys in its last call, rounded up. */
  most: number;
  readonly bytes: number;
}

/**
 * Verifies keys that the cache cannot answer. At most four calls are in flight. Callers with the same key share a
 * flight. Queued flights go out together with the next call.
 */
export class Calls {
  readonly #service: Service;
  readonly #journal: Journal;
  readonly #project: string;
  readonly #timeout: number;
  readonly #clock: Clock;
  readonly #open = new Set<OpenFlight>();
  readonly #joinable = new Map<string, OpenFlight>(); // by presented key
  #waiting = new Set<OpenFlight>(); // in order
  readonly #learn: (key: string, answer: Answer) => Learned;
  #underWay = 0;

  /**
   * `project` is the project that requests name. Empty: none. They do not name the projects of single callers, so that
   * an answer serves other callers too. `learn` is called once with each answer. Callers receive what it returns or
   * throws.
   */
  constructor(
    service: Service,
    journal: Journal,
    project: string,
    timeout: number,
    clock: Clock,
    learn: (key: string, answer: Answer) => Learned,
  ) {
    this.#service = service;
    this.#journal = journal;
    this.#project = project;
    this.#timeout = timeout;
    this.#clock = clock;
    this.#learn = learn;
  }

  /**
   * Returns the flight of the key, whatever its demand, or begins one. A sent flight is shared only while the stream is
   * fresh: otherwise the key may have been revoked since, and the stream would not have reported it.
   */
  joinOrBegin(key: string, demand: Demand): Flight {
    const open = this.#joinable.get(key);
    if (open && (open.sentSince === undefined || this.#journal.isFresh(this.#clock.now()))) return open;
    return this.begin(key, demand);
  }

  /** Begins a separate flight for the demand. It ends after at most `timeout`. */
  begin(key: string, demand: Demand): Flight {
    let resolve!: (learned: Learned) => void;
    let reject!: (error: unknown) => void;
    const outcome = new Promise<Learned>((onLearned, onError) => {
      resolve = onLearned;
      reject = onError;
    });
    const end = () => {
      cancel();
      this.#open.delete(flight);
      this.#waiting.delete(flight);
      if (this.#joinable.get(key) === flight) this.#joinable.delete(key);
    };
    const flight: OpenFlight = {
      key,
      demand,
      outcome,
      deadline: this.#clock.now() + this.#timeout,
      land: (answer) => {
        end();
        try {
          resolve(this.#learn(key, answer));
        } catch (error) {
          reject(error);
        }
      },
      fail: (error) => {
        end();
        reject(error);
      },
      sentSince: undefined,
      most: KEYS_AT_ONCE,
      bytes: bytesOf(key, this.#project, demand),
    };
    const late = () => {
      if (flight.sentSince !== undefined) this.#service.suspect(flight.sentSince);
      flight.fail(new UnavailableError(`the server did not answer within ${this.#timeout} ms`));
    };
    const cancel = this.#clock.after(this.#timeout, late, true);
    this.#open.add(flight);
    this.#joinable.set(key, flight);
    this.#waiting.add(flight);
    this.#send();
    return flight;
  }

  /**
   * Lets no further caller join the sent flights of the chosen keys. Their answers may lack the stream's last message.
   */
  part(chosen: (key: string) => boolean): void {
    for (const [key, { sentSince }] of this.#joinable) {
      if (sentSince !== undefined && chosen(key)) this.#joinable.delete(key);
    }
  }

  close(): void {
    for (const flight of this.#open) flight.fail(new UnavailableError("the verifier is closed"));
  }

  #send(): void {
    while (this.#underWay < CALLS_AT_ONCE && this.#waiting.size > 0) void this.#call(this.#next());
  }

  /**
   * Takes the flights of the next call: the one that has waited longest, and all that may share its call. A retried
   * flight shares a batch only with flights of the same `most`: from a batch of the same size.
   */
  #next(): OpenFlight[] {
    const flights: OpenFlight[] = [];
    let bytes = 0;
    for (const flight of this.#waiting) {
      const { most } = flights[0] ?? flight;
      bytes += flight.bytes;
      if (flights.length > 0 && (flights.length >= most || flight.most !== most || bytes > BYTES_AT_ONCE)) break;
      flights.push(flight);
      this.#waiting.delete(flight);
    }
    return flights;
  }

  async #call(flights: readonly OpenFlight[]): Promise<void> {
    this.#underWay++;
    const sentSince = performance.now();
    for (const flight of flights) flight.sentSince = sentSince;
    const { cursor, epoch } = this.#journal;
    const sentAt = this.#clock.now();
    const left = Math.max(...flights.map((flight) => flight.deadline)) - sentAt;
    try {
      const responses = await this.#service.verify(
        flights.map((flight) => this.#request(flight, cursor ? { case: "atLeastAsFresh", value: cursor } : NO_WISH)),
        left,
      );
      // A batch leaves an item undecided if the answer has no room for it, or if the item has the wrong form.
      const undecided: OpenFlight[] = [];
      responses.forEach((response, index) => {
        const flight = flights[index];
        if (flight === undefined) return;
        if (response.code !== VerifyCode.UNSPECIFIED) flight.land({ response, sentAt, epoch });
        else if (flights.length === 1) flight.fail(new UnavailableError("the server did not decide"));
        else undecided.push(flight);
      });
      this.#askAgain(undecided, flights.length);
    } catch (reason) {
      const [only] = flights;
      const error = ConnectError.from(reason);
      if (error.code === Status.DeadlineExceeded) this.#service.suspect(sentSince);
      const refused = error.code === Status.InvalidArgument;
      if (flights.length > 1 && isOfBatch(error)) this.#askAgain(flights, flights.length);
      else if (refused && cursor !== "" && only !== undefined) await this.#askWithoutCursor(only, sentAt);
      else for (const flight of flights) flight.fail(fromCall(reason));
    } finally {
      this.#underWay--;
      this.#send();
    }
  }

  /** Puts flights back at the front of the queue, in batches half as large as the one that they shared. */
  #askAgain(flights: readonly OpenFlight[], shared: number): void {
    const open = flights.filter((flight) => this.#open.has(flight));
    for (const flight of open) {
      flight.sentSince = undefined;
      flight.most = Math.ceil(shared / 2);
    }
    this.#waiting = new Set([...open, ...this.#waiting]);
  }

  /**
   * Retries without the cursor: a server does not know it after an older backup was restored, and the caller is not to
   * blame for that. The stream will find out by itself. Until then nothing is cached.
   */
  async #askWithoutCursor(flight: OpenFlight, sentAt: number): Promise<void> {
    try {
      const [response] = await this.#service.verify(
        [this.#request(flight, { case: "fullyConsistent", value: true })],
        flight.deadline - this.#clock.now(),
      );
      if (response === undefined || response.code === VerifyCode.UNSPECIFIED) {
        throw new ConnectError("the server did not decide", Status.Unavailable);
      }
      flight.land({ response, sentAt, epoch: undefined });
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

function bytesOf(key: string, project: string, { environmentId = "", requiredScopes = [], clientIp = "" }: Demand): number {
  return [key, project, environmentId, clientIp, ...requiredScopes].reduce(
    (bytes, text) => bytes + Buffer.byteLength(text) + 4,
    SPARE_BYTES,
  );
}

const NO_WISH: Requirement = { case: undefined };
