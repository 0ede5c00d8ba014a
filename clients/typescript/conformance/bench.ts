/** Measures the cost of a cached verify, against a server in this process. Takes the number of calls. */

import { Verifier } from "../src/verifier.js";
import { FakeServer, makeKey } from "../test/fake-server.js";

const calls = Number(process.argv[2] ?? 1_000_000);
const server = await FakeServer.start();
const verifier = new Verifier({ target: server.target, apiKey: "own" });
const stream = await server.stream();
stream.send({ cursor: "r1" });
const heartbeats = setInterval(() => stream.send({ cursor: "r1" }), 1_000);
const key = makeKey("a");
const demand = { requiredScopes: ["orders:read"] };
while (!(await verifier.verify(key, demand)).cached);

let cached = 0;
for (const part of [calls / 10, calls]) {
  cached = 0;
  const [began, cpu] = [process.hrtime.bigint(), process.cpuUsage()];
  for (let call = 0; call < part; call++) {
    if ((await verifier.verify(key, demand)).cached) cached++;
    if (call % 100_000 === 0) await new Promise((resolve) => setImmediate(resolve)); // lets the stream be read
  }
  const took = Number(process.hrtime.bigint() - began) / part;
  const { user, system } = process.cpuUsage(cpu);
  if (part === calls) {
    console.log(
      `${took.toFixed(0)} ns a call (${(((user + system) * 1000) / part).toFixed(0)} of CPU), ${cached} of ${part} cached`,
    );
  }
}
clearInterval(heartbeats);
verifier.close();
server.close();
