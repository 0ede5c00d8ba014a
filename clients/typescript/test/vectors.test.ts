import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { demandOf, factsOf, microsecondsOf } from "../conformance/facts.js";
import { decide } from "../src/decide.js";
import { isWellFormed, KEY_PATTERN, parseKey, peekId } from "../src/keyformat.js";

function vectors(file: string) {
  const url = new URL(`../../../../tests/vectors/${file}.json`, import.meta.url);
  return JSON.parse(readFileSync(url, "utf8")).vectors;
}

for (const { name, record, request, now, code } of vectors("verify")) {
  test(`verdict: ${name}`, () => {
    assert.equal(decide(record ? factsOf(record) : undefined, demandOf(request), microsecondsOf(now)), code);
  });
}

for (const { name, key, well_formed, prefix, id } of vectors("keyformat")) {
  test(`form: ${name}`, () => {
    const text = typeof key === "string" ? key : key.repeat[0].repeat(key.repeat[1]);
    assert.deepEqual(parseKey(text), well_formed ? { prefix, id } : undefined);
    assert.equal(isWellFormed(text), well_formed);
    if (well_formed) {
      assert.equal(peekId(text), id);
      assert.equal(`before ${text} after`.replaceAll(KEY_PATTERN, "-"), "before - after");
    }
  });
}
