import assert from "node:assert/strict";
import test from "node:test";
import { Journal } from "../src/journal.js";

test("an answer older than the changes that were dropped from the list is not admitted, even of another key", () => {
  const journal = new Journal(1_000, 500);
  for (let revision = 1; revision <= 1_026; revision++) journal.changed(`k${revision}`, BigInt(revision));
  assert.equal(journal.admits("other", 1n, 0), false);
  assert.equal(journal.admits("other", 2n, 0), true);
});

test("a key that changes again and again takes one place in the list", () => {
  const journal = new Journal(1_000, 500);
  for (let revision = 1; revision <= 5_000; revision++) journal.changed("k", BigInt(revision));
  assert.equal(journal.admits("other", 0n, 0), true);
  assert.equal(journal.admits("k", 4_999n, 0), false);
  assert.equal(journal.admits("k", 5_000n, 0), true);
});

test("beginning anew ends the epoch, and another log may count from below", () => {
  const journal = new Journal(1_000, 500);
  journal.changed("k", 9n);
  journal.beginAnew();
  assert.equal(journal.admits("k", 1n, 0), false);
  assert.equal(journal.admits("k", 1n, 1), true);
});
