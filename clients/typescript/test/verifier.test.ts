import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import test, { type TestContext } from "node:test";
import { inspect } from "node:util";
import { getHeapSnapshot } from "node:v8";
import { Code, ConnectError } from "@connectrpc/connect";
import { InvalidRequestError, NotAllowedError, TumblerError, UnavailableError } from "../src/errors.js";
import type { Logger } from "../src/logger.js";
import type { VerifierOptions } from "../src/options.js";
import { VerifyCode } from "../src/v1.js";
import { Verifier } from "../src/verifier.js";
import { FakeClock } from "./fake-clock.js";
import { CHECK_TIME, denied, FakeServer, idOf, makeKey, type Stream, until, valid } from "./fake-server.js";

const OWN = makeKey("own", "1");
const KEY = makeKey("a");
const OTHER = makeKey("b");
// eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- a newer server may have codes that this enum lacks
const UNKNOWN = 99 as VerifyCode;

interface Scene {
  server: FakeServer;
  clock: FakeClock;
  verifier: Verifier;
  logged: string[];
  /** The first stream, which has sent one message: the cache may answer. */
  stream: Stream;
}

async function open(t: TestContext, options: Partial<VerifierOptions> = {}): Promise<Omit<Scene, "stream">> {
  const server = await FakeServer.start();
  const clock = new FakeClock();
  const logged: string[] = [];
  const log = (message: string) => logged.push(message);
  const logger = { info: log, warn: log, error: log };
  const verifier = new Verifier({ target: server.target, apiKey: OWN, logger, timeout: 60_000, ...options }, clock);
  t.after(() => {
    verifier.close();
    server.close();
    assert.doesNotMatch(logged.join("\n"), /tmb_/);
  });
  return { server, clock, verifier, logged };
}

async function listening(t: TestContext, options: Partial<VerifierOptions> = {}): Promise<Scene> {
  const scene = await open(t, options);
  const stream = await scene.server.stream();
  await greet(scene, stream);
  return { ...scene, stream };
}

/** Sends the stream's first cursor, and returns when the cache answers. */
async function greet({ server, verifier }: Omit<Scene, "stream">, stream: Stream): Promise<void> {
  stream.send({ cursor: "r1" });
  const probe = makeKey("probe");
  await untilAsync(async () => (await verifier.verify(probe)).cached);
  stream.changed(idOf(probe), 1);
  await until(() => verifier.remembered === 0);
  server.calls.length = 0;
}

/** Returns when the verifier has handled all messages of the stream. */
async function handled(stream: Stream, verifier: Verifier): Promise<void> {
  const probe = makeKey("heard");
  await verifier.verify(probe);
  const { remembered } = verifier;
  stream.changed(idOf(probe), 1);
  await until(() => verifier.remembered < remembered);
}

async function untilAsync(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition()));
}

/** Lets time pass until the client opens its next stream. */
async function nextStream({ server, clock }: Omit<Scene, "stream">): Promise<Stream> {
  await until(() => {
    if (!server.hasStream) clock.advance(10);
    return server.hasStream;
  });
  return server.stream();
}

/** Returns all text on this process's heap that is long enough to be part of a key. */
async function heap(): Promise<string> {
  return ((await text(getHeapSnapshot())).match(/[0-9A-Za-z_]{40,}/g) ?? []).join("\n");
}

/** A gate that calls wait at until the test opens it. */
function door(): { pass: () => Promise<void>; open: () => void } {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { pass: () => opened, open: () => open() };
}

test("a remembered key is answered without a call, with everything that is known of it", async (t) => {
  const { server, verifier } = await listening(t);
  server.answer = ({ key }) =>
    valid(key, { environmentId: "live", ownerId: "u1", name: "ci", expireTime: { seconds: 2_000_000_000n } });
  const first = await verifier.verify(KEY, { requiredScopes: ["orders:read"] });
  const second = await verifier.verify(KEY, { requiredScopes: ["orders:read"] });
  assert.deepEqual(
    { ...first, metadata: { ...first.metadata } },
    {
      valid: true,
      code: "VALID",
      keyId: idOf(KEY),
      projectId: "acme",
      environmentId: "live",
      ownerId: "u1",
      name: "ci",
      scopes: ["orders:*"],
      metadata: { plan: "gold" },
      expireTime: new Date(2_000_000_000_000),
      cached: false,
    },
  );
  assert.deepEqual(second, { ...first, cached: true });
  assert.equal(server.calls.length, 1);
  assert.deepEqual([...server.authorizations], [`Bearer ${OWN}`]);
});

test("what one caller receives, no caller can change", async (t) => {
  const { verifier } = await listening(t);
  const { scopes, metadata } = await verifier.verify(KEY);
  assert.throws(() => (scopes as string[]).push("*"), TypeError);
  assert.throws(() => {
    (metadata as Record<string, string>).plan = "free";
  }, TypeError);
});

test("a call carries what is demanded, and the stream's newest cursor", async (t) => {
  const { server, verifier } = await listening(t);
  server.answer = ({ key }) => valid(key, { scopes: ["a", "b"], environmentId: "live" });
  await verifier.verify(KEY, { requiredScopes: ["a", "b"], clientIp: "192.0.2.7", environmentId: "live" });
  const [[request] = []] = server.calls;
  assert.deepEqual(request?.requiredScopes, ["a", "b"]);
  assert.equal(request.clientIp, "192.0.2.7");
  assert.equal(request.environmentId, "live");
  assert.deepEqual(request.consistency?.requirement, { case: "atLeastAsFresh", value: "r1" });
});

for (const [name, text] of [
  ["undefined", undefined],
  ["empty text", ""],
  ["a key with a typing error", KEY.replace("_0", "_1")],
  ["a megabyte", "a".repeat(1_000_000)],
] as const) {
  test(`${name} is MALFORMED without a call`, async (t) => {
    const { server, verifier } = await listening(t);
    const { valid, code, cached } = await verifier.verify(text);
    assert.deepEqual({ valid, code, cached }, { valid: false, code: "MALFORMED", cached: false });
    assert.equal(server.calls.length, 0);
  });
}

