"""The documentation matches the program."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.unit.test_imports import LADDER
from tumbler.decide import Code
from tumbler.keyformat import PATTERN
from tumbler_server import commands, limits, shares
from tumbler_server.config import Config, parse_size
from tumbler_server.limits import ENTRIES, ENTRY_LENGTHS, KIB, LENGTHS, LIMITS, MIB, Limit
from tumbler_server.rpc.auth import OPEN, POLICY
from tumbler_server.rpc.engine import lane_limits
from tumbler_server.rpc.status import STATUSES
from tumbler_server.shares import CROWDS, CrowdLimit

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "tumbler_server"


def _settings() -> dict[str, Any]:
    group: Any = typer.main.get_command(commands.app)
    return {
        option.envvar: option
        for command in group.commands.values()
        for option in getattr(command, "params", ())
        if option.envvar
    }


def _rows() -> dict[str, tuple[str, str, str]]:
    text = (ROOT / "docs" / "configuration.md").read_text()
    found = re.findall(r"^\| `(\S+)` \| `(TUMBLER_\w+)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    return {variable: (flag, default, told) for flag, variable, default, told in found}


def test_every_setting_is_in_the_table_and_no_other() -> None:
    """docs/configuration.md has a row for each setting of the command, and no other."""
    assert _rows().keys() == _settings().keys()


@pytest.mark.parametrize("variable", sorted(_settings()))
def test_a_setting_is_told_as_it_is(variable: str) -> None:
    """A row has the flag, the default and the help text of the command."""
    option = _settings()[variable]
    words = {None: "none", False: "off"}
    default = option.show_default if isinstance(option.show_default, str) else words.get(option.default, option.default)
    assert _rows()[variable] == ("/".join([*option.opts, *option.secondary_opts]), str(default), option.help)


def _sizes(limit: Limit) -> str:
    if limit.unit == "bytes":
        sizes = ((MIB, "MiB"), (KIB, "KiB"), (1, "bytes"))
        return next(f"{limit.most // size:,} {unit}" for size, unit in sizes if limit.most % size == 0)
    return f"{limit.most:,} {limit.unit}"


def _limits(heading: str) -> list[tuple[str, ...]]:
    _, _, section = (ROOT / "docs" / "limits.md").read_text().partition(f"\n## {heading}\n")
    table = section.partition("\n## ")[0]
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table.splitlines() if line[:1] == "|"]
    return rows[2:]


CORES = 4
"""Processors of the machine in the page's table of lanes."""

TABLES: dict[str, list[Limit]] = {
    "What is limited": list(LIMITS),
    "Connections and time limits": list(shares.LIMITS),
    "Calls in flight": [crowd.row for crowd in CROWDS],
    "Lanes": [lane.row for lane in lane_limits(Config.threads, CORES).values()],
}
"""The page's tables of limits, by heading."""


@pytest.mark.parametrize("heading", TABLES)
def test_every_limit_is_told_as_it_is(heading: str) -> None:
    """docs/limits.md has each limit of limits.py and shares.py: name, size, what happens above it, and setting."""
    assert _limits(heading) == [
        (limit.what, _sizes(limit), limit.beyond, f"`{limit.setting}`" if limit.setting else "")
        for limit in TABLES[heading]
    ]


def test_every_limit_is_in_a_table() -> None:
    """The tables contain every limit of the two modules once."""
    made = [value for module in (limits, shares) for value in vars(module).values() if isinstance(value, Limit)]
    assert [*LIMITS, *shares.LIMITS] == made
    assert list(CROWDS) == [value for value in vars(shares).values() if isinstance(value, CrowdLimit)]


def test_the_lanes_told_are_those_of_the_default_threads() -> None:
    """docs/limits.md names the threads and processors for its table of lanes."""
    text = (ROOT / "docs" / "limits.md").read_text()
    assert f"with {CORES} processors and `--threads {Config.threads}`" in " ".join(text.split())


