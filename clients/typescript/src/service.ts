import { setTimeout as sleep } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Connection } from "./connection.js";
import {
  ApiKeyService,
  type VerifyRequestSchema,
  type VerifyResponse,
  type WatchRequestSchema,
  type WatchResponse,
} from "./gen/tumbler/v1/api_key_service_pb.js";
import type { Settings } from "./options.js";

const ATTEMPTS = 3;
const FIRST_BACKOFF = 50;
const MAX_BACKOFF = 500;

/** Bytes. The server's own limit is 3 MiB. */
const LARGEST_ANSWER = 16 * 1024 * 1024;

const TRANSIENT: readonly Code[] = [Code.Unavailable, Code.Aborted, Code.Canceled];

/** The three RPCs that a verifier uses, called with its own key. They fail with ConnectError. */
export class Service {
  readonly #connection: Connection;
  readonly #client: Client<typeof ApiKeyService>;
  readonly #closing = new AbortController();

  constructor({ endpoints, apiKey, credentials }: Settings) {
    this.#connection = new Connection(endpoints, credentials);
    const transport = createGrpcTransport({
      baseUrl: this.#connection.authority,
      sessionManager: this.#connection,
      readMaxBytes: LARGEST_ANSWER,
      interceptors: [
        (next) => (request) => {
          request.header.set("authorization", `Bearer ${apiKey}`);
          return next(request);
        },
      ],
    });
    this.#client = createClient(ApiKeyService, transport);
  }

  /**
   * Sends one request by Verify or several (at most 1,000) by BatchVerify, with a deadline of `timeout` milliseconds.
   * Answers have the order of the requests; a faulty server may send another number. Transient errors are retried: Verify changes nothing.
   */
  async verify(
    requests: readonly MessageInitShape<typeof VerifyRequestSchema>[],
    timeout: number,
  ): Promise<VerifyResponse[]> {
    const began = performance.now();
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#verifyOnce(requests, timeout - (performance.now() - began));
      } catch (reason) {
        const error = ConnectError.from(reason);
        const wait = Math.random() * Math.min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** (attempt - 1));
        const spent = performance.now() - began + wait >= timeout;
        if (attempt === ATTEMPTS || !isTransient(error) || spent || this.#closing.signal.aborted) throw reason;
        await sleep(wait);
      }
    }
  }

  /** Follows the stream of changes. To end a silent stream, abort the signal: its connection is then replaced too. */
  async *watch(
    request: MessageInitShape<typeof WatchRequestSchema>,
    signal: AbortSignal,
  ): AsyncGenerator<WatchResponse, void, void> {
    let lastReceivedAt = performance.now();
    const both = AbortSignal.any([signal, this.#closing.signal]);
    try {
      for await (const response of this.#client.watch(request, { signal: both })) {
        lastReceivedAt = performance.now();
        yield response;
      }
    } finally {
      if (signal.aborted) this.#connection.reconnect(lastReceivedAt);
    }
  }

  /** Reports that a call sent at that moment of `performance.now()` timed out: its connection may be dead. */
  reconnect(since: number): void {
    this.#connection.reconnect(since);
  }

  close(): void {
    this.#closing.abort();
    this.#connection.close();
  }

  async #verifyOnce(
    requests: readonly MessageInitShape<typeof VerifyRequestSchema>[],
    timeoutMs: number,
  ): Promise<VerifyResponse[]> {
    const options = { timeoutMs: Math.max(Math.floor(timeoutMs), 1), signal: this.#closing.signal };
    const [only] = requests;
    if (requests.length === 1 && only !== undefined) return [await this.#client.verify(only, options)];
    const { responses } = await this.#client.batchVerify({ requests: [...requests] }, options);
    return responses;
  }
}

const NO_SPLIT: readonly Code[] = [Code.DeadlineExceeded, Code.Unauthenticated, Code.PermissionDenied];

/** Returns whether a batch that failed so may succeed in halves: the server was reached, and did not refuse our key. */
export function shouldSplit(error: ConnectError): boolean {
  return !isTransient(error) && !NO_SPLIT.includes(error.code);
}

/** Returns whether a retry may succeed: the server says so, or a connection broke, which has several names. */
function isTransient({ code, cause }: ConnectError): boolean {
  return TRANSIENT.includes(code) || (cause instanceof Error && "code" in cause);
}
