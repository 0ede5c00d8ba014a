"""The tables of docs/clients.md, "Inside the clients", name what is in the clients."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = tuple(
    ROOT / "clients" / folder
    for folder in ("python/src/tumbler", "go", "java/src/main/java/dev/tumbler", "typescript/src")
)
"""In the order of the tables' columns."""

LANGUAGES = ("*.py", "*.go", "*.java", "*.ts")


def _quoted() -> Iterator[tuple[int, str]]:
    """Yield what the tables' cells quote, each with the number of its language."""
    section = (ROOT / "docs" / "clients.md").read_text().split("\n## Inside the clients\n")[1].split("\n## ")[0]
    for row in re.findall(r"^\| (?!part |name |--).*$", section, re.MULTILINE):
        _, _, *cells, _ = row.split("|")
        assert len(cells) == len(SOURCES), row
        for language, cell in enumerate(cells):
            yield from ((language, quoted) for quoted in re.findall(r"`([^`]+)`", cell))


def _is_hand_written(path: Path) -> bool:
    return not {"gen", "v1"} & set(path.parts) and not path.name.endswith("_test.go")


def test_the_files_are_there() -> None:
    """Every file that a table names exists."""
    paths = [SOURCES[language] / quoted for language, quoted in _quoted() if "." in quoted]
    assert len(paths) > 50
    assert [str(path) for path in paths if not path.is_file()] == []


def test_the_names_are_there() -> None:
    """Every other name is in that client's hand-written sources, and not only in its tests."""
    texts = [
        "\n".join(path.read_text() for path in folder.rglob(pattern) if _is_hand_written(path))
        for folder, pattern in zip(SOURCES, LANGUAGES, strict=True)
    ]
    names = [(language, quoted) for language, quoted in _quoted() if "." not in quoted]
    assert len(names) > 150
    assert [
        (LANGUAGES[language], name)
        for language, name in names
        if not re.search(rf"(?<![\w#]){re.escape(name)}\b", texts[language])
    ] == []
