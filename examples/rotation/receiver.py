"""Takes the webhook that says a key's rotation is due, claims the new key, and puts it into a file."""

import os
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.protobuf.duration_pb2 import Duration
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tumbler.v1.api_key_pb2 import OLD_KEY_ENDS_ON_FIRST_USE
from tumbler.v1.api_key_service_pb2 import ClaimRotationRequest
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

KEY_FILE = os.path.abspath(os.environ["KEY_FILE"])
WEBHOOK = Webhook(os.environ["WEBHOOK_SECRET"])
TO_CLAIM = ("key.rotation_due", "key.rotation_overdue")
# The old key works until the new one is used: whatever goes wrong after the claim, there is a week to mend it.
OLD_KEY = {"old_key_ends": OLD_KEY_ENDS_ON_FIRST_USE, "grace_period": Duration(seconds=7 * 86_400)}
ONE_AT_A_TIME = threading.Lock()
# For a server on this machine; for one elsewhere it takes grpc.ssl_channel_credentials().
CHANNEL = grpc.secure_channel(os.environ["TUMBLER_ENDPOINT"], grpc.local_channel_credentials())


def claim(token: str) -> int:
    """Claim the new key and put it into the file; return the status to answer the webhook with."""
    # The file is begun first, of mode 0600: a key that is claimed and cannot be kept would be lost.
    descriptor, begun = tempfile.mkstemp(dir=os.path.dirname(KEY_FILE))
    with ONE_AT_A_TIME, open(descriptor, "w", encoding="ascii") as file:
        try:
            request = ClaimRotationRequest(claim_token=token, **OLD_KEY)
            answer = ApiKeyServiceStub(CHANNEL).ClaimRotation(request, timeout=10)
        except grpc.RpcError as error:
            os.unlink(begun)
            # Claimed before, or not due any more: then nothing is left to do. Anything else is told again later.
            return 204 if error.code() is grpc.StatusCode.FAILED_PRECONDITION else 500
        file.write(answer.key + "\n")
        file.flush()
        os.fsync(descriptor)
        os.replace(begun, KEY_FILE)
    return 204


class Receiver(BaseHTTPRequestHandler):
    """Answers webhooks: 204 done, 400 not signed by the server, 500 to be sent again."""

    timeout = 10  # seconds for a client that sends nothing

    def do_POST(self) -> None:
        """Take one webhook."""
        try:
            length = max(0, int(self.headers.get("Content-Length", 0)))
            event = WEBHOOK.verify(self.rfile.read(min(length, 65_536)), dict(self.headers))
        except (WebhookVerificationError, ValueError):
            status = 400
        else:
            status = claim(event["data"]["claim_token"]) if event["type"] in TO_CLAIM else 204
        self.send_response(status)
        self.end_headers()


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Receiver) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
