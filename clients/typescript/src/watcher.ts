import type { Duration } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Clock } from "./clock.js";
import { describe } from "./errors.js";
import type { WatchResponse } from "./gen/tumbler/v1/api_key_service_pb.js";
import type { Journal } from "./journal.js";
import type { Logger } from "./logger.js";
import type { Service } from "./service.js";

const FIRST_PAUSE = 100;
const LONGEST_PAUSE = 5_000;
const PAUSE_WHEN_REFUSED = 5_000;
const HEARTBEATS_TO_WAIT = 2.5;

function milliseconds(span: Duration | undefined): number | undefined {
  return span && Number(span.seconds) * 1_000 + span.nanos / 1e6;
}

/** What to evict. */
export interface Listener {
  forget(keyId: string): void;
  forgetAll(): void;
}

/** Keeps one Watch stream open until it is closed, and writes what the stream delivers into the journal. */
export class Watcher {
  readonly #service: Service;
  readonly #journal: Journal;
  readonly #listener: Listener;
  readonly #project: string;
  readonly #heartbeat: number;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #closing = new AbortController();
  #failures = 0;

  /** `project` is the project whose changes are followed. Empty: all that the verifier's own key sees. */
  constructor(
    service: Service,
    journal: Journal,
    listener: Listener,
    project: string,
    heartbeat: number,
    clock: Clock,
    logger: Logger,
  ) {
    this.#service = service;
    this.#journal = journal;
    this.#listener = listener;
    this.#project = project;
    this.#heartbeat = heartbeat;
    this.#clock = clock;
    this.#logger = logger;
    void this.#run();
  }

  close(): void {
    this.#closing.abort();
  }

  async #run(): Promise<void> {
    while (!this.#closing.signal.aborted) {
      const began = this.#clock.now();
      let wait: number;
      try {
        await this.#listen(began);
        wait = this.#backOff(began, "the server ended it");
      } catch (reason) {
        wait = this.#afterFailure(began, ConnectError.from(reason));
      }
      await this.#pause(wait);
    }
  }

  /** Returns when the server ends the stream. Rejects when it breaks, is silent for too long, or is too late. */
  async #listen(opened: number): Promise<void> {
    const journal = this.#journal;
    const startCursor = journal.cursor;
    const ending = new AbortController();
    const giveUp = () => ending.abort(new ConnectError("no heartbeat arrived in time", Code.DeadlineExceeded));
    const startTimer = () => this.#clock.after(this.#heartbeat * HEARTBEATS_TO_WAIT, giveUp, false);
    let stopTimer = startTimer();
    try {
      const seconds = Math.floor(this.#heartbeat / 1000);
      const heartbeatInterval = {
        seconds: BigInt(seconds),
        nanos: Math.round((this.#heartbeat - seconds * 1000) * 1e6),
      };
      const signal = AbortSignal.any([ending.signal, this.#closing.signal]);
      let beginsAnew = startCursor === "";
      const request = { projectId: this.#project, startCursor, heartbeatInterval };
      for await (const response of this.#service.watch(request, signal)) {
        stopTimer();
        stopTimer = startTimer();
        if (beginsAnew || response.reset) this.#forgetAll();
        beginsAnew = false;
        this.#tell(response);
        // Events may be late, from a stream that is catching up. Only a heartbeat says that everything was delivered.
        if (response.events.length > 0 || response.reset) continue;
        if (!journal.heard(this.#clock.now(), opened, milliseconds(response.streamAge))) {
          throw new ConnectError("its heartbeats arrive too late to be used", Code.Aborted);
        }
      }
    } finally {
      stopTimer();
      ending.abort(); // an abandoned stream must not go on
    }
  }

  #tell({ events, cursor }: WatchResponse): void {
    for (const { keyId, revision } of events) {
      this.#journal.changed(keyId, revision);
      this.#listener.forget(keyId);
    }
    this.#journal.cursor = cursor;
  }

  #afterFailure(began: number, error: ConnectError): number {
    if (this.#closing.signal.aborted) return 0;
    switch (error.code) {
      case Code.Unauthenticated:
      case Code.PermissionDenied:
        this.#journal.silence();
        this.#forgetAll();
        this.#logger.error(`the server refused the verifier's own key: ${describe(error)}`);
        return PAUSE_WHEN_REFUSED;
      case Code.InvalidArgument:
        if (this.#journal.cursor !== "") {
          this.#journal.cursor = "";
          this.#forgetAll();
          this.#logger.warn("the server does not know the position in the stream; starting over");
        }
        break;
    }
    return this.#backOff(began, describe(error));
  }

  /** Returns how long to wait before the next attempt: at first at most 100 ms, and twice as long each time. */
  #backOff(began: number, why: string): number {
    if (this.#clock.now() - began >= this.#heartbeat) this.#failures = 0;
    if (this.#failures === 0) this.#logger.warn(`the stream broke and will be reopened: ${why}`);
    return Math.random() * Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.#failures++);
  }

  #forgetAll(): void {
    this.#journal.beginAnew();
    this.#listener.forgetAll();
  }

  #pause(milliseconds: number): Promise<void> {
    const { signal } = this.#closing;
    return new Promise((resolve) => {
      if (signal.aborted) return resolve();
      const done = () => {
        cancel();
        signal.removeEventListener("abort", done);
        resolve();
      };
      const cancel = this.#clock.after(milliseconds, done, false);
      signal.addEventListener("abort", done);
    });
  }
}
