import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { parseNetwork } from "./address.js";
import type { Code, Facts } from "./decide.js";
import { VerifyCode, type VerifyResponse } from "./gen/tumbler/v1/api_key_service_pb.js";

/**
 * The verdict on a presented key, and the key's identity. **Every object is truthy in JavaScript: check `valid`.**
 *
 * With MALFORMED and NOT_FOUND all fields about the key are empty.
 */
export interface Verification {
  /** Whether the key may do what was asked, now. */
  readonly valid: boolean;
  /** The reason. For logs and operators, not for the caller who presented the key. */
  readonly code: Code;
  readonly keyId: string;
  readonly projectId: string;
  /** The key's environment. Empty if it has none. */
  readonly environmentId: string;
  /** On whose behalf the key acts, as its creator wrote it. May be empty. */
  readonly ownerId: string;
  readonly name: string;
  /** All scopes that the key grants, not only the required ones. Frozen. */
  readonly scopes: readonly string[];
  /** The key's metadata. Frozen, and without a prototype. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The first instant at which the key is not accepted. Undefined if it never expires. */
  readonly expireTime: Date | undefined;
  /** Whether a cached record decided this, without a call. */
  readonly cached: boolean;
}

/** What an answer says about a key: the facts that verdicts depend on, and the fields that callers receive. */
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
  metadata: Object.freeze(Object.create(null) as Record<string, string>),
  networks: [],
  active: false,
  revoked: false,
  graceExpireTime: Number.POSITIVE_INFINITY,
  expireTime: Number.POSITIVE_INFINITY,
};

/** Returns the result of a verification with this verdict. */
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

// Only these verdicts depend on the demand, so only their records can decide another demand.
const DEPENDS_ON_DEMAND: readonly Code[] = ["VALID", "ENVIRONMENT_MISMATCH", "IP_NOT_ALLOWED", "INSUFFICIENT_SCOPE"];

/** Returns whether the verdict shows a key that is neither revoked, superseded, inactive nor expired. */
export function dependsOnDemand(code: Code): boolean {
  return DEPENDS_ON_DEMAND.includes(code);
}

/** Returns the record in an answer. It is frozen, because all callers share it. */
export function recordOf(response: VerifyResponse): KeyRecord {
  return Object.freeze({
    keyId: response.keyId,
    projectId: response.projectId,
    environmentId: response.environmentId,
    ownerId: response.ownerId,
    name: response.name,
    scopes: Object.freeze([...response.scopes]),
    metadata: Object.freeze(Object.assign(Object.create(null) as Record<string, string>, response.metadata)),
    networks: response.allowedCidrs.map(parseNetwork),
    active: response.code !== VerifyCode.INACTIVE,
    revoked: response.code === VerifyCode.REVOKED,
    graceExpireTime: microseconds(response.graceExpireTime, Number.POSITIVE_INFINITY),
    expireTime: microseconds(response.expireTime, Number.POSITIVE_INFINITY),
  });
}

/** Returns whether an answer about a proven key has a check time, and all its times exist. */
export function hasValidTimes({ checkTime, expireTime, graceExpireTime }: VerifyResponse): boolean {
  return checkTime !== undefined && [checkTime, expireTime, graceExpireTime].every((time) => !time || exists(time));
}

/** Returns whether a time is one of the years 1 to 9999, as protobuf demands. */
function exists({ seconds, nanos }: Timestamp): boolean {
  return seconds >= -62_135_596_800n && seconds <= 253_402_300_799n && nanos >= 0 && nanos < 1_000_000_000;
}

/** Returns the time in microseconds since 1970. Exact until the year 2255, then to 32 microseconds. */
export function microseconds(time: Timestamp | undefined, unset: number): number {
  return time === undefined ? unset : Number(time.seconds) * 1e6 + Math.floor(time.nanos / 1000);
}
