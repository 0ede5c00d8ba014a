import { Code, ConnectError } from "@connectrpc/connect";
import { redact } from "./redaction.js";

/** Nothing was decided: deny the request, or let the caller retry. Never a verdict, and never "yes". */
export class TumblerError extends Error {
  override name = "TumblerError";
}

/** The server cannot be reached, does not answer in time or is overloaded, or the verifier is closed. */
export class UnavailableError extends TumblerError {
  override name = "UnavailableError";
}

/**
 * The server refused the verifier's own key, or the key lacks the scope `tumbler:keys:verify`. Or it sees the keys of
 * all projects, and the verifier does not know which of them to accept. Retrying does not help.
 */
export class NotAllowedError extends TumblerError {
  override name = "NotAllowedError";
}

/** A demand has the wrong form: a scope, an address, an environment or a project. The calling code is at fault. */
export class InvalidRequestError extends TumblerError {
  override name = "InvalidRequestError";
}

/** Returns the error for an answer that cannot be true, or that this version cannot read. */
export function badAnswer(): UnavailableError {
  return new UnavailableError("this client version does not understand the server's answer");
}

/** Returns the error that a failed call means for the caller. */
export function fromCall(reason: unknown): TumblerError {
  const error = ConnectError.from(reason);
  const said = describe(error);
  switch (error.code) {
    case Code.Unauthenticated:
    case Code.PermissionDenied:
      return new NotAllowedError(`the server refused the verifier's own key: ${said}`);
    case Code.InvalidArgument:
      return new InvalidRequestError(`the request is invalid: ${said}`);
    default:
      return new UnavailableError(`the call to the server failed: ${said}`);
  }
}

/**
 * Returns a failure as text that may be logged. The original error is not attached to ours, and text that looks like a
 * key is removed from its message: neither is under our control.
 */
export function describe(reason: unknown): string {
  const error = ConnectError.from(reason);
  return `${Code[error.code]}: ${redact(error.rawMessage)}`;
}
