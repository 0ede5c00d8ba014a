/** If something else has answered, the caller has gone, or a handler fails, a guard does not end the process. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, get, type IncomingMessage, type RequestListener } from "node:http";
import { createRequire } from "node:module";
import { type AddressInfo, connect } from "node:net";
import { text } from "node:stream/consumers";
import { before, after as finally_, type TestContext, test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import express from "express";
import fastify from "fastify";
import * as expressGuard from "../src/guards/express.js";
import * as fastifyGuard from "../src/guards/fastify.js";
import * as grpcGuard from "../src/guards/grpc-js.js";
import { verification } from "../src/verification.js";
import type { Verifier } from "../src/verifier.js";
import { until } from "./fake-server.js";

const express4 = createRequire(import.meta.url)("express4") as typeof express;

const unhandled: unknown[] = [];
const note = (reason: unknown) => unhandled.push(reason);
before(() => process.on("unhandledRejection", note));
finally_(() => process.off("unhandledRejection", note));

/** Fails if an unhandled promise has rejected: outside of a test the process would have ended. */
async function nothingUnhandled(): Promise<void> {
  for (let turns = 0; turns < 5; turns++) await turn();
  assert.deepEqual(unhandled.splice(0), []);
}

/** A verifier whose verdict waits until a test gives it. */
class Slow {
  asked = 0;
  give: (code: "VALID" | "REVOKED") => void = () => {};

  verify() {
    this.asked++;
    return new Promise((resolve) => {
      this.give = (code) => resolve(verification(code, undefined, false));
    });
  }

  get real(): Verifier {
    return this as unknown as Verifier;
  }
}

const SILENT = { info() {}, warn() {}, error() {} };
const BROKEN_LOG = {
  ...SILENT,
  info() {
    throw new Error("the disk is full");
  },
  error() {
    throw new Error("the disk is full");
  },
};

async function serve(t: TestContext, listener: RequestListener): Promise<number> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return (server.address() as AddressInfo).port;
}

async function ask(port: number): Promise<{ status: number | undefined; body: string }> {
  const [response] = (await once(get({ port, headers: { "x-api-key": "good" } }), "response")) as [IncomingMessage];
  return { status: response.statusCode, body: await text(response) };
}

for (const [name, make] of Object.entries({ "express 4": express4, "express 5": express })) {
  for (const verdict of ["VALID", "REVOKED"] as const) {
    test(`${name}: what was answered meanwhile stays so, and nobody fails, where the verdict is ${verdict}`, async (t) => {
      const verifier = new Slow();
      let handled = 0;
      const app = make();
      app.use((_, response, next) => {
        void until(() => verifier.asked > 0).then(() => {
          response.status(504).end("too late");
          verifier.give(verdict);
        });
        next();
      });
      app.use(expressGuard.requireApiKey<express.Request>(verifier.real, { logger: SILENT }));
      app.use((_, response) => {
        handled++;
        response.end("handled");
      });
      assert.deepEqual(await ask(await serve(t, app)), { status: 504, body: "too late" });
      await nothingUnhandled();
      assert.equal(handled, 0);
    });
  }

  test(`${name}: an answer that has begun is left to who began it`, async (t) => {
    const verifier = new Slow();
    const app = make();
    app.use((_, response, next) => {
      response.write("one ");
      void until(() => verifier.asked > 0).then(async () => {
        verifier.give("REVOKED");
        for (let turns = 0; turns < 5; turns++) await turn();
        response.end("two");
      });
      next();
    });
    app.use(expressGuard.requireApiKey<express.Request>(verifier.real, { logger: SILENT }));
    assert.deepEqual(await ask(await serve(t, app)), { status: 200, body: "one two" });
    await nothingUnhandled();
  });

  test(`${name}: a handler that throws is Express's own matter`, async (t) => {
    const verifier = new Slow();
    const app = make();
    app.use(expressGuard.requireApiKey<express.Request>(verifier.real, { logger: SILENT }));
    app.use(() => {
      throw new Error("a handler's mistake");
    });
    app.use(((error: Error, _, response, __) => {
      response.status(418).end(error.message);
    }) as express.ErrorRequestHandler);
    const asked = ask(await serve(t, app));
    await until(() => verifier.asked > 0);
    verifier.give("VALID");
    assert.deepEqual(await asked, { status: 418, body: "a handler's mistake" });
    await nothingUnhandled();
  });
}

