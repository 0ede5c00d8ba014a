/** Which projects' keys a verifier accepts. */

import assert from "node:assert/strict";
import test, { type TestContext } from "node:test";
import { InvalidRequestError, NotAllowedError } from "../src/errors.js";
import { toSettings, type VerifierOptions } from "../src/options.js";
import { ANY_PROJECT, type ProjectId } from "../src/projects.js";
import { VerifyCode } from "../src/v1.js";
import { type Verification, verification } from "../src/verification.js";
import { Verifier } from "../src/verifier.js";
import { denied, FakeServer, idOf, makeKey, until, valid } from "./fake-server.js";

const KEY = makeKey("a");
const SEVERAL = ["acme", "globex"] as const;

/** Creates a verifier that caches for a minute, without a stream. */
async function open(t: TestContext, options: Partial<VerifierOptions> = {}) {
  const server = await FakeServer.start();
  const logger = { info() {}, warn() {}, error() {} };
  const common = { target: server.target, apiKey: "own", logger, timeout: 60_000, watch: false, fixedTtl: 60_000 };
  const verifier = new Verifier({ ...common, ...options });
  t.after(() => {
    verifier.close();
    server.close();
  });
  return { server, verifier };
}

function nothingTold(told: Verification): void {
  assert.deepEqual(told, verification("NOT_FOUND", undefined, told.cached));
}

const ASKED: [string, Partial<VerifierOptions>, string][] = [
  ["none that is said", {}, ""],
  ["any", { projectId: ANY_PROJECT }, ""],
  ["one", { projectId: "acme" }, "acme"],
  ["a list of one", { projectId: ["acme"] }, "acme"],
  ["several", { projectId: SEVERAL }, ""],
];

for (const [name, said, project] of ASKED) {
  test(`of ${name}, the server is asked for ${project || "none"}, in calls and for the stream`, async (t) => {
    const { server, verifier } = await open(t, { ...said, watch: true, fixedTtl: undefined });
    const stream = await server.stream();
    await verifier.verify(KEY);
    assert.equal(stream.request.projectId, project);
    assert.equal(server.calls[0]?.[0]?.projectId, project);
  });
}

for (const projectId of ["acme", ["acme"], SEVERAL]) {
  test(`with ${String(projectId)}, nothing is told of a key of another project, and nothing remembered`, async (t) => {
    const { server, verifier } = await open(t, { projectId });
    server.answer = ({ key }) => valid(key, { projectId: "initech" });
    nothingTold(await verifier.verify(KEY));
    nothingTold(await verifier.verify(KEY));
    server.answer = ({ key }) => ({ ...denied(VerifyCode.REVOKED, idOf(key)), projectId: "initech" });
    nothingTold(await verifier.verify(KEY));
    assert.equal(verifier.remembered, 0);
    server.answer = ({ key }) => valid(key);
    assert.equal((await verifier.verify(KEY)).valid, true);
    assert.equal((await verifier.verify(KEY)).cached, true);
  });
}

test("a call narrows what the verifier accepts, of what is remembered too, and never widens it", async (t) => {
  const { server, verifier } = await open(t, { projectId: ANY_PROJECT });
  server.answer = ({ key }) => valid(key, { projectId: "globex" });
  nothingTold(await verifier.verify(KEY, { projectId: "acme" }));
  nothingTold(await verifier.verify(KEY, { projectId: ["acme", "initech"] }));
  for (const projectId of [undefined, "globex", SEVERAL]) {
    const told = await verifier.verify(KEY, { projectId });
    assert.deepEqual([told.valid, told.cached, told.projectId], [true, true, "globex"]);
  }

  const narrow = await open(t, { projectId: "acme" });
  narrow.server.answer = ({ key }) => valid(key, { projectId: "globex" });
  nothingTold(await narrow.verifier.verify(KEY, { projectId: "globex" }));
  narrow.server.answer = ({ key }) => valid(key);
  nothingTold(await narrow.verifier.verify(KEY, { projectId: "globex" }));
  assert.equal((await narrow.verifier.verify(KEY, { projectId: SEVERAL })).valid, true);
});

test("nothing is told of a revoked key, either, to who does not accept its project", async (t) => {
  const { server, verifier } = await open(t, { projectId: ANY_PROJECT });
  server.answer = ({ key }) => ({ ...denied(VerifyCode.REVOKED, idOf(key)), projectId: "globex" });
  nothingTold(await verifier.verify(KEY, { projectId: "acme" }));
  assert.equal((await verifier.verify(KEY)).code, "REVOKED");
});

test("who shares a call has projects of their own", async (t) => {
  const { server, verifier } = await open(t, { projectId: ANY_PROJECT, fixedTtl: undefined });
  let go = () => {};
  const held = new Promise<void>((resolve) => {
    go = resolve;
  });
  server.beforeCall = () => held;
  const mutable = ["globex"];
  const refused = verifier.verify(KEY, { projectId: mutable });
  mutable[0] = "acme";
  const accepted = verifier.verify(KEY, { projectId: "acme" });
  const indifferent = verifier.verify(KEY);
  await until(() => server.calls.length > 0);
  go();
  nothingTold(await refused);
  assert.equal((await accepted).valid, true);
  assert.equal((await indifferent).valid, true);
});

const PROJECT_REQUIRED = /can verify the keys of all projects: set projectId, or ANY_PROJECT/;

for (const projectId of [undefined, "acme"]) {
  test(`a verifier whose own key sees all projects must say which, if a caller names ${String(projectId)} or not`, async (t) => {
    const { server, verifier } = await open(t);
    for (const changes of [{}, { valid: false, code: VerifyCode.INSUFFICIENT_SCOPE }]) {
      server.answer = ({ key }) => valid(key, { ...changes, anyProject: true });
      await assert.rejects(verifier.verify(KEY, { projectId }), (error: Error) => {
        assert.match(error.message, PROJECT_REQUIRED);
        return error instanceof NotAllowedError;
      });
    }
    assert.equal(verifier.remembered, 0);
  });
}

test("keys that are asked for together are refused alike", async (t) => {
  const { server, verifier } = await open(t);
  server.answer = ({ key }) => valid(key, { anyProject: true });
  const keys = Array.from({ length: 10 }, (_, number) => makeKey(String(number)));
  await Promise.all(keys.map((key) => assert.rejects(verifier.verify(key), PROJECT_REQUIRED)));
  assert.ok(server.calls.some((requests) => requests.length > 1));
});

for (const said of [{ projectId: ANY_PROJECT }, { projectId: SEVERAL }] as const) {
  test(`a verifier whose own key sees all projects may say ${String(said.projectId)}`, async (t) => {
    const { server, verifier } = await open(t, said);
    server.answer = ({ key }) => valid(key, { anyProject: true });
    assert.equal((await verifier.verify(KEY)).valid, true);
  });
}

for (const projectId of ["", [], [""], ["acme", ""], [undefined], null, 7] as unknown as ProjectId[]) {
  test(`${JSON.stringify(projectId)} is a mistake, and not a wish for all projects`, async (t) => {
    assert.throws(
      () => toSettings({ target: "localhost:1", apiKey: "own", projectId }),
      /^TypeError: projectId: must be/,
    );
    const { verifier } = await open(t);
    await assert.rejects(verifier.verify(KEY, { projectId }), InvalidRequestError);
  });
}
