/** The one credential of a request. The server and the guards of all languages are tested with the same rows. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingMessage, type RequestListener, request } from "node:http";
import type { AddressInfo } from "node:net";
import test, { type TestContext } from "node:test";
import { createContextValues } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { Metadata } from "@grpc/grpc-js";
import express from "express";
import fastify from "fastify";
import { vectors } from "../conformance/facts.js";
import { isText, list, object, optional } from "../conformance/json.js";
import * as connectGuard from "../src/guards/connect.js";
import { credentialOf, type Header, nodeHeaders } from "../src/guards/credential.js";
import * as expressGuard from "../src/guards/express.js";
import * as fastifyGuard from "../src/guards/fastify.js";
import { headersOf } from "../src/guards/grpc-js.js";
import { ApiKeyService } from "../src/v1.js";
import { verification } from "../src/verification.js";
import type { Verifier } from "../src/verifier.js";

const isHeader = (value: unknown): value is Header => Array.isArray(value) && value.length === 2 && value.every(isText);

const ROWS = vectors(
  "credentials",
  object({ name: isText, headers: list(isHeader), credential: optional(isText), refused: optional(isText) }),
);

for (const { name, headers, credential, refused } of ROWS) {
  test(`credential: ${name}`, () => {
    const expected = credential === undefined ? { refused } : { credential };
    assert.deepEqual(credentialOf(headers), expected);
    const capitals = headers.map(([name, value]): Header => [name.toUpperCase(), value]);
    assert.deepEqual(credentialOf(capitals), expected);
    assert.deepEqual(credentialOf(nodeHeaders({ headers: {}, rawHeaders: capitals.flat() })), expected);
  });
}

test("the time for a header grows with its length, not with its square", () => {
  const blanks = " ".repeat(200_000);
  const began = performance.now();
  for (const value of [`a${blanks}b`, blanks, `\t${blanks}a${blanks}\t`]) {
    credentialOf([["x-api-key", value]]);
    credentialOf([["authorization", `Bearer ${value}`]]);
  }
  assert.ok(performance.now() - began < 1_000); // 27 s each with a regular expression
  assert.deepEqual(credentialOf([["x-api-key", `\t ${blanks}a b${blanks}\t`]]), { credential: "a b" });
  assert.deepEqual(credentialOf([["x-api-key", blanks]]), { refused: "missing" });
});

test("of each name what came counts, and what was set here only where none came", () => {
  const set = { authorization: "Bearer set" };
  assert.deepEqual(credentialOf(nodeHeaders({ headers: set, rawHeaders: [] })), { credential: "set" });
  const rawHeaders = ["Authorization", "Bearer came"];
  assert.deepEqual(credentialOf(nodeHeaders({ headers: set, rawHeaders })), { credential: "came" });
  const both = { ...set, "x-api-key": "set" };
  assert.deepEqual(credentialOf(nodeHeaders({ headers: both, rawHeaders })), { refused: "ambiguous" });
});

test("of grpc-js's headers, several of x-api-key and two kinds are more than one", () => {
  const found = (headers: Record<string, string>) => credentialOf(headersOf(Metadata.fromHttp2Headers(headers)));
  assert.deepEqual(found({ "x-api-key": "good" }), { credential: "good" });
  assert.deepEqual(found({ authorization: "Bearer good" }), { credential: "good" });
  assert.deepEqual(found({ "x-api-key": "good, other" }), { refused: "ambiguous" }); // two headers, joined by Node
  assert.deepEqual(found({ authorization: "Basic other", "x-api-key": "good" }), { refused: "ambiguous" });
  assert.deepEqual(found({}), { refused: "missing" });
});

/** A verifier that accepts every key, and records it. */
class Recorder {
  readonly asked: string[] = [];

  verify(key: string) {
    this.asked.push(key);
    return Promise.resolve(verification("VALID", undefined, false));
  }

  get real(): Verifier {
    return this as unknown as Verifier;
  }
}

const SERVICES: Record<string, (t: TestContext, verifier: Verifier, logger: typeof SILENT) => Promise<AddressInfo>> = {
  async express(t, verifier, logger) {
    const app = express();
    app.use(expressGuard.requireApiKey<express.Request>(verifier, { logger }));
    app.post("/tumbler.v1.ApiKeyService/Get", (_, response) => void response.json({}));
    return serve(t, app);
  },
  async fastify(t, verifier, logger) {
    const app = fastify();
    app.addHook("onRequest", fastifyGuard.requireApiKey(verifier, { logger }));
    app.post("/tumbler.v1.ApiKeyService/Get", () => ({}));
    t.after(() => app.close());
    await app.listen({ port: 0, host: "127.0.0.1" });
    return app.server.address() as AddressInfo;
  },
  async connect(t, verifier, logger) {
    const handler = connectNodeAdapter({
      interceptors: [connectGuard.requireApiKey(verifier, { logger })],
      contextValues: connectGuard.withPeer,
      routes: (router) => router.service(ApiKeyService, { get: () => ({}) }),
    });
    return serve(t, handler);
  },
};

const SILENT = { info(_: string) {}, warn() {}, error() {} };

async function serve(t: TestContext, listener: RequestListener): Promise<AddressInfo> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return server.address() as AddressInfo;
}

/** Sends a request with exactly these headers, and returns the status. */
async function ask({ port }: AddressInfo, headers: readonly Header[]): Promise<number | undefined> {
  const all: Header[] = [
    ["Host", "127.0.0.1"],
    ["Connection", "close"],
    ["Content-Type", "application/json"],
    ...headers,
  ];
  const asked = request({ port, host: "127.0.0.1", method: "POST", path: "/tumbler.v1.ApiKeyService/Get" });
  for (const [name, value] of all) asked.appendHeader(name, value);
  asked.end("{}");
  const [response] = (await once(asked, "response")) as [IncomingMessage];
  response.resume();
  return response.statusCode;
}

for (const [service, start] of Object.entries(SERVICES)) {
  test(`${service}: each row is let in by its one credential, or refused, and the log says that there were two`, async (t) => {
    const verifier = new Recorder();
    const said: string[] = [];
    const address = await start(t, verifier.real, { ...SILENT, info: (message) => said.push(message) });
    for (const { name, headers, credential, refused } of ROWS) {
      verifier.asked.length = 0;
      said.length = 0;
      assert.equal(await ask(address, headers), credential === undefined ? 401 : 200, name);
      assert.deepEqual(verifier.asked, credential === undefined ? [] : [credential], name);
      assert.deepEqual(said, refused === "ambiguous" ? ["denied: more than one credential"] : [], name);
    }
  });
}

for (const contextValues of [undefined, createContextValues]) {
  test("connect: without withPeer nobody passes, and the log says why", async (t) => {
    const said: string[] = [];
    const logger = { ...SILENT, error: (message: string) => said.push(message) };
    const handler = connectNodeAdapter({
      interceptors: [connectGuard.requireApiKey(new Recorder().real, { logger })],
      ...(contextValues && { contextValues }),
      routes: (router) => router.service(ApiKeyService, { get: () => ({}) }),
    });
    assert.equal(await ask(await serve(t, handler), [["x-api-key", "good"]]), 500);
    assert.match(said.join(), /needs contextValues: withPeer/);
  });
}
