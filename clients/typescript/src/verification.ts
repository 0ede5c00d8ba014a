import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { parseNetwork } from "./address.js";
import type { Code, Facts } from "./decide.js";
import { VerifyCode, type VerifyResponse } from "./gen/tumbler/v1/api_key_service_pb.js";

/**
 * The outcome of a verification. **Every object is true to JavaScript: ask for `valid`.**
 *
 * With MALFORMED and NOT_FOUND everything about the key is empty: nothing is told of a key that was not proven.
 */
export interface Verification {
  /** True if and only if the key may do what was asked, now. */
  readonly valid: boolean;
  /** Why. Show it to operators and logs, not to whoever presented the key. */
  readonly code: Code;
  readonly keyId: string;
  readonly projectId: string;
  /** Empty: the key belongs to no environment. */
  readonly environmentId: string;
  /** On whose behalf the key acts, as your own service said when it made the key. */
  readonly ownerId: string;
  readonly name: string;
  /** All that the key grants, not only what was asked for. Frozen. */
  readonly scopes: readonly string[];
  /** What was attached to the key. Frozen, and without a prototype. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The first instant at which the key is not accepted; undefined: it never expires. */
  readonly expireTime: Date | undefined;
  /** Whether memory answered, without a call. */
  readonly cached: boolean;
}

/** What an answer tells of a key: what verdicts depend on, and what is handed to whoever verifies it. */
export interface KeyRecord extends Facts {
  readonly keyId: string;
  readonly ownerId: string;
  readonly name: string;
  readonly metadata: Readonly<Record<string, string>>;
}

const NOTHING_PROVEN: KeyRecord = {
  keyId: "",
  projectId: "",
  environmentId: "",
  ownerId: "",
  name: "",
  scopes: Object.freeze([]),
  metadata: Object.freeze(Object.create(null)),
  networks: [],
  active: false,
  revoked: false,
  graceExpireTime: Number.POSITIVE_INFINITY,
  expireTime: Number.POSITIVE_INFINITY,
};

/** Returns the outcome that a verdict makes of what is known. */
export function verification(code: Code, record: KeyRecord | undefined, cached: boolean): Verification {
  const known = record === undefined || code === "NOT_FOUND" || code === "MALFORMED" ? NOTHING_PROVEN : record;
  return {
    valid: code === "VALID",
    code,
    keyId: known.keyId,
    projectId: known.projectId,
    environmentId: known.environmentId,
    ownerId: known.ownerId,
    name: known.name,
    scopes: known.scopes,
    metadata: known.metadata,
    expireTime: known.expireTime === Number.POSITIVE_INFINITY ? undefined : new Date(known.expireTime / 1000),
    cached,
  };
}

const CODES: Readonly<Partial<Record<VerifyCode, Code>>> = {
  [VerifyCode.VALID]: "VALID",
  [VerifyCode.MALFORMED]: "MALFORMED",
  [VerifyCode.NOT_FOUND]: "NOT_FOUND",
  [VerifyCode.REVOKED]: "REVOKED",
  [VerifyCode.SUPERSEDED]: "SUPERSEDED",
  [VerifyCode.INACTIVE]: "INACTIVE",
  [VerifyCode.EXPIRED]: "EXPIRED",
  [VerifyCode.ENVIRONMENT_MISMATCH]: "ENVIRONMENT_MISMATCH",
  [VerifyCode.IP_NOT_ALLOWED]: "IP_NOT_ALLOWED",
  [VerifyCode.INSUFFICIENT_SCOPE]: "INSUFFICIENT_SCOPE",
};

/** Returns the answer's verdict. */
export function codeOf(response: VerifyResponse): Code {
  return CODES[response.code] ?? "UNSPECIFIED";
}

// The only answers whose record another demand can be decided on: whatever is denied for another reason stays denied.
const OF_A_LIVING_KEY: readonly Code[] = ["VALID", "ENVIRONMENT_MISMATCH", "IP_NOT_ALLOWED", "INSUFFICIENT_SCOPE"];

/** Says whether the verdict shows a key that is neither revoked, superseded, inactive nor expired. */
export function showsLivingKey(code: Code): boolean {
  return OF_A_LIVING_KEY.includes(code);
}

/** Returns what the answer tells of the key. It is shared by everybody who asks, and therefore frozen. */
export function recordOf(response: VerifyResponse): KeyRecord {
  return Object.freeze({
    keyId: response.keyId,
    projectId: response.projectId,
    environmentId: response.environmentId,
    ownerId: response.ownerId,
    name: response.name,
    scopes: Object.freeze([...response.scopes]),
    metadata: Object.freeze(Object.assign(Object.create(null), response.metadata)),
    networks: response.allowedCidrs.map(parseNetwork),
    active: response.code !== VerifyCode.INACTIVE,
    revoked: response.code === VerifyCode.REVOKED,
    graceExpireTime: microseconds(response.graceExpireTime, Number.POSITIVE_INFINITY),
    expireTime: microseconds(response.expireTime, Number.POSITIVE_INFINITY),
  });
}

/** Returns the time in microseconds since 1970: exact until the year 2255, and to 32 microseconds after. */
export function microseconds(time: Timestamp | undefined, unset: number): number {
  return time === undefined ? unset : Number(time.seconds) * 1e6 + Math.floor(time.nanos / 1000);
}
