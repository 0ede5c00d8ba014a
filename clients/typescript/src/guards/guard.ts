import { Code } from "@connectrpc/connect";
import { InvalidRequestError, NotAllowedError, UnavailableError } from "../errors.js";
import { defaultLogger, type Logger, safeLogger } from "../logger.js";
import type { ProjectId } from "../projects.js";
import { redact } from "../redaction.js";
import type { Verification } from "../verification.js";
import type { Verifier } from "../verifier.js";
import { credentialOf, type Header } from "./credential.js";

/** The options of a guard. */
export interface GuardOptions<Request> {
  /** Scopes that a key must grant: the same for all requests, or a function of the request. Default: none. */
  readonly requiredScopes?: readonly string[] | ((request: Request) => readonly string[]);

  /** The environment that keys must belong to. Default: any. */
  readonly environmentId?: string;

  /**
   * A project, or several: keys must belong to one of them. This narrows what the verifier accepts, and never widens
   * it. Default: what the verifier accepts.
   */
  readonly projectId?: ProjectId;

  /**
   * Returns the address of a request. Default: the peer's, which behind a proxy is the proxy's. Trust a header only if
   * your proxy sets it.
   */
  readonly clientIp?: (request: Request) => string | undefined;

  /**
   * End what a key let in when the key stops being valid: gRPC calls that stream, responses sent in parts, and upgraded
   * sockets. Unary calls and ordinary responses run to their end. Default true.
   */
  readonly endStreams?: boolean;

  /** Receives why keys were denied (info) and why none can be verified (error). Default: errors go to the console. */
  readonly logger?: Logger;
}

/** The refusal that the caller who presented a key receives. It says nothing about the key. */
export interface Refusal {
  readonly http: number;
  readonly httpHeaders: Readonly<Record<string, string>>;
  /** The gRPC status, the same number in Connect and in grpc-js. */
  readonly grpc: Code;
  readonly text: string;
}

const WHY = {
  ambiguous: "more than one credential",
  incomplete: "as many headers as Node's limit, so there may be more than one credential",
};
const CANNOT_VERIFY = "API keys cannot be verified at the moment";
const KEY_REQUIRED: Refusal = {
  http: 401,
  httpHeaders: { "www-authenticate": "Bearer" },
  grpc: Code.Unauthenticated,
  text: "a valid API key is required",
};
const NOT_ALLOWED: Refusal = {
  http: 403,
  httpHeaders: {},
  grpc: Code.PermissionDenied,
  text: "this API key does not allow that",
};
const UNDECIDED: Refusal = {
  http: 503,
  httpHeaders: { "retry-after": "1" },
  grpc: Code.Unavailable,
  text: CANNOT_VERIFY,
};
export const MISTAKEN: Refusal = { http: 500, httpHeaders: {}, grpc: Code.Internal, text: CANNOT_VERIFY };

/** Calls `end` when the key that let a stream in is no longer valid. Returns the function to call when it has ended. */
export type Hold = (end: (refusal: Refusal) => void) => () => void;

export type CheckResult =
  | { readonly verification: Verification; readonly refusal?: undefined; readonly hold: Hold }
  | { readonly refusal: Refusal };

/** Returns the verification or the refusal. It never rejects: any failure is a refusal, even one of the logger. */
export async function check<Request>(
  verifier: Verifier,
  options: GuardOptions<Request>,
  request: Request,
  headers: () => Iterable<Header> | undefined,
  peer: string | undefined,
): Promise<CheckResult> {
  const { requiredScopes, environmentId, projectId, clientIp } = options;
  try {
    const found = credentialOf(headers());
    if (found.credential === undefined) {
      if (found.refused !== "missing") tell(options, "info", `denied: ${WHY[found.refused]}`);
      return { refusal: KEY_REQUIRED };
    }
    const demanded = typeof requiredScopes === "function" ? requiredScopes(request) : requiredScopes;
    // A function without a result, say a look-up of an unlisted method, lets no one in.
    if (typeof requiredScopes === "function" && !Array.isArray(demanded)) {
      tell(options, "info", "denied: no scopes are listed for this request");
      return { refusal: NOT_ALLOWED };
    }
    const demand = {
      requiredScopes: demanded,
      environmentId,
      projectId,
      clientIp: clientIp ? clientIp(request) : address(peer),
    };
    // A verifier that is not ours, in a test for example, may have no sessions.
    const sessions = verifier.sessions as Verifier["sessions"] | undefined;
    const since = sessions?.changeCount;
    const key = found.credential;
    const verification = await verifier.verify(key, demand);
    const refusal = refusalFor(verification, options);
    if (refusal !== undefined) return { refusal };
    const hold: Hold = (end) => {
      if (sessions === undefined || since === undefined || options.endStreams === false) return () => {};
      const until = verifier.until(key, verification);
      return sessions.open(key, demand, verification.keyId, until, since, (outcome) =>
        end(refusalFor(outcome, options) ?? MISTAKEN),
      );
    };
    return { verification, hold };
  } catch (error) {
    return { refusal: refusalForError(error, options) };
  }
}

/** Returns the refusal that follows from a verdict or an error, or undefined if the request may pass. */
function refusalFor(outcome: Verification | Error, options: { logger?: Logger }): Refusal | undefined {
  if (outcome instanceof Error) return refusalForError(outcome, options);
  if (outcome.valid) return undefined;
  tell(options, "info", `denied: ${outcome.code}, key ${outcome.keyId || "unknown"}`);
  return refusalForVerdict(outcome);
}

function refusalForError(error: unknown, options: { logger?: Logger }): Refusal {
  const known = error instanceof UnavailableError || error instanceof NotAllowedError;
  const told = known || error instanceof InvalidRequestError;
  const why = told ? error.message : "a function of the guard's options failed";
  tell(options, "error", `undecided: ${why}`);
  return known ? UNDECIDED : MISTAKEN;
}

/** Logs. A logger that fails does not change what a guard does. */
export function tell({ logger = defaultLogger }: { logger?: Logger }, level: "info" | "error", message: string): void {
  safeLogger(logger)[level](message);
}

/** Returns what may be logged of an error from other code. */
export function described(error: unknown): string {
  return redact(String((error instanceof Error && error.stack) || error));
}

// The address of a peer on the same link has a zone, which means nothing elsewhere. A Unix socket's peer has no
// address. Both count as unknown, so keys that are bound to networks are denied.
function address(peer: string | undefined): string | undefined {
  return peer?.includes("%") ? undefined : peer;
}

function refusalForVerdict({ code }: Verification): Refusal {
  switch (code) {
    case "ENVIRONMENT_MISMATCH":
    case "IP_NOT_ALLOWED":
    case "INSUFFICIENT_SCOPE":
      return NOT_ALLOWED;
    default:
      return KEY_REQUIRED;
  }
}
