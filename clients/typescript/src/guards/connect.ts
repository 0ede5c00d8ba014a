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
import { check, type GuardOptions, MISTAKEN, tell } from "./guard.js";

/** The verification of the key that let a call pass: `context.values.get(verified)`. Undefined without a guard. */
export const verified = createContextKey<Verification | undefined>(undefined, { description: "tumbler" });

/** What Node knows about a request, and Connect does not pass to interceptors. */
interface Came {
  readonly address: string | undefined;
  /** Undefined: some are missing. */
  readonly headers: readonly Header[] | undefined;
}

const came = createContextKey<Came | undefined>(undefined, { description: "tumbler: how the request came" });

/**
 * Gives the guard what Connect does not pass to interceptors: the peer's address, and each raw header. The guard
 * requires it: `connectNodeAdapter({ …, contextValues: withPeer })`, or for Fastify's plugin
 * `contextValues: (request) => withPeer(request.raw)`.
 */
export function withPeer(
  request: NodeHeaders & { readonly socket: { readonly remoteAddress?: string | undefined } },
): ContextValues {
  const { remoteAddress } = request.socket;
  return createContextValues().set(came, { address: remoteAddress, headers: nodeHeaders(request) });
}

export interface ConnectGuardOptions extends GuardOptions<UnaryRequest | StreamRequest> {
  /** Services that need no key, `grpc.health.v1.Health` for example. Default: none. */
  readonly unguarded?: readonly string[];
}

/**
 * Returns a server interceptor that lets a call pass only with a key that the verifier accepts. A streaming call fails
 * when its key stops being valid: its handler's `context.signal` is aborted.
 */
export function requireApiKey(verifier: Verifier, options: ConnectGuardOptions = {}): Interceptor {
  return (next) => async (request) => {
    if (options.unguarded?.includes(request.service.typeName)) return next(request);
    const how = request.contextValues.get(came);
    if (how === undefined) {
      // Connect's own headers have only one value of a repeated header, or join them.
      tell(options, "error", "requireApiKey needs contextValues: withPeer; without it every request is denied");
      throw new ConnectError(MISTAKEN.text, MISTAKEN.grpc);
    }
    const result = await check(verifier, options, request, () => how.headers, how.address);
    if (result.refusal !== undefined) throw new ConnectError(result.refusal.text, result.refusal.grpc);
    request.contextValues.set(verified, result.verification);
    if (!request.stream) return next(request);
    const ending = new Ending();
    const release = result.hold(({ text, grpc }) => ending.end(new ConnectError(text, grpc)));
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

/** The end of a call by its key, which may come during any await. */
class Ending {
  #error: ConnectError | undefined;
  // The pending awaits. With a single promise for the end, each message would add a reaction to it.
  readonly #waiting = new Set<(error: ConnectError) => void>();

  end(error: ConnectError): void {
    this.#error = error;
    for (const reject of this.#waiting) reject(error);
    this.#waiting.clear();
  }

  /** Returns the awaited value, or fails if the end comes first. */
  orSooner<T>(awaited: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const settled = () => this.#waiting.delete(reject);
      awaited.then(resolve, reject).finally(settled);
      if (this.#error === undefined) this.#waiting.add(reject);
      else reject(this.#error);
    });
  }

  /** Yields the messages until the end. Calls `over` when no more follow. */
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
      // The producer may be waiting for something else, so it is not awaited.
      if (!whole) iterator.return?.().catch(() => {});
    }
  }
}
