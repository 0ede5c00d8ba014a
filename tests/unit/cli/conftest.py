"""The command in this process and as a process of its own, against a server that answers what a test tells it to."""

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
    """A stdin that is a pipe with this text in it."""

    def __init__(self, text=""):
        super().__init__(io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def served():
    """One server for the whole module."""
    server, recorder, port = cli_server.start()
    yield recorder, port
    server.stop(None).wait()


@pytest.fixture
def recorder(served, monkeypatch):
    """Empty the recorder, and set the environment up to reach its server."""
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
    """Run the command in this process, for its exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main(arguments)
        captured = capsys.readouterr()
        for secret in ("c" * 43, "k" * 43):
            assert secret not in captured.err, "no secret belongs on stderr"
        return code, captured.out, captured.err

    return run


@pytest.fixture
def process(recorder):
    """Start the command as a process of its own."""
    started = []

    def start(*arguments, before="pass", closed=None, **options):
        code = f"import sys; {before}; from tumbler.cli import main; sys.exit(main())"
        program = [sys.executable, "-c", code, *arguments]
        if closed:  # by a shell: what Python runs between fork and exec may never end, where there are threads
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
