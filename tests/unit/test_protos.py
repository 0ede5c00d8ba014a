"""The protos: how their comments begin, and which changes `make lint` refuses."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"

FOUND = 100
"""The exit code of buf for a breaking change, in contrast to a proto that does not compile."""

EVENT, SERVICE = "tumbler/v1/event.proto", "tumbler/v1/api_key_service.proto"

BREAKS = {
    "another number": (EVENT, "string key_id = 3;", "string key_id = 30;"),
    "another name": (EVENT, "string key_id = 3;", "string key = 3;"),
    "another type": (EVENT, "int64 revision = 1;", "string revision = 1;"),
    "a field fewer": (EVENT, "  bytes hash = 9;\n", ""),
    "an enum value fewer": (EVENT, "  KEY_EVENT_TYPE_REHASHED = 14;\n", ""),
    "an RPC fewer": (SERVICE, "  rpc Get(GetRequest) returns (GetResponse);\n", ""),
    "a stream fewer": (SERVICE, "returns (stream WatchResponse)", "returns (WatchResponse)"),
}

ADDITIONS = {
    "a field more": (EVENT, "  bytes hash = 9;\n", "  bytes hash = 9;\n  bytes more = 900;\n"),
    "another comment": (EVENT, "message KeyEvent {", "// A comment.\nmessage KeyEvent {"),
}

RESOURCES = {"ApiKey", "Rotation", "Actor", "KeyName", "Consistency", "KeyEvent", "WebhookDelivery"}
"""Messages besides the requests whose fields say whether a caller sets them."""

ELEMENT = re.compile(
    r"(?:(message|enum|service|oneof|rpc|extend) )?(?:repeated )?(?:map<.*?>|[\w.]+(?= \w+ =))? ?"
    r"([\w.]+)(?: = \d+| ?[({])"
)


def elements(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each element of a proto: its message ("" outside of one), its name, and its comment."""
    around: list[tuple[str, str]] = []
    comment: list[str] = []
    for line in map(str.strip, file.read_text().splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        found = ELEMENT.match(line)
        if found and not line.startswith(("option", "syntax")):
            kind, name = found[1] or "", found[2]
            message = next((outer for what, outer in reversed(around) if what == "message"), "")
            if kind != "extend":
                yield message, name, " ".join(comment)
            if line.endswith("{"):
                around.append((kind, name))
        elif line == "}":
            around.pop()
        comment = []


@pytest.mark.parametrize("file", sorted((ROOT / "protos").rglob("*.proto")), ids=lambda file: file.stem)
def test_comments(file: Path) -> None:
    """A comment begins with its element's name, after AIP-203's word in requests and resources."""
    seen = list(elements(file))
    assert seen
    for message, name, comment in seen:
        marked = message in RESOURCES or message.endswith("Request")
        begin = r"(Required|Optional|Output only)\. " if marked else ""
        assert re.match(rf"{begin}{name}\b", comment), f"{message}.{name}: {comment[:60]}"
    assert max(map(len, file.read_text().splitlines())) <= 100


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with a copy of the protos, for buf."""
    if not BUF.exists():
        assert not os.environ.get("TUMBLER_DEMAND_ALL"), "buf is needed here: make .venv/lint"
        pytest.skip("buf is not here; make .venv/lint installs it")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    return tmp_path


def edit(copy: Path, file: str, old: str, new: str) -> None:
    """Replace a text that occurs once in a proto."""
    path = copy / "protos" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} must stand in {file} once"
    path.write_text(text.replace(old, new))


def breaking(copy: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of `make lint` in a copy."""
    (command,) = re.findall(r"buf (breaking --against \S+)", (ROOT / "Makefile").read_text())
    return subprocess.run([BUF, *command.split()], cwd=copy, text=True, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS.keys())
def test_a_change_that_breaks_callers(copy: Path, change: tuple[str, str, str]) -> None:
    """A change that breaks released callers is refused with the file's name."""
    edit(copy, *change)
    done = breaking(copy)
    assert done.returncode == FOUND, done.stdout + done.stderr
    assert f"{change[0]}:" in done.stdout


@pytest.mark.parametrize("change", ADDITIONS.values(), ids=ADDITIONS.keys())
def test_an_addition(copy: Path, change: tuple[str, str, str]) -> None:
    """A change that breaks no released caller passes."""
    edit(copy, *change)
    done = breaking(copy)
    assert not done.returncode, done.stdout + done.stderr