@pytest.mark.parametrize("limit", [limit for limit in LIMITS if limit.setting], ids=lambda limit: limit.what)
def test_a_limit_is_changed_by_the_setting_that_it_names(limit: Limit) -> None:
    """A limit that an operator can change is the default of the flag that it names."""
    (option,) = [option for option in _settings().values() if limit.setting in option.opts]
    default = option.default if isinstance(option.default, int) else parse_size(option.default)
    assert default == limit.most


def test_the_entries_told_are_those_counted() -> None:
    """docs/limits.md has the maximum entries of each list and map of a request, and the maximum entry lengths."""
    assert {name: int(most.replace(",", "")) for name, most, _ in _limits("Entries of a request's lists and maps")} == {
        f"`{name}`": most for name, most in ENTRIES.items()
    }
    told = {name: length for name, _, length in _limits("Entries of a request's lists and maps") if length}
    assert {name: int(re.findall("[0-9,]+", length)[-1].replace(",", "")) for name, length in told.items()} == {
        f"`{name}`": most for name, most in ENTRY_LENGTHS.items()
    }


def test_the_lengths_told_are_those_measured() -> None:
    """docs/limits.md has the maximum length of each text of a request."""
    told = {name: int(most.replace(",", "")) for name, most in _limits("Texts of a request")}
    assert told == {f"`{name}`": most for name, most in LENGTHS.items()}


def test_the_scopes_told_are_those_of_the_policy_table() -> None:
    """docs/operations.md has each scope with the RPCs that need it."""
    text = (ROOT / "docs" / "operations.md").read_text()
    told = {
        rpc: scope
        for scope, rpcs in re.findall(r"^\| `(tumbler:\S+)` \| (.+) \|$", text, re.MULTILINE)
        for rpc in rpcs.split(", ")
    }
    assert told == {rpc: scope for rpc, scope in POLICY.items() if scope != OPEN}


def _contract(heading: str) -> list[list[str]]:
    _, _, section = (ROOT / "docs" / "contract.md").read_text().partition(f"\n## {heading}\n")
    rows = [line.split("|")[1:-1] for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_calls_of_the_contract_are_those_of_the_service() -> None:
    """docs/contract.md has each RPC with the scope that it needs."""
    told = {
        rpc: OPEN if scope.startswith("none") else scope.strip("`")
        for rpcs, _, scope in _contract("The calls")
        for rpc in re.findall(r"`(\w+)`", rpcs)
    }
    assert told == POLICY


def test_the_verdicts_of_the_contract_are_in_the_order_of_decide() -> None:
    """docs/contract.md has the verdicts in the order in which decide checks them, with VALID last."""
    table = [row[0].strip("`") for row in _contract("Verdicts") if row[0].strip("`").isupper()]
    assert table == [code.name for code in Code if code not in (Code.UNSPECIFIED, Code.VALID)] + ["VALID"]


def test_the_errors_of_the_contract_are_those_of_the_status_table() -> None:
    """docs/contract.md has each reason under its status."""
    told = {reason: status for status, reasons in _contract("Errors") for reason in re.findall("[A-Z_]{4,}", reasons)}
    assert told == {reason: code.name for code, reason in STATUSES.values()} | {"INTERNAL": "INTERNAL"}


def test_the_commands_of_the_contract_are_those_there_are() -> None:
    """docs/contract.md has each subcommand of tumbler-server."""
    _, _, section = (ROOT / "docs" / "contract.md").read_text().partition("\n### The command `tumbler-server`\n")
    group: Any = typer.main.get_command(commands.app)
    made = {
        f"{name} {below}".strip()
        for name, command in group.commands.items()
        for below in getattr(command, "commands", [""])
    }
    assert set(re.findall("`([a-z -]+)`", section.partition("\n- ")[0])) == made


def test_the_pattern_of_the_contract_is_the_one_that_finds_keys() -> None:
    """docs/contract.md has the pattern for secret scanners."""
    assert f"\n{PATTERN.pattern}\n" in (ROOT / "docs" / "contract.md").read_text()


def _rooms() -> str:
    _, _, section = (ROOT / "docs" / "architecture.md").read_text().partition("\n## Rooms\n")
    return section.partition("\n## ")[0]


def test_the_ladder_of_the_page_is_the_one_that_is_enforced() -> None:
    """docs/architecture.md has the rooms in the order in which they may import each other."""
    ladder = _rooms().split("```")[1]
    assert tuple(ladder.replace("←", " ").split()) == LADDER[: LADDER.index("__main__")]


def test_the_rooms_of_the_page_have_the_modules_that_are_there() -> None:
    """docs/architecture.md has each module of each room once."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", _rooms().partition("\n| package |")[0], re.MULTILINE)[1:]
    told = []
    for room, modules in rows:
        folder = re.findall(r"^`(\w+/)`$", room)
        told += [f"{''.join(folder)}{name}" for name in re.findall(r"`(\w+)`", modules if folder else room + modules)]
    made = {str(path.relative_to(SERVER).with_suffix("")) for path in SERVER.rglob("*.py") if path.stem[:2] != "__"}
    assert sorted(told) == sorted({re.sub("/m[0-9].*", "", name) for name in made} | {"store/migrations"})


def _tracked(*patterns: str) -> list[Path]:
    git = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in git.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def _prose(document: Path) -> str:
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(document: Path) -> set[str]:
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", _prose(document), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).strip().replace(" ", "-")
        anchor, copies = words, 0
        while anchor in anchors:
            copies += 1
            anchor = f"{words}-{copies}"
        anchors.add(anchor)
    return anchors


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in Markdown leads to an existing file or folder, and to an existing heading."""
    broken = []
    for document in _tracked("*.md"):
        for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", _prose(document)):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{document.relative_to(ROOT)}: {link}")
    assert broken == []


