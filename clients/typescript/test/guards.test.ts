import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import { createServer as createHttp2 } from "node:http2";
import type { AddressInfo } from "node:net";
import test, { type TestContext } from "node:test";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport } from "@connectrpc/connect-node";
import * as grpc from "@grpc/grpc-js";
import express from "express";
import fastify from "fastify";
import { checked, isText, object } from "../conformance/json.js";
import { InvalidRequestError, NotAllowedError, UnavailableError } from "../src/errors.js";
import * as connectGuard from "../src/guards/connect.js";
import type { Header } from "../src/guards/credential.js";
import * as expressGuard from "../src/guards/express.js";
import * as fastifyGuard from "../src/guards/fastify.js";
import * as grpcGuard from "../src/guards/grpc-js.js";
import { check } from "../src/guards/guard.js";
import { ApiKeyService } from "../src/v1.js";
import { type Verification, verification } from "../src/verification.js";
import type { Verifier, VerifyOptions } from "../src/verifier.js";

const ACCEPTED = { ...verification("VALID", undefined, false), keyId: "0123456789abcdef", ownerId: "u1" };

/** A verifier that accepts `good`, and records its last call. */
class FakeVerifier {
  asked: [string | undefined, VerifyOptions] | undefined;
  outcome: Verification | Error = ACCEPTED;

  verify(key: string | undefined, options: VerifyOptions): Promise<Verification> {
    this.asked = [key, options];
    if (this.outcome instanceof Error) return Promise.reject(this.outcome);
    return Promise.resolve(key === "good" ? this.outcome : verification("NOT_FOUND", undefined, false));
  }

  get real(): Verifier {
    return this as unknown as Verifier;
  }
}

const OPTIONS = {
  requiredScopes: ["orders:read"],
  environmentId: "live",
  projectId: ["acme", "globex"],
  logger: { info() {}, warn() {}, error() {} },
};

/** The answer of a guarded service: an HTTP or a gRPC status, and a text. */
interface Answer {
  http?: number;
  grpc?: number;
  text: string;
  headers?: Headers;
}

type Ask = (headers: Record<string, string>) => Promise<Answer>;

const NOBODY = "a valid API key is required";
const NOT_THAT = "this API key does not allow that";
const CANNOT = "API keys cannot be verified at the moment";

const SERVICES: Record<string, (t: TestContext, verifier: Verifier) => Promise<Ask>> = {
  async express(t, verifier) {
    const app = express();
    app.use(expressGuard.requireApiKey<express.Request>(verifier, OPTIONS));
    app.get("/", (request, response) => void response.send(request.tumbler?.ownerId));
    return serveHttp(t, app);
  },

  async fastify(t, verifier) {
    const app = fastify();
    app.addHook("onRequest", fastifyGuard.requireApiKey(verifier, OPTIONS));
    app.get("/", (request) => request.tumbler?.ownerId);
    t.after(() => app.close());
    await app.listen({ port: 0, host: "127.0.0.1" });
    return askHttp(app.server.address() as AddressInfo);
  },

  async connect(t, verifier) {
    const handler = connectNodeAdapter({
      interceptors: [connectGuard.requireApiKey(verifier, OPTIONS)],
      contextValues: connectGuard.withPeer,
      routes: (router) =>
        router.service(ApiKeyService, {
          get: (_, { values }) => ({ apiKey: { ownerId: values.get(connectGuard.verified)?.ownerId ?? "" } }),
        }),
    });
    const server = createHttp2(handler).listen(0, "127.0.0.1");
    await once(server, "listening");
    t.after(() => server.close());
    return askGrpc(t, (server.address() as AddressInfo).port);
  },

  async "grpc-js"(t, verifier) {
    const server = new grpc.Server({ interceptors: [grpcGuard.requireApiKey(verifier, OPTIONS)] });
    const text = { serialize: (value: string) => Buffer.from(value), deserialize: String };
    server.addService(
      {
        get: {
          path: "/test.Service/Get",
          requestStream: false,
          responseStream: false,
          requestSerialize: text.serialize,
          requestDeserialize: text.deserialize,
          responseSerialize: text.serialize,
          responseDeserialize: text.deserialize,
        },
      },
      {
        get: ((call, done) => done(null, grpcGuard.verified(call)?.ownerId)) as grpc.handleUnaryCall<string, string>,
      },
    );
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    );
    const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
    t.after(() => {
      client.close();
      server.forceShutdown();
    });
    return (headers) =>
      new Promise((resolve) => {
        const metadata = grpc.Metadata.fromHttp2Headers(headers);
        client.makeUnaryRequest("/test.Service/Get", text.serialize, text.deserialize, "x", metadata, (error, said) =>
          resolve(error ? { grpc: error.code, text: error.details } : { grpc: 0, text: said ?? "" }),
        );
      });
  },
};