test("a change makes it forget that key, and no other", async (t) => {
  const { server, verifier, stream } = await listening(t);
  await verifier.verify(KEY);
  await verifier.verify(OTHER);
  stream.changed(idOf(KEY), 2);
  await until(() => verifier.remembered === 1);
  server.answer = () => ({ ...denied(VerifyCode.REVOKED, idOf(KEY)), revision: 2n });
  assert.equal((await verifier.verify(KEY)).code, "REVOKED");
  assert.equal((await verifier.verify(OTHER)).cached, true);
});

test("a reset makes it forget everything", async (t) => {
  const { verifier, stream } = await listening(t);
  await verifier.verify(KEY);
  await verifier.verify(OTHER);
  stream.send({ reset: true, cursor: "r9" });
  await until(() => verifier.remembered === 0);
  assert.equal((await verifier.verify(KEY)).cached, false);
});

test("a broken stream is opened anew at its newest cursor, and memory is kept meanwhile", async (t) => {
  const scene = await listening(t);
  const { verifier, stream } = scene;
  await verifier.verify(KEY);
  await verifier.verify(OTHER);
  stream.changed(idOf(OTHER), 7);
  await until(() => verifier.remembered === 1);
  stream.fail(Code.Unavailable);
  const second = await nextStream(scene);
  assert.equal(second.request.startCursor, "r7");
  assert.equal((await verifier.verify(KEY)).cached, true);
});

test("a stream that ends without an error is opened anew as well", async (t) => {
  const scene = await open(t);
  scene.server.refuseStreams = () => Code.Unavailable;
  await until(() => {
    scene.clock.advance(10);
    return scene.server.watchAttempts > 3;
  });
  scene.server.refuseStreams = undefined;
  await greet(scene, await nextStream(scene));
});

test("what a stream missed does not prolong memory; the heartbeat after it does", async (t) => {
  const scene = await listening(t, { maxStaleness: 12_000 });
  const { clock, verifier, stream } = scene;
  await verifier.verify(KEY);
  await verifier.verify(OTHER);
  clock.advance(8_000);
  stream.fail(Code.Unavailable);
  const second = await nextStream(scene);
  second.changed(idOf(OTHER), 2);
  await until(() => verifier.remembered === 1);
  clock.advance(5_000);
  assert.equal((await verifier.verify(KEY)).cached, false);
  second.send({ cursor: "r2", streamAge: { seconds: 5n } });
  await untilAsync(async () => (await verifier.verify(KEY)).cached);
});

test("trust counts from the time that a heartbeat is true of, not from its arrival", async (t) => {
  const { clock, verifier, stream } = await listening(t, { heartbeat: 10_000 });
  await verifier.verify(KEY);
  clock.advance(10_000);
  stream.send({ cursor: "r1", streamAge: { seconds: 6n } });
  await handled(stream, verifier);
  clock.advance(10_999);
  assert.equal((await verifier.verify(KEY)).cached, true);
  clock.advance(1);
  assert.equal((await verifier.verify(KEY)).cached, false);
});

for (const [name, messages] of [
  ["is as old as maxStaleness", [{ streamAge: { seconds: 10n } }]],
  ["is the first of a pile", [{ streamAge: { seconds: 1n } }, { streamAge: { seconds: 10n } }]],
  ["is an older server's, and came after trust had lapsed", [{}]],
  ["cannot have been sent yet", [{ streamAge: { seconds: 25n, nanos: 500_000_001 } }]],
  ["says an absurd age", [{ streamAge: { seconds: (1n << 63n) - 1n } }]],
] as const) {
  test(`a heartbeat that ${name} restores no trust, and has another stream opened`, async (t) => {
    const scene = await listening(t, { heartbeat: 14_999 });
    const { clock, verifier, stream } = scene;
    await verifier.verify(KEY);
    clock.advance(25_000);
    for (const message of messages) stream.send({ cursor: "r1", ...message });
    await stream.ended;
    assert.equal((await verifier.verify(KEY)).cached, false);
    const second = await nextStream(scene);
    second.send({ cursor: "r1", streamAge: {} });
    await untilAsync(async () => (await verifier.verify(KEY)).cached);
  });
}

test("a heartbeat that cannot have been sent yet shows that our clock stood still: nothing is trusted", async (t) => {
  const { clock, verifier, stream } = await listening(t);
  await verifier.verify(KEY);
  clock.advance(1_000);
  stream.send({ cursor: "r1", streamAge: { seconds: 1n, nanos: 500_000_000 } });
  await handled(stream, verifier);
  assert.equal((await verifier.verify(KEY)).cached, true);
  stream.send({ cursor: "r1", streamAge: { seconds: 1n, nanos: 500_000_001 } });
  await stream.ended;
  assert.equal((await verifier.verify(KEY)).cached, false);
});

for (const [name, streamAge] of [
  ["negative", { nanos: -1 }],
  ["negative beyond all measure", { seconds: -(1n << 63n), nanos: -999_999_999 }],
] as const) {
  test(`a heartbeat whose stream_age is ${name} ends trust and the stream`, async (t) => {
    const scene = await listening(t);
    const { verifier, stream } = scene;
    await verifier.verify(KEY);
    stream.send({ cursor: "r1", streamAge });
    await stream.ended;
    assert.equal((await verifier.verify(KEY)).cached, false);
    (await nextStream(scene)).send({ cursor: "r1", streamAge: {} });
    await untilAsync(async () => (await verifier.verify(KEY)).cached);
  });
}

test("a message without a cursor keeps the one that is known", async (t) => {
  const scene = await listening(t);
  const { server, verifier, stream } = scene;
  await verifier.verify(KEY);
  stream.send({ streamAge: {} });
  stream.send({ events: [{ keyId: idOf(KEY), revision: 1n }] });
  await until(() => verifier.remembered === 0);
  await verifier.verify(KEY);
  assert.deepEqual(server.calls.at(-1)?.[0]?.consistency?.requirement, { case: "atLeastAsFresh", value: "r1" });
  assert.equal((await verifier.verify(KEY)).cached, true);
  stream.fail(Code.Unavailable);
  assert.equal((await nextStream(scene)).request.startCursor, "r1");
});

