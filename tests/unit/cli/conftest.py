"""Fixtures that run the command, in this process or in its own, against a server with scripted answers."""

import io
import os
import subprocess
import sys

import pytest

from tests.unit.cli import server as cli_server
from tumbler import cli, keyformat

KEY_ID = "0123456789abcdef"
CALLER = keyformat.build("tmb", "C" * 16, "c" * 43)
KEY = keyformat.build("acme_live", KEY_ID, "k" * 43)


class Stdin(io.TextIOWrapper):
    """A stdin that is a pipe containing ``text``."""

    def __init__(self, text=""):
        super().__init__(io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def served():
    """Run one server for the whole module."""
    server, recorder, port = cli_server.start()
    yield recorder, port
    server.stop(None).wait()


@pytest.fixture
def recorder(served, monkeypatch):
    """Reset the recorder and set the environment to reach its server."""
    recorder, port = served
    recorder.__init__()
    for name in [name for name in os.environ if name.startswith("TUMBLER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TUMBLER_ENDPOINT", f"127.0.0.1:{port}")
    monkeypatch.setenv("TUMBLER_API_KEY", CALLER)
    monkeypatch.setattr(sys, "stdin", Stdin())
    return recorder


@pytest.fixture
def run(recorder, capsys):
    """Return a function that runs the command in this process and returns its exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main(arguments)
        captured = capsys.readouterr()
        for secret in ("c" * 43, "k" * 43):
            assert secret not in captured.err, "no secret belongs on stderr"
        return code, captured.out, captured.err

    return run


@pytest.fixture
def process(recorder):
    """Return a function that starts the command as its own process."""
    started = []

    def start(*arguments, before="pass", closed=None, **options):
        code = f"import sys; {before}; from tumbler.cli import main; sys.exit(main())"
        program = [sys.executable, "-c", code, *arguments]
        if closed:  # through a shell: code that Python runs between fork and exec can hang if the process has threads
            program = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *program]
        child = subprocess.Popen(program, **{"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options})
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe:
                pipe.close()