_CITED_ELSEWHERE = re.compile(r"\b(?:CONTRACT section|DESIGN)\b|\bsection \d+ of (?:the|Tumbler's) contract")


def test_nothing_cites_a_document_that_is_not_here() -> None:
    """Comments and pages cite docs/contract.md and docs/architecture.md by heading, not by section number."""
    citing = [
        str(path.relative_to(ROOT))
        for path in _tracked()
        if path != Path(__file__).resolve() and _CITED_ELSEWHERE.search(path.read_text(errors="replace"))
    ]
    assert citing == []


_CITATION = re.compile(r"(docs/(?:contract|architecture)\.md), (?:\"|')([^\"']+)(?:\"|')")


def test_the_sections_cited_are_there() -> None:
    """Every heading that code cites exists on the page."""
    missing = [
        f"{path.relative_to(ROOT)}: {page}, {heading}"
        for path in _tracked("*.py", "*.go", "*.ts", "*.java", "*.json", "*.proto")
        for page, heading in _CITATION.findall(path.read_text(errors="replace"))
        if not re.search(rf"^#+ {re.escape(heading)}$", (ROOT / page).read_text(), re.MULTILINE)
    ]
    assert missing == []


_SHOWS_SECRET = re.compile(
    r"\b(?:server init|operator-key|keys (?:create|rotate|claim)|rotate-secret)\b(?:[^|`\n]|\\\n)*"
)
_TEXTS = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "clients/*/README.md",
        "examples/**/README.md",
        "scripts/*",
        "server/**/*.py",
        "clients/python/src/**/*.py",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and "node_modules" not in path.parts
]


@pytest.mark.parametrize("path", _TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_secret_goes_through_a_redirect(path: Path) -> None:
    """No documented command redirects a secret to a file: the file would be readable by others, or left empty."""
    for command in _SHOWS_SECRET.findall(path.read_text(errors="replace")):
        assert not re.search(r"(?<![-=2&])> ?(?!/dev/)[\w$\"./]", command), command
