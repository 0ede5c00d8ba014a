/** What a key let in ends with the key, over real sockets. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { Agent, createServer, get, type IncomingMessage, type ServerResponse } from "node:http";
import {
  connect as connectHttp2,
  createServer as createHttp2,
  type Http2ServerRequest,
  type Http2ServerResponse,
} from "node:http2";
import { type AddressInfo, connect as connectTcp } from "node:net";
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";
import test, { type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import * as grpc from "@grpc/grpc-js";
import express from "express";
import fastify from "fastify";
import * as connectGuard from "../src/guards/connect.js";
import * as expressGuard from "../src/guards/express.js";
import * as fastifyGuard from "../src/guards/fastify.js";
import * as grpcGuard from "../src/guards/grpc-js.js";
import { ApiKeyService, VerifyCode } from "../src/v1.js";
import { Verifier } from "../src/verifier.js";
import { denied, FakeServer, idOf, makeKey, type Stream, until, valid } from "./fake-server.js";

const KEY = makeKey("a");
/** The options that the tests vary. */
type StreamOptions = { endStreams?: boolean };

const logger = { info() {}, warn() {}, error() {} };

/** A verifier with a stream of changes, and the ends that the handlers of a guarded service report. */
class Scene {
  readonly ends: string[] = [];
  begun = 0;
  /** Releases the waiting handlers. */
  go = false;
  #revision = 1;

  private constructor(
    readonly server: FakeServer,
    readonly verifier: Verifier,
    readonly stream: Stream,
  ) {}

  static async open(t: TestContext): Promise<Scene> {
    const server = await FakeServer.start();
    const verifier = new Verifier({ target: server.target, apiKey: makeKey("own"), logger, timeout: 60_000 });
    t.after(() => {
      verifier.close();
      server.close();
    });
    const stream = await server.stream();
    stream.send({ cursor: "r1" });
    while (!(await verifier.verify(makeKey("probe"))).cached);
    return new Scene(server, verifier, stream);
  }

  get open(): number {
    return this.verifier.sessions.size;
  }

  /** Changes the key's answer and delivers the change. Returns when the verifier has acted on it. */
  async becomes(code: VerifyCode): Promise<void> {
    const revision = ++this.#revision;
    this.server.answer = ({ key }) => {
      const answer = code === VerifyCode.VALID ? valid(key) : denied(code, idOf(key));
      return { ...answer, revision: BigInt(revision) };
    };
    const asked = this.server.calls.length;
    this.stream.changed(idOf(KEY), revision);
    await this.verifier.verify(KEY);
    await until(() => this.server.calls.length > asked || this.open === 0);
  }
}

interface Call {
  /** Settles when the call has ended: "OK", or how it failed. */
  readonly ended: Promise<string>;
  hangUp(): void;
}

type Serve = (t: TestContext, scene: Scene, options?: StreamOptions) => Promise<() => Call>;

const STREAMS = { path: "/tumbler.v1.ApiKeyService/Watch", requestStream: false, responseStream: true };
const bytes = (value: Buffer) => value;

function grpcCall(t: TestContext, port: number, method: { path: string; requestStream: boolean }): () => Call {
  const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
  t.after(() => client.close());
  return () => {
    const metadata = grpc.Metadata.fromHttp2Headers({ authorization: `Bearer ${KEY}` });
    const call = method.requestStream
      ? client.makeBidiStreamRequest(method.path, bytes, bytes, metadata)
      : client.makeServerStreamRequest(method.path, bytes, bytes, Buffer.alloc(0), metadata);
    const ended = new Promise<string>((resolve) => {
      call.on("data", () => {});
      call.on("error", (error: grpc.ServiceError) => resolve(`${grpc.status[error.code]}: ${error.details}`));
      call.on("end", () => resolve("OK"));
    });
    return { ended, hangUp: () => call.cancel() };
  };
}

