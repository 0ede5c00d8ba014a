import { EventEmitter } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerResponse } from "node:http2";
import type { Hold } from "./guard.js";

const CANCEL = 0x8; // of HTTP/2

/**
 * Holds an answer to its key from when a part of it is written, and a socket that leaves HTTP from when it does: at once
 * where the server has handed it over, otherwise with the answer 101. When the key stops being valid, it is destroyed:
 * whoever reads it sees an error, and whoever writes it sees "close".
 *
 * The header `Upgrade` by itself is a caller's wish. Most servers answer as if it were not there, on a socket that goes on
 * to serve other requests.
 */
export function holdAnswer(request: IncomingMessage, response: ServerResponse, hold: Hold): void {
  // Set by Node where it emits "upgrade" or "connect": then it reads no further request from this socket.
  if ((request as { upgrade?: boolean }).upgrade === true) {
    holdSocket(request, hold);
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
  const { writeHead } = response;
  Object.assign(response, {
    writeHead(this: ServerResponse, status: number, ...rest: unknown[]): unknown {
      if (status === 101) holdSocket(request, hold);
      return (writeHead as (...args: unknown[]) => unknown).call(this, status, ...rest);
    },
  });
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

function holdSocket({ socket }: IncomingMessage, hold: Hold): void {
  if (socket.destroyed) return;
  socket.once(
    "close",
    hold(() => socket.destroy()),
  );
}

function destroy(response: ServerResponse | Http2ServerResponse): void {
  if ("stream" in response) response.stream.close(CANCEL);
  else response.destroy();
}
