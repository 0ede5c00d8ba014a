"""Shell completion, by the protocol of the installed script."""

import re

import pytest

from tumbler import cli

ANSWERS = [
    ("", ["keys", "events"]),
    ("keys w", ["watch"]),
    ("events ", ["list", "deliveries", "redeliver", "rotate-secret"]),
    ("keys c", ["create", "claim"]),
    ("keys list --sta", ["--state"]),
    ("keys list --state ", ["active", "inactive", "expired", "revoked", "superseded"]),
    ("keys list --state active --state e", ["expired"]),
    ("--endpoint 127.0.0.1:1 keys list --state s", ["superseded"]),
    ("keys list --order-by ", ["create_time", "name", "expire_time", "last_used_time"]),
    ("keys revoke 0123456789abcdef --reason o", ["owner-left", "other"]),
    ("events list --type rotation", ["rotation-due", "rotation-claimed", "rotation-overdue"]),
    ("events list --type rev", ["revoked"]),
    ("events list --type exp", ["expiring"]),
    ("events deliveries --state ", ["pending", "delivered", "failed", "outdated", "endpoint-off"]),
    ("events deliveries --state o", ["outdated"]),
    ("keys list --state bored", []),
    ("keys get ", []),
    ("events list --key ", []),
]


@pytest.fixture
def complete(recorder, monkeypatch, capsys):
    """Return a function that asks for completions as a shell does, and returns stdout."""

    def complete(shell, line):
        words = f"tumbler {line}"
        monkeypatch.setenv("_TUMBLER_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
        with pytest.raises(SystemExit) as ended:
            cli.main([])
        captured = capsys.readouterr()
        assert (ended.value.code, captured.err, recorder.requests) == (0, "", [])
        return captured.out

    return complete


@pytest.mark.parametrize(("line", "expected"), ANSWERS)
def test_bash(complete, line, expected):
    """Bash gets one choice per line; no call is made, so key ids are not completed."""
    assert complete("bash", line).split() == expected


@pytest.mark.parametrize(("line", "expected"), ANSWERS)
def test_zsh(complete, line, expected):
    """Zsh gets a call of `_arguments` with the choices, or `_files` if there are none."""
    out = complete("zsh", line)
    if expected:
        assert re.findall(r'(?m)^(?:_arguments .*\(\()?"([^"]+)"', out) == expected
    else:
        assert out.strip() == "_files"


@pytest.mark.parametrize(
    "line",
    [
        "keys list --state",
        "keys list --order-by",
        "keys revoke 0123456789abcdef --reason",
        "events list --type",
        "events deliveries --state",
    ],
)
def test_what_is_completed_is_understood(run, recorder, complete, monkeypatch, line):
    """The command accepts every value that completion offers."""
    values = complete("bash", f"{line} ").split()
    monkeypatch.delenv("_TUMBLER_COMPLETE")
    for value in values:
        before = len(recorder.requests)
        assert run(*line.split(), value)[0] == 0
        assert len(recorder.requests) > before
    assert len(values) > 3
