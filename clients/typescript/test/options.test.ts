import assert from "node:assert/strict";
import test from "node:test";
import { inspect } from "node:util";
import { toSettings, type VerifierOptions } from "../src/options.js";
import { parseTarget } from "../src/target.js";
import { Verifier } from "../src/verifier.js";
import { makeKey } from "./fake-server.js";

const APIKEY = makeKey("1");

const REFUSED: [string, Partial<VerifierOptions>, RegExp][] = [
  ["no target", { target: "" }, /^target: must be/],
  ["a target without a port", { target: "localhost" }, /^target: must be/],
  ["a target that is a URL", { target: "http://localhost:50051" }, /^target: must be/],
  ["a target with a user", { target: "127.0.0.1:1@example.com:50051" }, /^target: must be/],
  ["several targets, and no scheme for them", { target: "127.0.0.1:1,127.0.0.2:2" }, /^target: must be/],
  ["several targets, one of them none", { target: "ipv4:127.0.0.1:1,127.0.0.2" }, /^target: must be/],
  [
    "several targets, one of them elsewhere",
    { target: "ipv4:127.0.0.1:1,192.0.2.1:2" },
    /^credentials: the target is not this machine/,
  ],
  ["a port beyond the last", { target: "localhost:65536" }, /^target: must be/],
  ["an empty key", { apiKey: "" }, /^apiKey: must be/],
  ["a key with a line break", { apiKey: `${APIKEY}\n` }, /^apiKey: must be/],
  ["plaintext to another machine", { target: "example.com:50051" }, /^credentials: the target is not this machine/],
  ["a cache of less than nothing", { cacheSize: -1 }, /^cacheSize: must be/],
  ["a cache of a key and a half", { cacheSize: 1.5 }, /^cacheSize: must be/],
  ["a room of less than nothing", { cacheBytes: -1 }, /^cacheBytes: must be/],
  ["no staleness at all", { maxStaleness: 0 }, /^maxStaleness: must be/],
  ["a heartbeat that the server would refuse", { heartbeat: 999 }, /^heartbeat: must be 1000 to 3600000/],
  ["a heartbeat as long as maxStaleness", { heartbeat: 15_000 }, /^maxStaleness: must be longer than heartbeat/],
  ["a timeout that is no number", { timeout: Number.NaN }, /^timeout: must be/],
  ["a timeout for ever", { timeout: Number.POSITIVE_INFINITY }, /^timeout: must be/],
  ["fixedTtl beside the stream", { fixedTtl: 1_000 }, /^fixedTtl: is only allowed with watch: false/],
  ["a fixedTtl of nothing", { watch: false, fixedTtl: 0 }, /^fixedTtl: must be/],
];

for (const [name, options, message] of REFUSED) {
  test(`refused: ${name}`, () => {
    assert.throws(
      () => toSettings({ target: "127.0.0.1:50051", apiKey: APIKEY, ...options }),
      (error: Error) => {
        assert.match(error.message, message);
        assert.doesNotMatch(error.message, new RegExp(APIKEY));
        return error instanceof TypeError;
      },
    );
  });
}

test("the defaults are those that every client has", () => {
  const settings = toSettings({ target: "127.0.0.1:50051", apiKey: APIKEY });
  const { cacheSize, cacheBytes, maxStaleness, heartbeat, timeout, watch, fixedTtl } = settings;
  assert.deepEqual(
    { cacheSize, cacheBytes, maxStaleness, heartbeat, timeout, watch, fixedTtl },
    {
      cacheSize: 10_000,
      cacheBytes: 33_554_432,
      maxStaleness: 15_000,
      heartbeat: 5_000,
      timeout: 2_000,
      watch: true,
      fixedTtl: undefined,
    },
  );
});

test("plaintext to another machine is allowed where it is said", () => {
  assert.equal(toSettings({ target: "example.com:50051", apiKey: APIKEY, insecure: true }).credentials, undefined);
});

const LOOPBACK: [string, boolean][] = [
  ["localhost:1", true],
  ["LOCALHOST:1", true],
  ["127.0.0.1:1", true],
  ["127.9.9.9:1", true],
  ["dns:///localhost:1", true],
  ["dns:localhost:1", true],
  ["ipv4:127.0.0.1:1", true],
  ["ipv6:[::1]:1", true],
  ["[::1]:1", true],
  ["[0:0:0:0:0:0:0:1]:1", true],
  ["unix:/run/tumbler.sock", true],
  ["unix:///run/tumbler.sock", true],
  ["localhost.example.com:1", false],
  ["127.0.0.1.example.com:1", false],
  ["128.0.0.1:1", false],
  ["0.0.0.0:1", false],
  ["[::2]:1", false],
  ["[2001:db8::1]:1", false],
];

for (const [target, loopback] of LOOPBACK) {
  test(`${target} is ${loopback ? "" : "not certainly "}this machine`, () => {
    assert.equal(parseTarget(target)?.[0]?.loopback, loopback);
  });
}

test("a verifier does not show its own key", () => {
  const verifier = new Verifier({ target: "127.0.0.1:1", apiKey: APIKEY, watch: false });
  assert.doesNotMatch(inspect(verifier, { depth: 9, showHidden: true }) + JSON.stringify(verifier), /tmb_/);
  verifier.close();
});
