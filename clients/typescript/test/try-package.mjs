// Packs the package, installs it in an empty project, imports every entry point, and compiles a program that uses each.
// Needs the registry.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL("..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "tumbler-package-"));
const run = (command, args, cwd = folder) =>
  execFileSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });

try {
  const [{ filename, files }] = JSON.parse(
    run("npm", ["pack", "--json", "--silent", "--pack-destination", folder], here),
  );
  const stray = files.filter(
    ({ path }) => !/^(dist\/.+\.(js|d\.ts)|LICENSE|NOTICE|README\.md|package\.json)$/.test(path),
  );
  if (stray.length > 0) throw new Error(`not to be published: ${stray.map(({ path }) => path)}`);

  writeFileSync(join(folder, "package.json"), JSON.stringify({ type: "module", private: true }));
  const npm = (...args) => run("npm", ["install", "--silent", "--no-audit", "--no-fund", ...args]);
  npm(`./${filename}`);

  // The entry points that need no other package must work without one.
  writeFileSync(
    join(folder, "alone.mjs"),
    `import { Verifier, isWellFormed } from "@tumbler/client";
     import { ApiKeyService } from "@tumbler/client/v1";
     import { requireApiKey } from "@tumbler/client/connect";
     import { requireApiKey as forExpress } from "@tumbler/client/express";
     import { requireApiKey as forFastify } from "@tumbler/client/fastify";
     const verifier = new Verifier({ target: "127.0.0.1:1", apiKey: "own", watch: false });
     const { code } = await verifier.verify("no key");
     verifier.close();
     console.log(code, typeof requireApiKey, typeof forExpress, typeof forFastify, ApiKeyService.typeName, isWellFormed(""));`,
  );
  const said = run(process.execPath, ["alone.mjs"]).trim();
  const expected = "MALFORMED function function function tumbler.v1.ApiKeyService false";
  if (said !== expected) throw new Error(`said ${said}`);

  const { devDependencies } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));
  const peers = ["@typescript/native", "@types/node", "@types/express", "express", "fastify", "@grpc/grpc-js"];
  npm(...peers.map((name) => `${name}@${devDependencies[name]}`));
  writeFileSync(
    join(folder, "all.ts"),
    `import { type Verification, Verifier, type VerifierOptions } from "@tumbler/client";
     import { ApiKeyService, type CreateRequest } from "@tumbler/client/v1";
     import { requireApiKey as forConnect, verified, withPeer } from "@tumbler/client/connect";
     import { requireApiKey as forExpress } from "@tumbler/client/express";
     import { requireApiKey as forFastify } from "@tumbler/client/fastify";
     import { requireApiKey as forGrpc, verified as verifiedOf } from "@tumbler/client/grpc-js";
     import { Server, type ServerUnaryCall } from "@grpc/grpc-js";
     import express from "express";
     import fastify from "fastify";

     const options: VerifierOptions = { target: "127.0.0.1:1", apiKey: "own", credentials: { ca: "…" } };
     const verifier = new Verifier(options);
     const demand = { requiredScopes: ["orders:read"] };
     export const app = express();
     app.get("/", forExpress(verifier, demand), (request, response) => void response.send(request.tumbler?.ownerId));
     export const other = fastify();
     other.get("/", { onRequest: forFastify(verifier, demand) }, async (request) => request.tumbler?.ownerId);
     export const server = new Server({ interceptors: [forGrpc(verifier, demand)] });
     export const owner = (call: ServerUnaryCall<CreateRequest, unknown>) => verifiedOf(call)?.ownerId;
     export const interceptors = [forConnect(verifier, demand)];
     export const values = [verified, withPeer, ApiKeyService] as const;
     export const outcome: Promise<Verification> = verifier.verify(undefined);
     // @ts-expect-error: what only tests use is no part of the types
     export const size = verifier.size;
     verifier.close();`,
  );
  const compilerOptions = {
    module: "nodenext",
    target: "es2022",
    strict: true,
    types: ["node"],
    lib: ["es2022", "dom"],
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["all.ts"] }));
  run(join(folder, "node_modules/.bin/tsc"), []);
  run(process.execPath, ["all.js"]);
  console.log("the package installs, runs and compiles");
} finally {
  rmSync(folder, { recursive: true });
}