test("nothing is remembered until the stream has sent a cursor", async (t) => {
  const { server, verifier, clock } = await open(t);
  const stream = await server.stream();
  stream.send({ streamAge: {} });
  stream.send({ events: [{ keyId: idOf(OTHER), revision: 1n }] });
  for (let turns = 0; turns < 20; turns++) assert.equal((await verifier.verify(KEY)).cached, false);
  assert.equal(verifier.remembered, 0);
  stream.send({ cursor: "r1", streamAge: {} });
  await untilAsync(async () => (await verifier.verify(KEY)).cached);
  assert.equal(clock.now(), 1_000);
});

test("a record with a lifetime beyond all measure is remembered, and one with a negative lifetime is not", async (t) => {
  const { server, verifier } = await listening(t);
  for (const [seconds, cached] of [
    [1n << 62n, true],
    [-(1n << 63n), false],
    [-1n, false],
  ] as const) {
    const key = makeKey(String(Math.abs(Number(seconds)) % 97) + String(cached));
    server.answer = (request) => valid(request.key, { cacheTtl: { seconds } });
    assert.equal((await verifier.verify(key)).code, "VALID");
    assert.equal((await verifier.verify(key)).cached, cached);
  }
});

test("a stream is opened anew as soon as trust would lapse between two of its heartbeats", async (t) => {
  const scene = await listening(t, { heartbeat: 6_000 });
  const { clock, verifier, stream } = scene;
  await verifier.verify(KEY);
  clock.advance(10_000);
  stream.send({ cursor: "r1", streamAge: { seconds: 1n } });
  await handled(stream, verifier);
  stream.send({ cursor: "r1", streamAge: { nanos: 999_000_000 } });
  await stream.ended;
  assert.equal((await verifier.verify(KEY)).cached, true);
});

test("memory answers until the stream's last word is maxStaleness old, and not a millisecond longer", async (t) => {
  const { clock, verifier } = await listening(t, { heartbeat: 10_000 });
  await verifier.verify(KEY);
  clock.advance(14_999);
  assert.equal((await verifier.verify(KEY)).cached, true);
  clock.advance(1);
  assert.equal((await verifier.verify(KEY)).cached, false);
});

test("nothing is remembered while the stream is stale", async (t) => {
  const { server, verifier } = await open(t);
  await verifier.verify(KEY);
  assert.equal((await verifier.verify(KEY)).cached, false);
  assert.equal(server.calls.length, 2);
});

test("a stream that is silent for two and a half heartbeats is given up", async (t) => {
  const scene = await listening(t);
  scene.clock.advance(12_499);
  assert.equal(scene.server.watchAttempts, 1);
  scene.clock.advance(1);
  await scene.stream.ended;
  const second = await nextStream(scene);
  assert.equal(second.request.startCursor, "r1");
  assert.equal(second.request.heartbeatInterval?.seconds, 5n);
});

test("memory answers until the record's cache_ttl is over, counted from before the call", async (t) => {
  const { server, clock, verifier } = await listening(t, { heartbeat: 10_000 });
  server.answer = ({ key }) => {
    clock.advance(500);
    return valid(key, { cacheTtl: { seconds: 2n } });
  };
  await verifier.verify(KEY);
  clock.advance(1_499);
  assert.equal((await verifier.verify(KEY)).cached, true);
  clock.advance(1);
  assert.equal((await verifier.verify(KEY)).cached, false);
});

test("an answer that is older than a change that was told meanwhile is not remembered", async (t) => {
  const { server, verifier, stream } = await listening(t);
  await verifier.verify(OTHER);
  const wait = door();
  server.beforeCall = wait.pass;
  const asked = verifier.verify(KEY);
  await until(() => server.calls.length === 2);
  stream.changed(idOf(KEY), 5);
  stream.changed(idOf(OTHER), 6);
  await until(() => verifier.remembered === 0);
  wait.open();
  assert.equal((await asked).code, "VALID");
  assert.equal(verifier.remembered, 0);
  server.answer = ({ key }) => valid(key, { revision: 5n });
  await verifier.verify(KEY);
  assert.equal((await verifier.verify(KEY)).cached, true);
});

test("an answer to a call from before a reset is not remembered, whatever its revision", async (t) => {
  const { server, verifier, stream } = await listening(t);
  await verifier.verify(OTHER);
  const wait = door();
  server.beforeCall = wait.pass;
  server.answer = ({ key }) => valid(key, { revision: 99n });
  const asked = verifier.verify(KEY);
  await until(() => server.calls.length === 2);
  stream.send({ reset: true, cursor: "r9" });
  await until(() => verifier.remembered === 0);
  wait.open();
  await asked;
  assert.equal(verifier.remembered, 0);
});

for (const watch of [true, false]) {
  for (const code of [VerifyCode.VALID, VerifyCode.REVOKED, VerifyCode.NOT_FOUND]) {
    test(`an answer ${VerifyCode[code]} later than maxStaleness decides nothing ${watch ? "" : "without a stream"}`, async (t) => {
      const options = { maxStaleness: 3_000, heartbeat: 2_000 };
      const scene = watch ? await listening(t, options) : await open(t, { ...options, watch, fixedTtl: 50_000 });
      const { server, clock, verifier } = scene;
      let age = 3_001;
      server.answer = ({ key }) => {
        clock.advance(age);
        return valid(key, { code, valid: code === VerifyCode.VALID });
      };
      await assert.rejects(verifier.verify(KEY), { name: "UnavailableError", message: /too old/ });
      assert.equal(verifier.remembered, 0);
      age = 3_000;
      assert.equal((await verifier.verify(OTHER)).code, VerifyCode[code]);
    });
  }
}

test("how old an answer is counts where it is handed out, for each that waits", async (t) => {
  const { server, clock, verifier } = await listening(t, { maxStaleness: 3_000, heartbeat: 2_000 });
  server.answer = ({ key }) => {
    clock.advance(2_000);
    return valid(key);
  };
  const demands = [[], ["orders:read"], ["users:read"]];
  const asked = demands.map((requiredScopes) => verifier.verify(KEY, { requiredScopes }));
  const ended = Promise.all(asked.map((one) => assert.rejects(one, UnavailableError)));
  const now = clock.now.bind(clock);
  // Between the check of the answer, which caches it, and the callers, who get it in later microtasks.
  clock.now = () => now() + (verifier.remembered > 0 ? 1_001 : 0);
  await ended;
});

