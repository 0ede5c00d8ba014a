/** The one credential of a request. The server and the guards of all languages are tested with the same rows. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingMessage, type RequestListener, request, type ServerResponse } from "node:http";
import { type AddressInfo, connect } from "node:net";
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

type Start = (t: TestContext, verifier: Verifier, logger: typeof SILENT, limits?: Limits) => Promise<AddressInfo>;

/** What a test sets of a server. */
interface Limits {
  maxHeadersCount?: number;
}

const SERVICES: Record<string, Start> = {
  async express(t, verifier, logger, limits) {
    const app = express();
    app.use(expressGuard.requireApiKey<express.Request>(verifier, { logger }));
    app.post("/tumbler.v1.ApiKeyService/Get", (_, response) => void response.json({}));
    return serve(t, app, limits);
  },
  async fastify(t, verifier, logger, limits) {
    const app = fastify();
    app.addHook("onRequest", fastifyGuard.requireApiKey(verifier, { logger }));
    app.post("/tumbler.v1.ApiKeyService/Get", () => ({}));
    t.after(() => app.close());
    Object.assign(app.server, limits);
    await app.listen({ port: 0, host: "127.0.0.1" });
    return app.server.address() as AddressInfo;
  },
  async connect(t, verifier, logger, limits) {
    const handler = connectNodeAdapter({
      interceptors: [connectGuard.requireApiKey(verifier, { logger })],
      contextValues: connectGuard.withPeer,
      routes: (router) => router.service(ApiKeyService, { get: () => ({}) }),
    });
    return serve(t, handler, limits);
  },
};

const SILENT = { info(_: string) {}, warn() {}, error() {} };

async function serve(t: TestContext, listener: RequestListener, limits?: Limits): Promise<AddressInfo> {
  const server = Object.assign(createServer(listener), limits).listen(0, "127.0.0.1");
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

/** Sends requests over one connection, as they are. Returns the status of each. */
async function sendRaw({ port }: AddressInfo, requests: readonly (readonly string[])[]): Promise<number[]> {
  const socket = connect(port, "127.0.0.1");
  const statuses: number[] = [];
  for (const headers of requests) {
    const fixed = ["Host: a", "Content-Type: application/json", "Content-Length: 2"];
    socket.write(["POST /tumbler.v1.ApiKeyService/Get HTTP/1.1", ...fixed, ...headers, "", "{}"].join("\r\n"));
    const [answer] = (await once(socket, "data")) as [Buffer];
    statuses.push(Number(String(answer).split(" ", 2)[1]));
  }
  socket.destroy();
  return statuses;
}

const filler = (count: number) => Array.from({ length: count }, () => "a:");
const TWO = ["denied: more than one credential"];
const CUT = ["denied: as many headers as Node's limit, so there may be more than one credential"];

// Node drops what is beyond its limit, but not exactly there: it adds up to 32 headers at a time.
const LIMITS: readonly [Limits, below: number, beyond: number | undefined][] = [
  [{}, 990, 1_100],
  [{ maxHeadersCount: 100 }, 90, 200],
  [{ maxHeadersCount: 2_000 }, 1_900, 2_200],
  [{ maxHeadersCount: 0 }, 2_500, undefined], // no limit
];

for (const [service, start] of Object.entries(SERVICES)) {
  for (const [limits, below, beyond] of LIMITS) {
    const limit = limits.maxHeadersCount ?? "default";
    test(`${service}, limit ${limit}: a second credential is seen, or the request refused if Node may have dropped it`, async (t) => {
      const verifier = new Recorder();
      const said: string[] = [];
      const address = await start(t, verifier.real, { ...SILENT, info: (message) => said.push(message) }, limits);
      const one = ["x-api-key: good", ...filler(below)];
      assert.deepEqual(await sendRaw(address, [one, [...one, "x-api-key: other"]]), [200, 401]);
      assert.deepEqual(verifier.asked, ["good"]);
      assert.deepEqual(said, TWO);
      if (beyond === undefined) return;
      const much = ["x-api-key: good", ...filler(beyond)];
      assert.deepEqual(await sendRaw(address, [much, [...much, "x-api-key: other"]]), [401, 401]);
      assert.deepEqual(verifier.asked, ["good"]);
      assert.deepEqual(said, [...TWO, ...CUT, ...CUT]);
    });
  }
}

test("around the limit, no number of headers hides a second credential", async (t) => {
  const verifier = new Recorder();
  const guard = expressGuard.requireApiKey(verifier.real, { logger: SILENT });
  const answer = (request: IncomingMessage, response: ServerResponse) =>
    void guard(request, response, () => response.end());
  const address = await serve(t, answer, { maxHeadersCount: 40 });
  const requests = Array.from({ length: 100 }, (_, count) => ["x-api-key: good", ...filler(count), "x-api-key: other"]);
  assert.deepEqual(new Set(await sendRaw(address, requests)), new Set([401]));
  assert.deepEqual(verifier.asked, []);
});

test("the limit is the one with which the connection began", async (t) => {
  const verifier = new Recorder();
  const app = express();
  app.use(expressGuard.requireApiKey<express.Request>(verifier.real, { logger: SILENT }));
  app.use((request, response) => {
    (request.socket as unknown as { server: Limits }).server.maxHeadersCount = 0;
    response.json({});
  });
  const much = ["x-api-key: good", ...filler(1_100), "x-api-key: other"];
  const address = await serve(t, app);
  assert.deepEqual(await sendRaw(address, [["x-api-key: good"], much]), [200, 401]);
  assert.deepEqual(verifier.asked, ["good"]);
});

test("without a socket the limit is Node's own, and HTTP/2 has none", () => {
  const rawHeaders = (count: number) => ["x-api-key", "good", ...Array.from({ length: 2 * count }, () => "a")];
  const found = (more: object, count: number) =>
    credentialOf(nodeHeaders({ headers: {}, rawHeaders: rawHeaders(count), ...more }));
  for (const more of [{}, { socket: {} }, { socket: { parser: null, server: null } }]) {
    assert.deepEqual(found(more, 998), { credential: "good" });
    assert.deepEqual(found(more, 999), { refused: "incomplete" });
  }
  const server = { maxHeadersCount: 50 };
  assert.deepEqual(found({ socket: { parser: null, server } }, 48), { credential: "good" });
  assert.deepEqual(found({ socket: { parser: null, server } }, 49), { refused: "incomplete" });
  assert.deepEqual(found({ httpVersionMajor: 2, socket: { server } }, 3_000), { credential: "good" });
});
