import type { FastifyReply, FastifyRequest } from "fastify";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { nodeHeaders } from "./credential.js";
import { type GuardOptions, judge } from "./guard.js";
import { holdAnswer } from "./http.js";

declare module "fastify" {
  interface FastifyRequest {
    /** Whose key let this request pass; set by `requireApiKey`. */
    tumbler?: Verification;
  }
}

/**
 * Returns an `onRequest` hook, for a route or for `app.addHook`, that lets requests with an accepted API key pass, with
 * `request.tumbler` set, and answers all others before their body is read. An answer that is written in parts, and a
 * WebSocket, are destroyed when their key stops being valid.
 */
export function requireApiKey(
  verifier: Verifier,
  options: GuardOptions<FastifyRequest> = {},
): (request: FastifyRequest, reply: FastifyReply) => Promise<FastifyReply | undefined> {
  return async (request, reply) => {
    const peer = request.socket.remoteAddress;
    const judgement = await judge(verifier, options, request, () => nodeHeaders(request.raw), peer);
    if (judgement.refusal === undefined) {
      request.tumbler = judgement.verification;
      holdAnswer(request.raw, reply.raw, judgement.hold);
      return undefined;
    }
    if (reply.sent || reply.raw.headersSent) return reply; // somebody else has answered meanwhile
    const { http, httpHeaders, text } = judgement.refusal;
    return reply.code(http).headers(httpHeaders).send({ error: text });
  };
}
