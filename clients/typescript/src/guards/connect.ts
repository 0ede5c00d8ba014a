import {
  ConnectError,
  type ContextValues,
  createContextKey,
  createContextValues,
  type Interceptor,
  type StreamRequest,
  type UnaryRequest,
} from "@connectrpc/connect";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { type GuardOptions, judge } from "./guard.js";

/** Whose key let a call pass: `context.values.get(verified)` in a handler. Undefined without the guard. */
export const verified = createContextKey<Verification | undefined>(undefined, { description: "tumbler" });

const peerAddress = createContextKey<string | undefined>(undefined, { description: "tumbler: the peer's address" });

/**
 * Makes the peer's address known to the guard: `connectNodeAdapter({ …, contextValues: withPeer })`. Connect does not
 * tell it to interceptors, and without it keys that are bound to networks are denied.
 */
export function withPeer(request: { readonly socket: { readonly remoteAddress?: string | undefined } }): ContextValues {
  return createContextValues().set(peerAddress, request.socket.remoteAddress);
}

export interface ConnectGuardOptions extends GuardOptions<UnaryRequest | StreamRequest> {
  /** Services that need no key, `grpc.health.v1.Health` for example. Left out: every service needs one. */
  readonly unguarded?: readonly string[];
}

/** Returns an interceptor for servers that lets calls with an accepted API key pass, and fails all others. */
export function requireApiKey(verifier: Verifier, options: ConnectGuardOptions = {}): Interceptor {
  return (next) => async (request) => {
    if (options.unguarded?.includes(request.service.typeName)) return next(request);
    const header = (name: string) => request.header.get(name) ?? undefined;
    const judgement = await judge(verifier, options, request, header, request.contextValues.get(peerAddress));
    if (judgement.refusal !== undefined) throw new ConnectError(judgement.refusal.text, judgement.refusal.grpc);
    request.contextValues.set(verified, judgement.verification);
    return next(request);
  };
}
