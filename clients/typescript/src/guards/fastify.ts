import type { FastifyReply, FastifyRequest } from "fastify";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { nodeHeaders } from "./credential.js";
import { check, type GuardOptions } from "./guard.js";
import { holdResponse } from "./http.js";

declare module "fastify" {
  interface FastifyRequest {
    /** The verification of the key that let this request pass. Set by `requireApiKey`. */
    tumbler?: Verification;
  }
}

/**
 * Returns an `onRequest` hook, for a route or for `app.addHook`, that lets a request pass only with a key that the
 * verifier accepts, and sets `request.tumbler`. It answers all other requests before their body is read. A response
 * that is sent in parts, or a WebSocket, is destroyed when its key stops being valid.
 */
export function requireApiKey(
  verifier: Verifier,
  options: GuardOptions<FastifyRequest> = {},
): (request: FastifyRequest, reply: FastifyReply) => Promise<FastifyReply | undefined> {
  return async (request, reply) => {
    const peer = request.socket.remoteAddress;
    const result = await check(verifier, options, request, () => nodeHeaders(request.raw), peer);
    if (result.refusal === undefined) {
      request.tumbler = result.verification;
      holdResponse(request.raw, reply.raw, result.hold);
      return undefined;
    }
    if (reply.sent || reply.raw.headersSent) return reply; // something else has already answered
    const { http, httpHeaders, text } = result.refusal;
    return reply.code(http).headers(httpHeaders).send({ error: text });
  };
}
