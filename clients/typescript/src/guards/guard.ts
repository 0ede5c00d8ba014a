import { InvalidRequestError, NotAllowedError, UnavailableError } from "../errors.js";
import { KEY_PATTERN } from "../keyformat.js";
import { defaultLogger, type Logger } from "../logger.js";
import type { ProjectId } from "../projects.js";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { credentialOf, type Header } from "./credential.js";

/** What a guard demands of the keys that it lets pass. */
export interface GuardOptions<Request> {
  /** Scopes that must all be granted, the same for every request or chosen for each. Left out: any accepted key may pass. */
  readonly requiredScopes?: readonly string[] | ((request: Request) => readonly string[]);

  /** The environment that keys must belong to. Left out: any. */
  readonly environmentId?: string;

  /**
   * The project, or several, that keys must belong to one of. It narrows what the verifier accepts, and never widens it.
   * Left out: what the verifier accepts.
   */
  readonly projectId?: ProjectId;

  /**
   * Where a request comes from. Left out: the peer's address, which behind a proxy is the proxy's. Trust a header only
   * where your proxy sets it.
   */
  readonly clientIp?: (request: Request) => string | undefined;

  /**
   * Whether what a key let in ends when the key stops being valid: calls of gRPC that stream, answers that are written in
   * parts, and sockets that were upgraded. Ordinary calls and answers run to their end. Default true.
   */
  readonly endStreams?: boolean;

  /** Where it is said why keys were denied (info) and why none can be verified (error). Default: errors to the console. */
  readonly logger?: Logger;
}

/** One of the few answers that whoever presented a key may read. */
export interface Refusal {
  readonly http: number;
  readonly httpHeaders: Readonly<Record<string, string>>;
  /** The code of gRPC, the same number in Connect and in grpc-js. */
  readonly grpc: number;
  readonly text: string;
}

const CANNOT_VERIFY = "API keys cannot be verified at the moment";
const NOT_ACCEPTED: Refusal = {
  http: 401,
  httpHeaders: { "www-authenticate": "Bearer" },
  grpc: 16,
  text: "a valid API key is required",
};
const NOT_ENOUGH: Refusal = { http: 403, httpHeaders: {}, grpc: 7, text: "this API key does not allow that" };
const UNAVAILABLE: Refusal = { http: 503, httpHeaders: { "retry-after": "1" }, grpc: 14, text: CANNOT_VERIFY };
export const BROKEN: Refusal = { http: 500, httpHeaders: {}, grpc: 13, text: CANNOT_VERIFY };

/** Has `end` called when the key that let a stream in is not valid any more; returns what says that it has ended. */
export type Hold = (end: (refusal: Refusal) => void) => () => void;

export type Judgement =
  | { readonly verification: Verification; readonly refusal?: undefined; readonly hold: Hold }
  | { readonly refusal: Refusal };

/** Returns who may pass, or how to refuse. It never fails: what goes wrong is refused, the logger's failures included. */
export async function judge<Request>(
  verifier: Verifier,
  options: GuardOptions<Request>,
  request: Request,
  headers: () => Iterable<Header>,
  peer: string | undefined,
): Promise<Judgement> {
  const { requiredScopes, environmentId, projectId, clientIp } = options;
  try {
    const found = credentialOf(headers());
    if (found.credential === undefined) {
      if (found.refused === "ambiguous") tell(options, "info", "denied: more than one credential");
      return { refusal: NOT_ACCEPTED };
    }
    const demanded = typeof requiredScopes === "function" ? requiredScopes(request) : requiredScopes;
    // A function that has no answer, say a look-up of a method that was forgotten, lets nobody in.
    if (typeof requiredScopes === "function" && !Array.isArray(demanded)) return { refusal: NOT_ENOUGH };
    const question = {
      requiredScopes: demanded,
      environmentId,
      projectId,
      clientIp: clientIp ? clientIp(request) : address(peer),
    };
    // A verifier that is not ours, in a test for example, may know nothing but to verify.
    const sessions: Verifier["sessions"] | undefined = verifier.sessions;
    const since = sessions?.words;
    const key = found.credential;
    const verification = await verifier.verify(key, question);
    const refusal = refusalAfter(verification, options);
    if (refusal !== undefined) return { refusal };
    const hold: Hold = (end) => {
      if (sessions === undefined || since === undefined || options.endStreams === false) return () => {};
      const until = verifier.until(key, verification);
      return sessions.open(key, question, verification.keyId, until, since, (outcome) =>
        end(refusalAfter(outcome, options) ?? BROKEN),
      );
    };
    return { verification, hold };
  } catch (error) {
    return { refusal: refusalWithout(error, options) };
  }
}

/** Returns how to refuse after a verdict, or where there is none; undefined: it may pass. */
function refusalAfter(outcome: Verification | Error, options: { logger?: Logger }): Refusal | undefined {
  if (outcome instanceof Error) return refusalWithout(outcome, options);
  if (outcome.valid) return undefined;
  tell(options, "info", `denied: ${outcome.code}, key ${outcome.keyId || "unknown"}`);
  return refusalOf(outcome);
}

function refusalWithout(error: unknown, options: { logger?: Logger }): Refusal {
  const known = error instanceof UnavailableError || error instanceof NotAllowedError;
  const told = known || error instanceof InvalidRequestError;
  const why = told ? error.message : "a function of the guard's options failed";
  tell(options, "error", `undecided: ${why}`);
  return known ? UNAVAILABLE : BROKEN;
}

/** Logs. A log that cannot be written changes nothing of what a guard does. */
export function tell({ logger = defaultLogger }: { logger?: Logger }, level: "info" | "error", message: string): void {
  try {
    logger[level](message);
  } catch {
    // There is nobody left to be told.
  }
}

/** Returns what may be logged of an error that another's code threw. */
export function described(error: unknown): string {
  return String((error instanceof Error && error.stack) || error).replaceAll(KEY_PATTERN, "<key>");
}

// The address of a peer on the same link has a zone, which means nothing to anybody else; so do the peers of Unix
// sockets have none. Both count as unknown: keys that are bound to networks are denied.
function address(peer: string | undefined): string | undefined {
  return peer?.includes("%") ? undefined : peer;
}

function refusalOf({ code }: Verification): Refusal {
  switch (code) {
    case "ENVIRONMENT_MISMATCH":
    case "IP_NOT_ALLOWED":
    case "INSUFFICIENT_SCOPE":
      return NOT_ENOUGH;
    default:
      return NOT_ACCEPTED;
  }
}
