"""Each example, started as its README says, lets only permitted callers in."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.clients.conformance.programs import DEMAND_ALL, EXAMPLES, ROOT, Missing, Product
from tests.e2e.service import PATIENCE, Service, eventually, plain_environment
from tumbler import keyformat

Answer = tuple[int, object]

NO_KEY = "a valid API key is required"
NOT_THAT = "this API key does not allow that"


def made(name: str) -> Product:
    """Build an example. Skip the test if its tools are missing."""
    example = EXAMPLES[name]
    try:
        example.make()
    except Missing as missing:
        if os.environ.get(DEMAND_ALL):
            raise
        pytest.skip(str(missing))
    return example


def started(example: Product, output: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start an example that writes to a file."""
    with output.open("wb") as log:
        return subprocess.Popen(
            example.command,
            cwd=ROOT,
            env=plain_environment(**environment),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def running(name: str, service: Service, key: str, output: Path) -> Iterator[str]:
    """Run an example and yield its URL."""
    example = made(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = started(example, output, TUMBLER_ENDPOINT=service.target, TUMBLER_API_KEY=key, PORT=port)
    try:
        ready = f"listening on http://127.0.0.1:{port}"
        eventually(lambda: ready in output.read_text() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        yield f"http://127.0.0.1:{port}/orders"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def get(url: str, **headers: str) -> Answer:
    """Request a page, and return its status and its JSON."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http, to this machine
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        answer = opener.open(request, timeout=PATIENCE)
    except urllib.error.HTTPError as refused:
        answer = refused
    with answer:
        assert answer.headers["WWW-Authenticate"] == ("Bearer" if answer.status == 401 else None)
        told = json.load(answer)
        # FastAPI uses the name "detail", the others "error".
        return answer.status, told if answer.status == 200 else "; ".join(told.values())


def presented(url: str, key: str) -> Answer:
    """Request a page with a key."""
    return get(url, Authorization=f"Bearer {key}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_lets_in_who_may_come_in(name: str, shared_server: Service, tmp_path: Path) -> None:
    """No key or a revoked one gets 401, a key without the scope 403, and a good one its owner."""
    project = f"{name}"

    def create(*scopes: str) -> tuple[str, str]:
        made = shared_server.create(project_id=project, scopes=scopes, owner_id="owner-7")
        return made.key, made.api_key.id

    own, (good, good_id), (revoked, revoked_id), (scopeless, _) = (
        create("tumbler:keys:verify")[0],
        create("orders:*"),
        create("orders:read"),
        create("customers:read"),
    )
    shared_server.revoke(revoked_id)
    output = tmp_path / "output"
    with running(name, shared_server, own, output) as url:
        bearer = partial(presented, url)
        assert get(url) == (401, NO_KEY)
        assert bearer("nonsense") == bearer(revoked) == (401, NO_KEY)
        assert bearer(scopeless) == (403, NOT_THAT)
        assert bearer(good) == get(url, **{"X-Api-Key": good}) == (200, {"orders": [], "owner": "owner-7"})
        shared_server.revoke(good_id)
        eventually(lambda: bearer(good) == (401, NO_KEY))
    for text in (own, good, revoked, scopeless):
        assert keyformat.parse(text).secret not in output.read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_whose_port_is_in_use_fails(name: str, tmp_path: Path) -> None:
    """If its port is in use, an example ends with an error and does not say that it listens."""
    output = tmp_path / "output"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = started(made(name), output, TUMBLER_ENDPOINT="127.0.0.1:1", TUMBLER_API_KEY="own", PORT=port)
        try:
            assert process.wait(PATIENCE) != 0
        finally:
            process.kill()
            process.wait()
    assert "listening on" not in output.read_text()
