import assert from "node:assert/strict";
import test from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { UnavailableError } from "../src/errors.js";
import { MAX_CHECKS, Sessions } from "../src/sessions.js";
import { type Verification, verification } from "../src/verification.js";
import { FakeClock } from "./fake-clock.js";
import { idOf, makeKey } from "./fake-server.js";

const STALENESS = 15_000;
const TTL = 60_000;
const VALID = verification("VALID", undefined, false);
const DOWN = new UnavailableError("as the test wants it");

interface Question {
  key: string;
  scopes: readonly string[] | undefined;
  answer(outcome: Verification | Error, ttl?: number): Promise<void>;
}

/** Sessions with a test's own clock, freshness and answers to verifications. */
class World {
  readonly clock = new FakeClock();
  readonly asked: Question[] = [];
  readonly ended: string[] = [];
  fresh = this.clock.now() + STALENESS;
  readonly sessions = new Sessions(
    {
      verify: (key, { requiredScopes }) =>
        new Promise((resolve, reject) => {
          const answer = (outcome: Verification | Error, ttl = TTL) => {
            if (outcome instanceof Error) reject(outcome);
            else resolve([outcome, this.clock.now() + ttl]);
            return turn();
          };
          this.asked.push({ key, scopes: requiredScopes, answer });
        }),
      freshUntil: () => this.fresh,
    },
    STALENESS,
    this.clock,
  );

  open(key: string, name = "one", scopes?: string[], since = this.sessions.changeCount): () => void {
    const until = this.clock.now() + TTL;
    return this.sessions.open(key, { requiredScopes: scopes }, idOf(key), until, since, (outcome) =>
      this.ended.push(`${name} ${outcome instanceof Error ? "undecided" : outcome.code}`),
    );
  }

  changed(key: string): void {
    this.sessions.changed(idOf(key));
  }

  beat(): void {
    this.fresh = this.clock.now() + STALENESS;
  }

  next(): Question {
    const question = this.asked.shift();
    assert.ok(question, "nothing is asked");
    return question;
  }
}

const ONE = makeKey("a");
const OTHER = makeKey("b");

test("While the stream is alive and says nothing of a key, it is not verified before its lifetime is over.", () => {
  const world = new World();
  world.open(ONE);
  for (let seconds = 5; seconds < 60; seconds += 5) {
    world.clock.advance(5_000);
    world.beat();
    assert.equal(world.asked.length, 0);
  }
  world.clock.advance(5_000);
  assert.equal(world.next().key, ONE);
});

test("An event of a key has it verified, and any verdict but VALID ends its streams, each once, and no others.", async () => {
  for (const code of ["REVOKED", "INACTIVE", "EXPIRED", "SUPERSEDED", "IP_NOT_ALLOWED", "UNSPECIFIED"] as const) {
    const world = new World();
    world.open(ONE, "one");
    world.open(ONE, "two");
    world.open(OTHER, "other");
    world.changed(ONE);
    await world.next().answer(verification(code, undefined, false));
    assert.deepEqual(world.ended, [`one ${code}`, `two ${code}`]);
    world.changed(ONE);
    assert.deepEqual([world.sessions.size, world.asked.length], [1, 0]);
  }
});

test("Streams of one key that were let in for different things are judged each by its own.", async () => {
  const world = new World();
  world.open(ONE, "reads", ["orders:read"]);
  world.open(ONE, "writes", ["orders:write"]);
  world.changed(ONE);
  for (const question of world.asked.splice(0)) {
    const lacks = question.scopes?.[0] === "orders:write";
    await question.answer(lacks ? verification("INSUFFICIENT_SCOPE", undefined, false) : VALID);
  }
  assert.deepEqual(world.ended, ["writes INSUFFICIENT_SCOPE"]);
});

test("What is told between the verdict and the stream counts.", () => {
  const world = new World();
  const since = world.sessions.changeCount;
  world.changed(ONE);
  world.open(ONE, "one", undefined, since);
  assert.equal(world.asked.length, 1);
});

