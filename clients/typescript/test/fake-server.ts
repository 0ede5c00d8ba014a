import { once } from "node:events";
import { createSecureServer, createServer, type Http2Server } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import { setImmediate as turn } from "node:timers/promises";
import { crc32 } from "node:zlib";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import {
  ApiKeyService,
  VerifyCode,
  type VerifyRequest,
  type VerifyResponseSchema,
  type WatchRequest,
  type WatchResponseSchema,
} from "../src/v1.js";

export type Reply = MessageInitShape<typeof VerifyResponseSchema>;
type Message = MessageInitShape<typeof WatchResponseSchema>;

/** 2030-01-01T00:00:00Z, in seconds. */
export const CHECK_TIME = 1_893_456_000;

/** One Watch stream, as the server sees it. */
export class Stream {
  readonly ended: Promise<void>;
  #end!: () => void;
  readonly #messages: Message[] = [];
  #failure: ConnectError | undefined;
  #wake = () => {};

  constructor(readonly request: WatchRequest) {
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  send(message: Message): void {
    this.#messages.push(message);
    this.#wake();
  }

  changed(keyId: string, revision: number): void {
    this.send({ events: [{ keyId, revision: BigInt(revision) }], cursor: `r${revision}` });
  }

  fail(code: Code): void {
    this.#failure = new ConnectError("as the test wants it", code);
    this.#wake();
  }

  async *messages(signal: AbortSignal): AsyncGenerator<Message> {
    signal.addEventListener("abort", () => this.#wake());
    try {
      while (!signal.aborted) {
        const message = this.#messages.shift();
        if (message !== undefined) yield message;
        else if (this.#failure) throw this.#failure;
        else await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    } finally {
      this.#end();
    }
  }
}

/** A server in this process that answers what a test wants, and records its requests. */
export class FakeServer {
  /** Returns the answer to a request. */
  answer: (request: VerifyRequest) => Reply | Promise<Reply> = (request) => valid(request.key);
  /** Runs before a call is answered, and may fail it. */
  beforeCall: () => void | Promise<void> = () => {};
  /** Returns the status with which a stream is refused, if it is. */
  refuseStreams: ((request: WatchRequest) => Code | undefined) | undefined;
  /** The requests of each call. */
  readonly calls: VerifyRequest[][] = [];
  readonly authorizations = new Set<string | null>();
  /** What a status says with which a stream is refused. */
  text = "as the test wants it";
  watchAttempts = 0;
  readonly #streams: Stream[] = [];
  #onStream = () => {};
  readonly #http: Http2Server;
  readonly #sockets = new Set<Socket>();

  private constructor(tls?: { key: string; cert: string }) {
    const handler = connectNodeAdapter({
      routes: (router) =>
        router.service(ApiKeyService, {
          verify: async (request, context) => {
            this.authorizations.add(context.requestHeader.get("authorization"));
            return (await this.#call([request]))[0] ?? {};
          },
          batchVerify: async ({ requests }) => ({ responses: await this.#call(requests) }),
          watch: (request, context) => this.#watch(request, context.signal),
        }),
    });
    this.#http = tls ? createSecureServer(tls, handler) : createServer(handler);
    // Close the sockets, not the sessions: Node 20 can spin forever when it destroys a session whose peer has gone.
    this.#http.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  static async start(options: { port?: number; path?: string; tls?: { key: string; cert: string } } = {}) {
    const server = new FakeServer(options.tls);
    server.#http.listen(options.path ?? { port: options.port ?? 0, host: "127.0.0.1" });
    await once(server.#http, "listening");
    return server;
  }

  get port(): number {
    return (this.#http.address() as AddressInfo).port;
  }

  get target(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** Returns the next stream that a client opens. Nothing has been sent on it yet. */
  async stream(): Promise<Stream> {
    for (;;) {
      const stream = this.#streams.shift();
      if (stream !== undefined) return stream;
      await new Promise<void>((resolve) => (this.#onStream = resolve));
    }
  }

  get hasStream(): boolean {
    return this.#streams.length > 0;
  }

  close(): void {
    this.#http.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  async #call(requests: VerifyRequest[]): Promise<Reply[]> {
    this.calls.push(requests);
    await this.beforeCall();
    return Promise.all(requests.map(async (request) => this.answer(request)));
  }

  #watch(request: WatchRequest, signal: AbortSignal): AsyncIterable<Message> {
    this.watchAttempts++;
    const code = this.refuseStreams?.(request);
    if (code !== undefined) throw new ConnectError(this.text, code);
    const stream = new Stream(request);
    this.#streams.push(stream);
    this.#onStream();
    return stream.messages(signal);
  }
}

/** Returns a key with its check. The secret is one character 43 times: no such key was ever real. */
export function makeKey(id: string, secret = "0"): string {
  const text = `tmb_${id.padStart(16, "0")}_${secret.repeat(43)}`;
  const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  let value = crc32(text);
  let check = "";
  for (let place = 0; place < 6; place++) {
    check = alphabet.charAt(value % 62) + check;
    value = Math.floor(value / 62);
  }
  return text + check;
}

export function idOf(key: string): string {
  return key.slice(4, 20);
}

/** Returns the server's answer for a key that may do everything, at revision 1, with these changes. */
export function valid(key: string, changes: Reply = {}): Reply {
  return {
    valid: true,
    code: VerifyCode.VALID,
    keyId: idOf(key),
    projectId: "acme",
    scopes: ["orders:*"],
    metadata: { plan: "gold" },
    cacheTtl: { seconds: 60n },
    checkTime: { seconds: BigInt(CHECK_TIME) },
    revision: 1n,
    ...changes,
  } as Reply;
}

export function denied(code: VerifyCode, keyId = ""): Reply {
  return { valid: false, code, keyId, checkTime: { seconds: BigInt(CHECK_TIME) }, revision: 1n };
}

/** Waits for a condition that no promise reports, one turn of the event loop at a time. */
export async function until(condition: () => boolean): Promise<void> {
  const began = performance.now();
  while (!condition()) {
    if (performance.now() - began > 60_000) throw new Error(`never came true: ${String(condition)}`);
    await turn();
  }
}
