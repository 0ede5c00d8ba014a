import type { IncomingMessage, ServerResponse } from "node:http";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { nodeHeaders } from "./credential.js";
import { type GuardOptions, judge } from "./guard.js";

declare global {
  namespace Express {
    interface Request {
      /** Whose key let this request pass; set by `requireApiKey`. */
      tumbler?: Verification;
    }
  }
}

/**
 * Returns a middleware that lets requests with an accepted API key pass, with `request.tumbler` set, and answers all
 * others. For Express 4 and 5, and whatever else calls `(request, response, next)`.
 */
export function requireApiKey<Request extends IncomingMessage & { tumbler?: Verification }>(
  verifier: Verifier,
  options: GuardOptions<Request> = {},
): (request: Request, response: ServerResponse, next: () => void) => Promise<void> {
  return async (request, response, next) => {
    const peer = request.socket.remoteAddress;
    const judgement = await judge(verifier, options, request, nodeHeaders(request), peer);
    if (judgement.refusal === undefined) {
      request.tumbler = judgement.verification;
      next();
      return;
    }
    const { http, httpHeaders, text } = judgement.refusal;
    response.writeHead(http, { ...httpHeaders, "content-type": "application/json" });
    response.end(JSON.stringify({ error: text }));
  };
}
