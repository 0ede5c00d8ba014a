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
import { type Header, type NodeHeaders, nodeHeaders } from "./credential.js";
import { BROKEN, type GuardOptions, judge, tell } from "./guard.js";

/** Whose key let a call pass: `context.values.get(verified)` in a handler. Undefined without the guard. */
export const verified = createContextKey<Verification | undefined>(undefined, { description: "tumbler" });

/** What Node knows of a request, and Connect does not tell interceptors. */
interface Came {
  readonly address: string | undefined;
  readonly headers: readonly Header[];
}

const came = createContextKey<Came | undefined>(undefined, { description: "tumbler: how the request came" });

/**
 * Makes known to the guard what Connect does not tell interceptors: the peer's address, and each header that came. The
 * guard needs it: `connectNodeAdapter({ …, contextValues: withPeer })`; for Fastify's plugin,
 * `contextValues: (request) => withPeer(request.raw)`.
 */
export function withPeer(
  request: NodeHeaders & { readonly socket: { readonly remoteAddress?: string | undefined } },
): ContextValues {
  const { remoteAddress } = request.socket;
  return createContextValues().set(came, { address: remoteAddress, headers: nodeHeaders(request) });
}

export interface ConnectGuardOptions extends GuardOptions<UnaryRequest | StreamRequest> {
  /** Services that need no key, `grpc.health.v1.Health` for example. Left out: every service needs one. */
  readonly unguarded?: readonly string[];
}

/**
 * Returns an interceptor for servers that lets calls with an accepted API key pass, and fails all others. A call that
 * streams fails when its key stops being valid: its handler's `context.signal` is aborted.
 */
export function requireApiKey(verifier: Verifier, options: ConnectGuardOptions = {}): Interceptor {
  return (next) => async (request) => {
    if (options.unguarded?.includes(request.service.typeName)) return next(request);
    const how = request.contextValues.get(came);
    if (how === undefined) {
      // Of several headers of a name, those of Connect have one, or all in one.
      tell(options, "error", "requireApiKey needs contextValues: withPeer; without it every request is denied");
      throw new ConnectError(BROKEN.text, BROKEN.grpc);
    }
    const judgement = await judge(verifier, options, request, () => how.headers, how.address);
    if (judgement.refusal !== undefined) throw new ConnectError(judgement.refusal.text, judgement.refusal.grpc);
    request.contextValues.set(verified, judgement.verification);
    if (!request.stream) return next(request);
    const ending = new Ending();
    const release = judgement.hold(({ text, grpc }) => ending.end(new ConnectError(text, grpc)));
    try {
      const response = await ending.orSooner(next({ ...request, message: ending.each(request.message) }));
      if (!response.stream) return response;
      return { ...response, message: ending.each(response.message, release) };
    } catch (error) {
      release();
      throw error;
    }
  };
}

/** The end of a call by its key, which may come while anything is awaited. */
class Ending {
  #error: ConnectError | undefined;
  // What is awaited at the moment. A promise of the end itself would collect a reaction for each message.
  readonly #waiting = new Set<(error: ConnectError) => void>();

  end(error: ConnectError): void {
    this.#error = error;
    for (const reject of this.#waiting) reject(error);
    this.#waiting.clear();
  }

  /** Returns what is awaited, or fails if the end comes sooner. */
  orSooner<T>(awaited: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const settled = () => this.#waiting.delete(reject);
      awaited.then(resolve, reject).finally(settled);
      if (this.#error === undefined) this.#waiting.add(reject);
      else reject(this.#error);
    });
  }

  /** Yields what comes, until the end; `over` is called when nothing more does. */
  async *each<T>(messages: AsyncIterable<T>, over: () => void = () => {}): AsyncGenerator<T> {
    const iterator = messages[Symbol.asyncIterator]();
    let whole = false;
    try {
      for (;;) {
        const result = await this.orSooner(iterator.next());
        if (result.done) {
          whole = true;
          return;
        }
        yield result.value;
        if (this.#error !== undefined) throw this.#error;
      }
    } finally {
      over();
      // Whoever makes them may be waiting for something else, and is not waited for.
      if (!whole) iterator.return?.().catch(() => {});
    }
  }
}
