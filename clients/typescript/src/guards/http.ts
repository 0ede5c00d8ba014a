import { EventEmitter } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerResponse } from "node:http2";
import type { Hold } from "./guard.js";

const CANCEL = 0x8; // of HTTP/2

/**
 * Holds an answer to its key from when a part of it is written, and a socket that is upgraded at once. When the key stops
 * being valid, it is destroyed: whoever reads it sees an error, and whoever writes it sees "close".
 */
export function holdAnswer(request: IncomingMessage, response: ServerResponse, hold: Hold): void {
  const { upgrade } = request.headers;
  if (upgrade !== undefined) {
    const release = hold(() => request.socket.destroy());
    request.socket.once("close", release);
    return;
  }
  let noted = false;
  const note = () => {
    if (noted) return;
    noted = true;
    const release = hold(() => destroy(response));
    if (response.writableFinished || response.destroyed) release();
    else EventEmitter.prototype.once.call(response, "close", release);
  };
  for (const name of ["write", "flushHeaders"] as const) {
    const own = response[name] as (...args: unknown[]) => unknown;
    Object.assign(response, {
      [name](this: ServerResponse, ...args: unknown[]): unknown {
        note();
        return own.apply(this, args);
      },
    });
  }
}

function destroy(response: ServerResponse | Http2ServerResponse): void {
  if ("stream" in response) response.stream.close(CANCEL);
  else response.destroy();
}
