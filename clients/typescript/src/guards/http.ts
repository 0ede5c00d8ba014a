import { EventEmitter } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { ServerHttp2Stream } from "node:http2";
import { addAbortSignal } from "node:stream";
import type { Hold } from "./guard.js";

/**
 * Holds a response to its key from its first part on, and a socket from when it leaves HTTP: at once if the server has
 * handed it over, otherwise with the answer 101. When the key stops being valid, it is destroyed: its reader sees an
 * error, and its writer sees "close".
 *
 * The header `Upgrade` by itself is only a request. Most servers ignore it, and keep the socket for other requests.
 */
export function holdResponse(request: IncomingMessage, response: ServerResponse, hold: Hold): void {
  const { stream } = response as { stream?: ServerHttp2Stream };
  if (stream !== undefined) {
    holdStream(request, response, stream, hold);
    return;
  }
  // Node sets this when it emits "upgrade" or "connect". It then reads no further request from this socket.
  if ((request as { upgrade?: boolean }).upgrade === true) {
    holdSocket(request, hold);
    return;
  }
  let noted = false;
  const note = () => {
    if (noted) return;
    noted = true;
    const release = hold(() => response.destroy());
    if (response.writableFinished || response.destroyed) release();
    else EventEmitter.prototype.once.call(response, "close", release);
  };
  before(response, "writeHead", (status) => {
    if (status === 101) holdSocket(request, hold);
  });
  for (const name of ["write", "flushHeaders"] as const) before(response, name, note);
}

function holdSocket({ socket }: IncomingMessage, hold: Hold): void {
  if (socket.destroyed) return;
  socket.once(
    "close",
    hold(() => socket.destroy()),
  );
}

/**
 * Holds a stream of HTTP/2. Handlers may write to it without the response, and after an extended CONNECT they must, so
 * it is held from its first headers or part on, and until it is closed. An answer that is sent in one piece is not held.
 */
function holdStream(request: IncomingMessage, response: ServerResponse, stream: ServerHttp2Stream, hold: Hold): void {
  let held = false;
  let whole = false;
  const note = () => {
    if (held || whole || stream.destroyed) return;
    held = true;
    // Only an abort destroys a stream with CANCEL. Before close(CANCEL) takes effect, Node sends a normal end.
    const ending = new AbortController();
    addAbortSignal(ending.signal, stream);
    const release = hold(() => ending.abort());
    stream.once("close", release);
  };
  if (request.method === "CONNECT") {
    note();
    return;
  }
  before(response, "end", () => {
    whole = true;
  });
  before(stream, "respond", (_, options) => {
    if ((options as { endStream?: boolean } | undefined)?.endStream !== true) note();
  });
  for (const name of ["write", "respondWithFD", "respondWithFile"] as const) before(stream, name, note);
}

/** Has a function called before each call of a method, with the same arguments. */
function before<Name extends string>(
  target: Readonly<Record<Name, unknown>>,
  name: Name,
  run: (...args: unknown[]) => void,
): void {
  const own = target[name] as (...args: unknown[]) => unknown;
  Object.assign(target, {
    [name](this: unknown, ...args: unknown[]): unknown {
      run(...args);
      return own.apply(this, args);
    },
  });
}
