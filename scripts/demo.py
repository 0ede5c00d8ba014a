#!/usr/bin/env python3
"""A key's life, on a server of its own: created, verified, rotated, revoked; `make demo` runs it.

Two server processes share one database in a temporary folder, so that "everywhere" means something.
Nothing stays behind. Ends with 1 if anything is not as expected.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_pb2 import REVOKE_REASON_COMPROMISED
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

SERVER = [sys.executable, "-m", "tumbler_server"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TUMBLER_")}


class Unexpected(Exception):
    """Something was not as it should be."""


def command(words: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the server to its end."""
    line = [*SERVER, *words.split(), "--data-dir", str(data_dir)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=ENVIRONMENT)  # noqa: S603


@contextmanager
def served(data_dir: Path) -> Iterator[str]:
    """Run a server process on a free port, and give its address."""
    line = [*SERVER, "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT) as process,  # noqa: S603
    ):
        try:
            ready = process.stdout.readline() if process.stdout else ""
            if not ready.startswith("tumbler-server is ready on "):
                log.seek(0)
                raise Unexpected(f"a server did not start: {log.read().strip()}")
            yield ready.split()[-1]
        finally:
            process.terminate()


class Demo:
    """The steps, each printed with the time that it took."""

    def __init__(self, operator: str, targets: list[str], channels: ExitStack) -> None:
        self._metadata = (("authorization", f"Bearer {operator}"),)
        self._stubs = []
        for target in targets:
            channel = grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)])
            channels.enter_context(channel)
            # So that the first step is not charged with the connection.
            grpc.channel_ready_future(channel).result(timeout=10)
            self._stubs.append(ApiKeyServiceStub(channel))

    def call(self, method: str, request: Any, server: int = 0) -> Any:
        """Call an RPC at a server, 0 or 1."""
        return getattr(self._stubs[server], method)(request, metadata=self._metadata, timeout=10)

    def step(self, what: str, action: Callable[[], Any], outcome: Callable[[Any], str]) -> Any:
        """Do something, and print what, how long it took and what came of it."""
        began = time.perf_counter()
        answer = action()
        took = (time.perf_counter() - began) * 1000
        print(f"  {what:<46} {took:8.2f} ms   {outcome(answer)}", flush=True)
        return answer

    def verify(self, called: str, key: str, expected: str) -> None:
        """Verify a key at both servers, and insist on the verdict."""
        for server, place in enumerate("AB"):
            request = pb.VerifyRequest(key=key, required_scopes=["orders:read"])
            answer = self.step(
                f"verify {called} at {place}", lambda r=request, s=server: self.call("Verify", r, s), verdict
            )
            if verdict(answer) != expected or answer.valid != (expected == "VALID"):
                raise Unexpected(f"{called} should be {expected} at server {place}")

    def play(self) -> None:
        """Play the demonstration."""
        created = self.step(
            "create a key at A",
            lambda: self.call(
                "Create",
                pb.CreateRequest(
                    project_id="acme",
                    environment_id="live",
                    name="demo",
                    prefix="acme_live",
                    scopes=["orders:*"],
                    ttl=Duration(seconds=90 * 86_400),
                ),
            ),
            lambda answer: f"{answer.api_key.key_prefix}…",
        )
        self.verify("it", created.key, "VALID")
        rotated = self.step(
            "rotate it at B, with an hour's grace",
            lambda: self.call(
                "Rotate", pb.RotateRequest(key_id=created.api_key.id, grace_period=Duration(seconds=3_600)), server=1
            ),
            lambda answer: f"{answer.api_key.key_prefix}…",
        )
        if list(rotated.api_key.scopes) != ["orders:*"]:
            raise Unexpected("the new key should have the old one's scopes")
        self.verify("the old key", created.key, "VALID")
        self.verify("the new key", rotated.key, "VALID")
        for called, answer in (("old", created), ("new", rotated)):
            request = pb.RevokeRequest(key_id=answer.api_key.id, reason=REVOKE_REASON_COMPROMISED)
            self.step(f"revoke the {called} key at A", lambda r=request: self.call("Revoke", r), lambda _: "revoked")
            self.verify(f"the {called} key", answer.key, "REVOKED")
            if called == "old":
                self.verify("the new key", rotated.key, "VALID")


def verdict(answer: pb.VerifyResponse) -> str:
    """Return the name of a verdict."""
    return pb.VerifyCode.Name(answer.code).removeprefix("VERIFY_CODE_")


def main() -> int:
    """Run the demonstration and return its exit code."""
    try:
        with ExitStack() as stack:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tumbler-demo-"))) / "data"
            print("Creating an installation, and starting two servers, A and B, on its database ...", flush=True)
            founded = command("init", data_dir)
            if founded.returncode:
                raise Unexpected(founded.stderr.strip())
            targets = [stack.enter_context(served(data_dir)) for _ in range(2)]
            Demo(founded.stdout.strip(), targets, stack).play()
            audit = command("audit verify", data_dir)
            print(f"  the audit trail: {audit.stdout.strip()}")
            if audit.returncode:
                raise Unexpected("the audit trail should be whole")
    except (Unexpected, grpc.RpcError, grpc.FutureTimeoutError) as failure:
        text = f"{failure.code().name}: {failure.details()}" if isinstance(failure, grpc.RpcError) else failure
        print(f"Not as expected: {text}", file=sys.stderr)
        return 1
    print("All as expected. The servers are stopped, and their data is gone.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
