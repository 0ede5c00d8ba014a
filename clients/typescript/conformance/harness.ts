/**
 * Lets the scenarios of `tests/clients` drive this library: one JSON object per line in and out, answers in any order.
 * Durations are milliseconds.
 */

import { createInterface } from "node:readline";
import { setTimeout as pause, setImmediate as turn } from "node:timers/promises";
import { decide } from "../src/decide.js";
import { InvalidRequestError, NotAllowedError, TumblerError, UnavailableError } from "../src/errors.js";
import { parseKey } from "../src/keyformat.js";
import type { VerifierOptions } from "../src/options.js";
import { ANY_PROJECT } from "../src/projects.js";
import type { Verification } from "../src/verification.js";
import { Verifier, type VerifyOptions } from "../src/verifier.js";
import { demandOf, factsOf, isVectorRecord, isVectorRequest, microsecondsOf } from "./facts.js";
import { type Checked, checked, either, isAnything, isNumber, isText, list, object, optional } from "./json.js";
import { type Services, startServices } from "./streams.js";

const isCommand = object({ id: isAnything, op: isText });

const DEMAND = {
  required_scopes: optional(list(isText)),
  client_ip: optional(isText),
  environment_id: optional(isText),
  project_id: optional(either(isText, list(isText))),
};
const isKey = object({ key: isText });
const isKeyAndDemand = object({ key: isText, ...DEMAND });
const isManyKeys = object({ keys: list(isText), callers: isNumber, ...DEMAND });
const isRace = object({ key: isText, callers: optional(isNumber), ...DEMAND });
const isBench = object({ key: isText, calls: isNumber, ...DEMAND });
const isDecision = object({ record: optional(isVectorRecord), request: isVectorRequest, now: isText });
/** The options are the verifier's to check. */
const isOptions = object<Record<string, unknown>>({});

interface Race {
  stopped: boolean;
  done: Promise<unknown>;
  calls: number;
  cached: number;
  valid: number;
  last_valid_began_us: number | null;
  first_denied_ended_us: number | null;
  errors: Record<string, number>;
}

const OPTIONS: Readonly<Record<string, string>> = {
  target: "target",
  api_key: "apiKey",
  project_id: "projectId",
  cache_size: "cacheSize",
  cache_bytes: "cacheBytes",
  max_staleness: "maxStaleness",
  heartbeat: "heartbeat",
  timeout: "timeout",
  watch: "watch",
  fixed_ttl: "fixedTtl",
  insecure: "insecure",
};

const logger = { info: console.error, warn: console.error, error: console.error };
let opened: VerifierOptions | undefined;
let verifier: Verifier | undefined;
let services: Promise<Services> | undefined;
let race: Race | undefined;

const operations: Readonly<Record<string, (said: unknown) => unknown>> = {
  open(said) {
    const command = checked(said, isOptions);
    const given = Object.entries(OPTIONS).flatMap(([name, option]) =>
      command[name] === undefined || command[name] === null ? [] : [[option, command[name]]],
    );
    const any = command.any_project ? { projectId: ANY_PROJECT } : {};
    const options = { ...Object.fromEntries(given), ...any, logger } as VerifierOptions;
    let made: Verifier;
    try {
      made = new Verifier(options);
    } catch (error) {
      return { error: "option", message: (error as Error).message };
    }
    end();
    verifier = made;
    opened = options;
    return {};
  },

  async verify(said) {
    const command = checked(said, isKeyAndDemand);
    try {
      return shown(await current().verify(command.key, demanded(command)));
    } catch (error) {
      return { error: kind(error), message: (error as Error).message };
    }
  },

  async verify_many(said) {
    const command = checked(said, isManyKeys);
    const codes: Record<string, number> = {};
    const errors: Record<string, number> = {};
    let cached = 0;
    const keys = command.keys.values();
    await together(command.callers, async () => {
      for (const key of keys) {
        try {
          const verification = await current().verify(key, demanded(command));
          count(codes, verification.code);
          if (verification.cached) cached++;
        } catch (error) {
          count(errors, kind(error));
        }
      }
    });
    return { codes, cached, errors };
  },

  race_start(said) {
    const command = checked(said, isRace);
    const started: Race = {
      stopped: false,
      done: Promise.resolve(),
      calls: 0,
      cached: 0,
      valid: 0,
      last_valid_began_us: null,
      first_denied_ended_us: null,
      errors: {},
    };
    started.done = together(command.callers ?? 1, () => run(started, command));
    race = started;
    return {};
  },

  async race_stop() {
    if (race === undefined) throw new Error("no race was started");
    race.stopped = true;
    await race.done;
    const { calls, cached, valid, last_valid_began_us, first_denied_ended_us, errors } = race;
    return { calls, cached, valid, last_valid_began_us, first_denied_ended_us, errors };
  },

  decide(said) {
    const { record, request, now } = checked(said, isDecision);
    return { code: decide(record ? factsOf(record) : undefined, demandOf(request), microsecondsOf(now)) };
  },

  well_formed(said) {
    const parsed = parseKey(checked(said, isKey).key);
    return parsed ? { well_formed: true, prefix: parsed.prefix, key_id: parsed.id } : { well_formed: false };
  },

  size: () => ({ size: current().remembered }),

  bench: (said) => bench(current(), checked(said, isBench), 10_000),

  async bench_uncached(said) {
    if (opened === undefined) throw new Error("open first");
    const uncached = new Verifier({ ...opened, cacheSize: 0 });
    try {
      return await bench(uncached, checked(said, isBench), 100);
    } finally {
      uncached.close();
    }
  },

  async serve() {
    services ??= startServices(current());
    return (await services).told;
  },

  close() {
    end();
    return {};
  },
};

