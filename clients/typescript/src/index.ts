export type { Code } from "./decide.js";
export { InvalidRequestError, NotAllowedError, TumblerError, UnavailableError } from "./errors.js";
export type { GuardOptions } from "./guards/guard.js";
export { isWellFormed, KEY_PATTERN, type ParsedKey, parseKey } from "./keyformat.js";
export type { Logger } from "./logger.js";
export type { Credentials, VerifierOptions } from "./options.js";
export { ANY_PROJECT, type ProjectId } from "./projects.js";
export type { Verification } from "./verification.js";
export { Verifier, type VerifyOptions } from "./verifier.js";
