import {
  type Metadata,
  ResponderBuilder,
  ServerInterceptingCall,
  type ServerInterceptor,
  ServerListenerBuilder,
} from "@grpc/grpc-js";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import type { Header } from "./credential.js";
import { BROKEN, described, type GuardOptions, judge, type Refusal, tell } from "./guard.js";

/** What a guard knows of a call before it passes. */
export interface GuardedCall {
  /** `/package.Service/Method`. */
  readonly path: string;
  readonly metadata: Metadata;
}

export interface GrpcGuardOptions extends GuardOptions<GuardedCall> {
  /** Services that need no key, `grpc.health.v1.Health` for example. Left out: every service needs one. */
  readonly unguarded?: readonly string[];
}

// A handler's call holds the very metadata that the guard let pass, and nothing that a peer sends can add to this.
const passed = new WeakMap<Metadata, Verification>();

/** Returns whose key let the call pass: `verified(call)` in a handler. Undefined without the guard. */
export function verified(call: { readonly metadata: Metadata }): Verification | undefined {
  return passed.get(call.metadata);
}

/**
 * Returns an interceptor, for `new Server({ interceptors: […] })`, that lets calls with an accepted API key pass. A call
 * that streams ends when its key stops being valid: its handler sees "cancelled".
 */
export function requireApiKey(verifier: Verifier, options: GrpcGuardOptions = {}): ServerInterceptor {
  return (method, call) => {
    const refuse = ({ grpc, text }: Refusal) => call.sendStatus({ code: grpc, details: text });
    const streams = method.requestStream || method.responseStream;
    let ended = false;
    let release = () => {};
    const end = (refusal: Refusal) => {
      ended = true;
      refuse(refusal);
    };
    const admit = async (metadata: Metadata, next: (metadata: Metadata) => void) => {
      // Nobody looks at the promise that this returns: it must not fail, or the process ends.
      try {
        const guarded: GuardedCall = { path: method.path, metadata };
        if (options.unguarded?.includes(method.path.split("/")[1] ?? "")) return next(metadata);
        const peer = hostOf(call.getPeer());
        const judgement = await judge(verifier, options, guarded, () => headersOf(metadata), peer);
        if (judgement.refusal !== undefined) return refuse(judgement.refusal);
        passed.set(metadata, judgement.verification);
        if (streams) release = judgement.hold(end);
        if (!ended) next(metadata);
      } catch (error) {
        tell(options, "error", `the handler behind the guard failed: ${described(error)}`);
        refuse(BROKEN);
      }
    };
    const listener = new ServerListenerBuilder()
      .withOnReceiveMetadata(admit)
      .withOnReceiveMessage((message, next) => {
        if (!ended) next(message);
      })
      // The end of what was sent so far is no orderly end.
      .withOnReceiveHalfClose((next) => {
        if (!ended) next();
      })
      .withOnCancel(() => release());
    const responder = new ResponderBuilder()
      .withStart((next) => next(listener.build()))
      .withSendMetadata((metadata, next) => {
        if (!ended) next(metadata);
      })
      .withSendMessage((message, next) => {
        if (!ended) next(message);
      })
      .withSendStatus((status, next) => {
        release();
        if (!ended) next(status);
      });
    return new ServerInterceptingCall(call, responder.build());
  };
}

/**
 * Returns the headers in which credentials are. Node's HTTP/2 joins several of `x-api-key`, and no key has a comma; of
 * several of `authorization` it hands on the first alone, so that nobody behind it can tell.
 *
 * @internal
 */
export function headersOf(metadata: Metadata): Header[] {
  return ["authorization", "x-api-key"].flatMap((name) =>
    metadata.get(name).flatMap((value): Header[] => {
      const text = String(value);
      return name === "x-api-key" ? text.split(",").map((each): Header => [name, each]) : [[name, text]];
    }),
  );
}

/** `192.0.2.7:443` and `2001:db8::7:443` are addresses with a port; a Unix socket's peer has none. */
function hostOf(peer: string): string | undefined {
  return /^([0-9A-Fa-f.:]+):\d+$/.exec(peer)?.[1];
}
