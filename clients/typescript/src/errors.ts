import { Code, ConnectError } from "@connectrpc/connect";
import { KEY_PATTERN } from "./keyformat.js";

/** Nothing was decided, so the request at hand must be denied, or tried again. Never a verdict, and never "yes". */
export class TumblerError extends Error {
  override name = "TumblerError";
}

/** The server cannot be reached, does not answer in time, has too much to do, or the verifier is closed. */
export class UnavailableError extends TumblerError {
  override name = "UnavailableError";
}

/**
 * The verifier's own key is refused, or lacks the scope `tumbler:keys:verify`; or it sees the keys of all projects, and it
 * was not said whose to accept. Waiting does not mend it.
 */
export class NotAllowedError extends TumblerError {
  override name = "NotAllowedError";
}

/** A required scope, the address, the environment or a project is not of the right form: the code that asked is at fault. */
export class InvalidRequestError extends TumblerError {
  override name = "InvalidRequestError";
}

/** Returns what a failed call means for whoever asked. */
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
 * Returns a failure in words that may be logged. The original is not attached to our errors, and what reads like a key
 * is cut out of its text: neither is ours to vouch for.
 */
export function describe(reason: unknown): string {
  const error = ConnectError.from(reason);
  return `${Code[error.code]}: ${error.rawMessage.replaceAll(KEY_PATTERN, "<key>")}`;
}
