/** Guarded services with endless streams, started by `serve`. */

import { once } from "node:events";
import { createServer, type Server, type ServerResponse } from "node:http";
import { createServer as createHttp2, type Http2Session } from "node:http2";
import type { AddressInfo } from "node:net";
import { PassThrough } from "node:stream";
import { setTimeout as pause } from "node:timers/promises";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import * as grpc from "@grpc/grpc-js";
import express from "express";
import fastify from "fastify";
import * as connectGuard from "../src/guards/connect.js";
import * as expressGuard from "../src/guards/express.js";
import * as fastifyGuard from "../src/guards/fastify.js";
import * as grpcGuard from "../src/guards/grpc-js.js";
import { ApiKeyService } from "../src/v1.js";
import type { Verifier } from "../src/verifier.js";

const TICK = 20; // ms from one message to the next
const OPTIONS = { requiredScopes: ["orders:read"], logger: { info() {}, warn() {}, error() {} } };

export interface Services {
  readonly told: { grpc: Record<string, number>; http: Record<string, number> };
  stop(): void;
}

export async function startServices(verifier: Verifier): Promise<Services> {
  const byGrpc = await withGrpcJs(verifier);
  const byConnect = withConnect(verifier);
  const byExpress = createServer(withExpress(verifier));
  const byFastify = withFastify(verifier);
  const sessions = new Set<Http2Session>();
  byConnect.on("session", (session) => sessions.add(session));
  const listening = await Promise.all([byConnect, byExpress].map((server) => listen(server as Server)));
  await byFastify.listen({ port: 0, host: "127.0.0.1" });
  return {
    told: {
      grpc: { "grpc-js": byGrpc.port, connect: listening[0] ?? 0 },
      http: { express: listening[1] ?? 0, fastify: (byFastify.server.address() as AddressInfo).port },
    },
    stop() {
      byGrpc.server.forceShutdown();
      byConnect.close();
      for (const session of sessions) session.destroy();
      byExpress.close();
      byExpress.closeAllConnections();
      void byFastify.close();
    },
  };
}

async function listen(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}

async function withGrpcJs(verifier: Verifier): Promise<{ server: grpc.Server; port: number }> {
  const server = new grpc.Server({ interceptors: [grpcGuard.requireApiKey(verifier, OPTIONS)] });
  const bytes = (value: Buffer) => value;
  const watch = {
    path: "/tumbler.v1.ApiKeyService/Watch",
    requestStream: false,
    responseStream: true,
    requestSerialize: bytes,
    requestDeserialize: bytes,
    responseSerialize: bytes,
    responseDeserialize: bytes,
  };
  const speak = (call: grpc.ServerWritableStream<Buffer, Buffer>) => {
    const speaking = setInterval(() => call.write(Buffer.alloc(0)), TICK);
    call.on("cancelled", () => clearInterval(speaking));
  };
  server.addService({ watch }, { watch: speak });
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  return { server, port };
}

function withConnect(verifier: Verifier) {
  return createHttp2(
    connectNodeAdapter({
      interceptors: [connectGuard.requireApiKey(verifier, OPTIONS)],
      contextValues: connectGuard.withPeer,
      routes: (router) =>
        router.service(ApiKeyService, {
          async *watch(_, { signal }) {
            while (!signal.aborted) {
              yield {};
              await pause(TICK);
            }
          },
        }),
    }),
  );
}

function withExpress(verifier: Verifier) {
  const app = express();
  app.use(expressGuard.requireApiKey<express.Request>(verifier, OPTIONS));
  app.get("/stream", (_, response) => void words(response).pipe(response));
  return app;
}

function withFastify(verifier: Verifier) {
  const app = fastify({ forceCloseConnections: true });
  app.addHook("onRequest", fastifyGuard.requireApiKey(verifier, OPTIONS));
  app.get("/stream", async (_, reply) => reply.send(words(reply.raw)));
  return app;
}

function words(response: ServerResponse): PassThrough {
  const made = new PassThrough();
  const speaking = setInterval(() => made.write("word\n"), TICK);
  response.on("close", () => clearInterval(speaking));
  made.on("error", () => {});
  return made;
}