async function serveHttp(t: TestContext, listener: RequestListener): Promise<Ask> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return askHttp(server.address() as AddressInfo);
}

function askHttp({ port }: AddressInfo): Ask {
  return async (headers) => {
    const response = await fetch(`http://127.0.0.1:${port}/`, { headers });
    const body = await response.text();
    const text = response.ok ? body : checked(JSON.parse(body), object({ error: isText })).error;
    return { http: response.status, text, headers: response.headers };
  };
}

function askGrpc(t: TestContext, port: number): Ask {
  const closing = new AbortController();
  t.after(() => closing.abort());
  const transport = createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}`, idleConnectionTimeoutMs: 1 });
  const client = createClient(ApiKeyService, transport);
  return async (headers) => {
    try {
      const { apiKey } = await client.get({}, { headers });
      return { grpc: 0, text: apiKey?.ownerId ?? "" };
    } catch (reason) {
      const { code, rawMessage } = ConnectError.from(reason, Code.Unknown);
      return { grpc: code, text: rawMessage };
    }
  };
}

const KEYS: [string, Record<string, string>, boolean][] = [
  ["a bearer token", { authorization: "Bearer good" }, true],
  ["a bearer token, whatever the case", { authorization: "bearer good" }, true],
  ["x-api-key", { "x-api-key": "good" }, true],
  ["x-api-key beside another kind of authorization", { authorization: "Basic Zm9v", "x-api-key": "good" }, false],
  ["a bearer token beside x-api-key", { authorization: "Bearer good", "x-api-key": "good" }, false],
  ["no key", {}, false],
  ["an empty key", { "x-api-key": "" }, false],
  ["another kind of authorization", { authorization: "Basic good" }, false],
];

const OUTCOMES: [string, Verification | Error, number, number, string][] = [
  ...(["MALFORMED", "NOT_FOUND", "REVOKED", "SUPERSEDED", "INACTIVE", "EXPIRED", "UNSPECIFIED"] as const).map(
    (code): [string, Verification, number, number, string] => [
      code,
      verification(code, undefined, false),
      401,
      16,
      NOBODY,
    ],
  ),
  ...(["ENVIRONMENT_MISMATCH", "IP_NOT_ALLOWED", "INSUFFICIENT_SCOPE"] as const).map(
    (code): [string, Verification, number, number, string] => [
      code,
      verification(code, undefined, false),
      403,
      7,
      NOT_THAT,
    ],
  ),
  ["Unavailable", new UnavailableError("secret words"), 503, 14, CANNOT],
  ["NotAllowed", new NotAllowedError("secret words"), 503, 14, CANNOT],
  ["InvalidRequest", new InvalidRequestError("secret words"), 500, 13, CANNOT],
  ["an error of any other kind", new Error("secret words"), 500, 13, CANNOT],
];

for (const [service, serve] of Object.entries(SERVICES)) {
  for (const [name, headers, passes] of KEYS) {
    test(`${service}: ${name} ${passes ? "passes, and the handler knows whose it is" : "is refused"}`, async (t) => {
      const ask = await serve(t, new FakeVerifier().real);
      const { http, grpc: status, text } = await ask(headers);
      assert.equal(text, passes ? "u1" : NOBODY);
      assert.equal(http ?? status, passes ? ((http && 200) ?? 0) : ((http && 401) ?? 16));
    });
  }

  for (const [name, outcome, http, status, text] of OUTCOMES) {
    test(`${service}: ${name} is answered ${http}, or ${status}, and not in other words`, async (t) => {
      const verifier = new FakeVerifier();
      verifier.outcome = outcome;
      const answer = await (await serve(t, verifier.real))({ "x-api-key": "good" });
      assert.equal(answer.text, text);
      assert.equal(answer.http ?? answer.grpc, answer.http === undefined ? status : http);
      assert.equal(answer.headers?.get("www-authenticate"), answer.headers && (http === 401 ? "Bearer" : null));
      assert.equal(answer.headers?.get("retry-after"), answer.headers && (http === 503 ? "1" : null));
      assert.match(answer.headers?.get("content-type") ?? "application/json", /^application\/json/);
    });
  }

  test(`${service}: what is demanded is asked, and where the request comes from`, async (t) => {
    const verifier = new FakeVerifier();
    await (await serve(t, verifier.real))({ "x-api-key": "good" });
    const { requiredScopes, environmentId, projectId } = OPTIONS;
    assert.deepEqual(verifier.asked, ["good", { requiredScopes, environmentId, projectId, clientIp: "127.0.0.1" }]);
  });
}

const headers = (): Header[] => [["x-api-key", "good"]];

test("scopes and address may depend on the request", async () => {
  const verifier = new FakeVerifier();
  const options = { requiredScopes: (path: string) => [`${path}:read`], clientIp: (path: string) => `ip of ${path}` };
  await check(verifier.real, options, "orders", headers, "192.0.2.7");
  assert.deepEqual(verifier.asked?.[1].requiredScopes, ["orders:read"]);
  assert.equal(verifier.asked[1].clientIp, "ip of orders");
});

test("a function that demands nothing known lets nobody pass: a look-up that was forgotten opens no door", async () => {
  const forgotten: Record<string, readonly string[]> = {};
  const options = { requiredScopes: (path: string) => forgotten[path] as readonly string[] };
  const { refusal } = await check(new FakeVerifier().real, options, "orders", headers, undefined);
  assert.equal(refusal?.http, 403);
  const withoutKey = await check(new FakeVerifier().real, options, "orders", () => [], undefined);
  assert.equal(withoutKey.refusal?.http, 401);
});

test("a function of the options that fails lets nobody pass, and its words stay inside", async () => {
  const said: string[] = [];
  const log = (message: string) => said.push(message);
  const options = {
    requiredScopes: () => {
      throw new Error("secret words");
    },
    logger: { info: log, warn: log, error: log },
  };
  const { refusal } = await check(new FakeVerifier().real, options, "orders", headers, undefined);
  assert.equal(refusal?.http, 500);
  assert.doesNotMatch(said.join(), /secret/);
});

test("a peer whose address has a zone counts as unknown", async () => {
  const verifier = new FakeVerifier();
  await check(verifier.real, {}, "orders", headers, "fe80::1%eth0");
  assert.equal(verifier.asked?.[1].clientIp, undefined);
});

test("the log says why a key was denied, and never which", async () => {
  const said: string[] = [];
  const log = (message: string) => said.push(message);
  const verifier = new FakeVerifier();
  verifier.outcome = { ...ACCEPTED, valid: false, code: "REVOKED" };
  await check(verifier.real, { logger: { info: log, warn: log, error: log } }, "orders", headers, undefined);
  assert.deepEqual(said, ["denied: REVOKED, key 0123456789abcdef"]);
});