async function run(started: Race, command: Checked<typeof isRace>): Promise<void> {
  while (!started.stopped) {
    const began = microsecondsNow();
    let cached = false;
    started.calls++;
    try {
      const verification = await current().verify(command.key, demanded(command));
      cached = verification.cached;
      if (cached) started.cached++;
      if (verification.valid) {
        started.valid++;
        started.last_valid_began_us = Math.max(started.last_valid_began_us ?? 0, began);
      } else {
        started.first_denied_ended_us ??= microsecondsNow();
      }
    } catch (error) {
      count(started.errors, kind(error));
    }
    // The stream is read between two turns of the event loop.
    await (cached ? turn() : pause(1));
  }
}

async function bench(subject: Verifier, command: Checked<typeof isBench>, warmUp: number): Promise<unknown> {
  const demand = demanded(command);
  for (let call = 0; call < warmUp; call++) await subject.verify(command.key, demand);
  let cached = 0;
  const began = process.hrtime.bigint();
  for (let call = 0; call < command.calls; call++) {
    if ((await subject.verify(command.key, demand)).cached) cached++;
  }
  return { ns_per_call: Number(process.hrtime.bigint() - began) / command.calls, cached };
}

function current(): Verifier {
  if (verifier === undefined) throw new Error("open first");
  return verifier;
}

function demanded(command: Omit<Checked<typeof isKeyAndDemand>, "key">): VerifyOptions {
  return {
    requiredScopes: command.required_scopes ?? undefined,
    clientIp: command.client_ip ?? undefined,
    environmentId: command.environment_id ?? undefined,
    projectId: command.project_id ?? undefined,
  };
}

function shown(verification: Verification): unknown {
  const { valid, code, name, scopes, metadata, cached } = verification;
  return {
    valid,
    code,
    key_id: verification.keyId,
    project_id: verification.projectId,
    environment_id: verification.environmentId,
    owner_id: verification.ownerId,
    name,
    scopes,
    metadata,
    expire_time: verification.expireTime?.toISOString().replace(/\.000Z$/, "Z") ?? null,
    cached,
  };
}

function end(): void {
  verifier?.close();
  void services?.then((started) => started.stop());
  services = undefined;
}

function kind(error: unknown): string {
  if (error instanceof UnavailableError) return "unavailable";
  if (error instanceof NotAllowedError) return "not_allowed";
  if (error instanceof InvalidRequestError) return "invalid_request";
  if (error instanceof TumblerError) return "tumbler";
  throw error;
}

function together(callers: number, run: () => Promise<void>): Promise<unknown> {
  return Promise.all(Array.from({ length: callers }, run));
}

function count(counts: Record<string, number>, what: string): void {
  counts[what] = (counts[what] ?? 0) + 1;
}

function microsecondsNow(): number {
  return Math.round((performance.timeOrigin + performance.now()) * 1000);
}

async function answer(line: string): Promise<void> {
  let id: unknown;
  let said: unknown;
  try {
    const command = checked(JSON.parse(line), isCommand);
    id = command.id;
    said = Object.hasOwn(operations, command.op) ? await operations[command.op]?.(command) : { error: "op" };
  } catch (error) {
    said = { error: "internal", message: String(error) };
  }
  process.stdout.write(`${JSON.stringify({ id, ...(said as object) })}\n`);
}

const underWay = new Set<Promise<void>>();
for await (const line of createInterface({ input: process.stdin })) {
  const one = answer(line).finally(() => underWay.delete(one));
  underWay.add(one);
}
if (race) race.stopped = true;
await Promise.all(underWay);
end();