for (const code of [VerifyCode.VALID, VerifyCode.REVOKED, UNKNOWN]) {
  test(`an answer (${code}) older than an event that came before its call decides nothing`, async (t) => {
    const { server, verifier, stream } = await listening(t);
    let revision = 99n;
    server.answer = ({ key }) =>
      valid(key, key === KEY ? { code, valid: code === VerifyCode.VALID, revision } : { revision: 100n });
    stream.send({
      events: [
        { keyId: idOf(KEY), revision: 100n },
        { keyId: idOf(KEY), revision: 50n },
      ],
      cursor: "r100",
    });
    await handled(stream, verifier);
    await assert.rejects(verifier.verify(KEY), UnavailableError);
    assert.equal((await verifier.verify(KEY).catch(() => undefined))?.cached, undefined);
    revision = 100n;
    const { valid: allowed } = await verifier.verify(KEY);
    assert.equal(allowed, code === VerifyCode.VALID);
  });
}

test("an event that comes during the call, or from before a reset, does not spoil an answer", async (t) => {
  const { server, verifier, stream } = await listening(t);
  const wait = door();
  await verifier.verify(OTHER);
  server.beforeCall = wait.pass;
  const during = verifier.verify(KEY);
  await until(() => server.calls.length === 2);
  stream.changed(idOf(KEY), 9);
  stream.changed(idOf(OTHER), 1);
  await until(() => verifier.remembered === 0);
  wait.open();
  assert.equal((await during).code, "VALID");
  assert.equal(verifier.remembered, 0);
  await assert.rejects(verifier.verify(KEY), UnavailableError);
  await verifier.verify(OTHER);
  const { remembered } = verifier;
  stream.send({ reset: true, cursor: "r1" });
  await until(() => verifier.remembered < remembered);
  assert.equal((await verifier.verify(KEY)).code, "VALID");
});

for (const [name, reply] of [
  ["that is denied for good", () => denied(VerifyCode.REVOKED, idOf(KEY))],
  ["that nothing is known of", () => denied(VerifyCode.NOT_FOUND)],
  ["without a cache_ttl", (key: string) => valid(key, { cacheTtl: undefined })],
  ["with a cache_ttl of zero", (key: string) => valid(key, { cacheTtl: {} })],
] as const) {
  test(`an answer ${name} is not remembered`, async (t) => {
    const { server, verifier } = await listening(t);
    server.answer = ({ key }) => reply(key);
    await verifier.verify(KEY);
    assert.equal(verifier.remembered, 0);
  });
}

for (const [code, record, demand] of [
  [VerifyCode.ENVIRONMENT_MISMATCH, { environmentId: "live" }, { environmentId: "test" }],
  [VerifyCode.IP_NOT_ALLOWED, { allowedCidrs: ["192.0.2.0/24"] }, {}],
  [VerifyCode.INSUFFICIENT_SCOPE, {}, { requiredScopes: ["x"] }],
] as const) {
  test(`an answer ${VerifyCode[code]} is remembered, and serves other demands`, async (t) => {
    const { server, verifier } = await listening(t);
    server.answer = ({ key }) => valid(key, { valid: false, code, ...(record as object) });
    assert.equal((await verifier.verify(KEY, demand)).valid, false);
    const other = { requiredScopes: ["orders:read"], clientIp: "192.0.2.7" };
    const { valid: allowed, cached } = await verifier.verify(KEY, other);
    assert.deepEqual({ allowed, cached }, { allowed: true, cached: true });
  });
}

for (const [name, reply] of [
  ["of another key", { keyId: idOf(OTHER) }],
  ["of no key", { keyId: "" }],
  ["without a time", { checkTime: undefined }],
  ["VALID that is not valid", { valid: false }],
  ["valid without VALID", { code: VerifyCode.NOT_FOUND }],
  ["valid with a code that this library does not know", { code: 99 }],
] as const) {
  test(`an answer ${name} decides nothing, and is not remembered`, async (t) => {
    const { server, verifier } = await listening(t);
    server.answer = ({ key }) => valid(key, reply as object);
    await assert.rejects(verifier.verify(KEY), UnavailableError);
    assert.equal(verifier.remembered, 0);
  });
}

for (const [name, reply] of [
  ["about another key", { keyId: idOf(OTHER) }],
  ["about no key", { keyId: "" }],
  ["without a time", { checkTime: undefined }],
  ["with a time that does not exist", { expireTime: { seconds: 1n << 62n } }],
] as const) {
  test(`a denial ${name}, with a code that this library does not know, decides nothing`, async (t) => {
    const { server, verifier } = await listening(t);
    server.answer = ({ key }) => valid(key, { valid: false, code: UNKNOWN, ...(reply as object) });
    await assert.rejects(verifier.verify(KEY), UnavailableError);
    assert.equal(verifier.remembered, 0);
  });
}

test("a denial with a code that this library does not know is a denial", async (t) => {
  const { server, verifier } = await listening(t);
  server.answer = ({ key }) => valid(key, { valid: false, code: UNKNOWN });
  const { valid: allowed, code } = await verifier.verify(KEY);
  assert.deepEqual({ allowed, code }, { allowed: false, code: "UNSPECIFIED" });
  assert.equal(verifier.remembered, 0);
});

for (const code of [VerifyCode.REVOKED, VerifyCode.INACTIVE, VerifyCode.EXPIRED, VerifyCode.NOT_FOUND, UNKNOWN]) {
  test(`once the server has said ${code === UNKNOWN ? "an unknown code" : VerifyCode[code]}, memory never says otherwise`, async (t) => {
    const { server, clock, verifier } = await listening(t, { heartbeat: 10_000 });
    await verifier.verify(KEY);
    clock.advance(15_000);
    server.answer = ({ key }) => (code === VerifyCode.NOT_FOUND ? denied(code) : valid(key, { valid: false, code }));
    assert.equal((await verifier.verify(KEY)).valid, false);
    assert.equal(verifier.remembered, 0);
  });
}

