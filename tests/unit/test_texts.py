"""The texts of errors and log lines in the server's source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tumbler_server

ROOT = Path(tumbler_server.__file__).parent

NOT_MESSAGES = ("config.py", "shares.py")
"""Their texts are for the help and for docs/limits.md."""


def literals(file: Path) -> Iterator[str]:
    """Yield the string literals of a module as they are written, except docstrings."""
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield ast.get_source_segment(source, node) or ""


@pytest.mark.parametrize(
    "file", [file for file in sorted(ROOT.rglob("*.py")) if file.name not in NOT_MESSAGES], ids=lambda file: file.name
)
def test_messages_are_ascii(file: Path) -> None:
    """All messages are ASCII: gRPC percent-encodes a status message, three bytes for each other byte."""
    assert [text for text in literals(file) if not text.isascii()] == []
