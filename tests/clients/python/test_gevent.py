"""With gevent's patched threads, the verifier works once gRPC is switched to gevent, and refuses to hang otherwise."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.clients.python.fake_server import OWN_KEY, PATIENCE, FakeServer
from tumbler.v1 import api_key_service_pb2 as pb

pytest.importorskip("gevent", reason="gevent is not installed")

PATCHED = """
import faulthandler, sys
from gevent import monkey; monkey.patch_all()
faulthandler.dump_traceback_later(20, exit=True)  # frozen
"""

TOLD = """
import grpc.experimental.gevent
grpc.experimental.gevent.init_gevent()
"""

WORKS = (
    PATCHED
    + TOLD
    + """
import gevent, tumbler

def say(word):
    print(word, flush=True)

target, own, key = sys.argv[1:]
verifier = tumbler.Verifier(target, api_key=own, timeout=20)
asked = gevent.spawn(verifier.verify, key)
for _ in range(20):
    gevent.sleep(0.001)  # others run while one waits for the server
say("waiting")
say(asked.get().code.name)
while not verifier.verify(key).cached:
    gevent.sleep(0.001)
many = [gevent.spawn(verifier.verify, key) for _ in range(50)]
gevent.joinall(many)
say("remembered" if all(each.value.cached for each in many) else "asked again")
while verifier.verify(key):
    gevent.sleep(0.001)
say(verifier.verify(key).code.name)
verifier.close()
say("closed")
"""
)


def ended(code: str) -> tuple[int, str]:
    """Run a program to its end, and return its exit code and the last line of its stderr."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return process.returncode, process.stderr.strip().rpartition("\n")[2]


def test_it_does_not_freeze() -> None:
    """If gRPC was not switched, the constructor raises, and the message says what to call."""
    code, said = ended(PATCHED + "import tumbler; tumbler.Verifier('127.0.0.1:1', api_key='own')")
    assert code == 1
    assert said.startswith("RuntimeError: gevent has patched threads")
    assert "grpc.experimental.gevent.init_gevent()" in said


@pytest.mark.parametrize("told", ["", TOLD], ids=["untold", "told"])
def test_asyncio_does_not_freeze(told: str) -> None:
    """The asyncio verifier cannot be created with gevent, whether gRPC was switched or not."""
    code, said = ended(PATCHED + told + "import tumbler.aio; tumbler.aio.Verifier('127.0.0.1:1', api_key='own')")
    assert code == 1
    assert "use tumbler.Verifier" in said


@pytest.mark.parametrize("patch", ["import gevent.monkey", "from gevent import monkey; monkey.patch_all(thread=False)"])
def test_threads_that_are_none_of_gevents(patch: str) -> None:
    """If gevent is imported but has not patched threads, nothing needs to be switched."""
    made = "import tumbler, tumbler.aio; tumbler.Verifier('127.0.0.1:1', api_key='own').close()"
    assert ended(f"{patch}\n{made}\ntumbler.aio.Verifier('127.0.0.1:1', api_key='own')")[0] == 0


@contextmanager
def running(*arguments: str) -> Iterator[Any]:
    """Run a program, and kill it if it does not exit."""
    with subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True) as process:
        ending = threading.Timer(60, process.kill)
        ending.start()
        try:
            yield process
            assert process.wait(PATIENCE) == 0
        finally:
            ending.cancel()
            process.kill()


def test_it_works_once_grpc_knows(fake: FakeServer) -> None:
    """Other greenlets run while one waits for the server. Keys are cached, changes arrive, and closing works."""
    key = fake.knows(1)
    release = fake.hold(key)
    with running(WORKS, fake.target, OWN_KEY, key) as process:
        fake.await_held(key)
        assert process.stdout.readline() == "waiting\n"
        release()
        assert process.stdout.readline() == "VALID\n"
        assert process.stdout.readline() == "remembered\n"
        fake.knows(1, code=pb.VERIFY_CODE_REVOKED)
        fake.send(key)
        assert process.stdout.read().split() == ["REVOKED", "closed"]
