/** Keys that a server quotes, or a proxy before it: no error, no log line and no answer of a guard shows them. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import test, { type TestContext } from "node:test";
import { inspect } from "node:util";
import { Code, ConnectError } from "@connectrpc/connect";
import { InvalidRequestError, NotAllowedError, UnavailableError } from "../src/errors.js";
import { requireApiKey } from "../src/guards/express.js";
import { Verifier } from "../src/verifier.js";
import { FakeServer, makeKey, until } from "./fake-server.js";

const OWN = makeKey("own", "7");
const KEYS = Array.from({ length: 7 }, (_, number) => makeKey(String(number)));
/** What a test must not find: of presented keys, and of the verifier's own. */
const SECRETS = /0{20}|7{20}/;
const QUOTING = `no: authorization=Bearer ${OWN}, keys: ${KEYS.join(",")}`;

const STATUSES = [
  [Code.Unavailable, UnavailableError, 503],
  [Code.Internal, UnavailableError, 503],
  [Code.Unauthenticated, NotAllowedError, 503],
  [Code.PermissionDenied, NotAllowedError, 503],
  [Code.InvalidArgument, InvalidRequestError, 500],
] as const;

async function open(t: TestContext, refusedStreams?: Code) {
  const server = await FakeServer.start();
  const watch = refusedStreams !== undefined;
  server.refuseStreams = () => refusedStreams;
  server.text = QUOTING;
  const logged: string[] = [];
  const log = (message: string) => void logged.push(message);
  const logger = { info: log, warn: log, error: log };
  const verifier = new Verifier({ target: server.target, apiKey: OWN, logger, timeout: 30_000, watch });
  t.after(() => {
    verifier.close();
    server.close();
  });
  return { server, verifier, logged, logger };
}

/** Checks that what is shown says that there were keys, and shows none. */
function check(shown: string): void {
  assert.match(shown, /<key>/);
  assert.doesNotMatch(shown, SECRETS);
}

for (const [code, kind, status] of STATUSES) {
  const refuse = () => {
    throw new ConnectError(QUOTING, code);
  };

  test(`Verify, ${Code[code]}: what the server quotes is not shown`, async (t) => {
    const { server, verifier, logged } = await open(t);
    server.beforeCall = refuse;
    await assert.rejects(verifier.verify(KEYS[0]), (error) => {
      assert.ok(error instanceof kind);
      check(inspect(error, { depth: null, showHidden: true }));
      return true;
    });
    assert.doesNotMatch(logged.join(), SECRETS);
  });

  test(`BatchVerify, ${Code[code]}: what the server quotes is not shown`, async (t) => {
    const { server, verifier } = await open(t);
    let release = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    server.beforeCall = () => held;
    const first = KEYS.slice(0, 4).map((key) => verifier.verify(key));
    await until(() => server.calls.length === 4);
    const rest = Promise.allSettled(KEYS.slice(4).map((key) => verifier.verify(key)));
    server.beforeCall = refuse;
    release();
    await Promise.all(first);
    for (const outcome of await rest) {
      assert.ok(outcome.status === "rejected" && outcome.reason instanceof kind);
      check(inspect(outcome.reason, { depth: null, showHidden: true }));
    }
    assert.ok(server.calls.some((requests) => requests.length === 3));
  });

  test(`Watch, ${Code[code]}: what the server quotes is not logged`, async (t) => {
    const { logged } = await open(t, code);
    await until(() => logged.length > 0);
    check(logged.join());
  });

  test(`a guard, ${Code[code]}: what the server quotes is neither answered nor logged`, async (t) => {
    const { server, verifier, logged, logger } = await open(t);
    server.beforeCall = refuse;
    const guard = requireApiKey(verifier, { logger });
    const http = createServer((request, response) => void guard(request, response, () => response.end()));
    http.listen(0, "127.0.0.1");
    await once(http, "listening");
    t.after(() => http.close());
    const { port } = http.address() as AddressInfo;
    const headers = { "x-api-key": KEYS[0] ?? "", connection: "close" };
    const response = await fetch(`http://127.0.0.1:${port}`, { headers });
    assert.equal(response.status, status);
    assert.doesNotMatch(await response.text(), SECRETS);
    check(logged.join());
  });
}
