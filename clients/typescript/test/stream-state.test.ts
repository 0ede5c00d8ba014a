import assert from "node:assert/strict";
import test from "node:test";
import { StreamState } from "../src/stream-state.js";

test("an answer older than the changes that were dropped from the list is not admitted, even of another key", () => {
  const state = new StreamState(1_000, 500);
  for (let revision = 1; revision <= 1_026; revision++) state.recordChange(`k${revision}`, BigInt(revision));
  assert.equal(state.admits("other", 1n, 0), false);
  assert.equal(state.admits("other", 2n, 0), true);
});

test("a key that changes again and again takes one place in the list", () => {
  const state = new StreamState(1_000, 500);
  for (let revision = 1; revision <= 5_000; revision++) state.recordChange("k", BigInt(revision));
  assert.equal(state.admits("other", 0n, 0), true);
  assert.equal(state.admits("k", 4_999n, 0), false);
  assert.equal(state.admits("k", 5_000n, 0), true);
});

test("a reset begins a new generation, and another log may count from below", () => {
  const state = new StreamState(1_000, 500);
  state.recordChange("k", 9n);
  state.reset();
  assert.equal(state.admits("k", 1n, 0), false);
  assert.equal(state.admits("k", 1n, 1), true);
});

test("a refused cursor is dropped if it is still the current one, and nothing is fresh until the next heartbeat", () => {
  const state = new StreamState(1_000, 500);
  state.cursor = "old";
  assert.equal(state.applyHeartbeat(0, 0, 0), true);
  assert.equal(state.dropCursor("old"), true);
  assert.deepEqual([state.cursor, state.generation, state.isFresh(0)], ["", 1, false]);
});

test("a refused cursor from which the stream has moved on changes nothing", () => {
  const state = new StreamState(1_000, 500);
  state.cursor = "new";
  assert.equal(state.applyHeartbeat(0, 0, 0), true);
  assert.equal(state.dropCursor("old"), false);
  assert.deepEqual([state.cursor, state.generation, state.isFresh(0)], ["new", 0, true]);
});
