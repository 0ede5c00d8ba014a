"""Webhooks verify with other languages' libraries of the Standard Webhooks specification."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.conformance.programs import BUILD, DEMAND_ALL, PATIENCE, Missing, Product, Tool, install_npm_packages
from tests.clients.conformance.programs import run as run_tool
from tests.e2e.service import Service, seconds
from tests.webhooks.receiver import Receiver, Sent
from tumbler.v1 import api_key_service_pb2 as pb

NODE, GO = Path(__file__).parent / "node", Path(__file__).parent / "go"
GO_PROGRAM = str(BUILD / "webhooks-go")

VERIFIERS = {
    product.name: product
    for product in (
        Product(
            "webhooks-node",
            (Tool("node", "--version", (20, 0)), Tool("npm")),
            (NODE,),
            lambda: install_npm_packages(NODE),
            ("node", str(NODE / "verify.js")),
        ),
        Product(
            "webhooks-go",
            (Tool("go", "version", (1, 24)),),
            (GO,),
            lambda: run_tool("go", "build", "-o", GO_PROGRAM, ".", cwd=GO),
            (GO_PROGRAM,),
        ),
    )
}
"""Programs that read a webhook and a secret, and report whether the signature verifies."""


@pytest.fixture(params=list(VERIFIERS))
def verifier(request: pytest.FixtureRequest) -> Product:
    """Build a verifier. Skip the test if its tools are missing."""
    product = VERIFIERS[request.param]
    try:
        product.make()
    except Missing as missing:
        if os.environ.get(DEMAND_ALL):
            raise
        pytest.skip(str(missing))
    return product


def verifies(verifier: Product, sent: Sent, secret: str, body: str | None = None) -> bool:
    """Return whether a verifier accepts a webhook, or one with another body, under a secret."""
    asked = json.dumps({"secret": secret, "headers": sent.headers, "body": sent.body if body is None else body})
    answer = subprocess.run(
        verifier.command, input=asked, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return {'{"ok":true}\n': True, '{"ok":false}\n': False}[answer.stdout]


def test_signatures(verifier: Product, sender: Service, receiver: Receiver) -> None:
    """The shown secret verifies a webhook, but no other secret or body does. After its replacement, both secrets do."""
    project = verifier.name
    made = sender.create(
        project_id=project, name="hooked", rotation={"interval": seconds(3600), "webhook_url": receiver.url}
    )
    with Receiver() as elsewhere:
        other = sender.create(
            project_id=project, name="another", rotation={"interval": seconds(3600), "webhook_url": elsewhere.url}
        )
    assert made.webhook_secret != other.webhook_secret

    sender.set_active(made.api_key.id, active=False)
    sent = receiver.next("key.deactivated")
    assert sent.data["key_id"] == made.api_key.id
    assert verifies(verifier, sent, made.webhook_secret)
    assert not verifies(verifier, sent, other.webhook_secret)
    assert not verifies(verifier, sent, made.webhook_secret, sent.body.replace(made.api_key.id, other.api_key.id))

    rotated = sender.call(
        "RotateWebhookSecret", pb.RotateWebhookSecretRequest(project_id=project, webhook_url=receiver.url)
    )
    sender.revoke(made.api_key.id)
    after = receiver.next("key.revoked")
    assert verifies(verifier, after, rotated.webhook_secret)
    assert verifies(verifier, after, made.webhook_secret)
    assert not verifies(verifier, sent, rotated.webhook_secret)
    assert not verifies(verifier, after, other.webhook_secret)