const GRPC: Record<string, Serve> = Object.fromEntries(
  [false, true].map((requestStream) => [
    requestStream ? "grpc-js, both ways" : "grpc-js",
    async (t: TestContext, scene: Scene, options: StreamOptions = {}) => {
      const guard = grpcGuard.requireApiKey(scene.verifier, { requiredScopes: ["orders:read"], logger, ...options });
      const server = new grpc.Server({ interceptors: [guard] });
      const method = { ...STREAMS, path: "/test.Service/Talk", requestStream };
      const definition = {
        ...method,
        requestSerialize: bytes,
        requestDeserialize: bytes,
        responseSerialize: bytes,
        responseDeserialize: bytes,
      };
      const talk = (call: grpc.ServerDuplexStream<Buffer, Buffer>) => {
        scene.begun++;
        const speaking = requestStream ? undefined : setInterval(() => call.write(Buffer.from("word")), 5);
        call.on("data", () => {});
        call.on("end", () => requestStream && scene.ends.push("taken for whole"));
        call.on("cancelled", () => {
          clearInterval(speaking);
          scene.ends.push("told");
        });
      };
      server.addService({ talk: definition }, { talk });
      const port = await new Promise<number>((resolve, reject) =>
        server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, bound) =>
          error ? reject(error) : resolve(bound),
        ),
      );
      t.after(() => server.forceShutdown());
      return grpcCall(t, port, method);
    },
  ]),
);

GRPC.connect = async (t, scene, options = {}) => {
  const guard = connectGuard.requireApiKey(scene.verifier, { requiredScopes: ["orders:read"], logger, ...options });
  const handler = connectNodeAdapter({
    interceptors: [guard],
    contextValues: connectGuard.withPeer,
    routes: (router) =>
      router.service(ApiKeyService, {
        async *watch(_, { signal }) {
          scene.begun++;
          signal.addEventListener("abort", () => scene.ends.push("told"));
          while (!signal.aborted) {
            yield { cursor: "word" };
            await sleep(5);
          }
        },
      }),
  });
  const server = createHttp2(handler).listen(0, "127.0.0.1");
  const sessions = new Set<{ destroy(): void }>();
  server.on("session", (session) => sessions.add(session));
  await once(server, "listening");
  t.after(() => {
    server.close();
    for (const session of sessions) session.destroy();
  });
  return grpcCall(t, (server.address() as AddressInfo).port, STREAMS);
};

const ENDS = [
  [VerifyCode.REVOKED, "UNAUTHENTICATED: a valid API key is required"],
  [VerifyCode.INSUFFICIENT_SCOPE, "PERMISSION_DENIED: this API key does not allow that"],
] as const;

for (const [name, serve] of Object.entries(GRPC)) {
  for (const [code, end] of ENDS) {
    test(`${name}: a call ends as a new one would, and its handler is told (${VerifyCode[code]}).`, async (t) => {
      const scene = await Scene.open(t);
      const call = (await serve(t, scene))();
      await until(() => scene.begun === 1 && scene.open === 1);
      await scene.becomes(code);
      assert.equal(await call.ended, end);
      await until(() => scene.ends.length > 0 && scene.open === 0);
      assert.deepEqual(scene.ends, ["told"]);
    });
  }

  test(`${name}: a change after which the key is still good ends nothing, and hanging up leaves nothing.`, async (t) => {
    const scene = await Scene.open(t);
    const call = (await serve(t, scene))();
    await until(() => scene.begun === 1 && scene.open === 1);
    await scene.becomes(VerifyCode.VALID);
    assert.deepEqual([scene.ends, scene.open], [[], 1]);
    call.hangUp();
    await until(() => scene.open === 0);
  });

  test(`${name}: with endStreams off a call outlives its key.`, async (t) => {
    const scene = await Scene.open(t);
    const call = (await serve(t, scene, { endStreams: false }))();
    await until(() => scene.begun === 1);
    await scene.becomes(VerifyCode.REVOKED);
    assert.deepEqual([scene.ends, scene.open], [[], 0]);
    call.hangUp();
  });
}

