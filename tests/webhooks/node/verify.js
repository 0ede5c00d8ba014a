// Says whether a webhook is signed with a secret: reads {secret, headers, body} and answers {"ok": true} or false.
import { readFileSync } from "node:fs";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
let ok = true;
try {
  new Webhook(secret).verify(body, headers);
} catch (error) {
  if (!(error instanceof WebhookVerificationError)) throw error;
  ok = false;
}
console.log(JSON.stringify({ ok }));