test("a wrong secret for a remembered key's id, which the server does not find, costs it nothing", async (t) => {
  const { server, clock, verifier } = await listening(t, { heartbeat: 10_000 });
  await verifier.verify(KEY);
  clock.advance(15_000);
  server.answer = () => denied(VerifyCode.NOT_FOUND);
  await verifier.verify(makeKey("a", "7"));
  assert.equal(verifier.remembered, 1);
});

test("an answer that decides nothing is an error", async (t) => {
  const { server, verifier } = await listening(t);
  server.answer = () => ({});
  await assert.rejects(verifier.verify(KEY), UnavailableError);
});

test("expiry, grace, environment, address and scopes are decided anew on remembered records", async (t) => {
  const { server, clock, verifier } = await listening(t, { heartbeat: 10_000 });
  const at = (seconds: number) => ({ seconds: BigInt(CHECK_TIME + seconds) });
  server.answer = ({ key }) =>
    valid(key, {
      environmentId: "live",
      allowedCidrs: ["192.0.2.0/24"],
      graceExpireTime: key === KEY ? at(5) : undefined,
      expireTime: at(10),
    });
  const fits = { environmentId: "live", clientIp: "192.0.2.7", requiredScopes: ["orders:read"] };
  const code = async (key: string, demand: object) => {
    const verification = await verifier.verify(key, { ...fits, ...demand });
    assert.equal(verification.cached, true);
    return verification.code;
  };
  await verifier.verify(KEY, fits);
  await verifier.verify(OTHER, fits);
  assert.equal(await code(KEY, {}), "VALID");
  assert.equal(await code(KEY, { environmentId: "test" }), "ENVIRONMENT_MISMATCH");
  assert.equal(await code(KEY, { clientIp: "198.51.100.1" }), "IP_NOT_ALLOWED");
  assert.equal(await code(KEY, { clientIp: undefined }), "IP_NOT_ALLOWED");
  assert.equal(await code(KEY, { requiredScopes: ["users:read"] }), "INSUFFICIENT_SCOPE");
  clock.advance(4_999);
  assert.equal(await code(KEY, {}), "VALID");
  clock.advance(1);
  assert.equal(await code(KEY, {}), "SUPERSEDED");
  assert.equal(await code(OTHER, {}), "VALID");
  clock.advance(5_000);
  assert.equal(await code(OTHER, {}), "EXPIRED");
});

test("another secret for a remembered id is NOT_FOUND without a call, and nothing is told of the key", async (t) => {
  const { server, verifier } = await listening(t);
  await verifier.verify(KEY);
  const { valid: allowed, code, keyId, scopes } = await verifier.verify(makeKey("a", "9"));
  assert.deepEqual({ allowed, code, keyId, scopes }, { allowed: false, code: "NOT_FOUND", keyId: "", scopes: [] });
  assert.equal((await verifier.verify(`${KEY.slice(0, -1)}~`)).code, "MALFORMED");
  assert.equal((await verifier.verify(KEY)).cached, true);
  assert.equal(server.calls.length, 1);
});

test("no presented key stays in memory once its call is over", async (t) => {
  const { server, verifier } = await listening(t);
  await verifier.verify(makeKey("a", "Z"));
  assert.equal((await verifier.verify(makeKey("a", "Z"))).cached, true);
  await verifier.verify(OTHER); // the last call may linger in the connection
  server.calls.length = 0;
  assert.equal((await heap()).includes("Z".repeat(12)), false);
  assert.equal(verifier.remembered, 2);
});

test("of more keys than cacheSize, the least recently used is forgotten", async (t) => {
  const { verifier } = await listening(t, { cacheSize: 2 });
  await verifier.verify(KEY);
  await verifier.verify(OTHER);
  await verifier.verify(KEY);
  await verifier.verify(makeKey("c"));
  assert.equal(verifier.remembered, 2);
  assert.equal((await verifier.verify(KEY)).cached, true);
  assert.equal((await verifier.verify(OTHER)).cached, false);
});

test("of records that take more than cacheBytes, the least recently used is forgotten", async (t) => {
  const { server, verifier } = await listening(t, { cacheBytes: 2 * (1_000 + 200 + 1_024) });
  server.answer = ({ key }) => valid(key, { name: "n".repeat(1_000) });
  for (const key of [KEY, OTHER, KEY, makeKey("c")]) await verifier.verify(key);
  assert.equal(verifier.remembered, 2);
  assert.equal((await verifier.verify(KEY)).cached, true);
  assert.equal((await verifier.verify(OTHER)).cached, false);
  server.answer = ({ key }) => valid(key, { name: "n".repeat(10_000) });
  for (let time = 0; time < 2; time++) assert.equal((await verifier.verify(makeKey("large"))).cached, false);
  assert.equal((await verifier.verify(OTHER)).cached, true);
});

test("callers that want the same key share one call, and each gets the verdict on its own demand", async (t) => {
  const { server, verifier } = await listening(t);
  const wait = door();
  server.beforeCall = wait.pass;
  const demands = [["orders:read"], ["orders:read"], ["users:read"], undefined];
  const asked = demands.map((requiredScopes) => verifier.verify(KEY, { requiredScopes }));
  wait.open();
  const codes = (await Promise.all(asked)).map(({ code }) => code);
  assert.deepEqual(codes, ["VALID", "VALID", "INSUFFICIENT_SCOPE", "VALID"]);
  assert.equal(server.calls.length, 1);
});

test("without a stream nobody joins a call that was sent: the key may have been revoked since", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  const wait = door();
  server.beforeCall = wait.pass;
  const before = verifier.verify(KEY);
  await until(() => server.calls.length === 1);
  const after = verifier.verify(KEY);
  wait.open();
  await Promise.all([before, after]);
  assert.equal(server.calls.length, 2);
});

test("a caller does not suffer for what another demands", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  server.answer = ({ key, requiredScopes }) => {
    if (requiredScopes.includes("no scope")) throw new ConnectError("required_scopes[0]", Code.InvalidArgument);
    return valid(key);
  };
  const bad = verifier.verify(KEY, { requiredScopes: ["no scope"] });
  const good = verifier.verify(KEY, { requiredScopes: ["orders:read"] });
  await assert.rejects(bad, InvalidRequestError);
  assert.equal((await good).code, "VALID");
});

