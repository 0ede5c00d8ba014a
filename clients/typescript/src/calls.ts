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
/** How large the requests of one call may be together. One that is larger goes out by itself. */
const BYTES_AT_ONCE = 256 * 1024;
/** Room in a request for the stream's cursor, and for what encoding adds. */
const SPARE_BYTES = 256;

/** What the server said, and what is needed to judge whether it may be remembered. */
export interface Answer {
  readonly response: VerifyResponse;
  /** The clock before the call was sent. */
  readonly sentAt: number;
  /** The journal's epoch before the call was sent; undefined: the answer must not be remembered. */
  readonly epoch: number | undefined;
}

/** What an answer says of a key, once somebody has looked at it. */
export interface Learned {
  readonly code: Code;
  readonly record: KeyRecord;
  /** What the server's time in microseconds is ahead of the clock's; not a number where nothing was proven. */
  readonly serverTimeAhead: number;
  /** Until when the answer's lifetime lasts, by the clock. */
  readonly until: number;
}

/** One question to the server, and everybody who waits for its answer. */
export interface Flight {
  readonly key: string;
  readonly demand: Demand;
  /** What was learned; fails with TumblerError. */
  readonly outcome: Promise<Learned>;
}

interface OpenFlight extends Flight {
  readonly deadline: number;
  readonly land: (answer: Answer) => void;
  readonly fail: (error: TumblerError) => void;
  /** When its call was sent, by `performance.now()`; undefined: it waits for its turn. */
  sentSince: number | undefined;
  /** How many may share its next call: half as many as shared the last one. */
  most: number;
  readonly bytes: number;
}

/**
 * Asks the server about keys that memory cannot answer: at most four calls at once, one flight for each key, and what
 * waits for a call goes out together with the next.
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
   * `project` is what the server is asked for; empty: any. Those of single callers are not, so that an answer serves
   * others too. `learn` is called once with each answer, before anybody receives what it makes
   * of it, or throws.
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
   * Returns the flight that asks about the key already, whatever it demands, or begins one. One that was sent is shared
   * only while the stream is fresh: else the key may have been revoked since, and nobody would have said so.
   */
  joinOrBegin(key: string, demand: Demand): Flight {
    const open = this.#joinable.get(key);
    if (open && (open.sentSince === undefined || this.#journal.isFresh(this.#clock.now()))) return open;
    return this.begin(key, demand);
  }

  /** Begins a flight of its own for the demand. It ends after `timeout` at the latest. */
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
   * Lets nobody else join the flights that were sent before now, of the keys chosen: what the stream has just told is
   * not in their answers.
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
   * Takes the flights of the next call: the longest waiting, and with it all that may share a call. What came back from
   * a batch keeps apart from what did not, and from what came back from a larger one.
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
      // A batch leaves undecided what its answer has no room for, and items that are not of the right form.
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

  /** Has flights asked again, before all others, in batches half as large as the one that they shared. */
  #askAgain(flights: readonly OpenFlight[], shared: number): void {
    const open = flights.filter((flight) => this.#open.has(flight));
    for (const flight of open) {
      flight.sentSince = undefined;
      flight.most = Math.ceil(shared / 2);
    }
    this.#waiting = new Set([...open, ...this.#waiting]);
  }

  /**
   * Asks again where it may be the cursor that the server does not know, after an older backup was restored: whoever
   * asks is not to blame for that. The stream will find out by itself; until then nothing is remembered.
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
