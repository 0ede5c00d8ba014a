/**
 * The verdict: may this key do this now? The rules are those of docs/contract.md, "Verdicts". The server and all
 * clients share them, and `tests/vectors/verify.json` tests them all.
 */

import { contains, type Network, parseAddress } from "./address.js";
import type { ProjectId } from "./projects.js";

/**
 * Why a key is accepted or not. `UNSPECIFIED` is a denial that this version of the library has no name for.
 *
 * For logs and operators, not for the caller who presented the key.
 */
export type Code =
  | "UNSPECIFIED"
  | "VALID"
  | "MALFORMED"
  | "NOT_FOUND"
  | "REVOKED"
  | "SUPERSEDED"
  | "INACTIVE"
  | "EXPIRED"
  | "ENVIRONMENT_MISMATCH"
  | "IP_NOT_ALLOWED"
  | "INSUFFICIENT_SCOPE";

/** What `decide` needs to know of a key. Times are microseconds since 1970. Infinity: never. */
export interface Facts {
  readonly projectId: string;
  readonly environmentId: string;
  readonly scopes: readonly string[];
  /** An undefined entry contains no address. */
  readonly networks: readonly (Network | undefined)[];
  readonly active: boolean;
  readonly revoked: boolean;
  readonly graceExpireTime: number;
  readonly expireTime: number;
}

/** What a key must satisfy. Empty or omitted: any. */
export interface Demand {
  readonly projectId?: ProjectId | undefined;
  readonly environmentId?: string | undefined;
  readonly requiredScopes?: readonly string[] | undefined;
  readonly clientIp?: string | undefined;
}

/** Returns the first reason to deny, in the order of the contract's table, or VALID. Without facts: NOT_FOUND. */
export function decide(facts: Facts | undefined, demand: Demand, now: number): Code {
  if (facts === undefined || excludes(demand, facts.projectId)) return "NOT_FOUND";
  if (facts.revoked) return "REVOKED";
  if (now >= facts.graceExpireTime) return "SUPERSEDED";
  if (!facts.active) return "INACTIVE";
  if (now >= facts.expireTime) return "EXPIRED";
  if (demand.environmentId && facts.environmentId !== demand.environmentId) return "ENVIRONMENT_MISMATCH";
  if (facts.networks.length > 0 && !within(facts.networks, demand.clientIp ?? "")) return "IP_NOT_ALLOWED";
  for (const required of demand.requiredScopes ?? []) {
    if (!anyGrants(facts.scopes, required)) return "INSUFFICIENT_SCOPE";
  }
  return "VALID";
}

/** Returns whether the demand excludes keys of a project. */
export function excludes({ projectId: wanted }: Demand, projectId: string): boolean {
  if (wanted === undefined) return false;
  return typeof wanted === "string" ? wanted !== projectId : !wanted.includes(projectId);
}

function within(networks: readonly (Network | undefined)[], clientIp: string): boolean {
  const address = parseAddress(clientIp);
  return address !== undefined && networks.some((network) => network !== undefined && contains(network, address));
}

function anyGrants(granted: readonly string[], required: string): boolean {
  for (const scope of granted) if (grants(scope, required)) return true;
  return false;
}

function grants(granted: string, required: string): boolean {
  if (granted === required) return true;
  if (granted === "*") return !required.startsWith("tumbler:");
  return granted.endsWith(":*") && required.startsWith(granted.slice(0, -1));
}
