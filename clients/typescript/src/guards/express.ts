import type { IncomingMessage, ServerResponse } from "node:http";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { nodeHeaders } from "./credential.js";
import { check, described, type GuardOptions, MISTAKEN, type Refusal, tell } from "./guard.js";
import { holdResponse } from "./http.js";

declare global {
  // eslint-disable-next-line @typescript-eslint/no-namespace -- Express itself declares its requests in this namespace
  namespace Express {
    interface Request {
      /** The verification of the key that let this request pass. Set by `requireApiKey`. */
      tumbler?: Verification;
    }
  }
}

/**
 * Returns a middleware that lets a request pass only with a key that the verifier accepts, and sets `request.tumbler`.
 * It answers all other requests. For Express 4 and 5, and whatever else calls `(request, response, next)`. A response
 * that is sent in parts is destroyed when its key stops being valid.
 *
 * The returned promise never rejects: Express 4 and Node do not handle it, and the process would end. If something else
 * has already answered, or the caller has gone, the guard does nothing more.
 */
export function requireApiKey<Request extends IncomingMessage & { tumbler?: Verification }>(
  verifier: Verifier,
  options: GuardOptions<Request> = {},
): (request: Request, response: ServerResponse, next: () => void) => Promise<void> {
  return async (request, response, next) => {
    try {
      // A request that a test made up may have no socket.
      const peer = (request.socket as IncomingMessage["socket"] | undefined)?.remoteAddress;
      const result = await check(verifier, options, request, () => nodeHeaders(request), peer);
      if (response.writableEnded || response.destroyed) return;
      if (result.refusal === undefined) {
        request.tumbler = result.verification;
        holdResponse(request, response, result.hold);
        next();
      } else {
        refuse(response, result.refusal);
      }
    } catch (error) {
      // Express catches what its handlers throw. Other servers leave it to the caller of next(), which is this guard.
      tell(options, "error", `the handler behind the guard failed: ${described(error)}`);
      try {
        refuse(response, MISTAKEN);
      } catch {
        response.destroy();
      }
    }
  };
}

function refuse(response: ServerResponse, { http, httpHeaders, text }: Refusal): void {
  if (response.headersSent) return; // something else is answering
  response.writeHead(http, { ...httpHeaders, "content-type": "application/json" });
  response.end(JSON.stringify({ error: text }));
}
