import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  type OutgoingHttpHeaders,
} from "node:http2";
import { connect as connectSocket } from "node:net";
import { connect as connectTls } from "node:tls";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Credentials } from "./options.js";
import type { Endpoint } from "./target.js";

/**
 * One HTTP/2 connection at a time to the server, opened when it is needed.
 *
 * Connect's own manager keeps the process alive while any stream is open, and so for ever with Watch. This one never
 * does: what waits for an answer has a timer of its own that does.
 */
export class Connection {
  /** The origin of all requests; part of what Connect asks of a session manager. */
  readonly authority: string;
  readonly #endpoint: Endpoint;
  readonly #credentials: Credentials | undefined;
  readonly #open = new Set<ClientHttp2Session>();
  #current: ClientHttp2Session | undefined;
  #heardAt = 0;
  #closed = false;

  constructor(endpoint: Endpoint, credentials: Credentials | undefined) {
    this.#endpoint = endpoint;
    this.#credentials = credentials;
    this.authority = new URL(`${credentials ? "https" : "http"}://${endpoint.host}`).origin;
  }

  async request(method: string, path: string, headers: OutgoingHttpHeaders): Promise<ClientHttp2Stream> {
    if (this.#closed) throw new ConnectError("the connection is closed", Code.Unavailable);
    const last = this.#current;
    const session = last === undefined || last.closed || last.destroyed ? this.#connect() : last;
    return session.request({ ...headers, ":method": method, ":path": path });
  }

  notifyResponseByteRead(stream: ClientHttp2Stream): void {
    if (stream.session === this.#current) this.#heardAt = performance.now();
  }

  /**
   * Begins a new connection with the next request, unless this one has brought something since that moment of
   * `performance.now()`. Without this, a connection whose other end vanished silently would be used until TCP gives it
   * up, a quarter of an hour later.
   */
  suspect(since: number): void {
    if (this.#heardAt >= since) return;
    const session = this.#current;
    this.#current = undefined;
    // What waits for a connection that is only being opened would fail if it were closed before.
    if (session?.connecting) session.once("connect", () => session.close());
    else session?.close();
  }

  close(): void {
    this.#closed = true;
    for (const session of this.#open) session.destroy();
  }

  #connect(): ClientHttp2Session {
    const { socketPath } = this.#endpoint;
    const credentials = this.#credentials;
    const session = connectHttp2(this.authority, {
      ...credentials,
      ...(socketPath !== undefined && {
        createConnection: () =>
          credentials
            ? connectTls({ servername: "localhost", ...credentials, path: socketPath, ALPNProtocols: ["h2"] })
            : connectSocket(socketPath),
      }),
    });
    session.unref();
    session.on("error", () => {}); // every stream of the session receives it, and it is handled there
    session.on("close", () => this.#open.delete(session));
    this.#open.add(session);
    this.#current = session;
    this.#heardAt = 0;
    return session;
  }
}
