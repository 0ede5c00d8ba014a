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

/** Milliseconds that a server has to send its first settings on a new connection, before another is made. */
const MAX_CONNECT_TIME = 2_000;
/** Milliseconds that an unreachable server is left out, if there are others. */
const PAUSE = 1_000;

/**
 * One HTTP/2 connection at a time to each server, opened on demand. Requests go to the servers in turn, and only to
 * those that are reachable.
 *
 * Connect's own manager keeps the process alive while a stream is open, with Watch forever. This one never does: a
 * pending call has its own timer that keeps it alive.
 */
export class Connection {
  /** The origin of all requests. Connect requires it of a session manager. */
  readonly authority: string;
  readonly #subchannels: readonly Subchannel[];
  #next = 0;
  #closed = false;

  constructor(endpoints: readonly Endpoint[], credentials: Credentials | undefined) {
    this.#subchannels = endpoints.map((endpoint) => new Subchannel(endpoint, credentials));
    this.authority = this.#subchannels[0]?.authority ?? "";
  }

  async request(method: string, path: string, headers: OutgoingHttpHeaders): Promise<ClientHttp2Stream> {
    if (this.#closed) throw new ConnectError("the connection is closed", Code.Unavailable);
    const session = await this.#choose();
    return session.request({ ...headers, ":method": method, ":path": path });
  }

  notifyResponseByteRead(stream: ClientHttp2Stream): void {
    for (const subchannel of this.#subchannels) {
      if (stream.session === subchannel.session) subchannel.lastReceivedAt = performance.now();
    }
  }

  /**
   * Makes new connections for later requests, except where a connection has received something since that moment of
   * `performance.now()`. Without this, a connection whose other end vanished silently would be used until TCP gives up,
   * a quarter of an hour later. One whose other end has stopped would be used forever.
   */
  reconnect(since: number): void {
    for (const subchannel of this.#subchannels) if (subchannel.lastReceivedAt < since) subchannel.giveUp();
  }

  close(): void {
    this.#closed = true;
    for (const subchannel of this.#subchannels) subchannel.close();
  }

  /** Returns the session of the server whose turn it is. If that one is not ready, of the first that is. */
  async #choose(): Promise<ClientHttp2Session> {
    const subchannels = [...this.#subchannels.slice(this.#next), ...this.#subchannels.slice(0, this.#next)];
    this.#next = (this.#next + 1) % this.#subchannels.length;
    const [only, ...others] = subchannels;
    if (only !== undefined && others.length === 0) return only.use();
    const sessions = subchannels.map((subchannel) => subchannel.ready());
    for (const { session, isReady } of subchannels) if (session !== undefined && isReady) return session;
    try {
      return await Promise.any(sessions);
    } catch {
      throw new ConnectError("no server can be reached", Code.Unavailable);
    }
  }
}

/** The connection to one server. */
class Subchannel {
  readonly authority: string;
  readonly #endpoint: Endpoint;
  readonly #credentials: Credentials | undefined;
  readonly #open = new Set<ClientHttp2Session>();
  /** The session that the next request uses. */
  session: ClientHttp2Session | undefined;
  /** When it last received something. */
  lastReceivedAt = 0;
  /** Whether the server has sent its settings on it. */
  isReady = false;
  #readiness: Promise<ClientHttp2Session> | undefined;
  #failedAt = Number.NEGATIVE_INFINITY;

  constructor(endpoint: Endpoint, credentials: Credentials | undefined) {
    this.#endpoint = endpoint;
    this.#credentials = credentials;
    this.authority = new URL(`${credentials ? "https" : "http"}://${endpoint.host}`).origin;
  }

  /** Returns a session at once. It may still be connecting; if that fails, its requests fail. */
  use(): ClientHttp2Session {
    const { session } = this;
    return session === undefined || session.closed || session.destroyed ? this.#connect() : session;
  }

  /** Returns a session once the server has sent its settings on it. */
  ready(): Promise<ClientHttp2Session> {
    const { session } = this;
    if (this.#readiness !== undefined && session !== undefined && !session.closed && !session.destroyed) {
      return this.#readiness;
    }
    this.isReady = false;
    if (performance.now() - this.#failedAt < PAUSE) return failed();
    this.#readiness = this.#dial();
    this.#readiness.catch(() => {}); // no one awaits it if another server is ready
    return this.#readiness;
  }

  giveUp(): void {
    const { session } = this;
    this.session = undefined;
    this.isReady = false;
    // Closing a session that is still connecting would fail the requests that wait for it.
    if (session?.connecting) session.once("connect", () => session.close());
    else session?.close();
  }

  close(): void {
    for (const session of this.#open) session.destroy();
  }

  #dial(): Promise<ClientHttp2Session> {
    const session = this.#connect();
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => session.destroy(), MAX_CONNECT_TIME);
      late.unref();
      session.once("remoteSettings", () => {
        clearTimeout(late);
        if (this.session === session) this.isReady = true;
        resolve(session);
      });
      session.once("close", () => {
        clearTimeout(late);
        if (this.session === session && !this.isReady) this.#failedAt = performance.now();
        reject(new ConnectError("the server cannot be reached", Code.Unavailable));
      });
    });
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
    session.on("error", () => {}); // every stream of the session receives the error and handles it
    session.on("close", () => this.#open.delete(session));
    this.#open.add(session);
    this.session = session;
    this.lastReceivedAt = 0;
    return session;
  }
}

function failed(): Promise<never> {
  const failure = Promise.reject(new ConnectError("the server cannot be reached", Code.Unavailable));
  failure.catch(() => {}); // no one awaits it if another server is ready
  return failure;
}