/** Services: "/stream" sends endlessly, "/piped" sends from a stream that was handed over, and "/slow" waits. */
const HTTP: Record<string, (t: TestContext, scene: Scene, options?: StreamOptions) => Promise<number>> = {
  async express(t, scene, options = {}) {
    const app = express();
    app.use(
      expressGuard.requireApiKey<express.Request>(scene.verifier, {
        requiredScopes: ["orders:read"],
        logger,
        ...options,
      }),
    );
    app.get("/stream", (_, response) => {
      const speaking = setInterval(() => response.write("word"), 5);
      response.on("close", () => {
        clearInterval(speaking);
        scene.ends.push("told");
      });
    });
    app.get("/piped", (_, response) => void words(scene, response).pipe(response));
    app.get("/slow", async (_, response) => {
      scene.begun++;
      await until(() => scene.go);
      response.json({ all: "right" });
    });
    const server = createServer(app).listen(0, "127.0.0.1");
    await once(server, "listening");
    t.after(() => {
      server.close();
      server.closeAllConnections();
    });
    return (server.address() as AddressInfo).port;
  },

  async fastify(t, scene, options = {}) {
    const app = fastify({ forceCloseConnections: true });
    const guard = fastifyGuard.requireApiKey(scene.verifier, { requiredScopes: ["orders:read"], logger, ...options });
    app.addHook("onRequest", guard);
    app.get("/stream", async (_, reply) => reply.send(words(scene, reply.raw)));
    app.get("/piped", async (_, reply) => {
      reply.hijack();
      words(scene, reply.raw).pipe(reply.raw);
    });
    app.get("/slow", async () => {
      scene.begun++;
      await until(() => scene.go);
      return { all: "right" };
    });
    t.after(() => app.close());
    await app.listen({ port: 0, host: "127.0.0.1" });
    return (app.server.address() as AddressInfo).port;
  },
};

function words(scene: Scene, response: ServerResponse): PassThrough {
  const made = new PassThrough();
  const speaking = setInterval(() => made.write("word"), 5);
  response.on("close", () => {
    clearInterval(speaking);
    scene.ends.push("told");
  });
  made.on("error", () => {});
  return made;
}

async function begin(port: number, path: string): Promise<IncomingMessage> {
  const request = get({ port, path, headers: { "x-api-key": KEY }, agent: false });
  const [answer] = (await once(request, "response")) as [IncomingMessage];
  return answer;
}

/** Reads to the end, and returns whether that was a normal end. */
async function isWhole(answer: IncomingMessage): Promise<boolean> {
  try {
    await text(answer);
    return answer.complete;
  } catch {
    return false;
  }
}

for (const [name, serve] of Object.entries(HTTP)) {
  for (const path of ["/stream", "/piped"]) {
    test(`${name}: an answer that streams is broken off, and who makes it is told (${path}).`, async (t) => {
      const scene = await Scene.open(t);
      const answer = await begin(await serve(t, scene), path);
      await until(() => scene.open === 1);
      await scene.becomes(VerifyCode.REVOKED);
      assert.equal(await isWhole(answer), false);
      await until(() => scene.ends.length > 0 && scene.open === 0);
    });
  }

  test(`${name}: a change after which the key is still good ends nothing, and hanging up leaves nothing.`, async (t) => {
    const scene = await Scene.open(t);
    const answer = await begin(await serve(t, scene), "/stream");
    await until(() => scene.open === 1);
    await scene.becomes(VerifyCode.VALID);
    assert.deepEqual([scene.ends, scene.open], [[], 1]);
    await once(answer, "data");
    answer.destroy();
    await until(() => scene.open === 0);
  });

  test(`${name}: an ordinary answer runs to its end, and is not noted as a stream.`, async (t) => {
    const scene = await Scene.open(t);
    const answering = begin(await serve(t, scene), "/slow");
    await until(() => scene.begun === 1);
    await scene.becomes(VerifyCode.REVOKED);
    assert.equal(scene.open, 0);
    scene.go = true;
    assert.equal(await isWhole(await answering), true);
  });

  test(`${name}: with endStreams off an answer outlives its key.`, async (t) => {
    const scene = await Scene.open(t);
    const answer = await begin(await serve(t, scene, { endStreams: false }), "/stream");
    await scene.becomes(VerifyCode.REVOKED);
    await once(answer, "data");
    assert.deepEqual([scene.ends, scene.open], [[], 0]);
    answer.destroy();
  });
}

