"""The documentation says what the program does."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from tumbler_server import commands
from tumbler_server.rpc.auth import OPEN, POLICY

ROOT = Path(__file__).parents[2]


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
    """docs/configuration.md has a row for each setting that the command takes."""
    assert _rows().keys() == _settings().keys()


@pytest.mark.parametrize("variable", sorted(_settings()))
def test_a_setting_is_told_as_it_is(variable: str) -> None:
    """A row gives the flag, the default and the help text that the command itself gives."""
    option = _settings()[variable]
    words = {None: "none", False: "off"}
    default = option.show_default if isinstance(option.show_default, str) else words.get(option.default, option.default)
    assert _rows()[variable] == ("/".join([*option.opts, *option.secondary_opts]), str(default), option.help)


def test_the_scopes_told_are_those_of_the_policy_table() -> None:
    """docs/operations.md names each scope, with the RPCs that need it."""
    text = (ROOT / "docs" / "operations.md").read_text()
    told = {
        rpc: scope
        for scope, rpcs in re.findall(r"^\| `(tumbler:\S+)` \| (.+) \|$", text, re.MULTILINE)
        for rpc in rpcs.split(", ")
    }
    assert told == {rpc: scope for rpc, scope in POLICY.items() if scope != OPEN}


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in the documentation names a file or folder that is there."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("clients/*/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