test("nobody joins a call that was sent before a change that has been told", async (t) => {
  const { server, verifier, stream } = await listening(t);
  await verifier.verify(OTHER);
  const wait = door();
  server.beforeCall = wait.pass;
  const before = verifier.verify(KEY);
  await until(() => server.calls.length === 2);
  stream.changed(idOf(KEY), 5);
  stream.changed(idOf(OTHER), 6);
  await until(() => verifier.remembered === 0);
  server.answer = () => ({ ...denied(VerifyCode.REVOKED, idOf(KEY)), revision: 5n });
  const after = verifier.verify(KEY);
  await until(() => server.calls.length === 3);
  wait.open();
  assert.equal((await after).code, "REVOKED");
  await before;
});

test("four calls are under way at most, and up to 500 of what waits go out together, in the order they came", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  const wait = door();
  server.beforeCall = wait.pass;
  const keys = Array.from({ length: 600 }, (_, index) => makeKey(String(index)));
  const asked = keys.map((key) => verifier.verify(key));
  await until(() => server.calls.length === 4);
  wait.open();
  assert.ok((await Promise.all(asked)).every(({ valid }) => valid));
  const batches = server.calls.slice(4).sort((one, other) => other.length - one.length);
  assert.deepEqual(
    batches.map((batch) => batch.map(({ key }) => key)),
    [keys.slice(4, 504), keys.slice(504)],
  );
});

test("an item that a batch leaves undecided is asked again alone", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  const wait = door();
  server.beforeCall = wait.pass;
  server.answer = ({ key, requiredScopes }) => {
    if (!requiredScopes.includes("no scope")) return valid(key);
    if (server.calls.at(-1)?.length === 1) throw new ConnectError("required_scopes[0]", Code.InvalidArgument);
    return {};
  };
  const fillers = ["1", "2", "3", "4", "5"].map((id) => verifier.verify(makeKey(id)));
  const bad = assert.rejects(verifier.verify(KEY, { requiredScopes: ["no scope"] }), InvalidRequestError);
  await until(() => server.calls.length === 4);
  wait.open();
  assert.ok((await Promise.all(fillers)).every(({ valid }) => valid));
  await bad;
  assert.deepEqual(
    server.calls.map((call) => call.length),
    [1, 1, 1, 1, 2, 1],
  );
});

for (const code of [Code.ResourceExhausted, Code.InvalidArgument, Code.Internal, Code.Unknown, Code.Unimplemented]) {
  test(`a batch that fails with ${Code[code]} is halved, and only the item at fault fails`, async (t) => {
    const { server, verifier } = await open(t, { watch: false });
    const wait = door();
    const keys = Array.from({ length: 100 }, (_, index) => makeKey(String(index)));
    const bad = keys[37];
    server.beforeCall = async () => {
      const here = server.calls.at(-1)?.some(({ key }) => key === bad);
      await wait.pass();
      if (here) throw new ConnectError("as the test wants it", code);
    };
    const fillers = ["f1", "f2", "f3", "f4"].map((id) => verifier.verify(makeKey(id)));
    const asked = Promise.allSettled(keys.map((key) => verifier.verify(key)));
    await until(() => server.calls.length === 4);
    wait.open();
    await Promise.all(fillers);
    for (const [index, outcome] of (await asked).entries()) {
      if (index === 37) assert.equal(outcome.status, "rejected");
      else assert.equal(outcome.status === "fulfilled" && outcome.value.valid, true);
    }
    const withBad = server.calls.filter((call) => call.some(({ key }) => key === bad)).map((call) => call.length);
    assert.deepEqual([withBad[0], withBad.at(-1)], [100, 1]);
    assert.ok(withBad.length <= 8, String(withBad));
  });
}

test("what an answer has no room for is asked again, in smaller batches", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  const wait = door();
  let room = 0;
  server.beforeCall = async () => {
    await wait.pass();
    room = 30;
  };
  server.answer = ({ key }) => (room-- > 0 ? valid(key) : {});
  const fillers = ["f1", "f2", "f3", "f4"].map((id) => verifier.verify(makeKey(id)));
  const asked = Array.from({ length: 100 }, (_, index) => verifier.verify(makeKey(String(index))));
  await until(() => server.calls.length === 4);
  wait.open();
  assert.ok((await Promise.all([...fillers, ...asked])).every(({ valid }) => valid));
  assert.deepEqual(
    server.calls.slice(4).map((call) => call.length),
    [100, 50, 20, 20],
  );
});

test("what goes out together is bounded in bytes", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  const wait = door();
  server.beforeCall = wait.pass;
  const fillers = ["f1", "f2", "f3", "f4"].map((id) => verifier.verify(makeKey(id)));
  const ask = (id: number, length: number) => verifier.verify(makeKey(String(id)), { clientIp: "1".repeat(length) });
  const asked = Array.from({ length: 20 }, (_, index) => ask(index, 40_000));
  asked.push(ask(20, 300_000), ask(21, 1));
  await until(() => server.calls.length === 4);
  wait.open();
  await Promise.all([...fillers, ...asked]);
  const sizes = server.calls.slice(4).map((call) => call.length);
  assert.deepEqual(
    sizes.sort((one, other) => other - one),
    [6, 6, 6, 2, 1, 1],
  );
});

test("an answer may have 16 MiB", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  server.answer = ({ key }) => valid(key, { name: "n".repeat(15 << 20) });
  assert.equal((await verifier.verify(KEY)).valid, true);
  server.answer = ({ key }) => valid(key, { name: "n".repeat(17 << 20) });
  await assert.rejects(verifier.verify(OTHER), UnavailableError);
});

test("servers of a list are asked in turn, and one that is not there costs nothing", async (t) => {
  const [one, other] = [await FakeServer.start(), await FakeServer.start()];
  const target = `ipv4:${one.target},127.0.0.1:1,${other.target}`;
  const verifier = new Verifier({ target, apiKey: OWN, watch: false, timeout: 60_000 }, new FakeClock());
  t.after(() => {
    verifier.close();
    one.close();
    other.close();
  });
  for (let call = 0; call < 12 || one.calls.length === 0 || other.calls.length === 0; call++) {
    assert.equal((await verifier.verify(KEY)).valid, true);
  }
  one.close();
  for (let call = 0; call < 6; call++) assert.equal((await verifier.verify(KEY)).valid, true);
});

