import { readFileSync } from "node:fs";
import { parseNetwork } from "../src/address.js";
import type { Demand, Facts } from "../src/decide.js";
import { type Check, type Checked, checked, isFlag, isText, list, object, optional } from "./json.js";

/** A record as in `tests/vectors/verify.json`. */
export const isVectorRecord = object({
  project_id: isText,
  environment_id: optional(isText),
  scopes: optional(list(isText)),
  allowed_cidrs: optional(list(isText)),
  active: optional(isFlag),
  revoke_time: optional(isText),
  grace_expire_time: optional(isText),
  expire_time: optional(isText),
});

export const isVectorRequest = object({
  project_ids: optional(list(isText)),
  environment_id: optional(isText),
  required_scopes: optional(list(isText)),
  client_ip: optional(isText),
});

/** Returns the rows of a file in `tests/vectors`. */
export function vectors<Row>(file: string, isRow: Check<Row>): Row[] {
  const url = new URL(`../../../../tests/vectors/${file}.json`, import.meta.url);
  return checked(JSON.parse(readFileSync(url, "utf8")), object({ vectors: list(isRow) })).vectors;
}

export function factsOf(record: Checked<typeof isVectorRecord>): Facts {
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

export function demandOf(request: Checked<typeof isVectorRequest>): Demand {
  return {
    projectId: request.project_ids ?? undefined,
    environmentId: request.environment_id ?? undefined,
    requiredScopes: request.required_scopes ?? undefined,
    clientIp: request.client_ip ?? undefined,
  };
}

export function microsecondsOf(time: string): number {
  const [, seconds = "", fraction = ""] = /^([^.Z]+)(?:\.(\d{1,6}))?Z$/.exec(time) ?? [];
  return Date.parse(`${seconds}Z`) * 1000 + Number(fraction.padEnd(6, "0"));
}
