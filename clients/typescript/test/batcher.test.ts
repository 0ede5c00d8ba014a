/** The work that a verifier has with many keys at a time grows with their number, not with its square. */

import assert from "node:assert/strict";
import test from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Answer, Batcher } from "../src/batcher.js";
import { UnavailableError } from "../src/errors.js";
import type { Service } from "../src/service.js";
import { StreamState } from "../src/stream-state.js";
import { VerifyCode, VerifyResponseSchema } from "../src/v1.js";
import { recordOf } from "../src/verification.js";
import { FakeClock } from "./fake-clock.js";
import { idOf, makeKey } from "./fake-server.js";

const KEYS = Array.from({ length: 40_000 }, (_, number) => makeKey(String(number)));
const BATCH = 500;
/** Milliseconds of CPU. With a pass over all keys, the events take 36 s and the retries 5 s. */
const MOST = 3_000;
const VALID = create(VerifyResponseSchema, { valid: true, code: VerifyCode.VALID });
const ANSWER: Answer = { code: "VALID", record: recordOf(VALID), clockOffset: 0, sentAt: 0, expiresAt: 0 };

function batcher(verify: Service["verify"]): Batcher {
  const service = { verify, reconnect() {} } as unknown as Service;
  return new Batcher(
    service,
    new StreamState(15_000, 5_000),
    "",
    2_000,
    new FakeClock(),
    () => ANSWER,
    () => {},
  );
}

for (const extra of [-1, 1]) {
  test(`a batch with ${extra} answers too many is a bad answer for all its keys, and none is checked`, async () => {
    let sent = 0;
    let checked = 0;
    const open: (() => void)[] = [];
    const service = {
      verify: (requests: readonly unknown[]) => {
        sent++;
        const answers = Array.from({ length: requests.length === 1 ? 1 : requests.length + extra }, () => VALID);
        return new Promise((resolve) => open.push(() => resolve(answers)));
      },
      reconnect() {},
    } as unknown as Service;
    const check = () => {
      checked++;
      return ANSWER;
    };
    const state = new StreamState(15_000, 5_000);
    const flights = new Batcher(service, state, "", 2_000, new FakeClock(), check, () => {});
    const outcomes = Promise.allSettled(KEYS.slice(0, 24).map((key) => flights.start(key, {}).outcome));
    while (open.length > 0) {
      open.shift()?.();
      await turn();
    }
    const failed = (await outcomes).filter(
      (outcome) => outcome.status === "rejected" && outcome.reason instanceof UnavailableError,
    );
    assert.deepEqual([failed.length, checked, sent], [20, 4, 5]);
  });
}

function spent(since: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(since);
  return (user + system) / 1_000;
}

test("an event costs no look at the other keys in flight", () => {
  const flights = batcher(() => new Promise(() => {}));
  for (const key of KEYS) flights.start(key, {});
  const began = process.cpuUsage();
  for (const key of KEYS) flights.detach(idOf(key));
  assert.ok(spent(began) < MOST, `${spent(began)} ms`);
});

test("the halves of a batch are retried without a copy of the queue, and only the key at fault fails", async () => {
  const bad = new Set(KEYS.filter((_, place) => place % BATCH === 0));
  const flights = batcher((requests) =>
    requests.some(({ key = "" }) => bad.has(key))
      ? Promise.reject(new ConnectError("one of them is bad", Code.InvalidArgument))
      : Promise.resolve(requests.map(() => VALID)),
  );
  const began = process.cpuUsage();
  const outcomes = await Promise.allSettled(KEYS.map((key) => flights.start(key, {}).outcome));
  assert.ok(spent(began) < MOST, `${spent(began)} ms`);
  const failed = KEYS.filter((_, place) => outcomes[place]?.status === "rejected");
  assert.deepEqual(failed, [...bad]);
});