const FAILURES: [Code, new (message: string) => TumblerError, number][] = [
  [Code.Unavailable, UnavailableError, 3],
  [Code.ResourceExhausted, UnavailableError, 1],
  [Code.Internal, UnavailableError, 1],
  [Code.Unimplemented, UnavailableError, 1],
  [Code.Unauthenticated, NotAllowedError, 1],
  [Code.PermissionDenied, NotAllowedError, 1],
  [Code.InvalidArgument, InvalidRequestError, 1],
];

for (const [code, kind, attempts] of FAILURES) {
  test(`${Code[code]} is ${kind.name} after ${attempts} attempts, and shows no key`, async (t) => {
    const { server, verifier } = await open(t, { watch: false });
    server.beforeCall = () => {
      throw new ConnectError(`about ${KEY}`, code);
    };
    await assert.rejects(verifier.verify(KEY), (error) => {
      assert.doesNotMatch(inspect(error, { depth: 9, showHidden: true }), /tmb_/);
      return error instanceof kind && error instanceof TumblerError;
    });
    assert.equal(server.calls.length, attempts);
  });
}

for (const [name, fail] of [
  [
    "throws",
    () => {
      throw new Error("the disk is full");
    },
  ],
  ["rejects", () => Promise.reject(new Error("the disk is full"))],
] as const) {
  test(`a logger that ${name} changes nothing: the stream is opened again, and no rejection is unhandled`, async (t) => {
    const unhandled: unknown[] = [];
    const note = (reason: unknown) => unhandled.push(reason);
    process.on("unhandledRejection", note);
    t.after(() => process.off("unhandledRejection", note));
    const logger = { info: fail, warn: fail, error: fail } as unknown as Logger;
    const scene = await listening(t, { logger });
    scene.stream.fail(Code.Unavailable);
    const second = await nextStream(scene);
    scene.server.refuseStreams = () => Code.PermissionDenied;
    second.fail(Code.Unauthenticated);
    await until(() => {
      scene.clock.advance(10);
      return scene.server.watchAttempts > 3;
    });
    assert.deepEqual(unhandled, []);
  });
}

test("a server that is away is UnavailableError, and asked again once it is back", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  assert.equal((await verifier.verify(KEY)).code, "VALID");
  const { port } = server;
  server.close();
  await assert.rejects(verifier.verify(KEY), UnavailableError);
  const back = await FakeServer.start({ port });
  t.after(() => back.close());
  assert.equal((await verifier.verify(KEY)).code, "VALID");
});

test("memory answers while the server is away", async (t) => {
  const { server, verifier } = await listening(t);
  await verifier.verify(KEY);
  server.close();
  assert.equal((await verifier.verify(KEY)).cached, true);
  await assert.rejects(verifier.verify(OTHER), UnavailableError);
});

test("a call ends after the timeout, those that wait for their turn included", async (t) => {
  const { server, clock, verifier } = await open(t, { watch: false, timeout: 60_000 });
  const wait = door();
  t.after(wait.open);
  server.beforeCall = wait.pass;
  const asked = ["1", "2", "3", "4", "5"].map((id) => verifier.verify(makeKey(id)));
  const ended = Promise.all(asked.map((one) => assert.rejects(one, UnavailableError)));
  await until(() => server.calls.length === 4);
  clock.advance(60_000);
  await ended;
});

test("the server learns the deadline, and a call that it does not answer ends by itself", async (t) => {
  const { server, verifier } = await open(t, { watch: false, timeout: 50 });
  server.beforeCall = () => new Promise(() => {});
  await assert.rejects(verifier.verify(KEY), UnavailableError);
});

test("a connection whose other end vanished is not used again after a call has waited in vain", async (t) => {
  const { server } = await open(t, { watch: false });
  const near: Socket[] = [];
  const relay = createServer((socket) => {
    const far = connect(server.port, "127.0.0.1");
    socket.pipe(far).pipe(socket);
    for (const end of [socket, far]) end.on("error", () => {});
    socket.on("close", () => far.destroy());
    near.push(socket);
  }).listen(0, "127.0.0.1");
  await once(relay, "listening");
  const target = `127.0.0.1:${(relay.address() as AddressInfo).port}`;
  const clock = new FakeClock();
  const verifier = new Verifier({ target, apiKey: OWN, watch: false, timeout: 60_000 }, clock);
  t.after(() => {
    verifier.close();
    relay.close();
    for (const socket of near) socket.destroy();
  });
  assert.equal((await verifier.verify(KEY)).code, "VALID");
  near[0]?.unpipe().pause();
  const inVain = assert.rejects(verifier.verify(KEY), UnavailableError);
  clock.advance(60_000);
  await inVain;
  assert.equal((await verifier.verify(KEY)).code, "VALID");
  assert.equal(near.length, 2);
});

test("its own key refused by the stream makes it forget everything, and try again every five seconds", async (t) => {
  const scene = await listening(t);
  const { server, clock, verifier, stream, logged } = scene;
  await verifier.verify(KEY);
  server.refuseStreams = () => Code.PermissionDenied;
  stream.fail(Code.Unauthenticated);
  await until(() => verifier.remembered === 0 && logged.length === 1);
  await verifier.verify(KEY);
  assert.equal(verifier.remembered, 0);
  clock.advance(4_999);
  assert.equal(server.watchAttempts, 1);
  clock.advance(1);
  await until(() => server.watchAttempts === 2 && logged.length === 2);
  server.refuseStreams = undefined;
  clock.advance(5_000);
  const next = await server.stream();
  next.send({ cursor: "r2" });
  await untilAsync(async () => (await verifier.verify(KEY)).cached);
});

test("a cursor that the server does not know is dropped, and everything forgotten with it", async (t) => {
  const scene = await listening(t);
  const { server, verifier, stream } = scene;
  await verifier.verify(KEY);
  server.refuseStreams = ({ startCursor }) => (startCursor ? Code.InvalidArgument : undefined);
  stream.fail(Code.Unavailable);
  const next = await nextStream(scene);
  assert.equal(next.request.startCursor, "");
  assert.equal(verifier.remembered, 0);
});