test("a plain server: a caller who has gone is not handled, and harms nobody", async (t) => {
  const verifier = new Slow();
  const guard = expressGuard.requireApiKey(verifier.real, { logger: SILENT });
  let handled = 0;
  let closed = 0;
  const port = await serve(t, (request, response) => {
    response.on("close", () => closed++);
    void guard(request, response, () => handled++);
  });
  for (const verdict of ["VALID", "REVOKED"] as const) {
    const socket = connect(port, "127.0.0.1");
    socket.write("GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: good\r\n\r\n");
    const before = verifier.asked;
    await until(() => verifier.asked > before);
    const closedBefore = closed;
    socket.destroy();
    await until(() => closed > closedBefore);
    verifier.give(verdict);
    await nothingUnhandled();
  }
  assert.equal(handled, 0);
});

for (const sent of [false, true]) {
  test(`a plain server: a handler that throws ${sent ? "after" : "before"} it answered does not end the process`, async (t) => {
    const said: string[] = [];
    const logger = { ...SILENT, error: (message: string) => said.push(message) };
    const verifier = { verify: () => Promise.resolve(verification("VALID", undefined, false)) } as unknown as Verifier;
    const guard = expressGuard.requireApiKey(verifier, { logger });
    const port = await serve(t, (request, response) => {
      void guard(request, response, () => {
        if (sent) response.end("done");
        throw new Error("a handler's mistake");
      });
    });
    const { status } = await ask(port);
    assert.equal(status, sent ? 200 : 500);
    assert.match(said.join(), /behind the guard failed: Error: a handler's mistake/);
    await nothingUnhandled();
  });
}

test("a log that cannot be written changes nothing", async (t) => {
  for (const outcome of [verification("REVOKED", undefined, false), new Error("secret words")]) {
    const verifier = {
      verify: () => (outcome instanceof Error ? Promise.reject(outcome) : Promise.resolve(outcome)),
    } as unknown as Verifier;
    const app = express4();
    app.use(expressGuard.requireApiKey<express.Request>(verifier, { logger: BROKEN_LOG }));
    assert.equal((await ask(await serve(t, app))).status, outcome instanceof Error ? 500 : 401);
    await nothingUnhandled();
  }
});

for (const begun of [false, true]) {
  test(`fastify: what was ${begun ? "begun" : "answered"} meanwhile stays so, and nobody fails`, async (t) => {
    const verifier = new Slow();
    const app = fastify();
    app.addHook("onRequest", async (_, reply) => {
      void until(() => verifier.asked > 0).then(async () => {
        if (begun) {
          reply.raw.writeHead(504);
          reply.raw.write("too ");
        } else {
          void reply.code(504).send("too late");
        }
        verifier.give("REVOKED");
        for (let turns = 0; turns < 5; turns++) await turn();
        if (begun) reply.raw.end("late");
      });
    });
    app.addHook("onRequest", fastifyGuard.requireApiKey(verifier.real, { logger: SILENT }));
    app.get("/", () => "handled");
    t.after(() => app.close());
    await app.listen({ port: 0, host: "127.0.0.1" });
    assert.deepEqual(await ask((app.server.address() as AddressInfo).port), { status: 504, body: "too late" });
    await nothingUnhandled();
  });
}

test("grpc-js: what stands behind the guard, or a log, may fail", async (t) => {
  const verifier = { verify: () => Promise.resolve(verification("VALID", undefined, false)) } as unknown as Verifier;
  const failing: grpc.ServerInterceptor = (_, call) =>
    new grpc.ServerInterceptingCall(
      call,
      new grpc.ResponderBuilder()
        .withStart((next) =>
          next(
            new grpc.ServerListenerBuilder()
              .withOnReceiveMetadata(() => {
                throw new Error("an interceptor's mistake");
              })
              .build(),
          ),
        )
        .build(),
    );
  const guard = grpcGuard.requireApiKey(verifier, { logger: BROKEN_LOG });
  const server = new grpc.Server({ interceptors: [guard, failing] });
  const same = { serialize: (value: string) => Buffer.from(value), deserialize: String };
  const method = {
    path: "/test.Service/Get",
    requestStream: false as const,
    responseStream: false as const,
    requestSerialize: same.serialize,
    requestDeserialize: same.deserialize,
    responseSerialize: same.serialize,
    responseDeserialize: same.deserialize,
  };
  server.addService({ get: method }, { get: ((_, done) => done(null, "x")) as grpc.handleUnaryCall<string, string> });
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
  const metadata = new grpc.Metadata();
  metadata.set("x-api-key", "good");
  const code = await new Promise((resolve) =>
    client.makeUnaryRequest(method.path, same.serialize, same.deserialize, "x", metadata, (error) =>
      resolve(error?.code),
    ),
  );
  assert.equal(code, grpc.status.INTERNAL);
  await nothingUnhandled();
});