test("An answer that may be older than the last event of its key is not the last word.", async () => {
  const world = new World();
  world.open(ONE);
  world.changed(ONE);
  const first = world.next();
  world.changed(ONE);
  assert.equal(world.asked.length, 0);
  await first.answer(VALID);
  await world.next().answer(verification("REVOKED", undefined, false));
  assert.deepEqual(world.ended, ["one REVOKED"]);
});

test("A key is verified when its record ends by itself, and at most once a second.", async () => {
  for (const left of [-1e21, 0, 0.4, 999, 3_000]) {
    const world = new World();
    world.open(ONE);
    world.changed(ONE);
    await world.next().answer(VALID, left);
    world.clock.advance(Math.max(left, 1_000) - 0.1);
    assert.equal(world.asked.length, 0);
    world.clock.advance(0.1);
    assert.equal(world.asked.length, 1);
  }
});

test("Once the stream was silent for maxStaleness, every key is verified each maxStaleness.", async () => {
  const world = new World();
  world.open(ONE);
  for (let time = 0; time < 3; time++) {
    world.clock.advance(STALENESS - 1);
    assert.equal(world.asked.length, 0);
    world.clock.advance(1);
    await world.next().answer(VALID);
  }
});

test("A key that cannot be verified is asked about each second, and ends its streams after maxStaleness.", async () => {
  const world = new World();
  world.open(ONE);
  world.changed(ONE);
  for (let time = 0; time < STALENESS; time += 1_000) {
    await world.next().answer(DOWN);
    assert.deepEqual([world.ended, world.asked.length], [[], 0]);
    world.clock.advance(1_000);
  }
  await world.next().answer(DOWN);
  assert.deepEqual([world.ended, world.sessions.size], [["one undecided"], 0]);
});

test("Ten thousand changes, each told three times, are so many verifications, and few of them at a time.", async () => {
  const world = new World();
  const keys = Array.from({ length: 10_000 }, (_, number) => makeKey(`${number}`));
  for (const key of keys) world.open(key);
  for (let time = 0; time < 3; time++) for (const key of keys) world.changed(key);
  let seen = 0;
  while (world.asked.length > 0) {
    const under = world.asked.splice(0);
    assert.ok(under.length <= MAX_CHECKS);
    seen += under.length;
    for (const question of under) void question.answer(verification("REVOKED", undefined, false));
    await turn();
  }
  assert.deepEqual([seen, world.ended.length, world.sessions.size], [10_000, 10_000, 0]);
});

test("After a reset every key is verified, a thousand a second.", async () => {
  const world = new World();
  for (let number = 0; number < 3_000; number++) world.open(makeKey(`${number}`));
  world.sessions.changed();
  let seen = 0;
  for (let time = 0; time < 30; time++) {
    const under = world.asked.splice(0);
    assert.ok(under.length <= 101);
    seen += under.length;
    for (const question of under) void question.answer(VALID);
    await turn();
    world.clock.advance(100);
    world.beat();
  }
  assert.equal(seen + world.asked.length, 3_000);
});

test("Keys whose turn does not come within maxStaleness end their streams.", async () => {
  const world = new World();
  const keys = Array.from({ length: MAX_CHECKS + 10 }, (_, number) => makeKey(`${number}`));
  for (const key of keys) world.open(key);
  for (const key of keys) world.changed(key);
  const stuck = world.asked.splice(0);
  world.clock.advance(STALENESS + 1);
  for (const question of stuck) void question.answer(DOWN);
  await turn();
  assert.equal(world.ended.length, keys.length);
});

test("Nothing is left of a stream that has ended, and closing ends all.", () => {
  const world = new World();
  for (let number = 0; number < 1_000; number++) {
    const release = world.open(makeKey(`${number}`));
    release();
    release();
  }
  world.sessions.changed();
  assert.deepEqual([world.sessions.size, world.asked.length], [0, 0]);
  world.open(ONE, "one");
  world.sessions.close(DOWN);
  world.open(ONE, "two");
  assert.deepEqual(world.ended, ["one undecided", "two undecided"]);
});