test("a caller is not blamed for a cursor that the server does not know", async (t) => {
  const { server, verifier } = await listening(t);
  server.answer = ({ key, consistency }) => {
    if (consistency?.requirement.case === "atLeastAsFresh") throw new ConnectError("consistency", Code.InvalidArgument);
    return valid(key);
  };
  assert.equal((await verifier.verify(KEY)).code, "VALID");
  assert.equal(verifier.remembered, 0);
  assert.equal(server.calls.at(-1)?.[0]?.consistency?.requirement.case, "fullyConsistent");
});

test("if a call without the cursor succeeds, everything is forgotten, and nothing remembered until a heartbeat", async (t) => {
  const { server, verifier, stream } = await listening(t);
  await verifier.verify(KEY);
  server.answer = ({ key, consistency }) => {
    if (consistency?.requirement.value === "r1") throw new ConnectError("consistency", Code.InvalidArgument);
    return valid(key);
  };
  assert.equal((await verifier.verify(OTHER)).code, "VALID");
  assert.equal(verifier.remembered, 0);
  await verifier.verify(KEY);
  assert.equal(verifier.remembered, 0);
  stream.send({ cursor: "r2", streamAge: {} });
  await untilAsync(async () => (await verifier.verify(KEY)).cached);
});

test("a refused cursor from which the stream has moved on costs no memory", async (t) => {
  const { server, verifier, stream } = await listening(t);
  const changing = makeKey("c");
  await verifier.verify(KEY);
  await verifier.verify(changing);
  const refusing = door();
  server.answer = async ({ key, consistency }) => {
    if (consistency?.requirement.value === "r1") {
      await refusing.pass();
      throw new ConnectError("consistency", Code.InvalidArgument);
    }
    return valid(key);
  };
  const verified = verifier.verify(OTHER);
  await until(() => server.calls.length === 3);
  stream.changed(idOf(changing), 2);
  await until(() => verifier.remembered === 1);
  refusing.open();
  assert.equal((await verified).code, "VALID");
  assert.equal(verifier.remembered, 1);
  assert.equal((await verifier.verify(KEY)).cached, true);
});

test("without the stream nothing is remembered", async (t) => {
  const { server, verifier } = await open(t, { watch: false });
  await verifier.verify(KEY);
  await verifier.verify(KEY);
  assert.equal(server.calls.length, 2);
  assert.equal(server.watchAttempts, 0);
});

test("without the stream fixedTtl bounds memory, and so does the server's cache_ttl", async (t) => {
  const { server, clock, verifier } = await open(t, { watch: false, fixedTtl: 3_000 });
  server.answer = ({ key }) => valid(key, key === OTHER ? { cacheTtl: { seconds: 1n } } : {});
  await verifier.verify(KEY);
  await verifier.verify(OTHER);
  clock.advance(1_000);
  assert.equal((await verifier.verify(OTHER)).cached, false);
  clock.advance(1_999);
  assert.equal((await verifier.verify(KEY)).cached, true);
  clock.advance(1);
  assert.equal((await verifier.verify(KEY)).cached, false);
});

test("a cacheSize of 0 remembers nothing", async (t) => {
  const { server, verifier } = await open(t, { cacheSize: 0 });
  await verifier.verify(KEY);
  assert.equal((await verifier.verify(KEY)).cached, false);
  assert.equal(server.calls.length, 2);
});

test("closing ends the stream and whoever waits, forgets everything, and may be repeated", async (t) => {
  const { server, verifier, stream } = await listening(t);
  await verifier.verify(KEY);
  const wait = door();
  t.after(wait.open);
  server.beforeCall = wait.pass;
  const waiting = assert.rejects(verifier.verify(OTHER), UnavailableError);
  await until(() => server.calls.length === 2);
  verifier.close();
  verifier.close();
  await verifier[Symbol.asyncDispose]();
  await waiting;
  await stream.ended;
  assert.equal(verifier.remembered, 0);
  await assert.rejects(verifier.verify(KEY), UnavailableError);
});

test("an open stream does not keep the process alive, and a call that waits does", async (t) => {
  const { server } = await open(t, { watch: false });
  const script = `
    const { Verifier } = await import(${JSON.stringify(new URL("../src/index.js", import.meta.url).href)});
    const verifier = new Verifier({ target: "${server.target}", apiKey: "own" });
    verifier.verify("${KEY}").then(({ code }) => console.log(code));
  `;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const wait = door();
  server.beforeCall = wait.pass;
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (data: string) => {
    said += data;
  });
  await until(() => server.calls.length === 1 && server.watchAttempts === 1);
  const exited = once(child, "exit");
  wait.open();
  assert.deepEqual(await exited, [0, null]);
  assert.equal(said, "VALID\n");
});

test("it speaks TLS, and refuses a certificate that it was not told to trust", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "tumbler-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const [keyFile, certFile] = [join(folder, "key.pem"), join(folder, "cert.pem")];
  const made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost";
  const files = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", keyFile, "-out", certFile];
  execFileSync("openssl", [...made.split(" "), ...files], { stdio: "ignore" });
  const cert = readFileSync(certFile, "utf8");
  const server = await FakeServer.start({ tls: { key: readFileSync(keyFile, "utf8"), cert } });
  const verifiers = [{ ca: cert }, {}].map(
    (credentials) => new Verifier({ target: server.target, apiKey: OWN, watch: false, credentials }),
  );
  t.after(() => {
    for (const verifier of verifiers) verifier.close();
    server.close();
  });
  assert.equal((await verifiers[0]?.verify(KEY))?.code, "VALID");
  await assert.rejects(async () => verifiers[1]?.verify(KEY), UnavailableError);
});

test("it calls through a Unix socket", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "tumbler-"));
  const path = join(folder, "tumbler.sock");
  const server = await FakeServer.start({ path });
  const verifier = new Verifier({ target: `unix:${path}`, apiKey: OWN, watch: false });
  t.after(() => {
    verifier.close();
    server.close();
    rmSync(folder, { recursive: true });
  });
  assert.equal((await verifier.verify(KEY)).code, "VALID");
});
