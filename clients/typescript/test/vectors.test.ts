import assert from "node:assert/strict";
import test from "node:test";
import { demandOf, factsOf, isVectorRecord, isVectorRequest, microsecondsOf, vectors } from "../conformance/facts.js";
import { either, isFlag, isNumber, isText, object, optional } from "../conformance/json.js";
import { decide } from "../src/decide.js";
import { isWellFormed, KEY_PATTERN, parseKey, peekId } from "../src/keyformat.js";
import { redact } from "../src/redaction.js";

const isVerdict = object({
  name: isText,
  record: optional(isVectorRecord),
  request: isVectorRequest,
  now: isText,
  code: isText,
});

for (const { name, record, request, now, code } of vectors("verify", isVerdict)) {
  test(`verdict: ${name}`, () => {
    assert.equal(decide(record ? factsOf(record) : undefined, demandOf(request), microsecondsOf(now)), code);
  });
}

/** A text and how often it is repeated. */
const isRepeat = (value: unknown): value is [string, number] =>
  Array.isArray(value) && value.length === 2 && isText(value[0]) && isNumber(value[1]);

const isForm = object({
  name: isText,
  key: either(isText, object({ repeat: isRepeat })),
  well_formed: isFlag,
  prefix: optional(isText),
  id: optional(isText),
});

for (const { name, key, well_formed, prefix, id } of vectors("keyformat", isForm)) {
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

for (const { name, text, redacted } of vectors(
  "redaction",
  object({ name: isText, text: isText, redacted: optional(isText) }),
)) {
  test(`redaction: ${name}`, () => {
    const expected = redacted ?? text;
    assert.equal(redact(text), expected);
    assert.equal(redact(expected), expected);
  });
}

test("the time to redact a text grows with its length", () => {
  const began = performance.now();
  for (const part of ["a", "a_", "0123456789abcdef_", "aaaaaaaaaaaaaaaa_bbbbbbbbbbbbbbb_"]) {
    redact(part.repeat(300_000 / part.length));
  }
  assert.ok(performance.now() - began < 10_000);
});
