import type { Duration } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Clock } from "./clock.js";
import { describe } from "./errors.js";
import type { WatchResponse } from "./gen/tumbler/v1/api_key_service_pb.js";
import type { Logger } from "./logger.js";
import type { Service } from "./service.js";
import type { StreamState } from "./stream-state.js";

const FIRST_BACKOFF = 100;
const MAX_BACKOFF = 5_000;
const REFUSED_BACKOFF = 5_000;
const MAX_SILENT_HEARTBEATS = 2.5;

function milliseconds(span: Duration | undefined): number | undefined {
  return span && Number(span.seconds) * 1_000 + span.nanos / 1e6;
}

/** Evicts what has changed. */
export interface ChangeListener {
  onChange(keyId: string): void;
  onReset(): void;
}

/** Keeps one Watch stream open until it is closed, and records in the stream state what the stream delivers. */
export class Watcher {
  readonly #service: Service;
  readonly #streamState: StreamState;
  readonly #listener: ChangeListener;
  readonly #project: string;
  readonly #heartbeat: number;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #closing = new AbortController();
  #failures = 0;

  /** `project` is the project whose changes are followed. Empty: all that the verifier's own key sees. */
  constructor(
    service: Service,
    streamState: StreamState,
    listener: ChangeListener,
    project: string,
    heartbeat: number,
    clock: Clock,
    logger: Logger,
  ) {
    this.#service = service;
    this.#streamState = streamState;
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
      const startedAt = this.#clock.now();
      const startCursor = this.#streamState.cursor;
      let wait: number;
      try {
        await this.#followStream(startedAt, startCursor);
        wait = this.#backoff(startedAt, "the server ended it");
      } catch (reason) {
        wait = this.#streamEnded(startedAt, startCursor, ConnectError.from(reason));
      }
      await this.#sleep(wait);
    }
  }

  /** Returns when the server ends the stream. Rejects when it breaks, is silent for too long, or is too late. */
  async #followStream(requestedAt: number, startCursor: string): Promise<void> {
    const streamState = this.#streamState;
    const ending = new AbortController();
    const giveUp = () => ending.abort(new ConnectError("no heartbeat arrived in time", Code.DeadlineExceeded));
    const startTimer = () => this.#clock.after(this.#heartbeat * MAX_SILENT_HEARTBEATS, giveUp, false);
    let stopTimer = startTimer();
    try {
      const seconds = Math.floor(this.#heartbeat / 1000);
      const heartbeatInterval = {
        seconds: BigInt(seconds),
        nanos: Math.round((this.#heartbeat - seconds * 1000) * 1e6),
      };
      const signal = AbortSignal.any([ending.signal, this.#closing.signal]);
      let firstWithoutCursor = startCursor === "";
      const request = { projectId: this.#project, startCursor, heartbeatInterval };
      for await (const response of this.#service.watch(request, signal)) {
        stopTimer();
        stopTimer = startTimer();
        if (firstWithoutCursor || response.reset) this.#reset();
        firstWithoutCursor = false;
        this.#applyEvents(response);
        // Events may be late, from a stream that is catching up. Only a heartbeat says that everything was delivered.
        if (response.events.length > 0 || response.reset) continue;
        if (!streamState.applyHeartbeat(this.#clock.now(), requestedAt, milliseconds(response.streamAge))) {
          throw new ConnectError("its heartbeats arrive too late to be used", Code.Aborted);
        }
      }
    } finally {
      stopTimer();
      ending.abort(); // an abandoned stream must not go on
    }
  }

  #applyEvents({ events, cursor }: WatchResponse): void {
    for (const { keyId, revision } of events) {
      this.#streamState.recordChange(keyId, revision);
      this.#listener.onChange(keyId);
    }
    // Without the cursor that is known, a broken stream would start over, and nothing could be cached.
    if (cursor !== "") this.#streamState.cursor = cursor;
  }

  #streamEnded(startedAt: number, startCursor: string, error: ConnectError): number {
    if (this.#closing.signal.aborted) return 0;
    switch (error.code) {
      case Code.Unauthenticated:
      case Code.PermissionDenied:
        this.#invalidate();
        this.#logger.error(`the server refused the verifier's own key: ${describe(error)}`);
        return REFUSED_BACKOFF;
      case Code.InvalidArgument:
        if (startCursor !== "" && this.#streamState.dropCursor(startCursor)) {
          this.#listener.onReset();
          this.#logger.warn("the server does not know the position in the stream; starting over");
        }
        break;
    }
    return this.#backoff(startedAt, describe(error));
  }

  /** Returns how long to wait before the next attempt: at first at most 100 ms, and twice as long each time. */
  #backoff(startedAt: number, why: string): number {
    if (this.#clock.now() - startedAt >= this.#heartbeat) this.#failures = 0;
    const failures = this.#failures++;
    if (failures === 0) this.#logger.warn(`the stream broke and will be reopened: ${why}`);
    return Math.random() * Math.min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** failures);
  }

  #reset(): void {
    this.#streamState.reset();
    this.#listener.onReset();
  }

  #invalidate(): void {
    this.#streamState.endFreshness();
    this.#reset();
  }

  #sleep(milliseconds: number): Promise<void> {
    const { signal } = this.#closing;
    return new Promise((resolve) => {
      if (signal.aborted) {
        resolve();
        return;
      }
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