for (const [name, serve] of Object.entries(HTTP)) {
  test(`${name}: a request that only wishes for an upgrade is an ordinary one.`, async (t) => {
    const scene = await Scene.open(t);
    const port = await serve(t, scene);
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    t.after(() => agent.destroy());
    const sockets = new Set<unknown>();
    const ask = async (path: string) => {
      const headers = { "x-api-key": KEY, connection: "Upgrade, keep-alive", upgrade: "h2c" };
      const request = get({ port, path, agent, headers });
      const [answer] = (await once(request, "response")) as [IncomingMessage];
      sockets.add(request.socket);
      return isWhole(answer);
    };
    scene.go = true;
    for (let asked = 0; asked < 20; asked++) assert.equal(await ask("/slow"), true);
    assert.deepEqual([scene.open, sockets.size], [0, 1]);
    scene.go = false;
    const answering = ask("/slow");
    await until(() => scene.begun === 21);
    await scene.becomes(VerifyCode.REVOKED);
    scene.go = true;
    assert.equal(await answering, true);
  });
}

test("A socket that is left to its handler by the answer 101 is destroyed when its key stops being valid.", async (t) => {
  const scene = await Scene.open(t);
  const guard = expressGuard.requireApiKey(scene.verifier, { logger });
  const server = createServer(
    (request, response) =>
      void guard(request, response, () => {
        response.writeHead(101, { connection: "upgrade", upgrade: "words" });
        response.end();
      }),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  const socket = connectTcp((server.address() as AddressInfo).port, "127.0.0.1");
  socket.write(`GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: words\r\nx-api-key: ${KEY}\r\n\r\n`);
  await once(socket, "data");
  assert.equal(scene.open, 1);
  await scene.becomes(VerifyCode.REVOKED);
  await once(socket, "close");
  await until(() => scene.open === 0);
});

test("A socket that is upgraded is destroyed when its key stops being valid.", async (t) => {
  const scene = await Scene.open(t);
  const guard = expressGuard.requireApiKey(scene.verifier, { logger });
  const server = createServer((request, response) => void guard(request, response, () => scene.begun++));
  server.on("upgrade", (request, socket) => {
    // Like express-ws and @fastify/websocket: the upgrade goes through the application's middleware.
    server.emit("request", request, Object.assign(Object.create(null), { socket }));
    socket.on("close", () => scene.ends.push("told"));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  const socket = connectTcp((server.address() as AddressInfo).port, "127.0.0.1");
  socket.write(`GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-api-key: ${KEY}\r\n\r\n`);
  await until(() => scene.begun === 1 && scene.open === 1);
  await scene.becomes(VerifyCode.REVOKED);
  await once(socket, "close");
  await until(() => scene.ends.length === 1 && scene.open === 0);
});

for (const [name, headers] of [
  ["an answer written to the response", { ":path": "/response" }],
  ["an answer written to the stream", { ":path": "/stream" }],
  ["a stream with headers only", { ":path": "/headers" }],
  ["a WebSocket", { ":path": "/ws", ":method": "CONNECT", ":protocol": "websocket", ":scheme": "http" }],
] as const) {
  test(`HTTP/2: ${name} is cancelled when its key stops being valid.`, async (t) => {
    const scene = await Scene.open(t);
    const guard = expressGuard.requireApiKey(scene.verifier, { logger });
    const server = createHttp2({ settings: { enableConnectProtocol: true } });
    const serve = (request: Http2ServerRequest, response: Http2ServerResponse) => {
      const { stream } = response;
      const speak = (to: { write(text: string): unknown }) => {
        const speaking = setInterval(() => to.write("word"), 5);
        stream.on("close", () => clearInterval(speaking));
      };
      stream.on("close", () => scene.ends.push("told"));
      const begin = () => {
        if (request.url === "/response") {
          speak(response);
          return;
        }
        stream.respond({ ":status": 200 });
        if (request.url !== "/headers") speak(stream);
      };
      void guard(request as never, response as never, begin);
    };
    server.on("request", serve);
    server.on("connect", serve);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const client = connectHttp2(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    t.after(() => {
      client.destroy();
      server.close();
    });
    await once(client, "remoteSettings");
    const call = client.request({ ...headers, "x-api-key": KEY }, { endStream: headers[":path"] !== "/ws" });
    call.on("error", () => {});
    call.on("data", () => {});
    await once(call, "response");
    assert.equal(scene.open, 1);
    await scene.becomes(VerifyCode.VALID);
    assert.deepEqual([scene.ends, scene.open], [[], 1]);
    await scene.becomes(VerifyCode.REVOKED);
    await once(call, "close");
    assert.equal(call.rstCode, 8);
    await until(() => scene.ends.length === 1 && scene.open === 0);
  });
}
