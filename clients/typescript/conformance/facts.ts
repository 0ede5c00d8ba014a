import { parseNetwork } from "../src/address.js";
import type { Demand, Facts } from "../src/decide.js";

/** A record as in `tests/vectors/verify.json`. */
export interface VectorRecord {
  project_id: string;
  environment_id?: string;
  scopes?: string[];
  allowed_cidrs?: string[];
  active?: boolean;
  revoke_time?: string | null;
  grace_expire_time?: string | null;
  expire_time?: string | null;
}

export interface VectorRequest {
  project_ids?: string[];
  environment_id?: string;
  required_scopes?: string[];
  client_ip?: string;
}

export function factsOf(record: VectorRecord): Facts {
  const orNever = (time: string | null | undefined) => (time ? microsecondsOf(time) : Number.POSITIVE_INFINITY);
  return {
    projectId: record.project_id,
    environmentId: record.environment_id ?? "",
    scopes: record.scopes ?? [],
    networks: (record.allowed_cidrs ?? []).map(parseNetwork),
    active: record.active ?? true,
    revoked: Boolean(record.revoke_time),
    graceExpireTime: orNever(record.grace_expire_time),
    expireTime: orNever(record.expire_time),
  };
}

export function demandOf(request: VectorRequest): Demand {
  return {
    projectId: request.project_ids,
    environmentId: request.environment_id,
    requiredScopes: request.required_scopes,
    clientIp: request.client_ip,
  };
}

export function microsecondsOf(time: string): number {
  const [, seconds, fraction = ""] = /^([^.Z]+)(?:\.(\d{1,6}))?Z$/.exec(time) ?? [];
  return Date.parse(`${seconds}Z`) * 1000 + Number(fraction.padEnd(6, "0"));
}
