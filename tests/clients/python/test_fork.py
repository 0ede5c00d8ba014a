"""A verifier in a process that forks."""

import os
import subprocess
import sys

import pytest

from tests.clients.python.fake_server import OWN_KEY, FakeServer

PROGRAM = """
import os, sys, time, tumbler

target, key = sys.argv[1:]
with tumbler.Verifier(target, api_key=sys.stdin.read()) as verifier:
    until = time.monotonic() + 20
    while not verifier.verify(key).cached:
        assert time.monotonic() < until
    if os.fork() == 0:
        try:
            verifier.verify(key)
        except tumbler.Unavailable as error:
            verifier.close()
            print(error, verifier.remembered, flush=True)
        finally:
            os._exit(0)
    os.wait()
    assert verifier.verify(key).cached
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_answers_nothing(fake: FakeServer) -> None:
    """A forked process gets an error instead of an answer from a stale cache. Its parent continues."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, fake.target, fake.knows(1)],
        input=OWN_KEY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "the verifier was made before this process was forked; make one in each process 0\n",
    ), done.stderr
