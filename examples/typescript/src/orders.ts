/** Orders, behind API keys: Express and one middleware. */
import { Verifier } from "@tumbler/client";
import { requireApiKey } from "@tumbler/client/express";
import express from "express";

const { PORT, TUMBLER_ENDPOINT = "", TUMBLER_API_KEY = "" } = process.env;
const verifier = new Verifier({ target: TUMBLER_ENDPOINT, apiKey: TUMBLER_API_KEY });
const port = Number(PORT);

express()
  .get("/orders", requireApiKey(verifier, { requiredScopes: ["orders:read"] }), (request, response) => {
    response.json({ orders: [], owner: request.tumbler?.ownerId });
  })
  .listen(port, "127.0.0.1", (error) => {
    if (error) throw error; // the port is in use, for example
    console.log(`listening on http://127.0.0.1:${port}`);
  });
