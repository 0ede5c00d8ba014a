import type { IncomingMessage, ServerResponse } from "node:http";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { nodeHeaders } from "./credential.js";
import { BROKEN, described, type GuardOptions, judge, type Refusal, tell } from "./guard.js";
import { holdAnswer } from "./http.js";

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
 * others. For Express 4 and 5, and whatever else calls `(request, response, next)`. An answer that is written in parts is
 * destroyed when its key stops being valid.
 *
 * The promise that it returns never fails: Express 4, like Node itself, does not look at it, and the process would end.
 * Where somebody else has answered meanwhile, or the caller has gone, nothing more is done.
 */
export function requireApiKey<Request extends IncomingMessage & { tumbler?: Verification }>(
  verifier: Verifier,
  options: GuardOptions<Request> = {},
): (request: Request, response: ServerResponse, next: () => void) => Promise<void> {
  return async (request, response, next) => {
    try {
      const peer = request.socket?.remoteAddress;
      const judgement = await judge(verifier, options, request, () => nodeHeaders(request), peer);
      if (response.writableEnded || response.destroyed) return;
      if (judgement.refusal === undefined) {
        request.tumbler = judgement.verification;
        holdAnswer(request, response, judgement.hold);
        next();
      } else {
        refuse(response, judgement.refusal);
      }
    } catch (error) {
      // Express catches what its handlers throw; others leave it to whoever called them, and nobody did but us.
      tell(options, "error", `the handler behind the guard failed: ${described(error)}`);
      try {
        refuse(response, BROKEN);
      } catch {
        response.destroy();
      }
    }
  };
}

function refuse(response: ServerResponse, { http, httpHeaders, text }: Refusal): void {
  if (response.headersSent) return; // somebody else's answer is under way
  response.writeHead(http, { ...httpHeaders, "content-type": "application/json" });
  response.end(JSON.stringify({ error: text }));
}
