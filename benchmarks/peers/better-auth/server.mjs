// Better Auth's api-key plugin, called in each request of a Node server, as its documentation shows.
//
// STORAGE=memory: its `secondary-storage` mode, for fast look-ups, on a Map in this process (its documentation shows
// Redis; a Map costs less), with updates deferred. Else its default: the database, SQLite by better-sqlite3.
//
// Its rate limit of 10 calls a day and key is off, since it would refuse all that is measured.
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { apiKey } from "@better-auth/api-key";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import Database from "better-sqlite3";

const folder = process.env.PEER_FOLDER;
const inMemory = process.env.STORAGE === "memory";

const database = new Database(`${folder}/keys.db`);
database.pragma("journal_mode = WAL");

const kept = new Map();
const secondaryStorage = {
  get: (name) => kept.get(name) ?? null,
  set: (name, value) => void kept.set(name, value),
  delete: (name) => void kept.delete(name),
};

const auth = betterAuth({
  database,
  secret: "a secret of this benchmark, of more than 32 characters",
  baseURL: "http://127.0.0.1",
  emailAndPassword: { enabled: true },
  telemetry: { enabled: false },
  rateLimit: { enabled: false },
  ...(inMemory ? { secondaryStorage } : {}),
  plugins: [
    apiKey({
      rateLimit: { enabled: false },
      ...(inMemory ? { storage: "secondary-storage", deferUpdates: true } : {}),
    }),
  ],
});

const { runMigrations } = await getMigrations(auth.options);
await runMigrations();
const { user } = await auth.api.signUpEmail({
  body: { name: "benchmark", email: "benchmark@example.com", password: "a password of this benchmark" },
});
const { key } = await auth.api.createApiKey({ body: { name: "benchmark", userId: user.id } });
writeFileSync(`${folder}/key`, key);

const answer = (response, status, body) => {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(body));
};

createServer(async (request, response) => {
  if (request.url === "/noop") {
    answer(response, 200, { name: "benchmark" });
    return;
  }
  const presented = request.headers["authorization"]?.replace(/^Bearer /, "") ?? "";
  const verified = await auth.api.verifyApiKey({ body: { key: presented } });
  if (verified.valid) answer(response, 200, { name: verified.key.name });
  else answer(response, 401, { error: verified.error?.code ?? "invalid" });
}).listen(Number(process.env.PEER_PORT), "127.0.0.1");
