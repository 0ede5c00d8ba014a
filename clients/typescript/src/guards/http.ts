import { EventEmitter } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerResponse } from "node:http2";
import type { Hold } from "./guard.js";

const CANCEL = 0x8; // the HTTP/2 error code

/**
 * Holds a response to its key from its first part on, and a socket from when it leaves HTTP: at once if the server has
 * handed it over, otherwise with the answer 101. When the key stops being valid, it is destroyed: its reader sees an
 * error, and its writer sees "close".
 *
 * The header `Upgrade` by itself is only a request. Most servers ignore it, and keep the socket for other requests.
 */
export function holdResponse(request: IncomingMessage, response: ServerResponse, hold: Hold): void {
  // Node sets this when it emits "upgrade" or "connect". It then reads no further request from this socket.
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
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called below with the response as `this`
  const { writeHead } = response;
  Object.assign(response, {
    writeHead(this: ServerResponse, status: number, ...rest: unknown[]): unknown {
      if (status === 101) holdSocket(request, hold);
      return (writeHead as (...args: unknown[]) => unknown).call(this, status, ...rest);
    },
  });
  for (const name of ["write", "flushHeaders"] as const) {
    // eslint-disable-next-line @typescript-eslint/unbound-method -- applied below to the response
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
