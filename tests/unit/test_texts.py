"""The texts of errors and of log lines, as they stand in the server's source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tumbler_server

ROOT = Path(tumbler_server.__file__).parent

NOT_MESSAGES = ("config.py", "shares.py")
"""What these write is for the help and for docs/limits.md."""


def literals(file: Path) -> Iterator[str]:
    """Give the string literals of a module as they are written, without its docstrings."""
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
    """No message has a character beyond ASCII: gRPC sends a status message percent-encoded, three bytes for one."""
    assert [text for text in literals(file) if not text.isascii()] == []
