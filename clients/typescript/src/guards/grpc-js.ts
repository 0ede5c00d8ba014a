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
import { check, described, type GuardOptions, MISTAKEN, type Refusal, tell } from "./guard.js";

/** A call, as passed to a guard's functions. */
export interface GuardedCall {
  /** `/package.Service/Method`. */
  readonly path: string;
  readonly metadata: Metadata;
}

export interface GrpcGuardOptions extends GuardOptions<GuardedCall> {
  /** Services that need no key, `grpc.health.v1.Health` for example. Default: none. */
  readonly unguarded?: readonly string[];
}

// A handler's call holds the metadata object that the guard let pass. Nothing that a peer sends can add to this map.
const passed = new WeakMap<Metadata, Verification>();

/** Returns the verification of the key that let a call pass: `verified(call)`. Undefined without a guard. */
export function verified(call: { readonly metadata: Metadata }): Verification | undefined {
  return passed.get(call.metadata);
}

/**
 * Returns an interceptor, for `new Server({ interceptors: […] })`, that lets a call pass only with a key that the
 * verifier accepts. A streaming call ends when its key stops being valid: its handler sees "cancelled".
 */
export function requireApiKey(verifier: Verifier, options: GrpcGuardOptions = {}): ServerInterceptor {
  return (method, call) => {
    const refuse = ({ grpc, text }: Refusal) => {
      const code: number = grpc;
      // eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- Connect's enum has the same numbers: gRPC's
      call.sendStatus({ code, details: text });
    };
    const streams = method.requestStream || method.responseStream;
    let ended = false;
    let release = () => {};
    const end = (refusal: Refusal) => {
      ended = true;
      refuse(refusal);
    };
    const admit = async (metadata: Metadata, next: (metadata: Metadata) => void) => {
      // Nothing handles the promise that this returns. If it rejected, the process would end.
      try {
        const guarded: GuardedCall = { path: method.path, metadata };
        if (options.unguarded?.includes(method.path.split("/")[1] ?? "")) {
          next(metadata);
          return;
        }
        const peer = hostOf(call.getPeer());
        const result = await check(verifier, options, guarded, () => headersOf(metadata), peer);
        if (result.refusal !== undefined) {
          refuse(result.refusal);
          return;
        }
        passed.set(metadata, result.verification);
        if (streams) release = result.hold(end);
        if (!ended) next(metadata);
      } catch (error) {
        tell(options, "error", `the handler behind the guard failed: ${described(error)}`);
        refuse(MISTAKEN);
      }
    };
    const listener = new ServerListenerBuilder()
      .withOnReceiveMetadata((metadata, next) => void admit(metadata, next))
      .withOnReceiveMessage((message, next) => {
        if (!ended) next(message);
      })
      // If the call was ended, the end of the messages so far is not a normal end.
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
 * Returns the headers that may hold credentials. Node's HTTP/2 joins repeated `x-api-key` headers, and no key has a
 * comma. Of repeated `authorization` headers it passes on only the first, so they cannot be detected.
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

/** Returns the address of `192.0.2.7:443` or `2001:db8::7:443`. The peer of a Unix socket has none. */
function hostOf(peer: string): string | undefined {
  return /^([0-9A-Fa-f.:]+):\d+$/.exec(peer)?.[1];
}
